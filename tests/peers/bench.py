"""Forward passes against transformers on one machine: bench.py SOFTSHARD [--quick].

Prints a Markdown table; labelling is in bench_labelling.py, the student's step in bench_training.py. Needs `cargo build --workspace
--examples`. Same random-weight models, same threads, f32, one process after the other: `body` and `head` are what bench_forward.py says
they are, the fastest pass of two rounds, ours and theirs in turn.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FORWARD_SHAPES = ["8x256", "4x512"]


def run(*command: object) -> tuple[str, int]:
    """Standard output of a command, and its peak memory in MiB."""
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}: status {status}\n{process.stderr.read()}")
    return out, usage.ru_maxrss // 1024


def number(pattern: str, text: str) -> float:
    """The number that `pattern` captures."""
    found = re.search(pattern, text)
    if not found:
        sys.exit(f"expected {pattern!r} in:\n{text}")
    return float(found.group(1).replace(",", ""))


def forward_speeds(command: list[object]) -> tuple[dict[tuple[str, str], float], int]:
    """Tokens/s by shape and part, and peak memory in MiB."""
    out, memory = run(*command)
    lines = [line for line in map(json.loads, out.splitlines()) if "what" in line]
    return {(line["shape"], line["what"]): line["tokens_per_second"] for line in lines}, memory


def bench_forward(softshard: Path, world: Path, names: list[str]) -> None:
    """Forward passes alone, of a small and of a wide model."""
    ours, theirs = [softshard.parent / "examples/forward_speed"], [sys.executable, HERE / "bench_forward.py"]
    print("| model | batch x tokens | part | ours, tokens/s | peer, tokens/s | ratio | our peak MiB | peer's peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        model = world / f"forward-{name}"
        run(sys.executable, HERE / "make_model.py", "--shape", name, model)
        best: list[dict[tuple[str, str], float]] = [{}, {}]
        peaks = [0, 0]
        for _ in range(2):
            for side, command in enumerate((ours, theirs)):
                speeds, peaks[side] = forward_speeds([*command, model, *FORWARD_SHAPES])
                best[side] = {key: max(speed, best[side].get(key, 0.0)) for key, speed in speeds.items()}
        shutil.rmtree(model)
        for (shape, part), mine in best[0].items():
            peer = best[1][shape, part]
            columns = [name, shape, part, f"{mine:,.0f}", f"{peer:,.0f}", f"{mine / peer:.2f}", *(f"{peak:,}" for peak in peaks)]
            print(f"| {' | '.join(columns)} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softshard", type=Path)
    parser.add_argument("--quick", action="store_true", help="the tiny model only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench_forward(arguments.softshard.resolve(), Path(folder), ["tiny"] if arguments.quick else ["110m", "qwen2.5-0.5b"])


if __name__ == "__main__":
    main()
