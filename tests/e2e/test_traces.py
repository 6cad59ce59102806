"""Traces of a real server, as a collector gets them over OTLP: off unless the environment asks for them, below the span
that the caller names, through to reloads and dumps, and without an id (I25)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from admin_port import Scrape, address_of
from collector import Collector, Span
from conftest import Start
from roost_server import DEADLINE, Server, fresh, refused, until

from roost.v1 import session_service_pb2, trajectory_service_pb2, turn_service_pb2, types_pb2

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SERVER = 2  # SpanKind
INTERNAL = 1


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


def traced(start: Start, collector: Collector, *flags: str, **env: str) -> Server:
    """A server that sends its spans there at once."""
    return start(*flags, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50", **env)


def within(sampled: bool = True, trace: str = TRACE) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller that traces."""
    return (("traceparent", f"00-{trace}-{PARENT}-0{int(sampled)}"), ("tracestate", "vendor=value"))


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def warned(server: Server) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in server.logged.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == "traces_off"]


def test_a_call_is_a_span_below_its_callers_and_says_method_and_status(start: Start, collector: Collector) -> None:
    server = traced(start, collector)
    with server.api() as api:
        request = session_service_pb2.OpenSessionRequest(session_id="canary-1")
        api.sessions.OpenSession(request, timeout=DEADLINE, metadata=within())
        with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
            api.get("canary-2")
        api.history("canary-1")
    assert server.terminate() == 0  # what there is leaves before the end
    opened, missed, read = (
        named(collector.spans, f"roost.v1.SessionService/{name}")[0]
        for name in ("OpenSession", "GetSession", "ReadHistory")
    )
    assert (opened.trace, opened.parent, opened.kind) == (TRACE, PARENT, SERVER)
    assert opened.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "roost.v1.SessionService",
        "rpc.method": "OpenSession",
        "rpc.grpc.status_code": 0,
    }
    # Without a caller's, a trace of its own. A refusal is the caller's affair, and no error of the server.
    assert missed.trace not in (TRACE, read.trace)
    assert (missed.parent, missed.attributes["rpc.grpc.status_code"], missed.error) == ("", 5, False)
    assert read.attributes["rpc.grpc.status_code"] == 0
    assert collector.resources[0]["service.name"] == "roost"
    assert collector.resources[0]["service.version"]


def test_i25_no_id_no_peer_and_no_content_reaches_the_collector(
    start: Start, collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "dumps").mkdir()
    server = traced(start, collector, "--max-resident", "1", "--dump-target", str(tmp_path / "dumps"))
    metadata = (*within(), ("x-roost-tenant", "canary-tenant"), ("user-agent", "canary-agent"))
    with server.api() as api:
        for number in range(2):
            name = f"canary-{number}"
            options = types_pb2.OpenOptions(labels={"canary-label": "canary-value"})
            begin = turn_service_pb2.BeginTurnRequest(session_id=name, owner="canary-owner", request_id="canary-r")
            begin.open.CopyFrom(options)
            lease = api.turns.BeginTurn(begin, timeout=DEADLINE, metadata=metadata).grant.lease
            commit = turn_service_pb2.CommitTurnRequest(session_id=name, lease=lease)
            commit.record.content = b"canary-content"
            api.turns.CommitTurn(commit, timeout=DEADLINE, metadata=metadata)
        for name in ("canary-0", "canary-none"):
            close = session_service_pb2.CloseSessionRequest(session_id=name)
            with contextlib.suppress(grpc.RpcError):  # its message names the session
                api.sessions.CloseSession(close, timeout=DEADLINE, metadata=metadata)
    until(lambda: named(collector.spans, "dump"))
    assert server.terminate() == 0
    assert b"canary" not in collector.everything
    assert b"127.0.0.1" not in collector.everything
    keys = {key for span in collector.spans for key in span.attributes}
    assert keys == {"rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"}


def test_a_reload_is_a_child_of_the_call_that_waited_for_it(start: Start, collector: Collector) -> None:
    server = traced(start, collector)
    name = fresh()
    with server.api() as api:
        api.open(name)
        api.turn(name)
    assert server.terminate() == 0
    before = len(collector.spans)
    server.start()
    with server.api() as api:
        begin = turn_service_pb2.BeginTurnRequest(session_id=name)
        api.turns.BeginTurn(begin, timeout=DEADLINE, metadata=within())
        api.get(name)
    assert server.terminate() == 0
    spans = collector.spans[before:]
    (call,) = named(spans, "roost.v1.TurnService/BeginTurn")
    reloads = [span for span in spans if span.name.startswith("reload")]
    assert [span.name for span in sorted(reloads, key=lambda s: s.began)] == ["reload find", "reload session"]
    for reload in reloads:
        assert (reload.trace, reload.parent, reload.kind) == (TRACE, call.id, INTERNAL)
        assert call.began <= reload.began <= reload.ended <= call.ended
    # What is in memory needs none.
    (got,) = named(spans, "roost.v1.SessionService/GetSession")
    assert not [span for span in spans if span.parent == got.id]


def test_a_dump_is_in_the_trace_of_the_close_and_so_are_those_of_descendants(
    start: Start, collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "dumps").mkdir()
    server = traced(start, collector, "--dump-target", str(tmp_path / "dumps"))
    other = "1" * 32
    with server.api() as api:
        root = api.open().session.session_id
        child = api.open(parent_session_id=root).session.session_id
        api.open(parent_session_id=child)
        alone, last = (api.open().session.session_id for _ in range(2))
        close = session_service_pb2.CloseSessionRequest(session_id=root)
        api.sessions.CloseSession(close, timeout=DEADLINE, metadata=within())
        commit = turn_service_pb2.CommitTurnRequest(session_id=last, lease=api.begin(last).grant.lease)
        commit.then = turn_service_pb2.THEN_CLOSE
        api.turns.CommitTurn(commit, timeout=DEADLINE, metadata=within(trace=other))
        close.session_id = alone
        # A caller that does not want to be traced.
        api.sessions.CloseSession(close, timeout=DEADLINE, metadata=within(sampled=False, trace="2" * 32))
        for name in (root, last, alone):
            until(lambda name=name: api.get(name).cleanup.HasField("dump_time"))  # type: ignore[misc]
    until(lambda: len(named(collector.spans, "dump")) >= 5)
    assert server.terminate() == 0
    dumps = named(collector.spans, "dump")
    (closed,) = named(collector.spans, "roost.v1.SessionService/CloseSession")
    (committed,) = [s for s in named(collector.spans, "roost.v1.TurnService/CommitTurn") if s.trace == other]
    assert closed.trace == TRACE
    assert [s.parent for s in dumps if s.trace == TRACE] == [closed.id] * 3
    assert [s.parent for s in dumps if s.trace == other] == [committed.id]
    assert all(s.began > closed.began and not s.error for s in dumps)
    # One whose close nobody traced is a trace of its own.
    (apart,) = [s for s in dumps if s.trace not in (TRACE, other)]
    assert (apart.parent, apart.trace == "2" * 32) == ("", False)


def test_a_dump_that_fails_is_an_error(start: Start, collector: Collector, tmp_path: Path) -> None:
    server = traced(start, collector, "--dump-target", str(tmp_path / "dumps"))
    with server.api() as api:
        api.close(api.open().session.session_id)
        until(lambda: named(collector.spans, "dump"))
    assert named(collector.spans, "dump")[0].error


def test_a_caller_that_is_not_sampled_is_not_traced_and_a_parent_that_is_none_is_not_believed(
    start: Start, collector: Collector
) -> None:
    server = traced(start, collector)
    with server.api() as api:
        request = session_service_pb2.GetSessionRequest(session_id="x")
        bad = (("traceparent", "nonsense"),), (("traceparent", f"00-{'0' * 32}-{PARENT}-01"),)
        for metadata in (within(sampled=False), *bad):
            with pytest.raises(grpc.RpcError):
                api.sessions.GetSession(request, timeout=DEADLINE, metadata=metadata)
    assert server.terminate() == 0
    spans = named(collector.spans, "roost.v1.SessionService/GetSession")
    assert [span.parent for span in spans] == ["", ""]
    assert not {TRACE, "0" * 32} & {span.trace for span in spans}


def test_streams_and_calls_that_are_given_up_have_their_spans(start: Start, collector: Collector) -> None:
    server = traced(start, collector, "--max-turns-per-tenant", "0", "--admin-listen", "127.0.0.1:0")
    where = address_of(server)
    with server.api() as api:
        begin = turn_service_pb2.BeginTurnRequest(session_id=api.open().session.session_id)
        begin.wait.FromSeconds(60)
        waiting = api.turns.BeginTurn.future(begin, metadata=within())
        until(lambda: Scrape(where)("waiting"))
        waiting.cancel()
        watch = trajectory_service_pb2.ExportTrajectoriesRequest(follow=True)
        stream = api.trajectories.ExportTrajectories(watch, metadata=within())
        until(lambda: Scrape(where)("rpc_started_total", method="ExportTrajectories"))
        stream.cancel()
        names = ("TurnService/BeginTurn", "TrajectoryService/ExportTrajectories")
        for name in names:
            until(lambda name=name: named(collector.spans, f"roost.v1.{name}"))  # type: ignore[misc]
    for name in names:
        (span,) = named(collector.spans, f"roost.v1.{name}")
        assert (span.trace, span.attributes["rpc.grpc.status_code"], span.error) == (TRACE, 1, False)


def test_nothing_is_sent_unless_the_environment_asks_for_it(start: Start, collector: Collector) -> None:
    for env in (
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_TRACES_EXPORTER": "none"},
    ):
        server = start(**env)
        with server.api() as api:
            api.open()
        assert server.terminate() == 0
        assert '"traces": false' in server.logged
        assert not warned(server)
    assert not collector.spans


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaegerr"}, "no exporter of this name"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, "no exporter of this name"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_COMPRESSION": "rar"}, "cannot be made"),
    ],
)
def test_what_cannot_be_is_a_warning_and_the_server_serves(start: Start, env: dict[str, str], says: str) -> None:
    server = start(**env)
    with server.api() as api:
        assert api.open().created
    assert server.terminate() == 0
    (warning,) = warned(server)
    assert says in warning["reason"]


def test_without_the_extra_a_warning_says_so(start: Start, collector: Collector, tmp_path: Path) -> None:
    """As if it were not installed: a package of the same name that has nothing stands before it."""
    (tmp_path / "shadow" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "shadow" / "opentelemetry" / "__init__.py").write_text("")
    server = Server(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    shadowed = f"import sys; sys.path.insert(0, {str(tmp_path / 'shadow')!r})"
    server.program = ("-c", f"{shadowed}; from roost.cli.main import main; main()")
    server.start()
    try:
        with server.api() as api:
            assert api.open().created
        assert server.terminate() == 0
        assert "roost[otel] is not installed" in warned(server)[0]["reason"]
    finally:
        server.end()


def test_a_collector_that_is_gone_holds_up_neither_calls_nor_the_end(start: Start, collector: Collector) -> None:
    server = traced(start, collector)
    collector.stop()
    with server.api() as api:
        for _ in range(20):
            api.turn(api.open().session.session_id)
    assert server.terminate() == 0
