#!/usr/bin/env python3
"""Forward passes of transformers on the shapes that `make gpu` measures: random weights, bf16, sdpa, no head.

A job is {key, config, batch, tokens}; see peer.py for the rest.
"""

import statistics

import peer
import torch
import transformers

PASSES = 20


@torch.inference_mode()
def measure(bench, made, job):
    count = job["batch"] * job["tokens"]
    ids = (torch.arange(count, device=bench.device) * 7919) % job["config"]["vocab_size"]
    ids = ids.reshape(job["batch"], job["tokens"])
    run = lambda: made(input_ids=ids, use_cache=False)
    first = bench.timed(run)
    times = [bench.timed(run) for _ in range(3)]
    while len(times) < PASSES and bench.seconds_left() > 0:
        times.append(bench.timed(run))
    return {"tokens_per_second": count / statistics.median(times), "first": first}


def main():
    bench = peer.Bench()
    made, of = None, None

    def one(job):
        nonlocal made, of
        if of != job["config"]:
            made = None  # before the next one is made: both may not fit
            made, of = bench.model(transformers.AutoModel, job["config"]), job["config"]
        return measure(bench, made, job)

    for job in bench.jobs:
        bench.measure(job["key"], lambda: one(job))


main()
