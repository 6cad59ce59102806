"""A start after a crash, on a store that holds a million sessions: it serves, and has read only what runs.

The time that takes is measured by `bench/start_up.py`; here nothing is timed. What is tested is what makes it quick: of
all those sessions the start loads the trees in which a turn runs, and the rest when somebody asks for it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import grpc
import pytest
from conftest import Start
from roost_server import Server, refused

from roost.store import SqliteStore
from roost.store.v1 import store_pb2

# Rows as the engine writes them: roots, idle, without a record. In their own way spread over the index of ids.
ROWS = """
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
    INSERT INTO session (uid, tenant, session_id, root, parent, path, depth, create_ms, state, head, head_version,
                         fence, provisional, last, running, finish_due, closes, stale_ms, active_ms, stale_due,
                         cleanup_due, close_seq, seq, lease, facts, receipt)
    SELECT uid(i), 'default', name(i), uid(i), x'', '/root', 0, :now, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3600000, 0, 3600000,
           0, 0, i, NULL, :facts, NULL
    FROM n
"""
NOW = 1_700_000_000_000
RUNNING, FINISHED = 50, 200


def uid(n: int) -> bytes:
    """A UUIDv7 that sorts by its number."""
    return (
        (NOW + n // 1000).to_bytes(6, "big") + (0x7000 | n % 1000).to_bytes(2, "big") + (2 << 62 | n).to_bytes(8, "big")
    )


def name(n: int) -> str:
    return f"s-{n * 2654435761 % 2**32:08x}-{n}"


def fill(data_dir: Path, count: int) -> None:
    """A store of `count` sessions."""
    SqliteStore(data_dir).close()
    facts = store_pb2.SessionFacts(create_ms=NOW, last_outcome=1).SerializeToString()
    with contextlib.closing(sqlite3.connect(data_dir / "roost.db")) as conn, conn:
        conn.create_function("uid", 1, uid, deterministic=True)
        conn.create_function("name", 1, name, deterministic=True)
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute(ROWS, {"count": count, "now": NOW, "facts": facts})
        conn.execute("UPDATE shard SET last_seq = ?", (count,))


def crash(server: Server, count: int) -> dict[str, bytes]:
    """Turns that end and turns that run when the server is killed; the leases of these."""
    leases = {}
    with server.api() as api:
        # Only what was asked for is in memory.
        assert api.stats().counters["header_loads"] == 0
        step = count // FINISHED
        for n in range(1, FINISHED + 1):
            api.turn(name(n * step), b"x" * 1000)
        for n in range(1, RUNNING + 1):
            leases[name(n * step - 1)] = api.begin(name(n * step - 1)).grant.lease
        assert api.stats().counters["header_loads"] == FINISHED + RUNNING
        root = api.open("tree").session.session_id  # one tree in which two run
        for child in ("one", "two"):
            api.open(child, parent_session_id=root)
            leases[child] = api.begin(child).grant.lease
    server.kill()
    assert (server.data_dir / "roost.db-wal").stat().st_size > 0
    return leases


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_i5_a_start_after_a_crash_loads_only_what_runs(start: Start, tmp_path: Path, count: int) -> None:
    fill(tmp_path / "data", count)
    server = start()
    leases = crash(server, count)
    server.start()
    with server.api() as api:
        stats = api.stats()
        assert stats.counters["header_loads"] == RUNNING + 1  # trees, not turns
        assert stats.counters["reloads"] == 0
        assert stats.gauges["tree_headers"] == RUNNING + 1
        assert stats.gauges["resident_sessions"] == 0
        assert stats.gauges["slots_held"] == stats.gauges["turns_running"] == len(leases) == RUNNING + 2  # I1
        # What runs goes on under its old lease (I5), and nobody else may begin there (I3).
        for session, lease in leases.items():
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_IN_PROGRESS"):
                api.begin(session)
            assert api.commit(session, lease, b"after the crash").turn == 1
        # What was acknowledged is there; a session that was never asked for is one read away.
        step = count // FINISHED
        assert [r.record.content for r in api.history(name(step))] == [b"x" * 1000]
        assert api.turn(name(step)).turn == 2
        assert api.turn(name(count - 1)).turn == 1
        assert len(api.export(session_ids=[name(n * step) for n in range(1, FINISHED + 1)])) == FINISHED
        assert api.stats().gauges["slots_held"] == 0
    assert server.terminate() == 0
    with server.start().api() as api:
        stats = api.stats()
        assert (stats.counters["header_loads"], stats.gauges["turns_running"]) == (0, 0)
