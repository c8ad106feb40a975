#!/usr/bin/env python3
"""Writes crates/labels/tests/golden/foreign/ with pyarrow: labels of one made-up teacher in the layouts that others use, the
mapping that reads each, and what must come out.

    $(tests/peers/venv.sh ci) tests/peers/make_foreign.py
"""
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parents[2] / "crates/labels/tests/golden/foreign"
VOCABULARY, K = 50, 5
BASE = {"input_ids": "tokens", "token_ids": "ids", "log_probs": "values"}
random = np.random.default_rng(7)


def teacher() -> list[dict]:
    """Rows whose tokens are drawn from what the teacher says; `top` and the rest have a place for each token but the first."""
    rows = []
    for length in (2, 12, 7, 20, 3, 30):
        logits = random.normal(0, 2, (length - 1, VOCABULARY))
        lse = np.log(np.exp(logits).sum(-1))
        log_probs = logits - lse[:, None]
        ids = np.argsort(-log_probs, kind="stable")[:, :K]
        kept = np.take_along_axis(log_probs, ids, -1)
        tokens = [int(random.integers(VOCABULARY))]
        tokens += [int(random.choice(VOCABULARY, p=np.exp(row) / np.exp(row).sum())) for row in log_probs]
        rows.append({"tokens": tokens, "ids": ids.tolist(), "values": kept.tolist(), "lse": lse.tolist(),
                     "tail": np.log1p(-np.exp(kept).sum(-1)).tolist(),
                     "entropy": (-np.exp(log_probs) * log_probs).sum(-1).tolist(),
                     "gold": [float(row[token]) for row, token in zip(log_probs, tokens[1:])]})
    return rows


def write(name: str, rows: list[dict], schema: dict, **case) -> dict:
    columns = {key: pa.array([row[key] for row in rows], kind) for key, kind in schema.items()}
    options = case.pop("options", {})
    pq.write_table(pa.table(columns), OUT / f"{name}.parquet", **options)
    return {"name": name, "map": BASE, "rule": "this", "normalised": False, "approximate": False, **case}


def nested(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.list_(kind))


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows = teacher()
    i32, i64, f32, f64 = pa.int32(), pa.int64(), pa.float32(), pa.float64()
    ints = {"tokens": pa.list_(i64), "ids": nested(i64), "values": nested(f64)}
    numbers = {"log_sum_exp": "lse", "tail_log_mass": "tail", "entropy": "entropy", "gold_log_prob": "gold"}
    # A place for each token; the first has nothing.
    led = [{key: value if key == "tokens" else [[] if key in ("ids", "values") else 0.0] + value for key, value in row.items()}
           for row in rows]
    cases = [write("this", led, ints | {name: pa.list_(f64) for name in numbers.values()}, map=BASE | numbers)]
    short = {"tokens": pa.large_list(pa.uint32()), "ids": pa.large_list(pa.list_(pa.uint16())), "values": pa.list_(pa.large_list(f64))}
    cases.append(write("next-short", rows, short, rule="next",
                       options={"row_group_size": 2, "compression": "zstd", "data_page_version": "2.0"}))
    # A place for each token; the last describes a token that is not there.
    trailed = [row | {"ids": sum(row["ids"], []) + [0, 1, 2, 3, 4], "values": sum(row["values"], []) + [-3.0] * K,
                      "mask": [int(t >= len(row["tokens"]) // 2) for t in range(len(row["tokens"]))],
                      "counts": [K] * len(row["tokens"])} for row in rows]
    flat = {"tokens": pa.list_(i32), "ids": pa.list_(i32), "values": pa.list_(f64), "mask": pa.list_(pa.int8()),
            "counts": pa.list_(i32)}
    cases.append(write("next-flat-masked", trailed, flat, map=BASE | {"loss_mask": "mask", "counts": "counts"}, rule="next",
                       options={"compression": "none"}))
    # Lists in lists that are filled up to one length: counts say how much of each is there.
    padded = [row | {"ids": [entry + [0, 0] for entry in row["ids"]], "values": [entry + [0.0, 0.0] for entry in row["values"]],
                     "counts": [K] * len(row["ids"])} for row in rows]
    cases.append(write("padded", padded, ints | {"counts": pa.list_(i32)}, map=BASE | {"counts": "counts"}, rule="next"))
    placed = [row | {"ids": sum(row["ids"], []), "values": sum(row["values"], []), "counts": [K] * len(row["ids"]),
                     "at": list(range(1, len(row["tokens"])))} for row in rows]
    counted = {"tokens": pa.list_(i32), "ids": pa.list_(i32), "values": pa.list_(f64), "counts": pa.list_(pa.uint8()), "at": pa.list_(i64)}
    cases.append(write("counted", placed, counted, map=BASE | {"counts": "counts", "positions": "at"}, options={"use_dictionary": False}))
    raw = [row | {"values": [[v + lse for v in entry] for entry, lse in zip(row["values"], row["lse"])]} for row in rows]
    map_raw = {"input_ids": "tokens", "token_ids": "ids", "logits": "values", "log_sum_exp": "lse"}
    cases.append(write("logits", raw, ints | {"lse": pa.list_(f64)}, map=map_raw, rule="next"))
    normal = [row | {"values": [[v - float(np.log1p(-np.exp(tail))) for v in entry] for entry, tail in zip(row["values"], row["tail"])]}
              for row in rows]
    with_tail = BASE | {"tail_log_mass": "tail"}
    cases.append(write("normalised", normal, ints | {"tail": pa.list_(f64)}, map=with_tail, rule="next", normalised=True))
    cases.append(write("half", rows, ints | {"values": nested(pa.float16()), "tail": pa.list_(f32)}, map=with_tail, rule="next", approximate=True))
    # Not to be read: a hole, and the wrong number of values.
    hole = [row | {"values": [[None] + entry[1:] for entry in row["values"]]} for row in rows]
    write("bad-null", hole, ints)
    rounded = [row | {"values": [[float(np.float16(v)) for v in entry] for entry in row["values"]]} for row in raw]
    write("bad-rounded", rounded, ints | {"values": nested(f32), "lse": pa.list_(f64)})
    few = [row | {"values": [entry[1:] for entry in row["values"]]} for row in rows]
    write("bad-few", few, ints)
    (OUT / "expected.json").write_text(json.dumps({"vocabulary": VOCABULARY, "rows": rows, "cases": cases}, indent=1) + "\n")


main()
