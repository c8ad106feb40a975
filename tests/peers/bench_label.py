"""Speed of labelling with transformers on a CPU: bench_label.py MODEL_DIR SEQUENCES_DIR [--sorted]. One JSON line for each batch size.

Legend: B batch, T tokens, V vocabulary, R rows (labelled positions).

usual:    batches in the order of the data, padded to their longest; logits of every position [B, T, V], log_softmax,
          topk(64), and of that the labelled positions are taken.
--sorted: the best plain PyTorch does: sequences sorted by length, batches by a token budget, no mask (right padding
          cannot be seen by earlier tokens), head, log-sum-exp and topk on labelled rows only, 512 rows at a time.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import models
import numpy as np
import shards
import torch

TOP_K = 64
ROWS_PER_CHUNK = 512

Batch = list[dict[str, np.ndarray]]


def label_usual(model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Ids and log-probabilities of the labelled positions."""
    ids = models.right_pad([row["input_ids"] for row in batch])
    mask = models.right_pad([np.ones_like(row["input_ids"]) for row in batch])
    log_probs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits, dim=-1)
    top = log_probs.topk(min(TOP_K, log_probs.shape[-1]), dim=-1)
    picked = []
    for i, row in enumerate(batch):
        positions = torch.as_tensor(row["positions"], dtype=torch.int64)
        gold = ids[i, positions, None]
        picked += [
            top.indices[i, positions - 1],
            top.values[i, positions - 1],
            log_probs[i, positions - 1].gather(1, gold),
        ]
    return picked


def label_sorted(model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """As above, head on labelled rows only."""
    ids = models.right_pad([row["input_ids"] for row in batch])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    sequence = torch.cat([torch.full((len(row["positions"]),), i) for i, row in enumerate(batch)])
    position = torch.cat([torch.as_tensor(row["positions"], dtype=torch.int64) for row in batch])
    rows, gold = hidden[sequence, position - 1], ids[sequence, position, None]
    picked = []
    for chunk, chunk_gold in zip(rows.split(ROWS_PER_CHUNK), gold.split(ROWS_PER_CHUNK)):
        logits = model.lm_head(chunk)
        log_sum_exp = logits.logsumexp(-1, keepdim=True)
        top = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
        picked += [top.indices, top.values - log_sum_exp, logits.gather(1, chunk_gold) - log_sum_exp]
    return picked


def batches_usual(rows: Batch, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def batches_sorted(rows: Batch, max_tokens: int) -> Iterator[Batch]:
    """Longest first, so that the first batch shows the most memory; padded tokens stay within the budget."""
    batch: Batch = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        if batch and (len(batch) + 1) * len(batch[0]["input_ids"]) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("sequences_dir", type=Path)
    parser.add_argument("--sorted", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch (usual)")
    parser.add_argument("--max-tokens-per-batch", type=int, nargs="+", default=[2048], help="padded tokens per batch (--sorted)")
    parser.add_argument("--limit", type=int, help="sequences")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = models.load(arguments.model_dir)
    rows = list(shards.rows(arguments.sequences_dir, arguments.limit))
    if arguments.sorted:
        fastest = 0.0
        for budget in arguments.max_tokens_per_batch:
            speed = measure(model, label_sorted, list(batches_sorted(rows, budget)), budget)
            if speed < 0.9 * fastest:
                break  # larger ones are slower still
            fastest = max(fastest, speed)
    else:
        measure(model, label_usual, list(batches_usual(rows, arguments.batch_size)), arguments.batch_size)


@torch.inference_mode()
def measure(model: torch.nn.Module, label: Callable, batches: list[Batch], batch_size: int) -> float:
    """Labels all batches, prints a line, and returns the speed; `batch_size` in sequences, or in tokens where they are sorted."""
    rows = [row for batch in batches for row in batch]
    padded = sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in batches)
    tokens = sum(len(row["input_ids"]) for row in rows)
    labelled = sum(len(row["positions"]) for row in rows)
    label(model, batches[-1])  # warms up
    start, cpu_start = time.perf_counter(), time.process_time()
    for batch in batches:
        label(model, batch)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    line = {
        "bench": label.__name__,
        "batch_size": batch_size,
        "labelled_tokens_per_second": round(labelled / seconds, 1),
        "labelled_tokens_per_cpu_second": round(labelled / cpu_seconds, 1),
        "input_tokens_per_second": round(tokens / seconds, 1),
        "padding": round(1 - tokens / padded, 4),
        "seconds": round(seconds, 3),
        "sequences": len(rows),
        "batches": len(batches),
        **models.environment(),
    }
    print(json.dumps(line), flush=True)
    return labelled / seconds


if __name__ == "__main__":
    main()
