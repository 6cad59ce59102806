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

from .base import ApiKeyRow, Batch, RecordInsert, RewardUpsert, SessionClose, SessionUpsert, TrajectoryInsert

MAX_ROWS = 64
OPEN_STATE = 1  # roost.v1.SESSION_STATE_OPEN

Row = tuple[Any, ...]

# Places in the tuples of base.SessionUpsert and base.SessionClose.
_FIELDS = SessionUpsert._fields
_STATE = _FIELDS.index("state")
_PROVISIONAL = _FIELDS.index("provisional")
_RUNNING = _FIELDS.index("running")
_LEASE = _FIELDS.index("lease")
_FINISH_DUE = _FIELDS.index("finish_due")
_SEQ = _FIELDS.index("seq")
_PREV = _FIELDS.index("prev")
_CLOSE_PREV = SessionClose._fields.index("prev")
_CLOSE_SEQ = SessionClose._fields.index("seq")
_CLOSE_STATE = SessionClose._fields.index("state")
_CLOSE_RECEIPT = SessionClose._fields.index("receipt")

# A change of state moves the row in two indexes, and SQLite rewrites an index whenever a column of it is SET,
# changed or not. So the update of a session that stays open, which is nearly every one, does not name it.
_SETS = (
    "head = v.column3, head_version = v.column4, fence = v.column5, provisional = v.column6, last = v.column7, "
    "running = v.column8, lease = v.column9, facts = v.column10, finish_due = v.column11, seq = v.column12"
)

_CLOSED = "running = 0, lease = NULL, provisional = 0, finish_due = 0"

# Each kind: (values a row, SQL around the list of placeholders). The WHERE of an update is the compare-and-set:
# a row that does not have the expected seq is not changed, and the count of changed rows tells.
_KINDS: dict[str, tuple[int, str, str]] = {
    "insert_session": (
        20,
        f"INSERT INTO session ({', '.join(_FIELDS[:_PREV])}, receipt) VALUES ",
        "",
    ),
    "keep_open": (
        13,
        f"UPDATE session SET {_SETS} FROM (VALUES ",
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column13 AND session.state = v.column2",
    ),
    "update_session": (
        14,
        f"UPDATE session SET state = v.column2, {_SETS}, receipt = coalesce(v.column14, receipt) FROM (VALUES ",
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column13",
    ),
    "close_session": (
        5,
        f"UPDATE session SET seq = v.column3, state = v.column4, receipt = v.column5, {_CLOSED} FROM (VALUES ",
        ") AS v WHERE session.uid = v.column1 AND session.seq = v.column2",
    ),
    "insert_record": (
        11,
        f"INSERT INTO record ({', '.join(RecordInsert._fields)}) VALUES ",
        "",
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
}


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
        close_rows = batch.closes()
        closes = {row[0]: row for row in close_rows}
        if len(closes) != len(close_rows):
            raise BadBatch("a session is closed twice")
        leaving: list[Row] = []
        staying: list[Row] = []
        opened: list[Row] = []
        for row in batch.sessions():
            if len(row) != len(_FIELDS):
                raise BadBatch("a session row has the wrong number of values")
            receipt = None
            if closes:
                close = closes.pop(row[0], None)
                if close is not None:
                    row, receipt = _closed(row, close)
            if row[_PREV] == 0:
                opened.append((*row[:_PREV], receipt))
            elif row[_STATE] == OPEN_STATE:
                staying.append((row[0], *row[_STATE:]))
            else:
                leaving.append((row[0], *row[_STATE:], receipt))
        self._leaving = leaving
        self._closes = list(closes.values())
        self._staying = staying
        self._opened = opened
        self._records = batch.records()
        self._statuses = batch.statuses()
        self._rewards = batch.rewards()
        self._finished = [(*row, 0) for row in batch.finished()]
        self._acks = batch.acks()
        self._keys = batch.keys()
        self._revoked_keys = batch.revoked_keys()
        self.may_reopen = len(staying) > 0

    def statements(self, reopen: bool) -> Iterator[tuple[str, Row, int]]:
        """All statements. With `reopen` a session that is OPEN after the batch need not have been so before it."""
        yield from chunks("update_session", self._leaving)
        yield from chunks("close_session", self._closes)
        if reopen:
            yield from chunks("update_session", [(*row, None) for row in self._staying])
        else:
            yield from chunks("keep_open", self._staying)
        yield from chunks("insert_session", self._opened)
        yield from chunks("insert_record", self._records)
        yield from chunks("set_status", self._statuses)
        yield from chunks("set_reward", self._rewards)
        yield from chunks("insert_trajectory", self._finished)
        yield from chunks("acknowledge", self._acks)
        yield from chunks("insert_key", self._keys)
        yield from chunks("revoke_key", self._revoked_keys)


def _closed(row: Row, close: Row) -> tuple[Row, bytes]:
    """A session row with the close of the same batch folded in, and the receipt."""
    if close[_CLOSE_PREV] != row[_SEQ]:
        raise BadBatch("a close does not follow the session row of its batch")
    values = list(row)
    values[_STATE] = close[_CLOSE_STATE]
    values[_RUNNING] = 0
    values[_LEASE] = None
    values[_PROVISIONAL] = 0
    values[_FINISH_DUE] = 0
    values[_SEQ] = close[_CLOSE_SEQ]
    return tuple(values), close[_CLOSE_RECEIPT]
