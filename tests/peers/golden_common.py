"""What make_golden.py and families.py share: versions, logits, greedy answers, and how files are written.

Importing it asserts the versions and sets the environment of transformers.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import numpy as np
import peft
import safetensors
import torch
import transformers

VERSIONS = {
    "torch": "2.15.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
}
for module in (torch, transformers, peft, safetensors, np):
    found = module.__version__.split("+")[0]
    assert found == VERSIONS[module.__name__], f"{module.__name__}: expected {VERSIONS[module.__name__]}, found {found}"

NEW_TOKENS = 20
# Greedy decoding is a fair test only where no two tokens are close: f32 sums in another order move logits by 1e-5.
MIN_GREEDY_GAP = 1e-3
# Different tokens in an answer: a model that repeats one token would hide errors of its positions.
MIN_GREEDY_TOKENS = 7


def save_model(model: transformers.PreTrainedModel, path: Path, **options) -> transformers.PreTrainedModel:
    """Saves and loads again, so that what is measured is what the files hold; computes in f32."""
    model.save_pretrained(path, **options)
    (path / "generation_config.json").unlink(missing_ok=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


def logits_of(model: torch.nn.Module, input_ids: list[int]) -> torch.Tensor:
    """Logits [T, V] in f64, from an f32 forward pass."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([input_ids])).logits[0].double()


def greedy(model: torch.nn.Module, prompt: list[int], stop_id: int | None = None) -> list[int] | None:
    """Greedy continuation without the prompt and without the stop id, no cache; agrees with `generate`.

    None where two tokens are nearly tied, or where it is monotonous.
    """
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW_TOKENS:
        best, second = torch.topk(logits_of(model, ids)[-1], 2)[0].tolist()
        if best - second < MIN_GREEDY_GAP:
            return None
        token = int(logits_of(model, ids)[-1].argmax())
        if token == stop_id:
            break
        ids.append(token)
    if stop_id is None and len(set(ids[len(prompt) :])) < MIN_GREEDY_TOKENS:
        return None
    inputs = torch.tensor([prompt])
    generated = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stop_id if stop_id is not None else -1,
        pad_token_id=0,
    )[0].tolist()
    expected = ids if stop_id is None or len(ids) == len(prompt) + NEW_TOKENS else [*ids, stop_id]
    assert generated == expected, f"generate gives {generated}, the loop without a cache {expected}"
    return ids[len(prompt) :]


def generations(model: torch.nn.Module, rng: np.random.Generator, lengths: tuple[int, ...]) -> list[dict]:
    """Greedy continuations of random prompts of these lengths, and of the last one again with a stop id.

    Prompts whose answers are no fair test are drawn again.
    """
    answers = []
    for length in lengths:
        output = None
        while output is None:
            prompt = rng.integers(3, model.config.vocab_size, length).tolist()
            output = greedy(model, prompt)
        answers.append({"prompt": prompt, "stop_ids": [], "output": output})
    first = answers[-1]
    stop = next(token for token in first["output"][5:] if token not in first["output"][:5])
    answers.append({"prompt": first["prompt"], "stop_ids": [stop], "output": greedy(model, first["prompt"], stop)})
    return answers


def trainable(model: peft.PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    """Factors under the names that PEFT's files use."""
    return [(n.replace(".default.", "."), p) for n, p in model.named_parameters() if p.requires_grad]


def save_adapter(model: peft.PeftModel, path: Path) -> None:
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key].sort()  # PEFT keeps a set
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_json(path: Path, value: dict) -> None:
    """One line for each list of numbers; f64 at 9 significant digits, more than f32 holds."""

    def text(value: object, indent: str) -> str:
        deeper = indent + " "
        if isinstance(value, dict):
            items = (f"{deeper}{json.dumps(k)}: {text(v, deeper)}" for k, v in value.items())
            return "{\n" + ",\n".join(items) + f"\n{indent}}}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(deeper + text(v, deeper) for v in value) + f"\n{indent}]"
        if isinstance(value, list):
            return "[" + ",".join(text(v, "") for v in value) + "]"
        return f"{value:.9g}" if isinstance(value, float) else json.dumps(value)

    path.write_text(text(value, "") + "\n")
