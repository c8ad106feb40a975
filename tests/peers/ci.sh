#!/usr/bin/env bash
# What CI runs of the peers: readers that are not ours on a dataset that our binary wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
softshard="${CARGO_TARGET_DIR:-target}/debug/softshard"
python=$(tests/peers/venv.sh ci)
"$python" tests/peers/test_check_labels.py
"$python" tests/peers/quantised_levels.py --check
"$python" tests/peers/golden_statistics.py --check
"$python" tests/peers/golden_copying.py --check
"$python" tests/peers/golden_agreement.py --check
HF_HUB_OFFLINE=1 "$python" tests/peers/golden_rows.py --check

. tests/peers/world.sh 200
cat >>"$world/recipe.toml" <<TOML
[labels]
temperatures = [2.0]
sequences_per_shard = 60
TOML
"$softshard" prepare "$world/recipe.toml" >/dev/null
# Labels with these settings, checked and forgotten.
check() {
    "$softshard" teacher-labels "$world/recipe.toml" "${@/#/--set=labels.}" >/dev/null
    for split in train valid test; do
        "$python" tests/peers/check_labels.py "$world/run/labels/$split"
        "$softshard" labels export "$world/run/labels/$split" --to hf -o "$world/hf" >/dev/null
        "$softshard" labels export "$world/run/labels/$split" --to jsonl -o "$world/labels.jsonl" >/dev/null
        "$python" tests/peers/check_exports.py "$world/run/labels/$split" "$world/hf" "$world/labels.jsonl"
        rm -rf "$world/hf"
    done
    "$python" tests/peers/check_published.py "$world/run"
    rm -rf "$world/run/labels"
}
check 'selection={ kind = "top_k", k = 16 }'
check 'selection={ kind = "top_p", p = 0.9, k = 64 }' 'omit=["gold_log_prob"]'
check 'selection={ kind = "sampled", draws = 50 }'
check 'selection={ kind = "top_k_sampled", k = 8, draws = 20 }' 'temperatures=[]' 'omit=["log_sum_exp", "gold_log_prob"]'

# Metrics of a run that is killed after some shards, its last line torn, and of the run that goes on.
metrics=("$softshard" teacher-labels "$world/recipe.toml" --set=labels.sequences_per_shard=5 --set=output.prometheus=softshard.prom)
rm -rf "$world/run/metrics"
"${metrics[@]}" >/dev/null 2>&1 &
while kill -0 $! 2>/dev/null && [[ ! -e $world/run/labels/train/_softshard/commits/00003.json ]]; do sleep 0.01; done
kill -KILL $! 2>/dev/null || true
wait $! || true
printf '{"time":17' >>"$world/run/metrics/teacher-labels.jsonl"
"${metrics[@]}" >/dev/null
shards=$(ls "$world"/run/labels/train/data | wc -l)
"$python" tests/peers/check_metrics.py "$world/run/metrics" teacher-labels "$world/softshard.prom" "$shards"

# Metrics of a training that is killed behind a checkpoint, and again, and goes on.
cat >>"$world/recipe.toml" <<TOML
[student]
model = "$tiny_llama"
epochs = 200
max_steps = 60
max_tokens_per_batch = 256
checkpoint_every_steps = 4
lora = { r = 4, alpha = 8.0, target_modules = ["q_proj"] }
evaluation = { every_steps = 10 }
TOML
student=("$softshard" train-student "$world/recipe.toml")
for lines in 6 21; do
    "${student[@]}" >/dev/null 2>&1 &
    while kill -0 $! 2>/dev/null && (($(cat "$world/run/student/metrics.jsonl" 2>/dev/null | wc -l) < lines)); do sleep 0.01; done
    kill -KILL $! 2>/dev/null || true
    wait $! || true
done
"${student[@]}" >/dev/null
"$python" tests/peers/check_metrics.py "$world/run/student" 60

# Manifests for Kubernetes, of all tasks and of some, with and without GPUs: of labels that nobody began.
rm -rf "$world/run/labels"
manifests=(--engine kubernetes --image registry.example/softshard:1 --claim "runs:$world")
labels="$world/run/kubernetes/labels"
"$softshard" submit "$world/recipe.toml" "${manifests[@]}" --at-once 2 --device cuda:0,1 >/dev/null
"$python" tests/peers/check_kubernetes.py "$labels.yaml" "$labels-finalize.yaml"
"$softshard" teacher-labels "$world/recipe.toml" --task 1 --of 3 >/dev/null
"$softshard" resume "$world/recipe.toml" "${manifests[@]}" --device cpu >/dev/null
"$python" tests/peers/check_kubernetes.py "$labels.yaml" "$labels-finalize.yaml"
