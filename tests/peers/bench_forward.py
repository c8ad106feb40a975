"""Speed of a forward pass with transformers on a CPU: bench_forward.py MODEL_DIR BATCHxTOKENS... One JSON line each.

f32, fused attention, no padding and no mask. `body` stops at the hidden states, `head` goes on to the logits of the last
LAST positions of every row. The fastest of PASSES. crates/model/examples/forward_speed.rs measures the same of ours.
"""

import argparse
import json
import time
from pathlib import Path

import models
import torch

PASSES = 2
LAST = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("shapes", nargs="+", metavar="BATCHxTOKENS")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = models.load(arguments.model_dir)

    def forward(ids: torch.Tensor, head: bool) -> torch.Tensor:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, -LAST:]) if head else hidden

    with torch.inference_mode():
        forward(torch.zeros(1, LAST, dtype=torch.int64), True)  # warms up
        for shape in arguments.shapes:
            batch, tokens = map(int, shape.split("x"))
            ids = (torch.arange(batch * tokens) * 7919 % model.config.vocab_size).reshape(batch, tokens)
            for what in ("body", "head"):
                seconds = []
                for _ in range(PASSES):
                    start = time.perf_counter()
                    forward(ids, what == "head")
                    seconds.append(time.perf_counter() - start)
                speed = batch * tokens / min(seconds)
                print(json.dumps({"shape": shape, "what": what, "tokens_per_second": speed}), flush=True)
    print(json.dumps(models.environment()))


if __name__ == "__main__":
    main()
