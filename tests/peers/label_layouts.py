"""Label layouts of others, re-created: the same labels in, files out, and back into training buffers.

`DistillKit` follows distillkit/compression of arcee-ai/DistillKit (a61c2e7) bit for bit in numpy: ids packed to
ceil(log2 V) bits, an exact bf16 head, and a polynomial through the log-probabilities behind it. Its own code is PyTorch on
byte tensors; this one is written to be fast. Only labelled positions are stored, which is kinder than what it does.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Labels:
    """Exact top-k labels: entries as [positions, k], rows by their number of labelled tokens."""

    vocabulary: int
    lengths: np.ndarray
    labelled: np.ndarray
    input_ids: np.ndarray
    positions: np.ndarray
    token_ids: np.ndarray
    log_probs: np.ndarray
    per_position: dict[str, np.ndarray]

    @staticmethod
    def read(folder: Path, vocabulary: int) -> "Labels":
        def column(name: str) -> np.ndarray:
            return np.fromfile(folder / name, dtype="<i4" if name.endswith("i32") else "<f4")

        counts = column("counts.i32")
        k = int(counts[0])
        assert (counts == k).all(), "top-k labels of one k"
        names = ["tail_log_mass", "log_sum_exp", "entropy", "gold_log_prob"]
        return Labels(
            vocabulary,
            column("lengths.i32"),
            column("labelled.i32"),
            column("input_ids.i32"),
            column("positions.i32"),
            column("token_ids.i32").reshape(-1, k),
            column("log_probs.f32").reshape(-1, k),
            {name: column(f"{name}.f32") for name in names},
        )

    def tokens(self) -> int:
        return len(self.token_ids)

    def rows(self):
        """Slices of the labelled positions of each sequence."""
        ends = np.cumsum(self.labelled)
        return [slice(end - count, end) for end, count in zip(ends, self.labelled)]


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The 16 bits of each value, rounded to the nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4")


def lists(offsets: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


class DistillKit:
    """`exact_k` bf16 values, then coefficients of `terms` (powers and "sqrt") in f32; no residual bins, as it recommends."""

    batch_rows = 1000

    def __init__(self, k: int, exact_k: int, terms: list):
        self.k, self.exact_k, self.terms = k, exact_k, terms
        t = np.arange(k - exact_k, dtype=np.float32)
        self.design = np.stack([np.sqrt(t) if term == "sqrt" else t**term for term in terms], axis=-1).astype(np.float32)
        u, s, vh = np.linalg.svd(self.design, full_matrices=False)
        inverse = np.zeros_like(s)
        inverse[s > 1e-5] = 1 / s[s > 1e-5]
        self.solve = (vh.T * inverse) @ u.T

    def bits(self, labels_vocabulary: int) -> int:
        return math.ceil(math.log2(labels_vocabulary))

    def write(self, labels: Labels, path: Path) -> None:
        width = self.bits(labels.vocabulary)
        ids = labels.token_ids[:, : self.k].astype(np.int64)
        planes = (ids[:, :, None] >> np.arange(width - 1, -1, -1)) & 1
        packed = np.packbits(planes.astype(np.uint8).reshape(len(ids), -1), axis=-1)
        log_probs = labels.log_probs[:, : self.k]
        head = to_bf16(log_probs[:, : self.exact_k]).view(np.uint8).reshape(len(ids), -1)
        coefficients = (log_probs[:, self.exact_k :] @ self.solve.T).astype("<f4")
        compressed = np.concatenate([head, coefficients.view(np.uint8).reshape(len(ids), -1)], axis=-1)
        schema = pa.schema(
            [
                ("input_ids", pa.list_(pa.uint64())),
                ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
                ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
            ]
        )
        rows = np.concatenate([[0], np.cumsum(labels.labelled)])
        inputs = np.concatenate([[0], np.cumsum(labels.lengths)])

        def nested(values: np.ndarray) -> pa.Array:
            inner = np.arange(len(values) + 1) * values.shape[1]
            return lists(rows, lists(inner, pa.array(values.reshape(-1))))

        table = pa.Table.from_arrays(
            [lists(inputs, pa.array(labels.input_ids.astype(np.uint64))), nested(compressed), nested(packed)],
            schema=schema,
        )
        with pq.ParquetWriter(path, schema=schema) as writer:
            for start in range(0, len(table), self.batch_rows):
                writer.write_table(table.slice(start, self.batch_rows))

    def read_group(self, file: pq.ParquetFile, group: int, vocabulary: int, threads: bool) -> tuple:
        """Token ids and log-probabilities of a row group."""
        table = file.read_row_group(group, use_threads=threads)

        def flat(name: str) -> np.ndarray:
            outer = table.column(name).combine_chunks()
            inner = (outer.chunk(0) if isinstance(outer, pa.ChunkedArray) else outer).flatten()
            return inner.flatten().to_numpy(zero_copy_only=False).reshape(len(inner), -1)

        compressed, packed = flat("compressed_logprobs"), flat("bytepacked_indices")
        table.column("input_ids").combine_chunks()
        head = from_bf16(np.ascontiguousarray(compressed[:, : 2 * self.exact_k]).view("<u2"))
        coefficients = np.ascontiguousarray(compressed[:, 2 * self.exact_k :]).view("<f4")
        log_probs = np.concatenate([head, coefficients @ self.design.T], axis=-1)
        return self.unpack(packed, self.bits(vocabulary)), log_probs

    def unpack(self, packed: np.ndarray, width: int) -> np.ndarray:
        """Ids of `width` bits, most significant first: four bytes around each, shifted."""
        assert width <= 25
        padded = np.pad(packed, ((0, 0), (0, 4)))
        first = np.arange(self.k) * width
        columns, shifts = first // 8, (32 - width - first % 8).astype(np.uint32)
        window = padded[:, columns].astype(np.uint32) << 24
        for byte in (1, 2, 3):
            window |= padded[:, columns + byte].astype(np.uint32) << np.uint32(24 - 8 * byte)
        return ((window >> shifts) & np.uint32((1 << width) - 1)).astype(np.int32)


class PlainParquet:
    """Nested lists of i32 and f32 as pyarrow writes them by default, but for zstd."""

    def __init__(self, k: int):
        self.k = k

    def write(self, labels: Labels, path: Path) -> None:
        rows = np.concatenate([[0], np.cumsum(labels.labelled)])
        inputs = np.concatenate([[0], np.cumsum(labels.lengths)])
        inner = np.arange(labels.tokens() + 1) * self.k
        columns = {
            "input_ids": lists(inputs, pa.array(labels.input_ids)),
            "positions": lists(rows, pa.array(labels.positions)),
            "token_ids": lists(rows, lists(inner, pa.array(labels.token_ids.reshape(-1)))),
            "log_probs": lists(rows, lists(inner, pa.array(labels.log_probs.reshape(-1)))),
        }
        columns |= {name: lists(rows, pa.array(values)) for name, values in labels.per_position.items()}
        pq.write_table(pa.table(columns), path, compression="zstd", compression_level=3)

    def read_group(self, file: pq.ParquetFile, group: int, vocabulary: int, threads: bool) -> tuple:
        table = file.read_row_group(group, use_threads=threads)

        def flat(name: str) -> np.ndarray:
            values = table.column(name).combine_chunks()
            values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
            while pa.types.is_list(values.type):
                values = values.flatten()
            return values.to_numpy(zero_copy_only=False)

        return flat("token_ids").reshape(-1, self.k), flat("log_probs").reshape(-1, self.k)


def jsonl_bytes(labels: Labels, positions: int = 2000) -> float:
    """Bytes per labelled token of JSONL as vLLM prints `prompt_logprobs`; the decoded tokens have four letters."""
    size = 0
    for index in range(min(positions, labels.tokens())):
        entries = zip(labels.token_ids[index].tolist(), labels.log_probs[index].tolist())
        line = {
            str(token): {"logprob": log_prob, "rank": rank, "decoded_token": " word"}
            for rank, (token, log_prob) in enumerate(entries, 1)
        }
        size += len(json.dumps(line)) + len(", ")
    ids = sum(len(f"{token}, ") for token in labels.input_ids.tolist())
    return size / min(positions, labels.tokens()) + ids / labels.tokens()


def kl_nats(exact: Labels, entries: list | tuple, tail_log_mass: np.ndarray | None) -> tuple[float, float]:
    """KL error of what a reader gets, and the same with the cut mass as one more event.

    Sum of p ln(p/q) - p + q over the entries that were kept: the KL divergence where both have the same mass, at least 0 where
    they do not. p are the exact probabilities. A layout that stores no tail gives 1 - the sum of its q, at least 1e-6.
    `entries` is token ids and log-probabilities, [positions, k], or a list of one pair per position.
    """
    if isinstance(entries, tuple):
        token_ids, q_log = entries
        counts = np.full(len(token_ids), token_ids.shape[1])
        token_ids, q_log = token_ids.reshape(-1), q_log.reshape(-1)
    else:
        counts, token_ids, q_log = entries
    position = np.repeat(np.arange(len(counts)), counts)
    keys = np.repeat(np.arange(exact.tokens(), dtype=np.int64), exact.token_ids.shape[1]) << 32 | exact.token_ids.reshape(-1)
    order = np.argsort(keys, kind="stable")
    wanted = position.astype(np.int64) << 32 | token_ids
    found = order[np.searchsorted(keys, wanted, sorter=order)]
    assert (keys[found] == wanted).all(), "an entry that the teacher's top k does not have"
    p_log = exact.log_probs.reshape(-1)[found].astype(np.float64)
    q_log = q_log.astype(np.float64)
    p, q = np.exp(p_log), np.exp(q_log)
    kept = np.bincount(position, p * (p_log - q_log) - p + q, minlength=len(counts))
    # What was cut: the exact tail and the entries of the exact top k that are not here.
    all_p = np.exp(exact.log_probs.astype(np.float64)).sum(axis=-1)
    p_tail = np.exp(exact.per_position["tail_log_mass"].astype(np.float64)) + all_p
    p_tail = np.maximum(p_tail - np.bincount(position, p, minlength=len(counts)), 1e-30)
    if tail_log_mass is None:
        q_tail = np.maximum(1 - np.bincount(position, q, minlength=len(counts)), 1e-6)
    else:
        q_tail = np.maximum(np.exp(tail_log_mass.astype(np.float64)), 1e-30)
    with_tail = kept + p_tail * np.log(p_tail / q_tail) - p_tail + q_tail
    return float(kept.mean()), float(with_tail.mean())
