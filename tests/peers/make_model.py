"""Writes a model folder with random weights and no tokenizer, for benchmarks: make_model.py --shape NAME OUT."""

import argparse
import math
from pathlib import Path

import models  # noqa: F401  (first: it sets the environment of transformers)
import torch
import transformers

LLAMA = dict(
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=False,
)
CONFIGS = {
    "tiny": lambda: transformers.LlamaConfig(
        **LLAMA,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        vocab_size=1024,
    ),
    "110m": lambda: transformers.LlamaConfig(
        **LLAMA,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
        vocab_size=32000,
    ),
    # The same with a tied head: 109.5 million parameters.
    "109m": lambda: transformers.LlamaConfig(
        **{**LLAMA, "tie_word_embeddings": True},
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
        vocab_size=32000,
    ),
    # SmolLM2-135M's layers, 24 of its 30: 113 million parameters.
    "smol": lambda: transformers.LlamaConfig(
        **{**LLAMA, "tie_word_embeddings": True},
        hidden_size=576,
        num_hidden_layers=24,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
    ),
    # Many layers, of which two are little.
    "deep": lambda: transformers.LlamaConfig(
        **LLAMA,
        hidden_size=512,
        num_hidden_layers=40,
        num_attention_heads=8,
        intermediate_size=1408,
        vocab_size=32000,
    ),
    # Qwen2.5-0.5B
    "qwen2.5-0.5b": lambda: transformers.Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        dtype=torch.bfloat16,  # of the files: both sides compute in f32
    ),
}
# Standard deviation of the logits: freshly initialised ones are nearly equal, which no trained model's are.
LOGIT_SPREAD = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=CONFIGS, required=True)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    config = CONFIGS[arguments.shape]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=LOGIT_SPREAD / math.sqrt(config.hidden_size))
    model.to(config.dtype or torch.float32).save_pretrained(arguments.out)
    (arguments.out / "generation_config.json").unlink(missing_ok=True)
    print(f"{arguments.out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
