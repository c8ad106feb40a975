"""Loads model folders with transformers, and describes the process for benchmark lines."""

import os
import resource
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers is about to drop


def load(path: Path) -> transformers.PreTrainedModel:
    """A causal language model in f32 with PyTorch's fused attention, in evaluation mode."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()


def right_pad(rows: list, value: int = 0) -> torch.Tensor:
    """Rows of ids as [B, T] int64."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def peak_rss_mib() -> int:
    """Most memory the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def environment() -> dict:
    """What a benchmark line says of where it ran."""
    return {
        "threads": torch.get_num_threads(),
        "peak_rss_mib": peak_rss_mib(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
