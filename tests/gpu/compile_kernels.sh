#!/usr/bin/env bash
# Without a GPU: what a program asks of one is generated, and compiled by the real NVRTC; nothing is launched.
#
# The driver is a fake (fake_driver.c), so all numbers are wrong: what counts is that nothing stops, and what NVRTC says, which stands
# in the file SOFTSHARD_NVRTC_LIST (nvrtc_list.c). NVRTC and CUDA's headers come from PyPI.
# Usage: compile_kernels.sh PROGRAM [ITS ARGUMENTS]; `compile_kernels.sh python3 tests/gpu/kernels.py SOFTSHARD` is both stages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
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
cc -shared -fPIC -O1 -o "$fake/libnvrtc.so" "$here/nvrtc_list.c" \
    -L"$CUDA_PATH/lib" -Wl,--no-as-needed -l:libnvrtc.so.13
export LD_LIBRARY_PATH="$fake:$CUDA_PATH/lib"
"$@"
