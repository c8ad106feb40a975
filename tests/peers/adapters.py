"""The part of golden/ that has adapters of every kind that PEFT writes: which modules, which ranks, what besides.

Called by make_golden.py after families.py. For an adapter NAME of CASES it writes
  * adapters/NAME/: as PEFT saves it, over one of the tiny models;
  * in adapters.expected.json: its base, and whether PEFT can merge it;
  * in adapters.expected.safetensors: `NAME/logits` [T, V] with the adapter, not merged; and of each tensor TENSOR that
    PEFT's `merge_and_unload` changed `NAME/merged/TENSOR`: SAMPLES of its numbers, as `sampled` takes them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from families import load
from golden_common import VERSIONS, save_adapter, write_json

import numpy as np
import peft
import torch
from safetensors.torch import save_file

SAMPLES = 24
# Of biases and of whole tensors that are saved, and of DoRA's magnitudes as a part of them.
SPREAD = 0.15
MAGNITUDE_SPREAD = 0.2
# An adapter that moves no logit by so much proves nothing.
LEAST_EFFECT = 0.05


@dataclass
class Case:
    """An adapter: its base among the tiny models and what `peft.LoraConfig` is told."""

    base: str
    settings: dict
    mergeable: bool = True
    # Where one of two tied tables changes, PEFT merges into both and so into another model than it computes.
    merges_into_both: bool = False
    rank: int = 2
    extra: dict = field(default_factory=dict)


QWEN2, QWEN3, GPT2, OPT, NEOX = "tiny-qwen2-untied", "tiny-qwen3", "tiny-gpt2", "tiny-opt-post-norm", "tiny-neox"
ATTENTION = ["q_proj", "v_proj"]
CASES = {
    # Which modules.
    "regex": Case(QWEN3, dict(target_modules=r".*\.self_attn\.(q|v)_proj")),
    "look-ahead": Case(QWEN3, dict(target_modules=r"^(?!.*layers\.1\.).*\.(q_proj|up_proj)$")),
    "unused-targets": Case(QWEN3, dict(target_modules=["q_proj", "query_key_value", "W_pack"])),
    "one-layer": Case(QWEN3, dict(target_modules=ATTENTION, layers_to_transform=1)),
    "layers-pattern": Case(GPT2, dict(target_modules=["c_attn"], layers_to_transform=[0], layers_pattern="h")),
    "exclude": Case(QWEN3, dict(target_modules="all-linear", exclude_modules=["k_proj", "layers.0.mlp.down_proj"])),
    "exclude-regex": Case(QWEN3, dict(target_modules=ATTENTION, exclude_modules=r".*layers\.0\..*")),
    # Which rank and scale.
    "patterns": Case(
        QWEN3,
        dict(
            target_modules=[*ATTENTION, "down_proj"],
            # Two match the same module: the first in the file decides.
            rank_pattern={r"^model\.layers\.1\.self_attn\.v_proj": 4, "v_proj": 3, "(down|up)_proj": 1},
            alpha_pattern={"layers.0.self_attn.q_proj": 7, "down_proj": 2},
        ),
    ),
    "patterns-rslora": Case(QWEN3, dict(target_modules=ATTENTION, use_rslora=True, rank_pattern={"v_proj": 5})),
    # DoRA.
    "dora": Case(QWEN2, dict(target_modules=[*ATTENTION, "up_proj"], use_dora=True)),
    "dora-patterns": Case(
        QWEN3, dict(target_modules=ATTENTION, use_dora=True, use_rslora=True, alpha_pattern={"v_proj": 7})
    ),
    "dora-transposed": Case(GPT2, dict(target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
    "dora-tables": Case(QWEN2, dict(target_modules=["q_proj", "embed_tokens", "lm_head"], use_dora=True)),
    # Embedding and head.
    "tables": Case(QWEN2, dict(target_modules=["embed_tokens", "lm_head"])),
    "embedding-tied": Case(QWEN3, dict(target_modules=["embed_tokens", "q_proj"]), merges_into_both=True),
    "head-tied": Case(QWEN3, dict(target_modules=["lm_head", "q_proj"]), merges_into_both=True),
    "positions": Case(GPT2, dict(target_modules=["wpe", "c_attn"])),
    "head-neox": Case(NEOX, dict(target_modules=["embed_out", "dense"])),
    # Whole tensors.
    "saved": Case(QWEN2, dict(target_modules=ATTENTION, modules_to_save=["embed_tokens", "lm_head", "norm"])),
    "saved-embedding-tied": Case(QWEN3, dict(target_modules=ATTENTION, modules_to_save=["embed_tokens"])),
    "saved-head-tied": Case(QWEN3, dict(target_modules=ATTENTION, modules_to_save=["lm_head"])),
    "saved-both-tied": Case(GPT2, dict(target_modules=["c_attn"], modules_to_save=["wte", "lm_head", "ln_f"])),
    "saved-still-tied": Case(
        QWEN3, dict(target_modules=ATTENTION, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    ),
    "saved-part": Case(QWEN3, dict(target_modules=ATTENTION, modules_to_save=["mlp", "q_norm", "k_proj"])),
    "saved-transposed": Case(GPT2, dict(target_modules=["c_attn"], modules_to_save=["mlp"])),
    "saved-norms": Case(OPT, dict(target_modules=["fc1", "project_in"], modules_to_save=["final_layer_norm"])),
    "biases": Case(QWEN2, dict(target_modules=ATTENTION, bias="all")),
    "biases-of-targets": Case(GPT2, dict(target_modules=["c_attn"], bias="lora_only")),
    "lora-bias": Case(QWEN2, dict(target_modules=["q_proj", "k_proj"], lora_bias=True)),
    "lora-bias-unmergeable": Case(QWEN3, dict(target_modules=["q_proj", "o_proj"], lora_bias=True), mergeable=False),
    # Ways to begin that leave the base alone.
    "orthogonal": Case(QWEN3, dict(target_modules=ATTENTION, init_lora_weights="orthogonal")),
    "mica": Case(QWEN3, dict(target_modules=ATTENTION, init_lora_weights="mica")),
}


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """SAMPLES numbers, or all of a shorter tensor: the i-th is at `i * elements // SAMPLES`."""
    flat = tensor.detach().flatten()
    count = min(SAMPLES, len(flat))
    return flat[[i * len(flat) // count for i in range(count)]].clone()


def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def draw(model: peft.PeftModel, seed: int) -> None:
    """Values as after some training: of everything that learns."""
    rng = np.random.default_rng(seed)
    drawn = set()
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
        wanted = parameter.requires_grad or ("lora_" in name and "magnitude" not in name)
        if not wanted or id(parameter) in drawn:
            continue
        drawn.add(id(parameter))
        noise = torch.from_numpy(rng.normal(0.0, SPREAD, tuple(parameter.shape)).astype(np.float32))
        if "magnitude" in name:
            parameter.data = parameter.data * (1.0 + MAGNITUDE_SPREAD * noise / SPREAD)
        elif "lora_" in name:
            parameter.data = noise
        else:
            parameter.data = parameter.data + noise


def make(out: Path) -> None:
    """All cases below `out`, a relative path: it is written into the adapters."""
    tensors, facts = {}, {}
    ids = np.random.default_rng(51).integers(3, 80, 13).tolist()
    for seed, (name, case) in enumerate(CASES.items(), start=500):
        path, folder = out / case.base, out / "adapters" / name
        config = peft.LoraConfig(r=case.rank, lora_alpha=3, lora_dropout=0.0, task_type="CAUSAL_LM", **case.settings)
        model = peft.get_peft_model(load(path, torch.float32, "eager"), config)
        draw(model, seed)
        save_adapter(model, folder)
        base = load(path, torch.float32, "eager")
        before = {key: value.clone() for key, value in base.state_dict().items()}
        plain = logits_of(base, ids)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        logits = logits_of(model, ids)
        effect = float((logits - plain).abs().max())
        assert effect > LEAST_EFFECT, f"{name}: logits move by {effect} only"
        tensors[f"{name}/logits"] = logits.contiguous()
        facts[name] = {"base": case.base, "mergeable": case.mergeable}
        if not case.mergeable:
            continue
        merged = model.merge_and_unload().eval()
        apart = float((logits_of(merged, ids) - logits).abs().max())
        assert (apart > LEAST_EFFECT) == case.merges_into_both, f"{name}: merged, logits move by {apart}"
        if case.merges_into_both:
            continue
        after = merged.state_dict()
        changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
        tensors |= {f"{name}/merged/{key}": sampled(after[key]) for key in changed}
        facts[name]["tied"] = bool(merged.config.tie_word_embeddings)
    write_json(out / "adapters.expected.json", {"versions": VERSIONS, "input_ids": ids, "adapters": facts})
    save_file(tensors, out / "adapters.expected.safetensors")
