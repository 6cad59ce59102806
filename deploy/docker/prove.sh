#!/bin/bash
# Does what the Dockerfile does on a machine without a container engine, and looks whether a server comes of it that
# behaves: prove.sh [WHEELS]    (with a directory of wheels, the wheel is not built again)
#
# The same scripts build and install, from the same files. The server is process 1 of its own process namespace, has the
# Dockerfile's user, entry point and command, no capability, and a root file system on which only the volume is writable.
# What this cannot show: that the base images can be pulled, and what they hold. Needs root, for the namespaces.
set -euo pipefail
cd "$(dirname "$0")/../.."
dockerfile=deploy/docker/Dockerfile
python=${PYTHON:-/usr/bin/python3} # one that every user can run

if [ "${1:-}" != --inside ]; then
    [ "$(id -u)" = 0 ] || { echo "prove.sh: must run as root" >&2; exit 2; }
    wheels=${1:+$(realpath "$1")}
    work=$(mktemp -d /tmp/roost-image.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    mkdir -p "$work"/{src,venv,volume,secret}
    # The build context: of what is tracked, what .dockerignore lets through.
    mapfile -t context < <(sed -n 's/^!//p' .dockerignore)
    git ls-files -z -- "${context[@]}" | tar --null -c -T - | tar -x -C "$work/src"
    if [ -z "$wheels" ]; then
        wheels=$work/wheel
        echo "== the wheel (this compiles the engine)"
        PYTHON=$python CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target} "$work/src/deploy/docker/wheel.sh" "$wheels"
        rm -rf "$work/target"
    fi
    cp "$dockerfile" "$work/Dockerfile"
    cp "$0" "$work/prove.sh"
    WORK=$work WHEELS=$wheels PYTHON=$python unshare --mount --propagation private "$work/prove.sh" --inside
    exit
fi

# ---- inside a mount namespace of our own: the places of the image, none of them on this machine afterwards -----------
# shellcheck disable=SC2153 # both come from above
work=$WORK wheels=$WHEELS
fail() { echo "prove.sh: $*" >&2; exit 1; }
sed_one() { sed -n "$1" "$work/Dockerfile" | tail -n 1; }
json_lines() { "$python" -c 'import json, sys; print(*json.loads(sys.argv[1]), sep="\n")' "$1"; }

mount -t tmpfs none /opt
mkdir /opt/roost
mount --bind "$work/venv" /opt/roost
mount -t tmpfs none /var/lib
mkdir /var/lib/roost
mount --bind "$work/volume" /var/lib/roost

echo "== the install, with hashes"
# A directory of wheels that this machine has may be hidden now.
env -u PIP_FIND_LINKS PYTHON="$python" "$work/src/deploy/docker/install.sh" "$wheels" /opt/roost
[ ! -e /opt/roost/bin/pip ] || fail "pip is still there"
sbom=$(find /opt/roost/lib -path '*/roost-*.dist-info/sboms/*.json')
grep -q '"bomFormat": *"CycloneDX"' "$sbom" || fail "the wheel has no SBOM"

user=$(sed_one 's/^USER //p')
uid=${user%:*} gid=${user#*:}
mapfile -t entry < <(json_lines "$(sed_one 's/^ENTRYPOINT //p')")
mapfile -t cmd < <(json_lines "$(sed_one 's/^CMD //p')")
environment=(PATH="/opt/roost/bin:/usr/bin:/bin" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1)
# As a kubelet lays them out: a volume and a secret of the group, neither owned by the user.
chown "0:$gid" "$work/volume" && chmod 2770 "$work/volume"
as_user=(setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all
    env -i "${environment[@]}")
umask 077
"${as_user[@]}" roost keys new-admin-key "/var/lib/roost/admin.key" >/dev/null
install -m 0440 -o 0 -g "$gid" "$work/volume/admin.key" "$work/secret/admin.key"
rm "$work/volume/admin.key"
chown "0:$gid" "$work/secret" && chmod 0750 "$work/secret"
mkdir /var/lib/secret && chmod 755 /var/lib/secret
mount --bind -o ro "$work/secret" /var/lib/secret
mount -o remount,ro /opt
mount -o remount,ro,bind /opt/roost
mount -o remount,ro /var/lib
mount -o remount,ro,bind /
! touch /tmp/written 2>/dev/null || fail "the root file system can be written"

# Process 1 of a new process namespace, which ends with it; $! is its parent, whose exit code is the server's.
serve() { # log, arguments
    local log=$1
    shift
    (cd /var/lib/roost && exec unshare --pid --fork --kill-child "${as_user[@]}" "${entry[@]}" "$@") \
        >"/var/lib/roost/$log" 2>&1 &
    parent=$!
}
ready() { # log
    for _ in $(seq 300); do
        grep -q '^roost is ready on ' "/var/lib/roost/$1" && return
        kill -0 "$parent" 2>/dev/null || { cat "/var/lib/roost/$1" >&2; fail "the server ended"; }
        sleep 0.1
    done
    fail "the server did not get ready"
}
terminate() { # the signal goes to the server alone, as a container engine sends it
    local code=0 server
    read -r server _ <"/proc/$parent/task/$parent/children"
    [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$server/status")" = 1 ] || fail "the server is not process 1"
    [ "$(awk '/^Uid:/ { print $2 }' "/proc/$server/status")" = "$uid" ] || fail "the server is not user $uid"
    kill -TERM "$server"
    wait "$parent" || code=$?
    [ "$code" = 0 ] || { cat /var/lib/roost/*.log >&2; fail "SIGTERM: exit code $code"; }
}
roost() { "${as_user[@]}" ROOST_API_KEY_FILE=/var/lib/secret/admin.key roost "$@"; }

echo "== the command as it stands refuses plaintext beyond this machine"
code=0
serve refused.log "${cmd[@]}"
wait "$parent" || code=$?
[ "$code" = 78 ] || { cat /var/lib/roost/refused.log >&2; fail "exit code $code, not 78"; }

echo "== process 1, user $user, read-only root: serve, work, SIGTERM, exit code 0"
# Loopback stands in for the pod's network: nothing here is to be reached from outside.
cmd=("${cmd[@]/0.0.0.0:7117/127.0.0.1:0}")
secured=("${cmd[@]}" --admin-key-file /var/lib/secret/admin.key)
serve first.log "${secured[@]}"
ready first.log
address=$(sed -n 's/^roost is ready on //p' /var/lib/roost/first.log)
epoch=$(roost stats --target "$address" -o json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["epoch"])')
roost keys create --target "$address" acme >/dev/null
terminate
grep -q '"event": *"stopped"' /var/lib/roost/first.log || fail "no orderly stop in the log"

echo "== again on the same volume: what was there is there"
serve second.log "${secured[@]}"
ready second.log
address=$(sed -n 's/^roost is ready on //p' /var/lib/roost/second.log)
next=$(roost stats --target "$address" -o json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["epoch"])')
[ "$next" -gt "$epoch" ] || fail "another store: epoch $epoch, then $next"
roost keys list --target "$address" --tenant acme | grep -q acme || fail "the key is gone"
terminate
echo "== proved"
