"""AdminService.Sweep: which trees are stale, as the sweep itself would find them."""

from __future__ import annotations

from typing import Final

from roost.handlers.cold import Cold
from roost.handlers.errors import parse
from roost.store.base import StaleRow
from roost.store.v1.store_pb2 import SessionFacts
from roost.v1 import admin_service_pb2 as pb

MOST: Final = 500  # trees that one call looks at


def sweep(cold: Cold, data: bytes) -> bytes:
    """Answer Sweep, encoded. The trees are looked at as they are, in memory or not; none is loaded."""
    request = parse(cold.engine, pb.SweepRequest, data)
    response = pb.SweepResponse()
    # One read, and hot ones wait for it: so many are looked at, and the rest is `more`.
    rows, _ = cold.store.stale(cold.engine.service_ms(), None, MOST + 1)
    now = cold.engine.service_ms()
    response.more = len(rows) > MOST
    for row in rows[:MOST]:
        found = _stale(cold, row, now)
        if found is not None:
            response.trees.append(found)
    if not request.dry_run:
        cold.engine.sweep_now()
    return response.SerializeToString()


def _stale(cold: Cold, row: StaleRow, now: int) -> pb.StaleTree | None:
    """A tree, if it is stale by now."""
    known = cold.engine.tree_activity(row.tenant, row.session_id) or _stored(cold, row)
    if known is None:
        return None
    active, stale_ms, sessions = known
    if stale_ms < 0:
        root = cold.store.session_by_uid(row.uid)
        stale_ms = 0 if root is None else SessionFacts.FromString(root.facts).stale_timeout_ms
    if active is None or stale_ms == 0 or now - active < stale_ms:
        return None
    tree = pb.StaleTree(root_session_id=row.session_id, open_sessions=sessions, tenant=row.tenant)
    tree.idle.FromMilliseconds(now - active)
    tree.stale_timeout.FromMilliseconds(stale_ms)
    return tree


def _stored(cold: Cold, row: StaleRow) -> tuple[int | None, int, int] | None:
    """What the store says of a tree that is not in memory, as the engine makes it of the same rows."""
    _, lines = cold.store.load_header(row.uid)
    if not lines or lines[0].uid != row.uid:
        return None
    root = lines[0]
    # As the engine makes it of the same rows: a child that has left has moved the root's time.
    active = max(line.active_ms for line in lines)
    if root.stale_ms > 0:
        active = max(active, root.stale_due - root.stale_ms)
    busy = any(line.running for line in lines)
    return (None if busy else active), root.stale_ms, len(lines)
