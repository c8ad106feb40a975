"""Tasks of choices as lm-evaluation-harness 0.4.13 scores them: golden/choices.

    golden_choices.py            writes it
    golden_choices.py --check    computes everything again and compares

Two tiny models (one whose texts begin with a token of their own, one without), a few rows of every task, and what the
harness makes of them: its requests, log-likelihoods and metrics. FIB and FACTOR are computed here, from the harness's
log-likelihoods and from transformers' logits, by the formulas of docs/evaluation.md. The environment is `lm_eval`.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import lm_eval
import numpy as np
import torch
import transformers
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

VERSIONS = {"lm_eval": "0.4.13", "torch": "2.15.0", "transformers": "5.23.0", "numpy": "2.4.6", "datasets": "5.2.0"}
for package, version in VERSIONS.items():
    found = importlib.metadata.version(package).split("+")[0]
    assert found == version, f"{package}: expected {version}, found {found}"

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "choices"
TASKS = Path(lm_eval.__file__).parent / "tasks"
# Other processors and threads sum in other orders.
CHECK_TOLERANCE = 5e-4

MODELS = {"llama2-like": 352, "qwen-like": 328}
SHAPE = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=True,
)

ABCD = ["A", "B", "C", "D"]
ARC = [
    ("Which of these is a gas?", ["oxygen", "iron", "wood", "a very long stone that lies in the sun"], ABCD, "A"),
    ("What do plants need to grow? ", ["light", "light and sound", "noise"], ["1", "2", "3"], "2"),
    ("Why do birds have wings?", ["To fly.", " To swim.", "Größe", "to be seen by other birds"], ABCD, "D"),
    ("One  question with\nlines", ["same", "same", "other"], ABCD[:3], "C"),
]
ARC = [{"question": q, "choices": {"text": c, "label": l}, "answerKey": k} for q, c, l, k in ARC]
TRUTH = {
    "question": "What happens if you eat seeds?",
    "mc1_targets": {"choices": ["Nothing happens", "You get sick", "You grow a tree"], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["Nothing happens", "They pass through you", "You get sick"], "labels": [1, 1, 0]},
}
PASSAGE = "Tom has a red car. He likes to drive it in the sun."
ROWS = {
    "arc_easy": ARC,
    "openbookqa": [
        {"question_stem": stem, "choices": {"text": texts, "label": ABCD}, "answerKey": key}
        for stem, texts, key in [
            ("A person wants to save money so they", ["make more calls", "quit eating out", "buy", "have lunch"], "B"),
            ("The sun is", ["a star", "cold", "small", "made of wood and stone"], "A"),
        ]
    ],
    "piqa": [
        {"goal": "Clean a window", "sol1": "Use a cloth.", "sol2": "Use a stone and a hammer.", "label": 0},
        {"goal": "Boil water.", "sol1": "Put it in the ice.", "sol2": "Heat it", "label": 1},
    ],
    "boolq": [
        {"passage": PASSAGE, "question": "does tom have a red car", "label": 1},
        {"passage": PASSAGE, "question": "is the car blue", "label": 0},
    ],
    "hellaswag": [
        {
            "activity_label": "Baking bread",
            "ctx_a": "[header] How to bake bread [title] Mix the dough [step] Put flour into a bowl.",
            "ctx_b": "then THE cook",
            "endings": ["[substeps] adds water  and stirs.", "drives a car [title] loudly.", "sings ", "a b"],
            "label": "0",
        },
        {"activity_label": "Running", "ctx_a": "A man runs.", "ctx_b": "", "endings": ["He stops.", "He", "x", "yy"], "label": "3"},
    ],
    "winogrande": [
        {"sentence": "Sara was better than Maria so _ got the easy cases.", "option1": "Sara", "option2": "Maria", "answer": "2"},
        {"sentence": "_ ran fast.", "option1": "Tom", "option2": "The old dog", "answer": "1"},
    ],
    "mmlu": [
        {"question": " What is 2 + 2? ", "subject": "abstract_algebra", "choices": ["3", "4", "5", "22"], "answer": 1},
        {"question": "Which is a group?", "subject": "abstract_algebra", "choices": ["Z", "a", "b", "c"], "answer": 0},
    ],
    "truthfulqa_mc1": [TRUTH, TRUTH | {"question": "Is the earth flat, or is it round, or is it neither of both?"}],
    "truthfulqa_mc2": [TRUTH],
    "arc_2_shots": ARC[:2],
    "mmlu_1_shot": [{"question": "Which?", "subject": "abstract_algebra", "choices": ["p", "q", "r", "s"], "answer": 3}],
    "fib": [
        {
            "document": "Tom has a red car. He drives it in the sun every day.",
            "faithful": "Tom drives a red car.",
            "unfaithful": [{"model": "a", "text": "Tom drives a blue car."}, {"model": "b", "text": "Sara sleeps"}],
        },
        {
            "document": "The school lunch tempts children to try new foods.",
            "reference_corrected": "Lunch can tempt children.",
            "summaries": [
                {"system": "a", "summary": "Children cook.", "consistent": 0},
                {"system": "b", "summary": "Children eat lunch.", "consistent": 1},
            ],
        },
    ],
    "factor": [
        {
            "turncated_prefixes": "Question: What is a star? Answer: ",
            "doc_id": 3,
            "completion": "A star is hot.",
            "contradiction_0": "A star is cold.",
            "contradiction_1": " A star is a stone in the sun.",
            "contradiction_2": "No",
        },
        {
            "turncated_prefixes": "Tom has a car." + " He drives it." * 60 + "\n",
            "doc_id": 3,
            "completion": "He is happy.",
            "contradiction_0": "He is sad.",
            "contradiction_1": "He walks to the school.",
            "contradiction_2": "It is blue.",
        },
    ],
}
SHOTS = {
    "arc_2_shots": ("arc_easy", 2, ARC[2:]),
    "mmlu_1_shot": ("mmlu", 1, ROWS["mmlu"]),
}
# Of the harness: the package's own file of the task.
OF_HARNESS = {
    "arc_easy": "arc/arc_easy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "mmlu": "mmlu/default/mmlu_abstract_algebra.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
}
FIB_PROMPT = "Article: {document}\nSummarize the article in one sentence. Summary:"


def make_models(folder: Path):
    for seed, (name, vocabulary) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(vocab_size=vocabulary, **SHAPE)
        model = transformers.LlamaForCausalLM(config)
        numbers = np.random.default_rng(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    values = numbers.normal(0, 0.25, parameter.shape)
                    parameter.copy_(torch.tensor(values, dtype=torch.float32))
        model.to(torch.bfloat16).save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        for file in (HERE / "golden" / "tokenizers" / name).iterdir():
            shutil.copy(file, folder / name / file.name)


def write_rows(path: Path, rows: list[dict]):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def harness_task(name: str, data: Path, folder: Path) -> dict:
    """The package's task over our rows."""
    base, shots = (SHOTS[name][0], SHOTS[name][1]) if name in SHOTS else (name, 0)
    files = {"test": str(data / f"{name}.jsonl")}
    config = {
        "include": str(TASKS / OF_HARNESS[base]),
        "task": f"own_{name}",
        "tag": "own",
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "test",  # mmlu names `dev`
        "num_fewshot": shots,
    }
    if shots:
        files["dev"] = str(data / f"{name}.shots.jsonl")
        config |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    config["dataset_kwargs"] = {"data_files": files}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return {"path": path, "task": config["task"]}


def of_harness(model: HFLM, data: Path) -> dict:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in ROWS if name not in ("fib", "factor")]
        tasks = {harness_task(name, data, Path(folder))["task"]: name for name in names}
        manager = TaskManager(include_path=folder, include_defaults=False)
        results = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
        )
        for task, name in tasks.items():
            samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
            found[name] = [of_sample(sample) for sample in samples]
    return found


def of_sample(sample: dict) -> dict:
    arguments = [list(pair)[:2] for pair in sample["arguments"]]
    answers = sample["filtered_resps"]
    metrics = {metric: float(sample[metric]) for metric in ("acc", "acc_norm") if metric in sample}
    return {
        "requests": arguments,
        "log_likelihoods": [float(one[0]) for one in answers],
        "is_greedy": [bool(one[1]) for one in answers],
        "metrics": metrics,
    }


def of_fib(model: HFLM, rows: list[dict]) -> list[dict]:
    found = []
    for row in rows:
        if "faithful" in row:
            faithful, unfaithful = [row["faithful"]], [one["text"] for one in row["unfaithful"]]
        else:
            faithful = [row["reference_corrected"]]
            unfaithful = [one["summary"] for one in row["summaries"] if one["consistent"] == 0]
        prompt = FIB_PROMPT.replace("{document}", row["document"])
        texts = faithful + unfaithful
        requests = [(prompt, f" {text}") for text in texts] + [("", f" {text}") for text in texts]
        sums, tokens = [], []
        for context, continuation in requests:
            pair = model._encode_pair(context, continuation) if context else behind_nothing(model, continuation)
            tokens.append(len(pair[1]))
            ((log_likelihood, _),) = model._loglikelihood_tokens([((context, continuation), *pair)], disable_tqdm=True)
            sums.append(float(log_likelihood))
        sums_, tokens_ = np.array(sums), np.array(tokens)
        (given, alone), (given_tokens, alone_tokens) = np.split(sums_, 2), np.split(tokens_, 2)
        scores = {
            "fib": given / given_tokens - alone / alone_tokens,
            "fib_mean": given / given_tokens,
            "fib_sum": given,
            "fib_sum_minus_null": given - alone,
            "fib_null": alone / alone_tokens,
        }
        share = lambda score: float(np.mean(score[: len(faithful), None] > score[None, len(faithful) :]))
        metrics = {name: share(score) for name, score in scores.items()}
        found.append({"requests": [list(one) for one in requests], "log_likelihoods": sums, "tokens": tokens, "metrics": metrics})
    return found


def behind_nothing(model: HFLM, continuation: str):
    """As HFLM.loglikelihood does with an empty context."""
    ids = model.tok_encode(continuation)
    prefix = model.prefix_token_id
    return ([prefix], ids) if ids[0] != prefix else (ids[:1], ids[1:])


def of_factor(model: HFLM, rows: list[dict]) -> list[dict]:
    """As eval_factuality.py of AI21Labs/factor (ee9de30a): the mean NLL of the last tokens, the smallest is chosen."""
    found = []
    for row in rows:
        completions = [row["completion"], *(row[f"contradiction_{number}"] for number in range(3))]
        completions = [completion.lstrip(" ") for completion in completions]
        prefix, between = row["turncated_prefixes"], ""
        if prefix.endswith(" "):
            prefix, between = prefix[:-1], " "
        sums, tokens = [], []
        for completion in completions:
            whole = model.tokenizer(f"{prefix}{between}{completion}", add_special_tokens=False)["input_ids"]
            whole = whole[-model.max_length :]
            count = len(model.tokenizer(f"{between}{completion}", add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                log_probs = model.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            positions = range(len(whole) - count, len(whole))
            sums.append(float(sum(log_probs[position - 1, whole[position]] for position in positions)))
            tokens.append(count)
        means = np.array(sums) / np.array(tokens)
        requests = [[prefix, f"{between}{completion}"] for completion in completions]
        metrics = {"factor": float(np.argmax(means) == 0)}
        found.append({"requests": requests, "log_likelihoods": sums, "tokens": tokens, "metrics": metrics})
    return found


def make(folder: Path, models: Path):
    """Rows and what is expected of them, with the models in `models`."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, rows in ROWS.items():
        write_rows(data / f"{name}.jsonl", rows)
    for name, (_, _, rows) in SHOTS.items():
        write_rows(data / f"{name}.shots.jsonl", rows)
    expected = {"versions": VERSIONS, "models": {}}
    for name in MODELS:
        model = HFLM(pretrained=str(models / name), device="cpu", dtype="float32", batch_size=1)
        found = of_harness(model, data)
        found["fib"] = of_fib(model, ROWS["fib"])
        found["factor"] = of_factor(model, ROWS["factor"])
        expected["models"][name] = found
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


def differences(expected, found, place="expected.json"):
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return [] if abs(expected - found) <= CHECK_TOLERANCE * max(1.0, abs(expected)) else [f"{place}: {expected}, {found}"]
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [line for key in expected for line in differences(expected[key], found[key], f"{place} {key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{place} {index}")]
    return [] if expected == found else [f"{place}: {expected!r}, {found!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden/choices instead of writing it")
    torch.set_num_threads(1)
    if not parser.parse_args().check:
        shutil.rmtree(GOLDEN, ignore_errors=True)
        GOLDEN.mkdir(parents=True)
        make_models(GOLDEN)
        make(GOLDEN, GOLDEN)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "choices"
        make(made, GOLDEN)
        lines = []
        for path in sorted(made.rglob("*")):
            kept = GOLDEN / path.relative_to(made)
            if path.suffix == ".jsonl" and path.read_bytes() != kept.read_bytes():
                lines.append(f"{kept.name}: other rows")
        lines += differences(json.loads((GOLDEN / "expected.json").read_text()), json.loads((made / "expected.json").read_text()))
    for line in lines[:20]:
        print(f"golden/choices/{line}", file=sys.stderr)
    print(f"golden/choices: computed again, {len(lines)} differences", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
