"""What a server says on stderr of turns, sessions and itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, Server, environment, fresh, record_input, refused

from roost.v1 import session_service_pb2
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

FAILED = grpc.StatusCode.FAILED_PRECONDITION
TAKEOVER = turns.IF_RUNNING_TAKEOVER


def lines(server: Server, event: str = "", session: str = "") -> list[dict[str, Any]]:
    """The lines of a server that has ended; each bears the pid, the time and the level."""
    found = [json.loads(line) for line in server.logged.splitlines()]
    for line in found:
        assert line["pid"] == server.process.pid
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
        assert line["level"] == "info"
    return [x for x in found if event in ("", x["event"]) and session in ("", x.get("session"))]


def test_each_turn_has_a_line_for_its_start_and_one_for_its_end(start: Start) -> None:
    server = start()
    with server.api() as api:
        name = api.open().session.session_id
        lease = api.begin(name, request_id="begin-1", owner="host-1").grant.lease
        record = record_input(b"x", usage=types.Usage(prompt_tokens=11, completion_tokens=5, cached_tokens=3))
        api.commit(name, lease, record=record, request_id="end-1", timings={"engine": 12.5, "tool": 3})
    assert server.terminate() == 0
    (begun,) = lines(server, "turn_start", name)
    (done,) = lines(server, "turn_done", name)
    for line in (begun, done):
        assert (line["turn"], line["attempt"], line["fence"]) == (1, 1, 1)
        assert (line["request_id"], line["owner"]) == ("begin-1", "host-1")
        for key in ("queue_wait_ms", "reload_ms", "journal_ms", "total_ms", "running"):
            assert line[key] >= 0
    assert (done["outcome"], done["by"], done["late"], done["head"]) == ("COMMITTED", "commit", False, 1)
    assert (done["prompt_tokens"], done["completion_tokens"], done["cached_tokens"]) == (11, 5, 3)
    assert (done["end_request_id"], done["timings"]) == ("end-1", {"engine": 12.5, "tool": 3})
    assert done["held_ms"] >= 0


def test_there_is_an_end_for_every_way_a_turn_can_end(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        names = {}

        def begun(way: str, **fields: Any) -> tuple[str, bytes]:
            names[way] = api.open().session.session_id
            return names[way], api.begin(names[way], **fields).grant.lease

        api.commit(*begun("completed"), completed=True)
        api.abort(*begun("aborted"))
        api.abort(*begun("failed"), final=True)
        name, lease = begun("expired", lease=5)
        server.clock.skip(6)
        api.commit(name, lease)
        name, _ = begun("taken over")
        api.commit(name, api.begin(name, if_running=TAKEOVER).grant.lease)
        name, lease = begun("interrupted")
        api.interrupt(name)
        api.abort(name, lease)
        name, _ = begun("forced")
        api.interrupt(name, force=True)
        name, lease = begun("rewound")
        first = api.commit(name, lease, then=turns.THEN_CONTINUE)
        api.commit(name, first.next.lease)
        api.commit(name, api.begin(name).grant.lease, base_turn=1)
        name, _ = begun("closed")
        api.close(name)
        name, lease = begun("closed by itself")
        api.commit(name, lease, then=turns.THEN_CLOSE)
    assert server.terminate() == 0

    def ends(way: str) -> list[tuple[Any, ...]]:
        started = lines(server, "turn_start", names[way])
        done = lines(server, "turn_done", names[way])
        # Each that started has ended; one that ran out may end a second time, late.
        assert {x["fence"] for x in started} == {x["fence"] for x in done}
        return [(x["turn"], x["outcome"], x.get("by"), x["late"]) for x in done]

    assert ends("completed") == [(1, "COMPLETED", "commit", False)]
    assert ends("aborted") == [(1, "ABORTED", "abort", False)]
    assert ends("failed") == [(1, "FAILED", "abort", False)]
    assert ends("expired") == [(1, "EXPIRED", "expiry", False), (1, "COMMITTED", "commit", True)]
    assert ends("taken over") == [(1, "EXPIRED", "takeover", False), (1, "COMMITTED", "commit", False)]
    assert ends("interrupted") == [(1, "INTERRUPTED", "abort", False)]
    assert ends("forced") == [(1, "INTERRUPTED", "interrupt", False)]
    assert ends("rewound") == [(turn, "COMMITTED", "commit", False) for turn in (1, 2, 3)]
    (rewound,) = [x for x in lines(server, "turn_done", names["rewound"]) if "base_turn" in x]
    assert (rewound["base_turn"], rewound["head"]) == (1, 2)
    assert ends("closed") == [(1, "CLOSED", None, False)]
    assert ends("closed by itself") == [(1, "COMMITTED", "commit", False)]


def test_a_caller_that_is_gone_before_its_grant_is_an_end_too(start: Start) -> None:
    server = start("--max-turns-per-tenant", "1")
    with server.api() as api:
        holder, waits = (api.open().session.session_id for _ in range(2))
        request = turns.BeginTurnRequest(session_id=waits)
        request.wait.FromSeconds(20)
        free = session_service_pb2.InterruptSessionRequest(session_id=holder, force=True)
        # The cancel must come between the grant and its answer: it is tried until it does.
        for _ in range(2_000):
            api.begin(holder)
            waiting = api.turns.BeginTurn.future(request, timeout=DEADLINE)
            while not api.stats().gauges["waiting"]:
                pass
            freed = api.sessions.InterruptSession.future(free, timeout=DEADLINE)
            waiting.cancel()
            freed.result()
            api.interrupt(waits, force=True)
            if '"RELEASED"' in server.logged:
                break
        api.begin(holder)
    assert server.terminate() == 0
    for name in (holder, waits):
        started = [x["fence"] for x in lines(server, "turn_start", name)]
        ended = [x["fence"] for x in lines(server, "turn_done", name)]
        # One turn of the holder still runs.
        assert len(started) - len(ended) == (name == holder)
    assert "RELEASED" in {x["outcome"] for x in lines(server, "turn_done", waits)}


def test_a_turn_that_a_restart_came_into_tells_its_whole_time(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = api.open().session.session_id
        lease = api.begin(name, lease=600).grant.lease
        begun = int(api.get(name).running.begin_time.ToMilliseconds())
    server.kill()
    again = start(clocked=True)
    with again.api() as api:
        api.commit(name, lease)
        ended = int(next(iter(api.history(name))).create_time.ToMilliseconds())
    assert again.terminate() == 0
    (done,) = lines(again, "turn_done", name)
    # Of two clocks, each cut to milliseconds.
    assert done["total_ms"] >= done["held_ms"] >= ended - begun - 2


def test_who_meets_anothers_turn_is_logged(start: Start) -> None:
    server = start()
    with server.api() as api:
        name = api.open().session.session_id
        lost = api.begin(name, owner="first", request_id="one").grant
        with refused(FAILED, "TURN_IN_PROGRESS"):
            api.begin(name, owner="second", request_id="two")
        with refused(FAILED, "TURN_IN_PROGRESS"):
            api.begin(name, expected_turn=7)
        api.begin(name, if_running=TAKEOVER)
        with refused(FAILED, "LEASE_LOST"):
            api.commit(name, lost.lease, request_id="late")
        api.interrupt(name, force=True)
        with refused(FAILED, "TURN_MISMATCH"):
            api.begin(name, expected_turn=7, expected_head_version=9)
    assert server.terminate() == 0
    running, mismatch, late, behind = lines(server, "turn_conflict", name)
    assert (running["rpc"], running["reason"]) == ("BeginTurn", "TURN_IN_PROGRESS")
    assert (running["owner"], running["request_id"]) == ("second", "two")
    assert (running["running_owner"], running["running_request_id"]) == ("first", "one")
    assert (running["running_turn"], running["running_attempt"], running["running"]) == (1, 1, 1)
    assert running["elapsed_ms"] >= 0
    assert (mismatch["expected_turn"], mismatch["turn"]) == (7, 1)
    assert (late["rpc"], late["reason"], late["request_id"]) == ("CommitTurn", "LEASE_LOST", "late")
    assert (late["expected_fence"], late["fence"]) == (1, 2)
    assert (behind["reason"], behind["expected_turn"], behind["turn"]) == ("TURN_MISMATCH", 7, 1)
    assert (behind["expected_head_version"], behind["head_version"]) == (9, 0)


def test_a_close_is_logged_with_its_receipt(start: Start) -> None:
    server = start()
    with server.api() as api:
        root = api.open().session.session_id
        child = api.open(parent_session_id=root, name="child").session.session_id
        api.abort(child, api.begin(child).grant.lease)
        api.turn(root)
        api.begin(root)
        receipt = api.close(root, reason=types.CLOSE_REASON_ERROR, request_id="enough").receipt
        by_itself = fresh()
        api.open(by_itself)
        api.turn(by_itself, then=turns.THEN_CLOSE)
    assert server.terminate() == 0
    closed = {x["session"]: x for x in lines(server, "session_closed")}
    assert set(closed) == {root, child, by_itself}
    told = closed[root]
    assert (told["reason"], told["final"], told["turns"], told["request_id"]) == ("ERROR", False, 1, "enough")
    assert (told["slots_released"], told["children_closed"]) == (receipt.slots_released, receipt.children_closed)
    assert (told["slots_released"], told["children_closed"], told["provisionals_aborted"]) == (1, 1, 1)
    assert closed[child]["reason"] == "PARENT_CLOSED"
    assert (closed[by_itself]["reason"], closed[by_itself]["final"]) == ("QUIT", True)


def test_the_heartbeat_counts(start: Start) -> None:
    server = start("--set", "heartbeat_ms=100")
    with server.api() as api:
        name = api.open().session.session_id
        for _ in range(3):
            api.turn(name)
        api.begin(name)
        # Two of them: one that began after all this.
        seen = server.logged.count('"heartbeat"')
        while server.logged.count('"heartbeat"') < seen + 2:
            pass
    assert server.terminate() == 0
    beats = lines(server, "heartbeat")
    last = beats[-1]
    assert (last["reqs_total"], last["turns_completed"], last["running"], last["waiting"]) == (8, 3, 1, 0)
    assert last["resident"] == 1
    assert sum(x["reqs_since_last"] for x in beats) == last["reqs_total"]
    assert last["vms_mb"] > last["rss_mb"] > 1
    assert last["journal_lag_ms"] >= 0


@pytest.mark.parametrize("quiet", [("--set", "turn_log=false"), ("--log-level", "warning")])
def test_turn_lines_can_be_switched_off(start: Start, quiet: tuple[str, ...]) -> None:
    server = start(*quiet, "--set", "heartbeat_ms=0")
    with server.api() as api:
        name = api.open().session.session_id
        api.turn(name)
        api.close(name)
    assert server.terminate() == 0
    assert {x["event"] for x in lines(server)} <= {"ready", "draining", "stopped"}


def test_logfmt_has_the_same_fields(start: Start) -> None:
    server = start("--log-format", "logfmt", "--set", "heartbeat_ms=100")
    with server.api() as api:
        name = api.open().session.session_id
        api.commit(name, api.begin(name, owner='a "b" c=d').grant.lease, timings={"engine": 1.5})
        while "event=heartbeat" not in server.logged:
            pass
    assert server.terminate() == 0
    for line in server.logged.splitlines():
        assert re.match(rf"timestamp=\S+ level=info event=\w+ pid={server.process.pid}( |$)", line)
    (done,) = [line for line in server.logged.splitlines() if "event=turn_done" in line]
    assert f"session={name} turn=1 attempt=1" in done
    assert r'owner="a \"b\" c=d"' in done
    assert "timings.engine=1.5" in done


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "stuck"])
def test_a_server_whose_log_nobody_reads_serves_on_and_stops(tmp_path: Any, gone: bool) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "roost", "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(
        [*command, "--set", "heartbeat_ms=10"], env=environment(), stdout=subprocess.PIPE, stderr=writing, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        if gone:
            os.close(writing)
            os.close(reading)
        else:
            # As full as it gets.
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"x" * 4096)
            os.set_blocking(writing, True)
        with grpc.insecure_channel(address) as channel:
            api = Api(channel)
            name = api.open().session.session_id
            for _ in range(20):
                api.turn(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    if not gone:
        os.close(writing)
        os.close(reading)
