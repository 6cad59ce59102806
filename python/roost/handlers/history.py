"""ReadHistory: the records of one session, oldest first, in pages."""

from __future__ import annotations

from collections.abc import Iterator

from roost.handlers.cold import Cold, Dress, Step
from roost.handlers.errors import invalid, parse
from roost.handlers.wire import repeated
from roost.v1 import session_service_pb2, types_pb2


def read_history(cold: Cold, data: bytes) -> Iterator[Step]:
    """Fix the list of records and verify it, then page their payloads. Works in every state."""
    request = parse(cold.engine, session_service_pb2.ReadHistoryRequest, data)
    for status in request.statuses:
        if status not in types_pb2.RecordStatus.values() or not status:
            raise invalid(cold.engine, "statuses", f"{status} is not a record status", value=status)
    row, lines = yield from cold.verified(cold.session(request.session_id))
    rewards = cold.store.read_rewards(row.uid)
    wanted = frozenset(request.statuses)
    chosen = [
        line for line in cold.records(lines) if (not wanted or line.status in wanted) and line.turn >= request.from_turn
    ]
    for page in cold.pages(row.session_id, chosen, Dress(request.omit_payload, rewards)):
        yield repeated(1, page)
