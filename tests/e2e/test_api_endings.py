"""How sessions end, over a real socket: closes and what follows them, how they come back, stale trees.

The rules one by one are in rust/core/tests/engine/endings.rs; this is that the whole server keeps them.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, ClockedServer, Server, fresh, record_input, refused, roost, until

from roost.v1 import session_service_pb2 as sessions
from roost.v1 import trajectory_service_pb2 as trajectories
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

OPEN, CLOSED = types.SESSION_STATE_OPEN, types.SESSION_STATE_CLOSED
FAILED, NOT_FOUND = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DAY = 86_400.0


def clocked(start: Start, *flags: str) -> ClockedServer:
    server = start(*flags, clocked=True)
    assert isinstance(server, ClockedServer)
    return server


def tree(api: Api, **options: Any) -> tuple[str, str, str]:
    """A root, its child and grandchild, each with a turn."""
    root = api.open(**options).session.session_id
    child = api.open(parent_session_id=root).session.session_id
    grandchild = api.open(parent_session_id=child).session.session_id
    for name in (root, child, grandchild):
        api.turn(name, b"turn of " + name.encode())
    return root, child, grandchild


# -- coming back


def test_a_reopened_tree_goes_on_where_it_was_over_a_restart(start: Start) -> None:
    server = start()
    with server.api() as api:
        names = tree(api)
        before = [api.history(name) for name in names]
        receipt = api.close(names[0], request_id="close").receipt
        assert (receipt.children_closed, receipt.close_number) == (2, 1)
        assert api.reopen(names[0], request_id="back").reopened == 3
        api.turn(names[2], b"more")
    server.kill()
    server.start()
    with server.api() as api:
        assert [api.get(name).state for name in names] == [OPEN] * 3
        assert [api.history(name)[:1] for name in names] == before
        # I21: late repeats find what they made.
        assert api.close(names[0], request_id="close").receipt == receipt
        assert api.reopen(names[0], request_id="back").reopened == 0
        assert api.get(names[0]).state == OPEN
        assert api.close(names[0]).receipt.close_number == 2
        again = api.reopen(names[0], request_id="back")
        assert (again.reopened, again.session.state) == (0, CLOSED)


def test_i16_a_path_that_is_taken_stays_taken(api: Api) -> None:
    root = api.open().session.session_id
    first = api.open(parent_session_id=root, name="scout").session.session_id
    api.close(first)
    second = api.open(parent_session_id=root, name="scout").session.session_id
    with refused(grpc.StatusCode.ALREADY_EXISTS, "PATH_COLLISION"):
        api.reopen(first)
    api.close(second)
    assert api.reopen(first).session.path == "/root/scout"


@pytest.mark.parametrize(
    ("session_id", "code", "reason"),
    [
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ("nobody-knows", NOT_FOUND, "SESSION_NOT_FOUND"),
        ("../../x", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
def test_a_reopen_of_nothing_says_so(api: Api, session_id: str, code: grpc.StatusCode, reason: str) -> None:
    with refused(code, reason):
        api.reopen(session_id)


# -- closing


def test_session_final_ends_a_session_without_a_slot(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        name, busy = api.open().session.session_id, api.open().session.session_id
        api.begin(busy)
        answer = api.begin(name, session_final=True, request_id="last")
        assert (answer.HasField("grant"), answer.receipt.reason) == (False, types.CLOSE_REASON_QUIT)
        assert api.begin(name, session_final=True, request_id="last") == answer
        assert api.get(name).state == CLOSED
        assert api.stats().gauges["slots_held"] == 1
        with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
            api.begin(fresh(), session_final=True)


def test_a_close_whose_caller_has_gone_closes_all_the_same(start: Start) -> None:
    server = start("--max-resident", "1")
    with server.api() as api:
        names = [tree(api)[0] for _ in range(20)]
        # Every other one is cancelled as soon as it is sent: the server has seen it or not, and never by halves.
        for n, name in enumerate(names):
            call = api.sessions.CloseSession.future(sessions.CloseSessionRequest(session_id=name), timeout=DEADLINE)
            if n % 2:
                call.cancel()
            else:
                call.result()
        states = {name: {s.state for s in api.list_all(root_session_id=name)} for name in names}
        assert all(len(found) == 1 for found in states.values())
        assert all(states[name] == {CLOSED} for name in names[::2])


def test_i12_one_receipt_whoever_asks_and_however_often(api: Api) -> None:
    root, *_ = tree(api)
    calls = [
        api.sessions.CloseSession.future(sessions.CloseSessionRequest(session_id=root), timeout=DEADLINE)
        for _ in range(50)
    ]
    receipts = {call.result().receipt.SerializeToString(deterministic=True) for call in calls}
    assert len(receipts) == 1


# -- the purge


def test_i14_content_goes_when_it_is_acknowledged_and_its_time_is_over(start: Start) -> None:
    server = clocked(start, "--set", "retention_ms=1d", "--set", "tombstone_retention_ms=2d")
    with server.api() as api:
        kept, gone = api.open().session.session_id, api.open().session.session_id
        for name in (kept, gone):
            for _ in range(3):
                api.turn(name, b"x" * 10_000)
            trajectory = api.finish(name).trajectory.trajectory_id
            api.close(name)
        api.ack(trajectory)
        due = api.get(gone).cleanup.due_time.ToSeconds() - api.get(gone).cleanup.closed_time.ToSeconds()
        assert due == DAY
        server.clock.skip(DAY - 60)
        assert len(api.history(gone)) == 3
        server.clock.skip(120)
        until(lambda: api.get(gone).cleanup.HasField("purged_time"))
        until(lambda: not api.get(kept).cleanup.HasField("due_time"))
        with refused(FAILED, "SESSION_PURGED"):
            api.history(gone)
        with refused(FAILED, "SESSION_PURGED"):
            api.exported(session_ids=[gone], selection=trajectories.TRAJECTORY_SELECTION_ALL)
        session = api.get(gone)
        assert (session.state, session.turn_count, session.receipt.turn_count) == (CLOSED, 3, 3)
        assert [one.trajectory.session_id for one in api.exported()] == [kept]
        with refused(FAILED, "SESSION_PURGED"):
            api.reopen(gone)
        # I13: the id stays taken, for late requests and for new ones.
        with refused(FAILED, "SESSION_CLOSED"):
            api.begin(gone)
        with refused(FAILED, "SESSION_CLOSED"):
            api.open(gone)
        # What was kept goes once it is acknowledged.
        api.ack(*[one.trajectory.trajectory_id for one in api.exported()])
        until(lambda: api.get(kept).cleanup.HasField("purged_time"))
        server.clock.skip(2 * DAY + 60)
        until(lambda: not api.list_all())
        with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
            api.get(gone)
        assert api.open(gone).created


def test_a_purge_that_is_killed_goes_on_at_the_next_start(start: Start) -> None:
    flags = ("--set", "retention_ms=0", "--set", "purge_without_dump=true")
    server = start("--set", "retention_ms=1d", "--set", "purge_without_dump=true")
    with server.api() as api:
        name = api.open().session.session_id
        for _ in range(300):
            api.turn(name)
        api.close(name)
    server.terminate()
    # Killed after the mark, between the two deletions, after the last: what was deleted stays so, and the rest goes.
    for place in ("cleanup.purge.after:1", "cleanup.purge.before:2", "cleanup.purge.after:1"):
        server = start(*flags, clocked=True, ROOST_FAILPOINT=place)
        assert isinstance(server, ClockedServer)
        server.clock.skip(DAY)
        assert server.wait() == -signal.SIGKILL
    server = start(*flags)
    with server.api() as api:
        until(lambda: api.get(name).cleanup.HasField("purged_time"))
        with refused(FAILED, "SESSION_PURGED"):
            api.history(name)


def test_an_export_that_runs_is_not_cut_off_by_the_purge(start: Start) -> None:
    server = clocked(start, "--set", "retention_ms=1d", "--set", "purge_without_dump=true")
    with server.api() as api:
        name = api.open().session.session_id
        for _ in range(300):  # more than a connection takes on its way to a reader that does not read
            api.turn(name, b"y" * 60_000)
        api.close(name)
        pages = api.sessions.ReadHistory(sessions.ReadHistoryRequest(session_id=name), timeout=DEADLINE)
        read = len(next(pages).records)
        server.clock.skip(DAY + 60)
        # From here on it is to be purged, and no stream begins.
        until(lambda: _refused(api, name))
        assert not api.get(name).cleanup.HasField("purged_time")
        assert read + sum(len(page.records) for page in pages) == 300
        until(lambda: api.get(name).cleanup.HasField("purged_time"))


def _refused(api: Api, name: str) -> bool:
    try:
        api.history(name, omit_payload=True)
    except grpc.RpcError:
        return True
    return False


# -- stale trees


def test_a_stale_tree_goes_whole_and_only_when_all_of_it_is_idle(start: Start) -> None:
    server = clocked(start, "--set", "sweep_interval_ms=1s")
    with server.api() as api:
        root, child, grandchild = tree(api, stale_timeout={"seconds": 3_600})
        never = api.open(stale_timeout={"seconds": 0}).session.session_id
        lease = api.begin(grandchild, lease=3_600).grant.lease
        for _ in range(3):
            server.clock.skip(1_800)
            api.turns.RenewTurns(_renewal(grandchild, lease), timeout=DEADLINE)
        assert api.get(root).state == OPEN
        api.commit(grandchild, lease)
        server.clock.skip(3_500)
        assert api.get(root).state == OPEN
    server.kill()
    server.start()
    with server.api() as api:
        server.clock.skip(200)
        until(lambda: api.get(root).state == CLOSED)
        assert api.get(root).receipt.reason == types.CLOSE_REASON_STALE
        assert api.get(grandchild).receipt.reason == types.CLOSE_REASON_PARENT_CLOSED
        assert api.get(child).state == CLOSED
        assert api.get(never).state == OPEN
        assert len(api.history(grandchild)) == 2
        assert api.stats().counters["trees_swept"] == 1


def _renewal(name: str, lease: bytes) -> Any:
    return turns.RenewTurnsRequest(renewals=[turns.Renewal(session_id=name, lease=lease)])


def test_a_turn_longer_than_the_time_out_is_not_swept(start: Start) -> None:
    server = clocked(start, "--set", "sweep_interval_ms=1s", "--set", "default_stale_ms=60s")
    with server.api() as api:
        name = api.open().session.session_id
        lease = api.begin(name, lease=3_600).grant.lease
        server.clock.skip(3_000)
        server.clock.skip(10)
        api.commit(name, lease, b"late, and in time")
        assert api.get(name).turn_count == 1
        server.clock.skip(70)
        until(lambda: api.get(name).state == CLOSED)


def test_a_dry_run_tells_what_a_sweep_closes(start: Start) -> None:
    server = clocked(start, "--set", "sweep_interval_ms=1d", "--stale-timeout", "60s", "--max-resident", "1")
    with server.api() as api:
        stale, *_ = tree(api)
        server.clock.skip(30)
        young = api.open().session.session_id
        busy = api.open(stale_timeout={"seconds": 10}).session.session_id
        api.begin(busy, lease=3_600)
        waits = api.open(stale_timeout={"seconds": 0}).session.session_id
        server.clock.skip(45)
        done = roost("sweep", "--dry-run", "-o", "json", "--target", server.address)
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout)
        assert (told["root_session_id"], told["open_sessions"]) == (stale, 3)
        assert api.get(stale).state == OPEN
        done = roost("sweep", "--target", server.address)
        assert stale in done.stdout
        until(lambda: api.get(stale).state == CLOSED)
        assert [api.get(name).state for name in (young, busy, waits)] == [OPEN] * 3
        assert json.loads(roost("sweep", "--dry-run", "-o", "json", "--target", server.address).stdout) == []


# -- room


def test_max_store_bytes_refuses_new_sessions_and_nothing_else(start: Start) -> None:
    server = start("--set", "max_store_bytes=300KiB")
    with server.api() as api:
        name = api.open().session.session_id
        while api.stats().gauges["store_bytes"] < 400 << 10:
            api.commit(name, api.begin(name).grant.lease, record=record_input(b"z" * 30_000))
        until(lambda: not _opens(api))
        with refused(EXHAUSTED, "STORE_BYTES") as why:
            api.open()
        assert why.metadata["limit_name"] == "max_store_bytes"
        with refused(EXHAUSTED, "STORE_BYTES"):
            api.begin(fresh(), open=types.OpenOptions())
        api.turn(name)
        api.close(name)


def _opens(api: Api) -> bool:
    try:
        api.open()
    except grpc.RpcError:
        return False
    return True


# -- the command line


def test_roost_sessions_reopen_prints_what_came_back(shared: Server, api: Api) -> None:
    root, *_ = tree(api)
    api.close(root)
    done = roost("sessions", "reopen", root, "--target", shared.address)
    assert done.returncode == 0, done.stderr
    assert "reopened" in done.stdout
    assert "3" in done.stdout
    assert api.get(root).state == OPEN
    again = roost("sessions", "reopen", "nobody", "--target", shared.address)
    assert again.returncode != 0
    assert "nobody" in again.stderr
