"""Checks what we publish with software that is not ours, on datasets that our binary wrote.

    check_published.py RUN     RUN: output folder of a recipe, with labels/ and sequences/

The JSON Schemas in schemas/ accept manifests, plans, commits and recipes, and refuse broken ones (jsonschema). The Arrow
schemas are what pyarrow sees. The reader in docs/label-format.md gives what DuckDB gives. Hugging Face `datasets` opens the
folders as they are, without a network. pyarrow reads the golden datasets of the labels crate. Exit code 1 and one line on the
first fault.
"""

import copy
import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": CACHE.name}

import datasets  # noqa: E402 - after the environment that it reads
import jsonschema  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import shards  # noqa: E402
from check_labels import Fault, require  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = ROOT / "schemas"
DOCUMENT = ROOT / "docs" / "label-format.md"
GOLDEN = ROOT / "crates" / "labels" / "tests" / "golden"
READER_LINES = 40

Change = Callable[[dict], object]
SHARD: dict[str, Change] = {
    "a file elsewhere": lambda shard: shard.update(file="../labels-00000-of-00001-0123456789ab.parquet"),
    "a hash in capitals": lambda shard: shard.update(blake3="AB" * 32),
    "a short hash": lambda shard: shard.update(sha256="ab"),
    "fewer rows than none": lambda shard: shard.update(rows=-1),
    "an unknown key of a shard": lambda shard: shard.update(color="red"),
    "a shard without its size": lambda shard: shard.pop("bytes"),
}
PLAN: dict[str, Change] = {
    "another format": lambda plan: plan.update(format="softshard-labels"),
    "another version": lambda plan: plan.update(version=3),
    "no shards": lambda plan: plan.update(shards=[]),
    "half a range": lambda plan: plan["shards"].append([7]),
    "another selection": lambda plan: plan["selection"].update(kind="best"),
    "a text for a number": lambda plan: plan.update(mantissa_bits="10"),
    "too many bits": lambda plan: plan.update(mantissa_bits=24),
    "a column left out twice": lambda plan: plan.update(omit=["entropy", "entropy"]),
    "a column that must be there left out": lambda plan: plan.update(omit=["tail_log_mass"]),
    "draws without end": lambda plan: plan.update(selection={"kind": "sampled", "draws": 1 << 20}),
    "temperature 0": lambda plan: plan.update(temperatures=[0]),
    "temperature 1": lambda plan: plan.update(temperatures=[1.0]),
    "no teacher": lambda plan: plan.pop("teacher"),
    "a teacher without weights": lambda plan: plan["teacher"].pop("weights_blake3"),
    "an empty vocabulary": lambda plan: plan["tokenizer"].update(vocab_size=0),
    "an unknown key of the tokenizer": lambda plan: plan["tokenizer"].update(name="gpt2"),
}
BROKEN: dict[str, dict[str, Change]] = {
    "plan": PLAN,
    "labels-manifest": {
        "a manifest of sequences": lambda manifest: manifest.update(format="softshard-sequences"),
        "another version": lambda manifest: manifest.update(version="1"),
        "an unknown key": lambda manifest: manifest.update(created="today"),
        "no hash of the plan": lambda manifest: manifest.pop("plan_blake3"),
        **{name: lambda manifest, change=change: change(manifest["plan"]) for name, change in PLAN.items()},
        **{name: lambda manifest, change=change: change(manifest["shards"][0]) for name, change in SHARD.items()},
    },
    "sequences-manifest": {
        "labels": lambda manifest: manifest.update(format="softshard-labels"),
        "no seed": lambda manifest: manifest["info"].pop("seed"),
        "no shards": lambda manifest: manifest.update(shards=[]),
        "the version before": lambda manifest: manifest.update(version=1),
        "no provenance": lambda manifest: manifest.pop("provenance"),
        "a provenance with a time": lambda manifest: manifest["provenance"].update(time=17),
        "an input without its hash": lambda manifest: manifest["provenance"]["inputs"].update(data=None),
        "a provenance of nothing known": lambda manifest: manifest["provenance"].update(kind="teacher"),
        **{name: lambda manifest, change=change: change(manifest["shards"][0]) for name, change in SHARD.items()},
    },
    "commit": {
        "no attempt": lambda commit: commit.pop("attempt"),
        "a shard below 0": lambda commit: commit.update(shard=-1),
        **{name: lambda commit, change=change: change(commit["record"]) for name, change in SHARD.items()},
    },
    "recipe": {
        "a misspelt section": lambda recipe: recipe.update(labls={}),
        "a misspelt key": lambda recipe: recipe["data"].update(max_token=3),
        "no data": lambda recipe: recipe.pop("data"),
        "no folder to write to": lambda recipe: recipe["output"].pop("dir"),
        "a number for a path": lambda recipe: recipe["tokenizer"].update(path=3),
        "another template": lambda recipe: recipe["data"].update(template="alpaca"),
        "a selection without its kind": lambda recipe: recipe.update(labels={"selection": {"k": 3}}),
        "a selection of nothing": lambda recipe: recipe.update(labels={"selection": {"kind": "top_k", "k": 0}}),
        "temperatures that are no list": lambda recipe: recipe.update(labels={"temperatures": 2.0}),
    },
}


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def documents(run: Path) -> Iterator[tuple[str, Path]]:
    """Names of schemas, and files that must follow them."""
    golden = (folder for folder in GOLDEN.glob("v1/*/") if folder.name != "sequences")
    for dataset in (*(run / "labels").glob("*/"), *golden):
        yield "labels-manifest", dataset / "manifest.json"
        yield "plan", dataset / "_softshard" / "plan.json"
        for commit in sorted((dataset / "_softshard" / "commits").iterdir()):
            yield "commit", commit
    for dataset in (*(run / "sequences").glob("*/"), GOLDEN / "v2" / "sequences"):
        yield "sequences-manifest", dataset / "manifest.json"
    for recipe in (*sorted((ROOT / "pipelines").glob("*.toml")), *sorted(run.glob("*/recipe.toml"))):
        yield "recipe", recipe


def check_schemas(run: Path) -> str:
    """Every document is valid; a change for the worse makes it invalid."""
    accepted, refused, seen = 0, 0, set()
    for name, path in documents(run):
        document = tomllib.loads(path.read_text()) if path.suffix == ".toml" else json.loads(path.read_text())
        check = validator(name)
        error = next(check.iter_errors(document), None)
        require(error is None, f"schemas/{name}.schema.json refuses {path}: {error and error.message}")
        accepted += 1
        if name in seen:
            continue
        seen.add(name)
        for what, change in BROKEN[name].items():
            broken = copy.deepcopy(document)
            change(broken)
            require(not check.is_valid(broken), f"schemas/{name}.schema.json accepts {path} with {what}")
            refused += 1
    require(seen == BROKEN.keys(), f"{run}: no document for {sorted(BROKEN.keys() - seen)}")
    return f"JSON Schemas accept {accepted} documents and refuse {refused} broken ones"


def arrow_columns(kind: str) -> list[str]:
    """The published Arrow schema, one text for each column; 2 stands for every temperature."""
    lines = (SCHEMAS / f"{kind}.arrow.txt").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return re.split(r"\n(?! )", text)


def check_arrow(kind: str, dataset: Path) -> str:
    """pyarrow sees the columns that are published, in this order, but those that this dataset has not."""
    absent: set[str] = set()
    if kind == "labels":
        plan = shards.manifest(dataset)["plan"]
        sampled = {"sampled": {"log_probs"}, "top_k_sampled": set()}
        absent = sampled.get(plan["selection"]["kind"], {"sample_counts"}) | set(plan["omit"])
        require(plan["temperatures"] in ([], [2.0]), f"{dataset}: temperatures {plan['temperatures']}")
        absent |= set() if plan["temperatures"] else {"log_partition_t2"}
        absent |= set() if plan["version"] > 1 else {"tail_log_mass_t2"}
    expected = [column for column in arrow_columns(kind) if column.split(":")[0] not in absent]
    for record in shards.manifest(dataset)["shards"]:
        schema = pq.read_schema(dataset / "data" / record["file"]).remove_metadata()
        found = re.split(r"\n(?! )", schema.to_string(show_field_metadata=False))
        require(found == expected, f"{record['file']}: expected columns {expected}, pyarrow sees {found}")
    return f"{len(expected)} columns of {kind} as published"


def document_reader() -> dict:
    """The reader in the document, run."""
    [code] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    lines = len(code.splitlines())
    require(lines <= READER_LINES, f"{DOCUMENT.name}: a reader of {lines} lines, expected at most {READER_LINES}")
    names: dict = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def check_reader(dataset: Path) -> str:
    """The document's reader gives what follows from the columns as DuckDB reads them."""
    labels = document_reader()["Labels"](dataset)
    manifest, positions = shards.manifest(dataset), 0
    selection, vocabulary = manifest["plan"]["selection"], manifest["plan"]["teacher"]["vocab_size"]
    for record in manifest["shards"]:
        shard = shards.read_duckdb(dataset / "data" / record["file"])
        for index, key in enumerate(shard.keys):
            row, place = shard.row(index), f"{record['file']} row {index}"
            read = list(labels.positions(key))
            require([each[0] for each in read] == row["positions"].tolist(), f"{place}: other positions")
            ids = np.concatenate([each[1] for each in read])
            require(np.array_equal(ids, row["token_ids"]), f"{place}: other token ids")
            tails = np.array([each[3] for each in read])
            require(np.allclose(tails, np.exp(row["tail_log_mass"]), rtol=1e-6), f"{place}: other tail masses")
            probabilities = np.concatenate([each[2] for each in read])
            expected = expected_probabilities(row, selection, vocabulary)
            require(np.allclose(probabilities, expected, rtol=1e-6), f"{place}: other probabilities")
            positions += len(read)
    require(positions == manifest["labelled_tokens"], f"{dataset}: {positions} positions")
    damaged_is_refused(dataset)
    return f"the document's reader gives {positions} positions as DuckDB"


def expected_probabilities(row: dict[str, np.ndarray], selection: dict, vocabulary: int) -> np.ndarray:
    """Exact where the log-probability is stored; else the mass that was drawn from, in proportion to the draws."""
    counts = row["counts"]
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.repeat(np.arange(len(counts)), counts)
    head = {"sampled": 0, "top_k_sampled": selection.get("k")}.get(selection["kind"], vocabulary)
    exact, result = rank < head, np.empty(len(rank))
    if exact.any():
        result[exact] = np.exp(row["log_probs"].astype(np.float64))
    if not exact.all():
        draws = row["sample_counts"].astype(np.float64)
        of = position[~exact]
        mass = np.exp(row["tail_log_mass"].astype(np.float64)) if head else np.ones(len(counts))
        result[~exact] = draws / selection["draws"] * mass[of]
    return result


def damaged_is_refused(dataset: Path) -> None:
    """The document's reader looks at the hashes."""
    with tempfile.TemporaryDirectory() as folder:
        copy_of = Path(folder)
        (copy_of / "manifest.json").write_bytes((dataset / "manifest.json").read_bytes())
        (copy_of / "data").mkdir()
        for record in shards.manifest(dataset)["shards"]:
            data = bytearray((dataset / "data" / record["file"]).read_bytes())
            data[len(data) // 2] ^= 1
            (copy_of / "data" / record["file"]).write_bytes(data)
        try:
            document_reader()["Labels"](copy_of)
        except ValueError:
            return
    raise Fault(f"{DOCUMENT.name}: its reader takes a flipped bit")


def check_golden() -> str:
    """pyarrow reads from the golden datasets what was written down when they were made."""
    count = 0
    for path in sorted(GOLDEN.glob("v*/*.expected.json")):
        rows, row = json.loads(path.read_text()), 0
        dataset = path.with_name(path.name.removesuffix(".expected.json"))
        beside = path.with_name(f"{dataset.name}.examples.json")
        examples = json.loads(beside.read_text()) if beside.exists() else None
        for record in shards.manifest(dataset)["shards"]:
            for found in pq.read_table(dataset / "data" / record["file"]).to_pylist():
                lists = {"log_partitions": "log_partition_", "tail_log_masses": "tail_log_mass_t"}
                expected = {name: value for name, value in rows[row].items() if name not in lists and value != []}
                for name, prefix in lists.items():
                    temperatures = sorted(name for name in found if name.startswith(prefix))
                    expected |= dict(zip(temperatures, rows[row].get(name, []), strict=True))
                found["sequence_key"] = found["sequence_key"].hex()
                if examples is not None:
                    expected["example"], text = examples[row], found["example"]
                    found["example"] = text and json.loads(text)
                    valid = text is None or validator("example").is_valid(found["example"])
                    require(valid, f"{path}: row {row}: schemas/example.schema.json refuses {text}")
                found = {name: null_if_infinite(value) for name, value in found.items() if value != []}
                require(found == expected, f"{path}: row {row}: expected {expected}, pyarrow reads {found}")
                row += 1
        require(row == len(rows), f"{dataset}: {row} rows, expected {len(rows)}")
        count += 1
    require(count >= 5, f"{GOLDEN}: {count} datasets")
    return f"{count} golden datasets as they were made"


def null_if_infinite(value: object) -> object:
    return [None if each == -np.inf else each for each in value] if isinstance(value, list) else value


def check_datasets(dataset: Path, split: str | None) -> str:
    """Hugging Face `datasets` finds the files through the card, and gives the rows and columns that pyarrow gives."""
    opened = datasets.load_dataset(str(dataset))
    require(split is None or list(opened) == [split], f"{dataset}: splits {list(opened)}, expected {split}")
    (rows,) = opened.values()
    row = 0
    for record in shards.manifest(dataset)["shards"]:
        table = pq.read_table(dataset / "data" / record["file"])
        require(rows.column_names == table.column_names, f"{dataset}: datasets sees columns {rows.column_names}")
        for expected in table.to_pylist():
            require(rows[row] == expected, f"{record['file']}: datasets reads another row {row}")
            row += 1
    require(len(rows) == row, f"{dataset}: datasets sees {len(rows)} rows, expected {row}")
    return f"datasets {datasets.__version__} opens {row} rows"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    run = Path(sys.argv[1])
    datasets.disable_progress_bars()
    try:
        said = [check_schemas(run), check_golden()]
        for labels in sorted((run / "labels").glob("*/")):
            said += [check_arrow("labels", labels), check_reader(labels), check_datasets(labels, labels.name)]
        sequences = run / "sequences" / "train"
        said += [check_arrow("sequences", sequences), check_datasets(sequences, None)]
    except (Fault, OSError, KeyError, ValueError) as error:
        print(f"check_published: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{run}: {'; '.join(said)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
