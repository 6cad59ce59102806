"""No step of a stream reads much: between any two of them the reader thread serves what turns wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from roost.handlers.cold import Cold, Step
from roost.handlers.errors import Refused
from roost.handlers.export import export_trajectories
from roost.handlers.history import read_history
from roost.store.base import RecordLine, RecordRow, SessionFilter, SessionRow, TrajectoryRow
from roost.v1 import session_service_pb2, trajectory_service_pb2, types_pb2

STEP = 300  # rows; a page of 256 lines and then some
RECORDS = 1_000
OMITTED = session_service_pb2.ReadHistoryRequest(session_id="s0", omit_payload=True).SerializeToString()

ALL = trajectory_service_pb2.ExportTrajectoriesRequest(
    selection=trajectory_service_pb2.TRAJECTORY_SELECTION_ALL, discount=1
)


class FakeEngine:
    """Encodes only numbers; finds the records corrupt that it is told."""

    def __init__(self) -> None:
        self.verified: list[int] = []
        self.corrupt = False

    def verify_chain(self, lines: Sequence[RecordLine], facts: bytes) -> list[int]:
        self.verified.append(len(lines))
        if self.corrupt or (lines and lines[-1].prev):
            raise ValueError("it is missing")
        return [1] * len(lines)

    def describe(self, rows: Sequence[SessionRow]) -> list[bytes]:
        return [types_pb2.Session(session_id=row.session_id).SerializeToString() for row in rows]

    def describe_record(self, row: RecordRow, *dress: Any) -> bytes:
        return types_pb2.Record(turn=row.turn).SerializeToString()

    def refuse(self, reason: str, message: str, metadata: dict[str, str]) -> tuple[int, str, bytes]:
        return 15, reason, b""


class FakeStore:
    """Sessions of so many records each; counts the rows that are read."""

    def __init__(self, *sizes: int) -> None:
        self.rows = {f"s{n}": _row(n, size) for n, size in enumerate(sizes)}
        self.read = 0

    def read_session(self, tenant: str, session_id: str) -> SessionRow | None:
        self.read += 1
        return self.rows.get(session_id)

    def list_sessions(self, where: SessionFilter, after: bytes, limit: int) -> list[SessionRow]:
        found = [row for row in self.rows.values() if row.uid > after][:limit]
        self.read += len(found)
        return found

    def record_lines(self, uid: bytes, limit: int = 1 << 30) -> tuple[SessionRow, list[RecordLine]] | None:
        row = next(row for row in self.rows.values() if row.uid == uid)
        return row, self._lines(row.last, limit)

    def older_lines(self, uid: bytes, line: RecordLine, limit: int) -> list[RecordLine]:
        return self._lines(line.prev, limit)

    def _lines(self, newest: int, limit: int) -> list[RecordLine]:
        turns = range(newest, max(0, newest - limit), -1)
        self.read += len(turns)
        return [RecordLine(turn, turn - 1, 1, turn, b"", b"", None) for turn in turns]

    def read_rewards(self, uid: bytes) -> dict[int, float]:
        return {}

    def session_trajectories(self, uid: bytes) -> list[TrajectoryRow]:
        return []

    def read_records(self, seqs: Sequence[int]) -> list[RecordRow]:
        self.read += len(seqs)
        return [RecordRow(seq, seq - 1, 1, seq, b"", b"", None, None, None, None) for seq in seqs]


def _row(number: int, last: int) -> SessionRow:
    uid = number.to_bytes(16, "big")
    name = f"s{number}"
    return SessionRow(
        uid, "t", name, uid, b"", "", name, "/root", 0, 0, 1, last, 0, 0, 0, last, 0, None, b"", None, 0, 0, 0, None,
        1, "",
    )  # fmt: skip


def steps(
    handler: Callable[[Cold, bytes], Iterator[Step]], request: bytes, store: FakeStore, engine: FakeEngine
) -> tuple[list[int], list[bytes]]:
    """Run a stream: the rows that each step read, and what was sent."""
    parts: tuple[Any, Any] = (engine, store)
    stream = handler(Cold(*parts, tenant="t"), request)
    reads, sent, more = [], [], True
    while more:
        store.read = 0
        message = next(stream, None)
        reads.append(store.read)
        more = message is not None
        if message:
            sent.append(message)
    return reads, sent


@pytest.mark.parametrize("records", [0, 1, 255, 256, 257, 512, RECORDS])
def test_a_long_history_is_listed_in_short_steps(records: int) -> None:
    engine = FakeEngine()
    reads, sent = steps(read_history, OMITTED, FakeStore(records), engine)
    assert max(reads) <= STEP
    assert engine.verified == [records]
    pages = [session_service_pb2.ReadHistoryResponse.FromString(page) for page in sent]
    assert [record.turn for page in pages for record in page.records] == list(range(1, records + 1))


def test_a_long_session_is_exported_in_short_steps_and_whole() -> None:
    engine = FakeEngine()
    reads, sent = steps(export_trajectories, ALL.SerializeToString(), FakeStore(RECORDS, 0, 3), engine)
    assert max(reads) <= STEP
    assert engine.verified == [RECORDS, 0, 3]
    parts = [trajectory_service_pb2.ExportTrajectoriesResponse.FromString(part) for part in sent]
    assert {part.session_id: part.last for part in parts} == {"s0": True, "s1": True, "s2": True}
    turns = [record.turn for part in parts if part.session_id == "s0" for record in part.records]
    assert turns == list(range(1, RECORDS + 1))


def test_what_does_not_verify_is_not_sent() -> None:
    engine = FakeEngine()
    engine.corrupt = True
    with pytest.raises(Refused, match="SESSION_CORRUPT"):
        steps(read_history, OMITTED, FakeStore(RECORDS), engine)


def test_a_thousand_ids_are_looked_up_in_short_steps_and_before_anything_is_sent() -> None:
    store = FakeStore(*[0] * 999)
    ids = [f"s{n}" for n in range(999)]
    request = trajectory_service_pb2.ExportTrajectoriesRequest(session_ids=ids, selection=ALL.selection)
    reads, sent = steps(export_trajectories, request.SerializeToString(), store, FakeEngine())
    assert max(reads) <= STEP
    parts = [trajectory_service_pb2.ExportTrajectoriesResponse.FromString(part) for part in sent]
    assert [part.session_id for part in parts] == ids
    request.session_ids.append("nobody")
    parts_sent: list[bytes] = []
    cold: Any = (FakeEngine(), store)
    with pytest.raises(Refused, match="SESSION_NOT_FOUND"):
        parts_sent.extend(filter(None, export_trajectories(Cold(*cold, tenant="t"), request.SerializeToString())))
    assert parts_sent == []


def test_sessions_that_are_too_new_are_passed_over_in_short_steps() -> None:
    """What is opened while the export runs may be many pages of its list."""
    store = FakeStore(*[0] * 1_000)
    store.rows = {name: row._replace(create_ms=1 << 60) for name, row in store.rows.items()}
    reads, sent = steps(export_trajectories, ALL.SerializeToString(), store, FakeEngine())
    assert max(reads) <= STEP
    assert sent == []
