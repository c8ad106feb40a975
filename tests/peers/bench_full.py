"""Full batches beside PyTorch on one machine: bench_full.py SOFTSHARD [--quick]. Prints Markdown tables.

Sequences of one length, all of their tokens labelled, as in pretraining and packing: nobody pads. Random-weight models, f32, all cores, k = 64.
`best` is the fastest of the plain PyTorch ways of bench_label.py and bench_student.py (--sorted) over batch sizes, `usual` PEFT's or PyTorch's usual step.

*Of the peak*: floating-point operations a second over those of the fastest `a @ b.T` of PyTorch in f32, measured in this run. Counted is what has to be computed for
a token: two for each number in the matrices of the layers and of the head, and 2·H·E·(L+1) a layer for the causal half of attention; of a step three times the
matrices and attention where all weights learn, twice with LoRA (a frozen matrix has no gradient). Norms, softmax, selection, loss, what is computed again and the optimizer are
not counted. *Busy*: CPU time over time by the clock and cores.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bench_training
from bench import number, run
from bench_labelling import RECIPE, cpu_seconds, tokenizer_of

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
# Tokens of a run: about twenty seconds of a side on two quiet cores.
TOKENS = {"109m": 12_288, "qwen2.5-0.5b": 4_096, "smol": 4_096}
PEER_BUDGETS = [1024, 2048, 4096]
STUDENT = bench_training.STUDENT
WHOLE = """
[student]
model = "{model}"
epochs = 1
learning_rate = 1e-4
"""


@dataclass
class Shape:
    """What is counted of a model."""

    vocabulary: int
    # Numbers in the matrices of all layers, and in the head.
    layers: int
    head: int
    # 2·H·E of all layers.
    attention: int

    def operations(self, length: int, passes: float) -> float:
        """Of a token."""
        return passes * (2 * (self.layers + self.head) + self.attention * (length + 1))


def shape_of(model: Path) -> Shape:
    config = json.loads((model / "config.json").read_text())
    width, inside, count = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    head_width = config.get("head_dim") or width // heads
    of_layer = width * head_width * (2 * heads + 2 * keys) + 3 * width * inside
    vocabulary = config["vocab_size"]
    return Shape(vocabulary, count * of_layer, width * vocabulary, 2 * heads * head_width * count)


def peak() -> float:
    """Operations a second of the fastest product of PyTorch."""
    import torch

    torch.set_num_threads(CORES)
    fastest = 0.0
    for m, k, n in [(4096, 768, 768), (4096, 768, 2048), (4096, 2048, 768), (2048, 2048, 2048), (4096, 4096, 4096)]:
        a, b = torch.randn(m, k), torch.randn(n, k)
        for _ in range(5):
            start = time.perf_counter()
            a @ b.T
            fastest = max(fastest, 2 * m * k * n / (time.perf_counter() - start))
    return fastest


def rows(path: Path, vocabulary: int, length: int, tokens: int) -> None:
    draw = random.Random(length)
    lines = [json.dumps({"input_ids": [draw.randrange(3, vocabulary) for _ in range(length)]}) for _ in range(tokens // length)]
    path.write_text("\n".join(lines) + "\n")


def recipe_of(softshard: Path, world: Path, name: str, length: int) -> Path:
    """A recipe for that model and prepared sequences of this length."""
    model, recipe = world / name, world / f"{name}-{length}.toml"
    if not model.exists():
        run(sys.executable, HERE / "make_model.py", "--shape", name, model)
    # Ids that every tokenizer here has.
    instructions, tokenizer = world / f"{name}-{length}.jsonl", tokenizer_of(name, world)
    rows(instructions, 32_000, length, TOKENS[name])
    text = RECIPE.format(instructions=instructions, tokenizer=tokenizer, model=model, output=recipe.with_suffix(""))
    text = text.replace("max_tokens = 1024", "max_tokens = 4096").replace('template = "minillm"', 'template = "minillm"\nmask = "all"')
    recipe.write_text(text)
    run(softshard, "prepare", recipe)
    return recipe


def table(title: str, lines: list[list[str]]) -> None:
    print(f"**{title}**; {CORES} cores, load {os.getloadavg()[0]:.1f}\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]), flush=True)
    print(flush=True)


def labelling(softshard: Path, world: Path, name: str, length: int, top: float) -> None:
    recipe = recipe_of(softshard, world, name, length)
    model, output = world / name, recipe.with_suffix("")
    shape = shape_of(model)
    ours, theirs = [], []
    for _ in range(2):
        shutil.rmtree(output / "labels", ignore_errors=True)
        before = cpu_seconds()
        out, memory = run(softshard, "teacher-labels", recipe)
        seconds = number(r"time +([\d.]+) s", out)
        busy = (cpu_seconds() - before) / seconds / CORES
        ours.append((number(r"([\d,]+) tokens/s \(", out), busy, memory))
        command = [sys.executable, HERE / "bench_label.py", model, output / "sequences/train", "--threads", CORES, "--sorted"]
        out, memory = run(*command, "--max-tokens-per-batch", *PEER_BUDGETS)
        for line in map(json.loads, out.splitlines()):
            busy = line["input_tokens_per_second"] / line["labelled_tokens_per_cpu_second"] / CORES
            theirs.append((line["input_tokens_per_second"], busy, memory))
    best = max(theirs)
    lines = [["", "tokens/s", "of best", "of the peak", "busy", "peak MiB"]]
    for side, (speed, busy, memory) in (("ours", max(ours)), ("best", best)):
        share = speed * shape.operations(length, 1) / top
        lines.append([side, f"{speed:,.0f}", f"{speed / best[0]:.2f}", f"{share:.2f}", f"{busy:.0%}", f"{memory:,}"])
    table(f"Labelling, {name}, sequences of {length}; peak {top / 1e9:,.0f} GFLOP/s", lines)


def training(softshard: Path, world: Path, name: str, length: int, whole: bool, top: float) -> None:
    recipe = recipe_of(softshard, world, name, length)
    model = world / name
    shape = shape_of(model)
    run(softshard, "teacher-labels", recipe)
    with recipe.open("a") as file:
        file.write((WHOLE if whole else STUDENT).format(model=model))
    budget = 4 * length
    kind = ["--whole"] if whole else []
    sides = {"usual": lambda: bench_training.train_theirs(recipe, model, *kind, "--batch-size", 4)}
    for size in [budget // 2, budget]:
        sides[f"best, {size}"] = lambda size=size: bench_training.train_theirs(recipe, model, *kind, "--sorted", "--max-tokens-per-batch", size)
    sides["ours"] = lambda: bench_training.train(softshard, recipe, False, budget)
    sides["ours, by layer"] = lambda: bench_training.train(softshard, recipe, True, budget)
    found: dict[str, bench_training.Measured] = {}
    for _ in range(2):
        for side, once in sides.items():
            one = once()
            if side not in found or one.tokens_per_second > found[side].tokens_per_second:
                found[side] = one
    best = max((side for side in found if side.startswith("best")), key=lambda side: found[side].tokens_per_second)
    lines = [["", "tokens/s", "of usual", "of best", "of the peak", "busy", "peak MiB", "of usual", "of best"]]
    for side, one in found.items():
        if side.startswith("best") and side != best:
            continue
        speed, usual, peer = one.tokens_per_second, found["usual"], found[best]
        share = speed * shape.operations(length, 3 if whole else 2) / top
        columns = [side, f"{speed:,.0f}", f"{speed / usual.tokens_per_second:.2f}", f"{speed / peer.tokens_per_second:.2f}", f"{share:.2f}"]
        columns += [f"{speed / one.tokens_per_cpu_second / CORES:.0%}", f"{one.peak_mib:,}"]
        lines.append([*columns, f"{one.peak_mib / usual.peak_mib:.2f}", f"{one.peak_mib / peer.peak_mib:.2f}"])
    what = "all weights" if whole else "LoRA"
    table(f"Step, {what}, {name}, {budget // length} x {length}; peak {top / 1e9:,.0f} GFLOP/s", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--quick", action="store_true", help="one length, the small models")
    arguments = parser.parse_args()
    softshard, top = arguments.softshard.resolve(), peak()
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        for name in ["109m", "smol"] if arguments.quick else ["109m", "smol", "qwen2.5-0.5b"]:
            for length in [512] if arguments.quick else [512, 1024, 2048]:
                labelling(softshard, world, name, length, top)
        training(softshard, world, "109m", 512, False, top)
        training(softshard, world, "smol", 256, True, top)


if __name__ == "__main__":
    main()
