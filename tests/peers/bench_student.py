"""Speed and memory of distilling with PEFT on a CPU: bench_student.py MODEL_DIR LABELS_DIR [--sorted] [--checkpointing]
[--whole]. One JSON line.

Legend: B batch, T tokens, K entries (padded to the most), R rows (labelled positions), D model width, V vocabulary.

One pass over the labels after a step that warms up: L = CE + alpha * KL with one bucket for what the labels cut off; LoRA by PEFT, AdamW,
clipping at 1.

usual:    batches in the order of the data, padded to their longest, with a mask; logits of every position [B, T, V] and their log_softmax.
--sorted: the best plain PyTorch does: sequences sorted by length, batches by a token budget, no mask (right padding cannot be seen by
          earlier tokens), head and loss on labelled rows only, ROWS_PER_CHUNK at a time, whose gradient by the hidden states is taken at
          once, so that no chunk's logits are kept or computed again.
--checkpointing: transformers' gradient checkpointing: a layer's activations are computed again.
--whole:  all weights learn, without PEFT.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import peft
import shards
import torch
from bench_label import batches_sorted, batches_usual

ROWS_PER_CHUNK = 256
DEFAULT_ADAPTER = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def collate(batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Ids and mask [B, T]; of each row its place in the batch [R, 2], kept entries [R, K] (unused ones at -inf) and tail [R]."""
    counts = np.concatenate([row["counts"] for row in batch])
    entries = torch.arange(int(counts.max())) < torch.from_numpy(counts.astype(np.int64))[:, None]
    token_ids = torch.zeros(entries.shape, dtype=torch.int64)
    log_probs = torch.full(entries.shape, -torch.inf)
    token_ids[entries] = torch.from_numpy(np.concatenate([row["token_ids"] for row in batch]).astype(np.int64))
    log_probs[entries] = torch.from_numpy(np.concatenate([row["log_probs"] for row in batch]))
    places = [np.stack([np.full(len(row["positions"]), b), row["positions"]], 1) for b, row in enumerate(batch)]
    return {
        "ids": models.right_pad([row["input_ids"] for row in batch]),
        "mask": models.right_pad([np.ones_like(row["input_ids"]) for row in batch]),
        "places": torch.from_numpy(np.concatenate(places).astype(np.int64)),
        "token_ids": token_ids,
        "log_probs": log_probs,
        "tail": torch.from_numpy(np.concatenate([row["tail_log_mass"] for row in batch])),
    }


def row_losses(log_q: torch.Tensor, gold: torch.Tensor, kept: dict[str, torch.Tensor], alpha: float) -> torch.Tensor:
    """CE + alpha * KL of each row from log-probabilities [R, V], T = 1."""
    log_q_kept = log_q.gather(-1, kept["token_ids"])
    p, present = kept["log_probs"].exp(), kept["log_probs"].isfinite()
    kl = torch.where(present, p * (kept["log_probs"] - log_q_kept), 0.0).sum(-1)
    q_tail = 1.0 - torch.where(present, log_q_kept.exp(), 0.0).sum(-1)
    cut = kept["tail"].isfinite()
    tail = torch.where(cut, kept["tail"], 0.0)
    kl = kl + torch.where(cut, tail.exp() * (tail - q_tail.clamp(min=1e-8).log()), 0.0)
    return alpha * kl - log_q.gather(-1, gold).squeeze(-1)


def of_rows(batch: dict[str, torch.Tensor], start: int, end: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gold tokens and kept entries of some rows."""
    sequence, position = batch["places"][start:end].unbind(1)
    return batch["ids"][sequence, position, None], {key: batch[key][start:end] for key in ("token_ids", "log_probs", "tail")}


def backward_usual(model: torch.nn.Module, batch: dict[str, torch.Tensor], alpha: float) -> float:
    """The mean loss over the rows; gradients are in the parameters."""
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False).logits
    log_q = torch.log_softmax(logits.float(), dim=-1)
    sequence, position = batch["places"].unbind(1)
    gold, kept = of_rows(batch, 0, len(sequence))
    loss = row_losses(log_q[sequence, position - 1], gold, kept, alpha).mean()
    loss.backward()
    return loss.item()


def backward_sorted(model: torch.nn.Module, batch: dict[str, torch.Tensor], alpha: float) -> float:
    """As above, head and loss in chunks of the rows."""
    inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
    head = inner.lm_head.weight
    of_head = torch.zeros_like(head) if head.requires_grad else None
    sequence, position = batch["places"].unbind(1)
    hidden = inner.model(input_ids=batch["ids"], use_cache=False).last_hidden_state[sequence, position - 1]
    rows, total, gradients = hidden.shape[0], 0.0, []
    for start in range(0, rows, ROWS_PER_CHUNK):
        chunk = hidden[start : start + ROWS_PER_CHUNK].detach().requires_grad_()
        log_q = torch.log_softmax(inner.lm_head(chunk).float(), dim=-1)
        gold, kept = of_rows(batch, start, start + ROWS_PER_CHUNK)
        loss = row_losses(log_q, gold, kept, alpha).sum() / rows
        total += loss.item()
        found = torch.autograd.grad(loss, [chunk] if of_head is None else [chunk, head])
        gradients.append(found[0])
        if of_head is not None:
            of_head += found[1]
        del log_q, loss, found
    hidden.backward(torch.cat(gradients))
    if of_head is not None:
        head.grad = of_head if head.grad is None else head.grad.add_(of_head)
    return total


def attach(model: torch.nn.Module, adapter_config: Path | None) -> peft.PeftModel:
    """LoRA from the fields r, lora_alpha, lora_dropout and target_modules of an adapter_config.json."""
    given = json.loads(adapter_config.read_text()) if adapter_config else {}
    fields = {name: given.get(name, default) for name, default in DEFAULT_ADAPTER.items()}
    return peft.get_peft_model(model, peft.LoraConfig(**fields, task_type="CAUSAL_LM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("labels_dir", type=Path)
    parser.add_argument("--adapter-config", type=Path, help="an adapter_config.json; default: r=8 on q_proj, v_proj")
    parser.add_argument("--sorted", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--whole", action="store_true", help="all weights learn")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch (usual)")
    parser.add_argument("--max-tokens-per-batch", type=int, default=2048, help="padded tokens per batch (--sorted)")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    rows = list(shards.rows(arguments.labels_dir))
    if arguments.sorted:
        batches = list(batches_sorted(rows, arguments.max_tokens_per_batch))
        random.Random(arguments.seed).shuffle(batches)
        backward: Callable = backward_sorted
    else:
        batches, backward = list(batches_usual(rows, arguments.batch_size)), backward_usual
    model = models.load(arguments.model_dir)
    if arguments.whole:
        model.requires_grad_(True)
    else:
        model = attach(model, arguments.adapter_config)
    model.train()
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=1e-2)
    loaded_mib = models.peak_rss_mib()

    def step(batch: list[dict[str, np.ndarray]]) -> tuple[float, int]:
        """The loss, and the tokens with their padding."""
        collated = collate(batch)
        adamw.zero_grad()
        loss = backward(model, collated, arguments.alpha)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        return loss, collated["ids"].numel()

    losses = [step(batches[-1])[0]]  # warms up
    padded, start, cpu_start = 0, time.perf_counter(), time.process_time()
    for batch in batches:
        loss, its_tokens = step(batch)
        losses.append(loss)
        padded += its_tokens
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    tokens = sum(len(row["input_ids"]) for row in rows)
    line = {
        "bench": backward.__name__,
        "checkpointing": arguments.checkpointing,
        "batch_size": arguments.max_tokens_per_batch if arguments.sorted else arguments.batch_size,
        "input_tokens_per_second": round(tokens / seconds, 1),
        "input_tokens_per_cpu_second": round(tokens / cpu_seconds, 1),
        "padding": round(1 - tokens / padded, 4),
        "seconds": round(seconds, 3),
        "steps": len(batches),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "trainable_parameters": sum(p.numel() for p in parameters),
        "rss_loaded_mib": loaded_mib,
        **models.environment(),
        "peft": peft.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
