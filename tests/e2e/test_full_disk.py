"""A disk that fills up under a running server, on a real file system, with the real reserve.

I5 (what was acknowledged is there), I22 (what was refused changed nothing), I23 (what is exported verifies), through
all three states: room, the reserve given up, nothing left; and back again without more than freeing some space.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, Refusal, fresh, refusal, refused
from small_disk import ballast, free, mounted

from roost.v1 import session_service_pb2, turn_service_pb2, types_pb2

LOW, FULL = "STORE_LOW", "STORE_FULL"
NO_ROOM = {"NOT_STORED", "RECOVERING", FULL}
EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
LEASE = 3600.0  # no turn of these tests may end by itself
BIG = 1 << 20  # content of a record that fills the disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """160 MiB: the reserve of 64 MiB, and as much again and a half for the store and its log."""
    with mounted(tmp_path, 160 << 20) as mount:
        yield mount


class Ledger:
    """What the server acknowledged: each session's committed contents and state."""

    def __init__(self) -> None:
        self.contents: dict[str, list[bytes]] = {}
        self.closed: set[str] = set()
        self.refused: set[str] = set()  # ids of sessions whose making was refused
        self._made = 0

    def open(self, api: Api) -> str:
        name = fresh()
        api.open(name)
        self.contents[name] = []
        return name

    def content(self, size: int) -> bytes:
        """Bytes like no others."""
        self._made += 1
        return hashlib.shake_128(self._made.to_bytes(8, "big")).digest(size)

    def commit(self, api: Api, name: str, lease: bytes, size: int, **fields: Any) -> Any:
        content = self.content(size)
        done = api.commit(name, lease, content, **fields)
        self.contents[name].append(content)
        return done

    def verify(self, api: Api) -> None:
        """Everything acknowledged is there, nothing else is, and all of it verifies."""
        exported = api.export()
        assert {name: [r.record.content for r in records] for name, records in exported.items()} == self.contents
        for name, contents in self.contents.items():
            session = api.get(name)
            assert session.turn_count == len(contents)
            assert (session.state == types_pb2.SESSION_STATE_CLOSED) == (name in self.closed)
        for name in self.refused:
            with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
                api.get(name)


def test_i5_i22_i23_a_disk_fills_up_and_is_emptied(disk: Path, start: Start) -> None:
    server = start(data_dir=disk / "data")
    reserve, weight = disk / "data" / "roost.reserve", disk / "ballast"
    ledger = Ledger()
    with server.api() as api:
        assert reserve.stat().st_size == 64 << 20
        filler = ledger.open(api)
        running = {name: api.begin(name, lease=LEASE).grant.lease for name in (ledger.open(api) for _ in range(8))}
        spare = [ledger.open(api) for _ in range(3)]

        # Turns fill the disk until the reserve goes; not one of them is refused before.
        ballast(weight, leave=8 << 20)
        _fill(api, ledger, filler, until=lambda: not reserve.exists())
        _until(api, store_low=1)
        assert len(ledger.contents[filler]) >= 2

        # Low: nothing new begins, everything under way goes on.
        _new_work_is_refused(api, ledger, spare[0], EXHAUSTED, LOW)
        names = iter(running)
        name = next(names)
        done = ledger.commit(api, name, running[name], 1000, then=turn_service_pb2.THEN_CONTINUE)
        assert (done.turn, done.next_refused.reason, done.HasField("next")) == (1, LOW, False)
        name = next(names)
        assert api.abort(name, running[name], b"half").status == types_pb2.RECORD_STATUS_PROVISIONAL
        name = next(names)
        api.close(name)
        ledger.closed.add(name)
        assert _update(api, spare[1], {"still": "here"}).labels == {"still": "here"}
        assert free(disk) > 32 << 20
        assert api.stats().gauges["reserve_bytes"] == 0

        # The reserve is used up too.
        left = list(names)
        _until(api, wal_bytes=0)  # what the log gives back is not room for later
        ballast(weight, leave=0)
        _refused_for_room(lambda: ledger.commit(api, left[0], running[left[0]], BIG))
        _until_full(api, spare[2], weight)
        before = _facts(api, ledger)
        for name in left[:3]:
            with refused(UNAVAILABLE, FULL):
                api.commit(name, running[name], b"x")
            with refused(UNAVAILABLE, FULL):
                api.abort(name, running[name])
            with refused(UNAVAILABLE, FULL):
                api.close(name)
        with refused(UNAVAILABLE, FULL):
            _update(api, spare[1], {"still": "not"})
        _new_work_is_refused(api, ledger, spare[0], UNAVAILABLE, FULL)
        # A renewal writes nothing.
        renewal = turn_service_pb2.RenewTurnsRequest()
        renewal.renewals.add(session_id=left[0], lease=running[left[0]])
        assert not api.turns.RenewTurns(renewal, timeout=DEADLINE).results[0].HasField("refusal")
        # I22, and reads go on: GetSession, ReadHistory, ListSessions, Export.
        assert _facts(api, ledger) == before
        assert [r.record.content for r in api.history(filler)] == ledger.contents[filler]
        assert {s.session_id for s in api.list_all()} == set(ledger.contents)
        ledger.verify(api)

        # Room for a little, not for the reserve: what runs may end.
        _lighten(weight, 8 << 20)
        _until_done(lambda: ledger.commit(api, left[0], running[left[0]], 1000))
        _new_work_is_refused(api, ledger, spare[0], EXHAUSTED, LOW)

        # Room for everything: it goes on by itself, and has its reserve again.
        weight.unlink()
        _until(api, store_low=0)
        assert reserve.stat().st_size == 64 << 20
        for name in left[1:]:
            ledger.commit(api, name, running[name], 1000)
        for name in (spare[0], filler, ledger.open(api)):
            ledger.commit(api, name, api.begin(name).grant.lease, 1000)
        assert api.get(spare[1]).labels == {"still": "here"}
        stats = api.stats()
        assert stats.gauges["slots_held"] == stats.gauges["turns_running"] == 0
        assert stats.counters["batches_refused"] >= 1
        ledger.verify(api)
    assert server.terminate() == 0
    with server.start().api() as api:
        ledger.verify(api)


def test_i5_a_server_killed_on_a_full_disk_serves_reads_and_goes_on_when_there_is_room(
    disk: Path, start: Start
) -> None:
    server = start(data_dir=disk / "data")
    weight = disk / "ballast"
    ledger = Ledger()
    with server.api() as api:
        filler, runs = ledger.open(api), ledger.open(api)
        lease = api.begin(runs, lease=LEASE).grant.lease
        ballast(weight, leave=8 << 20)
        _fill(api, ledger, filler, until=lambda: not (disk / "data" / "roost.reserve").exists())
        ballast(weight, leave=0)
        _refused_for_room(lambda: ledger.commit(api, runs, lease, BIG))
        _until_full(api, filler, weight)
        ledger.verify(api)
    server.kill()
    # With a little room what it holds is read; there is none for new work.
    _lighten(weight, 2 << 20)
    with server.start().api() as api:
        ledger.verify(api)
        _until(api, store_low=1)
        _new_work_is_refused(api, ledger, filler)
        assert api.stats().gauges["turns_running"] == 1
        weight.unlink()
        _until(api, store_low=0)
        ledger.commit(api, runs, lease, BIG)
        ledger.commit(api, filler, api.begin(filler).grant.lease, BIG)
        ledger.verify(api)


def _refused(call: Callable[[], Any]) -> Refusal | None:
    """Why the call is refused; None if it is not."""
    try:
        call()
    except grpc.RpcError as error:
        return refusal(error)
    return None


def _fill(api: Api, ledger: Ledger, name: str, until: Callable[[], bool]) -> None:
    """Commit turns of BIG until `until`: each that begins is taken, and only a low store begins none."""
    leases: list[bytes] = []
    while not until():
        why = _refused(lambda: leases.append(api.begin(name, lease=LEASE).grant.lease))
        if why is not None:
            assert (why.reason, until()) == (LOW, True)
            return
        ledger.commit(api, name, leases[-1], BIG)
        assert len(leases) < 64


def _new_work_is_refused(
    api: Api, ledger: Ledger, name: str, code: grpc.StatusCode | None = None, reason: str | None = None
) -> None:
    """OpenSession, BeginTurn, and BeginTurn that opens; whatever they are told, they change nothing (I22)."""
    unborn, begun = fresh(), fresh()
    ledger.refused |= {unborn, begun}
    calls: list[Callable[[], Any]] = [
        lambda: api.open(unborn),
        lambda: api.begin(name),
        lambda: api.begin(begun, open=types_pb2.OpenOptions()),
        lambda: api.begin(name, wait=20),  # a full disk is nothing to queue for
    ]
    for call in calls:
        why = _refused(call)
        assert why is not None
        if code is None:
            assert (why.code, why.reason) in {(EXHAUSTED, LOW), (UNAVAILABLE, FULL)}
        else:
            assert (why.code, why.reason) == (code, reason)
        assert "RetryInfo" in why.details


def _refused_for_room(call: Callable[[], Any]) -> None:
    """The call that meets the end of the disk: it was not stored, or the server knew already."""
    why = _refused(call)
    assert why is not None
    assert (why.code, why.reason in NO_ROOM) == (UNAVAILABLE, True), why


def _until_full(api: Api, name: str, weight: Path) -> None:
    """Until nothing is written any more; takes what room is left."""
    deadline = time.monotonic() + DEADLINE
    while True:
        ballast(weight, leave=0)
        why = _refused(lambda: _update(api, name))
        if why is not None and why.reason == FULL:
            return
        assert why is None or why.reason in NO_ROOM, why
        assert time.monotonic() < deadline


def _until_done(call: Callable[[], Any]) -> None:
    """Until a call that is refused for want of room succeeds."""
    deadline = time.monotonic() + DEADLINE
    while (why := _refused(call)) is not None:
        assert why.reason in NO_ROOM, why
        assert time.monotonic() < deadline, why


def _until(api: Api, **gauges: int) -> None:
    """Until the gauges have these values."""
    deadline = time.monotonic() + DEADLINE
    while any(api.stats().gauges[name] != value for name, value in gauges.items()):
        assert time.monotonic() < deadline, f"{gauges}: {api.stats().gauges}"


def _update(api: Api, name: str, labels: dict[str, str] | None = None) -> Any:
    request = session_service_pb2.UpdateSessionRequest(session_id=name, labels=labels or {})
    return api.sessions.UpdateSession(request, timeout=DEADLINE).session


def _lighten(weight: Path, room: int) -> None:
    """Give back some of what the ballast takes."""
    with weight.open("ab") as file:
        file.truncate(weight.stat().st_size - room)


def _facts(api: Api, ledger: Ledger) -> list[bytes]:
    """All that GetSession says of all sessions."""
    found = [api.get(name) for name in sorted(ledger.contents)]
    return [session.SerializeToString(deterministic=True) for session in found]
