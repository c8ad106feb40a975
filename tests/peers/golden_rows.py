"""Parquet files of conversations as Hugging Face datasets and pyarrow write them, and their rows as they say.

Checked by ci.sh (environment `ci`). The tests of the crate `prepare` read
the files and compare every turn."""

import argparse
import json
import pathlib
import tempfile

import datasets
import pyarrow
import pyarrow.parquet

assert (datasets.__version__, pyarrow.__version__) == ("5.2.0", "26.0.1"), "the golden files are of these versions"

datasets.disable_progress_bars()
GOLDEN = pathlib.Path(__file__).parent / "golden" / "rows"

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Bern"}}}
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "Weather in Bern?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "sun ☀", "name": "weather"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "tools": [TOOL],
        "images": [],
        "score": 0.5,
    },
    {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "Hello!", "weight": 0}],
        "tools": None,
        "images": None,
        "score": None,
    },
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a" * 300},
        ],
        "tools": [],
        "images": None,
        "score": 2.0,
    },
]
SHARE_GPT = [
    {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a" * n or "none"}], "id": n}
    for n in range(200)
]
PAIRS = [
    {"instruction": f"i{n}", "input": None if n % 2 else "x", "output": "o", "history": [["a", "b"]] * (n % 3)}
    for n in range(7)
]
PIECES = [{"input_ids": [n, n + 1, n + 2], "labels": [-100, n + 1, n + 2]} for n in range(5)]


def without_nulls(value):
    """What a table has no word for: a field that an object has not. Only `content` may be null and mean it."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None or name == "content"}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def write(folder):
    """All files; beside those that are to be read stand their rows."""

    def say(name, rows):
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")

    def put(name, rows, **options):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet", **options)
        say(name, [without_nulls(row) for row in rows])

    datasets.Dataset.from_list(ROWS).to_parquet(folder / "datasets.parquet")
    say("datasets", [without_nulls(row) for row in ROWS])
    # The feature `Json`: turns of unlike fields, each kept as text.
    datasets.Dataset.from_list(ROWS, on_mixed_types="use_json").to_parquet(folder / "json.parquet")
    say("json", ROWS)
    small = {"row_group_size": 70, "data_page_size": 200, "write_batch_size": 10}
    put("groups", SHARE_GPT, compression="zstd", **small)
    put("pairs", PAIRS, compression="none", use_compliant_nested_type=False, version="1.0")
    put("tokens", PIECES, use_dictionary=False, data_page_version="2.0")
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.large_string()),
            ("completion", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("image", pyarrow.binary()),
            ("price", pyarrow.decimal128(5, 2)),
        ]
    )
    rows = [("p", "c", None, 1), ("q", "d", b"\xff\xd8", None)]
    rows = [dict(zip(schema.names, row, strict=True)) for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / "bytes.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), folder / "gzip.parquet", compression="gzip")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        write(GOLDEN)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        made = sorted(path.name for path in pathlib.Path(folder).iterdir())
        assert made == sorted(path.name for path in GOLDEN.iterdir()), made
        for name in made:
            golden, again = GOLDEN / name, pathlib.Path(folder) / name
            if name.endswith(".parquet"):
                assert pyarrow.parquet.read_table(golden).equals(pyarrow.parquet.read_table(again)), name
            else:
                assert golden.read_text() == again.read_text(), name


if __name__ == "__main__":
    main()
