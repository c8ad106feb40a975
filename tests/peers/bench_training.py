"""The student's step beside PEFT on one machine: bench_training.py SOFTSHARD [--shape NAME]... Prints Markdown tables.

Random-weight models, the same Dolly sequences and top-64 labels, f32, all cores, LoRA r=8 on q_proj and v_proj, the same loss. `usual`
and `best` are what bench_student.py says they are, without and with --sorted; `best` and ours choose the batch size that is fastest for
them, among those of BUDGETS, once with and once without checkpointing. Then the sides take turns again; the faster run of each
counts. Time is that of the loop, on both sides after the model is there; ours includes reading the labels and writing metrics. CPU time
of ours includes loading. Peak memory is that of the whole process.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import number, run
from bench_labelling import DOLLY, cpu_seconds, label, lengths, sample

HERE = Path(__file__).parent
BUDGETS = [512, 1024, 2048]
# Rows of the sample: a side takes about a minute on two quiet cores.
ROWS = {"110m": 96, "qwen2.5-0.5b": 24}
ROUNDS = 2
STUDENT = """
[student]
model = "{model}"
epochs = 1
learning_rate = 1e-4
lora = {{ r = 8, alpha = 32.0, dropout = 0.1, target_modules = ["q_proj", "v_proj"] }}
"""


@dataclass
class Measured:
    """A run of either side."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    padding: str
    peak_mib: int


def train(softshard: Path, recipe: Path, checkpointing: bool, budget: int) -> Measured:
    """Our run."""
    output = recipe.with_suffix("") / "student"
    shutil.rmtree(output, ignore_errors=True)
    settings = [
        f"student.max_tokens_per_batch={budget}",
        f'student.checkpointing="{"layer" if checkpointing else "none"}"',
        f"output.student={output}",
    ]
    before = cpu_seconds()
    out, peak = run(softshard, "train-student", recipe, *(f"--set={setting}" for setting in settings))
    tokens = number(r"([\d,]+) tokens in all", out)
    return Measured(number(r"([\d,]+) tokens/s", out), tokens / (cpu_seconds() - before), "", peak)


def train_theirs(recipe: Path, model: Path, *flags: object) -> Measured:
    """A run of PEFT."""
    labels = recipe.with_suffix("") / "labels/train"
    threads = len(os.sched_getaffinity(0))
    out, peak = run(sys.executable, HERE / "bench_student.py", model, labels, "--threads", threads, *flags)
    line = json.loads(out)
    speeds = line["input_tokens_per_second"], line["input_tokens_per_cpu_second"]
    return Measured(*speeds, f"{line['padding']:.1%}", peak)


def beside(softshard: Path, world: Path, shape: str, rows: int) -> None:
    """The table of one model."""
    recipe = sample(softshard, world, shape, rows)
    model = world / shape
    label(softshard, recipe, "teacher.max_tokens_per_batch=512")
    with recipe.open("a") as file:
        file.write(STUDENT.format(model=model))
    print(f"**{shape}**: {lengths(recipe.with_suffix('') / 'labels/train')}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    sides = {("usual", False): lambda: train_theirs(recipe, model)}
    best: dict[tuple[str, bool], Measured] = {("usual", False): sides["usual", False]()}
    for checkpointing in (False, True):
        flags = ["--sorted", *(["--checkpointing"] if checkpointing else [])]
        kinds = {
            "best": lambda budget, flags=flags: train_theirs(recipe, model, *flags, "--max-tokens-per-batch", budget),
            "ours": lambda budget, checkpointing=checkpointing: train(softshard, recipe, checkpointing, budget),
        }
        for name, once in kinds.items():
            found = {budget: once(budget) for budget in BUDGETS}
            budget = max(found, key=lambda budget: found[budget].tokens_per_second)
            all_of_them = ", ".join(f"{size}: {one.tokens_per_second:,.0f} ({one.peak_mib:,} MiB)" for size, one in found.items())
            print(f"tokens/s of {name}, checkpointing {checkpointing}, by tokens of a batch: {all_of_them}", flush=True)
            best[name, checkpointing] = found[budget]
            sides[name, checkpointing] = lambda once=once, budget=budget: once(budget)
    for _ in range(ROUNDS - 1):
        for side, once in sides.items():
            measured = once()
            if side not in best or measured.tokens_per_second > best[side].tokens_per_second:
                best[side] = measured
    print("\n| | checkpointing | tokens/s | of usual | of best | per CPU-second | peak MiB | of usual | of best | padding |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    usual = best["usual", False]
    for (name, checkpointing), one in sorted(best.items(), key=lambda item: (item[0][1], item[0][0] != "usual", item[0][0])):
        peer = best["best", checkpointing]
        columns = [
            name,
            "layer" if checkpointing else "none",
            f"{one.tokens_per_second:,.1f}",
            f"{one.tokens_per_second / usual.tokens_per_second:.2f}",
            f"{one.tokens_per_second / peer.tokens_per_second:.2f}",
            f"{one.tokens_per_cpu_second:,.1f}",
            f"{one.peak_mib:,}",
            f"{one.peak_mib / usual.peak_mib:.2f}",
            f"{one.peak_mib / peer.peak_mib:.2f}",
            one.padding,
        ]
        print(f"| {' | '.join(columns)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--shape", choices=ROWS, action="append")
    parser.add_argument("--rows", type=int, help="of Dolly, in place of what takes a minute on two quiet cores")
    arguments = parser.parse_args()
    if not DOLLY.exists():
        sys.exit(f"bench_training.py: no {DOLLY}; SOFTSHARD_DATA names the folder of the data")
    with tempfile.TemporaryDirectory() as folder:
        for shape in arguments.shape or ROWS:
            beside(arguments.softshard.resolve(), Path(folder), shape, arguments.rows or ROWS[shape])


if __name__ == "__main__":
    main()
