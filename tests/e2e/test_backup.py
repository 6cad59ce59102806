"""`roost backup` and `roost restore` with real servers: under load, into another line, and back from an upgrade."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from roost_server import Api, Server, refused, roost, until

from roost.v1 import session_service_pb2, turn_service_pb2

Start = Callable[..., Server]
NEWER = Path(__file__).resolve().parents[1] / "support" / "newer_roost.py"


def run(*arguments: object, **env: str) -> str:
    """A command that must succeed; what it printed."""
    done = roost(*(str(argument) for argument in arguments), **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Load:
    """Sessions that play turns until they are told to stop; `acknowledged` is what was answered."""

    def __init__(self, server: Server, sessions: int) -> None:
        self.acknowledged: list[tuple[str, int, bytes]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._play, args=(server, f"load-{n}")) for n in range(sessions)]
        for thread in self._threads:
            thread.start()

    def _play(self, server: Server, session: str) -> None:
        with server.api() as api:
            api.open(session)
            turn = 0
            while not self._stop.is_set():
                turn += 1
                content = f"{session} {turn} ".encode() * 200
                api.turn(session, content)
                self.acknowledged.append((session, turn, content))

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it_began(start: Start, tmp_path: Path) -> None:
    """I5, I7, I23"""
    server = start()
    load = Load(server, 4)
    try:
        until(lambda: len(load.acknowledged) >= 100)
        before = list(load.acknowledged)
        told = json.loads(run("backup", tmp_path / "b", "--data-dir", server.data_dir, "-o", "json"))
        after = len(load.acknowledged)
    finally:
        load.end()
    assert after > len(before), "the load stood still"
    assert told["counts"]["record"] >= len(before)
    run("restore", tmp_path / "b", "--data-dir", tmp_path / "r", "--secret", server.data_dir / "roost.secret")
    with start(data_dir=tmp_path / "r").api() as api:
        stored = {
            (session, record.turn): record.record.content
            for session in {session for session, _, _ in before}
            for record in api.history(session)
        }
        assert [key for *key, content in before if stored.get((key[0], key[1])) != content] == []
        assert len(stored) == told["counts"]["record"]
        for session in {session for session, _, _ in before}:
            # One that ran at that instant runs here.
            grant = api.begin(session, if_running=turn_service_pb2.IF_RUNNING_TAKEOVER).grant
            assert grant.turn == 1 + max(turn for name, turn in stored if name == session)
    assert server.terminate() == 0


def test_what_the_other_line_gave_out_means_nothing_in_this_one(start: Start, tmp_path: Path) -> None:
    """Leases, fences, and places in exports and watches that were given out after the backup."""
    server = start()
    with server.api() as api:
        api.open("s")
        api.turn("s", b"one")
        api.open("runs")
        kept = api.begin("runs")
        watch = next(iter(api.sessions.WatchSessions(session_service_pb2.WatchSessionsRequest())))
        run("backup", tmp_path / "b", "--data-dir", server.data_dir)
        lost = api.begin("s")
        api.commit("s", lost.grant.lease, b"two of the other line")
        api.finish("s")
        place = max(exported.trajectory.ready_sequence for exported in api.exported())
        lost = api.begin("s")
        other = api.stats()
    server.kill()
    run("restore", tmp_path / "b", "--data-dir", tmp_path / "r", "--secret", server.data_dir / "roost.secret")
    with start(data_dir=tmp_path / "r").api() as api:
        now = api.stats()
        assert now.store_id == other.store_id
        assert now.epoch > other.epoch + 1
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST"):
            api.commit("s", lost.grant.lease, b"three of the other line")
        grant = api.begin("s").grant
        assert (grant.turn, grant.fence > lost.grant.fence) == (2, True)
        api.commit("s", grant.lease, b"two of this line")
        api.finish("s")
        assert [exported.trajectory.session_id for exported in api.exported(after_sequence=place)] == ["s"]
        # The grant of before the backup is of both lines.
        api.commit("runs", kept.grant.lease, b"mine")
        again = session_service_pb2.WatchSessionsRequest(resume_token=watch.resume_token)
        assert next(iter(api.sessions.WatchSessions(again))).resync


@pytest.mark.long
def test_nothing_harms_a_store(start: Start, tmp_path: Path) -> None:
    """Commands that cannot be done say why in one sentence, and change nothing."""
    server = start()
    with server.api() as api:
        api.open("s")
        api.turn("s", b"one")
    run("backup", tmp_path / "b", "--data-dir", server.data_dir, "--with-secret")
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        (("backup", tmp_path / "b", "--data-dir", server.data_dir), "exists already"),
        (("restore", tmp_path / "b", "--data-dir", server.data_dir, "--replace"), "stop it first"),
        (("restore", tmp_path, "--check"), "no whole backup"),
    )
    for arguments, words in cases:
        done = roost(*(str(argument) for argument in arguments))
        assert (done.returncode, done.stdout) == (69, ""), arguments
        assert re.fullmatch(r"roost: [^\n]*\.\n", done.stderr), done.stderr
        assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "data"]
    with server.api() as api:
        assert api.turn("s", b"two").turn == 2


def played(api: Api) -> dict[str, Any]:
    """What a caller can see of all sessions."""
    sessions = {session.session_id: session for session in api.list_all()}
    return {
        name: (session.state, session.turn_count, [(r.turn, r.status, r.record.content) for r in api.history(name)])
        for name, session in sessions.items()
    }


class Newer(Server):
    """A server of a version to come."""

    program = (str(NEWER),)


def test_an_upgrade_and_the_way_back(start: Start, tmp_path: Path) -> None:
    """N -> N+1 -> N, by the steps of docs/OPERATIONS.md: what was stored before the upgrade is whole."""
    server = start()
    with server.api() as api:
        for name in ("a", "b", "closed"):
            api.open(name)
            api.turn(name, name.encode() * 1_000)
        api.close("closed")
        running = api.begin("b")
        before = played(api)
        number = api.stats().epoch
    assert server.terminate() == 0
    data = server.data_dir
    secret = (data / "roost.secret").read_bytes()

    newer = Newer(data)
    try:
        newer.start()
        kept = sorted(path.name for path in (data / "backups").iterdir())
        assert kept == [f"schema-7-epoch-{number}"]
        run("restore", data / "backups" / kept[0], "--check")
        with newer.api() as api:
            assert played(api) == before
            api.turn("a", b"of the newer version")
            newest = api.stats().epoch
        assert newer.terminate() == 0
    finally:
        newer.end()

    # The older one refuses, harms nothing, and says how to go on.
    older = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(data))
    assert older.returncode == 69
    assert "has schema version 8 and this Roost knows versions up to 7" in older.stderr
    command = re.search(r"`roost ([^`]*)`", older.stderr)
    assert command is not None, older.stderr
    assert "put aside" not in run(*shlex.split(command[1]))

    server = start()
    with server.api() as api:
        assert played(api) == before
        assert api.stats().epoch > newest
        assert (data / "roost.secret").read_bytes() == secret
        api.commit("b", running.grant.lease, b"goes on")
        assert api.turn("a", b"of the older version").turn == 2
    assert server.terminate() == 0

    # What the newer version had stored is beside it; and the upgrade can be made again.
    assert len(list(data.glob("replaced-schema-8-epoch-*/roost.db"))) == 1
    again = Newer(data)
    try:
        again.start()
        with again.api() as api:
            assert played(api)["a"][1] == 2
        assert len(list((data / "backups").iterdir())) == 2
    finally:
        again.end()
