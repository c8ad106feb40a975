"""The part of golden/ about what config.json says of positions and windows, and about heads that are tied and stored all the same.

Called by make_golden.py. Weights are those of families.py; for each variant it writes
  * positions.expected.json: the model whose weights they are, config.json, and a greedy answer of `generate` with its cache;
  * positions.expected.safetensors: `<variant>.<i>`, logits [rows, V] of sequence i at the positions `rows[i]`;
  * heads.expected.safetensors: logits [T, V] of the shorter sequence, by the files that `head_files` makes, as the test does.

The longer sequence is three times as long as the context that the scalings begin with. Every sequence is run alone by a model that
was loaded for it: some scalings go by the longest sequence of a batch, and remember the longest that they have seen.
"""

import json
import tempfile
from pathlib import Path

from golden_common import MIN_GREEDY_GAP, NEW_TOKENS, VERSIONS, write_json

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

SAME = 5e-5
LENGTHS = (12, 48)
ROWS = ((3, 10), (15, 16, 17, 31, 46))
PROMPT = 12
SHORT = [1.0, 1.1, 1.2, 1.3]
LONG = [2.0, 2.5, 3.0, 4.5]

# ---------------------------------------------------------------------------------------------- configurations


def llama(scaling: dict | None = None, parameters: dict | None = None, **top) -> tuple[str, dict]:
    value = {"max_position_embeddings": 64, "rope_theta": 100.0, "rope_parameters": parameters} | top
    return "tiny-llama3", value | ({} if scaling is None else {"rope_scaling": scaling})


def yarn(**more) -> dict:
    return {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16} | more


def longrope(**more) -> dict:
    return {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16} | more


def qwen2(**top) -> tuple[str, dict]:
    return "tiny-qwen2-untied", {"layer_types": None, "use_sliding_window": True, "sliding_window": 5} | top


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LAYER_TYPES = ["sliding_attention", "full_attention"]
OLDER_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

# Name: the model with the weights, and what its config.json has other than it.
VARIANTS = {
    "yarn": llama(OLDER_YARN),
    "yarn-history": llama(OLDER_YARN | {"finetuned": True}),
    "yarn-mscale": llama(parameters=yarn(mscale=0.7, mscale_all_dim=1.3)),
    "yarn-one-mscale": llama(parameters=yarn(mscale=0.7)),
    "yarn-attention-factor": llama(parameters=yarn(attention_factor=1.3, beta_fast=4, beta_slow=0.5)),
    "yarn-betas-of-zero": llama(parameters=yarn(beta_fast=0, beta_slow=0)),
    "yarn-not-truncated": llama(parameters=yarn(truncate=False)),
    "yarn-truncate-null": llama(parameters=yarn(truncate=None)),
    "yarn-factor-null": llama(parameters=yarn(factor=None)),
    "yarn-original-at-top": llama(yarn(original_max_position_embeddings=32), original_max_position_embeddings=16),
    "yarn-original-left-out": llama({"type": "yarn", "factor": 4.0}, max_position_embeddings=16),
    "dynamic": llama({"type": "dynamic", "factor": 3.0}, max_position_embeddings=16),
    "dynamic-whole-factor": llama(parameters={"rope_type": "dynamic", "factor": 2}, max_position_embeddings=24),
    "longrope": llama(longrope()),
    "longrope-factor": llama(parameters=longrope(factor=8.0)),
    "longrope-attention-factor": llama(longrope(attention_factor=1.2)),
    "longrope-original-at-top": llama(longrope(original_max_position_embeddings=64), original_max_position_embeddings=16),
    "linear": llama(parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}),
    "llama3": llama({"type": "llama3", "original_max_position_embeddings": 16} | LLAMA3),
    "llama3-original-left-out": llama({"rope_type": "llama3"} | LLAMA3, max_position_embeddings=16),
    "proportional": llama(parameters={"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}),
    "two-types": llama({"type": "linear", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "scaling-beside-parameters": llama(
        {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 1000.0}
    ),
    "empty-scaling-beside-parameters": llama({}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}),
    "factor-without-type": llama({"factor": 4.0}),
    "part-of-plain-angles": llama(partial_rotary_factor=0.5),
    "part-of-plain-angles-inside": llama(parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
    "windows-of-a-llama": llama(sliding_window=4, use_sliding_window=True),
    "qwen2-no-layer-slides": qwen2(max_window_layers=2),
    "qwen2-usual-full-layers": qwen2(),
    "qwen2-null-window": qwen2(sliding_window=None, max_window_layers=0),
    "qwen2-not-used": qwen2(use_sliding_window=False, max_window_layers=0),
    "qwen2-last-layer-slides": qwen2(max_window_layers=1),
    "qwen2-all-slide": qwen2(max_window_layers=0),
    "qwen2-layer-types": qwen2(max_window_layers=2, layer_types=LAYER_TYPES),
    "qwen2-yarn-and-windows": qwen2(max_window_layers=1, rope_parameters=None, rope_scaling=OLDER_YARN),
    "qwen3-layer-types": ("tiny-qwen3", {"layer_types": LAYER_TYPES, "use_sliding_window": True, "sliding_window": 7}),
    "qwen3-dynamic": (
        "tiny-qwen3",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}, "max_position_embeddings": 16},
    ),
    "mistral-layer-types": ("tiny-mistral", {"layer_types": LAYER_TYPES}),
    "mistral-older-layer-types": ("tiny-mistral", {"layer_types": ["attention", "sliding_attention"]}),
    "mistral-longrope": ("tiny-mistral", {"rope_parameters": None, "rope_scaling": longrope()}),
    "neox-linear": ("tiny-neox", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}, "rotary_pct": 0.5}),
    "neox-yarn": ("tiny-neox", {"rope_parameters": None, "rope_scaling": OLDER_YARN, "rotary_pct": 0.5, "rotary_emb_base": 100}),
    "neox-dynamic": (
        "tiny-neox",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "rotary_pct": 1.0, "max_position_embeddings": 16},
    ),
    "neox-longrope": ("tiny-neox", {"rope_parameters": longrope(partial_rotary_factor=0.5)}),
    "neox-odd-part": ("tiny-neox", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.33}}),
    "neox-part-left-out": ("tiny-neox", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 7.0}),
    "neox-other-families-keys": ("tiny-neox", {"partial_rotary_factor": 0.5, "rope_theta": 7.0}),
}
PLAIN = {"tiny-llama3": llama()[1]}
# What these say changes nothing.
UNCHANGED = {
    "factor-without-type",
    "part-of-plain-angles",
    "part-of-plain-angles-inside",
    "windows-of-a-llama",
    "qwen2-no-layer-slides",
    "qwen2-usual-full-layers",
    "qwen2-null-window",
    "qwen2-not-used",
    "neox-other-families-keys",
}


def config_of(out: Path, base: str, changes: dict) -> dict:
    return json.loads((out / base / "config.json").read_text()) | changes


def load(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def logits_alone(folder: Path, sequence: list[int]) -> torch.Tensor:
    """Logits [T, V] by a model that has seen nothing else."""
    with torch.no_grad():
        return load(folder)(input_ids=torch.tensor([sequence])).logits[0]


def folder_with(out: Path, base: str, config: dict, folder: str) -> Path:
    path = Path(folder)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes((out / base / "model.safetensors").read_bytes())
    return path


# transformers' cache forgets what is further back than `sliding_window`, though a Llama without a cache sees it.
WITHOUT_CACHE = {"windows-of-a-llama"}


def greedy_answer(folder: Path, rng: np.random.Generator, use_cache: bool) -> dict:
    """What `generate` makes of a prompt; prompts with near ties are drawn again."""
    while True:
        model = load(folder)
        prompt = rng.integers(3, model.config.vocab_size, PROMPT).tolist()
        inputs = torch.tensor([prompt])
        found = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            use_cache=use_cache,
            eos_token_id=-1,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        best = torch.topk(torch.cat(found.scores), 2).values
        if float((best[:, 0] - best[:, 1]).min()) > MIN_GREEDY_GAP:
            return {"prompt": prompt, "output": found.sequences[0, PROMPT:].tolist()}


def make_positions(out: Path) -> list[list[int]]:
    rng = np.random.default_rng(51)
    sequences = [rng.integers(3, 80, length).tolist() for length in LENGTHS]
    variants, tensors, plain = {}, {}, {}
    for name, (base, changes) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            if base not in plain:
                path = folder_with(out, base, config_of(out, base, PLAIN.get(base, {})), folder)
                plain[base] = [logits_alone(path, one) for one in sequences]
            config = config_of(out, base, changes)
            path = folder_with(out, base, config, folder)
            logits = [logits_alone(path, one) for one in sequences]
            same = all(float((a - b).abs().max()) < SAME for a, b in zip(logits, plain[base], strict=True))
            assert same == (name in UNCHANGED), f"{name}: changes {'nothing' if same else 'something'}"
            variants[name] = {"base": base, "config": config, "answer": greedy_answer(path, rng, name not in WITHOUT_CACHE)}
        tensors |= {f"{name}.{i}": one[list(ROWS[i])].contiguous() for i, one in enumerate(logits)}
    expected = {"versions": VERSIONS, "sequences": sequences, "rows": [list(rows) for rows in ROWS], "variants": variants}
    write_json(out / "positions.expected.json", expected)
    save_file(tensors, out / "positions.expected.safetensors")
    return sequences


# ---------------------------------------------------------------------------------------------- heads


def head_files(base: str, kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `base`, tied by its configuration, with the embedding E and the head H as `kind` says.

    different: H is E with its rows moved up by one; equal: H is E; rounded: E is F32 and a little larger than its bf16, H that
    bf16; moved: only H is there.
    """
    embedding = {"tiny-gpt2": "transformer.wte", "tiny-neox": "gpt_neox.embed_in"}.get(base, "model.embed_tokens") + ".weight"
    if base.startswith("tiny-opt"):
        embedding = "model.decoder.embed_tokens.weight"
    head = "embed_out.weight" if base == "tiny-neox" and kind != "different-lm-head" else "lm_head.weight"
    table = tensors[embedding]
    match kind:
        case "equal":
            return tensors | {head: table.clone()}
        case "rounded":
            return tensors | {embedding: table.float() * (1 + 2.0**-12), head: table.clone()}
        case "moved":
            return {name: one for name, one in tensors.items() if name != embedding} | {head: table}
    return tensors | {head: table.roll(-1, 0).contiguous()}


HEADS = [
    ("tiny-llama3", "different"),
    ("tiny-llama3", "equal"),
    ("tiny-llama3", "rounded"),
    ("tiny-llama3", "moved"),
    ("tiny-gpt2", "different"),
    ("tiny-opt-post-norm", "different"),
    ("tiny-neox", "different"),
    ("tiny-neox", "different-lm-head"),
    ("tiny-neox", "equal"),
]


def make_heads(out: Path, sequence: list[int]) -> None:
    tensors = {}
    for base, kind in HEADS:
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads((out / base / "config.json").read_text()) | {"tie_word_embeddings": True}
            path = folder_with(out, base, config, folder)
            stored = load_file(out / base / "model.safetensors")
            stored.pop("embed_out.weight", None)  # of a model that is not tied
            files = head_files(base, kind, stored)
            save_file(files, path / "model.safetensors", metadata={"format": "pt"})
            tensors[f"{base}.{kind}"] = logits_alone(path, sequence)
    save_file(tensors, out / "heads.expected.safetensors")


def make(out: Path) -> None:
    sequences = make_positions(out)
    make_heads(out, sequences[0])
