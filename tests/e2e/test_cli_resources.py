"""`roost resources` and `roost reap` against a real server and real tmux: exactly the orphans end (I20)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Start
from roost_server import DEADLINE, Server, environment, fresh, roost, until

from roost.client import Client, resource_pool
from roost.drivers import Marker

NEEDS_TMUX = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed (.ci/run installs it)")
LEASE = "5000"  # the shortest that there is


class Tmux:
    """A tmux server that only this test knows."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "socket")

    def run(self, *command: str) -> str:
        asked = ["tmux", "-S", self.socket, "-f", "/dev/null", *command]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout

    def new(self, session: str) -> None:
        self.run("new-session", "-d", "-s", session, "exec cat")

    def names(self) -> set[str]:
        return set(self.run("list-sessions", "-F", "#{session_name}").split("\n")[:-1])


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    with tempfile.TemporaryDirectory(prefix="roost-tmux-") as directory:
        made = Tmux(Path(directory))
        yield made
        subprocess.run(["tmux", "-S", made.socket, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def server(start: Start) -> Server:
    """One that has no driver of its own, and a short lease."""
    return start(ROOST_DEFAULT_LEASE_MS=LEASE)


def attached(client: Client, session_id: str, count: int) -> list[str]:
    return [client.attach_resource(session_id, "client", owner="host").name for _ in range(count)]


def lost(client: Client, count: int) -> list[str]:
    """Names that the server gave, and that nobody owns any more."""
    session_id = fresh()
    client.open_session(session_id)
    names = attached(client, session_id, count)
    for name in names:
        client.detach_resource(session_id, name)
    return names


def reap(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return roost("reap", "--target", server.address, *arguments)


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in json.loads(done.stdout)}


@NEEDS_TMUX
def test_i20_of_forty_sessions_exactly_the_orphans_are_told_and_ended(server: Server, tmux: Tmux) -> None:
    with Client(server.address) as client:
        running, ended = fresh(), fresh()
        for session_id in (running, ended):
            client.open_session(session_id)
        planned, live, sealed = (attached(client, s, 4) for s in (running, running, ended))
        for name in live:
            client.confirm_resource(running, name)
        client.close_session(ended)  # stays SEALED: its host has not ended what it has
        owned = {*planned, *live, *sealed}
        orphans = lost(client, 12)
    first = Marker.parse(orphans[0])
    assert first is not None
    other = Marker("roost", f"{int(first.store_id, 16) ^ 1:08x}", first.epoch, first.uid, 1)
    theirs = {f"{str(other)[:-1]}{n}" for n in range(1, 7)}
    later = str(Marker(first.prefix, first.store_id, first.epoch + 1, first.uid, first.n))
    similar = {
        later,  # of a server that took the store over
        f"x{orphans[0]}",
        f"bak-{orphans[0]}",
        f"{orphans[0]}x",
        f"{orphans[0]}-1",
        orphans[0][1:],
        orphans[0].upper(),
        f"{orphans[0]} ",
        f"notes on {orphans[0]}",
        "main",
    }
    for session in owned | set(orphans) | theirs | similar:
        tmux.new(session)
    before = tmux.names()
    assert len(before) == 40

    ours = ("--driver", "tmux", "--tmux-socket", tmux.socket)
    for _ in range(2):
        dry = reap(server, *ours, "--dry-run", "-o", "json")
        assert (dry.returncode, dry.stderr) == (0, "")
        assert states(dry) == dict.fromkeys(orphans, "waits")
    table = reap(server, *ours, "--dry-run")
    assert {line.split()[0] for line in table.stdout.splitlines() if "roost-" in line} == set(orphans)
    once = reap(server, *ours, "--once", "-o", "json", "--node", "another")
    assert states(once) == dict.fromkeys(orphans, "waits")
    assert tmux.names() == before

    done = reap(server, *ours, "-o", "json")
    assert (done.returncode, states(done)) == (0, dict.fromkeys(orphans, "ended")), done.stderr
    assert done.stderr == "looking again in 5 s; orphans: 12\n"
    assert tmux.names() == before - set(orphans)
    again = reap(server, *ours)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "no orphans\n")


def test_a_process_that_nobody_owns_is_ended_with_what_it_started(server: Server) -> None:
    with Client(server.address) as client:
        session_id = fresh()
        client.open_session(session_id)
        (kept,), (orphan,) = attached(client, session_id, 1), lost(client, 1)
    running = [
        subprocess.Popen(["sleep", "1000"], env=os.environ | {"ROOST_RESOURCE": name}, start_new_session=True)
        for name in (kept, orphan)
    ]
    try:
        done = reap(server, "--driver", "process", "-o", "json")
        assert (done.returncode, states(done)) == (0, {orphan: "ended"}), done.stderr
        assert running[1].wait(DEADLINE) == -signal.SIGTERM
        assert running[0].poll() is None
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def agent(server: Server, tmux: Tmux, *more: str) -> Iterator[subprocess.Popen[str]]:
    """`roost reap` while it runs."""
    command = [sys.executable, "-m", "roost", "reap", "--driver", "tmux", "--tmux-socket", tmux.socket]
    with subprocess.Popen(
        [*command, "--target", server.address, *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@NEEDS_TMUX
def test_ctrl_c_ends_it_and_nothing_else(server: Server, tmux: Tmux) -> None:
    with Client(server.address) as client:
        (orphan,) = lost(client, 1)
    tmux.new(orphan)
    with agent(server, tmux, "-o", "json") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "looking again in 5 s; orphans: 1\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (130, "")
    assert [(one["name"], one["state"]) for one in json.loads(out)] == [(orphan, "waits")]
    assert tmux.names() == {orphan}


@NEEDS_TMUX
def test_a_watcher_ends_what_comes_until_a_signal(server: Server, tmux: Tmux) -> None:
    tmux.new("main")
    with Client(server.address) as client, agent(server, tmux, "--watch", "--every", "1") as process:
        assert process.stdout is not None
        orphans = lost(client, 2)
        for orphan in orphans:
            tmux.new(orphan)
        said = [process.stdout.readline().split() for _ in orphans]
        assert {(line[0], line[1]) for line in said} == {("ended", orphan) for orphan in orphans}
        assert tmux.names() == {"main"}
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (143, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("reap",), 2, "--driver"),
        (("reap", "--driver", "http"), 2, "'http' is not one of"),
        (("reap", "--driver", "tmux", "--dry-run", "--watch"), 2, "choose one of --dry-run, --once and --watch"),
        (("reap", "--driver", "tmux", "--once", "--watch"), 2, "choose one of --dry-run, --once and --watch"),
        (("reap", "--driver", "tmux", "--every", "5"), 2, "--every belongs to --watch"),
        (("reap", "--driver", "tmux", "--watch", "--every", "0"), 2, "--every"),
        (("reap", "--driver", "process", "--tmux-socket", "/run/tmux"), 2, "--tmux-socket belongs to --driver tmux"),
        (("reap", "--driver", "process", "--dry-run", "--node", "n" * 300), 1, "node"),
        (("resources", "list", "--state", "dead"), 2, "'dead' is not one of"),
        (("resources", "list", "--session", "nobody"), 1, "SESSION_NOT_FOUND"),
        (("resources", "list", "--root", "nobody"), 1, "SESSION_NOT_FOUND"),
        (("resources", "detach", "nobody"), 2, "NAME"),
        (("resources", "detach", "nobody", "roost-x"), 1, "SESSION_NOT_FOUND"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_sentence_and_a_code(
    shared: Server, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = roost(*arguments, "--target", shared.address) if arguments != ("reap",) else roost(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_listed_ends_nothing(shared: Server, tmp_path: Path) -> None:
    without = roost("reap", "--driver", "tmux", "--target", shared.address, PATH=str(tmp_path))
    assert (without.returncode, without.stdout) == (69, "")
    assert without.stderr.startswith("roost: no inventory, so nothing is ended: tmux is not installed")
    nobody = roost("reap", "--driver", "process", "--once", "--target", f"unix:{tmp_path}/nothing")
    assert (nobody.returncode, nobody.stdout) == (3, "")


@pytest.mark.parametrize("command", [("reap",), ("resources", "list"), ("resources", "detach")], ids=" ".join)
def test_every_help_has_examples(command: tuple[str, ...]) -> None:
    shown = roost(*command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Examples:" in shown.stdout


def listed(server: Server, *arguments: str) -> list[dict[str, Any]]:
    done = roost("resources", "list", "--target", server.address, "-o", "json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_resources_are_listed_by_every_filter(shared: Server) -> None:
    root, child, owner = fresh(), fresh(), fresh("host")
    target = ("--target", shared.address)
    with Client(shared.address, owner=owner) as client:
        client.open_session(root)
        client.open_session(child, parent=root)
        pool = resource_pool("boxes", key="ann", max_resources=100, idle_ttl=600)
        first = client.attach_resource(root, "client", handle="box 1", pool=pool).name
        second = client.attach_resource(child, "client").name
        client.confirm_resource(child, second)
    assert [one["name"] for one in listed(shared, "--root", root)] == sorted((first, second))
    assert [one["name"] for one in listed(shared, "--session", child)] == [second]
    assert [one["name"] for one in listed(shared, "--owner", owner, "--state", "live")] == [second]
    (pooled,) = listed(shared, "--owner", owner, "--pool", "boxes")
    assert (pooled["name"], pooled["session_id"], pooled["handle"]) == (first, root, "box 1")
    assert (pooled["kind"], pooled["state"]) == ("RESOURCE_KIND_CLIENT", "RESOURCE_STATE_PLANNED")
    assert (pooled["pool"]["name"], pooled["pool"]["key"], pooled["pool"]["idle_ttl"]) == ("boxes", "ann", "600s")
    assert (pooled["attempts"], pooled["error"]) == (0, "")
    assert "retry_time" not in pooled
    table = roost("resources", "list", "--root", root, *target).stdout
    assert {" ".join(line.split()) for line in table.splitlines() if "roost-" in line} == {
        f"{first} {root} client planned {owner} boxes/ann",
        f"{second} {child} client live {owner}",
    }
    limited = roost("resources", "list", "--root", root, "--limit", "1", *target)
    assert max(first, second) not in limited.stdout
    assert limited.stderr == "there are more than 1; raise --limit to see them\n"

    said = roost("resources", "detach", child, second, *target)
    assert (said.returncode, said.stdout) == (0, f"{second} is known no more\n")
    assert json.loads(roost("resources", "detach", child, second, "-o", "json", *target).stdout) == {"released": True}
    assert listed(shared, "--session", child) == []
    none = roost("resources", "list", "--session", child, *target)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no resources\n")
    foreign = roost("resources", "detach", child, first, *target)
    assert (foreign.returncode, foreign.stdout) == (1, "")
    assert "RESOURCE_NOT_FOUND" in foreign.stderr


@NEEDS_TMUX
def test_the_server_ends_what_is_detached(start: Start, tmux: Tmux) -> None:
    server = start(ROOST_TMUX_DRIVER="true", ROOST_TMUX_SOCKET=tmux.socket)
    session_id = fresh()
    with Client(server.address) as client:
        client.open_session(session_id)
        name = client.attach_resource(session_id, "tmux").name
        for session in (name, "main"):
            tmux.new(session)
        client.confirm_resource(session_id, name)
    said = roost("resources", "detach", session_id, name, "--target", server.address)
    assert (said.returncode, said.stdout) == (0, f"the server ends {name} now\n")
    until(lambda: not listed(server, "--session", session_id))
    assert tmux.names() == {"main"}


def test_what_keeps_failing_is_listed_with_its_error(start: Start) -> None:
    nobody = "http://127.0.0.1:1"
    server = start(ROOST_HTTP_RELEASE_URL=f"{nobody}/boxes/{{name}}", ROOST_HTTP_RELEASE_HOSTS=nobody)
    session_id, target = fresh(), ("--target", server.address)
    with Client(server.address) as client:
        client.open_session(session_id)
        name = client.attach_resource(session_id, "http").name
        assert client.close_session(session_id).receipt.resources == 1
    until(lambda: any(one["attempts"] for one in listed(server, "--state", "releasing")))
    (failing,) = listed(server, "--session", session_id)
    assert (failing["name"], failing["state"]) == (name, "RESOURCE_STATE_RELEASING")
    assert "cannot be connected to" in failing["error"]
    assert failing["retry_time"].endswith("Z")
    table = roost("resources", "list", "--state", "releasing", *target).stdout
    assert "cannot be connected to" in table
    again = roost("resources", "detach", session_id, name, *target)
    assert (again.returncode, again.stdout) == (0, f"the server ends {name} now\n")


def test_without_its_library_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['psutil'] = None; from roost.cli.main import main; main()"
    command = [sys.executable, "-c", program, "reap", "--driver", "process"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (69, "roost: this needs the package psutil: install roost[cli]\n")
