"""Size and speed of label layouts, in one run: bench_labels.py SOFTSHARD [--tokens N] [--data DIR]. Prints Markdown tables.

Needs `cargo build --workspace --examples`. The labels are those of a made-up teacher with 128,256 tokens (crates/labels/examples/
common/made_up.rs), and of stories260K on TinyStories where DIR has both. Speeds are labelled tokens per second of CPU time on
one core, best while other programs run; `2 threads` is on the wall. `KL` is kl_nats of label_layouts.py in nats, of the entries
kept and with the cut mass; labels that were drawn have none. Random: median of reading one sequence alone from a warm map; the
peers read the row group that it lies in. Memory: anonymous, after decoding row group by row group, for the labels once and ten
times; rows that are read in order keep at most 16 decoded row groups besides.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from label_layouts import DistillKit, Labels, PlainParquet, jsonl_bytes, kl_nats

RECOMMENDED = [0, 1, 2, 3, 4, "sqrt"]
BUDGET = [0, 1, "sqrt"]
TOP_K = {"kind": "top_k", "k": 64}
STORIES = """
[data]
text = "{data}/corpora/tinystories_sample_2MiB.txt"
max_tokens = 256
limit = {limit}
split = {{ valid_fraction = 0.02, seed = 1 }}
[tokenizer]
path = "{data}/stories260k/hf"
[teacher]
model = "{data}/stories260k/hf"
[output]
dir = "run"
"""
ENTRIES = {"token_ids": "ids", "counts": "ids", "sample_counts": "ids", "log_probs": "log_probs"}
INPUTS = {"input_ids": "inputs", "sequence_key": "inputs", "source": "inputs", "positions": "inputs"}
PEER_PARTS = {"bytepacked_indices": "ids", "compressed_logprobs": "log_probs"}


class Bench:
    """Where the tools are, and a folder for one set of labels."""

    def __init__(self, softshard: Path, world: Path):
        self.softshard, self.world = softshard, world
        world.mkdir()

    def tool(self, *arguments: object) -> dict:
        return json.loads(self.run(self.softshard.parent / "examples/bench_labels", *arguments))

    def run(self, *command: object) -> str:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=self.world)
        if done.returncode:
            sys.exit(f"{command}: status {done.returncode}\n{done.stderr}")
        return done.stdout

    def make(self, name: str, tokens: int, selection: dict, bits: int) -> tuple[str, dict]:
        return name, self.tool("make", name, tokens, json.dumps(selection), bits)

    def rewrite(self, source: str, name: str, selection: dict, bits: int, *times: int) -> tuple[str, dict]:
        return name, self.tool("rewrite", source, name, json.dumps(selection), bits, *times)

    def label(self, name: str, selection: dict, bits: int) -> str:
        """A dataset of the real teacher."""
        kind = ", ".join(f"{key} = {json.dumps(value)}" for key, value in selection.items())
        settings = {"output.labels": name, "labels.selection": f"{{ {kind} }}", "labels.mantissa_bits": bits}
        if bits == 23:
            settings["labels.position_mantissa_bits"] = 23
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self.run(self.softshard, "teacher-labels", "recipe.toml", *sets)
        return f"run/{name}/train"


def bytes_by_part(files: list[Path], tokens: int) -> dict[str, float]:
    """Bytes per labelled token of ids, log-probabilities, other columns, inputs, and of the whole files."""
    parts = {"ids": 0, "log_probs": 0, "per_position": 0, "inputs": 0}
    for path in files:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                name = column.path_in_schema.split(".")[0]
                part = ENTRIES.get(name) or PEER_PARTS.get(name) or INPUTS.get(name) or "per_position"
                parts[part] += column.total_compressed_size
    parts["file"] = sum(path.stat().st_size for path in files)
    return {part: size / tokens for part, size in parts.items()}


def ours(bench: Bench, exact: Labels, title: str, made: tuple[str, dict], has_error: bool) -> dict:
    """The row of one of our datasets."""
    name, written = made
    folder = bench.world / name
    read = bench.tool("measure", folder)
    row = bytes_by_part(sorted(folder.glob("data/*.parquet")), read["labelled_tokens"])
    row |= {
        "layout": title,
        "encode": written.get("encode_tokens_per_cpu_second"),
        "decode": read["decode_tokens_per_cpu_second"],
        "two": read["decode_tokens_per_second_two_threads"],
        "random": read["random_read_milliseconds"],
        "memory": read["anonymous_megabytes"],
        "memcpy": read["memcpy_tokens_per_cpu_second"],
    }
    if has_error:
        out = bench.world / f"{Path(name).parts[-1]}-{title.replace(' ', '-')}-arrays"
        bench.tool("export", folder, out)
        entries = [np.fromfile(out / f, dtype="<f4" if f.endswith("f32") else "<i4") for f in ("counts.i32", "token_ids.i32", "log_probs.f32")]
        row["kl"] = kl_nats(exact, entries, np.fromfile(out / "tail_log_mass.f32", dtype="<f4"))
    return row


def peer(bench: Bench, exact: Labels, title: str, layout: DistillKit | PlainParquet) -> dict:
    """The row of a layout that is not ours, read by pyarrow and numpy."""
    path = bench.world / f"{title}.parquet"
    pa.set_cpu_count(1)
    began = time.process_time()
    layout.write(exact, path)
    row = {"layout": title, "encode": exact.tokens() / (time.process_time() - began)}
    row |= bytes_by_part([path], exact.tokens())
    groups = range(pq.ParquetFile(path).num_row_groups)

    def decode(of: list[int]) -> tuple[float, list]:
        file = pq.ParquetFile(path, memory_map=True)
        cpu = time.thread_time()
        out = [layout.read_group(file, group, exact.vocabulary, False) for group in of]
        return time.thread_time() - cpu, out

    seconds, out = min((decode(list(groups)) for _ in range(3)), key=lambda pass_: pass_[0])
    row["decode"] = exact.tokens() / seconds
    stored = None if isinstance(layout, DistillKit) else exact.per_position["tail_log_mass"]
    row["kl"] = kl_nats(exact, tuple(np.concatenate(parts) for parts in zip(*out)), stored)
    assert (np.concatenate([ids for ids, _ in out]) == exact.token_ids[:, : layout.k]).all(), title
    if len(groups) > 1:
        with ThreadPoolExecutor(2) as pool:
            began = time.perf_counter()
            list(pool.map(decode, [list(groups)[::2], list(groups)[1::2]]))
            row["two"] = exact.tokens() / (time.perf_counter() - began)
    row["random"] = 1e3 * seconds / len(groups)
    return row


def heading(bench: Bench, title: str, exact: Labels, drawn: str) -> str:
    """What labels these are."""
    bench.tool("export", drawn, bench.world / "drawn")
    ids = np.fromfile(bench.world / "drawn/counts.i32", dtype="<i4").mean()
    mass = 1 - np.exp(exact.per_position["tail_log_mass"].astype(np.float64))
    low, high = np.quantile(mass, [0.05, 0.95])
    return (
        f"**{title}**: {exact.tokens():,} labelled tokens, mean entropy {exact.per_position['entropy'].mean():.2f} nats, "
        f"mass of the top 64 {mass.mean():.3f} ({low:.2f} to {high:.3f}), {ids:.1f} ids in 50 draws\n"
    )


def table(title: str, rows: list[dict]) -> str:
    """Rows as Markdown."""

    def number(value: float | None, form: str, scale: float = 1) -> str:
        return "-" if value is None else format(value / scale, form)

    lines = [
        title,
        "| layout | bytes a token | ids and counts | log-probs | per position | inputs, keys | KL kept | KL and tail | "
        "encode M/s | decode M/s | 2 threads M/s | random ms | memory MB |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        kl = row.get("kl", (None, None))
        parts = [number(row.get(part), ".1f") for part in ("file", "ids", "log_probs", "per_position", "inputs")]
        speeds = [number(row.get(part), ".2f", 1e6) for part in ("encode", "decode", "two")]
        rest = [number(row.get("random"), ".2f"), row.get("memories") or number(row.get("memory"), ".0f")]
        lines.append(f"| {row['layout']} | " + " | ".join([*parts, *(number(part, ".1e") for part in kl), *speeds, *rest]) + " |")
    return "\n".join(lines) + "\n"


def rows_of(bench: Bench, exact: Labels, sets: dict[str, tuple[str, dict]], ten_times: str) -> list[dict]:
    """All rows for one set of labels, of which `sets` are ours."""
    rows = [ours(bench, exact, title, made, "drawn" not in title) for title, made in sets.items()]
    once = rows[0]["memory"]
    times = bench.tool("measure", bench.world / ten_times)
    rows[0]["memories"] = f"{once:.0f}, ten times {times['anonymous_megabytes']:.0f}"
    # Fewer row groups than the dataset remembers: only the larger one reads rows alone.
    rows[0]["random"] = times["random_read_milliseconds"]
    rows += [
        peer(bench, exact, "DistillKit recommended, k = 64", DistillKit(64, 16, RECOMMENDED)),
        peer(bench, exact, "DistillKit budget, k = 50", DistillKit(50, 1, BUDGET)),
        peer(bench, exact, "pyarrow nested lists, zstd 3", PlainParquet(64)),
        {"layout": "JSONL as vLLM prints", "file": jsonl_bytes(exact)},
        {"layout": "memcpy of what decoding gives", "decode": rows[0]["memcpy"]},
    ]
    return rows


def made_up(softshard: Path, world: Path, tokens: int) -> str:
    bench = Bench(softshard, world)
    name, _ = bench.make("exact", tokens, TOP_K, 23)
    bench.tool("export", name, world / "arrays")
    exact = Labels.read(world / "arrays", 128_256)
    sampled = {"kind": "sampled", "draws": 50}
    hybrid = {"kind": "top_k_sampled", "k": 16, "draws": 16}
    sets = {
        "top_k 64, 7 bits": bench.rewrite(name, "seven", TOP_K, 7),
        "top_k 64, 10 bits": bench.rewrite(name, "ten", TOP_K, 10),
        "top_k 64, exact": bench.rewrite(name, "all", TOP_K, 23),
        "top_p 0.95, at most 64, 7 bits": bench.rewrite(name, "top-p", {"kind": "top_p", "p": 0.95, "k": 64}, 7),
        "sampled, 50 drawn": bench.make("sampled", tokens, sampled, 7),
        "top_k_sampled, 16 and 16 drawn, 7 bits": bench.make("hybrid", tokens, hybrid, 7),
    }
    bench.rewrite(name, "ten-times", TOP_K, 7, 10)
    title = heading(bench, "A made-up teacher, V = 128,256", exact, "sampled")
    return table(title, rows_of(bench, exact, sets, "ten-times"))


def stories(softshard: Path, world: Path, data: Path, limit: int) -> str:
    bench = Bench(softshard, world)
    (world / "recipe.toml").write_text(STORIES.format(data=data, limit=limit))
    bench.run(softshard, "prepare", "recipe.toml")
    name = bench.label("exact", TOP_K, 23)
    bench.tool("export", name, world / "arrays")
    exact = Labels.read(world / "arrays", 512)
    sets = {
        "top_k 64, 7 bits": bench.rewrite(name, "seven", TOP_K, 7),
        "top_k 64, 10 bits": bench.rewrite(name, "ten", TOP_K, 10),
        "top_k 64, exact": bench.rewrite(name, "all", TOP_K, 23),
        "top_p 0.95, at most 64, 7 bits": bench.rewrite(name, "top-p", {"kind": "top_p", "p": 0.95, "k": 64}, 7),
        "sampled, 50 drawn": (bench.label("sampled", {"kind": "sampled", "draws": 50}, 7), {}),
        "top_k_sampled, 16 and 16 drawn, 7 bits": (
            bench.label("hybrid", {"kind": "top_k_sampled", "k": 16, "draws": 16}, 7),
            {},
        ),
    }
    bench.rewrite(name, "ten-times", TOP_K, 7, 10)
    title = heading(bench, "stories260K on TinyStories, V = 512", exact, "run/sampled/train")
    return table(title, rows_of(bench, exact, sets, "ten-times"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--tokens", type=int, default=120_000, help="made-up labelled tokens")
    parser.add_argument("--stories", type=int, default=400, help="real texts that are labelled")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where stories260k and corpora are")
    arguments = parser.parse_args()
    softshard, data = arguments.softshard.resolve(), arguments.data.resolve()
    with tempfile.TemporaryDirectory() as folder:
        print(made_up(softshard, Path(folder) / "made-up", arguments.tokens), flush=True)
        if (data / "stories260k/hf").is_dir():
            print(stories(softshard, Path(folder) / "stories", data, arguments.stories))
        else:
            print(f"skipped: no stories260k below {data}", file=sys.stderr)


if __name__ == "__main__":
    main()
