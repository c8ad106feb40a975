#!/usr/bin/env bash
# venv.sh NAME: makes or updates the virtual environment of requirements-NAME.txt (ci, torch or lm_eval), prints its Python.
# Nothing is done when the stamp inside says that this very requirements file is already installed.
set -euo pipefail

name=${1:?usage: venv.sh ci|torch|lm_eval}
requirements=$(dirname "$(realpath "$0")")/requirements-$name.txt
[[ -f $requirements ]] || { echo "venv.sh: no file $requirements" >&2; exit 2; }
venv=${XDG_CACHE_HOME:-$HOME/.cache}/softshard-peers-$name
stamp=$(sha256sum <"$requirements")

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock" # two callers at once: the second waits and then finds the stamp
flock 9
if [[ $(cat "$venv/.stamp" 2>/dev/null) != "$stamp" ]]; then
    rm -rf "$venv"
    python=${PYTHON:-python3}
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || {
        echo "venv.sh: expected Python 3.11 or later with its venv module (Debian: python3-venv), found $("$python" --version)" >&2
        exit 1
    }
    "$python" -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --no-deps --requirement "$requirements" >&2
    printf '%s\n' "$stamp" >"$venv/.stamp"
fi
echo "$venv/bin/python"
