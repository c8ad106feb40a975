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


def rounding(bits: int) -> float:
    """Half a unit of the last kept bit, relative."""
    return 2.0 ** -(bits + 1) if bits < 23 else 0.0


def check_draws(log_p: torch.Tensor, exact: torch.Tensor, drawn: torch.Tensor, counts: np.ndarray) -> float:
    """How far a systematic count is beyond 1 from its share: at most rounding."""
    left = log_p.exp()
    left[exact] = 0.0
    shares = left / left.sum() * float(counts.sum())
    found = torch.zeros_like(shares)
    found[drawn] = torch.from_numpy(counts).double()
    return max(0.0, float((found - shares).abs().max()) - 1.0)


def differences(logits: torch.Tensor, row: dict[str, np.ndarray], plan: dict) -> dict[str, float]:
    """Largest excess over what rounding explains, for each column; `logits` is [L, V] in f64."""
    positions = torch.from_numpy(row["positions"].astype(np.int64))
    z = logits[positions - 1]  # the position rule
    log_p = torch.log_softmax(z, dim=-1)
    gold = torch.from_numpy(row["input_ids"][row["positions"]].astype(np.int64))
    coarse = rounding(plan["position_mantissa_bits"])
    expected = {
        "log_sum_exp": (z.logsumexp(-1), 0.0 if plan["temperatures"] else coarse),
        "entropy": (-(log_p.exp() * log_p).sum(-1), coarse),
        "gold_log_prob": (log_p.gather(1, gold[:, None])[:, 0], coarse),
    }
    for temperature in plan["temperatures"]:
        name = f"log_partition_t{temperature:g}".replace(".", "_")
        expected[name] = ((z / temperature).logsumexp(-1), 0.0)
    worst = {}
    for name, (values, relative) in expected.items():
        if name in row:
            stored = torch.from_numpy(row[name]).double()
            worst[name] = float(((values - stored).abs() - relative * stored.abs()).max())

    kind, k = plan["selection"]["kind"], min(plan["selection"].get("k", 0), log_p.shape[1])
    entry = exact_entry = drawn_entry = 0
    for i, count in enumerate(row["counts"]):
        found = {}
        exact = min(int(count), k)
        ids = torch.from_numpy(row["token_ids"][entry : entry + count].astype(np.int64))
        if "sample_counts" in row:
            counts = row["sample_counts"][drawn_entry : drawn_entry + count - exact]
            found["sample_counts"] = check_draws(log_p[i], ids[:exact], ids[exact:], counts)
        if "log_probs" in row:
            stored = torch.from_numpy(row["log_probs"][exact_entry : exact_entry + exact]).double()
            excess = (stored - log_p[i, ids[:exact]]).abs() - rounding(plan["mantissa_bits"]) * stored.abs()
            found["log_probs"] = float(excess.max())
            ids = ids[:exact]
        cut = torch.ones(log_p.shape[1], dtype=torch.bool)
        cut[ids] = False
        if cut.any():
            tail, stored_tail = float(log_p[i, cut].logsumexp(0)), float(row["tail_log_mass"][i])
            found["tail_log_mass"] = abs(tail - stored_tail) - coarse * abs(stored_tail)
            for temperature in plan["temperatures"] if plan["version"] > 1 else []:
                name = f"tail_log_mass_t{temperature:g}".replace(".", "_")
                soft, stored_soft = torch.log_softmax(z[i] / temperature, dim=0), float(row[name][i])
                found[name] = abs(float(soft[cut].logsumexp(0)) - stored_soft) - coarse * abs(stored_soft)
            if "log_probs" in row:
                found["selection"] = float(log_p[i, cut].max() - log_p[i, ids].min())
        if kind == "top_p":
            # One entry fewer must not reach p, and the kept ones must, unless k stopped them.
            mass, p = log_p[i, ids].exp(), plan["selection"]["p"]
            found["selection"] = max(
                found.get("selection", 0.0),
                float(mass[:-1].sum()) - p if count > 1 else 0.0,
                p - float(mass.sum()) if count < k else 0.0,
            )
        for name, value in found.items():
            worst[name] = max(worst.get(name, 0.0), value)
        entry, exact_entry, drawn_entry = entry + count, exact_entry + exact, drawn_entry + count - exact
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
