"""Five steps of torch.optim.Muon over two matrices, in f32: PyTorch itself makes its update orthogonal in bf16."""

from pathlib import Path

import torch
from safetensors.torch import save_file

STEPS = 5
LEARNING_RATE = 0.02
WEIGHT_DECAY = 0.1


def make(out: Path) -> None:
    """`<shape>.start`, `<shape>.gradient.<step>` and `<shape>.after.<step>` into muon.safetensors."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    real_to = torch.Tensor.to

    def without_bf16(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if kwargs.get("dtype") is torch.bfloat16:
            kwargs["dtype"] = torch.float32
        return real_to(self, *args, **kwargs)

    torch.Tensor.to = without_bf16
    try:
        for rows, columns in [(4, 12), (12, 4)]:
            name = f"{rows}x{columns}"
            weight = torch.nn.Parameter(torch.randn(rows, columns, generator=generator))
            tensors[f"{name}.start"] = weight.detach().clone()
            muon = torch.optim.Muon(
                [weight], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
            for step in range(STEPS):
                weight.grad = torch.randn(rows, columns, generator=generator)
                tensors[f"{name}.gradient.{step}"] = weight.grad.clone()
                muon.step()
                tensors[f"{name}.after.{step}"] = weight.detach().clone()
    finally:
        torch.Tensor.to = real_to
    save_file(tensors, out / "muon.safetensors")
