#!/usr/bin/env bash
# Without a GPU: every kernel that `make gpu` needs is generated, and compiled by the real NVRTC for an H200.
#
# The driver is a fake that runs nothing, so all numbers are wrong and the checks of the program fail: what counts is that no part
# stops, and what NVRTC says. NVRTC and CUDA's headers come from PyPI. Usage: compile_kernels.sh PROGRAM [ITS ARGUMENTS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=$(realpath "$1")
shift
venv=${SOFTSHARD_NVRTC:-$HOME/.cache/softshard-nvrtc}
if [[ ! -e $venv/ready ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
        'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-crt==13.0.*'
    touch "$venv/ready"
fi
CUDA_PATH=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
export CUDA_PATH
fake=$(mktemp -d)
trap 'rm -rf "$fake"' EXIT
cc -shared -fPIC -O1 -o "$fake/libcuda.so.1" "$here/fake_driver.c"
cd "$here/../.."
export LD_LIBRARY_PATH="$fake:$CUDA_PATH/lib"
"$program" "$@"
