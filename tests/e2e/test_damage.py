"""Damaged stores: a file that cannot be served is refused at the start; a session that does not verify harms nobody.

I23: what is served verifies. Damage is done with SQL, or to the bytes of the file, while the server is stopped.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import Api, Server, record_input, refused, roost
from samples import some

from roost.v1 import types_pb2

DATA_LOSS = grpc.StatusCode.DATA_LOSS
BAD = "bad"  # the session that is damaged
OTHERS = TOP, CHILD, ALONE = "top", "child", "alone"


@contextlib.contextmanager
def sql(server: Server) -> Iterator[sqlite3.Connection]:
    """The store of a stopped server, past all its checks."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "roost.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = 1")
        yield conn


# -- the whole file


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA user_version = 4711")


def _foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE photos (name TEXT)")


def _text(path: Path) -> None:
    path.write_text("Dear diary,\n" * 100)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3 * 4096)


def _stump(path: Path) -> None:
    os.truncate(path, 50)


def _smear(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 64)


def _page(path: Path) -> None:
    """One page that no start needs."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        (page,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'session_open_path'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 64)


def _bits(path: Path) -> None:
    """Some bits of the schema's own page."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xee" * 40)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_newer, "has schema version 4711 and this Roost knows versions up to "),
        (_foreign, "is a SQLite database of another program"),
        (_text, "is not a SQLite database"),
        (_stump, "is not a SQLite database"),
        (_cut, "is damaged"),
        (_smear, "is damaged"),
        (_page, "is damaged"),
        (_bits, "is damaged"),
    ],
)
def test_a_store_that_cannot_be_served_is_refused_and_left_alone(
    start: Start, damage: Callable[[Path], None], says: str
) -> None:
    """Exit code 69, one sentence that says which file and what of it, and not a byte of the file is changed."""
    server = start()
    with server.api() as api:
        for n in range(20):
            name = api.open(f"s{n}").session.session_id
            api.turn(name, b"x" * 2000)
    assert server.terminate() == 0
    store = server.data_dir / "roost.db"
    intact = store.read_bytes()
    damage(store)
    before = store.read_bytes()
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(server.data_dir))
    assert ended.returncode == 69, ended.stderr
    said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]  # log lines are JSON
    assert len(said) == 1, ended.stderr
    assert said[0].startswith(f"roost: {store} {says}"), said
    assert said[0].endswith("."), said
    assert "is ready" not in ended.stdout
    assert store.read_bytes() == before
    # As the sentence asks: with the backup in its place it is served again, with all that it held.
    store.write_bytes(intact)
    with server.start().api() as api:
        assert len(api.export()) == 20


# -- one session


@pytest.fixture
def played(start: Start) -> Server:
    """A stopped server whose sessions hold four turns each, with tokens, logprobs and state, and an aborted attempt.

    The session to be damaged has its parent and its child among the others.
    """
    server = start()
    with server.api() as api:
        for name, parent in ((TOP, ""), (BAD, TOP), (CHILD, BAD), (ALONE, "")):
            api.open(name, parent_session_id=parent)
            for n in range(4):
                _turn(api, name, n)
            api.abort(name, api.begin(name).grant.lease, b"half a thought")
    assert server.terminate() == 0
    return server


def _turn(api: Api, name: str, n: int) -> None:
    record = record_input(_content(name, n), tokens=8, offset=8 * n)
    record.tokens.logprobs = bytes(range(32))
    lease = api.begin(name).grant.lease
    api.commit(name, lease, record=record, state=f"{name} after {n}".encode())


def _content(name: str, n: int) -> bytes:
    return f"{name} says {n}. ".encode() * 20


def _flip(column: str, turn: int) -> Callable[[sqlite3.Connection, bytes], None]:
    """One bit in the middle of a column of the record of a turn, or, turn 0, of the session."""

    def flip(conn: sqlite3.Connection, uid: bytes) -> None:
        table, where = ("record", f"session = ? AND status = 1 AND turn = {turn}") if turn else ("session", "uid = ?")
        value = bytearray(conn.execute(f"SELECT {column} FROM {table} WHERE {where}", (uid,)).fetchone()[0])
        value[len(value) // 2] ^= 0x10
        changed = conn.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bytes(value), uid))
        assert changed.rowcount == 1

    return flip


def _statement(sql: str) -> Callable[[sqlite3.Connection, bytes], None]:
    def run(conn: sqlite3.Connection, uid: bytes) -> None:
        assert conn.execute(sql, (uid,)).rowcount == 1

    return run


LAST = "session = ?1 AND seq = (SELECT last FROM session WHERE uid = ?1)"
# Another session's record in the place of its own: each is whole, only they are not this session's.
SWAP = """
    UPDATE record SET (meta, chain, tokens, state, arrays, content) =
        (SELECT r.meta, r.chain, r.tokens, r.state, r.arrays, r.content FROM record AS r
         JOIN session AS s ON s.uid = r.session WHERE s.session_id = 'alone' AND r.turn = 2)
    WHERE session = ? AND turn = 2
"""
# What of it is damaged, how, and what is not concerned: a payload is verified when it is read.
DAMAGE = {
    "meta": (_flip("meta", 2), ()),
    "chain": (_flip("chain", 2), ()),
    "first-meta": (_flip("meta", 1), ()),
    "last-chain": (_flip("chain", 4), ()),
    "content": (_flip("content", 2), ("begin", "outline")),
    "logprobs": (_flip("arrays", 2), ("begin", "outline")),
    "tokens": (_flip("tokens", 2), ("outline",)),
    "state": (_flip("state", 4), ("outline",)),
    "facts": (_flip("facts", 0), ()),
    "no-facts": (_statement("UPDATE session SET facts = x'ff' WHERE uid = ?"), ()),
    "lost-record": (_statement("DELETE FROM record WHERE session = ? AND status = 1 AND turn = 2"), ()),
    "lost-last-record": (_statement(f"DELETE FROM record WHERE {LAST}"), ()),
    "lost-link": (_statement(f"UPDATE record SET prev = 0 WHERE {LAST}"), ()),
    "swapped": (_statement(SWAP), ()),
}


@pytest.mark.parametrize("damage", some(DAMAGE, 2))
def test_i23_one_session_that_does_not_verify_harms_nobody_else(played: Server, damage: str) -> None:
    break_it, unharmed = DAMAGE[damage]
    with sql(played) as conn:
        break_it(conn, _uid(conn, BAD))
    with played.start().api() as api:
        calls: dict[str, Callable[[], Any]] = {
            "begin": lambda: api.abort(BAD, api.begin(BAD).grant.lease),
            "history": lambda: api.history(BAD),
            "outline": lambda: api.history(BAD, omit_payload=True),
            "export": lambda: api.export(session_ids=[BAD]),
            "export all": api.export,
        }
        for what, call in calls.items():
            for _ in range(2):  # a second time nothing is different
                if what in unharmed:
                    call()
                    continue
                with refused(DATA_LOSS, "SESSION_CORRUPT") as why:
                    call()
                assert why.metadata["session_id"] == BAD, what
                assert "says" not in why.message  # I25
        # All others are served, verify, and go on; its parent and its child too.
        _others_are_whole(api, turns=4)
        for name in OTHERS:
            _turn(api, name, 4)
        _others_are_whole(api, turns=5)
        assert {*OTHERS} <= {session.session_id for session in api.list_all()}
        # It can be closed with its tree: nothing of it is read for that. Only its provisional must be there to end.
        if damage == "lost-last-record":
            with refused(grpc.StatusCode.UNAVAILABLE, "NOT_STORED"):
                api.close(TOP)
            with refused(DATA_LOSS, "TREE_QUARANTINED"):
                api.close(TOP)
            api.turn(ALONE)
        else:
            assert api.close(TOP).receipt.children_closed == 2
        stats = api.stats().gauges
        assert stats["slots_held"] == stats["turns_running"] == 0


def test_i23_a_grant_that_does_not_decode_sets_its_tree_aside(played: Server) -> None:
    """Who runs in a tree must be known before anything in it is admitted, or a cap would not hold (I2)."""
    with played.start().api() as api:
        api.begin(BAD)
        api.begin(ALONE)
    played.kill()
    with sql(played) as conn:
        conn.execute("UPDATE session SET lease = x'ff' WHERE session_id = ?", (BAD,))
    with played.start().api() as api:
        gauges = api.stats().gauges
        assert (gauges["turns_running"], gauges["quarantined_trees"]) == (1, 1)
        for name in (BAD, TOP, CHILD):
            with refused(DATA_LOSS, "TREE_QUARANTINED"):
                api.begin(name)
            assert len(api.history(name)) == 5  # its records are whole
        _others_are_whole(api, turns=4)
        with refused(DATA_LOSS, "SESSION_CORRUPT"):
            api.export(session_ids=[BAD])
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_IN_PROGRESS"):
            api.begin(ALONE)
        api.close(ALONE)
        api.turn(api.open().session.session_id)


def _others_are_whole(api: Api, turns: int) -> None:
    exported = api.export(session_ids=list(OTHERS))
    assert [*exported] == [*OTHERS]
    for name, records in exported.items():
        assert [r.record.content for r in records] == [_content(name, n) for n in range(turns)]
        assert api.get(name).turn_count == turns
        kept = api.history(name, statuses=[types_pb2.RECORD_STATUS_COMMITTED])
        assert [r.record.content for r in kept] == [_content(name, n) for n in range(turns)]


def _uid(conn: sqlite3.Connection, name: str) -> bytes:
    uid = conn.execute("SELECT uid FROM session WHERE session_id = ?", (name,)).fetchone()[0]
    assert isinstance(uid, bytes)
    return uid
