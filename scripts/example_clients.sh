#!/bin/sh
# Builds the clients of examples/clients, each with its language's own tools, and grpcurl, with which the lines of
# docs/API.md are run:
#   example_clients.sh [go] [typescript] [java] [rust] [python] [grpcurl]    those; none: all of them
# What is missing on the machine is said before anything is built.
set -eu
cd "$(dirname "$0")/.."
clients=$PWD/examples/clients
grpcurl=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
PATH=$PWD/.venv/bin:$PATH # buf
[ $# -gt 0 ] || set -- go typescript java rust python grpcurl

missing() {
    echo "roost: $*; or leave it out: make test-clients CLIENTS=\"...\"" >&2
    lacking=1
}

at_least() { # name, wanted, found ("" where it is not there at all)
    oldest=$(printf '%s\n%s\n' "$2" "$3" | sort -V | head -n 1)
    [ -n "$3" ] && [ "$oldest" = "$2" ] || missing "$1 $2 or newer is needed for $client (found: ${3:-none})"
}

version() { # command...: the first number that it prints
    { "$@" 2>&1 || true; } | grep -Eo '[0-9]+(\.[0-9]+)+' | head -n 1
}

lacking=0
for client in "$@"; do
    case $client in
    go | grpcurl) at_least Go 1.26 "$(version go version)" ;;
    typescript)
        at_least Node.js 20 "$(version node --version)"
        at_least npm 10 "$(version npm --version)"
        ;;
    java)
        at_least "A Java compiler (JDK)" 17 "$(version javac -version)"
        at_least Maven 3.8 "$(version mvn --version)"
        ;;
    rust) at_least "Rust (cargo)" 1.88 "$(version cargo --version)" ;;
    python) ;; # what builds Roost runs it
    *)
        echo "roost: there is no client \"$client\"; there are go, typescript, java, rust, python and grpcurl" >&2
        exit 2
        ;;
    esac
done
[ "$lacking" = 0 ] || exit 1

for client in "$@"; do
    case $client in
    go)
        echo "examples/clients/go -> build/client"
        (cd "$clients/go" && export GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false" CGO_ENABLED=0 &&
            go generate && go build -o build/client .)
        ;;
    typescript)
        echo "examples/clients/typescript -> build/src/main.js"
        # No package's own script is run: all that is needed is in the packages.
        (cd "$clients/typescript" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build)
        ;;
    java)
        echo "examples/clients/java -> target"
        (cd "$clients/java" && mvn --batch-mode --quiet compile dependency:copy-dependencies)
        ;;
    rust)
        echo "examples/clients/rust -> target/debug"
        (cd "$clients/rust" && CARGO_TARGET_DIR=$PWD/target cargo build --quiet --locked)
        ;;
    grpcurl)
        stamp=.tools/bin/.grpcurl-${grpcurl##*@}
        [ -e "$stamp" ] && continue
        echo "$grpcurl -> .tools/bin"
        mkdir -p .tools/bin
        GOBIN=$PWD/.tools/bin GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -ldflags=-s" go install "$grpcurl"
        rm -f .tools/bin/.grpcurl-*
        touch "$stamp"
        ;;
    esac
done
