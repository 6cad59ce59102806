"""How a server ends: gracefully at a signal, at once at the second, and by kill -9 without losing what it said."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import grpc
import pytest
from conftest import Start
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.v1 import turn_service_pb2, types_pb2

pytestmark = pytest.mark.crash


def test_sigterm_ends_waits_keeps_turns_and_exits_0(start: Start) -> None:
    server = start("--max-turns-per-tenant", "1")
    with server.api() as api:
        holder, waiter = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(holder).grant.lease
        request = turn_service_pb2.BeginTurnRequest(session_id=waiter)
        request.wait.FromSeconds(25)
        future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
        while api.stats().gauges["waiting"] == 0:
            pass
        assert server.terminate() == 0
        with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            future.result(DEADLINE)
    events = [json.loads(line)["event"] for line in server.logged.splitlines()]
    assert [event for event in events if event in ("ready", "draining", "stopped")] == ["ready", "draining", "stopped"]
    server.start()
    with server.api() as api:
        # The running turn is still running, still counted, and can be committed with its lease.
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS"):
            api.begin(waiter)
        assert api.commit(holder, lease, b"over the restart").turn == 1
        api.turn(waiter)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_health_is_the_first_to_know_and_a_watcher_holds_nothing_up(start: Start, number: signal.Signals) -> None:
    server = start()
    with server.api() as api:
        watch = health_pb2_grpc.HealthStub(api.channel).Watch(
            health_pb2.HealthCheckRequest(service="ready"), timeout=DEADLINE
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.wait() == 0


def test_the_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--drain-timeout", "60s")
    with server.api() as api:
        name = api.open().session.session_id
        for _ in range(40):
            api.turn(name, bytes(1_000_000))
        # An export that nobody reads keeps a call running, and so the drain.
        stream = api.trajectories.ExportTrajectories(export_all(), timeout=DEADLINE)
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        while "draining" not in server.logged:
            pass
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        stream.cancel()


def export_all() -> Message:
    from roost.v1 import trajectory_service_pb2

    everything = trajectory_service_pb2.TRAJECTORY_SELECTION_ALL
    return trajectory_service_pb2.ExportTrajectoriesRequest(selection=everything)


def test_i5_what_was_acknowledged_survives_kill_9(start: Start) -> None:
    server = start("--max-resident", "3")
    names = [fresh() for _ in range(8)]
    said: dict[str, list[bytes]] = {name: [] for name in names}
    for life in range(3):
        with server.api() as api:
            assert api.stats().epoch == life + 1
            for turn in range(3):
                for name in names:
                    grant = api.begin(name, open=types_pb2.OpenOptions()).grant
                    content = f"{life}.{turn}".encode()
                    api.commit(name, grant.lease, record=record_input(content, 2, grant.checkpoint.length))
                    said[name].append(content)
        server.kill()
        server.start()
    with server.api() as api:
        found = api.export()
        for name in names:
            assert [r.record.content for r in found[name]] == said[name]
            assert [r.turn for r in found[name]] == list(range(1, 10))  # I4
            assert api.get(name).checkpoint_tokens == 18  # I7
        gauges = api.stats().gauges
        assert (gauges["slots_held"], gauges["turns_running"]) == (0, 0)


def test_i21_repeats_have_one_effect_across_kill_9(start: Start) -> None:
    server = start()
    opening, beginning, committing, closing, aborting = (fresh("r") for _ in range(5))
    with server.api() as api:
        opened = api.open("kept", request_id=opening)
        grant = api.begin("kept", request_id=beginning).grant
    server.kill()
    server.start()
    with server.api() as api:
        again = api.open("kept", request_id=opening)
        assert (again.created, again.session.uid) == (False, opened.session.uid)
        assert api.begin("kept", request_id=beginning).grant.lease == grant.lease
        done = api.commit("kept", grant.lease, b"once", request_id=committing)
    server.kill()
    server.start()
    with server.api() as api:
        repeat = api.commit("kept", grant.lease, b"once", request_id=committing)
        assert (repeat.turn, repeat.head_version, repeat.repeated) == (done.turn, done.head_version, True)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_ENDED"):
            api.begin("kept", request_id=beginning)
        lease = api.begin("kept").grant.lease
        api.abort("kept", lease, b"half", request_id=aborting)
    server.kill()
    server.start()
    with server.api() as api:
        assert api.abort("kept", lease, b"half", request_id=aborting).repeated
        assert len(api.history("kept")) == 2
        receipt = api.close("kept", request_id=closing).receipt
    server.kill()
    server.start()
    with server.api() as api:
        assert api.close("kept", request_id=closing).receipt == receipt
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
            api.begin("kept")


def test_i1_running_turns_are_charged_again_at_the_start(start: Start) -> None:
    server = start("--max-turns-per-tenant", "3")
    with server.api() as api:
        names = [api.open().session.session_id for _ in range(4)]
        leases = {name: api.begin(name).grant.lease for name in names[:3]}
    server.kill()
    server.start()
    with server.api() as api:
        gauges = api.stats().gauges
        assert (gauges["slots_held"], gauges["turns_running"]) == (3, 3)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS"):
            api.begin(names[3])
        assert [api.get(name).activity for name in names] == [types_pb2.ACTIVITY_RUNNING] * 3 + [
            types_pb2.ACTIVITY_IDLE
        ]
        for name, lease in leases.items():
            api.commit(name, lease)
        assert api.stats().gauges["slots_held"] == 0


def test_answers_are_the_same_after_a_restart(start: Start) -> None:
    """I11 across a start: everything is unloaded then."""
    server = start()
    with server.api() as api:
        root = api.open(labels={"a": "b"}).session.session_id
        child = api.open(parent_session_id=root, name="c").session.session_id
        api.turn(child, b"1")
        api.abort(child, api.begin(child).grant.lease, b"2")
        api.close(api.open(parent_session_id=root).session.session_id)
        before = _seen(api, root, child)
    assert server.terminate() == 0
    server.start()
    with server.api() as api:
        assert _seen(api, root, child) == before


def _seen(api: Api, root: str, child: str) -> list[bytes]:
    sessions = [api.get(root), api.get(child), *api.list_all(root_session_id=root)]
    for session in sessions:
        session.ClearField("residency")
    messages = [*sessions, *api.history(child)]
    return [message.SerializeToString(deterministic=True) for message in messages]


def test_a_store_that_fails_ends_the_process_with_70(start: Start, tmp_path: Path) -> None:
    """The writer cannot know what became of an append once its file is gone from under it: RLIMIT_FSIZE does that."""
    import resource

    server = start()
    with server.api() as api:
        name = api.open().session.session_id
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        failed = None
        for _ in range(20):
            try:
                api.turn(name, bytes(500_000))
            except grpc.RpcError as error:
                failed = error
                break
        assert failed is not None
    code = server.wait()
    # A limit on file size is an I/O error or a signal to the process; it never goes on.
    assert code in (70, -signal.SIGXFSZ)
    server.start()
    with server.api() as api:
        assert api.get(name).session_id == name
