"""Our selection of labels against numpy and torch on the CPU: bench_head.py SOFTSHARD [--quick]. Prints a Markdown table.

Needs `cargo build --workspace --examples`. The same rows of f32 logits for all, 2 threads, the fastest of many calls in two
rounds, ours and theirs in turn. `top-k` is the tokens alone: torch.topk, sorted or not, whichever is faster; np.argpartition of half
of the rows in each of two threads. `all` adds what labels store: log-sum-exp, entropy, the gold log probability and the mass that
was cut. torch's is the shortest way that we know, without a log_softmax of everything: logsumexp, exp once, sums.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

THREADS = 2
ROWS = 64


def fastest(run) -> float:
    """Milliseconds a row."""
    run()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.6:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3 / ROWS


def ours(example: Path, path: Path, vocabulary: int, k: int) -> dict[str, float]:
    command = [example, path, vocabulary, k, THREADS]
    return json.loads(subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout)


def torch_all(logits: torch.Tensor, gold: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    """Log probabilities, log-sum-exp, entropy, gold and tail."""
    values, ids = torch.topk(logits, k)
    log_sum_exp = torch.logsumexp(logits, -1, keepdim=True)
    distance = logits - log_sum_exp
    p = distance.exp()
    entropy = -(p * distance).sum(-1)
    tail = p.sum(-1) - (values - log_sum_exp).exp().sum(-1)
    return ids, values - log_sum_exp, log_sum_exp, entropy, distance.gather(1, gold), tail


def theirs(array: np.ndarray, k: int) -> dict[str, float]:
    logits = torch.from_numpy(array)
    gold = torch.zeros(ROWS, 1, dtype=torch.int64)
    halves = np.array_split(array, THREADS)
    with ThreadPoolExecutor(THREADS) as pool, torch.inference_mode():
        partition = lambda rows: np.argpartition(rows, -k, axis=-1)[:, -k:]  # noqa: E731
        return {
            "numpy": fastest(lambda: list(pool.map(partition, halves))),
            "torch": min(fastest(lambda order=order: torch.topk(logits, k, sorted=order)) for order in (True, False)),
            "torch_all": fastest(lambda: torch_all(logits, gold, k)),
            "torch_log_softmax": fastest(lambda: torch.topk(torch.log_softmax(logits, -1), k)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--quick", action="store_true", help="one shape only")
    arguments = parser.parse_args()
    example = arguments.softshard.parent / "examples/select_speed"
    torch.set_num_threads(THREADS)
    random = np.random.default_rng(5)
    print(f"Milliseconds a row, {ROWS} rows, {THREADS} threads; numpy {np.__version__}, torch {torch.__version__}.\n")
    print("| V | k | top-k, ours | numpy | torch | all, ours | torch | log_softmax, top-k | least ratio of top-k | of all |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in [32_000] if arguments.quick else [32_000, 128_256, 151_936]:
            # Near a small language model's: the 64 best of 128,256 have most of the mass.
            logits = (3 * random.standard_normal((ROWS, vocabulary))).astype("<f4")
            path = Path(folder) / "logits"
            logits.tofile(path)
            for k in [64] if arguments.quick else [16, 64, 128]:
                best: dict[str, float] = {}
                for _ in range(2):
                    mine = ours(example, path, vocabulary, k)
                    kept = torch.topk(torch.from_numpy(logits), k).values.double().sum().item()
                    assert abs(mine.pop("sum") - kept) < 1e-6 * kept, "both keep tokens as good"
                    for name, value in {**mine, **theirs(logits, k)}.items():
                        best[name] = min(value, best.get(name, value))
                ratios = [
                    min(best["numpy"], best["torch"]) / best["top_k_ms"],
                    min(best["torch_all"], best["torch_log_softmax"]) / best["all_ms"],
                ]
                slower += [f"V {vocabulary} k {k}"] * (min(ratios) < 1)
                columns = ["top_k_ms", "numpy", "torch", "all_ms", "torch_all", "torch_log_softmax"]
                numbers = " | ".join(f"{best[name]:.3f}" for name in columns)
                print(f"| {vocabulary:,} | {k} | {numbers} | {ratios[0]:.1f} | {ratios[1]:.1f} |", flush=True)
    if slower:
        sys.exit(f"slower than a peer: {', '.join(slower)}")


if __name__ == "__main__":
    main()
