# Sourced with $softshard and $python set: a temporary folder $world with ROWS short rows, a tokenizer, and the beginning of a
# recipe whose teacher is the golden tiny-llama; the caller adds its sections.
world=$(mktemp -d)
trap 'rm -rf "$world"' EXIT
tiny_llama="$PWD/tests/peers/golden/tiny-llama"
"$softshard" demo-data "$world/data" --rows 100 --vocab-size 300 >/dev/null
"$python" tests/peers/sums.py "$1" >"$world/sums.jsonl"
cat >"$world/recipe.toml" <<TOML
[data]
instructions = "sums.jsonl"
template = "none"
split = { valid_rows = 20, test_rows = 20, seed = 1 }
[tokenizer]
path = "data/tokenizer"
[output]
dir = "run"
[teacher]
model = "$tiny_llama"
TOML
