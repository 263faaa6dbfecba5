# Shared by scripts/demo and scripts/test; sourced, not run.

# Makes a virtual environment at $1 unless it is there, and sets PYTHON to its interpreter.
make_venv() {
    local base found=""
    for base in "${SDCPP_PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            found=$base
            break
        fi
    done
    if [ -z "$found" ]; then
        echo "Python 3.10 or newer is needed: install it, or set SDCPP_PYTHON to its path." >&2
        exit 1
    fi
    if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then
        echo "A C++ compiler is needed: on Debian, apt install g++." >&2
        exit 1
    fi
    if ! "$found" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        echo "Python's headers are needed: on Debian, apt install python3-dev." >&2
        exit 1
    fi
    PYTHON="$1/bin/python"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        if ! "$found" -m venv --clear "$1"; then
            echo "The venv module is needed: on Debian, apt install python3-venv." >&2
            exit 1
        fi
    fi
    PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/python"
}
