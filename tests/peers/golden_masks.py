"""The part of golden/ about loss masks: what `apply_chat_template(..., return_assistant_tokens_mask=True)` gives.

Called by make_golden.py after golden_tokenizers.py, whose small tokenizers it uses. It writes tokenizers/masks.expected.json: of each
tokenizer, template and conversation the token ids and the mask over them. Among the templates are marks that begin or end with white
space, within a token, or with nothing in them, and a tokenizer whose offsets leave white space out.
"""

from pathlib import Path

from golden_common import write_json  # first: it sets the environment of transformers

import transformers
from tokenizers import processors

NAMES = ["llama2-like", "llama3-like", "qwen-like"]
# Marks around the whole answer with its end, around the text alone, with the space before it, and without that space.
TEMPLATES = {
    "whole": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '[a]' }}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{{ '\\n' }}{% else %}{{ '[' + m.role + ']' + m.content + eos_token + '\\n' }}{% endif %}{% endfor %}",
    "text": "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'a: ' }}{% generation %}{{ m.content }}"
    "{% endgeneration %}{{ '\\n' }}{% else %}{{ 'u: ' + m.content + '\\n' }}{% endif %}{% endfor %}",
    "space": "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'a:' }}{% generation %}{{ ' ' + m.content + ' ' }}"
    "{% endgeneration %}{{ eos_token }}{% else %}{{ 'u: ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "tools": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '[a]' }}{% generation %}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ '[' + m.role + ']' + m.content + eos_token }}{% endif %}{% endfor %}",
}
CALL = {"type": "function", "function": {"name": "number", "arguments": {"of": "caf\u00e9", "n": 12}}}
CONVERSATIONS = [
    [("user", "the teacher"), ("assistant", "the student")],
    [("system", "na\u00efve"), ("user", "Hi"), ("assistant", "e\u0301 \u6771\u4eac \U0001f642"), ("user", "12"), ("assistant", " 345 ")],
    [("user", "lines\n"), ("assistant", "\n\nnothing is lost\n"), ("user", ""), ("assistant", "\u6771")],
    [("user", "Hi"), ("assistant", ""), ("user", "again"), ("assistant", "label")],
    [("user", "a"), ({"role": "assistant", "content": None, "tool_calls": [CALL]}), ("tool", "12"), ("assistant", "12.")],
    [("user", "a"), ({"role": "assistant", "reasoning_content": "the number \u00fc", "content": "345"})],
]


def messages(conversation: list) -> list[dict]:
    return [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in conversation]


def masks(folder: Path) -> list[dict]:
    rows = []
    for trims in (False, True):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if trims:
            if folder.name != "qwen-like":
                continue
            # As GPT-2 and RoBERTa have it.
            tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        for name, template in TEMPLATES.items():
            for conversation in map(messages, CONVERSATIONS):
                is_plain = all(message.get("content") is not None for message in conversation)
                if name != "tools" and not is_plain:
                    continue
                made = tokenizer.apply_chat_template(
                    conversation, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
                )
                rows.append(
                    {
                        "tokenizer": folder.name,
                        "trims_offsets": trims,
                        "template": template,
                        "messages": conversation,
                        "ids": made["input_ids"],
                        "mask": made["assistant_masks"],
                    }
                )
    return rows


def make(out: Path) -> None:
    out = out / "tokenizers"
    write_json(out / "masks.expected.json", [row for name in NAMES for row in masks(out / name)])
