#!/usr/bin/env bash
# A GPU checked against the CPU, and measured, in less than ten minutes: one Markdown table (docs/gpu.md).
#
# SOFTSHARD_GPU names the program where it was built elsewhere (`make gpu-program`), packed or not; else cargo builds it here.
# Arguments are the program's own: --device cuda:1, --quick, --python python3.11.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
program=${SOFTSHARD_GPU:-}
if [[ -z $program ]]; then
    command -v cargo >/dev/null || {
        echo "make gpu: expected cargo, or SOFTSHARD_GPU with the path of the program that \`make gpu-program\` packs" >&2
        exit 2
    }
    cargo build --locked --workspace --example gpu --features softshard-cli/cuda
    program=$target/debug/examples/gpu
fi
if [[ $program == *.xz ]]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    if command -v xz >/dev/null; then xz -dc "$program" >"$unpacked/gpu"; else
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$program" >"$unpacked/gpu"
    fi
    chmod +x "$unpacked/gpu"
    program=$unpacked/gpu
fi
# NVRTC is opened by name; a toolkit's folder is not always among those that the loader knows.
export LD_LIBRARY_PATH="${CUDA_PATH:-/usr/local/cuda}/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The program keeps to less; this ends it if it does not.
timeout --kill-after=5 600 "$program" "$@"
