"""Chat templates as transformers renders them.

usage: templates.py [--check]                     writes, or compares, the goldens of the table
       templates.py --folder DIR --renderer PATH  compares each template of a folder with our renderer
       templates.py --table --renderer PATH       compares the table with our renderer

PATH is the example `render_template` of softshard-prepare. A folder holds *.jinja files, or tokenizer_config.json and
chat_template.json files at any depth.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import jinja2
import transformers
from template_table import CONVERSATIONS, DATE, SPECIAL_TOKENS, VARIABLES, snippets
from transformers.utils import chat_template_utils

VERSIONS = {"transformers": "5.23.0", "jinja2": "3.1.6"}
GOLDEN = Path(__file__).parent / "golden" / "templates.json"
MESSAGES = CONVERSATIONS["plain"]["messages"]


class FixedDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DATE)


def assert_versions():
    found = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
    chat_template_utils.datetime = FixedDay


def render(job):
    """What transformers makes of a job: text and generated characters, or the kind of the exception."""
    # Variables that transformers takes for its own arguments cannot be given to it.
    arguments = {**job.get("special_tokens", {}), **job.get("variables", {})}
    try:
        texts, generated = chat_template_utils.render_jinja_template(
            conversations=[json.loads(json.dumps(job["messages"]))],
            tools=job.get("tools"),
            documents=job.get("documents"),
            chat_template=job["template"],
            add_generation_prompt=job.get("add_generation_prompt", False),
            return_assistant_tokens_mask=True,
            **arguments,
        )
    except Exception as error:  # whatever the template raises
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": texts[0], "generated": [list(span) for span in generated[0]]}


def render_with_ours(renderer, jobs):
    run = subprocess.run([renderer], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def table_jobs():
    common = {"messages": MESSAGES, "variables": VARIABLES, "date": DATE}
    return [{"template": template, **common} for template in snippets()]


def stable(result):
    """Whether a result is the same in every run: no text of a generator's place in memory."""
    return " at 0x" not in result.get("text", "")


def golden_rows():
    rows = []
    for job in table_jobs():
        result = render(job)
        if "error" in result:
            rows.append({"template": job["template"], "raises": result["error"].split(":")[0]})
        elif not stable(result):
            rows.append({"template": job["template"], "raises": "a place in memory"})
        else:
            generated = {"generated": result["generated"]} if result["generated"] else {}
            rows.append({"template": job["template"], "text": result["text"], **generated})
    return rows


def golden_text():
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in golden_rows())
    head = {"versions": VERSIONS, "date": DATE, "messages": MESSAGES, "variables": VARIABLES}
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "rows": [\n' + lines + "\n]}\n"


def templates_of(folder):
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in (".jinja", ".jinja2"):
            yield str(path.relative_to(folder)), path.read_text(encoding="utf-8")
        elif path.name.endswith(("tokenizer_config.json", "chat_template.json")):
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            named = template if isinstance(template, list) else [{"name": "default", "template": template}]
            for entry in named:
                if entry["template"]:
                    yield f"{path.relative_to(folder)}:{entry['name']}", entry["template"]


def difference(expected, found):
    """`None` where both are the same: equal texts and marks, or failures of both."""
    if "error" in expected and "error" in found:
        return None
    if not stable(expected) and "error" in found:
        return None
    if expected == found:
        return None
    if "error" in expected or "error" in found:
        return f"transformers: {expected}\n    ours: {found}"
    for at, (left, right) in enumerate(zip(expected["text"] + "\0", found["text"] + "\0")):
        if left != right:
            return f"at {at}: {expected['text'][at - 30:at + 40]!r}\n    ours: {found['text'][at - 30:at + 40]!r}"
    return f"marks {expected['generated']}\n    ours: {found['generated']}"


def compare(renderer, named_jobs):
    ours = render_with_ours(renderer, [job for _, job in named_jobs])
    different, failed = [], 0
    for (name, job), found in zip(named_jobs, ours):
        expected = render(job)
        failed += "error" in expected
        problem = difference(expected, found)
        if problem:
            different.append(name)
            print(f"{name}\n    {problem}")
    print(f"{len(named_jobs)} renderings, {failed} of which transformers refuses, {len(different)} different")
    return different


def folder_jobs(folder):
    for name, template in templates_of(folder):
        for title, conversation in CONVERSATIONS.items():
            yield f"{name} / {title}", {
                "template": template,
                "special_tokens": SPECIAL_TOKENS,
                "date": DATE,
                **conversation,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--renderer")
    options = parser.parse_args()
    assert_versions()
    if options.folder or options.table:
        if options.folder:
            jobs = list(folder_jobs(options.folder))
            print(f"{len(list(templates_of(options.folder)))} templates")
        else:
            jobs = [(job["template"], job) for job in table_jobs()]
        sys.exit(1 if compare(options.renderer, jobs) else 0)
    text = golden_text()
    if not options.check:
        GOLDEN.write_text(text, encoding="utf-8")
    elif GOLDEN.read_text(encoding="utf-8") != text:
        sys.exit(f"{GOLDEN}: expected what {VERSIONS} renders, found another text")


main()
