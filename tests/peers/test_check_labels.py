"""Tests of check_labels.py: a dataset written here with pyarrow passes, and each way of breaking it is found.

The labels are those of golden/tiny-llama.expected.json, so this runs without torch.
"""

import copy
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import blake3
import check_labels
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEQUENCES = json.loads((Path(__file__).parent / "golden" / "tiny-llama.expected.json").read_text())["sequences"]
MANTISSA_BITS = 10
PLAN = {
    "format": "softshard-labels-plan",
    "version": 2,
    "shards": [[0, 4], [4, 6]],
    "tokenizer": {"vocab_size": 300},
    "teacher": {"vocab_size": 300},
    "selection": {"kind": "top_k", "k": 16},
    "mantissa_bits": MANTISSA_BITS,
    "position_mantissa_bits": 23,
    "omit": [],
    "temperatures": [2.0],
}


def rounded(values: list[float]) -> list[float]:
    """To MANTISSA_BITS, half up; what the golden labels need, not a model of the real writer."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    drop = 23 - MANTISSA_BITS
    return (((bits + (1 << (drop - 1))) >> drop) << drop).astype(np.uint32).view(np.float32).tolist()


def tails_at_2(sequence: dict) -> list[float]:
    """What the kept entries leave at a temperature of 2, where that is most."""
    log_probs, tails = np.asarray(sequence["log_probs"], np.float64), []
    for count, lse, partition in zip(sequence["counts"], sequence["log_sum_exp"], sequence["log_partition_t2"]):
        kept, log_probs = log_probs[:count], log_probs[count:]
        tails.append(float(np.float32(np.log1p(-np.exp((kept + lse) / 2 - partition).sum()))))
    return tails


def row_of(sequence: dict) -> dict:
    """A row as the format wants it; rounding may tie neighbours, which then go by id."""
    row = {**sequence, "source": None, "log_probs": rounded(sequence["log_probs"])}
    row["tail_log_mass_t2"] = tails_at_2(sequence)
    ranked, start = [], 0
    for count in row["counts"]:
        entries = list(zip(row["log_probs"][start : start + count], row["token_ids"][start : start + count]))
        ranked += sorted(entries, key=lambda entry: (-entry[0], entry[1]))
        start += count
    row["log_probs"], row["token_ids"] = ([entry[i] for entry in ranked] for i in (0, 1))
    row["sequence_key"] = blake3.blake3(np.asarray(row["input_ids"], dtype="<u4").tobytes()).digest(16)
    return row


def parquet(table: pa.Table, key_values: dict[str, str]) -> bytes:
    """A shard with the layout of the format, one row group."""
    lists = [name for name in table.column_names if name not in ("sequence_key", "source", "counts")]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        use_byte_stream_split=[f"{name}.list.element" for name in lists],
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(key_values)
    return sink.getvalue().to_pybytes()


def write_shard(path: Path, table: pa.Table, plan_blake3: str) -> bytes:
    """Writes twice: the hash of the row group, which is the same both times, goes into the key-values."""
    path.write_bytes(parquet(table, {}))
    hashes = [blake3.blake3(group).hexdigest() for group in check_labels.group_bytes(path, pq.ParquetFile(path))]
    path.unlink()
    key_values = {
        "softshard.format": "softshard-labels",
        "softshard.version": "1",
        "softshard.plan_blake3": plan_blake3,
        "softshard.row_group_blake3": json.dumps(hashes, separators=(",", ":")),
    }
    return parquet(table, key_values)


def write(dataset: Path, rows: list[dict], plan: dict) -> None:
    """A finished dataset of these rows, hashes and all."""
    (dataset / "data").mkdir(parents=True)
    (dataset / "_softshard").mkdir()
    plan_bytes = (json.dumps(plan, indent=2) + "\n").encode()
    plan_blake3 = blake3.blake3(plan_bytes).hexdigest()
    (dataset / "_softshard" / "plan.json").write_bytes(plan_bytes)
    schema = check_labels.schema(plan)
    records = []
    for index, (start, end) in enumerate(plan["shards"]):
        table = pa.Table.from_pylist([{n: row[n] for n in schema.names} for row in rows[start:end]], schema)
        data = write_shard(dataset / "draft.parquet", table, plan_blake3)
        digest = blake3.blake3(data).hexdigest()
        name = f"labels-{index:05}-of-{len(plan['shards']):05}-{digest[:12]}.parquet"
        (dataset / "data" / name).write_bytes(data)
        records.append(
            {
                "file": name,
                "rows": end - start,
                "input_tokens": sum(len(row["input_ids"]) for row in rows[start:end]),
                "labelled_tokens": sum(len(row["positions"]) for row in rows[start:end]),
                "bytes": len(data),
                "blake3": digest,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    totals = {field: sum(record[field] for record in records) for field in ("rows", "input_tokens", "labelled_tokens")}
    header = {"format": "softshard-labels", "version": 1, "plan_blake3": plan_blake3}
    manifest = {**header, "plan": plan, **totals, "shards": records}
    (dataset / "manifest.json").write_text(json.dumps(manifest, indent=2))
    (dataset / "README.md").write_text("".join(f"data/{record['file']}\n" for record in records))


def shift(row: dict) -> None:
    """Labels that describe the next token: a gold value moves by one position."""
    row["gold_log_prob"] = [*row["gold_log_prob"][1:], row["gold_log_prob"][0]]


def swap(values: list, i: int, j: int) -> None:
    values[i], values[j] = values[j], values[i]


BROKEN_ROWS: dict[str, tuple[Callable[[dict], None], str]] = {
    "another key": (lambda r: r.update(sequence_key=bytes(16)), "sequence_key is not that of input_ids"),
    "position 0": (lambda r: r["positions"].__setitem__(0, 0), "positions outside"),
    "position L": (lambda r: r["positions"].__setitem__(-1, len(r["input_ids"])), "positions outside"),
    "positions fall": (lambda r: swap(r["positions"], 0, 1), "do not ascend"),
    "a count too many": (lambda r: r["counts"].__setitem__(0, 17), "counts outside"),
    "two counts": (
        lambda r: (r["counts"].__setitem__(0, 17), r["counts"].__setitem__(1, 15)),
        "counts outside",
    ),
    "order": (lambda r: (swap(r["log_probs"], 0, 1), swap(r["token_ids"], 0, 1)), "do not fall"),
    "twice": (lambda r: r["token_ids"].__setitem__(0, r["token_ids"][1]), "a token id twice"),
    "id range": (lambda r: r["token_ids"].__setitem__(0, 300), "token_ids out of range"),
    "above 0": (lambda r: r["log_probs"].__setitem__(0, 0.5), "log_probs out of range"),
    "nan": (lambda r: r["entropy"].__setitem__(0, math.nan), "entropy out of range"),
    "tail": (lambda r: r["tail_log_mass"].__setitem__(0, r["tail_log_mass"][0] + 0.1), "do not add up to 1"),
    "bits": (
        lambda r: r["log_probs"].__setitem__(0, r["log_probs"][0] * (1 + 1e-6)),
        "more than 10 mantissa bits",
    ),
    "off by one": (shift, "gold_log_prob"),
    "partition": (lambda r: r["log_partition_t2"].__setitem__(0, 1.0), "log_partition_t2 below"),
    "tail at 2": (
        lambda r: r["tail_log_mass_t2"].__setitem__(0, r["tail_log_mass_t2"][0] - 0.1),
        "tail_log_mass_t2",
    ),
    "tail at 2 above 0": (lambda r: r["tail_log_mass_t2"].__setitem__(0, 0.5), "tail_log_mass_t2 above 0"),
}


def fault_of(dataset: Path) -> str:
    try:
        check_labels.check(dataset)
    except (check_labels.Fault, OSError, pa.ArrowException) as fault:
        return str(fault)
    return ""


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BROKEN_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit flip": (lambda d: flip(next((d / "data").iterdir())), "blake3"),
    "extra file": (lambda d: (d / "data" / "x").touch(), "not what the manifest lists"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "another plan": (lambda d: (d / "_softshard" / "plan.json").write_text("{}"), "plan_blake3"),
    "card": (lambda d: (d / "README.md").write_text(""), "README.md: does not list"),
}


def main() -> int:
    passed, failed = 0, 0

    def expect(name: str, found: str, expected: str) -> None:
        nonlocal passed, failed
        good = expected in found if expected else not found
        passed, failed = passed + good, failed + (not good)
        if not good:
            print(f"{name}: expected fault {expected!r}, found {found!r}")

    rows = [row_of(sequence) for sequence in SEQUENCES]
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        write(good, rows, PLAN)
        expect("good", fault_of(good), "")
        printed = check_labels.labels_json(good, rows[3]["sequence_key"].hex())
        expect("json", "" if printed["token_ids"] == rows[3]["token_ids"] else "another row", "")
        for name, (damage, expected) in BROKEN_ROWS.items():
            broken = copy.deepcopy(rows)
            damage(broken[-1])
            write(Path(folder) / name, broken, PLAN)
            expect(name, fault_of(Path(folder) / name), expected)
        for name, (damage, expected) in BROKEN_FILES.items():
            write(Path(folder) / name, rows, PLAN)
            damage(Path(folder) / name)
            expect(name, fault_of(Path(folder) / name), expected)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
