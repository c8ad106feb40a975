"""Speed and memory of distilling with PEFT on a CPU: bench_student.py MODEL_DIR LABELS_DIR --steps N. One JSON line.

Legend: B batch, T tokens, K entries (padded to the most), V vocabulary.

The usual way: shuffled batches of 8, padded to their longest; logits of every position [B, T, V] and their
log_softmax; L = CE + alpha * KL with one bucket for what the labels cut off; LoRA by PEFT, AdamW, clipping at 1.
"""

import argparse
import json
import time
from pathlib import Path

import models
import numpy as np
import peft
import shards
import torch

DEFAULT_ADAPTER = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def collate(batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Ids and mask [B, T]; labels [B, T-1] and [B, T-1, K], index t-1 for position t; unused entries at -inf."""
    ids = models.right_pad([row["input_ids"] for row in batch])
    mask = models.right_pad([np.ones_like(row["input_ids"]) for row in batch])
    entries = max(int(row["counts"].max()) for row in batch)
    shape = (len(batch), ids.shape[1] - 1)
    token_ids = torch.zeros(*shape, entries, dtype=torch.int64)
    log_probs = torch.full((*shape, entries), -torch.inf)
    tail, labelled = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for b, row in enumerate(batch):
        slots = torch.as_tensor(row["positions"], dtype=torch.int64) - 1
        labelled[b, slots] = True
        tail[b, slots] = torch.from_numpy(row["tail_log_mass"])
        start = 0
        for slot, count in zip(slots, row["counts"]):
            token_ids[b, slot, :count] = torch.from_numpy(row["token_ids"][start : start + count].astype(np.int64))
            log_probs[b, slot, :count] = torch.from_numpy(row["log_probs"][start : start + count])
            start += count
    return {
        "ids": ids,
        "mask": mask,
        "token_ids": token_ids,
        "log_probs": log_probs,
        "tail": tail,
        "labelled": labelled,
    }


def distillation_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], alpha: float) -> torch.Tensor:
    """CE + alpha * KL, mean over labelled positions, T = 1."""
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1]
    log_q = torch.log_softmax(logits.float(), dim=-1)
    gold = log_q.gather(-1, batch["ids"][:, 1:, None]).squeeze(-1)
    log_q_kept = log_q.gather(-1, batch["token_ids"])
    p, kept = batch["log_probs"].exp(), batch["log_probs"].isfinite()
    kl = torch.where(kept, p * (batch["log_probs"] - log_q_kept), 0.0).sum(-1)
    q_tail = 1.0 - torch.where(kept, log_q_kept.exp(), 0.0).sum(-1)
    cut = batch["tail"].isfinite()
    tail = torch.where(cut, batch["tail"], 0.0)
    kl = kl + torch.where(cut, tail.exp() * (tail - q_tail.clamp(min=1e-8).log()), 0.0)
    per_position = -gold + alpha * kl
    return torch.where(batch["labelled"], per_position, 0.0).sum() / batch["labelled"].sum()


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
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--limit", type=int, help="sequences to choose from")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    rows = list(shards.rows(arguments.labels_dir, arguments.limit))
    model = attach(models.load(arguments.model_dir), arguments.adapter_config).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=1e-2)
    loaded_mib = models.peak_rss_mib()

    rng = np.random.default_rng(arguments.seed)
    order = np.concatenate(
        [rng.permutation(len(rows)) for _ in range((arguments.steps + 1) * arguments.batch_size // len(rows) + 1)]
    )
    losses, tokens, labelled, padded, start = [], 0, 0, 0, 0.0
    for step in range(arguments.steps + 1):  # the first one warms up
        if step == 1:
            tokens, labelled, padded, start = 0, 0, 0, time.perf_counter()
        chosen = order[step * arguments.batch_size : (step + 1) * arguments.batch_size]
        batch = collate([rows[i] for i in chosen])
        loss = distillation_loss(model, batch, arguments.alpha)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        losses.append(loss.item())
        tokens, labelled = tokens + int(batch["mask"].sum()), labelled + int(batch["labelled"].sum())
        padded += batch["ids"].numel()
    seconds = time.perf_counter() - start
    line = {
        "bench": "student",
        "variant": "usual",
        "input_tokens_per_second": round(tokens / seconds, 1),
        "labelled_tokens_per_second": round(labelled / seconds, 1),
        "padding": round(1 - tokens / padded, 4),
        "seconds": round(seconds, 3),
        "steps": arguments.steps,
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
