#!/usr/bin/env bash
# A GPU checked against the CPU, and measured beside PyTorch, in less than ten minutes: one Markdown table (docs/gpu.md).
#
# SOFTSHARD_GPU names the program where it was built elsewhere (`make gpu-program`), packed or not; else cargo builds it here.
# SOFTSHARD_SCRATCH names a folder with 24 GB free for a model that is made up; memory is used if it suffices.
# Arguments are the program's own: --device cuda:1, --quick, --python python3.11, --only weights,labels,student.
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
# Kilobytes: of /dev/shm, and of the memory that is left for everything else.
place=${SOFTSHARD_SCRATCH:-}
if [[ -z $place ]]; then
    place=${TMPDIR:-/tmp}
    shared=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || true)
    memory=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
    if [[ -w /dev/shm && ${shared:-0} -gt 24000000 && $memory -gt 80000000 ]]; then place=/dev/shm; fi
fi
# Whatever ends this: 15 GB are not left behind. What runs may not lie in /dev/shm.
model=$(mktemp -d -p "$place" softshard-gpu.XXXXXXXX)
folder=$(mktemp -d)
trap 'rm -rf "$model" "$folder"' EXIT
if [[ $program == *.xz ]]; then
    if command -v xz >/dev/null; then xz -dc "$program" >"$folder/gpu"; else
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$program" >"$folder/gpu"
    fi
    chmod +x "$folder/gpu"
    program=$folder/gpu
fi
# NVRTC is opened by name; a toolkit's folder is not always among those that the loader knows.
export LD_LIBRARY_PATH="${CUDA_PATH:-/usr/local/cuda}/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The program keeps to less; this ends it if it does not.
timeout --kill-after=5 570 "$program" --scratch "$model" "$@"
