"""ExportTrajectories: sessions one after the other, each verified, in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from roost.handlers.cold import NOTHING_YET, Cold
from roost.handlers.errors import invalid, parse
from roost.handlers.wire import field, repeated
from roost.store.base import SessionFilter, SessionRow
from roost.v1 import trajectory_service_pb2, types_pb2

MAX_IDS: Final = 1_000
_PAGE = 100


def export_trajectories(cold: Cold, data: bytes) -> Iterator[bytes]:
    """Stream trajectories. Which ids exist is checked before the first part; records are fixed session by session."""
    request = parse(cold.engine, trajectory_service_pb2.ExportTrajectoriesRequest, data)
    statuses = {types_pb2.RECORD_STATUS_COMMITTED}
    if request.include_provisional:
        statuses |= {types_pb2.RECORD_STATUS_PROVISIONAL, types_pb2.RECORD_STATUS_ABORTED}
    if request.include_superseded:
        statuses.add(types_pb2.RECORD_STATUS_SUPERSEDED)
    for row in _chosen(cold, request):
        if row is None:
            yield NOTHING_YET
        else:
            yield from _session(cold, row, frozenset(statuses))


def _chosen(cold: Cold, request: trajectory_service_pb2.ExportTrajectoriesRequest) -> Iterator[SessionRow | None]:
    """The sessions to export, in order; None where a step ends."""
    count = len(request.session_ids)
    if count > MAX_IDS:
        rule = f"{count} are given; at most {MAX_IDS} are allowed"
        raise invalid(cold.engine, "session_ids", rule, size=count, limit=MAX_IDS)
    if count and request.root_session_id:
        raise invalid(cold.engine, "root_session_id", "cannot go together with session_ids")
    if count:
        rows: list[SessionRow] = []
        for session_id in request.session_ids:
            rows.append(cold.session(session_id, "session_ids"))
            if len(rows) % _PAGE == 0:
                yield None
        yield from rows
        return
    root = None
    if request.root_session_id:
        row = cold.session(request.root_session_id, "root_session_id")
        if row.root != row.uid:
            rule = f"{row.session_id!r} is not the root of its tree"
            raise invalid(cold.engine, "root_session_id", rule, session_id=row.session_id)
        root = row.uid
    # What is opened while the export runs is not part of it; else a busy server would never finish one.
    started_ms = time.time_ns() // 1_000_000
    where = SessionFilter(tenant=cold.tenant, root=root)
    after = b""
    while rows := cold.store.list_sessions(where, after, _PAGE):
        yield None
        yield from (row for row in rows if row.create_ms <= started_ms)
        after = rows[-1].uid


def _session(cold: Cold, row: SessionRow, statuses: frozenset[int]) -> Iterator[bytes]:
    """The parts of one session: the first bears the session, the last says so."""
    row, lines = yield from cold.verified(row)
    try:
        described = cold.engine.describe([row])[0]
    except ValueError as error:
        raise cold.corrupt(row.session_id, error) from error
    chosen = [line for line in reversed(lines) if line.status in statuses]
    head = field(1, described)
    name = field(2, row.session_id.encode())
    last = b"\x20\x01"  # field 4 = true
    held: bytes | None = None  # a part is sent once it is known whether another follows
    for page in cold.pages(row.session_id, chosen, omit_payload=False):
        if held is not None:
            yield held
        held = head + name + repeated(3, page)
        head = b""
    yield (head + name if held is None else held) + last
