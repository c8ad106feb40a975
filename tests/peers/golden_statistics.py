"""Statistics and calibration as scipy, statsmodels, scikit-learn and relplot compute them: golden/statistics.json.

    golden_statistics.py            writes it
    golden_statistics.py --check    computes everything again and compares

Checked by ci.sh (environment `ci`). The tests of `crates/evaluate/src/statistics` and `calibration` read the file and
agree within 1e-9. Where a peer has no function for a whole formula, it gives the parts: its quantiles, its mean squares.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import sklearn
import statsmodels
import statsmodels.api as sm
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_sample_size_one_tail
from statsmodels.stats.proportion import proportion_confint

VERSIONS = {"numpy": "2.4.6", "scipy": "1.17.1", "sklearn": "1.9.1", "statsmodels": "0.15.0"}
for module in (np, scipy, sklearn, statsmodels):
    assert module.__version__ == VERSIONS[module.__name__], (module.__name__, module.__version__)

GOLDEN = Path(__file__).parent / "golden" / "statistics.json"
CHECK_TOLERANCE = 1e-11  # other processors sum in other orders
BINS = 15


def relplot_metrics():
    """relplot.metrics alone: the package's __init__ asks for matplotlib and seaborn, which it does not need."""
    assert importlib.metadata.version("relplot") == "1.0.3"
    package = types.ModuleType("relplot")
    package.__path__ = list(importlib.util.find_spec("relplot").submodule_search_locations)
    sys.modules["relplot"] = package
    return importlib.import_module("relplot.metrics")


def listed(values, digits=None):
    values = np.asarray(values, float)
    return (values if digits is None else values.round(digits)).tolist()


def distributions():
    shares = [1e-6, 0.001, 0.025, 0.2, 0.5, 0.8, 0.975, 0.995, 1 - 1e-6]
    freedoms = [1, 2, 2.7, 5, 30, 149, 999, 11489]
    return {
        "shares": shares,
        "normal_quantiles": listed(stats.norm.ppf(shares)),
        "normal_at": [-8.0, -2.5, -0.1, 0.0, 0.3, 1.96, 6.0],
        "normal_cdfs": listed(stats.norm.cdf([-8.0, -2.5, -0.1, 0.0, 0.3, 1.96, 6.0])),
        "degrees_of_freedom": freedoms,
        "t_quantiles": [listed(stats.t.ppf(shares, f)) for f in freedoms],
        "t_at": [0.0, 0.01, 0.7, 2.0, 4.5, 12.0],
        "t_two_sided": [listed(2 * stats.t.sf([0.0, 0.01, 0.7, 2.0, 4.5, 12.0], f)) for f in freedoms],
    }


def clusters(rng):
    """Rows of documents: standard errors by cluster, of two models and of their difference."""
    documents = np.sort(rng.integers(0, 25, 80))
    effect = rng.normal(0, 0.3, 25)[documents]
    baseline = (0.5 + effect + rng.normal(0, 0.4, 80)).round(4)
    candidate = (0.6 + effect + rng.normal(0, 0.4, 80)).round(4)

    def cluster(values):
        fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": documents})
        return {"mean": fit.params[0], "standard_error": fit.bse[0]}

    single = stats.sem(baseline)
    distinct = len(set(documents.tolist()))
    error = cluster(candidate - baseline)["standard_error"]
    multiple = stats.t.ppf(0.975, distinct - 1) + stats.t.ppf(0.8, distinct - 1)
    # Of normal quantiles: the sample size at which a difference of 2.8 deviations of the mean has 80 % power is 1.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert np.isclose(normal_sample_size_one_tail(z, 0.8, 0.025, std_null=1.0), 1.0, rtol=1e-12)
    return {
        "documents": documents.tolist(),
        "baseline": listed(baseline),
        "candidate": listed(candidate),
        "of_baseline": cluster(baseline),
        "of_candidate": cluster(candidate),
        "of_difference": cluster(candidate - baseline),
        "single_rows_standard_error": single,
        "single_rows_correlation": stats.pearsonr(baseline, candidate).statistic,
        "smallest_difference": multiple * error,
    }


def bootstrap(rng):
    """Intervals from given replicates."""
    replicates = rng.gamma(4, 0.1, 1001).round(5)
    data = rng.normal(0.4, 0.2, 40).round(5)
    cases = []
    for documents, level in ((50, 0.95), (150, 0.9), (2, 0.95), (1000, 0.99)):
        tail = stats.norm.cdf(np.sqrt(documents / (documents - 1)) * stats.t.ppf((1 - level) / 2, documents - 1))
        given = types.SimpleNamespace(bootstrap_distribution=replicates)
        ends = {}
        for method in ("percentile", "basic"):
            found = stats.bootstrap(
                (data,), np.mean, n_resamples=0, method=method, confidence_level=1 - 2 * tail, bootstrap_result=given
            ).confidence_interval
            ends[method] = [float(found.low), float(found.high)]
        cases.append({"documents": documents, "level": level, "tail": tail, **ends})
    return {"replicates": listed(replicates), "estimate": float(data.mean()), "cases": cases}


def flips(rng):
    """Exact sign-flip tests of scipy: all 2^n flips."""
    cases = []
    for n in (5, 9, 13):
        baseline, candidate = rng.normal(0, 1, n).round(2), rng.normal(0.5, 1, n).round(2)
        ties = rng.integers(0, 3, n).astype(float), rng.integers(0, 3, n).astype(float)
        for a, b in ((baseline, candidate), ties):
            found = stats.permutation_test(
                (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf,
                vectorized=True,
            )  # fmt: skip
            cases.append({"baseline": listed(a), "candidate": listed(b), "p": float(found.pvalue)})
    return cases


def counts():
    shares = [(0, 10), (3, 10), (50, 50), (87, 150), (11000, 11490)]
    tables = [(0, 1), (3, 9), (8, 8), (2, 30), (140, 200), (5000, 5300), (0, 40)]
    ps = [0.01, 0.04, 0.03, 0.005, 0.2, 0.9, 0.03]
    return {
        "wilson": [
            {"successes": k, "trials": n, "level": level,
             "interval": [float(x) for x in proportion_confint(k, n, 1 - level, method="wilson")]}
            for k, n in shares for level in (0.95, 0.8)
        ],
        "mcnemar": [
            {"only_baseline": b, "only_candidate": c, "p": float(mcnemar([[7, b], [c, 5]], exact=True).pvalue)}
            for b, c in tables
        ],
        "holm": {"p_values": ps, "adjusted": listed(multipletests(ps, method="holm")[1])},
    }  # fmt: skip


def levels(rng):
    """Seeds and documents: mean squares of the two-way table, as statsmodels' anova_lm has them."""
    documents, cases = 30, []
    effect = rng.normal(0, 1, documents)
    for seeds, spread in (((4, 3), 0.6), ((1, 5), 0.5), ((3, 3), 0.0)):
        sides = []
        for count, mean in zip(seeds, (0.0, 0.5), strict=True):
            seed = rng.normal(0, spread, count)[:, None]
            sides.append((mean + effect + seed + rng.normal(0, 0.5, (count, documents))).round(4))
        difference = sides[1].mean(0) - sides[0].mean(0)
        of_documents = difference.var(ddof=1) / documents
        total, weights = of_documents, of_documents**2 / (documents - 1)
        for side in sides:
            count = len(side)
            if count == 1:
                continue
            rows = [(s, d, side[s, d]) for s in range(count) for d in range(documents)]
            table = anova_lm(ols("y ~ C(s) + C(d)", pd.DataFrame(rows, columns=["s", "d", "y"])).fit())
            between = table["mean_sq"]["C(s)"] / (count * documents)
            left = table["mean_sq"]["Residual"] / (count * documents)
            if between > left:
                total += between - left
                weights += between**2 / (count - 1) + left**2 / ((count - 1) * (documents - 1))
        freedom, mean = total**2 / weights, difference.mean()
        half = stats.t.ppf(0.975, freedom) * np.sqrt(total)
        cases.append({
            "baseline": [listed(s) for s in sides[0]], "candidate": [listed(s) for s in sides[1]],
            "difference": mean, "standard_error": np.sqrt(total), "degrees_of_freedom": freedom,
            "interval": [mean - half, mean + half], "of_seeds": (total - of_documents) / total,
            "p": 2 * stats.t.sf(abs(mean) / np.sqrt(total), freedom),
        })  # fmt: skip
    return cases


def calibration(rng):
    """Confidences and outcomes; probabilities of small vocabularies."""
    relplot = relplot_metrics()
    cases = []
    # The last has bandwidths whose grids have other and even numbers of points.
    for n, power in ((150, 1.0), (600, 2.0), (30, 0.5), (3000, 1.0)):
        f = rng.beta(2, 1, n).round(6)
        assert len(np.unique(f)) == n or n > 150
        y = (rng.random(n) < f**power).astype(int)
        error, width = relplot.smECE(f, y, return_width=True)
        case = {
            "confidences": listed(f), "correct": y.tolist(),
            "brier": brier_score_loss(y, f), "ece": relplot.binnedECE(f, y, BINS),
            "smooth": error, "bandwidth": width,
            "at": [[s, relplot.smECE_sigma(f, y, s)] for s in (0.001953125, 0.0078125, 0.009, 0.02, 0.1, 0.5, 1.0)],
        }  # fmt: skip
        if n == 150:  # as many in each bin, no two alike: quantiles of scikit-learn cut where ranks do
            right, said = calibration_curve(y, f, n_bins=BINS, strategy="quantile")
            assert len(right) == BINS
            case["ece_equal_mass"] = np.abs(right - said).mean()
        if n == 3000:  # the long list again by its rule: f = (i + .5) / n
            f = (np.arange(n) + 0.5) / n
            y = ((7919 * np.arange(n) % n) / n < f).astype(int)
            error, width = relplot.smECE(f, y, return_width=True)
            case = {"rule": n, "smooth": error, "bandwidth": width, "at": [[0.004, relplot.smECE_sigma(f, y, 0.004)]]}
        cases.append(case)
    logits = rng.normal(0, 2, (60, 12))
    p = np.floor(2**16 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)) / 2**16
    p[:, 0] += 1 - p.sum(1)  # they are f32, and their sum is 1 exactly
    assert p.min() > 0 and (p == p.astype(np.float32)).all()
    came = np.array([rng.choice(12, p=row) for row in p])
    hot = np.eye(12)[came]
    return cases, {
        "sequences": np.repeat(np.arange(12), 5).tolist(),
        "probabilities": [listed(row) for row in p],
        "came": came.tolist(),
        # The paper's sum over all (position, token) pairs, by the number of positions.
        "full_ece": relplot.binnedECE(p.ravel(), hot.ravel(), BINS) * 12,
        "brier": brier_score_loss(came, p, labels=range(12), scale_by_half=False),
        "nll": log_loss(came, p, labels=range(12)),
    }


def logistic(rng):
    """Weights of LogisticRegression at its defaults but for the end of the search: few rows and many features, and the reverse."""
    cases = []
    for rows, width, c in [(60, 5, 1.0), (40, 70, 1.0), (200, 12, 0.1), (80, 3, 50.0)]:
        features = np.round(rng.random((rows, width)), 6)
        chance = 1 / (1 + np.exp(-4 * (features[:, 0] - features[:, -1])))
        labels = (rng.random(rows) < chance).astype(int)
        found = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(features, labels)
        lbfgs = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(features, labels)
        assert np.abs(found.coef_ - lbfgs.coef_).max() < 1e-5, "two solvers of scikit-learn agree"
        cases.append(
            {
                "c": c,
                "features": [listed(row) for row in features],
                "labels": labels.tolist(),
                "weights": listed(found.coef_[0]),
                "intercept": float(found.intercept_[0]),
                "probabilities": listed(found.predict_proba(features)[:, 1]),
            }
        )
    return cases


def make():
    rng = np.random.default_rng(17)
    cases, full = calibration(rng)
    return {
        "versions": {**VERSIONS, "relplot": "1.0.3"},
        "distributions": distributions(),
        "clusters": clusters(rng),
        "bootstrap": bootstrap(rng),
        "sign_flip": flips(rng),
        **counts(),
        "two_levels": levels(rng),
        "calibration": cases,
        "full_calibration": full,
        "logistic_regression": logistic(np.random.default_rng(23)),
    }


def differences(place, golden, again):
    """Places where two JSON values differ by more than rounding."""
    if isinstance(golden, dict) and isinstance(again, dict) and golden.keys() == again.keys():
        pairs = [(f"{place}.{key}", golden[key], again[key]) for key in golden]
    elif isinstance(golden, list) and isinstance(again, list) and len(golden) == len(again):
        pairs = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(zip(golden, again, strict=True))]
    elif isinstance(golden, float) and isinstance(again, (int, float)):
        return [] if abs(golden - again) <= CHECK_TOLERANCE * max(1.0, abs(golden)) else [(place, golden, again)]
    else:
        return [] if golden == again else [(place, golden, again)]
    return [found for pair in pairs for found in differences(*pair)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    warnings.simplefilter("error")
    again = json.loads(json.dumps(make(), default=float))
    if parser.parse_args().check:
        found = differences("statistics", json.loads(GOLDEN.read_text()), again)
        if found:
            place, golden, now = found[0]
            sys.exit(f"golden_statistics.py: {place}: expected {golden}, found {now}")
        return
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in again.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
