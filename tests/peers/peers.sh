#!/usr/bin/env bash
# The real PyTorch, transformers, PEFT and lm-evaluation-harness: golden files made again, and our files read by them.
# usage: tests/peers/peers.sh SOFTSHARD
set -euo pipefail
cd "$(dirname "$0")/../.."
softshard=$1
python=$(tests/peers/venv.sh torch)
"$python" tests/peers/make_golden.py --check
"$python" tests/peers/golden_generate.py --check
"$python" tests/peers/golden_scorers.py --check
"$python" tests/peers/templates.py --check
"$(tests/peers/venv.sh lm_eval)" tests/peers/golden_choices.py --check
configs=${SOFTSHARD_DATA:-../shared/data}/configs
if [[ -d $configs ]]; then "$python" tests/peers/count_parameters.py "$configs" --check; fi

. tests/peers/world.sh 120
# Models and adapters of every family, as we save them.
golden="$PWD/tests/peers/golden"
"$(dirname "$softshard")/examples/save_for_peers" "$world/saved" "$golden"/tiny-*/
"$python" tests/peers/check_saved.py "$world/saved"

cat >>"$world/recipe.toml" <<TOML
[labels]
selection = { kind = "top_k", k = 16 }
[finetune]
model = "$tiny_llama"
max_steps = 3
learning_rate = 1e-3
[student]
model = "$tiny_llama"
max_steps = 5
learning_rate = 1e-2
lora = { r = 4, alpha = 8.0, dropout = 0.0, target_modules = ["q_proj", "v_proj", "down_proj"] }
TOML
for stage in prepare teacher-labels train-student; do "$softshard" $stage "$world/recipe.toml" >/dev/null; done
# Labels with these settings, as transformers computes them.
check() {
    "$softshard" teacher-labels "$world/recipe.toml" --set output.labels=checked "${@/#/--set=labels.}" >/dev/null
    "$python" tests/peers/check_logits.py "$tiny_llama" "$world/run/checked/train"
    rm -rf "$world/run/checked"
}
check mantissa_bits=10 'temperatures=[2.0]'
check mantissa_bits=23 position_mantissa_bits=23
check 'selection={ kind = "top_p", p = 0.9, k = 64 }'
check 'selection={ kind = "sampled", draws = 50 }' 'omit=["gold_log_prob"]'
check 'selection={ kind = "top_k_sampled", k = 8, draws = 20 }'

# The adapter that we trained, loaded by PEFT: labels of the whole vocabulary are all the logits.
"$softshard" teacher-labels "$world/recipe.toml" --set teacher.adapter=run/student/adapter --set labels.mantissa_bits=23 \
    --set 'labels.selection={ kind = "top_k", k = 300 }' --set output.labels=labels-adapter >/dev/null
"$python" tests/peers/check_logits.py "$tiny_llama" "$world/run/labels-adapter/train" --adapter "$world/run/student/adapter"

# The whole model that we trained, loaded by transformers.
"$softshard" finetune "$world/recipe.toml" >/dev/null
"$softshard" teacher-labels "$world/recipe.toml" --set teacher.model=run/teacher/model --set output.labels=labels-model >/dev/null
"$python" tests/peers/check_logits.py "$world/run/teacher/model" "$world/run/labels-model/train"

# Where a model looks, and what is learnt of it.
"$python" - "$world" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(f"{sys.argv[1]}/data/instructions.jsonl")][:12]
with open(f"{sys.argv[1]}/judged.jsonl", "w") as file:
    for i, row in enumerate(rows):
        other = rows[(i + 1) % len(rows)]["response"]
        summaries = [{"summary": row["response"], "consistent": 1}, {"summary": other, "consistent": 0}]
        print(json.dumps({"id": i, "document": row["context"], "summaries": summaries}), file=file)
PYTHON
"$softshard" lookback train --model "$world/run/teacher/model" --data "$world/judged.jsonl" --output "$world/lookback.json" >/dev/null
"$softshard" lookback score "$world/lookback.json" --model "$world/run/teacher/model" --data "$world/judged.jsonl" \
    --output "$world/factual.json" >/dev/null
"$python" tests/peers/check_lookback.py "$world/run/teacher/model" "$world/judged.jsonl" "$world/lookback.json" "$world/factual.json"

# That adapter and one of PEFT, merged into their bases, loaded by transformers and compared with PEFT's own merge.
for adapter in "$world/run/student/adapter" tests/peers/golden/lora; do
    for dtype in keep f32 bf16; do
        "$softshard" merge "$tiny_llama" "$adapter" "$world/merged" --dtype $dtype >/dev/null
        "$python" tests/peers/check_merged.py "$tiny_llama" "$adapter" "$world/merged"
        rm -rf "$world/merged"
    done
done
# The adapters of every family, merged.
for adapter in "$golden"/lora-tiny-*; do
    base="$golden/${adapter##*/lora-}"
    "$softshard" merge "$base" "$adapter" "$world/merged" --dtype f32 >/dev/null
    "$python" tests/peers/check_merged.py "$base" "$adapter" "$world/merged"
    rm -rf "$world/merged"
done
# Adapters of every kind that PEFT writes: patterns, whole tensors, biases, tables, DoRA.
for adapter in "$golden"/adapters/*/; do
    name=$(basename "$adapter")
    case $name in *-unmergeable) continue ;; esac # neither PEFT nor we
    base="$golden/$("$python" -c "import json, sys; print(json.load(open(sys.argv[1]))['adapters'][sys.argv[2]]['base'])" \
        "$golden/adapters.expected.json" "$name")"
    for dtype in keep f32; do
        "$softshard" merge "$base" "$adapter" "$world/merged" --dtype $dtype >/dev/null
        "$python" tests/peers/check_merged.py "$base" "$adapter" "$world/merged"
        rm -rf "$world/merged"
    done
done

# What `make gpu` measures beside us, in small and on the CPU: every way of transformers and PEFT has a speed.
table=$("$(dirname "$softshard")/examples/gpu" --device cpu --quick --python "$python" \
    --only card,weights,label-peers,labels,student-peers,student,small-student)
for way in 'usual, batches of 8: ' 'best, batches of ' '| usual | ' '| best, checkpointing | ' '| best | '; do
    grep -F -- "$way" <<<"$table" | grep 'tokens/s' >/dev/null || { echo "peers.sh: no speed of '$way' in:"$'\n'"$table" >&2; exit 1; }
done
