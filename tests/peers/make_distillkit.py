#!/usr/bin/env python3
"""Writes crates/labels/tests/golden/distillkit/ with DistillKit's own code: captures as its sampler writes them, and what
its decoder makes of them.

    git clone https://github.com/arcee-ai/DistillKit && git -C DistillKit checkout a61c2e7d25c2e990d45832e12bd8542bdee9c810
    $(tests/peers/venv.sh torch) tests/peers/make_distillkit.py DistillKit [--check]

`--check` compares with what is there. A case is a folder: `data_0.parquet` (schema of `compressed_logit_schema`),
`compression_config.yaml` (as `yaml.safe_dump` writes it) and `expected.json`: input_ids, and per row and place the ids and
log-probabilities that `LogprobCompressor.decompress_to_sparse` gives.
"""
import json
import pathlib
import sys

import pyarrow
import pyarrow.parquet
import torch
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/labels/tests/golden/distillkit"
D = 1000
F16 = {"scale_dtype": "float16", "element_bits": 8, "num_elements": 8}
CASES = {
    # Both configurations that DistillKit's README recommends, and its first example.
    "recommended": {"k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
                    "residual_bins": [], "delta_encoding": False},
    "budget": {"k": 50, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"],
               "residual_bins": [], "delta_encoding": False},
    "delta": {"k": 64, "exact_k": 32, "exact_dtype": "float32", "polynomial_terms": [0, 1, 2], "residual_bins": [],
              "delta_encoding": True},
    "bins": {"k": 40, "exact_k": 8, "exact_dtype": "float16", "polynomial_terms": [0, 1, "sqrt", "exp"],
             "term_dtype": "float64", "normalize_t": True, "delta_encoding": False, "error_diffusion": True,
             "residual_bins": [F16, {"scale_dtype": "bfloat16", "element_bits": 3, "num_elements": 5},
                               {"scale_dtype": "float32", "element_bits": 1, "num_elements": 11}]},
    "residuals": {"k": 20, "exact_k": 4, "exact_dtype": "bfloat16", "delta_encoding": True,
                  "residual_bins": [{"scale_dtype": "float32", "element_bits": 12, "num_elements": 16}]},
    "exact": {"k": 16, "exact_k": 16, "residual_bins": [], "delta_encoding": False},
}


def main():
    checkout = pathlib.Path(sys.argv[1])
    sys.path.insert(0, str(checkout))
    from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor

    check = "--check" in sys.argv
    schema = pyarrow.schema([
        pyarrow.field("input_ids", pyarrow.list_(pyarrow.uint64())),
        pyarrow.field("compressed_logprobs", pyarrow.list_(pyarrow.list_(pyarrow.uint8()))),
        pyarrow.field("bytepacked_indices", pyarrow.list_(pyarrow.list_(pyarrow.uint8()))),
    ])
    for index, (name, values) in enumerate(CASES.items()):
        config = DistributionQuantizationConfig.model_validate({"d": D, **values})
        compressor = LogprobCompressor(config=config)
        generator = torch.Generator().manual_seed(index)
        rows, expected = [], []
        # As from vLLM: the last token has no entries. One row as from a model's own outputs: it has.
        for length, places in [(5, 4), (3, 3)]:
            logits = torch.randn(places, D, generator=generator) * 2.5
            log_probs, ids = torch.log_softmax(logits, -1).topk(config.k)
            # Each token is one that the teacher found likely, so that the position rule shows.
            first = torch.randint(D, (1,), generator=generator)
            input_ids = torch.cat([first, ids[: length - 1, 1]]).tolist()
            packed = compressor.compress_from_sparse(ids.unsqueeze(0), log_probs.unsqueeze(0))
            rows.append({"input_ids": input_ids} | {key: value.squeeze(0).tolist() for key, value in packed.items()})
            back_ids, back = compressor.decompress_to_sparse(packed)
            expected.append({"input_ids": input_ids, "token_ids": back_ids.squeeze(0).tolist(),
                             "log_probs": back.squeeze(0).double().tolist()})
        folder = OUT / name
        text = json.dumps({"config": config.model_dump(mode="json"), "rows": expected}) + "\n"
        if check:
            found = json.loads((folder / "expected.json").read_text())
            for row, want in zip(found["rows"], expected, strict=True):
                assert row["token_ids"] == want["token_ids"], name
                assert torch.allclose(torch.tensor(row["log_probs"]), torch.tensor(want["log_probs"]), atol=1e-5), name
            continue
        folder.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        pyarrow.parquet.write_table(table, folder / "data_0.parquet")
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        (folder / "expected.json").write_text(text)
        if name == "exact":
            write_packed(folder, schema, rows)


def write_packed(folder, schema, rows):
    """Both rows in one, as `pack_logits.py` packs: tokens without entries are cut off, and the mask counts documents."""
    keys = ("input_ids", "compressed_logprobs", "bytepacked_indices")
    cut = [{key: row[key][: len(row["compressed_logprobs"])] for key in keys} for row in rows]
    packed = {key: sum((row[key] for row in cut), []) for key in keys}
    packed["attention_mask"] = [document for document, row in enumerate(cut, 1) for _ in row["input_ids"]]
    packed["labels"] = [-100, *packed["input_ids"][1:-1], -100]
    for name, kind in [("attention_mask", pyarrow.int64()), ("labels", pyarrow.int64())]:
        schema = schema.append(pyarrow.field(name, pyarrow.list_(kind)))
    # Padding has no document.
    for key, padding in [("input_ids", 0), ("attention_mask", 0), ("labels", -100), ("compressed_logprobs", []), ("bytepacked_indices", [])]:
        packed[key].append(padding)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([packed], schema=schema), folder / "packed.parquet")


main()
