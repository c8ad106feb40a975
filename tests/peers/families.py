"""The part of golden/ that has one tiny model of every family, and what transformers and PEFT compute with it.

Called by make_golden.py. For a model NAME it writes
  * NAME/: random weights in bf16, so that they are the same numbers in f32 and in bf16;
  * NAME.expected.json: token ids of some sequences, greedy answers, how far transformers' own bf16 is from its f32;
  * NAME.expected.safetensors: `logits.<i>` [T, V] of sequence i; `bf16.<i>` the same by the model in bf16;
    `attention.<layer>` [H, rows, T]: probabilities of the longest sequence at the positions `attention_rows`;
    with an adapter `lora.<i>` logits, and `gradient/<PEFT name>` of LORA_OBJECTIVE;
  * lora-NAME/: that adapter.
And variants.expected.*: logits of some of these weights with other words in config.json.

Logits are stored once: that padding on the right, padding on the left, a cache, rows packed with others and PyTorch's fused
attention all give them is asserted here.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from golden_common import VERSIONS, generations, save_adapter, save_model, trainable, write_json

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

# f32 sums in another order; the largest seen is 2e-5.
SAME = 5e-5
LORA_OBJECTIVE = "mean over all sequences and positions t >= 1 of -log softmax(logits[t - 1])[ids[t]]"

SHAPE = dict(
    vocab_size=80,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA_SHAPE = dict(**SHAPE, intermediate_size=48, num_key_value_heads=2)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Of the four frequencies the first stays, the second is between, the others are divided by 8.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass
class Tiny:
    """One model, its random seed, its sequences, the adapter to put on it, and its config.json in older words."""

    name: str
    config: transformers.PreTrainedConfig
    seed: int
    lengths: tuple[int, ...] = (5, 11, 17)
    lora: dict | None = None
    # Standard deviation of the logits: with it most of the mass is on a few tokens, as in a trained model.
    logit_spread: float = 3.5
    # Keys to take out of the file and keys to put in, as published folders have them.
    older: tuple[tuple[str, ...], dict] = field(default=((), {}))


def tiny_models() -> list[Tiny]:
    neox = dict(**{**SHAPE, "num_attention_heads": 2}, intermediate_size=64, hidden_act="gelu")
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    opt = dict(**SHAPE, ffn_dim=64, dropout=0.0, activation_function="relu")
    return [
        Tiny(
            "tiny-llama3",
            transformers.LlamaConfig(
                **{**LLAMA_SHAPE, "max_position_embeddings": 256, "rms_norm_eps": 1e-5},
                rope_parameters=LLAMA3_ROPE,
                tie_word_embeddings=True,
            ),
            seed=31,
            lengths=(3, 11, 48),  # beyond the original context
            lora=dict(target_modules="all-linear", use_rslora=True),
            older=(
                ("rope_parameters",),
                {"rope_theta": 100.0, "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}},
            ),
        ),
        Tiny(
            "tiny-mistral",
            transformers.MistralConfig(
                **LLAMA_SHAPE, sliding_window=6, rms_norm_eps=1e-5, rope_parameters=ROPE, tie_word_embeddings=False
            ),
            seed=32,
            lora=dict(target_modules=["gate_proj", "up_proj", "down_proj"]),
        ),
        Tiny(
            "tiny-qwen2-untied",
            transformers.Qwen2Config(
                **LLAMA_SHAPE, rms_norm_eps=1e-6, rope_parameters=ROPE, tie_word_embeddings=False
            ),
            seed=39,
            lora=dict(target_modules=["q_proj", "k_proj", "v_proj"]),
        ),
        Tiny(
            "tiny-qwen3",
            transformers.Qwen3Config(
                **LLAMA_SHAPE, head_dim=10, rms_norm_eps=1e-6, rope_parameters=ROPE, tie_word_embeddings=True
            ),
            seed=33,
            lora=dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        ),
        Tiny(
            "tiny-qwen3-windows",  # the second of two layers has a window
            transformers.Qwen3Config(
                **LLAMA_SHAPE,
                head_dim=8,
                rms_norm_eps=1e-6,
                rope_parameters=ROPE,
                tie_word_embeddings=False,
                use_sliding_window=True,
                sliding_window=4,
                max_window_layers=1,
            ),
            seed=40,
            lora=dict(target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]),
        ),
        Tiny(
            "tiny-neox",
            transformers.GPTNeoXConfig(**neox, use_parallel_residual=True, rope_parameters=rotary),
            seed=34,
            lora=dict(target_modules=["query_key_value", "dense"]),
            older=(("rope_parameters",), {"rotary_emb_base": 10000, "rotary_pct": 0.25}),
        ),
        Tiny(
            "tiny-neox-sequential",
            transformers.GPTNeoXConfig(
                **neox, use_parallel_residual=False, rope_parameters={**rotary, "partial_rotary_factor": 0.5}
            ),
            seed=35,
        ),
        Tiny(
            "tiny-opt",
            transformers.OPTConfig(**opt, do_layer_norm_before=True, word_embed_proj_dim=32),
            seed=236,
            lora=dict(target_modules=["q_proj", "v_proj", "fc1"]),
        ),
        Tiny(
            "tiny-opt-post-norm",  # the shape of OPT-350m
            transformers.OPTConfig(**opt, do_layer_norm_before=False, word_embed_proj_dim=16),
            seed=37,
            logit_spread=1.75,  # the narrow embedding reads outputs of deviation 2
            lora=dict(target_modules="all-linear"),
        ),
        Tiny(
            "tiny-gpt2",
            transformers.GPT2Config(
                vocab_size=80,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                n_inner=64,
                activation_function="gelu_new",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            ),
            seed=38,
            lora=dict(target_modules=["c_attn"], fan_in_fan_out=True),
        ),
    ]


def randomise(model: torch.nn.Module, seed: int, logit_spread: float) -> None:
    """Draws all weights: matrices keep the scale of their input, norms and biases are visibly not 1 and 0."""
    rng = np.random.default_rng(seed)
    head = model.get_output_embeddings().weight
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            shape = tuple(parameter.shape)
            if "Norm" in type(module).__name__:
                values = rng.uniform(0.7, 1.3, shape) if name == "weight" else rng.normal(0.0, 0.2, shape)
            elif name == "bias":
                values = rng.normal(0.0, 0.3, shape)
            elif parameter is head:
                values = rng.normal(0.0, logit_spread / np.sqrt(shape[1]), shape)
            elif isinstance(module, torch.nn.Embedding):
                values = rng.normal(0.0, 1.0, shape)
            else:
                inputs = shape[0] if isinstance(module, Conv1D) else shape[1]
                values = rng.normal(0.0, 2.0 / np.sqrt(inputs), shape)
            parameter.data = torch.from_numpy(values.astype(np.float32)).to(parameter.dtype)


# ---------------------------------------------------------------------------------------------- logits


def padded(sequences: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    """A batch with its mask, and positions as `generate` makes them."""
    columns = max(map(len, sequences))
    ids, mask = [], []
    for one in sequences:
        padding = [0] * (columns - len(one))
        ids.append(padding + one if left else one + padding)
        mask.append(padding + [1] * len(one) if left else [1] * len(one) + padding)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return {"input_ids": torch.tensor(ids), "attention_mask": mask, "position_ids": positions}


def logits_of(model: torch.nn.Module, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Logits [T, V] of each sequence alone."""
    return [model(input_ids=torch.tensor([one])).logits[0] for one in sequences]


def logits_cached(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Three tokens at once, then one after the other."""
    cache, rows = transformers.DynamicCache(config=model.config), []
    for part in [ids[:3], *([token] for token in ids[3:])]:
        rows.append(model(input_ids=torch.tensor([part]), past_key_values=cache, use_cache=True).logits[0])
    return torch.cat(rows)


def assert_same(model: torch.nn.Module, path: Path, sequences: list[list[int]], alone: list[torch.Tensor]) -> None:
    """However the sequences are laid out, transformers computes the same logits."""

    def compare(what: str, found: list[torch.Tensor]) -> None:
        worst = max(float((a - b).abs().max()) for a, b in zip(alone, found, strict=True))
        assert worst < SAME, f"{path}: {what} differs by {worst}"

    lengths = [len(one) for one in sequences]
    right = model(**padded(sequences, left=False)).logits
    compare("padding on the right", [row[:length] for row, length in zip(right, lengths)])
    left = model(**padded(sequences, left=True)).logits
    compare("padding on the left", [row[-length:] for row, length in zip(left, lengths)])
    compare("a cache", [logits_cached(model, one) for one in sequences])
    if model.config.model_type != "opt":
        # Without a mask, transformers sees from positions that begin again where the next sequence is; OPT does not look.
        positions = torch.tensor([[position for length in lengths for position in range(length)]])
        packed = model(input_ids=torch.tensor([sum(sequences, [])]), position_ids=positions, use_cache=False)
        compare("packed", list(packed.logits[0].split(lengths)))
    fused = load(path, torch.float32, "sdpa")
    compare("fused attention", logits_of(fused, sequences))


def load(path: Path, dtype: torch.dtype, attention: str, **options) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention, local_files_only=True, **options
    ).eval()


def write_older(tiny: Tiny, path: Path, sequences: list[list[int]], alone: list[torch.Tensor]) -> None:
    """NAME.older-config.json: the same model in the words of published folders."""
    value = json.loads((path / "config.json").read_text())
    taken, put = tiny.older
    value = {key: old for key, old in value.items() if key not in taken} | put
    value["torch_dtype"] = value.pop("dtype")
    file = path.with_name(f"{tiny.name}.older-config.json")
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    found = logits_of(load(path, torch.float32, "eager", config=transformers.AutoConfig.from_pretrained(file)), sequences)
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True)), f"{file}: other logits"


# ---------------------------------------------------------------------------------------------- LoRA


def lora_of(tiny: Tiny, path: Path, sequences: list[list[int]], tensors: dict[str, torch.Tensor]) -> dict:
    """r = 2, alpha = 3; A and B both drawn, as after some training."""
    base = load(path, torch.float32, "eager")
    settings = peft.LoraConfig(r=2, lora_alpha=3, lora_dropout=0.0, task_type="CAUSAL_LM", **tiny.lora)
    model = peft.get_peft_model(base, settings)
    rng = np.random.default_rng(tiny.seed + 100)
    for _, parameter in trainable(model):
        parameter.data = torch.from_numpy(rng.normal(0.0, 0.15, tuple(parameter.shape)).astype(np.float32))
    folder = path.with_name(f"lora-{tiny.name}")
    save_adapter(model, folder)
    model = peft.PeftModel.from_pretrained(load(path, torch.float32, "eager"), folder, is_trainable=True).eval()
    logits = logits_of(model, sequences)
    tensors |= {f"lora.{i}": one.detach().contiguous() for i, one in enumerate(logits)}
    golds = torch.tensor([token for one in sequences for token in one[1:]])
    loss = cross_entropy(torch.cat([one[:-1] for one in logits]), golds)
    loss.backward()
    tensors |= {f"gradient/{name}": p.grad.contiguous() for name, p in trainable(model)}
    return {"objective": LORA_OBJECTIVE, "loss": loss.item()}


# ---------------------------------------------------------------------------------------------- files


def expected_of(tiny: Tiny, path: Path, model: torch.nn.Module) -> None:
    """NAME.expected.json and NAME.expected.safetensors."""
    rng = np.random.default_rng(tiny.seed + 200)
    sequences = [rng.integers(3, model.config.vocab_size, length).tolist() for length in tiny.lengths]
    with torch.no_grad():
        alone = logits_of(model, sequences)
        assert_same(model, path, sequences, alone)
        if tiny.older[1]:
            write_older(tiny, path, sequences, alone)
        coarse = logits_of(load(path, torch.bfloat16, "eager"), sequences)
        longest = sequences[-1]
        attention_rows = [0, len(longest) // 2, len(longest) - 1]
        attentions = model(input_ids=torch.tensor([longest]), output_attentions=True).attentions
    tensors = {f"logits.{i}": one for i, one in enumerate(alone)}
    tensors |= {f"bf16.{i}": one for i, one in enumerate(coarse)}
    tensors |= {f"attention.{i}": one[0][:, attention_rows].contiguous() for i, one in enumerate(attentions)}
    differences = torch.cat([fine - rough.float() for fine, rough in zip(alone, coarse, strict=True)])
    expected = {
        "versions": VERSIONS,
        "sequences": sequences,
        "attention_rows": attention_rows,
        # Between transformers' bf16 and its f32.
        "bf16_largest_difference": float(differences.abs().max()),
        "bf16_root_mean_square_difference": float(differences.square().mean().sqrt()),
        "generations": generations(model, rng, (1, 4, 9)),
    }
    if tiny.lora:
        expected["lora"] = lora_of(tiny, path, sequences, tensors)
    write_json(path.with_name(f"{tiny.name}.expected.json"), expected)
    save_file(tensors, path.with_name(f"{tiny.name}.expected.safetensors"))


# What of a configuration changes the numbers but not the weights: model, keys to take out and keys to put in.
VARIANTS = {
    "linear-rope": ("tiny-llama3", ["rope_parameters"], {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "no-window": ("tiny-mistral", [], {"sliding_window": None}),
    "gelu-fast": ("tiny-neox", [], {"hidden_act": "gelu_fast"}),
    "relu": ("tiny-gpt2", [], {"activation_function": "relu"}),
    "gelu": ("tiny-opt", [], {"activation_function": "gelu"}),
}


def make_variants(out: Path) -> None:
    """variants.expected.json: configurations by name; variants.expected.safetensors: logits [T, V] by name."""
    configurations, tensors = {}, {}
    ids = np.random.default_rng(41).integers(3, SHAPE["vocab_size"], 14).tolist()
    for name, (base, taken, put) in VARIANTS.items():
        value = json.loads((out / base / "config.json").read_text())
        value = {key: old for key, old in value.items() if key not in taken} | put
        configurations[name] = {"base": base, "config": value}
        config = transformers.AutoConfig.for_model(**value)
        with torch.no_grad():
            tensors[name], usual = (
                logits_of(load(out / base, torch.float32, "eager", **options), [ids])[0]
                for options in ({"config": config}, {})
            )
        assert float((tensors[name] - usual).abs().max()) > SAME, f"{name} changes nothing"
    write_json(out / "variants.expected.json", {"input_ids": ids, "variants": configurations})
    save_file(tensors, out / "variants.expected.safetensors")


def make(out: Path) -> None:
    """All families below `out`, a relative path: it is written into the adapters."""
    for tiny in tiny_models():
        model = transformers.AutoModelForCausalLM.from_config(tiny.config).to(torch.bfloat16)
        randomise(model, tiny.seed, tiny.logit_spread)
        path = out / tiny.name
        expected_of(tiny, path, save_model(model, path))
    make_variants(out)
