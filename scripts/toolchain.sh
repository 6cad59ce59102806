#!/bin/sh
# What `make` needs from the machine, checked before anything is built, each lack in one sentence.
#   toolchain.sh python   print the Python to use (PYTHON if set, else the first that is new enough)
#   toolchain.sh check    exit 1 with one sentence if Python, the C compiler or the Rust toolchain does not do
set -eu
cd "$(dirname "$0")/.."

new_enough() { # python
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

fail() {
    echo "roost: $*" >&2
    exit 1
}

check() {
    python=$(find_python)
    if [ -z "$python" ]; then
        found=$("${PYTHON:-python3}" --version 2>&1) || found="none"
        fail "Python 3.11 or newer is needed (found: $found); on Debian or Ubuntu: sudo apt install python3 python3-venv"
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian or Ubuntu: sudo apt install python3-venv"
    command -v "${CC:-cc}" >/dev/null 2>&1 ||
        fail "a C compiler is needed (no ${CC:-cc} found); on Debian or Ubuntu: sudo apt install build-essential"
    want=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml | head -n 1)
    command -v cargo >/dev/null 2>&1 ||
        fail "Rust $want or newer is needed (no cargo found); install it from https://rustup.rs"
    have=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || true
    [ -n "$have" ] || fail "Rust $want or newer is needed (cargo is there, rustc does not run); try: rustup default stable"
    oldest=$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)
    [ "$oldest" = "$want" ] ||
        fail "Rust $want or newer is needed (found: $have); try: rustup update stable, or install it from https://rustup.rs"
}

case "${1:-check}" in
python) find_python ;;
check) check ;;
*) fail "usage: toolchain.sh [python|check]" ;;
esac
