#!/bin/sh
# Builds the wheel from the locked sources, as the image does: wheel.sh OUT
# Needs cargo, a C compiler and Python 3.11 or newer with venv. The wheel carries the SBOM of its crates (PEP 770).
set -eu
out=${1:?usage: wheel.sh OUT}
cd "$(dirname "$0")/../.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/pip" --disable-pip-version-check --quiet install --no-cache-dir --require-hashes --only-binary=:all: \
    -r requirements/build.lock
"$tools/bin/maturin" build --release --locked --interpreter "$tools/bin/python" --out "$out"
