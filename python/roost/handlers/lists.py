"""ListSessions: pages by uid with opaque tokens that are bound to the filters."""

from __future__ import annotations

from typing import Final

import structlog

from roost.handlers.cold import PAGE_BYTES, Cold, is_restoring
from roost.handlers.errors import invalid, parse
from roost.handlers.paging import mark_of, position_of, size_of, token_of, tree_of
from roost.handlers.wire import field, repeated
from roost.store.base import SessionFilter, SessionRow
from roost.v1 import session_service_pb2, types_pb2

EXAMINED_PER_ROW: Final = 5  # a page gives up after this many rows for each that was asked for

log = structlog.get_logger("roost.lists")


def list_sessions(cold: Cold, data: bytes) -> bytes:
    """Answer one page, encoded. Loads nothing and touches no recency."""
    request = parse(cold.engine, session_service_pb2.ListSessionsRequest, data)
    where = _filter(cold, request)
    size = size_of(cold, request)
    mark = mark_of(request, cold.tenant)
    after = position_of(cold, request.page_token, mark)

    picked: list[bytes] = []
    length, budget, more = 0, size * EXAMINED_PER_ROW, True
    while more and len(picked) < size and budget > 0 and length < PAGE_BYTES:
        wanted = min(size - len(picked) + 1, budget)  # one more than needed tells whether a page follows
        rows = cold.store.list_sessions(where, after, wanted)
        more = len(rows) == wanted
        budget -= len(rows)
        for row, encoded in zip(rows, _shown(cold, rows), strict=True):
            if len(picked) == size or length >= PAGE_BYTES:
                more = True
                break
            after = row.uid
            if encoded is not None and _matches(request, encoded):
                picked.append(encoded)
                length += len(encoded)
    token = token_of(after, mark) if more else ""
    return repeated(1, picked) + (field(2, token.encode()) if token else b"")


def _shown(cold: Cold, rows: list[SessionRow]) -> list[bytes | None]:
    """Rows encoded as the caller may see them; None for one that it may not."""
    if cold.reach is None:
        return _describe(cold, rows)
    found: list[bytes | None] = []
    for row in rows:
        whole = cold.reach.reaches(row)
        found += _describe(cold, [row], outline=not whole) if whole or cold.reach.sees(row) else [None]
    return found


def _describe(cold: Cold, rows: list[SessionRow], outline: bool = False) -> list[bytes | None]:
    """Rows encoded; None for one that is being restored, or does not verify. GetSession says so; here the others are
    still served."""
    if any(is_restoring(row.cleanup) for row in rows):
        return [None if is_restoring(row.cleanup) else _describe(cold, [row], outline)[0] for row in rows]
    try:
        return [*cold.engine.describe(rows, outline)]
    except ValueError:
        pass
    found: list[bytes | None] = []
    for row in rows:
        try:
            found += cold.engine.describe([row], outline)
        except ValueError:
            log.exception("session_corrupt", uid=row.uid.hex())
            found.append(None)
    return found


def _filter(cold: Cold, request: session_service_pb2.ListSessionsRequest) -> SessionFilter:
    """What the store filters by; Refused INVALID_FIELD for what no list has."""
    engine = cold.engine
    for name, allowed in (
        ("state", types_pb2.SessionState.values()),
        ("activity", (types_pb2.ACTIVITY_UNSPECIFIED, types_pb2.ACTIVITY_RUNNING)),
        ("residency", (types_pb2.RESIDENCY_UNSPECIFIED, types_pb2.RESIDENCY_RESIDENT)),
    ):
        value = getattr(request, name)
        if value not in allowed:
            raise invalid(engine, name, f"{value} is not accepted as a filter", value=value)
    root = tree_of(cold, request.root_session_id)
    if request.path_prefix:
        if root is None:
            raise invalid(engine, "path_prefix", "requires root_session_id")
        if f"{request.path_prefix}/".split("/")[:2] != ["", "root"]:
            raise invalid(engine, "path_prefix", "must begin with /root")
    return SessionFilter(
        tenant=cold.tenant,
        root=root,
        path_prefix=request.path_prefix.rstrip("/") or None,
        state=request.state or None,
        running=request.activity == types_pb2.ACTIVITY_RUNNING,
    )


def _matches(request: session_service_pb2.ListSessionsRequest, encoded: bytes) -> bool:
    """The filters that the store does not know: labels and residency."""
    if not request.labels and not request.residency:
        return True
    session = types_pb2.Session.FromString(encoded)
    if request.residency and session.residency != request.residency:
        return False
    return all(key in session.labels and session.labels[key] == value for key, value in request.labels.items())
