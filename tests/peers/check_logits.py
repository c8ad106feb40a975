"""Recomputes a label dataset with transformers and compares: check_logits.py MODEL_DIR LABELS_DIR [--adapter DIR].

With --adapter, PEFT loads that adapter over the model. Labels of the whole vocabulary (k = V) compare every logit.

Both sides run in f32, in another order of sums: log-probabilities and log-sum-exp may differ by TOLERANCE. On top of
that, log_probs that keep only m mantissa bits may be off by 2^-(m+1) of their size (half a unit of the last kept bit).
The selection may differ only where tokens are equally probable within the same tolerance.
"""

import argparse
import sys
from pathlib import Path

import models
import numpy as np
import peft
import shards
import torch

TOLERANCE = 1e-4  # nats
# The tail's log moves with the relative error of a sum of small terms; entropy with probabilities times their logs.
DERIVED_TOLERANCE = 1e-3


def differences(logits: torch.Tensor, row: dict[str, np.ndarray], plan: dict) -> dict[str, float]:
    """Largest excess over what rounding explains, for each column; `logits` is [L, V] in f64."""
    positions = torch.from_numpy(row["positions"].astype(np.int64))
    z = logits[positions - 1]  # the position rule
    log_p = torch.log_softmax(z, dim=-1)
    worst = {
        "log_sum_exp": float((z.logsumexp(-1) - torch.from_numpy(row["log_sum_exp"])).abs().max()),
        "entropy": float((-(log_p.exp() * log_p).sum(-1) - torch.from_numpy(row["entropy"])).abs().max()),
        "log_probs": 0.0,
        "selection": 0.0,
        "tail_log_mass": 0.0,
        "gold_log_prob": 0.0,
    }
    for temperature in plan["temperatures"]:
        name = f"log_partition_t{temperature:g}".replace(".", "_")
        worst[name] = float(((z / temperature).logsumexp(-1) - torch.from_numpy(row[name])).abs().max())
    rounding = 2.0 ** -(plan["mantissa_bits"] + 1) if plan["mantissa_bits"] < 23 else 0.0

    ends = np.cumsum(row["counts"])
    for i, (count, end) in enumerate(zip(row["counts"], ends)):
        ids = torch.from_numpy(row["token_ids"][end - count : end].astype(np.int64))
        stored = torch.from_numpy(row["log_probs"][end - count : end]).double()
        excess = (stored - log_p[i, ids]).abs() - rounding * stored.abs()
        cut = torch.ones(log_p.shape[1], dtype=torch.bool)
        cut[ids] = False
        found = {"log_probs": float(excess.max())}
        found["gold_log_prob"] = abs(
            float(log_p[i, row["input_ids"][row["positions"][i]]]) - float(row["gold_log_prob"][i])
        )
        if cut.any():
            found["selection"] = float(log_p[i, cut].max() - log_p[i, ids].min())
            tail = float(log_p[i, cut].logsumexp(0))
            found["tail_log_mass"] = abs(tail - float(row["tail_log_mass"][i]))
        if plan["selection"]["kind"] == "top_p":
            # One entry fewer must not reach p, and the kept ones must, unless k stopped them.
            mass = log_p[i, ids].exp()
            p, k = plan["selection"]["p"], min(plan["selection"]["k"], log_p.shape[1])
            found["selection"] = max(
                found.get("selection", 0.0),
                float(mass[:-1].sum()) - p if count > 1 else 0.0,
                p - float(mass.sum()) if count < k else 0.0,
            )
        for name, value in found.items():
            worst[name] = max(worst[name], value)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("labels_dir", type=Path)
    parser.add_argument("--adapter", type=Path, help="PEFT adapter over the model")
    parser.add_argument("--limit", type=int, default=64, help="sequences to check")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    model, plan = models.load(arguments.model_dir), shards.manifest(arguments.labels_dir)["plan"]
    if arguments.adapter:
        model = peft.PeftModel.from_pretrained(model, arguments.adapter).eval()
    worst: dict[str, float] = {}
    sequences, tokens = 0, 0
    for row in shards.rows(arguments.labels_dir, arguments.limit):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row["input_ids"].astype(np.int64))[None]).logits[0].double()
        for name, value in differences(logits, row, plan).items():
            worst[name] = value if np.isnan(value) else max(worst.get(name, 0.0), value)
        sequences, tokens = sequences + 1, tokens + len(row["positions"])
    if not sequences:
        print(f"check_logits: {arguments.labels_dir}: no sequence", file=sys.stderr)
        return 1

    limits = {name: DERIVED_TOLERANCE if name in ("tail_log_mass", "entropy") else TOLERANCE for name in worst}
    for name, value in worst.items():
        print(f"{name}: differs by at most {value:.2e}, allowed {limits[name]:.0e}")
    bad = [name for name, value in worst.items() if not value <= limits[name]]
    if bad:
        print(
            f"check_logits: {arguments.labels_dir} is not what transformers computes: {', '.join(bad)}",
            file=sys.stderr,
        )
        return 1
    print(f"{arguments.labels_dir}: {sequences} sequences, {tokens} labelled tokens as transformers computes them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
