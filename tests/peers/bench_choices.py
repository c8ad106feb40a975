"""Tasks of choices beside lm-evaluation-harness on one machine: bench_choices.py SOFTSHARD [--rows N]. Prints a Markdown table.

The same random-weight model, the same rows, f32, all cores. The harness computes a context again for each of its choices; it takes
the batch size that is fastest for it, of those of BATCHES. Making tokens is not counted on either side, and time starts when the
model is there. The sides take turns; the faster run of each counts. That both compute the same is checked.

The environment is `lm_eval`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from bench import number, run
from bench_labelling import tokenizer_of

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SOFTSHARD_DATA", HERE.parents[1] / "../shared/data"))
BATCHES = [1, 4, 16]
ROUNDS = 2
# Random weights: sums of many nats.
TOLERANCE = 1e-3
FILES = {
    "arc_easy": "evaluation/multiple_choice/arc_easy_test.jsonl",
    "truthfulqa_mc2": "evaluation/multiple_choice/truthfulqa_817.jsonl",
    "fib": "summarization/fib_xsum.jsonl",
}
RECIPE = """
[data]
instructions = "none.jsonl"
[tokenizer]
path = "{model}"
[evaluate]
model = "{model}"
name = "model"
tasks = ["{task}"]
[evaluate.task.{task}]
file = "{file}"
limit = {rows}
[output]
dir = "{output}"
"""


def ours(softshard: Path, world: Path, task: str, model: Path, rows: int) -> tuple[float, list[dict]]:
    """Seconds, and the rows with their requests."""
    recipe, output = world / f"{task}.toml", world / task
    recipe.write_text(RECIPE.format(model=model, task=task, file=DATA / FILES[task], rows=rows, output=output))
    results = output / "evaluations/model"
    for file in results.glob("*"):
        file.unlink()
    out, _ = run(softshard, "evaluate", recipe)
    lines = (results / f"{task}.rows.jsonl").read_text().splitlines()
    return number(r"choices ([\d.]+)\n", out), [json.loads(line) for line in lines]


class Harness:
    """lm-evaluation-harness with one model."""

    def __init__(self, model: Path):
        from lm_eval.models.huggingface import HFLM

        self.models = {
            size: HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=size) for size in BATCHES
        }

    def score(self, pairs: list, size: int) -> tuple[float, list[float]]:
        began = time.perf_counter()
        found = self.models[size]._loglikelihood_tokens(pairs, disable_tqdm=True)
        return time.perf_counter() - began, [float(one[0]) for one in found]

    def pairs(self, rows: list[dict]) -> list:
        """Requests with their tokens."""
        model, pairs = self.models[BATCHES[0]], []
        for row in rows:
            for index in range(len(row["arguments"])):
                request = row["arguments"][f"gen_args_{index}"]
                context, continuation = request["arg_0"], request["arg_1"]
                if context:
                    tokens = model._encode_pair(context, continuation)
                else:
                    tokens = ([model.prefix_token_id], model.tok_encode(continuation))
                pairs.append(((context, continuation), *tokens))
        return pairs


def measure(softshard: Path, world: Path, task: str, model: Path, harness: Harness, rows: int) -> str:
    best, theirs = float("inf"), {size: float("inf") for size in BATCHES}
    for _ in range(ROUNDS):
        seconds, found = ours(softshard, world, task, model, rows)
        best = min(best, seconds)
        pairs = harness.pairs(found)
        for size in BATCHES:
            seconds, sums = harness.score(pairs, size)
            theirs[size] = min(theirs[size], seconds)
            own = [answer[0] for row in found for answer in row["filtered_resps"]]
            worst = max(abs(one - other) / max(1.0, abs(other)) for one, other in zip(own, sums, strict=True))
            assert worst < TOLERANCE, (task, size, worst)
    size = min(theirs, key=theirs.get)
    all_of_them = ", ".join(f"{batch}: {seconds:.1f} s" for batch, seconds in theirs.items())
    return f"| {task} | {rows} | {len(pairs)} | {best:.1f} s | {theirs[size]:.1f} s, batch {size} | {theirs[size] / best:.2f} | {all_of_them} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--shape", default="110m")
    options = parser.parse_args()
    softshard = options.softshard.resolve()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        model = world / "model"
        make = [sys.executable, HERE / "make_model.py", "--shape", options.shape, model]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for file in tokenizer_of(options.shape, world).iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        harness = Harness(model)
        print(f"\n## Tasks of choices beside lm-evaluation-harness, {options.shape}\n")
        print("| task | rows | requests | ours | harness | times | by its batch size |\n|---|---|---|---|---|---|---|")
        for task in FILES:
            print(measure(softshard, world, task, model, harness, options.rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
