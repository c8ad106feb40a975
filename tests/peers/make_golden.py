"""Makes golden/: tiny models, a LoRA adapter, and what PyTorch, transformers and PEFT compute with them.

Run with the torch environment (see README.md):

    make_golden.py            writes golden/
    make_golden.py --check    computes everything again and compares it with golden/

Conventions of all files:
  * Position rule: values "at position t" describe token t given the tokens before t, so they come from logits[t-1].
  * The forward pass is f32, everything after the logits is f64. Natural logarithms.
  * Weights come from numpy's generators, not torch's, so that they depend on the seeds here only.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path

import adapters
import families
import golden_masks
import golden_muon
import golden_positions
import golden_tokenizers
from golden_common import (  # first: it sets the environment of transformers
    NEW_TOKENS,
    VERSIONS,
    generations,
    logits_of,
    save_adapter,
    save_model,
    trainable,
    write_json,
)

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax

GOLDEN = Path(__file__).parent / "golden"
# What other scripts make: count_parameters.py, quantised_levels.py, golden_statistics.py, golden_agreement.py, golden_scorers.py,
# golden_generate.py, golden_copying.py, golden_choices.py, golden_rows.py and templates.py.
OTHERS = {
    *("agreement.json", "choices", "copying.json", "generate.json", "parameters.json", "quantised.json", "rows", "scorers"),
    *("statistics.json", "templates.json"),
}
TOP_K = 16
# Another order of f32 sums (threads, attention kernel) was seen to move losses, gradients and trained factors by 1e-6.
CHECK_TOLERANCE = 5e-5
# Values that were computed in bf16, "bf16" in their name: processors round its products in different places.
CHECK_TOLERANCE_BF16 = 0.5

SHAPE = dict(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    attention_dropout=0.0,
)
# Standard deviation of the logits: with it most of the mass is on a few tokens, as in a trained model.
LOGIT_SPREAD = 3.5

# ---------------------------------------------------------------------------------------------- models


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws all weights: matrices keep the scale of their input, norms and biases are visibly not 1 and 0."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("norm.weight"):
            values = rng.uniform(0.7, 1.3, shape)
        elif name.endswith("bias"):
            values = rng.normal(0.0, 0.5, shape)
        elif name == "lm_head.weight" or (name == "model.embed_tokens.weight" and model.config.tie_word_embeddings):
            values = rng.normal(0.0, LOGIT_SPREAD / math.sqrt(shape[1]), shape)
        elif name == "model.embed_tokens.weight":
            values = rng.normal(0.0, 1.0, shape)
        else:
            values = rng.normal(0.0, 1.2 / math.sqrt(shape[1]), shape)
        parameter.data = torch.from_numpy(values.astype(np.float32)).to(parameter.dtype)


def make_llama(path: Path) -> transformers.PreTrainedModel:
    """Grouped queries, untied head, f32, one file."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config)
    randomise(model, seed=11)
    return save_model(model, path)


def make_qwen2(path: Path) -> transformers.PreTrainedModel:
    """Biases of query, key and value, tied embeddings, bf16, several files with an index."""
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = transformers.Qwen2Config(**SHAPE, rms_norm_eps=1e-6, rope_parameters=rope, tie_word_embeddings=True)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    randomise(model, seed=12)
    return save_model(model, path, max_shard_size="64KB")


# ---------------------------------------------------------------------------------------------- labels


def labels_of(logits: torch.Tensor, input_ids: list[int], positions: list[int], counts: list[int]) -> dict:
    """Labels as design section 3 defines them, `counts[i]` entries at `positions[i]`, flattened."""
    z = logits[torch.tensor(positions) - 1]
    log_p = log_softmax(z, dim=-1)
    p = log_p.exp()
    ranked, order = torch.sort(log_p, dim=-1, descending=True, stable=True)
    rows = range(len(positions))
    return {
        "input_ids": input_ids,
        "positions": positions,
        "counts": counts,
        "token_ids": [int(i) for r in rows for i in order[r, : counts[r]]],
        "log_probs": [float(x) for r in rows for x in ranked[r, : counts[r]]],
        "log_sum_exp": z.logsumexp(-1).tolist(),
        "tail_log_mass": [float(ranked[r, counts[r] :].logsumexp(0)) for r in rows],
        "entropy": (-(p * log_p).sum(-1)).tolist(),
        "gold_log_prob": [float(log_p[r, input_ids[positions[r]]]) for r in rows],
        "log_partition_t2": (z / 2).logsumexp(-1).tolist(),
    }


def expected_of(model: torch.nn.Module, lengths: list[int], seed: int) -> dict:
    """Labels of random sequences at every position, and greedy continuations of prompts of several lengths."""
    rng = np.random.default_rng(seed)
    sequences = []
    for length in lengths:
        ids = rng.integers(3, SHAPE["vocab_size"], length).tolist()
        positions = list(range(1, length))
        sequences.append(labels_of(logits_of(model, ids), ids, positions, [TOP_K] * len(positions)))
    return {
        "versions": VERSIONS,
        "top_k": TOP_K,
        "new_tokens": NEW_TOKENS,
        "sequences": sequences,
        "generations": generations(model, rng, (1, 4, 9)),
    }


# ---------------------------------------------------------------------------------------------- LoRA


def attach_lora(model: torch.nn.Module) -> peft.PeftModel:
    """r=4, alpha=8 (scale 2) on q_proj and v_proj; A and B both drawn, as after some training."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, config)
    rng = np.random.default_rng(13)
    for _, parameter in trainable(adapted):
        parameter.data = torch.from_numpy(rng.normal(0.0, 0.1, tuple(parameter.shape)).astype(np.float32))
    return adapted


# ---------------------------------------------------------------------------------------------- distillation

CASES = [
    {"name": "alpha_0", "alpha": 0.0, "temperature": 1.0, "normalise": False},
    {"name": "alpha_0.5", "alpha": 0.5, "temperature": 1.0, "normalise": False},
    {"name": "alpha_2", "alpha": 2.0, "temperature": 1.0, "normalise": False},
    {"name": "alpha_2_normalise", "alpha": 2.0, "temperature": 1.0, "normalise": True},
    {"name": "alpha_0.5_temperature_2", "alpha": 0.5, "temperature": 2.0, "normalise": False},
]
# Beside these, forward KL with a bucket; all other pairs, reverse KL without the tail excepted, which has no minimum at agreement.
DIVERGENCES = [
    "forward_kl",
    "reverse_kl",
    {"kind": "jsd", "beta": 0.5},
    {"kind": "skew_kl", "lambda": 0.1},
    "tvd",
]
TAILS = ["bucket", "renormalise", "drop", "uniform"]


def variant(divergence: object, tail: str, **other: object) -> dict:
    words = divergence if isinstance(divergence, str) else divergence["kind"]
    case = {"alpha": 0.5, "temperature": 1.0, "normalise": False, "by_entropy": False} | other
    name = " ".join([words, tail, *(f"{key} {value}" for key, value in other.items())])
    return {"name": name, "divergence": divergence, "tail": tail, **case}


VARIANTS = [
    *(
        variant(divergence, tail)
        for divergence in DIVERGENCES
        for tail in TAILS
        if (divergence, tail) not in [("forward_kl", "bucket"), ("reverse_kl", "drop")]
    ),
    *(variant(divergence, "bucket", temperature=2.0) for divergence in DIVERGENCES[1:]),
    *(variant("forward_kl", tail, temperature=2.0) for tail in TAILS[1:]),
    variant("forward_kl", "bucket", by_entropy=True),
    variant("forward_kl", "bucket", by_entropy=True, normalise=True),
    variant("reverse_kl", "uniform", alpha=2.0, temperature=2.0, normalise=True, by_entropy=True),
]
VARIANT_FORMULA = (
    "as kd.expected.json, with D for KL and, by_entropy, alpha times the teacher's entropy of the position for alpha; D = sum of f over "
    "events (p, q): the kept tokens, and with tail = bucket all others as one; renormalise scales both sides to one over the kept "
    "ones; uniform has each other token with p = p_tail / their number; f: forward_kl p log(p/q), reverse_kl q log(q/p), jsd "
    "beta p log(p/m) + (1 - beta) q log(q/m) with m = beta p + (1 - beta) q, skew_kl p log(p/(lambda p + (1 - lambda) q)), tvd |p - q|/2"
)
LOSS_FORMULA = (
    "loss = (w_ce * sum CE + w_kl * T^2 * sum KL) / labelled positions; w_ce = 1, w_kl = alpha, both divided by "
    "1 + alpha if normalise; CE = -log q_1(gold); KL = sum over kept i of p_i (log p_i - log q_i) + "
    "p_tail (log p_tail - log q_tail), p teacher and q student at temperature T, tail = all tokens not kept; "
    "T = 1: p = stored log_probs and tail_log_mass; else log p_i = (log_prob + log_sum_exp) / T - log_partition_tT "
    "and p_tail = 1 - sum p_i; cross_entropy_sum and kl_sum are without weights and without T^2"
)


def f32(values: list[float]) -> list[float]:
    """The values as a label file would hold them."""
    return np.asarray(values, dtype=np.float32).astype(float).tolist()


def make_labels(teacher: torch.nn.Module, seed: int) -> list[dict]:
    """Ragged labels of four sequences; some positions masked, counts from 1 to 8; f32 values."""
    rng = np.random.default_rng(seed)
    batch = []
    for length in (7, 12, 5, 18):
        ids = rng.integers(3, SHAPE["vocab_size"], length).tolist()
        positions = list(range(int(rng.integers(1, length // 2)), length))
        counts = rng.integers(1, 9, len(positions)).tolist()
        labels = labels_of(logits_of(teacher, ids), ids, positions, counts)
        batch.append({key: f32(v) if isinstance(v[0], float) else v for key, v in labels.items()})
    return batch


def terms(divergence: object, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """f of VARIANT_FORMULA of each event."""
    p, q = log_p.exp(), log_q.exp()
    match divergence:
        case "forward_kl":
            return p * (log_p - log_q)
        case "reverse_kl":
            return q * (log_q - log_p)
        case {"kind": "jsd", "beta": beta}:
            log_m = (beta * p + (1 - beta) * q).log()
            return beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)
        case {"kind": "skew_kl", "lambda": skew}:
            return p * (log_p - (skew * p + (1 - skew) * q).log())
        case "tvd":
            return (p - q).abs() / 2
    raise ValueError(divergence)


def distance(case: dict, log_p: torch.Tensor, log_p_tail: torch.Tensor, kept: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """D of one position."""
    divergence, tail = case.get("divergence", "forward_kl"), case.get("tail", "bucket")
    cut = torch.ones_like(log_q, dtype=torch.bool)
    cut[kept] = False
    log_q_kept = log_q[kept]
    match tail:
        case "renormalise":
            return terms(divergence, log_p - log_p.logsumexp(0), log_q_kept - log_q_kept.logsumexp(0)).sum()
        case "drop":
            return terms(divergence, log_p, log_q_kept).sum()
        case "uniform":
            each = log_p_tail - torch.log(cut.sum())
            return terms(divergence, log_p, log_q_kept).sum() + terms(divergence, each, log_q[cut]).sum()
    return terms(divergence, log_p, log_q_kept).sum() + terms(divergence, log_p_tail, log_q[cut].logsumexp(0))


def distillation_loss(model: torch.nn.Module, batch: list[dict], case: dict) -> tuple[torch.Tensor, float, float]:
    """LOSS_FORMULA or VARIANT_FORMULA, densely over the vocabulary; a right-padded batch, f32 forward, f64 loss."""
    tokens = max(len(s["input_ids"]) for s in batch)
    ids = torch.tensor([s["input_ids"] + [0] * (tokens - len(s["input_ids"])) for s in batch])
    mask = torch.tensor([[1] * len(s["input_ids"]) + [0] * (tokens - len(s["input_ids"])) for s in batch])
    all_logits = model(input_ids=ids, attention_mask=mask).logits.double()
    temperature, cross_entropy, kl, labelled, by_entropy = case["temperature"], 0.0, 0.0, 0, 0.0
    for logits, sequence in zip(all_logits, batch):
        start = 0
        for i, position in enumerate(sequence["positions"]):
            entries = slice(start, start + sequence["counts"][i])
            start = entries.stop
            kept = torch.tensor(sequence["token_ids"][entries])
            log_p = torch.tensor(sequence["log_probs"][entries], dtype=torch.float64)
            log_p_tail = torch.tensor(sequence["tail_log_mass"][i], dtype=torch.float64)
            if temperature != 1.0:
                z = log_p + sequence["log_sum_exp"][i]
                log_p = z / temperature - sequence[f"log_partition_t{temperature:g}"][i]
                log_p_tail = torch.log(1.0 - log_p.exp().sum())
            row = logits[position - 1]
            log_q = log_softmax(row / temperature, dim=0)
            distance_here = distance(case, log_p, log_p_tail, kept, log_q)
            cross_entropy_here = -log_softmax(row, dim=0)[sequence["input_ids"][position]]
            kl = kl + distance_here
            cross_entropy = cross_entropy + cross_entropy_here
            labelled += 1
            alpha = case["alpha"] * sequence["entropy"][i]
            divisor = 1.0 + alpha if case["normalise"] else 1.0
            by_entropy = by_entropy + (cross_entropy_here + alpha * temperature**2 * distance_here) / divisor
    if case.get("by_entropy"):
        return by_entropy / labelled, cross_entropy.item(), kl.item()
    divisor = 1.0 + case["alpha"] if case["normalise"] else 1.0
    loss = (cross_entropy + case["alpha"] * temperature**2 * kl) / divisor / labelled
    return loss, cross_entropy.item(), kl.item()


OPTIMISER = {
    "optimiser": "AdamW",
    "steps": 20,
    "learning_rate": 1e-2,
    "min_learning_rate": 1e-7,
    "schedule": "step i of 0..20 uses min + (max - min) * (1 + cos(pi * i / 20)) / 2",
    "betas": [0.9, 0.999],
    "epsilon": 1e-8,
    "weight_decay": 1e-2,
    "weight_decay_rule": "decoupled, A and B alike: before the update, parameter *= 1 - learning rate * weight_decay",
    "update_rule": "parameter -= learning rate * m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + epsilon), n = i + 1",
    "max_gradient_norm": 1.0,
    "clip_rule": "norm = L2 norm over all factors together; gradients *= min(1, max_gradient_norm / (norm + 1e-6))",
}


def train(model: peft.PeftModel, batch: list[dict], case: dict) -> dict:
    """20 steps on one batch. Losses and norms are those before the step."""
    o = OPTIMISER
    parameters = [p for _, p in trainable(model)]
    adamw = torch.optim.AdamW(
        parameters,
        lr=o["learning_rate"],
        betas=tuple(o["betas"]),
        eps=o["epsilon"],
        weight_decay=o["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, T_max=o["steps"], eta_min=o["min_learning_rate"])
    curve: dict = {"case": case["name"], **o, "learning_rates": [], "losses": [], "gradient_norms": []}
    for step in range(o["steps"]):
        adamw.zero_grad()
        loss, _, _ = distillation_loss(model, batch, case)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, o["max_gradient_norm"])
        rate = schedule.get_last_lr()[0]
        spread = o["learning_rate"] - o["min_learning_rate"]
        formula = o["min_learning_rate"] + spread * (1 + math.cos(math.pi * step / o["steps"])) / 2
        assert math.isclose(rate, formula, rel_tol=1e-9), (step, rate, formula)
        curve["learning_rates"].append(rate)
        curve["losses"].append(loss.item())
        curve["gradient_norms"].append(float(norm))
        adamw.step()
        schedule.step()
    curve["final_loss"] = distillation_loss(model, batch, case)[0].item()
    return curve


def make_distillation(base: torch.nn.Module, out: Path) -> None:
    """lora/, lora.expected, kd.expected, kd.gradients, kd.trained."""
    rng = np.random.default_rng(14)
    teacher = transformers.LlamaForCausalLM(base.config).eval()
    teacher.load_state_dict(base.state_dict())
    for parameter in teacher.parameters():  # near the student, as a teacher is
        parameter.data += torch.from_numpy(rng.normal(0.0, 0.05, tuple(parameter.shape)).astype(np.float32))
    batch = make_labels(teacher, seed=15)

    student = attach_lora(base)
    save_adapter(student, out / "lora")
    ids = rng.integers(3, SHAPE["vocab_size"], 12).tolist()
    logits = logits_of(student, ids).float()
    save_file(
        {"input_ids": torch.tensor(ids, dtype=torch.int32), "logits": logits},
        out / "lora.expected.safetensors",
    )

    gradients, results = {}, []
    for case in CASES:
        student.zero_grad()
        loss, cross_entropy, kl = distillation_loss(student, batch, case)
        loss.backward()
        gradients |= {f"{case['name']}/{name}": p.grad.clone().contiguous() for name, p in trainable(student)}
        results.append({**case, "loss": loss.item(), "cross_entropy_sum": cross_entropy, "kl_sum": kl})
    save_file(gradients, out / "kd.gradients.safetensors")
    curve = train(student, batch, CASES[1])
    save_file({name: p.detach().contiguous() for name, p in trainable(student)}, out / "kd.trained.safetensors")
    start = load_file(out / "lora" / "adapter_model.safetensors")
    curves = []
    for case in VARIANTS:
        for name, parameter in trainable(student):
            parameter.data = start[name].clone()
        curves.append({**case, "losses": train(student, batch, case)["losses"]})
    write_json(out / "kd.variants.json", {"formula": VARIANT_FORMULA, "variants": curves})
    write_json(
        out / "kd.expected.json",
        {
            "versions": VERSIONS,
            "formula": LOSS_FORMULA,
            "sequences": batch,
            "cases": results,
            "training": curve,
        },
    )


# ---------------------------------------------------------------------------------------------- files


def make(out: Path) -> None:
    """Writes everything below `out`, which becomes the current folder: model paths in the files are then relative."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    out = Path()
    llama = make_llama(out / "tiny-llama")
    write_json(out / "tiny-llama.expected.json", expected_of(llama, [2, 5, 9, 17, 28, 40], seed=21))
    qwen2 = make_qwen2(out / "tiny-qwen2")
    write_json(out / "tiny-qwen2.expected.json", expected_of(qwen2, [3, 11, 24], seed=22))
    make_distillation(llama, out)
    families.make(out)
    adapters.make(out)
    golden_positions.make(out)
    golden_tokenizers.make(out)
    golden_masks.make(out)
    golden_muon.make(out)


# ---------------------------------------------------------------------------------------------- check


def tolerance_of(place: str) -> float:
    return CHECK_TOLERANCE_BF16 if "bf16" in place else CHECK_TOLERANCE


def compare_json(place: str, golden: object, found: object) -> list[str]:
    """Differences between two JSON values, floats to their tolerance."""
    if float in (type(golden), type(found)) and {type(golden), type(found)} <= {int, float}:
        tolerance = tolerance_of(place)
        return [] if math.isclose(golden, found, rel_tol=tolerance, abs_tol=tolerance) else [place]
    if isinstance(golden, dict) and isinstance(found, dict) and golden.keys() == found.keys():
        return [d for key in golden for d in compare_json(f"{place}.{key}", golden[key], found[key])]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        return [d for i, pair in enumerate(zip(golden, found)) for d in compare_json(f"{place}[{i}]", *pair)]
    return [] if golden == found else [place]


def compare_tensors(place: str, golden: Path, found: Path) -> list[str]:
    expected, actual = load_file(golden), load_file(found)
    if expected.keys() != actual.keys():
        return [f"{place}: other names"]

    def close(name: str) -> bool:
        tolerance = tolerance_of(name)
        return torch.allclose(expected[name].double(), actual[name].double(), rtol=tolerance, atol=tolerance)

    return [f"{place}: {name}" for name in expected if not close(name)]


def compare_files(place: str, golden: Path, found: Path) -> list[str]:
    match golden.suffix:
        case ".safetensors":
            return compare_tensors(place, golden, found)
        case ".json":
            return compare_json(place, json.loads(golden.read_text()), json.loads(found.read_text()))
        case _:
            return [] if golden.read_bytes() == found.read_bytes() else [place]


def check() -> int:
    """Computes again in a temporary folder; the number of differences, each printed."""
    golden = GOLDEN.resolve()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        found = Path(folder)
        names = sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file())
        files = [p.relative_to(golden) for p in golden.rglob("*") if p.is_file()]
        kept = sorted(str(p) for p in files if p.parts[0] not in OTHERS)
        only = sorted(set(names) ^ set(kept))
        differences = [f"files: only there or only made: {only}"] if only else []
        for name in set(names) & set(kept):
            differences += compare_files(name, golden / name, found / name)
        os.chdir(golden)
    for line in differences[:20]:
        print(f"golden/{line}: differs from what is computed now", file=sys.stderr)
    print(f"golden: {len(names)} files made again, {len(differences)} differences", file=sys.stderr)
    return len(differences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden/ instead of writing it")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers is about to drop
    if parser.parse_args().check:
        return 1 if check() else 0
    make(GOLDEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
