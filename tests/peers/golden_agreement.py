#!/usr/bin/env python3
"""golden/agreement.json: how scores agree with judgements, as scikit-learn and scipy have it. `--check` computes it again and compares."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy import stats
from sklearn.metrics import roc_auc_score

for module, version in ((np, "2.4.6"), (scipy, "1.17.1"), (sklearn, "1.9.1")):
    assert module.__version__ == version, f"{module.__name__}: expected {version}, found {module.__version__}"

GOLDEN = Path(__file__).parent / "golden" / "agreement.json"


def case(scores: np.ndarray, judgements: np.ndarray, faithful: float) -> dict:
    labels = judgements >= faithful
    varies = np.ptp(scores) > 0 and np.ptp(judgements) > 0
    return {
        "scores": scores.tolist(),
        "judgements": judgements.tolist(),
        "faithful": faithful,
        "auc": float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else None,
        "spearman": float(stats.spearmanr(scores, judgements).statistic) if varies else None,
        "kendall": float(stats.kendalltau(scores, judgements).statistic) if varies else None,
    }


def cases() -> list[dict]:
    rng = np.random.default_rng(17)
    binary = (rng.random(40) < 0.4).astype(float)
    means = rng.integers(3, 16, 60) / 3.0
    return [
        case(rng.random(40), binary, 0.5),
        case(np.round(rng.random(40) + 0.3 * binary, 1), binary, 0.5),
        case(np.round(means / 5 + rng.normal(0, 0.2, 60), 2), means, 5.0),
        case(-means, means, 4.0),
        case(rng.random(12), np.ones(12), 0.5),
        case(np.full(12, 0.25), binary[:12], 0.5),
        case(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 1.0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with golden/ instead of writing it")
    check = parser.parse_args().check
    text = '{"cases": [\n' + ",\n".join(json.dumps(one) for one in cases()) + "\n]}\n"
    if not check:
        GOLDEN.write_text(text)
    elif json.loads(GOLDEN.read_text()) != json.loads(text):
        print("golden/agreement.json: differs from what is computed now", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
