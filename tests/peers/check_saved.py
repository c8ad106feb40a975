"""Models and adapters that we saved, loaded by transformers and PEFT: check_saved.py FOLDER.

FOLDER is what `crates/model/examples/save_for_peers.rs` wrote: for each model its folder, adapters of it, and our logits.
Every tensor must find its place, every place its tensor, and the logits must be within TOLERANCE.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import models  # first: it sets the environment of transformers

import peft
import torch
import transformers

TOLERANCE = 1e-4


def load(path: Path) -> transformers.PreTrainedModel:
    """The model, after its report of loading said that nothing is missing and nothing left."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    bad = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if bad:
        raise SystemExit(f"check_saved: {path}: {bad}")
    return model.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    warnings.simplefilter("error", UserWarning)  # so does PEFT say that keys are missing
    worst, count = 0.0, 0
    for file in sorted(folder.glob("*/logits.json")):
        expected = json.loads(file.read_text())
        for name in ("model", "all", "some"):
            model = load(file.parent / "model")
            if name != "model":
                model = peft.PeftModel.from_pretrained(model, file.parent / name).eval()
            with torch.no_grad():
                found = model(input_ids=torch.tensor([expected["ids"]])).logits[0].flatten()
            difference = float((found - torch.tensor(expected[name])).abs().max())
            if not difference <= TOLERANCE:
                print(f"check_saved: {file.parent.name} {name}: logits differ by {difference}", file=sys.stderr)
                return 1
            worst, count = max(worst, difference), count + 1
    if not count:
        print(f"check_saved: {folder}: no model", file=sys.stderr)
        return 1
    print(f"{count} models and adapters of ours as transformers and PEFT compute them: logits within {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
