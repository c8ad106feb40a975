"""Compares a folder that `softshard merge` wrote with PEFT's own merge: check_merged.py BASE ADAPTER MERGED.

transformers loads the merged folder; its weights are those of PEFT's merge_and_unload in f32, rounded to the number format
of the folder. Sums in another order may differ by TOLERANCE, and a rounded weight by one unit of its last place.
Logits are those of PEFT before it merges, too.

With factors on one of two tied tables PEFT merges into both, and so into another model than it computes; ours is the
model that it computes. The two tables are then not compared.
"""

import argparse
import sys
from pathlib import Path

import models
import peft
import torch
import transformers

TOLERANCE = 1e-6  # relative to the largest element of the tensor: f32 sums of at most a few dozen products
LOGITS = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "adapter", "merged"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    adapted = peft.PeftModel.from_pretrained(models.load(arguments.base), arguments.adapter).eval()
    ids = torch.arange(24)[None] % adapted.config.vocab_size
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
    expected = adapted.merge_and_unload().eval()
    with torch.no_grad():
        merges_into_both = float((expected(input_ids=ids).logits - logits).abs().max()) > LOGITS
    tables = [module.weight for module in (expected.get_input_embeddings(), expected.get_output_embeddings())]
    if merges_into_both and tables[0].data_ptr() != tables[1].data_ptr():
        print("check_merged: PEFT merges into another model than it computes", file=sys.stderr)
        return 1
    found = transformers.AutoModelForCausalLM.from_pretrained(arguments.merged, dtype="auto", local_files_only=True)
    weights, problems = found.state_dict(), []
    if weights.keys() != expected.state_dict().keys():
        problems.append(f"tensors {sorted(weights.keys() ^ expected.state_dict().keys())}")
    different = 0
    for name, tensor in expected.state_dict().items():
        if merges_into_both and tensor.data_ptr() == tables[0].data_ptr():
            continue
        ours = weights[name]
        rounded = tensor.to(ours.dtype).float()
        unit = rounded.abs() * torch.finfo(ours.dtype).eps if ours.dtype != torch.float32 else 0.0
        differences = (ours.float() - rounded).abs()
        different += int((differences > 0).sum())
        excess = float((differences - unit).max() / tensor.abs().max().clamp_min(1e-30))
        if not excess <= TOLERANCE:
            problems.append(f"{name}: differs by {excess:.1e} of its largest element")
    if found.dtype == torch.float32:
        with torch.no_grad():
            difference = float((found.eval()(input_ids=ids).logits - logits).abs().max())
        if not difference <= LOGITS:
            problems.append(f"logits differ by {difference:.1e}")
    if problems:
        print(f"check_merged: {arguments.merged} is not what PEFT merges: {'; '.join(problems[:8])}", file=sys.stderr)
        return 1
    print(f"{arguments.merged}: {len(weights)} tensors as PEFT merges them, {found.dtype}, {different} elements differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
