"""Caps, waiting, cancelling and eviction, seen from outside."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, fresh, record_input, refusal, refused

from roost.client import Client
from roost.errors import TreeTurns
from roost.v1 import turn_service_pb2, types_pb2

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def begin_waiting(api: Api, name: str, seconds: int = 20, request_id: str = "") -> Any:
    """Start a BeginTurn that queues; returns its future once the server counts it as waiting."""
    request = turn_service_pb2.BeginTurnRequest(session_id=name, request_id=request_id)
    request.wait.FromSeconds(seconds)
    before = api.stats().gauges["waiting"]
    future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
    until(api, lambda gauges: gauges["waiting"] > before)
    return future


def until(api: Api, true: Any) -> None:
    """Ask GetStats until its gauges say so; the test's timeout bounds it."""
    while not true(api.stats().gauges):
        pass


def test_i2_the_tree_cap_keeps_a_place_for_the_root(start: Start) -> None:
    with start("--max-turns-per-tree", "2").api() as api:
        root = api.open().session.session_id
        one = api.open(parent_session_id=root).session.session_id
        two = api.open(parent_session_id=root).session.session_id
        held = api.begin(one).grant.lease
        with refused(EXHAUSTED, "TREE_TURNS") as why:
            api.begin(two)
        assert "QuotaFailure" in why.details
        assert why.metadata["limit"] == "2"
        lease = api.begin(root).grant.lease
        api.commit(root, lease)
        api.commit(one, held)
        api.turn(two)
        assert api.stats().gauges["slots_held"] == 0


def test_a_full_gate_says_who_holds_it_and_where_a_call_stands(start: Start) -> None:
    """As a person reads it, as a program does, and as the client raises it."""
    server = start("--max-turns-per-tree", "3", "--max-turns-per-tenant", "3")
    with server.api() as api:
        root = api.open().session.session_id
        names = [api.open(parent_session_id=root).session.session_id for _ in range(4)]
        lease = api.begin(names[0]).grant.lease
        api.begin(names[1])
        with refused(EXHAUSTED, "TREE_TURNS") as why:
            api.begin(names[2])
        assert why.message.startswith(
            "2 turns run in this tree, and max_turns_per_tree is 3, one place of which is kept for the root; "
            f'the longest is that of session "{names[0]}", for '
        )
        assert why.message.endswith(
            "; this call would be number 1 in the queue: wait for a place (`wait`), or end a turn"
        )
        assert why.details == ["ErrorInfo", "QuotaFailure", "RetryInfo"]
        assert [name.partition("=")[0] for name in why.metadata["holders"].split()] == names[:2]
        assert (why.metadata["queue_position"], why.metadata["waiting"]) == ("1", "0")
        waiting = begin_waiting(api, names[2])
        with refused(EXHAUSTED, "TREE_TURNS") as why:
            api.begin(names[3], wait=0.001)
        assert (why.metadata["queue_position"], why.metadata["waiting"]) == ("2", "1")
        assert int(why.metadata["waited_ms"]) >= 1
        assert "and was number 2 in the queue" in why.message
        with Client(server.address) as client, pytest.raises(TreeTurns) as raised:
            client.begin_turn(names[3])
        assert [name for name, _ in raised.value.holders] == names[:2]
        assert all(seconds >= 0 for _, seconds in raised.value.holders)
        assert "held by" in raised.value.quota[0].description
        # At the tenant's gate the holders are those of all trees.
        api.begin(root)
        with refused(EXHAUSTED, "TENANT_TURNS") as why:
            api.begin(api.open().session.session_id)
        assert [name.partition("=")[0] for name in why.metadata["holders"].split()] == [*names[:2], root]
        assert "3 turns run for this tenant, and max_turns_per_tenant is 3" in why.message
        api.commit(names[0], lease)
        assert waiting.result(DEADLINE).grant.turn == 1


def test_i22_who_only_asks_gets_the_same_answer_and_takes_nothing(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        one, two = api.open().session.session_id, api.open().session.session_id
        asked = api.begin(one, validate_only=True).grant
        assert (asked.turn, asked.lease, asked.fence) == (1, b"", 0)
        assert api.stats().gauges["slots_held"] == 0
        api.begin(one)
        said = []
        for only in (True, False):
            with refused(EXHAUSTED, "TENANT_TURNS") as why:
                api.begin(two, validate_only=only)
            held = why.metadata.pop("holders").partition("=")[0]
            said.append((why.message.partition(", for ")[0], why.metadata, why.details, held))
        assert said[0] == said[1]
        with refused(EXHAUSTED, "TENANT_TURNS") as why:
            api.begin(two, validate_only=True, wait=20)
        assert why.metadata["queue_position"] == "1"
        assert api.stats().gauges["waiting"] == 0


def test_the_tenant_cap_and_its_queue(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        names = [api.open().session.session_id for _ in range(3)]
        lease = api.begin(names[0]).grant.lease
        with refused(EXHAUSTED, "TENANT_TURNS") as why:
            api.begin(names[1])
        assert (why.metadata["limit"], why.metadata["used"]) == ("1", "1")
        first = begin_waiting(api, names[1])
        second = begin_waiting(api, names[2])
        assert api.get(names[1]).activity == types_pb2.ACTIVITY_WAITING
        api.commit(names[0], lease)
        grant = first.result(DEADLINE).grant
        assert grant.queue_wait.ToNanoseconds() > 0
        assert not second.done()
        api.close(names[2])
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
            second.result(DEADLINE)
        api.commit(names[1], grant.lease)


def test_an_expired_lease_frees_its_slot_and_takes_a_late_commit(start: Start) -> None:
    """The waiter is served the moment the lease ends, so nothing here sleeps."""
    with start("--max-turns-per-tenant", "1").api() as api:
        late, other = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(late, lease=5).grant.lease
        next_lease = begin_waiting(api, other).result(DEADLINE).grant.lease
        assert api.get(late).activity == types_pb2.ACTIVITY_IDLE
        assert api.get(late).last_outcome == types_pb2.TURN_OUTCOME_EXPIRED
        assert api.commit(late, lease, b"late").turn == 1
        api.commit(other, next_lease)
        old = api.begin(late, lease=5).grant.lease
        api.abort(other, begin_waiting(api, other).result(DEADLINE).grant.lease)
        newer = api.begin(late).grant.lease
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST"):
            api.commit(late, old, b"too late")
        assert api.commit(late, newer, b"new").turn == 2
        assert [r.record.content for r in api.history(late, statuses=[types_pb2.RECORD_STATUS_COMMITTED])] == [
            b"late",
            b"new",
        ]


def test_i24_a_cancelled_wait_leaves_nothing(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        holder, waiter = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(holder).grant.lease
        future = begin_waiting(api, waiter)
        future.cancel()
        until(api, lambda gauges: gauges["waiting"] == 0)
        assert api.get(waiter).activity == types_pb2.ACTIVITY_IDLE
        api.commit(holder, lease)
        assert api.stats().gauges["slots_held"] == 0
        api.turn(waiter)
        created = fresh()
        lease = api.begin(holder).grant.lease
        request = turn_service_pb2.BeginTurnRequest(session_id=created, open=types_pb2.OpenOptions())
        request.wait.FromSeconds(20)
        future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
        until(api, lambda gauges: gauges["waiting"] == 1)
        future.cancel()
        until(api, lambda gauges: gauges["waiting"] == 0)
        with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
            api.get(created)


def test_i24_a_vanished_connection_leaves_nothing(start: Start) -> None:
    server = start("--max-turns-per-tenant", "1")
    with server.api() as api:
        holder, waiter = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(holder).grant.lease
        with server.api() as gone:
            waits = [begin_waiting(gone, waiter)]
        until(api, lambda gauges: gauges["waiting"] == 0)
        assert waits[0].done()
        api.commit(holder, lease)
        api.turn(waiter)


def test_i24_calls_cancelled_at_any_point_keep_one_turn_a_session(start: Start) -> None:
    with start().api() as api:
        name = api.open().session.session_id
        for _ in range(60):
            future = api.turns.BeginTurn.future(turn_service_pb2.BeginTurnRequest(session_id=name), timeout=DEADLINE)
            future.cancel()
            try:
                lease = api.begin(name).grant.lease
            except grpc.RpcError:
                # The cancelled call won and its answer was on its way: close to the lease, nothing is lost for good.
                continue
            api.commit(name, lease)
        stats = api.stats().gauges
        assert stats["slots_held"] == stats["turns_running"] <= 1


def test_a_cancelled_wait_with_a_request_id_keeps_its_place(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        holder, first, second = (api.open().session.session_id for _ in range(3))
        lease = api.begin(holder).grant.lease
        request_id = fresh("r")
        begin_waiting(api, first, request_id=request_id).cancel()
        behind = begin_waiting(api, second)
        request = turn_service_pb2.BeginTurnRequest(session_id=first, request_id=request_id)
        request.wait.FromSeconds(20)
        repeat = api.turns.BeginTurn.future(request, timeout=DEADLINE)
        until(api, lambda gauges: gauges["waiting"] >= 2)
        assert api.get(first).activity == types_pb2.ACTIVITY_WAITING
        api.commit(holder, lease)
        done = concurrent.futures.Future[Any]()
        repeat.add_done_callback(done.set_result)
        done.result(DEADLINE)
        assert not behind.done()
        api.commit(first, repeat.result().grant.lease)
        api.commit(second, behind.result(DEADLINE).grant.lease)


def test_waiters_are_bounded_by_connection_and_in_all(start: Start) -> None:
    flags = ("--max-turns-per-tenant", "0", "--set", "max_waiters_per_connection=1", "--set", "max_waiters=2")
    server = start(*flags)
    with server.api() as one, server.api() as two, server.api() as three:
        names = [one.open().session.session_id for _ in range(4)]
        waits = [begin_waiting(one, names[0])]  # kept: a future that nobody holds is cancelled
        with refused(EXHAUSTED, "QUEUE_FULL"):
            one.begin(names[1], wait=20)
        waits.append(begin_waiting(two, names[1]))
        with refused(EXHAUSTED, "QUEUE_FULL"):
            three.begin(names[2], wait=20)
        assert not any(wait.done() for wait in waits)


def test_one_program_on_a_unix_socket_does_not_use_up_the_bound_of_another(start: Start, tmp_path: Path) -> None:
    flags = ("--max-turns-per-tenant", "0", "--set", "max_waiters_per_connection=1")
    server = start(*flags, listen=f"unix:{tmp_path}/roost.sock")
    with server.api() as one, server.api() as two:
        names = [one.open().session.session_id for _ in range(2)]
        waits = [begin_waiting(one, names[0]), begin_waiting(two, names[1])]
        assert not any(wait.done() for wait in waits)


def test_sessions_of_a_tree_and_its_depth_are_bounded(start: Start) -> None:
    with start("--set", "max_sessions_per_tree=3", "--set", "max_depth=1").api() as api:
        root = api.open().session.session_id
        child = api.open(parent_session_id=root).session.session_id
        with refused(EXHAUSTED, "TREE_DEPTH") as why:
            api.open(parent_session_id=child)
        assert "1" in why.metadata.values()
        api.open(parent_session_id=root)
        with refused(EXHAUSTED, "TREE_SESSIONS") as why:
            api.open(parent_session_id=root)
        assert "3" in why.metadata.values()
        api.close(child)
        api.open(parent_session_id=root)


def test_limits_say_where_they_come_from(start: Start) -> None:
    with start("--max-resident", "7", ROOST_MAX_DEPTH="3").api() as api:
        limits = {limit.name: (limit.value, limit.source) for limit in api.stats().limits}
        assert limits["max_resident_sessions"] == (7, "flag")
        assert limits["max_depth"] == (3, "environment")


def test_i11_eviction_is_invisible(start: Start, api: Api) -> None:
    """The same script against a server that keeps one session and against one that keeps all: the same answers."""
    with start("--max-resident", "1").api() as tight:
        assert _script(tight) == _script(api)
        counters = tight.stats().counters
        assert counters["evictions"] > 0
        assert counters["reloads"] > 0


def _script(api: Api) -> list[Any]:
    """Interleaved turns of three sessions; what each call said, without ids and times."""
    seen: list[Any] = []
    names = [api.open(labels={"n": str(i)}).session.session_id for i in range(3)]
    for turn in range(4):
        for name in names:
            grant = api.begin(name, expected_turn=turn + 1).grant
            point = grant.checkpoint
            seen.append((grant.turn, grant.attempt, grant.head_version, grant.fence, point.length, point.token_ids))
            seen.append(point.state)
            record = record_input(f"{turn}".encode(), tokens=3, offset=point.length)
            if turn == 2:
                api.abort(name, grant.lease, b"aborted")
                grant = api.begin(name).grant
                seen.append(grant.attempt)
            done = api.commit(name, grant.lease, record=record, state=f"state {turn}".encode())
            again = api.commit(name, grant.lease, record=record, state=f"state {turn}".encode())
            seen.append((done.turn, done.head_version, again.repeated, again.turn))
    for name in names:
        session = api.get(name)
        seen.append((session.turn_count, session.head_version, session.checkpoint_tokens, dict(session.labels)))
        seen += [(r.turn, r.attempt, r.status, r.record.content) for r in api.history(name)]
        seen += [(r.turn, r.record.content) for r in api.export(session_ids=[name])[name]]
        seen.append(api.close(name).receipt.turn_count)
    return seen


def test_one_session_is_loaded_once_however_many_wait(start: Start) -> None:
    server = start("--max-resident", "1")
    with server.api() as api:
        name, other = api.open().session.session_id, api.open().session.session_id
        api.turn(name)
        api.turn(other)
        before = api.stats().counters["reloads"]
        barrier = threading.Barrier(8)

        def update(_: int) -> Any:
            barrier.wait(DEADLINE)
            return outcome(api, name)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(update, range(8)))
        assert results.count("granted") == 1
        assert set(results) <= {"granted", "TURN_IN_PROGRESS"}
        assert api.stats().counters["reloads"] - before <= 1


def outcome(api: Api, name: str) -> str:
    try:
        api.begin(name)
    except grpc.RpcError as error:
        return refusal(error).reason
    return "granted"
