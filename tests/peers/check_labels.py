"""Checks a label dataset with readers that are not ours: pyarrow, DuckDB and polars, and the hashes with hashlib.

    check_labels.py LABELS_DIR                    checks everything; exit code 1 and one line on the first fault
    check_labels.py LABELS_DIR --json KEY         prints the labels of one sequence (key: 32 hexadecimal digits)

In the JSON every f32 is printed exactly (as the f64 of the same value); -inf, legal in `tail_log_mass`, is null.
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import blake3
import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import shards
from shards import Shard

INT_LISTS = ("input_ids", "positions", "counts", "token_ids")
POSITION_LISTS = ("log_sum_exp", "tail_log_mass", "entropy", "gold_log_prob")
# What f32 values that were computed apart (kept entries, tail, gold) may miss each other by, relative to their size.
F32_TOLERANCE = 1e-5


class Fault(Exception):
    """A dataset that is not what the format promises."""


def require(holds: bool | np.bool_, message: str) -> None:
    if not holds:
        raise Fault(message)


def partition_columns(plan: dict) -> list[str]:
    return [f"log_partition_t{float(t):g}".replace(".", "_") for t in plan["temperatures"]]


def tail_columns(plan: dict) -> list[str]:
    """Of the mass beyond the exact entries at each temperature, which version 1 has not."""
    temperatures = plan["temperatures"] if plan["version"] > 1 else []
    return [f"tail_log_mass_t{float(t):g}".replace(".", "_") for t in temperatures]


def position_columns(plan: dict) -> list[str]:
    """Columns with one float per position."""
    return [name for name in POSITION_LISTS if name not in plan["omit"]] + partition_columns(plan) + tail_columns(plan)


def exact_entries(plan: dict) -> int:
    """Entries of a position that have a log_prob: the first ones, at most this many. The others are drawn."""
    return plan["selection"].get("k", 0)


def is_drawn(plan: dict) -> bool:
    return "draws" in plan["selection"]


def schema(plan: dict) -> pa.Schema:
    """The columns as pyarrow shows them. Everything but `source` is required, list elements are named `element`."""

    def list_of(element: pa.DataType) -> pa.DataType:
        return pa.list_(pa.field("element", element, nullable=False))

    fields = [pa.field("sequence_key", pa.binary(16), nullable=False), pa.field("source", pa.string())]
    fields += [pa.field(name, list_of(pa.int32()), nullable=False) for name in INT_LISTS]
    columns = [("log_probs", pa.float32())] if exact_entries(plan) else []
    columns += [("sample_counts", pa.int32())] if is_drawn(plan) else []
    columns += [(name, pa.float32()) for name in position_columns(plan)]
    fields += [pa.field(name, list_of(element), nullable=False) for name, element in columns]
    return pa.schema(fields)


# ------------------------------------------------------------------------------------------------ files


def check_manifest(dataset: Path) -> dict:
    """The manifest against the files: names, sizes, hashes, sums, plan. Returns it."""
    require((dataset / "manifest.json").is_file(), f"{dataset}: no manifest.json, so not a finished dataset")
    manifest = shards.manifest(dataset)
    require(manifest["format"] == "softshard-labels", f"manifest.json: format {manifest['format']!r}")
    require(manifest["version"] in (1, 2), f"manifest.json: version {manifest['version']}")
    plan_bytes = (dataset / "_softshard" / "plan.json").read_bytes()
    require(
        blake3.blake3(plan_bytes).hexdigest() == manifest["plan_blake3"],
        "manifest.json: plan_blake3 is another",
    )
    require(json.loads(plan_bytes) == manifest["plan"], "manifest.json: plan differs from _softshard/plan.json")

    records, ranges = manifest["shards"], manifest["plan"]["shards"]
    require(len(records) == len(ranges), f"manifest.json: {len(records)} shards, the plan has {len(ranges)}")
    files = sorted(path.name for path in (dataset / "data").iterdir())
    require(
        files == sorted(record["file"] for record in records),
        f"data/: holds {files}, not what the manifest lists",
    )
    for index, (record, (start, end)) in enumerate(zip(records, ranges)):
        name = f"labels-{index:05}-of-{len(records):05}-{record['blake3'][:12]}.parquet"
        require(record["file"] == name, f"manifest.json shard {index}: file {record['file']!r}, expected {name!r}")
        data = (dataset / "data" / name).read_bytes()
        found = {
            "rows": end - start,
            "bytes": len(data),
            "blake3": blake3.blake3(data).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for field, value in found.items():
            require(record[field] == value, f"manifest.json {name}: {field} {record[field]}, found {value}")
    for field in ("rows", "input_tokens", "labelled_tokens"):
        total = sum(record[field] for record in records)
        require(manifest[field] == total, f"manifest.json: {field} {manifest[field]}, its shards sum to {total}")
    readme = (dataset / "README.md").read_text()
    for record in records:
        require(f"data/{record['file']}" in readme, f"README.md: does not list data/{record['file']}")
    return manifest


def group_bytes(path: Path, file: pq.ParquetFile) -> list[bytes]:
    """The bytes of each row group; they lie one after the other behind the magic."""
    data, start, groups = path.read_bytes(), 4, []
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        size = sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        groups.append(data[start : start + size])
        start += size
    return groups


def check_layout(path: Path, manifest: dict) -> None:
    """Schema, key-values and column chunks."""
    file, plan = pq.ParquetFile(path), manifest["plan"]
    hashes = [blake3.blake3(data).hexdigest() for data in group_bytes(path, file)]
    key_values = {
        "softshard.format": manifest["format"],
        "softshard.version": str(manifest["version"]),
        "softshard.plan_blake3": manifest["plan_blake3"],
        "softshard.row_group_blake3": json.dumps(hashes, separators=(",", ":")),
    }
    stored = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
    for key, value in key_values.items():
        require(stored.get(key) == value, f"{path.name}: key {key} {stored.get(key)}, expected {value}")
    expected, found = schema(plan), file.schema_arrow.remove_metadata()
    require(found.equals(expected), f"{path.name}: expected schema\n{expected}\nfound\n{found}")
    for group in range(file.metadata.num_row_groups):
        for index in range(file.metadata.num_columns):
            chunk = file.metadata.row_group(group).column(index)
            place = f"{path.name} row group {group} {chunk.path_in_schema}"
            require(chunk.compression in ("ZSTD", "UNCOMPRESSED"), f"{place}: compression {chunk.compression}")
            require(not chunk.is_stats_set, f"{place}: has statistics")
            if chunk.path_in_schema != "counts.list.element":
                require(not chunk.has_dictionary_page, f"{place}: has a dictionary")


def check_readers_agree(path: Path, shard: Shard) -> None:
    """DuckDB and polars give the very bits that pyarrow gives."""
    for reader, other in (("duckdb", shards.read_duckdb(path)), ("polars", shards.read_polars(path))):
        require(other.keys == shard.keys, f"{path.name}: {reader} reads another sequence_key than pyarrow")
        require(other.sources == shard.sources, f"{path.name}: {reader} reads another source than pyarrow")
        require(list(other.lists) == list(shard.lists), f"{path.name}: {reader} sees columns {list(other.lists)}")
        for name, column in shard.lists.items():
            theirs = other.lists[name]
            same = (
                np.array_equal(theirs.offsets, column.offsets)
                and theirs.values.dtype == column.values.dtype
                and np.array_equal(theirs.values.view(np.uint32), column.values.view(np.uint32))
            )
            require(same, f"{path.name}: {reader} reads another {name} than pyarrow")


# ------------------------------------------------------------------------------------------------ values


def check_row(place: str, key: bytes, row: dict[str, np.ndarray], plan: dict) -> None:
    """Key, position rule, lengths and ranges of one sequence."""
    ids, positions, counts = row["input_ids"], row["positions"], row["counts"]
    require(
        blake3.blake3(ids.astype("<u4").tobytes()).digest(16) == key,
        f"{place}: sequence_key is not that of input_ids",
    )
    require(
        ids.min(initial=0) >= 0 and ids.max(initial=0) < plan["tokenizer"]["vocab_size"],
        f"{place}: input_ids range",
    )
    require(len(positions) > 0, f"{place}: no labelled position")
    require((np.diff(positions) > 0).all(), f"{place}: positions do not ascend")
    require(positions[0] >= 1 and positions[-1] < len(ids), f"{place}: positions outside of 1..{len(ids) - 1}")
    for name in ("counts", *position_columns(plan)):
        require(
            len(row[name]) == len(positions),
            f"{place}: {name} has {len(row[name])} values for {len(positions)} positions",
        )
    selection, vocabulary = plan["selection"], plan["teacher"]["vocab_size"]
    k, draws = min(selection.get("k", 0), vocabulary), selection.get("draws", 0)
    least = {"top_k": k, "top_k_sampled": k}.get(selection["kind"], 1)
    most = min(k + draws, vocabulary)
    require(counts.min() >= least and counts.max() <= most, f"{place}: counts outside of {least}..{most}")
    exact = np.minimum(counts, exact_entries(plan))
    lengths = {"token_ids": counts.sum()}
    lengths |= {"log_probs": exact.sum()} if exact_entries(plan) else {}
    lengths |= {"sample_counts": (counts - exact).sum()} if is_drawn(plan) else {}
    for name, length in lengths.items():
        require(len(row[name]) == length, f"{place}: {name} has {len(row[name])} values, expected {length}")
    ranges = {
        "log_probs": (-math.inf, 0.0),
        "gold_log_prob": (-math.inf, 0.0),
        "entropy": (0.0, math.log(vocabulary) * (1 + 2.0**-10)),
        "log_sum_exp": (-math.inf, math.inf),
        **{name: (-math.inf, math.inf) for name in partition_columns(plan)},
    }
    for name, (low, high) in ranges.items():
        values = row.get(name, np.zeros(0, np.float32))
        require(
            np.isfinite(values).all() and (values >= low).all() and (values <= high).all(),
            f"{place}: {name} out of range",
        )
    tails = ["tail_log_mass", *tail_columns(plan)]
    for name in tails:
        require((row[name] <= 0).all(), f"{place}: {name} above 0 or NaN")  # -inf: nothing was cut
    bits = {"log_probs": plan["mantissa_bits"]}
    bits |= {name: plan["position_mantissa_bits"] for name in (*tails, "entropy", "gold_log_prob")}
    bits |= {} if plan["temperatures"] else {"log_sum_exp": plan["position_mantissa_bits"]}
    for name, kept in bits.items():
        dropped = (1 << (23 - kept)) - 1
        values = row.get(name, np.zeros(0, np.float32))
        finite = values[np.isfinite(values)]
        require(not (finite.view(np.uint32) & dropped).any(), f"{place}: {name} has more than {kept} mantissa bits")


def check_draws(place: str, ids: np.ndarray, counts: np.ndarray, draws: int) -> None:
    """Counts of one position: from 1 on, falling, ties by id, adding up."""
    falls, ties = np.diff(counts) < 0, np.diff(counts) == 0
    require((falls | (ties & (np.diff(ids) > 0))).all(), f"{place}: sample_counts do not fall (ties by id)")
    if len(counts):
        require(counts.min() >= 1 and counts.sum() == draws, f"{place}: sample_counts are not {draws} draws")


def check_position(place: str, gold: int, labels: dict, plan: dict) -> None:
    """One position: order, mass, and the gold token's value, which shows labels that are off by one."""
    ids, stored = labels["token_ids"], labels["log_probs"]
    require(ids.min() >= 0 and ids.max() < plan["teacher"]["vocab_size"], f"{place}: token_ids out of range")
    require(len(np.unique(ids)) == len(ids), f"{place}: a token id twice")
    check_draws(place, ids[len(stored) :], labels["sample_counts"], plan["selection"].get("draws", 0))
    if not len(stored):
        return
    ids = ids[: len(stored)]
    falls, ties = np.diff(stored) < 0, np.diff(stored) == 0
    require((falls | (ties & (np.diff(ids) > 0))).all(), f"{place}: log_probs do not fall (ties by id)")

    log_probs = stored.astype(np.float64)
    # Round to nearest moves a value by half a unit of its last kept bit, at most 2^-(bits + 1) of its size.
    rounding = np.abs(log_probs) * (2.0 ** -(plan["mantissa_bits"] + 1) + F32_TOLERANCE) + F32_TOLERANCE
    coarse = 2.0 ** -(plan["position_mantissa_bits"] + 1) + F32_TOLERANCE
    mass, tolerance = np.exp(log_probs).sum(), (np.exp(log_probs) * rounding).sum() + F32_TOLERANCE
    tail = math.exp(labels["tail_log_mass"])
    if tail > 0:
        tolerance += tail * abs(float(labels["tail_log_mass"])) * coarse
    require(
        abs(mass + tail - 1.0) <= tolerance,
        f"{place}: kept mass {mass:.8f} and tail {tail:.8f} do not add up to 1",
    )
    if "gold_log_prob" in labels:
        check_gold(place, gold, ids, log_probs, rounding, float(labels["gold_log_prob"]), coarse)
    if "entropy" in labels:
        inside = -(np.exp(log_probs) * log_probs).sum()
        least = inside - 2 * tolerance * max(1.0, -log_probs[-1])
        require(labels["entropy"] * (1 + coarse) >= least, f"{place}: entropy below that of the kept")
    for name, temperature in zip(partition_columns(plan), plan["temperatures"]):
        z = (log_probs + float(labels["log_sum_exp"])) / temperature
        least = np.logaddexp.reduce(z) - rounding.max() / temperature
        require(
            labels[name] >= least - F32_TOLERANCE * abs(least),
            f"{place}: {name} below the sum over the kept entries",
        )
    for name, partition, temperature in zip(tail_columns(plan), partition_columns(plan), plan["temperatures"]):
        log_p = (log_probs + float(labels["log_sum_exp"])) / temperature - float(labels[partition])
        # Below 1 rounding and the last bits of two large numbers count for more.
        error = (rounding + F32_TOLERANCE * abs(float(labels["log_sum_exp"]))) / temperature
        error = error + F32_TOLERANCE * abs(float(labels[partition]))
        mass, tail = np.exp(log_p).sum(), math.exp(labels[name])
        tolerance = (np.exp(log_p) * error).sum() + tail * abs(float(labels[name])) * coarse + F32_TOLERANCE
        require(
            abs(mass + tail - 1.0) <= 2 * tolerance,
            f"{place}: kept mass {mass:.8f} and {name} {tail:.8f} do not add up to 1",
        )


def check_gold(
    place: str, gold: int, ids: np.ndarray, log_probs: np.ndarray, rounding: np.ndarray, stored: float, coarse: float
) -> None:
    """The gold token's value is that of its entry, or below all entries."""
    kept, own = np.flatnonzero(ids == gold), abs(stored) * coarse
    if len(kept):
        off = abs(log_probs[kept[0]] - stored)
        require(
            off <= rounding[kept[0]] + own,
            f"{place}: gold_log_prob {stored}, its entry says {log_probs[kept[0]]}",
        )
    else:
        require(stored <= log_probs[-1] + rounding[-1] + own, f"{place}: gold_log_prob {stored} above what was kept")


def check_values(name: str, shard: Shard, plan: dict, seen: set[bytes]) -> int:
    """All sequences of a shard; returns the number of labelled positions whose gold token was kept."""
    per_position = position_columns(plan)
    golds_kept = 0
    for index, key in enumerate(shard.keys):
        place = f"{name} row {index} ({key.hex()})"
        row = shard.row(index)
        require(key not in seen, f"{place}: this sequence_key comes twice")
        seen.add(key)
        check_row(place, key, row, plan)
        exact = np.minimum(row["counts"], exact_entries(plan))
        parts = {"token_ids": row["counts"], "log_probs": exact, "sample_counts": row["counts"] - exact}
        parts = {field: (row.get(field, np.zeros(0)), lengths, np.cumsum(lengths)) for field, lengths in parts.items()}
        for i, position in enumerate(row["positions"]):
            labels = {field: row[field][i] for field in per_position}
            labels |= {
                field: values[ends[i] - lengths[i] : ends[i]] for field, (values, lengths, ends) in parts.items()
            }
            gold = row["input_ids"][position]
            check_position(f"{place} position {position}", gold, labels, plan)
            golds_kept += int(gold in labels["token_ids"])
    return golds_kept


def check(dataset: Path) -> str:
    """Raises Fault at the first thing that is wrong; returns what was seen."""
    manifest = check_manifest(dataset)
    plan, seen, golds_kept = manifest["plan"], set(), 0
    for record in manifest["shards"]:
        path = dataset / "data" / record["file"]
        check_layout(path, manifest)
        shard = shards.read_pyarrow(path)
        check_readers_agree(path, shard)
        require(
            len(shard) == record["rows"],
            f"{path.name}: {len(shard)} rows, the manifest says {record['rows']}",
        )
        for field, column in (("input_tokens", "input_ids"), ("labelled_tokens", "positions")):
            found = len(shard.lists[column].values)
            require(found == record[field], f"{path.name}: {found} {field}, the manifest says {record[field]}")
        golds_kept += check_values(path.name, shard, plan, seen)
    versions = f"pyarrow {pa.__version__}, duckdb {duckdb.__version__}, polars {polars.__version__}"
    return (
        f"{len(manifest['shards'])} shards, {manifest['rows']} sequences, {manifest['labelled_tokens']} labelled "
        f"tokens ({golds_kept} with their gold token kept): {versions} agree"
    )


def labels_json(dataset: Path, key: str) -> dict:
    """One sequence's row."""
    for record in shards.manifest(dataset)["shards"]:
        shard = shards.read_pyarrow(dataset / "data" / record["file"])
        if bytes.fromhex(key) in shard.keys:
            index = shard.keys.index(bytes.fromhex(key))
            lists = {name: [None if x == -math.inf else x for x in v.tolist()] for name, v in shard.row(index).items()}
            return {"sequence_key": key, "source": shard.sources[index], **lists}
    raise Fault(f"{dataset}: no sequence {key}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels_dir", type=Path)
    parser.add_argument("--json", metavar="KEY")
    arguments = parser.parse_args()
    try:
        if arguments.json:
            print(json.dumps(labels_json(arguments.labels_dir, arguments.json), allow_nan=False))
        else:
            print(f"{arguments.labels_dir}: {check(arguments.labels_dir)}")
    except (Fault, OSError, KeyError, ValueError, pa.ArrowException) as error:
        print(f"check_labels: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
