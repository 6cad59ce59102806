"""The SQL of an append: a few multi-row statements for a whole batch, and the rows they take.

One statement stores up to 64 rows; there is one for each number of rows, prepared once and cached. Not
`executemany`, nor a few fixed sizes: every step of a statement releases the GIL and takes it again, and a thread
that does so once a row waits once a row for the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from .base import (
    ApiKeyRow,
    Batch,
    MailInsert,
    RecordInsert,
    ResourceInsert,
    RewardUpsert,
    SessionRestore,
    SessionUpsert,
    TrajectoryInsert,
)

MAX_ROWS = 64
OPEN_STATE = 1  # roost.v1.SESSION_STATE_OPEN
SEALED_STATE = 2  # roost.v1.SESSION_STATE_SEALED

Row = tuple[Any, ...]

# Places in the tuple of base.SessionUpsert.
_FIELDS = SessionUpsert._fields
_STATE = _FIELDS.index("state")
_PREV = _FIELDS.index("prev")

# SQLite rewrites an index whenever a column of it is SET, changed or not. So what nearly every batch does, the update
# of a session that stays open, names neither its state nor the times that others change.
_SETS = (
    "head = v.column2, head_version = v.column3, fence = v.column4, provisional = v.column5, last = v.column6, "
    "running = v.column7, lease = v.column8, facts = v.column9, outcome = v.column10, wakes = v.column11, "
    "owner = v.column12, finish_due = v.column13, stale_ms = v.column14, active_ms = v.column15, seq = v.column16"
)

_CLOSE = (
    "UPDATE session SET seq = v.column3, state = v.column4, receipt = v.column5, cleanup_due = v.column6, "
    "close_seq = v.column3, running = 0, lease = NULL, provisional = 0, finish_due = 0, stale_due = 0, "
    "closes = closes + 1, cleanup = NULL FROM (VALUES "
)
_REOPEN = (
    "UPDATE session SET state = 1, seq = v.column3, stale_ms = v.column4, stale_due = v.column5, "
    "active_ms = v.column6, facts = v.column7, "
    "receipt = NULL, cleanup = NULL, cleanup_due = 0 FROM (VALUES "
)
_STEP = (
    "UPDATE session SET seq = v.column3, state = v.column4, last = v.column5, facts = v.column6, "
    "cleanup = v.column7, cleanup_due = v.column8 FROM (VALUES "
)

_UPDATE_RESOURCE = (
    "UPDATE resource SET state = v.column2, handle = coalesce(v.column3, handle), due = v.column4, "
    "attempts = v.column5, error = v.column6 FROM (VALUES "
)
_UPDATE_MAIL = (
    "UPDATE message SET state = v.column2, due = v.column3, deliveries = v.column4, fence = v.column5 FROM (VALUES "
)
# What a session has not consumed ends with it (I15). By its tree's mailboxes: what ended before is not looked at.
_END_MAIL = (
    "UPDATE message INDEXED BY message_live SET state = 6, due = -1 "
    "WHERE state <= 2 AND (root, recipient) IN (SELECT root, uid FROM session WHERE uid IN (VALUES "
)

# What is told of a copy, and what it has of the record that it is a copy of.
_COPIED = ", ".join([f"v.column{n}" for n in range(1, 8)] + [f"r.{name}" for name in RecordInsert._fields[7:]])

# What else the row of a session has that is to be restored: nothing of it is there yet.
_RESTORE_REST = {
    "state": SEALED_STATE,
    "provisional": 0,
    "last": 0,
    "running": 0,
    "finish_due": 0,
    "active_ms": 0,
    "stale_due": 0,
    "owner": "",
}

# Each kind: (values a row, SQL around the list of placeholders). The WHERE of an update is the compare-and-set:
# a row that does not have the expected seq is not changed, and the count of changed rows tells. The unary + keeps the
# planner from the partial indexes: it is the uid that finds the row.
_KINDS: dict[str, tuple[int, str, str]] = {
    "insert_session": (
        28,
        f"INSERT INTO session ({', '.join(_FIELDS[:_PREV])}, closes, cleanup_due, close_seq) VALUES ",
        "",
    ),
    "update_session": (
        17,
        f"UPDATE session SET {_SETS} FROM (VALUES ",
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column17 AND +session.state = 1",
    ),
    "close_session": (
        6,
        _CLOSE,
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column2 AND +session.state = 1",
    ),
    "set_stale": (
        3,
        "UPDATE session SET stale_ms = v.column2, stale_due = v.column3 FROM (VALUES ",
        ") AS v WHERE session.uid = v.column1 AND +session.state = 1",
    ),
    "reopen_session": (
        7,
        _REOPEN,
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column2 AND +session.state = 3",
    ),
    "restore_session": (
        len(SessionRestore._fields) + len(_RESTORE_REST),
        f"INSERT INTO session ({', '.join((*SessionRestore._fields, *_RESTORE_REST))}) VALUES ",
        "",
    ),
    "cleanup_step": (
        8,
        _STEP,
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column2 AND +session.state > 1",
    ),
    "forget_session": (
        2,
        "DELETE FROM session WHERE +state = 3 AND (uid, seq) IN (VALUES ",
        ")",
    ),
    "purge_records": (
        1,
        "DELETE FROM record WHERE seq IN (VALUES ",
        ")",
    ),
    "insert_record": (
        11,
        f"INSERT INTO record ({', '.join(RecordInsert._fields)}) VALUES ",
        "",
    ),
    "copy_record": (
        8,
        f"INSERT INTO record ({', '.join(RecordInsert._fields)}) SELECT {_COPIED} FROM (VALUES ",
        ") AS v CROSS JOIN record AS r WHERE r.seq = v.column8",
    ),
    "set_status": (
        2,
        "UPDATE record SET status = v.column2 FROM (VALUES ",
        ") AS v WHERE record.seq = v.column1",
    ),
    "set_reward": (
        3,
        f"INSERT INTO reward ({', '.join(RewardUpsert._fields)}) VALUES ",
        " ON CONFLICT (session, seq) DO UPDATE SET value = excluded.value",
    ),
    "insert_trajectory": (
        10,
        f"INSERT INTO trajectory ({', '.join(TrajectoryInsert._fields)}, ack_ms) VALUES ",
        "",
    ),
    "acknowledge": (
        3,
        "UPDATE trajectory SET ack_ms = iif(ack_ms = 0, v.column3, ack_ms) FROM (VALUES ",
        ") AS v WHERE trajectory.session = v.column1 AND trajectory.number = v.column2",
    ),
    "insert_key": (
        6,
        f"INSERT INTO api_key ({', '.join(ApiKeyRow._fields)}) VALUES ",
        "",
    ),
    "revoke_key": (
        2,
        "UPDATE api_key SET revoke_ms = v.column2 FROM (VALUES ",
        ") AS v WHERE api_key.key_id = v.column1 AND api_key.revoke_ms = 0",
    ),
    "set_limit": (
        2,
        "INSERT INTO server_limit (name, value) VALUES ",
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    ),
    "insert_resource": (
        16,
        f"INSERT INTO resource ({', '.join(ResourceInsert._fields)}) VALUES ",
        "",
    ),
    "update_resource": (
        6,
        _UPDATE_RESOURCE,
        ") AS v WHERE resource.name = v.column1",
    ),
    "delete_resource": (
        1,
        "DELETE FROM resource WHERE name IN (VALUES ",
        ")",
    ),
    "insert_mail": (
        16,
        f"INSERT INTO message ({', '.join(MailInsert._fields)}) VALUES ",
        "",
    ),
    "update_mail": (
        5,
        _UPDATE_MAIL,
        ") AS v WHERE message.seq = v.column1 AND +message.state <= 2",
    ),
    "end_mail": (
        1,
        _END_MAIL,
        "))",
    ),
}

# Of these, how many rows change is not known before. Each binds a session's uid, or (uid, time).
_PURGE_REWARDS = "DELETE FROM reward WHERE session = ?1"
_PURGE_TRAJECTORIES = "DELETE FROM trajectory WHERE session = ?1"
_PURGE_MAIL = "DELETE FROM message WHERE recipient = ?1"
# A session that was kept for want of an acknowledgement is looked at again after each.
_LOOK_AGAIN = "UPDATE session SET cleanup_due = ?2 WHERE uid = ?1 AND cleanup_due = -1"
# A close makes all that its session has outside due; the last of it that is released, the session itself.
_RESOURCES_DUE = "UPDATE resource SET state = 3, due = ?2 WHERE session = ?1"
_CLEANUP_DUE = "UPDATE session SET cleanup_due = ?2 WHERE uid = ?1 AND +state = 2"
_RESET_LIMIT = "DELETE FROM server_limit WHERE name = ?1"
ANY_ROWS = -1


class BadBatch(Exception):
    """The rows of a batch contradict each other: a bug of its maker, refused before anything is written."""


@cache
def sql(kind: str, rows: int) -> str:
    """The statement of one kind for a number of rows."""
    width, before, after = _KINDS[kind]
    one = "(" + ",".join("?" * width) + ")"
    return before + ",".join([one] * rows) + after


def chunks(kind: str, rows: Sequence[Row]) -> Iterator[tuple[str, Row, int]]:
    """The statements that store `rows`, in their order: (SQL, flat bindings, number of rows)."""
    width = _KINDS[kind][0]
    start = 0
    while start < len(rows):
        left = len(rows) - start
        size = min(left, MAX_ROWS)
        flat = tuple(chain.from_iterable(rows[start : start + size]))
        if len(flat) != size * width:
            raise BadBatch(f"{kind}: rows must have {width} values")
        yield sql(kind, size), flat, size
        start += size


class Plan:
    """The steps of one append, in the order that keeps every constraint true at each of them.

    Sessions that leave OPEN give their paths free before others take them: a child may be closed and one of
    the same name opened in one batch (I16).
    """

    def __init__(self, batch: Batch) -> None:
        closes = batch.closes()
        ended = {row[0] for row in closes}
        if len(ended) != len(closes):
            raise BadBatch("a session is closed twice")
        # A row of a session that the batch also closes comes first, so that the close finds it; what is opened and
        # closed in one batch is inserted, then closed.
        leaving: list[Row] = []
        staying: list[Row] = []
        opened: list[Row] = []
        for row in batch.sessions():
            if len(row) != len(_FIELDS):
                raise BadBatch("a session row has the wrong number of values")
            if row[_STATE] != OPEN_STATE:
                raise BadBatch("a session row is not OPEN")
            if row[_PREV] == 0:
                opened.append((*row[:_PREV], 0, 0, 0))
            else:
                (leaving if row[0] in ended else staying).append((row[0], *row[_STATE + 1 :]))
        born = {row[0] for row in opened}
        self._leaving = leaving
        self._closes = [row for row in closes if row[0] not in born]
        self._staying = staying
        self._opened = opened
        self._stillborn = [row for row in closes if row[0] in born]
        self._batch = batch

    def statements(self) -> Iterator[tuple[str, Row, int]]:
        """All statements, with the number of rows that each must change."""
        batch = self._batch
        yield from chunks("set_stale", batch.stales())
        yield from chunks("update_session", self._leaving)
        yield from chunks("close_session", self._closes)
        yield from chunks("reopen_session", batch.reopens())
        yield from chunks("update_session", self._staying)
        yield from self._births()
        yield from chunks("restore_session", [(*row, *_RESTORE_REST.values()) for row in batch.restores()])
        yield from chunks("insert_record", batch.records())
        yield from chunks("copy_record", batch.copies())
        yield from chunks("set_status", batch.statuses())
        yield from chunks("set_reward", batch.rewards())
        yield from chunks("insert_trajectory", [(*row, 0) for row in batch.finished()])
        acks = batch.acks()
        # One that a purge has taken meanwhile needs no acknowledgement.
        yield from ((sql, bindings, ANY_ROWS) for sql, bindings, _ in chunks("acknowledge", acks))
        for session, _, ack_ms in acks:
            yield _LOOK_AGAIN, (session, ack_ms), ANY_ROWS
        yield from self._mail()
        yield from chunks("purge_records", [(seq,) for seq in batch.purged_records()])
        for session in batch.purged_sessions():
            yield _PURGE_REWARDS, (session,), ANY_ROWS
            yield _PURGE_TRAJECTORIES, (session,), ANY_ROWS
            yield _PURGE_MAIL, (session,), ANY_ROWS
        yield from chunks("cleanup_step", batch.steps())
        yield from self._resources()
        forgets = batch.forgets()
        yield from chunks("forget_session", forgets)
        yield from ((_PURGE_MAIL, (session,), ANY_ROWS) for session, _ in forgets)
        yield from chunks("insert_key", batch.keys())
        yield from chunks("revoke_key", batch.revoked_keys())
        for name, value in batch.limits():
            if value is None:
                yield _RESET_LIMIT, (name,), ANY_ROWS
            else:
                yield from chunks("set_limit", [(name, value)])

    def _resources(self) -> Iterator[tuple[str, Row, int]]:
        """What sessions have outside. Behind the steps of clean-up: one that leaves its session to wait for the last
        release may be followed by that release in the same batch."""
        batch = self._batch
        yield from chunks("insert_resource", batch.resources())
        yield from chunks("update_resource", batch.resource_updates())
        yield from ((_RESOURCES_DUE, row, ANY_ROWS) for row in batch.resources_due())
        yield from chunks("delete_resource", [(name,) for name in batch.resource_deletes()])
        yield from ((_CLEANUP_DUE, row, ANY_ROWS) for row in batch.cleanups_due())

    def _mail(self) -> Iterator[tuple[str, Row, int]]:
        """Messages: sent, then what became of them, then those that ended with their sessions. Within one batch a
        message may go all the way."""
        batch = self._batch
        yield from chunks("insert_mail", batch.mail())
        yield from chunks("update_mail", batch.mail_updates())
        ends = chunks("end_mail", [(session,) for session in batch.mail_ends()])
        yield from ((sql, bindings, ANY_ROWS) for sql, bindings, _ in ends)

    def _births(self) -> Iterator[tuple[str, Row, int]]:
        """Sessions that are opened; those that the batch also closes one by one, for they may have had one path."""
        closes = {row[0]: row for row in self._stillborn}
        if not closes:
            yield from chunks("insert_session", self._opened)
            return
        for row in self._opened:
            yield from chunks("insert_session", [row])
            if row[0] in closes:
                yield from chunks("close_session", [closes[row[0]]])
