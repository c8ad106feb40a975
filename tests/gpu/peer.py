"""What the peers of `make gpu` share: PyTorch with transformers on one device, results that outlive what goes wrong.

    SCRIPT JOBS.json RESULT.json --device cuda:0 --seconds 90 --matrix 8192

Exit 77, with the reason as the last line, where torch, transformers or the device is not there; 75 where the time was over.
"""

import argparse
import gc
import json
import os
import resource
import sys
import threading
import time

ABSENT, LATE = 77, 75
# Standard deviation of the logits: freshly initialised ones are nearly equal, which no trained model's are.
LOGIT_SPREAD = 3.0
# The caller ends its part at 1.25 times the seconds it gives.
PATIENCE = 1.15


def absent(why):
    print(why, file=sys.stderr)
    sys.exit(ABSENT)


os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
try:
    import torch
    import transformers
except ImportError as error:
    absent(f"not there: {error}")
transformers.logging.set_verbosity_error()


class Bench:
    """The device, the jobs, and what was measured so far."""

    def __init__(self):
        options = argparse.ArgumentParser()
        options.add_argument("jobs")
        options.add_argument("result")
        options.add_argument("--device", default="cuda:0")
        options.add_argument("--seconds", type=float, default=90)
        options.add_argument("--matrix", type=int, default=8192)
        options = options.parse_args()
        self.device = torch.device(options.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            absent("torch sees no CUDA device")
        self.until = time.monotonic() + options.seconds
        watch = threading.Timer(PATIENCE * options.seconds, lambda: os._exit(LATE))
        watch.daemon = True
        watch.start()
        with open(options.jobs) as file:
            self.jobs = json.load(file)
        self.path = options.result
        self.result = {
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "matrix_tflops": self.matrix_tflops(options.matrix),
            "results": {},
        }
        self.write()

    def matrix_tflops(self, size):
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        self.timed(lambda: a @ b)
        return 2 * size**3 / min(self.timed(lambda: a @ b) for _ in range(30)) / 1e12

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, action):
        self.synchronise()
        start = time.perf_counter()
        action()
        self.synchronise()
        return time.perf_counter() - start

    def seconds_left(self):
        return self.until - time.monotonic()

    def forget_peak(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self):
        """Most memory that the allocator held since `forget_peak`; on a CPU, that the process ever had."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def measure(self, key, action):
        """Keeps what `action` returns, or why it could not."""
        self.forget_peak()
        try:
            if self.seconds_left() <= 0:
                raise TimeoutError("no time left")
            measured = {**action(), "bytes": self.peak_bytes()}
        except (RuntimeError, TimeoutError) as error:
            # As text: the error itself holds the tensors of every frame.
            measured = {"problem": (str(error).splitlines() or [repr(error)])[0]}
        self.keep(key, measured)
        return measured

    def keep(self, key, measured):
        self.result["results"][key] = measured
        print(key, measured, file=sys.stderr)
        self.write()

    def write(self):
        """After every job: what was measured is not lost with what comes after it."""
        with open(self.path + ".writing", "w") as file:
            json.dump(self.result, file)
        os.replace(self.path + ".writing", self.path)

    def model(self, kind, config):
        """A model of random weights in bf16 with PyTorch's fused attention, in evaluation mode."""
        with torch.device(self.device):
            made = kind.from_config(
                transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        made = made.to(device=self.device, dtype=torch.bfloat16).eval()
        head = made.get_output_embeddings()
        if head is not None and not config["tie_word_embeddings"]:
            torch.nn.init.normal_(head.weight, std=LOGIT_SPREAD / config["hidden_size"] ** 0.5)
        return made
