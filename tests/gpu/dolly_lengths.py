#!/usr/bin/env python3
"""Tokens and labelled tokens of a random sample of Dolly: dolly_lengths.py SEQUENCES_DIR >dolly_lengths.csv

SEQUENCES_DIR is what `softshard prepare` made of all of Dolly with Qwen2.5's tokenizer, MiniLLM's template, prompts of at most 512
tokens and sequences of at most 1,024. Needs pyarrow (tests/peers/venv.sh ci). Lengths alone are kept, nothing of the text.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

import shards

SEED = 10
ROWS = 2048

lengths = [(len(row["input_ids"]), len(row["positions"])) for row in shards.rows(Path(sys.argv[1]))]
print("tokens,labelled")
for tokens, labelled in random.Random(SEED).sample(lengths, ROWS):
    print(f"{tokens},{labelled}")
