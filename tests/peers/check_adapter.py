"""Loads an adapter with PEFT over a base folder and compares logits: check_adapter.py BASE ADAPTER IDS_JSON.

IDS_JSON holds {"input_ids": [L ids], "logits": [L rows of V numbers]}, or a list of such. Without "logits" nothing is
compared; the logits that PEFT computes are printed as JSON with --print.
"""

import argparse
import json
import sys
from pathlib import Path

import models
import peft
import torch

TOLERANCE = 1e-4  # f32 on both sides, another order of sums


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("ids_json", type=Path)
    parser.add_argument("--print", action="store_true", help="print the logits of PEFT as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    base = models.load(arguments.base)
    sequences = json.loads(arguments.ids_json.read_text())
    sequences = sequences if isinstance(sequences, list) else [sequences]
    with torch.no_grad():
        ids = [torch.tensor([sequence["input_ids"]]) for sequence in sequences]
        plain = [base(input_ids=i).logits[0] for i in ids]
        adapted = peft.PeftModel.from_pretrained(base, arguments.adapter).eval()
        logits = [adapted(input_ids=i).logits[0] for i in ids]
    if arguments.print:
        print(json.dumps([{"input_ids": s["input_ids"], "logits": z.tolist()} for s, z in zip(sequences, logits)]))

    effect = max(float((a - b).abs().max()) for a, b in zip(logits, plain))
    print(f"the adapter moves logits by up to {effect:.2e}", file=sys.stderr)
    if not any("logits" in sequence for sequence in sequences):
        return 0
    worst = 0.0
    for index, (sequence, theirs) in enumerate(zip(sequences, logits)):
        ours = torch.tensor(sequence["logits"])
        if ours.shape != theirs.shape:
            print(
                f"check_adapter: sequence {index}: expected {list(theirs.shape)}, found {list(ours.shape)}",
                file=sys.stderr,
            )
            return 1
        worst = max(worst, float((ours - theirs).abs().max().nan_to_num(nan=float("inf"))))
    print(f"logits differ from PEFT's by at most {worst:.2e}, allowed {TOLERANCE:.0e}", file=sys.stderr)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
