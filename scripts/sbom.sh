#!/bin/sh
# Writes CycloneDX documents of what the image contains from the lock files alone: nothing is built or installed.
#   dist/sbom/roost-python.cdx.json   requirements/server.lock
#   dist/sbom/roost-crates.cdx.json   Cargo.lock, as far as the extension module links it
set -eu
cd "$(dirname "$0")/.."
tools=$PWD/.tools
out=$PWD/dist/sbom
mkdir -p "$out"
"$tools/venv/bin/cyclonedx-py" requirements requirements/server.lock --pyproject pyproject.toml --mc-type application \
    --output-reproducible --output-format JSON --output-file "$out/roost-python.cdx.json"
# It writes a file beside each Cargo.toml; only that of the extension module is wanted.
trap 'rm -f rust/*/roost-sbom.json' EXIT
PATH="$tools/bin:$PATH" cargo cyclonedx --quiet --format json --spec-version 1.5 --describe crate --no-build-deps \
    --override-filename roost-sbom --manifest-path rust/python/Cargo.toml
mv rust/python/roost-sbom.json "$out/roost-crates.cdx.json"
