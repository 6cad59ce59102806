#!/bin/sh
# Installs the one wheel in a directory and what a server needs, all of it hashed, into a new virtual environment, as
# the image does: install.sh WHEELS VENV
set -eu
usage="usage: install.sh WHEELS VENV"
wheels=${1:?$usage}
venv=${2:?$usage}
cd "$(dirname "$0")/../.."
"${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet --no-cache-dir"
# Wheels only: nothing is compiled, and no code of a package runs, before its hash was checked.
$pip install --require-hashes --only-binary=:all: -r requirements/server.lock
$pip install --no-index --no-deps "$wheels"/roost-*.whl
$pip check
# A server installs nothing.
$pip uninstall --yes pip
