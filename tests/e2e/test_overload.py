"""More calls than the server can take in: what it does to them, and what goes on beside them.

How much of its work it still does then is measured by bench/overload.py; here is what each single call is told.
"""

from __future__ import annotations

import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from admin_port import Scrape, address_of
from conftest import Start
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hyperframe.frame import HeadersFrame, RstStreamFrame, WindowUpdateFrame
from raw_http2 import RawConnection, message
from roost_server import DEADLINE, Api, Server, fresh, until

from roost.server.overload import QUEUE
from roost.v1 import session_service_pb2, turn_service_pb2, types_pb2

OPEN = "/roost.v1.SessionService/OpenSession"
RESOURCE_EXHAUSTED, CANCELLED = "8", "1"
T = TypeVar("T")
WAVE = 900  # calls at once; below what gRPC drops any of


class Flood:
    """Opens sessions of names of its own, all at once. `told`: how the calls ended, by name."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.told: dict[str, dict[str, str]] = {}

    def wave(self, calls: int = WAVE) -> None:
        """So many more calls on a connection, and their ends."""
        with RawConnection(self._server.address, DEADLINE) as connection:
            connection.begin()
            connection.send(WindowUpdateFrame(0, 1 << 30))
            names, frames = {}, []
            for _ in range(calls):
                name = fresh("flood")
                request = session_service_pb2.OpenSessionRequest(session_id=name)
                stream, call = connection.call(OPEN, message(request.SerializeToString()))
                names[stream] = name
                frames += call
            connection.send(*frames)
            while names:
                frame = connection.receive()
                assert not isinstance(frame, RstStreamFrame) or frame.stream_id not in names
                if isinstance(frame, HeadersFrame) and "grpc-status" in frame.fields:
                    self.told[names.pop(frame.stream_id)] = frame.fields

    def of(self, status: str) -> dict[str, dict[str, str]]:
        """The calls that ended with a status."""
        return {name: fields for name, fields in self.told.items() if fields["grpc-status"] == status}


@contextmanager
def again_and_again(flood: Flood) -> Iterator[None]:
    """Waves from four connections for as long as the block takes."""
    stop = threading.Event()

    def waves() -> None:
        while not stop.is_set():
            flood.wave()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(waves) for _ in range(4)]
        try:
            yield
        finally:
            stop.set()
        for one in running:
            one.result()


@pytest.fixture
def server(start: Start) -> Iterator[Server]:
    # Any wait is too long: what is refused does not hang on how fast this machine is.
    made = start("--admin-listen", "127.0.0.1:0", ROOST_OVERLOAD_DELAY_MS="1")
    yield made
    assert made.terminate() == 0
    assert not (made.data_dir / "door.sock").exists()


def refused(fields: dict[str, str]) -> tuple[str, int]:
    """Reason and delay in ms of a refusal, which says that both in its details and to gRPC's own retries."""
    details = b64decode(fields["grpc-status-details-bin"] + "==")
    parts = status_pb2.Status.FromString(details).details
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert parts[0].Unpack(info)
    assert parts[1].Unpack(retry)
    assert fields["grpc-retry-pushback-ms"] == str(retry.retry_delay.ToMilliseconds())
    assert int(info.metadata["wait_ms"]) >= int(info.metadata["limit_ms"]) == 1
    return info.reason, retry.retry_delay.ToMilliseconds()


def test_i5_i22_new_work_is_refused_and_the_rest_goes_on(server: Server) -> None:
    """Some of the new work is refused, at once, with all that a client needs, and nothing of it happened; renewals,
    commits, closes, health and the operator's calls go on, not one of them is refused."""
    flood = Flood(server)
    with server.api() as api, again_and_again(flood):
        health = health_pb2_grpc.HealthStub(api.channel)
        turns: list[tuple[str, bytes]] = []
        while len(turns) < 8:
            turns.append(let_in(lambda: begun(api)))  # these, too, are new work
        rounds = 0
        while rounds < 5 or not flood.of(RESOURCE_EXHAUSTED):
            rounds += 1
            for name, lease in turns:
                renewals = [turn_service_pb2.Renewal(session_id=name, lease=lease)]
                answer = api.turns.RenewTurns(turn_service_pb2.RenewTurnsRequest(renewals=renewals), timeout=DEADLINE)
                assert not answer.results[0].HasField("refusal")
            checked = health.Check(health_pb2.HealthCheckRequest(service="ready"), timeout=DEADLINE)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
            assert api.stats().counters["sessions_opened"] >= len(turns)
        for name, lease in turns:
            api.commit(name, lease, b"kept")
            api.close(name)
    shed = flood.of(RESOURCE_EXHAUSTED)
    told = [refused(fields) for fields in shed.values()]
    assert {reason for reason, _ in told} == {"OVERLOADED"}
    assert all(500 <= delay <= 1_500 for _, delay in told)
    assert {fields["grpc-status"] for fields in flood.told.values()} <= {"0", CANCELLED, RESOURCE_EXHAUSTED}
    with server.api() as api:
        # It is over when nobody waits; then everything is as ever.
        until(lambda: '"event": "overload_over"' in server.logged)
        listed = {session.session_id for session in let_in(api.list_all)}
        assert not listed & shed.keys()
        assert {name for name, fields in flood.told.items() if fields["grpc-status"] == "0"} <= listed
    metrics = Scrape(address_of(server))
    assert metrics("refusals_total", reason="OVERLOADED") >= len(shed)
    assert metrics("rpc_handled_total", method="OpenSession", code="RESOURCE_EXHAUSTED") >= len(shed)


def begun(api: Api) -> tuple[str, bytes]:
    """A session and the lease of its first turn."""
    name = fresh()
    request = turn_service_pb2.BeginTurnRequest(session_id=name, open=types_pb2.OpenOptions())
    return name, api.turns.BeginTurn(request, timeout=DEADLINE).grant.lease


def let_in(call: Callable[[], T]) -> T:
    """What new work is answered once it is let in: a probe of an idle server, too, may take over a millisecond."""
    answers: list[T] = []

    def tried() -> bool:
        try:
            answers.append(call())
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED):
                raise
        return bool(answers)

    until(tried)
    return answers[0]


def test_i24_what_the_door_has_no_room_for_is_dropped_and_never_happens(start: Start) -> None:
    """More calls at once than gRPC keeps in a queue: it drops some with a bare CANCELLED. The others are answered."""
    server = start()
    flood = Flood(server)
    with server.api() as api:
        name, lease = let_in(lambda: begun(api))
        waves = 2 * QUEUE[1] // WAVE
        with ThreadPoolExecutor(waves) as pool:
            running = [pool.submit(flood.wave) for _ in range(waves)]
            api.commit(name, lease, b"kept")  # has a queue of its own
        for one in running:
            one.result()
        dropped = flood.of(CANCELLED)
        assert len(flood.told) == waves * WAVE
        assert dropped
        assert not any("grpc-status-details-bin" in fields for fields in dropped.values())
        assert not {session.session_id for session in let_in(api.list_all)} & dropped.keys()
    assert server.terminate() == 0


def test_without_a_limit_nothing_is_refused(start: Start) -> None:
    server = start(ROOST_OVERLOAD_DELAY_MS="0")
    flood = Flood(server)
    flood.wave()
    assert not flood.of(RESOURCE_EXHAUSTED)
    assert not (server.data_dir / "door.sock").exists()


def test_a_door_that_cannot_be_measured_is_said_and_served(start: Start, tmp_path: Path) -> None:
    """A directory whose name is too long for a socket in it."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    server = start(data_dir=deep / "data")
    until(lambda: '"event": "door_not_measured"' in server.logged)
    with server.api() as api:
        api.turn(api.open(fresh()).session.session_id, b"as ever")


def test_the_probes_socket_is_its_users_alone_and_of_a_killed_server_replaced(server: Server) -> None:
    socket = server.data_dir / "door.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    server.kill()
    assert socket.exists()
    server.start()
    with server.api() as api:
        assert let_in(api.open).created
