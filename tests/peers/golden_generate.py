"""Answers as transformers' `generate` gives them: golden/generate.json.

    golden_generate.py            writes it
    golden_generate.py --check    computes everything again and compares

Environment `torch`. Models and tokenizers are those of golden/. It has
  * `greedy`: ids with a repetition penalty and several end tokens. All prompts of a case run as one batch, padded on the left, and each
    alone; both must give the same. (transformers counts padding as tokens that were there: the padding token's own logit is penalised in
    some batches, so a case in which it comes near is drawn again.);
  * `stop_strings`: ids and text of answers that end at a text which lies across tokens;
  * `warped`: probabilities that are left of given logits after temperature, top-k and top-p, in transformers' order.
"""

import argparse
import json
import sys
from pathlib import Path

from golden_common import MIN_GREEDY_GAP, VERSIONS, write_json

import numpy as np
import torch
import transformers
from transformers.generation import logits_process

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

GOLDEN = Path(__file__).parent / "golden"
OUT = GOLDEN / "generate.json"
CHECK_TOLERANCE = 1e-8  # nine digits are written
NEW_TOKENS = 24
PADDING = 0


def load(name: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        GOLDEN / name, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def generate(model, prompts: list[list[int]], **options):
    """Answers of one padded batch, and the smallest gap between the two best scores of any step that counts."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[PADDING] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    found = model.generate(
        input_ids=padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=PADDING,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    ends = options.get("eos_token_id", [])
    answers, gap = [], float("inf")
    for row, sequence in enumerate(found.sequences[:, longest:].tolist()):
        stop = next((i for i, token in enumerate(sequence) if token in ends), len(sequence))
        for scores in found.scores[: stop + 1]:
            best = torch.topk(scores[row], 2).values
            gap = min(gap, float(best[0] - best[1]))
        answers.append(sequence[:stop])
    return answers, gap


def greedy_case(name: str, penalty: float, rng: np.random.Generator) -> dict:
    model = load(name)
    vocabulary = model.config.vocab_size
    ends = sorted(rng.choice(np.arange(3, vocabulary), max(3, vocabulary // 25), replace=False).tolist())
    while True:
        prompts = [rng.integers(3, vocabulary, length).tolist() for length in (1, 9, 4, 17)]
        options = {"repetition_penalty": penalty, "eos_token_id": ends}
        together, gap = generate(model, prompts, **options)
        alone = [generate(model, [prompt], **options) for prompt in prompts]
        ended = [len(one) < NEW_TOKENS for one in together]
        near = min([gap] + [gap for _, gap in alone]) < MIN_GREEDY_GAP
        if not near and together == [one[0][0] for one in alone] and any(ended) and not all(len(one) < 3 for one in together):
            return {"model": name, "repetition_penalty": penalty, "stop_ids": ends, "prompts": prompts, "answers": together}


def stop_strings(rng: np.random.Generator) -> dict:
    name, of_tokenizer = "tiny-llama", "qwen-like"
    model = load(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / of_tokenizer, local_files_only=True)
    cases = []
    while len(cases) < 6:
        prompt = rng.integers(3, 250, 6).tolist()
        (free,), gap = generate(model, [prompt], eos_token_id=[-1])
        text = tokenizer.decode(free)
        middle = len(tokenizer.decode(free[:10]))
        stop = text[middle - 1 : middle + 1]
        if gap < MIN_GREEDY_GAP or "\ufffd" in text or stop.strip() != stop or len(stop) < 2:
            continue
        found = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=PADDING,
            eos_token_id=-1,
            stop_strings=[stop, "not there"],
            tokenizer=tokenizer,
        )
        ids = found[0, len(prompt) :].tolist()
        assert ids == free[: len(ids)] and len(ids) < len(free)
        cases.append({"prompt": prompt, "stop": stop, "answer": ids, "text": tokenizer.decode(ids)})
    return {"model": name, "tokenizer": of_tokenizer, "cases": cases}


def warped(rng: np.random.Generator) -> list[dict]:
    cases = []
    for temperature, top_k, top_p in [
        (1.0, None, 1.0),
        (0.7, None, 1.0),
        (1.5, 5, 1.0),
        (1.0, None, 0.9),
        (0.6, None, 0.3),
        (2.0, 20, 0.8),
        (0.7, 20, 0.8),
        (1.0, 1, 1.0),
        (0.01, 50, 0.5),
        (1.0, None, 0.999),
        (1.3, 400, 0.95),
    ]:
        logits = (rng.standard_normal(300) * 3).astype(np.float32)
        scores = torch.tensor(logits)[None].double()
        if temperature != 1.0:
            scores = logits_process.TemperatureLogitsWarper(temperature)(None, scores)
        if top_k is not None:
            scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1.0:
            scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
        found = torch.softmax(scores, -1)[0].tolist()
        cases.append(
            {
                "logits": [float(x) for x in logits],
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "probabilities": found,
            }
        )
    return cases


def penalised(rng: np.random.Generator) -> dict:
    logits = (rng.standard_normal(40) * 3).astype(np.float32)
    known = [3, 7, 7, 11, 39]
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    found = processor(torch.tensor([known]), torch.tensor(logits)[None].clone())[0]
    return {"logits": [float(x) for x in logits], "known": known, "penalty": 1.3, "penalised": found.tolist()}


def make() -> dict:
    rng = np.random.default_rng(17)
    cases = [("tiny-llama3", 1.05), ("tiny-llama3", 1.4), ("tiny-gpt2", 1.2), ("tiny-qwen3-windows", 1.3), ("tiny-llama", 1.0)]
    return {
        "versions": VERSIONS,
        "greedy": [greedy_case(name, penalty, rng) for name, penalty in cases],
        "stop_strings": stop_strings(rng),
        "penalised": penalised(rng),
        "warped": warped(rng),
    }


def differences(kept, found, place: str) -> list[str]:
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        return [d for key in kept for d in differences(kept[key], found[key], f"{place}.{key}")]
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return [d for i, (a, b) in enumerate(zip(kept, found, strict=True)) for d in differences(a, b, f"{place}[{i}]")]
    if isinstance(kept, float) or isinstance(found, float):
        return [] if abs(kept - found) <= CHECK_TOLERANCE * max(1.0, abs(kept)) else [f"{place}: {kept} and {found}"]
    return [] if kept == found else [f"{place}: {kept} and {found}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden/ instead of writing it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.check:
        write_json(OUT, make())
        return 0
    found = differences(json.loads(OUT.read_text()), make(), "generate")
    for line in found[:20]:
        print(line, file=sys.stderr)
    print(f"generate.json: made again, {len(found)} differences", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
