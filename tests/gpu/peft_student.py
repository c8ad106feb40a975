#!/usr/bin/env python3
"""Steps of distillation with PEFT beside `make gpu`: LoRA r=8 on q_proj and v_proj over random weights in bf16, sdpa, top 64 labels.

Legend: B batch, T tokens, N rows (B (T - 1)), K kept entries, V vocabulary.

usual: a batch with its mask, logits of every position [B, T, V], their log_softmax in f32, CE + KL with a bucket for what the labels cut off.
best:  no mask; the head and the loss by chunks of rows, whose gradient by the hidden states is taken at once, so that no [N, V] is kept;
       without and with gradient checkpointing.
Liger: as `best`, with Liger's kernels of norms, rotations and feed-forward parts, where `liger_kernel` can be imported.

Jobs: {config, sequences, tokens}; see peer.py for the rest.
"""

import gc

import peer
import torch
import transformers

try:
    import peft
except ImportError as error:
    peer.absent(f"not there: {error}")

TOP_K = 64
ROWS_PER_CHUNK = 1024
WARM, STEPS = 2, 5


def labels(bench, ids, vocabulary):
    """A teacher's: entries [B, T - 1, K], each token once, and the log mass of the rest [B, T - 1]."""
    rows = (ids.shape[0], ids.shape[1] - 1)
    entries = min(TOP_K, vocabulary)
    first = torch.randint(vocabulary, (*rows, 1), device=bench.device)
    token_ids = (first + torch.arange(entries, device=bench.device) * (vocabulary // entries)) % vocabulary
    kept = torch.log_softmax(torch.randn(*rows, entries, device=bench.device), dim=-1)
    return token_ids, kept + torch.tensor(0.9).log().item(), torch.full(rows, torch.tensor(0.1).log().item(), device=bench.device)


def row_losses(logits, gold, token_ids, log_probs, tail):
    """CE + KL of each row; logits [..., V] in f32."""
    log_q = torch.log_softmax(logits, dim=-1)
    ce = -log_q.gather(-1, gold[..., None]).squeeze(-1)
    log_q_kept = log_q.gather(-1, token_ids)
    kl = (log_probs.exp() * (log_probs - log_q_kept)).sum(-1)
    q_tail = 1.0 - log_q_kept.exp().sum(-1)
    return ce + kl + tail.exp() * (tail - q_tail.clamp(min=1e-8).log())


def backward_usual(model, ids, targets):
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1].float()
    loss = row_losses(logits, ids[:, 1:], *targets).mean()
    loss.backward()
    return loss.detach()


def backward_best(model, ids, targets):
    base = model.get_base_model()
    hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    leaf = rows.detach().requires_grad_()
    gold = ids[:, 1:].reshape(-1)
    flat = [part.reshape(len(gold), *part.shape[2:]) for part in targets]
    total = 0.0
    for parts in zip(*(part.split(ROWS_PER_CHUNK) for part in (leaf, gold, *flat))):
        loss = row_losses(base.lm_head(parts[0]).float(), *parts[1:]).sum() / len(gold)
        loss.backward()
        total = total + loss.detach()
    rows.backward(leaf.grad)
    return total


def measure(bench, config, backward, checkpointing):
    torch.manual_seed(10)
    model = bench.model(transformers.AutoModelForCausalLM, config)
    lora = peft.LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    shape = (bench.jobs["sequences"], bench.jobs["tokens"])
    ids = torch.randint(config["vocab_size"], shape, device=bench.device)
    targets = labels(bench, ids, config["vocab_size"])
    losses = []

    def step():
        adamw.zero_grad()
        loss = backward(model, ids, targets)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        losses.append(loss.item())

    for _ in range(WARM):
        step()
    seconds = bench.timed(lambda: [step() for _ in range(STEPS)])
    return {
        "tokens_per_second": STEPS * ids.numel() / seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "peft": peft.__version__,
    }


def with_liger():
    """Whether the model's parts are now Liger's; norms and rotations stay so for all models made after."""
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2
    except ImportError as error:
        return str(error)
    apply_liger_kernel_to_qwen2(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
    return None


def main():
    bench = peer.Bench()
    ways = [
        ("best, checkpointing", backward_best, True),
        ("best", backward_best, False),
        ("usual", backward_usual, False),
    ]
    for key, backward, checkpointing in ways:
        bench.measure(key, lambda: measure(bench, bench.jobs["config"], backward, checkpointing))
        gc.collect()
    missing = with_liger() if bench.device.type == "cuda" else "Liger's kernels need a GPU"
    for key, checkpointing in (("best, checkpointing, Liger", True), ("best, Liger", False)):
        if missing:
            bench.keep(key, {"problem": f"not run: {missing}"})
        else:
            bench.measure(key, lambda: measure(bench, bench.jobs["config"], backward_best, checkpointing))


main()
