"""What stages 1 and 2 launch on a GPU, setting by setting, over a driver that launches nothing: a table of kernels.

Run by `compile_kernels.sh python3 kernels.py SOFTSHARD [--sm 80,90,100] [--only PATTERN] [--list FILE] [--work FOLDER]`, where
SOFTSHARD is built with the feature `cuda`. Models are zeros of real widths, two layers deep. The table is Markdown on stdout.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

K = 64  # tokens that labels keep
HEADER = 9  # words before the lists of a row of labels: crates/losses/src/cube/layout.rs
LORA = 'lora = { r = 8, alpha = 16.0, dropout = 0.1, target_modules = ["all-linear"] }'
COMMON = dict(max_position_embeddings=4096, torch_dtype="bfloat16")
LLAMA = dict(COMMON, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu")
# By the size of a head, and what else kernels may depend on: groups of heads, biases, a tied head, turned part of a head.
MODELS = {
    "head-64": dict(
        LLAMA, architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=896, num_attention_heads=14,
        num_key_value_heads=2, intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True,
    ),
    "head-80": dict(
        COMMON, architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", hidden_size=2560, num_attention_heads=32,
        intermediate_size=10240, vocab_size=50304, tie_word_embeddings=False, rotary_pct=0.25, rotary_emb_base=10000,
        use_parallel_residual=True, hidden_act="gelu", layer_norm_eps=1e-5,
    ),
    "head-128": dict(
        LLAMA, architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=4096, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, intermediate_size=6144, vocab_size=32768, tie_word_embeddings=False,
        attention_bias=False,
    ),
    # Whole models learn in f32: a small one is enough.
    "small": dict(
        LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=576, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True,
    ),
}
WAYS = {"resident": "", "streamed": 'residency = "streamed"', "8 bits": "quantise = 8", "4 bits": "quantise = 4"}
LAYERS = 2


def tensors(config):
    """Names and shapes, as transformers has them."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    if config["model_type"] == "gpt_neox":
        yield "gpt_neox.embed_in.weight", [rows, width]
        for layer in range(LAYERS):
            of_layer = f"gpt_neox.layers.{layer}."
            linears = {
                "attention.query_key_value": [3 * width, width],
                "attention.dense": [width, width],
                "mlp.dense_h_to_4h": [inner, width],
                "mlp.dense_4h_to_h": [width, inner],
            }
            for name, shape in linears.items():
                yield of_layer + name + ".weight", shape
                yield of_layer + name + ".bias", shape[:1]
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield of_layer + name + ".weight", [width]
                yield of_layer + name + ".bias", [width]
        yield "gpt_neox.final_layer_norm.weight", [width]
        yield "gpt_neox.final_layer_norm.bias", [width]
        yield "embed_out.weight", [rows, width]
        return
    head = config.get("head_dim", width // heads)
    keys = config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", [rows, width]
    for layer in range(LAYERS):
        of_layer = f"model.layers.{layer}."
        projections = {"q": heads * head, "k": keys, "v": keys}
        for name, outputs in projections.items():
            yield f"{of_layer}self_attn.{name}_proj.weight", [outputs, width]
            if config["model_type"] == "qwen2":
                yield f"{of_layer}self_attn.{name}_proj.bias", [outputs]
            elif config["model_type"] == "qwen3" and name != "v":
                yield f"{of_layer}self_attn.{name}_norm.weight", [head]
        yield of_layer + "self_attn.o_proj.weight", [width, heads * head]
        for name, shape in {"gate": [inner, width], "up": [inner, width], "down": [width, inner]}.items():
            yield f"{of_layer}mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield of_layer + name + ".weight", [width]
    yield "model.norm.weight", [width]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [rows, width]


def write_model(folder, config):
    """A folder of zeros: the file has holes and takes no room."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config, num_hidden_layers=LAYERS)))
    header, end = {}, 0
    for name, shape in tensors(config):
        numbers = 1
        for side in shape:
            numbers *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * numbers]}
        end += 2 * numbers
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


class Run:
    """A stage of the real binary over the fake driver."""

    def __init__(self, program, work, sm, listed):
        self.program, self.work, self.sm, self.listed = program, work, sm, listed
        self.failed = []

    def stage(self, name, stage, recipe, head=(K, 0, 0)):
        """Kept tokens, drawn tokens and temperatures are those of the selection of labels."""
        folder = self.work / f"sm-{self.sm}"
        folder.mkdir(exist_ok=True)
        # Kernels that were compiled once are loaded from then on; and all candidates for a product are compiled.
        (folder / "cubecl.toml").write_text(
            "[compilation]\ncache = true\n[environment]\npath = \"local\"\n"
            "[autotune]\ndisable_cache = true\ndisable_short_circuit = true\n"
            "bench = { min_samples = 1, max_samples = 1 }\n"
        )
        path = folder / (re.sub(r"\W+", "-", name) + ".toml")
        path.write_text(recipe)
        kept, drawn, temperatures = head
        words = HEADER + temperatures + 2 * kept + 2 * drawn
        environment = dict(
            os.environ,
            SOFTSHARD_FAKE_SM=str(self.sm),
            SOFTSHARD_FAKE_HEAD=f"{words} {kept} {drawn}",
            SOFTSHARD_NVRTC_LIST=str(self.listed),
        )
        start = time.monotonic()
        command = [self.program, stage, str(path), "--device", "cuda:0", "--log-format", "json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        print(f"sm_{self.sm} {stage} {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        path.with_suffix(f".{stage}.log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            self.failed.append(name)
            print(done.stderr[-3000:], file=sys.stderr, flush=True)


def recipe(work, output, model, teacher="", labels="", student="", model_of_student=None):
    return f"""
[data]
instructions = "{work}/rows.jsonl"
mask = "all"
template = "none"
max_prompt_tokens = 3900
max_tokens = 4000
split = {{ valid_rows = 0, seed = 1 }}
[tokenizer]
path = "{work}/data/tokenizer"
[teacher]
model = "{work}/{model}"
{teacher}
[labels]
{labels or f'selection = {{ kind = "top_k", k = {K} }}'}
[student]
model = "{work}/{model_of_student or model}"
epochs = 1
max_steps = 1
max_tokens_per_batch = 2048
{student}
[output]
dir = "{output}"
sequences = "{work}/sequences"
"""


def settings(work, sm):
    """Stage by stage: a name, the stage, the recipe, and what a row of labels holds."""
    out = work / f"sm-{sm}" / "runs"
    for model in ("head-128", "head-64", "head-80"):
        for precision in ("bf16", "f32"):
            for way, key in WAYS.items():
                name = f"{model}, {precision}, {way}"
                output = out / name.replace(", ", "-").replace(" ", "-")
                keys = f'precision = "{precision}"\n{key}'
                text = recipe(work, output, model, teacher=keys, student=f"{keys}\n{LORA}")
                yield name, "teacher-labels", text, (K, 0, 0)
                yield name, "train-student", text, (K, 0, 0)
            name = f"{model}, {precision}, by layer"
            output = out / f"{model}-{precision}-resident"
            keys = f'precision = "{precision}"\ncheckpointing = "layer"\npacking = true'
            text = recipe(work, output, model, student=f"{keys}\n{LORA}")
            yield name, "train-student", text.replace("[output]", '[output]\nstudent = "by-layer"'), (K, 0, 0)
    yield from of_labels(work, out)
    yield from of_losses(work, out)


def of_labels(work, out):
    """Every selection of labels, of a model that is small."""
    selections = {
        "top_p": ('selection = { kind = "top_p", p = 0.9, k = 64 }', (K, 0, 0)),
        "sampled": ('selection = { kind = "sampled", draws = 32 }', (0, 32, 0)),
        "top_k_sampled": ('selection = { kind = "top_k_sampled", k = 16, draws = 16 }', (16, 16, 0)),
        "two temperatures": (f'selection = {{ kind = "top_k", k = {K} }}\ntemperatures = [2.0]', (K, 0, 1)),
    }
    for name, (labels, head) in selections.items():
        for precision in ("bf16", "f32"):
            output = out / f"{name.replace(' ', '-')}-{precision}"
            text = recipe(work, output, "small", teacher=f'precision = "{precision}"', labels=labels)
            yield f"labels, {name}, {precision}", "teacher-labels", text, head


def of_losses(work, out):
    """Every loss, and every optimizer where a whole model learns."""
    output = out / "two-temperatures-f32"
    divergences = ["forward_kl", "reverse_kl", "tvd", '{ kind = "jsd", beta = 0.5 }', '{ kind = "skew_kl", lambda = 0.1 }']
    number = 0
    for divergence in divergences:
        for tail in ("bucket", "renormalise", "drop", "uniform"):
            if divergence == "reverse_kl" and tail == "drop":
                continue
            number += 1
            value = divergence if divergence.startswith("{") else f'"{divergence}"'
            loss = f'{LORA}\nloss = {{ divergence = {value}, tail = "{tail}", temperature = 2.0 }}'
            text = recipe(work, output, "small", student=loss, labels='temperatures = [2.0]\nselection = { kind = "top_k", k = 64 }')
            yield f"loss, {divergence}, {tail}", "train-student", text.replace("[output]", f'[output]\nstudent = "loss-{number}"'), (K, 0, 1)
    whole = {
        "adamw": f'evaluation = {{ every_steps = 1, data = "{output}/labels/train" }}\n' +
        'loss = { alpha = { kind = "entropy", scale = 1.0 }, normalise = true }',
        "muon": 'optimizer = "muon"\nema_decay = 0.9\ncheckpointing = "layer"',
    }
    for name, keys in whole.items():
        text = recipe(work, output, "small", student=keys, labels='temperatures = [2.0]\nselection = { kind = "top_k", k = 64 }')
        yield f"whole model, {name}", "train-student", text.replace("[output]", f'[output]\nstudent = "{name}"'), (K, 0, 1)


def prepare(program, work):
    """Models, sequences of unlike lengths, and a tokenizer that they need not know."""
    for name, config in MODELS.items():
        write_model(work / name, config)
    subprocess.run([program, "demo-data", work / "data"], check=True, capture_output=True)
    with open(work / "rows.jsonl", "w") as file:
        for row in range(18):
            ids = [(at * 37 + row) % 200 for at in range(60 + 97 * row % 1100)]
            print(json.dumps({"input_ids": ids}), file=file)
    path = work / "prepare.toml"
    path.write_text(recipe(work, work / "prepared", "small"))
    subprocess.run([program, "prepare", path], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--sm", default="80,90,100")
    parser.add_argument("--only", default="", help="settings whose name has this pattern")
    parser.add_argument("--list", type=Path, help="where the list of all kernels is written")
    parser.add_argument("--work", type=Path, help="a folder that stays")
    options = parser.parse_args()
    program = str(Path(options.program).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        listed = (options.list or work / "kernels.tsv").resolve()
        if not (work / "sequences").exists():
            prepare(program, work)
        failed = []
        for sm in map(int, options.sm.split(",")):
            run = Run(program, work, sm, listed)
            for name, stage, text, head in settings(work, sm):
                if re.search(options.only, f"{stage} {name}"):
                    run.stage(name, stage, text, head)
            failed += [f"sm_{sm}: {name}" for name in run.failed]
        wrong = table(listed)
    if failed:
        print(f"\nstages that stopped: {'; '.join(failed)}")
    return 1 if wrong or failed else 0


def table(listed):
    """How many kernels of each name were compiled for each architecture; what was not."""
    counts = collections.defaultdict(collections.Counter)
    wrong, architectures = [], []
    for line in open(listed):
        architecture, code, registers, local, _, name, types = line.rstrip("\n").split("\t")
        if architecture not in architectures:
            architectures.append(architecture)
        counts[name][architecture, code == "0"] += 1
        counts[name]["registers"] = max(counts[name]["registers"], int(registers))
        counts[name]["local"] = max(counts[name]["local"], int(local))
        if code != "0":
            wrong.append((architecture, name, types))
    print("| kernel | " + " | ".join(architectures) + " | registers | local bytes |")
    print("|---" * (len(architectures) + 3) + "|")
    for name, found in sorted(counts.items()):
        cells = []
        for one in architectures:
            bad = found[one, False]
            cells.append(f"{found[one, True]}" + (f", {bad} FAILED" if bad else ""))
        print(f"| `{name}` | " + " | ".join(cells) + f" | {found['registers']} | {found['local']} |")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
