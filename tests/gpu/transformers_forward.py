#!/usr/bin/env python3
"""Forward passes of transformers on the shapes that `make gpu` measures: random weights, bf16, sdpa, no head.

    transformers_forward.py JOBS.json RESULT.json --device cuda:0 --seconds 90 --matrix 8192

A job is {key, config, batch, tokens}. Exit 77, with the reason as the last line, where torch, transformers or the device is
not there.
"""

import argparse
import json
import statistics
import sys
import time

ABSENT = 77
PASSES = 20


def absent(why):
    print(why, file=sys.stderr)
    sys.exit(ABSENT)


try:
    import torch
    import transformers
except ImportError as error:
    absent(f"not there: {error}")


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device, action):
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def matrix_tflops(device, size):
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    timed(device, lambda: a @ b)
    best = min(timed(device, lambda: a @ b) for _ in range(30))
    return 2 * size**3 / best / 1e12


def model(config, device):
    with torch.device(device):
        made = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return made.to(device=device, dtype=torch.bfloat16).eval()


@torch.inference_mode()
def measure(made, job, device, until):
    count = job["batch"] * job["tokens"]
    ids = (torch.arange(count, device=device) * 7919) % job["config"]["vocab_size"]
    ids = ids.reshape(job["batch"], job["tokens"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = lambda: made(input_ids=ids, use_cache=False)
    first = timed(device, run)
    times = [timed(device, run) for _ in range(3)]
    while len(times) < PASSES and time.monotonic() < until:
        times.append(timed(device, run))
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return {"tokens_per_second": count / statistics.median(times), "first": first, "gib": peak / 2**30}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("jobs")
    options.add_argument("result")
    options.add_argument("--device", default="cuda:0")
    options.add_argument("--seconds", type=float, default=90)
    options.add_argument("--matrix", type=int, default=8192)
    options = options.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        absent("torch sees no CUDA device")
    until = time.monotonic() + options.seconds
    result = {
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "matrix_tflops": matrix_tflops(device, options.matrix),
        "results": {},
    }
    made, of = None, None
    with open(options.jobs) as file:
        jobs = json.load(file)
    for job in jobs:
        try:
            if time.monotonic() > until:
                raise TimeoutError("no time left")
            if of != job["config"]:
                made = None  # before the next one is made: both may not fit
                made, of = model(job["config"], device), job["config"]
            measured = measure(made, job, device, until)
        except (RuntimeError, TimeoutError) as error:
            measured = {"problem": str(error).splitlines()[0]}
        result["results"][job["key"]] = measured
        print(job["key"], measured, file=sys.stderr)
        # After every job: what was measured is not lost with what comes after it.
        with open(options.result, "w") as file:
            json.dump(result, file)


main()
