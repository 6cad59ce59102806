#!/bin/bash
# Fail if the checked-in stubs and messages are not what the protos give.
set -euo pipefail
cd "$(dirname "$0")/.."
if "$(scripts/toolchain.sh python)" -c 'import sys; sys.exit(sys.version_info < (3, 14))' && [ ! -x .venv-proto/bin/python ]; then
    echo "check_generated: skipped; the pinned protoc has no wheel for Python 3.14 (set PYTHON=python3.13 to run it)"
    exit 0
fi
make --no-print-directory --silent .venv-proto/.stamp
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
.venv-proto/bin/python scripts/gen_proto.py "$fresh"
status=0
found() { # as compare; compiled files of a run are nobody's business
    (cd "$1" && find . -path "$2" -not -path '*/__pycache__/*' | LC_ALL=C sort)
}
compare() { # directory, pattern of what is generated in it
    diff -u <(found "$1" "$2") <(found "$fresh/$1" "$2") || status=1
    while read -r file; do
        diff -u "$1/$file" "$fresh/$1/$file" || status=1
    done < <(cd "$fresh/$1" && find . -path "$2" -type f)
}
compare python './roost/*_pb2*.py*'
compare python './roost/v1/service_config.json'
compare rust/core/src/gen './roost.*.rs'
[ "$status" = 0 ] || echo "check_generated: generated files differ from proto/; run: make proto" >&2
exit "$status"
