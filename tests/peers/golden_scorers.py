#!/usr/bin/env python3
"""golden/scorers/: small encoders with random weights and the scores that transformers gives with each scorer's rules.

The rules (text forms, chunks, aggregation) are written here a second time, from docs/scorers.md; tokenizers and models are Hugging
Face's. Weights are bf16, so that they are the same numbers in f32. Sentences of the made-up texts end where nobody can doubt it.
`--check` computes everything again and compares.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from golden_common import VERSIONS, write_json  # first: it sets the environment of transformers

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
assert VERSIONS["transformers"] == "5.23.0"

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

GOLDEN = Path(__file__).parent / "golden" / "scorers"
# Another order of f32 sums moves a probability by less.
CHECK_TOLERANCE = 1e-5
# Random scores that are all alike would hide errors.
MIN_SPREAD = 0.1

WORDS = (
    "the red house near river was sold in spring and a small team of people from town moved there with two dogs after council said "
    "that no money would come back before winter but nobody knew why students read old books while rain fell on garden wall"
).split()
TAILS = ["in 1987", "for 12 pounds", "at the café", "with “care”", "near 東京", "again", "by Anna", "\U0001f642 today", "(as planned)", "on Monday"]
RNG = np.random.default_rng(5)


def sentence() -> str:
    words = [WORDS[i] for i in RNG.integers(0, len(WORDS), RNG.integers(5, 16))]
    text = " ".join(words + [TAILS[RNG.integers(len(TAILS))]])
    return text[0].upper() + text[1:] + ".!?"[RNG.integers(3)]


def text(count: int, lines: bool = False) -> str:
    parts = [sentence() for _ in range(count)]
    return "".join(p + ("\n\n" if lines and i % 5 == 4 else "\n" if lines and i % 5 == 2 else " ") for i, p in enumerate(parts)).strip()


def sentences(whole: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", whole) if part.strip()]


def pieces(whole: str) -> list[str]:
    found = []
    for block in whole.split("\n"):
        found += [*sentences(block), "\n"]
    return found[:-1]


def by_size(whole: str, most: int, size) -> list[str]:
    chunks, current, total = [], [], 0
    for piece in pieces(whole):
        added = size(piece)
        if total + added > most:
            chunks.append(" ".join(current))
            current, total = [], 0
        current.append(piece)
        total += added
    chunks.append(" ".join(current))
    return [c for c in (chunk.replace(" \n ", "\n").strip() for chunk in chunks) if c]


def by_sentences(whole: str) -> list[str]:
    parts = sentences(whole)
    each = max(len(parts) // (len(whole.split()) // 350 + 1), 1)
    return [" ".join(parts[i : i + each]) for i in range(0, len(parts), each)]


# Tokenizers: byte-level as RoBERTa and ModernBERT have it, SentencePiece's unigrams as T5 has it.


def byte_level(corpus: list[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def tokenizer_of(kind: str, corpus: list[str]) -> PreTrainedTokenizerFast:
    if kind == "roberta":
        tokenizer = byte_level(corpus, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
        special = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>")
    elif kind == "modernbert":
        tokenizer = byte_level(corpus, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
        special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    else:
        letters = sorted({letter for line in corpus for letter in line if not letter.isspace()})
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        vocabulary += [("▁" + word, -4.0 - i / 50) for i, word in enumerate(WORDS)]
        vocabulary += [(letter, -8.0 - i / 100) for i, letter in enumerate(letters)]
        vocabulary += [(f"<extra_id_{i}>", 0.0) for i in range(240 - len(vocabulary))]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
        )
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "</s>", "<unk>")])
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
        tokenizer.decoder = decoders.Metaspace()
        special = dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


# Models.

ROBERTA = dict(
    vocab_size=330, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, max_position_embeddings=514,
    type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)  # fmt: skip
MODERNBERT = dict(
    vocab_size=330, hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=32, max_position_embeddings=700,
    local_attention=24, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
T5 = dict(
    vocab_size=250, d_model=24, d_kv=5, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
    decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
)  # fmt: skip


def spread(model: torch.nn.Module, scale: float, seed: int) -> None:
    """Random numbers for every parameter: norms near 1, biases that are not 0, matrices so large that scores differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(dict(model.named_parameters()).items()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "shared" in name:
                parameter.copy_(0.4 * noise)
            elif "embed" in name or "relative_attention_bias" in name:
                parameter.copy_(noise)
            elif any(part in name for part in ("classifier", "_layer.weight", "lm_head", "head.dense", "pooler")):
                parameter.copy_(noise * 2 * scale / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(noise * scale / parameter.shape[-1] ** 0.5)


def saved(folder: Path, model: transformers.PreTrainedModel, loader) -> transformers.PreTrainedModel:
    """Written in bf16, and read again in f32."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()


class AlignScore(torch.nn.Module):
    """The modules of AlignScore's model that its checkpoint has, by their names (yuh-zha/AlignScore a0936d5a, src/alignscore/model.py)."""

    def __init__(self, config: transformers.RobertaConfig) -> None:
        super().__init__()
        self.base_model = transformers.RobertaModel(config, add_pooling_layer=True)
        self.bin_layer = torch.nn.Linear(config.hidden_size, 2)
        self.tri_layer = torch.nn.Linear(config.hidden_size, 3)
        self.reg_layer = torch.nn.Linear(config.hidden_size, 1)


def roberta(out: Path, name: str, seed: int, **config) -> transformers.PreTrainedModel:
    model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**ROBERTA, **config))
    spread(model, 1.8, seed)
    return saved(out / name, model, transformers.AutoModelForSequenceClassification)


def align_score(out: Path) -> AlignScore:
    config = transformers.RobertaConfig(**ROBERTA, architectures=["RobertaForMaskedLM"])
    model = AlignScore(config)
    spread(model, 1.8, 28)
    folder = out / "align-score"
    folder.mkdir(parents=True)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}, folder / "model.safetensors")
    config.save_pretrained(folder)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()}, strict=False)
    return model.eval()


def modernbert(out: Path, name: str, cls, loader, seed: int, **config) -> transformers.PreTrainedModel:
    model = cls(transformers.ModernBertConfig(**MODERNBERT, **config))
    spread(model, 1.5, seed)
    if cls is transformers.ModernBertForTokenClassification:
        with torch.no_grad():
            model.classifier.bias[1] -= 4.0  # most tokens are supported
    return saved(out / name, model, loader)


def other_config(folder: Path, name: str, keys: dict, loader) -> transformers.PreTrainedModel:
    """The same weights under another configuration, FOLDER.NAME-config.json."""
    config = {**json.loads((folder / "config.json").read_text()), **keys}
    text = json.dumps(config, indent=2) + "\n"
    (folder.parent / f"{folder.name}.{name}-config.json").write_text(text)
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "config.json").write_text(text)
        shutil.copy(folder / "model.safetensors", other)
        return loader.from_pretrained(other, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()


def older_modernbert(folder: Path) -> None:
    """The same model in the words of published folders."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    del config["layer_types"]
    config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
    config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    config["global_attn_every_n_layers"] = 3
    (folder.parent / f"{folder.name}.older-config.json").write_text(json.dumps(config, indent=2) + "\n")


def hhem(out: Path) -> transformers.PreTrainedModel:
    """As HHEM-2.1-Open is published: another prefix, and no sizes in its configuration."""
    folder = out / "hhem"
    model = transformers.T5ForTokenClassification(transformers.T5Config(**T5, num_labels=2))
    spread(model, 1.5, 8)
    with tempfile.TemporaryDirectory() as plain:
        loaded = saved(Path(plain), model, transformers.AutoModelForTokenClassification)
        tensors = load_file(Path(plain) / "model.safetensors")
    folder.mkdir(parents=True)
    save_file({f"t5.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["HHEMv2ForSequenceClassification"], "model_type": "HHEMv2Config", "foundation": "google/flan-t5-base"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return loaded


def seq2seq(out: Path, name: str, tied: bool) -> transformers.PreTrainedModel:
    """With an output matrix of its own, as Flan-T5 has it, or with the embedding, as the first T5."""
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    spread(model, 1.5, 9)
    folder = out / name
    loaded = saved(folder, model, transformers.AutoModelForSeq2SeqLM)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = tied
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not tied:
        # transformers 5 ties random models and saves no head: a distinct one is written beside the rest.
        tensors = load_file(folder / "model.safetensors")
        head = torch.randn(tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(10)) * 0.3
        save_file({**tensors, "lm_head.weight": head.to(torch.bfloat16)}, folder / "model.safetensors", {"format": "pt"})
        loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight), "transformers tied the head"
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert loaded.config.scale_decoder_outputs is tied, "transformers reads the key otherwise"
    return loaded


# Scores, by the rules of docs/scorers.md.


@torch.no_grad()
def classes(model, batch) -> torch.Tensor:
    return model(**batch).logits.double().softmax(-1)


def padded(tokenizer, *texts, **options):
    batch = tokenizer(*texts, padding=True, return_tensors="pt", **options)
    batch.pop("token_type_ids", None)
    return batch


def score_hhem(model, tokenizer, pair) -> dict:
    form = "<pad> Determine if the hypothesis is true given the premise?\n\nPremise: {document}\n\nHypothesis: {answer}"
    return {"consistent": float(classes(model, padded(tokenizer, [form.format(**pair)]))[0, 0, 1]), "chunks": 1}


def score_fact_kb(model, tokenizer, pair) -> dict:
    batch = padded(tokenizer, [pair["answer"]], [pair["document"]], truncation="longest_first", max_length=512)
    return {"consistent": float(classes(model, batch)[0, 1]), "chunks": 1}


def score_mini_check(model, tokenizer, pair) -> dict:
    is_t5 = "T5" in type(model).__name__
    if is_t5:
        chunks = by_size(pair["document"], 500, lambda piece: len(piece.split()))
    else:
        chunks = by_size(pair["document"], 400, lambda piece: len(tokenizer(piece, add_special_tokens=False)["input_ids"]))
    least = 1.0
    for claim in sentences(pair["answer"]):
        texts = [("predict: " if is_t5 else "") + f"{chunk}</s>{claim}" for chunk in chunks]
        batch = padded(tokenizer, texts)
        assert batch["input_ids"].shape[1] <= (2048 if is_t5 else 512), "nothing is cut off"
        if is_t5:
            with torch.no_grad():
                logits = model(**batch, decoder_input_ids=torch.zeros((len(texts), 1), dtype=torch.long)).logits[:, 0]
            found = logits[:, [3, 209]].double().softmax(-1)[:, 1]
        else:
            found = classes(model, batch)[:, 1]
        least = min(least, float(found.max()))
    return {"consistent": least, "chunks": len(chunks)}


def score_sentences(probabilities, tokenizer, pair, limit: int = 512) -> dict:
    chunks = by_sentences(pair["document"])
    best = []
    for claim in sentences(pair["answer"]):
        batch = padded(tokenizer, chunks, [claim] * len(chunks), truncation="only_first", max_length=limit)
        best.append(float(probabilities(batch).max()))
    return {"consistent": float(np.mean(best)), "chunks": len(chunks)}


def align_score_probabilities(model):
    def probabilities(batch) -> torch.Tensor:
        with torch.no_grad():
            return model.tri_layer(model.base_model(**batch).pooler_output).double().softmax(-1)[:, 0]

    return probabilities


def lettuce_form(passage: str, question: str | None) -> str:
    if question is None:
        return f"Summarize the following text:\npassage 1: {passage}\noutput:"
    return (
        f"Briefly answer the following question:\n{question}\nBear in mind that your response should be strictly based on the following 1 "
        f"passages:\npassage 1: {passage}\nIn case the passages do not contain the necessary information to answer the question, please "
        'reply with: "Unable to answer based on given passages."\noutput:'
    )


def score_lettuce(model, tokenizer, pair) -> dict:
    """Of each token of the answer the least probability over the chunks that it is not supported."""
    limit = min(4096, model.config.max_position_embeddings)
    answer = pair["answer"]

    def text(passage: str):
        return tokenizer(
            lettuce_form(passage, pair.get("question")), answer, truncation="only_first", max_length=limit,
            return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip

    whole = len(tokenizer(lettuce_form(pair["document"], pair.get("question")), answer)["input_ids"])
    chunks = [pair["document"]]
    if whole > limit:
        room = limit - text("")["input_ids"].shape[1]
        chunks = by_size(pair["document"], room, lambda piece: len(tokenizer(piece, add_special_tokens=False)["input_ids"]) + 1)
    least, offsets = None, None
    for chunk in chunks:
        batch = text(chunk)
        own = [i for i, s in enumerate(batch.sequence_ids(0)) if s == 1]
        offsets = batch.pop("offset_mapping")[0, own].tolist()
        batch.pop("token_type_ids", None)
        found = classes(model, batch)[0, own, 1]
        least = found if least is None else torch.minimum(least, found)
    spans, goes_on = [], False
    for (start, end), value in zip(offsets, least.tolist()):
        assert abs(value - 0.5) > 1e-4, "a token that rounding may turn"
        if value <= 0.5:
            goes_on = False
            continue
        if goes_on:
            spans[-1]["end"] = end
            spans[-1]["confidence"] = max(spans[-1]["confidence"], value)
        else:
            spans.append({"start": start, "end": end, "confidence": value})
        goes_on = True
    return {"consistent": 1 - float(least.max()), "chunks": len(chunks), "spans": spans}


def pairs() -> list[dict]:
    found = []
    for count, claims in ((2, 1), (6, 2), (30, 3), (45, 2), (1, 1), (70, 1)):
        found.append({"document": text(count, lines=count > 10), "answer": text(claims)})
    return found


def judged() -> list[dict]:
    """Of prompts of golden/tiny-llama the probability of some tokens at the next place, of each that is among the greatest five."""
    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN.parent / "tiny-llama", dtype=torch.float32, attn_implementation="eager")
    rows = []
    for length in (3, 17, 40):
        prompt = RNG.integers(3, model.config.vocab_size, length).tolist()
        with torch.no_grad():
            found = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        best = found.argsort(descending=True)
        yes = [int(best[1]), int(best[3]), int(best[7])]
        rows.append({"prompt": prompt, "yes": yes, "consistent": float(found[best[1]] + found[best[3]])})
    return rows


def make(out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    given = pairs()
    corpus = [part for pair in given for part in pair.values()] + ["predict: Premise: Hypothesis: Summarize the following text: passage 1: output:"]
    use = {}
    for kind in ("roberta", "modernbert", "t5"):
        use[kind] = tokenizer_of(kind, corpus)
        use[kind].save_pretrained(out / "tokenizers" / kind)
    # Longer than the 700 tokens that the small ModernBERT reads, and asked a question.
    asked = [dict(pair, question=text(1)) for pair in given[:3]]
    sequence = transformers.AutoModelForSequenceClassification
    nli = dict(id2label={0: "contradiction", 1: "neutral", 2: "entailment"}, label2id={"contradiction": 0, "neutral": 1, "entailment": 2})
    token_classifier = modernbert(
        out, "modernbert-tokens", transformers.ModernBertForTokenClassification, transformers.AutoModelForTokenClassification, 5
    )
    older_modernbert(out / "modernbert-tokens")
    classifier = transformers.ModernBertForSequenceClassification
    first = modernbert(out, "modernbert", classifier, sequence, 6, classifier_pooling="cls", **nli)
    mean = other_config(out / "modernbert", "mean", {"classifier_pooling": "mean"}, sequence)
    two, three = roberta(out, "roberta", 25), roberta(out, "roberta-nli", 25, **nli)
    align = align_score(out)
    own, tied = seq2seq(out, "t5", False), seq2seq(out, "t5-tied", True)
    encoder = hhem(out)
    entailment = lambda model: lambda batch: classes(model, batch)[:, 2]  # noqa: E731
    cases = [
        ("roberta", "mini-check", "roberta", lambda p: score_mini_check(two, use["roberta"], p), given),
        ("roberta", "fact-kb", "roberta", lambda p: score_fact_kb(two, use["roberta"], p), given),
        ("roberta-nli", "nli", "roberta", lambda p: score_sentences(entailment(three), use["roberta"], p), given),
        ("align-score", "align-score", "roberta", lambda p: score_sentences(align_score_probabilities(align), use["roberta"], p), given),
        ("modernbert-tokens", "lettuce-detect", "modernbert", lambda p: score_lettuce(token_classifier, use["modernbert"], p), given + asked),
        ("modernbert", "nli", "modernbert", lambda p: score_sentences(entailment(first), use["modernbert"], p, 700), given),
        ("modernbert.mean", "nli", "modernbert", lambda p: score_sentences(entailment(mean), use["modernbert"], p, 700), given),
        ("t5", "mini-check", "t5", lambda p: score_mini_check(own, use["t5"], p), given),
        ("t5-tied", "mini-check", "t5", lambda p: score_mini_check(tied, use["t5"], p), given),
        ("hhem", "hhem", "t5", lambda p: score_hhem(encoder, use["t5"], p), given),
    ]
    expected, problems = [], []
    for folder, kind, tokenizer, score, of in cases:
        scores = [score(pair) for pair in of]
        values = [one["consistent"] for one in scores]
        if max(values) - min(values) < MIN_SPREAD:
            problems.append(f"{folder} {kind}: scores are alike: {values}")
        expected.append({"folder": folder, "kind": kind, "tokenizer": tokenizer, "scores": scores})
        print(folder, kind, [round(v, 3) for v in values], [s["chunks"] for s in scores], [len(s.get("spans", [])) for s in scores], file=sys.stderr)
    write_json(out / "expected.json", {"pairs": given + asked, "cases": expected, "judge": judged()})
    return problems


def differences(found: object, expected: object, place: str) -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(set(found) | set(expected))
        return [d for k in keys for d in differences(found.get(k), expected.get(k), f"{place}.{k}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [d for i, (f, e) in enumerate(zip(found, expected)) for d in differences(f, e, f"{place}[{i}]")]
    is_near = isinstance(expected, float) and isinstance(found, float) and abs(found - expected) < CHECK_TOLERANCE
    return [] if is_near or found == expected else [f"{place}: expected {expected!r:.60}, found {found!r:.60}"]


def compare(found: Path, golden: Path) -> list[str]:
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) for folder in (found, golden)]
    if names[0] != names[1]:
        return [f"files: {sorted(set(names[0]) ^ set(names[1]))}"]
    problems = []
    for name in names[0]:
        if name.endswith(".json"):
            problems += differences(*(json.loads((folder / name).read_text()) for folder in (found, golden)), name)
        elif (found / name).read_bytes() != (golden / name).read_bytes():
            problems.append(f"{name}: other bytes")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden/scorers instead of writing it")
    torch.set_num_threads(1)
    if parser.parse_args().check:
        with tempfile.TemporaryDirectory() as folder:
            problems = make(Path(folder)) + compare(Path(folder), GOLDEN)
    else:
        shutil.rmtree(GOLDEN, ignore_errors=True)
        problems = make(GOLDEN)
    for problem in problems[:20]:
        print(f"golden/scorers: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
