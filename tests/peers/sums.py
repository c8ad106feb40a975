"""Short instruction rows on standard output, as JSONL: sums.py ROWS. They fit the 64 positions of the golden models."""

import json
import random
import sys

numbers = random.Random(1)
for _ in range(int(sys.argv[1])):
    a, b = numbers.randrange(1000), numbers.randrange(1000)
    print(json.dumps({"instruction": f"Add {a} and {b}.", "response": f"{a} + {b} = {a + b}"}))
