"""Reads the Parquet files of sequence and label datasets with pyarrow, DuckDB and polars.

Legend: L tokens of a sequence, N labelled positions, E kept entries. A row is a sequence.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Column:
    """A column of lists: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def row(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass
class Shard:
    """A decoded shard."""

    keys: list[bytes]
    sources: list[str | None]
    lists: dict[str, Column]

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """The list columns of one sequence."""
        return {name: column.row(index) for name, column in self.lists.items()}


def from_arrow(table: pa.Table) -> Shard:
    """Takes the columns apart; readers differ in list, string and binary types, values are what counts."""
    lists = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        # Keys, sources, and an example's text are no numbers of tokens.
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            continue
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.flatten().to_numpy(zero_copy_only=False).copy()  # torch takes writable arrays only
        lists[name] = Column(values, offsets - offsets[0])
    return Shard(table["sequence_key"].to_pylist(), table["source"].to_pylist(), lists)


def read_pyarrow(path: Path) -> Shard:
    return from_arrow(pq.ParquetFile(path, page_checksum_verification=True).read())


def read_duckdb(path: Path) -> Shard:
    import duckdb

    with duckdb.connect() as connection:
        return from_arrow(connection.sql("SELECT * FROM read_parquet(?)", params=[str(path)]).to_arrow_table())


def read_polars(path: Path) -> Shard:
    import polars

    return from_arrow(polars.read_parquet(path, glob=False).to_arrow())


def manifest(dataset: Path) -> dict:
    return json.loads((dataset / "manifest.json").read_text())


def rows(dataset: Path, limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The list columns of each sequence, in the order of the manifest (or of the names in `data/`)."""
    if (dataset / "manifest.json").exists():
        names = [shard["file"] for shard in manifest(dataset)["shards"]]
    else:
        names = sorted(path.name for path in (dataset / "data").glob("*.parquet"))
    count = 0
    for name in names:
        shard = read_pyarrow(dataset / "data" / name)
        for index in range(len(shard)):
            if count == limit:
                return
            yield shard.row(index)
            count += 1
