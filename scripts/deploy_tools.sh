#!/bin/sh
# Installs into .tools what checks and describes the deployment, each tool at a pinned version from its registry:
#   deploy_tools.sh lint   helm, kube-score (Go modules, checked against Go's checksum database);
#                          promtool, crdcheck (Go too, pinned with hashes by go.mod and go.sum in deploy/tools);
#                          kubernetes-validate, hadolint (Python packages, hashed in requirements/deploy.lock)
#   deploy_tools.sh sbom   cyclonedx-py (Python, the same lock); cargo-cyclonedx (a crate)
set -eu
cd "$(dirname "$0")/.."
tools=$PWD/.tools
helm=helm.sh/helm/v4/cmd/helm@v4.3.1
kube_score=github.com/zegl/kube-score/cmd/kube-score@v1.20.0
cyclonedx=cargo-cyclonedx@0.5.9
go_version=1.26 # what the newest of them wants

python_tools() {
    [ -x "$tools/venv/bin/python" ] || "$(scripts/toolchain.sh python)" -m venv "$tools/venv"
    "$tools/venv/bin/python" -m pip --disable-pip-version-check --quiet install --require-hashes \
        -r requirements/deploy.lock
}

built() { # a tool that is newer than all that it is built from
    [ -x "$tools/bin/$1" ] && [ -z "$(find "deploy/tools/$1" -newer "$tools/bin/$1")" ] ||
        { echo "deploy/tools/$1 -> .tools/bin"; return 1; }
}

go_tools() {
    command -v go >/dev/null 2>&1 || { echo "roost: Go $go_version or newer is needed for helm (no go found)" >&2; exit 1; }
    have=$(go env GOVERSION | sed 's/^go//')
    oldest=$(printf '%s\n%s\n' "$go_version" "$have" | sort -V | head -n 1)
    [ "$oldest" = "$go_version" ] ||
        { echo "roost: Go $go_version or newer is needed for helm (found: $have)" >&2; exit 1; }
    # Modules and objects go with the work: they are two gigabytes, the tools are not.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    export GOBIN="$tools/bin" GOPATH="$work/go" GOCACHE="$work/cache" GOTOOLCHAIN=local CGO_ENABLED=0
    export GOFLAGS="-modcacherw -buildvcs=false -trimpath -ldflags=-s"
    for module in "$@"; do
        name=${module##*/}
        name=${name%@*}
        stamp=$tools/bin/.$name-${module##*@}
        [ ! -e "$stamp" ] || continue
        echo "$module -> .tools/bin"
        go install "$module"
        rm -f "$tools/bin/.$name-"*
        touch "$stamp"
    done
    # Prometheus without service discovery, which is most of it and has nothing to do with rules.
    built crdcheck || (cd deploy/tools/crdcheck && go build -o "$tools/bin/" .)
    built promtool ||
        (cd deploy/tools/promtool && go build -tags remove_all_sd -o "$tools/bin/" \
            github.com/prometheus/prometheus/cmd/promtool)
}

mkdir -p "$tools/bin"
case "${1:-}" in
lint)
    python_tools
    go_tools "$helm" "$kube_score"
    ;;
sbom)
    python_tools
    scripts/toolchain.sh check
    CARGO_TARGET_DIR=$tools/target cargo install --quiet --locked --root "$tools" "$cyclonedx"
    rm -rf "$tools/target"
    ;;
*)
    echo "usage: deploy_tools.sh lint|sbom" >&2
    exit 2
    ;;
esac
