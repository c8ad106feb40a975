"""Labelling beside transformers on one machine: bench_labelling.py SOFTSHARD [--model NAME]... Prints Markdown tables.

Random-weight models, the same Dolly sequences, f32, all cores and fused attention on both sides; k = 64. The sequences are a random
sample, so that their lengths are Dolly's; MiniLLM's template, and the response is labelled. `usual` and `best` are what bench_label.py
says they are, without and with --sorted; `best` and ours choose the batch size that is fastest for them, among those of BUDGETS. Then the sides
take turns again; the faster run of each counts. Time starts when the model is there. Ours includes writing and committing the shard. CPU
time, which other processes disturb less, includes loading on our side and not on theirs.

Then two things about our cost: what a shard costs by itself, and what streamed layers cost.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import number, run

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SOFTSHARD_DATA", HERE.parents[1] / "../shared/data"))
DOLLY = DATA / "dolly/databricks-dolly-15k.jsonl"
BUDGETS = [512, 1024, 2048, 4096, 8192]
OUR_BUDGETS = [512, 1024, 2048]
# Rows of the sample: a side takes about a minute on two quiet cores.
ROWS = {"110m": 160, "qwen2.5-0.5b": 48}
ROUNDS = 2
SEED = 10
RECIPE = """
[data]
instructions = "{instructions}"
empty_responses = "drop"
template = "minillm"
max_prompt_tokens = 512
max_tokens = 1024
[tokenizer]
path = "{tokenizer}"
[teacher]
model = "{model}"
[labels]
selection = {{ kind = "top_k", k = 64 }}
[output]
dir = "{output}"
"""


@dataclass
class Measured:
    """A run of either side."""

    labelled_tokens_per_second: float
    labelled_tokens_per_cpu_second: float
    padding: float
    peak_mib: int
    # What it said of itself.
    said: str


def dolly(rows: int, path: Path) -> None:
    """A sample of Dolly in random order."""
    lines = DOLLY.read_text().splitlines()
    random.Random(SEED).shuffle(lines)
    path.write_text("\n".join(lines[:rows]) + "\n")


def tokenizer_of(shape: str, world: Path) -> Path:
    """Qwen's own, or byte-level BPE of 32,000 entries trained on Dolly."""
    if shape.startswith("qwen"):
        return DATA / "tokenizers/qwen2.5"
    import tokenizers

    folder = world / "tokenizer-32k"
    if not folder.exists():
        folder.mkdir()
        trained = tokenizers.ByteLevelBPETokenizer()
        texts = (json.loads(line) for line in DOLLY.read_text().splitlines())
        texts = (f"{row['instruction']}\n{row['context']}\n{row['response']}" for row in texts)
        trained.train_from_iterator(texts, vocab_size=32000, special_tokens=["<|endoftext|>"], show_progress=False)
        trained.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return folder


def label(softshard: Path, recipe: Path, *settings: str) -> Measured:
    """Our run with these settings."""
    output = recipe.with_suffix("")
    shutil.rmtree(output / "labels", ignore_errors=True)
    before = cpu_seconds()
    out, peak = run(softshard, "teacher-labels", recipe, *(f"--set={setting}" for setting in settings))
    speed, padding = number(r"\(([\d,]+) labelled\)", out), number(r"padding ([\d.]+) %", out) / 100
    tokens = number(r"([\d,]+) labelled tokens", out)
    said = "; ".join(" ".join(line.split()) for line in out.splitlines()[1:-1])
    return Measured(speed, tokens / (cpu_seconds() - before), padding, peak, said)


def cpu_seconds() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def label_theirs(model: Path, sequences: Path, *flags: object) -> dict[int, Measured]:
    """Runs of transformers in one process, by batch size."""
    out, _ = run(sys.executable, HERE / "bench_label.py", model, sequences, "--threads", len(os.sched_getaffinity(0)), *flags)
    lines = [json.loads(line) for line in out.splitlines()]
    return {
        line["batch_size"]: Measured(
            line["labelled_tokens_per_second"],
            line["labelled_tokens_per_cpu_second"],
            line["padding"],
            line["peak_rss_mib"],
            "",
        )
        for line in lines
    }


def fastest(found: dict[int, Measured]) -> int:
    return max(found, key=lambda size: found[size].labelled_tokens_per_second)


def sample(softshard: Path, world: Path, shape: str, rows: int) -> Path:
    """A recipe for a model of that shape and prepared sequences."""
    instructions, recipe = world / f"dolly-{rows}.jsonl", world / f"{shape}-{rows}.toml"
    dolly(rows, instructions)
    model = world / shape
    if not model.exists():
        run(sys.executable, HERE / "make_model.py", "--shape", shape, model)
    tokenizer, output = tokenizer_of(shape, world), recipe.with_suffix("")
    recipe.write_text(RECIPE.format(instructions=instructions, tokenizer=tokenizer, model=model, output=output))
    run(softshard, "prepare", recipe)
    return recipe


def lengths(sequences: Path) -> str:
    import shards

    rows = list(shards.rows(sequences))
    tokens = [len(row["input_ids"]) for row in rows]
    labelled = sum(len(row["positions"]) for row in rows)
    mean = sum(tokens) / len(tokens)
    return f"{len(rows)} sequences, {sum(tokens):,} tokens, {labelled:,} of them labelled; {mean:.0f} on average, {max(tokens)} at most"


def beside(softshard: Path, world: Path, shape: str, rows: int) -> None:
    """The table of one model."""
    recipe = sample(softshard, world, shape, rows)
    model, sequences = world / shape, recipe.with_suffix("") / "sequences/train"
    print(f"**{shape}**: {lengths(sequences)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    ours = {size: label(softshard, recipe, f"teacher.max_tokens_per_batch={size}") for size in OUR_BUDGETS}
    theirs = label_theirs(model, sequences, "--sorted", "--max-tokens-per-batch", *BUDGETS)
    for side, found in (("ours", ours), ("best", theirs)):
        speeds = ", ".join(f"{size}: {one.labelled_tokens_per_second:,.0f}" for size, one in found.items())
        print(f"labelled tokens/s of {side} by tokens of a batch: {speeds}", flush=True)
    size, their_size = fastest(ours), fastest(theirs)
    sides = {
        "ours": lambda: label(softshard, recipe),
        f"ours, {size} tokens": lambda: label(softshard, recipe, f"teacher.max_tokens_per_batch={size}"),
        "usual": lambda: label_theirs(model, sequences)[8],
        f"best, {their_size} tokens": lambda: label_theirs(model, sequences, "--sorted", "--max-tokens-per-batch", their_size)[their_size],
    }
    # The runs that chose the batch sizes are the first round.
    names = list(sides)
    best = {names[1]: ours[size], names[3]: theirs[their_size]}
    turns = [names[0], names[2], *names * (ROUNDS - 1)]
    for side in turns:
        measured = sides[side]()
        if side not in best or measured.labelled_tokens_per_second > best[side].labelled_tokens_per_second:
            best[side] = measured
    print("\n| | labelled tokens/s | of usual | of best | per CPU-second | of usual | of best | padding | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    usual, peer = best[names[2]], best[names[3]]
    for side in names:
        one = best[side]
        columns = [side]
        for speed, beside in (
            (one.labelled_tokens_per_second, [usual.labelled_tokens_per_second, peer.labelled_tokens_per_second]),
            (one.labelled_tokens_per_cpu_second, [usual.labelled_tokens_per_cpu_second, peer.labelled_tokens_per_cpu_second]),
        ):
            columns += [f"{speed:,.1f}", *(f"{speed / other:.2f}" for other in beside)]
        print(f"| {' | '.join([*columns, f'{one.padding:.1%}', f'{one.peak_mib:,}'])} |")
    for side in names[:2]:
        print(f"\n{side}: {best[side].said}")
    print(flush=True)


def seconds(softshard: Path, recipe: Path, rows_per_shard: int) -> tuple[float, float]:
    """Of a labelling run and of one that finds it finished."""
    shutil.rmtree(recipe.with_suffix("") / "labels", ignore_errors=True)
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run(softshard, "teacher-labels", recipe, f"--set=labels.sequences_per_shard={rows_per_shard}", "--set=teacher.max_tokens_per_batch=512")
        taken.append(time.perf_counter() - start)
    return taken[0], taken[1]


def cost_of_shards(softshard: Path, world: Path) -> None:
    """The same sequences in more shards, and more shards of the same size."""
    per_shard, most = 20, 100
    model = world / "tiny"
    run(sys.executable, HERE / "make_model.py", "--shape", "tiny", model)
    print("| sequences | shards | seconds | ms a shard more than in one | finished, ms |\n|---|---|---|---|---|")
    for sequences in [per_shard, per_shard * 10, per_shard * most]:
        data, recipe = world / f"data-{sequences}", world / f"shards-{sequences}.toml"
        run(softshard, "demo-data", data, "--rows", sequences, "--vocab-size", 768)
        text = RECIPE.format(
            instructions=data / "instructions.jsonl", tokenizer=data / "tokenizer", model=model, output=recipe.with_suffix("")
        )
        recipe.write_text(text.replace("minillm", "none"))
        run(softshard, "prepare", recipe)
        counts = [count for count in (1, 10, most) if sequences // count >= per_shard]
        best = {}
        for _ in range(ROUNDS):
            for count in counts:
                found = seconds(softshard, recipe, sequences // count)
                best[count] = tuple(map(min, zip(found, best.get(count, found))))
        for count, (taken, finished) in best.items():
            more = f"{1000 * (taken - best[1][0]) / (count - 1):.1f}" if count > 1 else ""
            print(f"| {sequences:,} | {count} | {taken:.2f} | {more} | {1000 * finished:.0f} |", flush=True)
    print()


def cost_of_streaming(softshard: Path, world: Path, shape: str, rows: int) -> None:
    """Layers that are read for a block of tokens beside layers that stay in memory."""
    recipe = sample(softshard, world, shape, rows)
    out, _ = run(softshard, "model", "inspect", world / shape, "--json")
    [facts] = json.loads(out)
    in_f32 = {"resident": 2 * facts["bytes"]["bf16"], "streamed": 2 * facts["bytes"]["streamed"]}
    layers = 4 * facts["layers"] * facts["parameters_of_layer"]
    best: dict[str, Measured] = {}
    for _ in range(ROUNDS):
        for residency in in_f32:
            measured = label(softshard, recipe, f"teacher.residency={residency}", "teacher.max_tokens_per_batch=1024")
            if residency not in best or measured.labelled_tokens_per_second > best[residency].labelled_tokens_per_second:
                best[residency] = measured
    for residency, measured in best.items():
        speed = measured.labelled_tokens_per_second
        ratio = speed / best["resident"].labelled_tokens_per_second
        of_layers = 4 * facts["parameters_of_layer"] * (facts["layers"] if residency == "resident" else 2) / layers
        weights = in_f32[residency]
        columns = [shape, residency, f"{speed:,.1f}", f"{ratio:.2f}", f"{weights / 1e6:,.0f}", f"{weights / in_f32['resident']:.1%}"]
        print(f"| {' | '.join([*columns, f'{of_layers:.1%}', f'{measured.peak_mib:,}'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--only", choices=["beside", "shards", "streaming"], help="one of the parts")
    parser.add_argument("--shape", choices=ROWS, action="append", help="the models beside transformers")
    parser.add_argument("--rows", type=int, help="of Dolly, in place of what takes a minute on two quiet cores")
    arguments = parser.parse_args()
    softshard = arguments.softshard.resolve()
    if not DOLLY.exists():
        sys.exit(f"bench_labelling.py: no {DOLLY}; SOFTSHARD_DATA names the folder of the data")
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        if arguments.only in (None, "beside"):
            for shape in arguments.shape or ROWS:
                beside(softshard, world, shape, arguments.rows or ROWS[shape])
        if arguments.only in (None, "shards"):
            cost_of_shards(softshard, world)
        if arguments.only in (None, "streaming"):
            print("| model | layers are | labelled tokens/s | of resident | weights in memory, MB | of all | of the layers' | peak MiB |")
            print("|---|---|---|---|---|---|---|---|")
            cost_of_streaming(softshard, world, "deep", 160)
            cost_of_streaming(softshard, world, "qwen2.5-0.5b", 48)


if __name__ == "__main__":
    main()
