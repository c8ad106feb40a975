#!/usr/bin/env python3
"""check_exports.py LABELS_DIR HF_DIR JSONL: what `softshard labels export` wrote of a dataset holds its very numbers.

pyarrow reads the shards and the training rows, and `load_dataset` of Hugging Face opens the folder.
Exits with 1 and a line that says what differs.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

CACHE = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": CACHE.name}

import datasets  # noqa: E402 - after the environment that it reads

FLAT = ("tail_log_mass", "log_sum_exp", "entropy", "gold_log_prob")


def main() -> None:
    labels, hf, jsonl = map(Path, sys.argv[1:])
    manifest = json.loads((labels / "manifest.json").read_text())
    shards = [pq.read_table(labels / "data" / shard["file"]).to_pylist() for shard in manifest["shards"]]
    rows = [row for shard in shards for row in shard]
    files = sorted((hf / "data").glob("*.parquet"))
    training = [row for file in files for row in pq.read_table(file).to_pylist()]
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert len(rows) == len(training) == len(lines) == manifest["rows"], (len(rows), len(training), len(lines))
    for number, (row, ours, line) in enumerate(zip(rows, training, lines)):
        entries = by_position(row, manifest["plan"]["selection"])
        check_training(number, row, ours, entries)
        check_line(number, row, line, entries)
    print(f"{len(rows)} rows of {hf.name} and {jsonl.name} are those of the shards")
    check_datasets(hf, training, manifest["plan"]["split"])


def by_position(row: dict, selection: dict) -> list[dict]:
    """Entries of each position: the first ones have log-probabilities, the others counts."""
    head = {"sampled": 0, "top_k_sampled": selection.get("k")}.get(selection["kind"])
    ids, log_probs, counts = (iter(row.get(name) or []) for name in ("token_ids", "log_probs", "sample_counts"))
    entries = []
    for count in row["counts"]:
        exact = count if head is None else min(head, count)
        entries.append({
            "token_ids": [next(ids) for _ in range(count)],
            "log_probs": [next(log_probs) for _ in range(exact)],
            "sample_counts": [next(counts) for _ in range(count - exact)],
        })
    return entries


def check_training(number: int, row: dict, ours: dict, entries: list[dict]) -> None:
    place, length = f"training row {number}", len(row["input_ids"])
    assert ours["input_ids"] == row["input_ids"] and ours["source"] == row["source"], place
    assert ours["attention_mask"] == [1] * length, place
    positions = dict(zip(row["positions"], entries))
    assert ours["labels"] == [row["input_ids"][t] if t in positions else -100 for t in range(length)], place
    for name in ("token_ids", "log_probs", "sample_counts"):
        if f"teacher_{name}" in ours:
            want = [positions[t][name] if t in positions else [] for t in range(length)]
            assert ours[f"teacher_{name}"] == want, f"{place} {name}"
        else:
            assert not row.get(name), f"{place} lacks {name}"
    for name in row:
        if name in FLAT or name.startswith(("log_partition", "tail_log_mass_t")):
            want = dict(zip(row["positions"], row[name]))
            assert ours[f"teacher_{name}"] == [want.get(t, 0.0) for t in range(length)], f"{place} {name}"


def check_line(number: int, row: dict, line: dict, entries: list[dict]) -> None:
    place = f"line {number + 1}"
    assert line["sequence_key"] == row["sequence_key"].hex(), place
    for name in ("source", "input_ids", "positions"):
        assert line[name] == row[name], f"{place} {name}"
    for name in ("token_ids", "log_probs", "sample_counts"):
        if name in line:
            same(line[name], [position[name] for position in entries], f"{place} {name}")
    for name in FLAT:
        if name in row:
            same([line[name]], [row[name]], f"{place} {name}")
    for key, prefix in (("log_partitions", "log_partition"), ("tail_log_masses", "tail_log_mass_t")):
        same(line.get(key, []), [row[name] for name in row if name.startswith(prefix)], place)


def same(found: list[list], expected: list[list], place: str) -> None:
    """The same 32-bit numbers; null is minus infinity."""
    for left, right in zip(found, expected, strict=True):
        left = np.array([-np.inf if value is None else value for value in left], np.float32)
        assert np.array_equal(left, np.array(right, np.float32)), place


def check_datasets(hf: Path, training: list[dict], split: str) -> None:
    loaded = datasets.load_dataset(str(hf), split=split)
    assert loaded.to_list() == training, "load_dataset gives other rows"
    print(f"load_dataset opens {hf.name}: {loaded.num_rows} rows")


main()
