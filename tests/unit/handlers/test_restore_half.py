"""Half a session that is being restored is shown by no read, and one step brings a bounded part (I13, I22)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House, read_now

from roost._core import tenant_uid
from roost.handlers import restore as restoring
from roost.handlers.cold import NOTHING_YET, Cold
from roost.handlers.dump.target import Target, open_target
from roost.handlers.dump.writer import write_dump
from roost.handlers.errors import Refused
from roost.handlers.export import export_trajectories
from roost.handlers.history import read_history
from roost.handlers.lists import list_sessions
from roost.handlers.restore import Restorer
from roost.v1 import session_service_pb2, trajectory_service_pb2

ALL = trajectory_service_pb2.TRAJECTORY_SELECTION_ALL


class Stopped(Exception):
    """The restore is not gone on with."""


@pytest.fixture
def dump(tmp_path: Path) -> tuple[Target, str]:
    """The dump of a session whose records take several steps."""
    house = House(tmp_path / "first")
    house.open("s")
    for n in range(7):
        house.turn("s", bytes([n]) * 1_000)
    trajectory = house.finish("s")
    house.turn("s", b"tail")
    house.close("s")
    row = house.store.read_session("default", "s")
    assert row is not None
    target = open_target(str(tmp_path))
    name = asyncio.run(write_dump(house.store, target, row.uid, read_now)).name
    house.store.close()
    assert trajectory.endswith("-1")
    return target, name


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "second")
    yield made
    made.store.close()


def restorer(house: House, target: Target, settled: Callable[[int], None]) -> Restorer:
    """One that tells before each step which one it is."""
    steps = count()

    async def settle(answer: Any) -> Any:
        settled(next(steps))
        return house.ended(answer) if isinstance(answer, int) else answer

    async def read(job: Callable[[], Any]) -> Any:
        return job()

    async def undo(_: bytes) -> None:
        pass  # what is there is looked at

    return Restorer(house.engine, house.store, target, read, settle, undo, set())


def request(*names: str) -> bytes:
    return trajectory_service_pb2.RestoreSessionsRequest(dump_names=names).SerializeToString()


def answered(made: Restorer, *names: str, tenant: Callable[[], str] = lambda: "default") -> list[Any]:
    """The results of a call."""
    answer = asyncio.run(made(tenant, request(*names)))
    return [*trajectory_service_pb2.RestoreSessionsResponse.FromString(answer).results]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_half_a_session_is_shown_to_nobody(
    house: House, dump: tuple[Target, str], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "STEP_RECORDS", 3)

    def settled(step: int) -> None:
        if step == steps:
            raise Stopped

    with pytest.raises(Stopped):
        answered(restorer(house, dump[0], settled), dump[1])
    row = house.store.read_session("default", "s")
    assert row is not None
    found = house.store.record_lines(row.uid, 100)
    assert found is not None
    assert len(found[1]) == 3 * (steps - 1)
    cold = Cold(house.engine, house.store, "default")
    assert list_sessions(cold, b"") == b""
    export = trajectory_service_pb2.ExportTrajectoriesRequest
    for asked in (export(), export(selection=ALL)):
        assert [part for part in export_trajectories(cold, asked.SerializeToString()) if part != NOTHING_YET] == []
    for read, of in (
        (read_history, session_service_pb2.ReadHistoryRequest(session_id="s")),
        (export_trajectories, export(selection=ALL, session_ids=["s"])),
    ):
        with pytest.raises(Refused, match="is being restored"):
            list(read(cold, of.SerializeToString()))
    # A second call that comes now is told so as well.
    (result,) = answered(restorer(house, dump[0], lambda _: None), dump[1])
    assert result.refusal.reason == "SESSION_RESTORING"


@pytest.mark.parametrize(
    ("records", "size", "steps"),
    [(3, 1 << 30, [0, 3, 3, 3, 0]), (100, 2_500, [0, 2, 2, 2, 3, 0]), (100, 1, [0, *[1] * 9, 0])],
)
def test_a_step_brings_no_more_than_it_may(
    house: House,
    dump: tuple[Target, str],
    records: int,
    size: int,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An entry of the journal, and what is in memory, is bounded whatever the session; one record is the least."""
    monkeypatch.setattr(restoring, "STEP_RECORDS", records)
    monkeypatch.setattr(restoring, "STEP_BYTES", size)
    brought: list[int] = []

    async def settle(answer: Any) -> Any:
        batch = house.engine.next_batch(timeout_ms=0, linger_us=0)
        assert batch is None  # it is journaled when its row was read
        return house.ended(answer, lambda batch: brought.append(len(batch.records())))

    async def read(job: Callable[[], Any]) -> Any:
        return job()

    async def undo(_: bytes) -> None:
        raise AssertionError

    made = Restorer(house.engine, house.store, dump[0], read, settle, undo, set())
    (result,) = answered(made, dump[1])
    assert result.session.session_id == "s"
    assert brought == steps  # eight turns and the event that finished; the first makes the row, the last ends it


def test_the_name_of_another_tenants_dump_is_of_none(house: House, dump: tuple[Target, str]) -> None:
    """I17: not even whether it is there can be told."""
    made = restorer(house, dump[0], lambda _: None)
    own = dump[1].replace(tenant_uid("default"), tenant_uid("somebody else"))
    results = []
    for known in (False, True):
        for name in (dump[1], dump[1].replace(tenant_uid("default"), tenant_uid("nobody")), own):
            (result,) = answered(made, name, tenant=lambda: "somebody else")
            results.append((result.refusal.reason, result.refusal.message.replace(name, "")))
        if not known:
            assert answered(made, dump[1])[0].session.session_id == "s"
    assert results == [("DUMP_NOT_FOUND", "there is no dump ")] * 6


def test_a_key_that_is_no_good_any_more_restores_no_more(
    house: House, dump: tuple[Target, str], tmp_path: Path
) -> None:
    """It is asked before each session; what is there by then stays."""
    other = House(tmp_path / "third")
    name = asyncio.run(write_dump(other.store, dump[0], other.played("t"), read_now)).name
    other.store.close()
    asked = count()

    def tenant() -> str:
        if next(asked) == 2:
            raise Refused(house.engine.refuse("KEY_INVALID", "revoked", {}))
        return "default"

    with pytest.raises(Refused, match="revoked"):
        answered(restorer(house, dump[0], lambda _: None), dump[1], name, tenant=tenant)
    assert house.store.read_session("default", "s") is not None
    assert house.store.read_session("default", "t") is None
