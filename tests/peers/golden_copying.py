"""How much of an answer stands in its source, as scikit-learn counts it: golden/copying.json.

    golden_copying.py            writes it; needs the data of ../shared
    golden_copying.py --check    computes everything again and compares; without that data the made-up texts alone

Checked by ci.sh (environment `ci`). Words and runs of words are those of CountVectorizer, areas under the curve those of roc_auc_score, against
human labels of consistency: of SummEval 5 on average by experts, of FIB-XSum 1. Answers without a share of some kind are left out of its
area. crates/evaluate/src/answers/copying.rs agrees within 1e-12.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

import sklearn
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score

assert sklearn.__version__ == "1.9.1", sklearn.__version__

HERE = Path(__file__).parent
OUT = HERE / "golden" / "copying.json"
DATA = Path(os.environ.get("SOFTSHARD_DATA", HERE.parents[1] / "../shared/data")) / "summarization"
RUST = HERE.parents[1] / "crates/evaluate/src/answers/copying.rs"
KINDS = ["unigrams", "trigrams", "content_words", "names_and_numbers"]
CHECK_TOLERANCE = 1e-12

CASES = [
    (
        "The mayor of Oslo, Anna Berg, opened the library on 3 May. It has 12,000 books and cost 4.5m euros.",
        [
            "Anna Berg opened the library in Bergen on 4 May.",
            "The mayor of Oslo, Anna Berg, opened the library on 3 May.",
            "It has 12,000 books; the old one had 9,000. \"Books,\" said Berg, \"are (not) cheap.\"",
            "",
            " . , ! ",
            "Books books BOOKS books books",
            "It was so.",
            "A new library: who would not be glad? Nobody in Oslo's parks, it's said.",
        ],
    ),
    ("Zürich's café serves naïve guests 24/7.\nA co-operative runs it, e.g. on 1st of May.", [
        "Zürich's cafe serves guests 24/7",
        "A co-operative runs the café.\nThe CAFÉ is in Zürich.",
    ]),
    ("", ["Something from nothing. And More."]),
]


def function_words() -> list[str]:
    text = RUST.read_text()
    start = text.index("static FUNCTION_WORDS")
    return re.findall(r'"([a-z]+)"', text[start : text.index("];", start)])


def counts(text: str, size: int, leave: list[str] | None = None) -> dict[str, int]:
    """Runs of words with how often they are there."""
    vectorizer = CountVectorizer(token_pattern=r"[a-z0-9]+", ngram_range=(size, size), stop_words=leave)
    try:
        found = vectorizer.fit_transform([text])
    except ValueError as error:  # not one word
        assert "empty vocabulary" in str(error)
        return {}
    return dict(zip(vectorizer.get_feature_names_out(), found.toarray()[0].tolist(), strict=True))


def share(answer: dict[str, int], source: dict[str, int]) -> float | None:
    total = sum(answer.values())
    return sum(count for gram, count in answer.items() if gram in source) / total if total else None


def names_and_numbers(answer: str) -> dict[str, int]:
    """Words with a digit or, but for the first of a sentence, with a capital letter in front."""
    found, begins = {}, True
    for token in answer.split():
        parts = re.findall(r"[a-z0-9]+", token.lower())
        bare = token.strip("\"'()[]‘’“”")
        if parts:
            if re.search(r"\d", " ".join(parts)) or (not begins and bare[:1].isupper()):
                for part in parts:
                    found[part] = found.get(part, 0) + 1
            begins = False
        begins = begins or bare.endswith((".", "!", "?"))
    return found


def copying(source: str, answer: str, leave: list[str]) -> dict:
    words = counts(source, 1)
    return {
        "unigrams": share(counts(answer, 1), words),
        "trigrams": share(counts(answer, 3), counts(source, 3)),
        "content_words": share(counts(answer, 1, leave), words),
        "names_and_numbers": share(names_and_numbers(answer), words),
    }


def areas(leave: list[str]) -> dict | None:
    """Areas under the curve, with how many answers have a share."""
    if not DATA.exists():
        return None
    result = {}
    labels = {"summeval_cnndm": lambda s: s["consistency"] == 5, "fib_xsum": lambda s: s["consistent"] == 1}
    for name, label in labels.items():
        found = []
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            words, three = counts(row["document"], 1), counts(row["document"], 3)
            for one in row["summaries"]:
                text = one["summary"]
                shares = [
                    share(counts(text, 1), words),
                    share(counts(text, 3), three),
                    share(counts(text, 1, leave), words),
                    share(names_and_numbers(text), words),
                ]
                found.append((shares, int(label(one))))
        of_kind = {}
        for index, kind in enumerate(KINDS):
            there = [(shares[index], label) for shares, label in found if shares[index] is not None]
            area = roc_auc_score([label for _, label in there], [value for value, _ in there])
            of_kind[kind] = {"area": float(area), "answers": len(there)}
        result[name] = of_kind
    return result


def make() -> dict:
    leave = function_words()
    cases = [
        {"source": source, "answer": answer} | copying(source, answer, leave) for source, answers in CASES for answer in answers
    ]
    return {"versions": {"sklearn": sklearn.__version__}, "function_words": leave, "cases": cases, "areas": areas(leave)}


def differences(kept, found, place: str) -> list[str]:
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        return [d for key in kept for d in differences(kept[key], found[key], f"{place}.{key}")]
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return [d for i, (a, b) in enumerate(zip(kept, found, strict=True)) for d in differences(a, b, f"{place}[{i}]")]
    if isinstance(kept, float) and isinstance(found, float):
        return [] if abs(kept - found) <= CHECK_TOLERANCE else [f"{place}: {kept} and {found}"]
    return [] if kept == found else [f"{place}: {kept} and {found}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden/ instead of writing it")
    arguments = parser.parse_args()
    made = make()
    if not arguments.check:
        assert made["areas"], f"no data at {DATA}"
        OUT.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        return 0
    kept = json.loads(OUT.read_text())
    if made["areas"] is None:
        kept["areas"] = None
    found = differences(kept, made, "copying")
    for line in found[:20]:
        print(line, file=sys.stderr)
    print(f"copying.json: made again, {len(found)} differences", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
