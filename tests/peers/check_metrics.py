#!/usr/bin/env python3
"""What a run recorded is read by those it is written for.

    check_metrics.py METRICS_DIR NAME PROMETHEUS_FILE SHARDS    of labelling
    check_metrics.py OUTPUT_DIR STEPS                           of a training

JSON lines, TensorBoard's own EventAccumulator and the parser of prometheus_client must all hold the same numbers, whatever
interruptions there were: records of the shards of `train` up to the last of SHARDS, or each of STEPS once. Exits with 1 and a
line that says what differs.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXPECTED = {"tokens", "labelled_tokens", "tokens_per_second", "mean_entropy_nats", "retained_mass", "padding", "bytes"}


OF_STEPS = {"loss", "cross_entropy", "alpha", "learning_rate", "gradient_norm", "tokens", "labelled_tokens", "tokens_per_second"}


def main() -> None:
    if len(sys.argv) == 3:
        return check_training(Path(sys.argv[1]), int(sys.argv[2]))
    folder, name, prometheus = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    series = of_lines(lines, int(sys.argv[4]))
    found = of_tensorboard(folder / "tensorboard" / name)
    assert series == found, f"tensorboard: expected {series}, found {found}"
    last = {tag: values[-1][1] for tag, values in series.items()}
    for (split, scalar), value in of_prometheus(prometheus, name).items():
        expected = last.get(f"{split}/{scalar}", value)  # progress is not in the lines
        assert np.float32(value) == expected or math.isnan(value), (split, scalar, value, expected)
    files = len(list((folder / "tensorboard" / name).iterdir()))
    print(f"{len(lines)} lines of {name}.jsonl are {len(series)} series in {files} event files, the last values in {prometheus.name}")


def check_training(folder: Path, steps: int) -> None:
    series = defaultdict(list)
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert line["split"] != "train" or OF_STEPS <= line.keys(), f"expected {OF_STEPS}, found {line}"
        for scalar in line.keys() - {"split", "step"}:
            series[f"{line['split']}/{scalar}"].append((line["step"], np.float32(line[scalar])))
    found = [step for step, _ in series["train/loss"]]
    assert found == list(range(1, steps + 1)), f"expected each of {steps} steps, found {found}"
    read = of_tensorboard(folder / "tensorboard")
    for tag in series.keys() | read.keys():
        assert series.get(tag) == read.get(tag), f"{tag}: expected {series.get(tag)}, found {read.get(tag)}"
    files = len(list((folder / "tensorboard").iterdir()))
    print(f"{steps} steps are {len(series)} series in {files} event files: {', '.join(sorted(series))}")


def of_lines(lines: list[dict], shards: int) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag."""
    series = defaultdict(list)
    for line in lines:
        assert line["stage"] == "teacher-labels" and line["time"] > 1e9, line
        assert EXPECTED <= line.keys(), f"expected {EXPECTED}, found {line}"
        for scalar in line.keys() - {"time", "stage", "split", "step"}:
            series[f"{line['split']}/{scalar}"].append((line["step"], np.float32(line[scalar])))
    for tag, values in series.items():
        steps = [step for step, _ in values]
        # A run that is killed may lose its last record, never its shard.
        assert steps == sorted(set(steps)), f"{tag}: expected ascending steps, found {steps}"
        assert not tag.startswith("train/") or steps[-1] == shards, f"{tag}: expected {shards} steps, found {steps}"
    return dict(series)


def of_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    # Values of old writers, as ours are, become tensors when they are read.
    tags = accumulator.Tags()
    scalars = {tag: [(event.step, np.float32(event.value)) for event in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    tensors = {
        tag: [(event.step, np.float32(event.tensor_proto.float_val[0])) for event in accumulator.Tensors(tag)]
        for tag in tags["tensors"]
    }
    return scalars | tensors


def of_prometheus(path: Path, name: str) -> dict[tuple[str, str], float]:
    """The last value of each scalar of each split."""
    values = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.type == "gauge" and family.name.startswith("softshard_"), family
        for sample in family.samples:
            assert sample.labels["run"] == name and sample.labels["stage"] == "teacher-labels", sample
            values[sample.labels["split"], family.name.removeprefix("softshard_")] = sample.value
    assert {("train", scalar) for scalar in EXPECTED | {"done", "updated_seconds"}} <= values.keys(), values.keys()
    return values


if __name__ == "__main__":
    main()
