#!/usr/bin/env bash
# What CI runs of the peers: readers that are not ours on a dataset that our binary wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
softshard="${CARGO_TARGET_DIR:-target}/debug/softshard"
python=$(tests/peers/venv.sh ci)
"$python" tests/peers/test_check_labels.py

. tests/peers/world.sh 200
cat >>"$world/recipe.toml" <<TOML
[labels]
temperatures = [2.0]
sequences_per_shard = 60
TOML
"$softshard" prepare "$world/recipe.toml" >/dev/null
for selection in '{ kind = "top_k", k = 16 }' '{ kind = "top_p", p = 0.9, k = 64 }'; do
    "$softshard" teacher-labels "$world/recipe.toml" --set "labels.selection=$selection" >/dev/null
    for split in train valid; do
        "$python" tests/peers/check_labels.py "$world/run/labels/$split"
    done
    rm -rf "$world/run/labels"
done
