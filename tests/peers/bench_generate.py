"""Answers beside transformers on one machine: bench_generate.py SOFTSHARD [--quick]. Prints a Markdown table.

Random-weight models, f32, greedy, the same prompts of one length, no end token, all cores on both sides: transformers' `generate` with its
dynamic cache and fused attention, without padding, its best case. `next` is the speed of all tokens of the answers but the first, `all`
counts the time of the prompts too. The fastest of two rounds; sides take turns, a process for each shape, so that its peak memory is that
shape's. Ours: crates/model/examples/generate_speed.rs, in f32 and with bf16 weights.

    bench_generate.py --peer MODEL_DIR BATCHxPROMPTxNEW    one line of transformers' speed
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
NEW_TOKENS = 64
SHAPES = [(8, 100), (32, 100), (8, 1000), (32, 1000)]
ROUNDS = 2


def peer(model_dir: Path, shape: str) -> None:
    import models
    import torch

    model = models.load(model_dir)
    batch, prompt, new = map(int, shape.split("x"))
    ids = (torch.arange(batch * prompt) * 7919 % model.config.vocab_size).reshape(batch, prompt)
    model.generation_config.eos_token_id = None

    def seconds(new: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0
            )
        assert found.shape == (batch, prompt + new)
        return time.perf_counter() - began

    first = min(seconds(1) for _ in range(ROUNDS))
    total = min(seconds(new) for _ in range(ROUNDS))
    line = {"shape": shape, "next": batch * (new - 1) / (total - first), "all": batch * new / total}
    print(json.dumps(line | models.environment()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--quick", action="store_true", help="the tiny model only")
    arguments = parser.parse_args()
    from bench import run

    ours = arguments.softshard.resolve().parent / "examples/generate_speed"
    print("| model | batch, prompt | ours, next tokens/s | peer | ratio | ours, all tokens/s | peer | ratio | our peak MiB | peer's | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    names = ["tiny"] if arguments.quick else ["110m", "qwen2.5-0.5b"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model = Path(folder) / name
            run(sys.executable, HERE / "make_model.py", "--shape", name, model)
            for batch, prompt in SHAPES:
                shape = f"{batch}x{prompt}x{NEW_TOKENS}"
                sides = {"ours": [ours, model, shape], "peer": [sys.executable, __file__, "--peer", model, shape]}
                sides["bf16"] = [ours, model, shape, "bf16"]
                found = {side: json.loads(run(*command)[0]) for side, command in sides.items()}
                theirs = found["peer"]
                for side in ("ours", "bf16"):
                    mine = found[side]
                    cells = [name if side == "ours" else f"{name}, bf16 weights", f"{batch}, {prompt}"]
                    for part in ("next", "all"):
                        cells += [f"{mine[part]:,.0f}", f"{theirs[part]:,.0f}", f"{mine[part] / theirs[part]:.2f}"]
                    peaks = mine["peak_rss_mib"], theirs["peak_rss_mib"]
                    cells += [f"{peaks[0]:,}", f"{peaks[1]:,}", f"{peaks[0] / peaks[1]:.2f}"]
                    print(f"| {' | '.join(cells)} |", flush=True)
            shutil.rmtree(model)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
