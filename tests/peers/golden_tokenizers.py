"""The part of golden/ about tokenizers: ids, texts and rendered conversations as transformers gives them.

Called by make_golden.py. It writes below tokenizers/
  * NAME/: small tokenizers trained here, as Llama-2 (SentencePiece's bytes and spaces) and as Llama-3 and Qwen (bytes) have
    them, whose post-processor puts the first token or not, whatever `add_bos_token` says;
  * expected.json: of each of them, ids with and without special tokens, and the texts of the ids;
  * qwen2.5-chat.jinja, chat.expected.json: the template of Qwen2.5-7B-Instruct (Apache-2.0) and what it renders;
  * real.expected.json: ids of Qwen2.5's and GPT-2's own tokenizers for texts with added tokens inside.

The last two need the folder of real data; where it is absent, what is in golden/ already is kept.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

from golden_common import write_json  # first: it sets the environment of transformers

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

REAL_DATA = Path(__file__).parents[3] / "shared/data"
KEPT = Path(__file__).parent / "golden/tokenizers"
ADDED = [
    AddedToken("<|tool|>", special=False, normalized=False),
    AddedToken("<mask>", special=True, lstrip=True, normalized=False),
    AddedToken("[end]", special=True, rstrip=True, normalized=False),
    AddedToken("word", special=False, single_word=True, normalized=False),
]
# The class that takes tokenizer.json as it is. LlamaTokenizer of transformers 5 puts a normalizer of its own in place of the
# file's: of a text that begins with a space it makes one space fewer.
CLASS = "PreTrainedTokenizerFast"
# What the small tokenizers learn from, and what all are asked.
CORPUS = [
    "the teacher writes labels and the student reads them: no step of the student needs the teacher again.",
    "a model is a folder; a label is a number, a number is 12 or 345 or 6,789, and nothing is lost.",
    "Wörter mit Umlauten, naïve cafés, 東京, and an emoji 🙂 are bytes in the end.",
]
TEXTS = [
    "",
    " ",
    "the student",
    " the student",
    "two  spaces,   three, a\ttab\nand lines\n\n",
    "Don't, I'LL, it's 2026: 1234567 and 3.14",
    "naïve café 東京 🙂 ñandú",
    "e\u0301 is not \u00e9",
    "{bos}the student{eos}",
    "the {bos} student",
    "a<|tool|>b <|tool|> c",
    "fill the <mask> here",
    "stop[end]  here",
    "a word, swords and word",
    "<|tool|><mask>[end]",
]
REAL_TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a <|endoftext|> b<|endoftext|>",
    "<tool_call>{}</tool_call> <|im_end|",
    "\n\nLines  and\tspaces, I'll   say 12345 times: ñandú 東京 🙂",
]
CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", " Why?\n")],
    [("user", "One?"), ("assistant", "Two."), ("system", "Now in French."), ("user", "Three?"), ("assistant", "Quatre")],
    [("user", "{{ not a template }} <b>&amp;</b> 'quotes' \"too\" \\n"), ("assistant", "")],
]


def begin_with(token: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def learn(words: list[str], count: int) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding, the most frequent first and then by name: the library's own trainer breaks ties by chance."""
    parts = [list(word) for word in words]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in parts for pair in zip(word, word[1:]))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in parts:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def vocabulary(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    return {token: id for id, token in enumerate(dict.fromkeys([*tokens, *map("".join, merges)]))}


def sentencepiece_like() -> Tokenizer:
    """Llama-2 and Mistral: spaces are letters, what is unknown is bytes."""
    words = ["▁" + word for text in CORPUS for word in text.split(" ")]
    letters = Counter(letter for word in words for letter in word)
    kept = sorted(letter for letter, count in letters.items() if count > 1)
    words = [word for word in words if set(word) <= set(kept)]
    merges = learn(words, 60)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *kept]
    model = models.BPE(vocabulary(tokens, merges), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def bytes_like(begin: str, end: str) -> Tokenizer:
    """Llama-3, Qwen, GPT-NeoX and GPT-2: bytes as letters, words by a pattern."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    merges = learn([word for text in CORPUS for word, _ in words.pre_tokenize_str(text)], 60)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocabulary(alphabet, merges), merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([begin, end])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, begin: str, end: str, **settings: object) -> None:
    tokenizer.add_tokens([token for token in ADDED if not token.special])
    tokenizer.add_special_tokens([token for token in ADDED if token.special])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
    config = {"bos_token": begin, "eos_token": end, "clean_up_tokenization_spaces": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def small_tokenizers(out: Path) -> list[str]:
    """Every way of beginning a text: by the post-processor, against the configuration's word, and not at all."""
    llama = sentencepiece_like()
    llama.post_processor = begin_with("<s>", llama)
    save(llama, out / "llama2-like", "<s>", "</s>", tokenizer_class=CLASS, add_bos_token=True, unk_token="<unk>")
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    llama3 = bytes_like(begin, end)
    llama3.post_processor = processors.Sequence([llama3.post_processor, begin_with(begin, llama3)])
    save(llama3, out / "llama3-like", begin, end, tokenizer_class=CLASS, add_bos_token=False)
    qwen = bytes_like(begin, end)
    save(qwen, out / "qwen-like", begin, end, tokenizer_class=CLASS, add_bos_token=True)
    return ["llama2-like", "llama3-like", "qwen-like"]


def load(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def answers(folder: Path, texts: list[str]) -> dict:
    """Ids of each text as a call of the tokenizer gives them, the same without special tokens, and texts of those."""
    tokenizer = load(folder)
    special = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token}
    rows = []
    for text in texts:
        for name, token in special.items():
            text = text.replace("{" + name + "}", token)
        ids = tokenizer.encode(text, add_special_tokens=False)
        rows.append(
            {
                "text": text,
                "ids": ids,
                "ids_with_special": tokenizer.encode(text),
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                "decoded_all": tokenizer.decode(ids),
            }
        )
    return {"tokenizer": folder.name, "rows": rows}


def chats() -> list[dict]:
    tokenizer = load(REAL_DATA / "tokenizers/qwen2.5")
    tokenizer.chat_template = (REAL_DATA / "templates/Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
    rendered = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (False, True):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            rendered.append({"messages": messages, "add_generation_prompt": prompt, "text": text})
    return rendered


def make(out: Path) -> None:
    out = out / "tokenizers"
    names = small_tokenizers(out)
    write_json(out / "expected.json", [answers(out / name, TEXTS) for name in names])
    if REAL_DATA.exists():
        shutil.copyfile(REAL_DATA / "templates/Qwen-Qwen2.5-7B-Instruct.jinja", out / "qwen2.5-chat.jinja")
        write_json(out / "chat.expected.json", chats())
        folders = [REAL_DATA / "tokenizers" / name for name in ("qwen2.5", "gpt2")]
        write_json(out / "real.expected.json", [answers(folder, REAL_TEXTS) for folder in folders])
    else:
        print(f"no {REAL_DATA}: the files of real tokenizers are kept")
        for name in ("qwen2.5-chat.jinja", "chat.expected.json", "real.expected.json"):
            shutil.copyfile(KEPT / name, out / name)
