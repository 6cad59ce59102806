#!/bin/sh
# Write the Python lock files from pyproject.toml and requirements/*.in: hashes, no index, any platform.
#   lock.sh [--upgrade]
set -eu
cd "$(dirname "$0")/.."
uv=.venv-lock/bin/uv
[ -x "$uv" ] || { "$(scripts/toolchain.sh python)" -m venv .venv-lock && .venv-lock/bin/pip install -q uv==0.13.8; }
compile() {
    out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
        --no-emit-find-links --output-file "$out" "$@"
}
compile requirements/dev.lock pyproject.toml --all-extras "$@"
compile requirements/proto.lock requirements/proto.in "$@"
compile requirements/deploy.lock requirements/deploy.in "$@"
# What the image builds with and what it runs: the versions that were tested, and nothing that only tests need.
compile requirements/build.lock requirements/build.in --constraint requirements/dev.lock
compile requirements/server.lock pyproject.toml --extra server --extra cli --constraint requirements/dev.lock
