#!/bin/sh
# Set-up: creates .venv and installs everything, or notices in milliseconds that nothing has changed.
#   scripts/setup.sh             the CPU installation (exact pins of requirements/cpu.txt)
#   EXTRA=gpu scripts/setup.sh   upstream vLLM and CUDA torch instead (requirements/gpu.txt)
# The stamp is written last, so a set-up that failed half-way is never taken for a finished one.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
STAMP="$VENV/.setup-finished"
EXTRA="${EXTRA:-$(cat "$VENV/.setup-extra" 2>/dev/null || echo cpu)}" # once gpu, the later commands need not say so

# What the installation depends on. No Python starts here: an up-to-date set-up must not cost seconds.
inputs() {
    cat pyproject.toml requirements/*.txt scripts/setup.sh scripts/set_up.py scripts/build_ops.py
    echo "extra=$EXTRA checkout=$(pwd -P)"
    grep '^version' "$VENV/pyvenv.cfg" 2>/dev/null || echo "no environment"
}
key() { inputs | cksum; }

if [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(key)" ]; then
    exit 0
fi

find_python() {
    for name in ${PYTHON:-} python3.11 python3 python3.13 python3.12; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

if [ "$(uname -s)" != Linux ]; then
    echo "set-up: rlplatform runs on Linux (vLLM's CPU wheels exist for no other system); this is $(uname -s)." >&2
    echo "set-up: on macOS or Windows use a Linux container or WSL2." >&2
    exit 1
fi
if ! python=$(find_python); then
    echo "set-up: expected Python 3.11 or newer as python3.11 or python3 on PATH, found: $(python3 --version 2>&1 || echo none)." >&2
    echo "set-up: install it (e.g. apt install python3.11 python3.11-venv) or name one: make setup PYTHON=/path/to/python" >&2
    exit 1
fi
if ! command -v c++ >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; then
    echo "set-up: expected a C++ compiler (c++ or g++) on PATH: DeepSpeed's operators are compiled here." >&2
    echo "set-up: install one, e.g. apt install g++" >&2
    exit 1
fi

"$python" scripts/set_up.py --venv "$VENV" --extra "$EXTRA"
key >"$STAMP"
