"""Parameters of the real configurations as transformers counts them, on the meta device: no weights are made.

Run with the torch environment (see README.md):

    count_parameters.py CONFIGS_DIR            writes golden/parameters.json
    count_parameters.py CONFIGS_DIR --check    counts again and compares

A tied head counts once. `layer` is one layer of the stack.
"""

import argparse
import json
import sys
from pathlib import Path

import models  # no network
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden" / "parameters.json"


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counts(file: Path) -> dict:
    """Of one config.json."""
    values = json.loads(file.read_text())
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    base = model.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    return {"parameters": count(model), "layer": count(layers[0]), "tied": bool(config.tie_word_embeddings)}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("configs", type=Path)
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    found = {file.stem: counts(file) for file in sorted(options.configs.glob("*.json"))}
    result = {"transformers": transformers.__version__, "models": found}
    if not options.check:
        GOLDEN.write_text(json.dumps(result, indent=1) + "\n")
    elif json.loads(GOLDEN.read_text()) != result:
        sys.exit(f"{GOLDEN}: expected what transformers counts, {result}")
    print(f"{len(found)} models counted")


main()
