"""Recomputes a `softshard lookback` with transformers: check_lookback.py MODEL JUDGED CLASSIFIER SCORES.

JUDGED has rows with `summaries`, CLASSIFIER is what `lookback train` wrote, SCORES what `lookback score` did. Attention is transformers'
own (`attn_implementation="eager"`), features are those of Lookback Lens (arXiv 2407.07071): of the row that writes a token, the mean
attention to the context over that plus the mean to the rest. The classifier must be the minimum of scikit-learn's objective for these
features (golden_statistics.py has its own weights), and every probability the same.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

assert transformers.__version__ == "5.23.0"
# f32 attention in another order of sums.
PROBABILITY = 1e-5
SLOPE = 1e-4


def features(model, tokenizer, template: str, document: str, answer: str) -> np.ndarray:
    """[tokens of the answer, layers * heads]."""
    before, rest = template.split("{document}")
    between = rest.removesuffix("{answer}")
    text = before + document + between + answer
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    context = next(i for i, end in enumerate(ends) if end > len(before + document))
    prompt = next(i for i, end in enumerate(ends) if end > len(before + document + between))
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    found = []
    for row in range(prompt - 1, ids.shape[1] - 1):
        to_context = torch.cat([layer[0, :, row, :context].mean(-1) for layer in attentions])
        to_rest = torch.cat([layer[0, :, row, context : row + 1].mean(-1) for layer in attentions])
        found.append((to_context / (to_context + to_rest)).numpy())
    return np.array(found, np.float64)


def windows(tokens: np.ndarray, size: int) -> np.ndarray:
    size = min(size, len(tokens))
    return np.array([tokens[i : i + size].mean(0) for i in range(len(tokens) - size + 1)])


def main():
    model_dir, judged, classifier, scores = sys.argv[1:]
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    found = json.loads(Path(classifier).read_text())
    rows = [json.loads(line) for line in Path(scores).with_suffix(".rows.jsonl").read_text().splitlines()]
    answers = [
        (row["document"], summary["summary"], bool(summary["consistent"]))
        for row in map(json.loads, Path(judged).read_text().splitlines())
        for summary in row["summaries"]
    ]
    assert len(answers) == len(rows), (len(answers), len(rows))
    tokens = [features(model, tokenizer, found["template"], document, answer) for document, answer, _ in answers]
    factual = [label for *_, label in answers]
    spans = (np.array([of.mean(0) for of in tokens]), np.array(factual))
    cut = [windows(of, found["window"]) for of in tokens]
    of_windows = (np.concatenate(cut), np.concatenate([[label] * len(of) for of, label in zip(cut, factual, strict=True)]))

    worst = 0.0
    for name, (x, y) in {"spans": spans, "windows": of_windows}.items():
        weights = np.array(found[name]["weights"])
        expected = 1 / (1 + np.exp(-(x @ weights + found[name]["intercept"])))
        pull = found["c"] * (expected - y)
        slope = max(np.abs(weights + pull @ x).max(), abs(pull.sum()))
        assert slope < SLOPE * len(y), (name, slope)
        said = np.concatenate([row[name] for row in rows])
        assert said.shape == expected.shape, (said.shape, expected.shape)
        worst = max(worst, np.abs(said - expected).max())
    assert worst < PROBABILITY, worst
    print(f"lookback: {len(answers)} answers, {len(of_windows[1])} windows: probabilities within {worst:.1e} of transformers' attention")


main()
