"""Rows as the engine would make them: a Batch for tests, and a small model that writes them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from roost.store import schema
from roost.store.base import (
    FINISHED,
    CleanupStep,
    Outcome,
    RecordInsert,
    RewardUpsert,
    SessionClose,
    SessionReopen,
    SessionUpsert,
    StatusUpdate,
    TrajectoryAck,
    TrajectoryInsert,
)

OPEN, SEALED, CLOSED = 1, 2, 3
COMMITTED, PROVISIONAL, ABORTED, SUPERSEDED = 1, 2, 3, 4

TABLES = ("meta", "shard", "session", "record", "reward", "trajectory", "resource", "message")


@dataclass
class FakeBatch:
    """base.Batch made of lists."""

    first_seq: int
    last_seq: int
    session_rows: list[tuple[Any, ...]] = field(default_factory=list)
    record_rows: list[tuple[Any, ...]] = field(default_factory=list)
    status_rows: list[tuple[Any, ...]] = field(default_factory=list)
    close_rows: list[tuple[Any, ...]] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)
    reward_rows: list[tuple[Any, ...]] = field(default_factory=list)
    finished_rows: list[tuple[Any, ...]] = field(default_factory=list)
    ack_rows: list[tuple[Any, ...]] = field(default_factory=list)
    stale_rows: list[tuple[Any, ...]] = field(default_factory=list)
    reopen_rows: list[tuple[Any, ...]] = field(default_factory=list)
    step_rows: list[tuple[Any, ...]] = field(default_factory=list)
    purged: list[int] = field(default_factory=list)
    purged_whole: list[bytes] = field(default_factory=list)
    forget_rows: list[tuple[Any, ...]] = field(default_factory=list)
    key_rows: list[tuple[Any, ...]] = field(default_factory=list)
    revoked_key_rows: list[tuple[Any, ...]] = field(default_factory=list)
    resource_rows: list[tuple[Any, ...]] = field(default_factory=list)
    resource_update_rows: list[tuple[Any, ...]] = field(default_factory=list)
    resource_due_rows: list[tuple[Any, ...]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    cleanup_due_rows: list[tuple[Any, ...]] = field(default_factory=list)
    limit_rows: list[tuple[str, int | None]] = field(default_factory=list)
    restore_rows: list[tuple[Any, ...]] = field(default_factory=list)
    mail_rows: list[tuple[Any, ...]] = field(default_factory=list)
    mail_update_rows: list[tuple[Any, ...]] = field(default_factory=list)
    mail_ended: list[bytes] = field(default_factory=list)
    copy_rows: list[tuple[Any, ...]] = field(default_factory=list)

    def sessions(self) -> list[tuple[Any, ...]]:
        return self.session_rows

    def records(self) -> list[tuple[Any, ...]]:
        return self.record_rows

    def copies(self) -> list[tuple[Any, ...]]:
        return self.copy_rows

    def statuses(self) -> list[tuple[Any, ...]]:
        return self.status_rows

    def closes(self) -> list[tuple[Any, ...]]:
        return self.close_rows

    def rewards(self) -> list[tuple[Any, ...]]:
        return self.reward_rows

    def finished(self) -> list[tuple[Any, ...]]:
        return self.finished_rows

    def acks(self) -> list[tuple[Any, ...]]:
        return self.ack_rows

    def stales(self) -> list[tuple[Any, ...]]:
        return self.stale_rows

    def reopens(self) -> list[tuple[Any, ...]]:
        return self.reopen_rows

    def restores(self) -> list[tuple[Any, ...]]:
        return self.restore_rows

    def steps(self) -> list[tuple[Any, ...]]:
        return self.step_rows

    def purged_records(self) -> list[int]:
        return self.purged

    def purged_sessions(self) -> list[bytes]:
        return self.purged_whole

    def forgets(self) -> list[tuple[Any, ...]]:
        return self.forget_rows

    def keys(self) -> list[tuple[Any, ...]]:
        return self.key_rows

    def limits(self) -> list[tuple[str, int | None]]:
        return self.limit_rows

    def revoked_keys(self) -> list[tuple[Any, ...]]:
        return self.revoked_key_rows

    def resources(self) -> list[tuple[Any, ...]]:
        return self.resource_rows

    def resource_updates(self) -> list[tuple[Any, ...]]:
        return self.resource_update_rows

    def resources_due(self) -> list[tuple[Any, ...]]:
        return self.resource_due_rows

    def resource_deletes(self) -> list[str]:
        return self.released

    def cleanups_due(self) -> list[tuple[Any, ...]]:
        return self.cleanup_due_rows

    def mail(self) -> list[tuple[Any, ...]]:
        return self.mail_rows

    def mail_updates(self) -> list[tuple[Any, ...]]:
        return self.mail_update_rows

    def mail_ends(self) -> list[bytes]:
        return self.mail_ended

    def split(self) -> list[FakeBatch]:
        raise NotImplementedError


def uid_of(n: int) -> bytes:
    """A uid that sorts like its number."""
    return n.to_bytes(16, "big")


def content_of(seq: int, size: int = 300) -> bytes:
    """Bytes that nobody else has, so that a torn or swapped record is seen."""
    return hashlib.shake_128(seq.to_bytes(8, "big")).digest(size)


def facts_with(state_seq: int) -> bytes:
    """A roost.store.v1.SessionFacts with field 7 among others."""
    out = bytearray(b"\x08\xff\xff\x03" + b"\x12\x06\x0a\x01a\x12\x01b" + b"\x2a\x02xy")
    if state_seq:
        out.append(7 << 3)
        value = state_seq
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


class Maker:
    """Keeps the sessions as the engine does and makes the batch of what changed since the last one.

    `taken` must be called when the batch was stored; a Maker whose batch was refused is thrown away.
    """

    def __init__(self, next_seq: int = 1) -> None:
        self.next_seq = next_seq
        self.rows: dict[bytes, SessionUpsert] = {}
        self.stored: dict[bytes, int] = {}
        self.changed: dict[bytes, None] = {}
        self.records: list[RecordInsert] = []
        self.statuses: list[StatusUpdate] = []
        self.rewards: list[RewardUpsert] = []
        self.finished: list[TrajectoryInsert] = []
        self.acks: list[TrajectoryAck] = []
        self.done: dict[bytes, list[TrajectoryInsert]] = {}
        self.first = next_seq

    def _seq(self) -> int:
        self.next_seq += 1
        return self.next_seq - 1

    def _set(self, uid: bytes, **values: Any) -> None:
        self.rows[uid] = self.rows[uid]._replace(**values)
        self.changed[uid] = None

    def open(self, n: int, parent: int = 0, path: str = "/root", tenant: str = "t", session_id: str = "") -> bytes:
        """Session `n`; with a parent, its child at `path`."""
        uid = uid_of(n)
        above = self.rows[uid_of(parent)] if parent else None
        self.rows[uid] = SessionUpsert(
            uid=uid,
            tenant=tenant,
            session_id=session_id or f"s{n}",
            root=above.root if above else uid,
            parent=above.uid if above else b"",
            path=path,
            depth=above.depth + 1 if above else 0,
            create_ms=1000 + n,
            stale_due=0 if above else 5000 + n,
            state=OPEN,
            head=0,
            head_version=0,
            fence=0,
            provisional=0,
            last=0,
            running=0,
            lease=None,
            facts=facts_with(0),
            outcome=0,
            wakes=n % 2,
            owner="",
            finish_due=0,
            stale_ms=0 if above else 5000,
            active_ms=n,
            seq=self._seq(),
            prev=0,
        )
        self.changed[uid] = None
        return uid

    def begin(self, n: int) -> None:
        """A turn begins."""
        row = self.rows[uid_of(n)]
        fence = row.fence + 1
        self._set(row.uid, running=1, lease=b"grant%d" % fence, fence=fence, owner=f"host-{fence}", seq=self._seq())

    def commit(self, n: int, *, size: int = 300, state: bytes | None = None, tokens: bytes | None = b"tok") -> int:
        """A turn ends well; the provisional, if any, is superseded. Returns the record's rowid."""
        row = self.rows[uid_of(n)]
        seq = self._seq()
        if row.provisional:
            self.statuses.append(StatusUpdate(row.provisional, SUPERSEDED))
        self._record(row, seq, COMMITTED, row.head + 1, size, state, tokens)
        facts = facts_with(seq) if state is not None else row.facts
        self._set(
            row.uid, head=row.head + 1, head_version=row.head_version + 1, provisional=0, facts=facts, **_end(seq, 2)
        )
        return seq

    def abort(self, n: int, *, size: int = 300) -> int:
        """A turn ends badly and leaves a provisional. Returns the record's rowid."""
        row = self.rows[uid_of(n)]
        seq = self._seq()
        if row.provisional:
            self.statuses.append(StatusUpdate(row.provisional, SUPERSEDED))
        self._record(row, seq, PROVISIONAL, row.head + 1, size, None, None)
        self._set(row.uid, provisional=seq, **_end(seq, 4))
        return seq

    def reward(self, n: int, seq: int, value: float, due: int = 0) -> None:
        """A record is rewarded; its session's trajectory may finish by itself."""
        self.rewards.append(RewardUpsert(uid_of(n), seq, value))
        self._set(uid_of(n), finish_due=due, seq=self._seq())

    def finish(self, n: int) -> TrajectoryInsert:
        """A trajectory is finished, by an event of its own."""
        row = self.rows[uid_of(n)]
        seq = self._seq()
        before = self.done.setdefault(row.uid, [])
        first = before[-1].first_turn + before[-1].turn_count if before else 1
        after = before[-1].ready_seq if before else 0
        made = TrajectoryInsert(
            row.uid, len(before) + 1, row.tenant, row.root, seq, after, first, row.head + 1 - first, 5000 + seq
        )
        before.append(made)
        self.finished.append(made)
        chain = hashlib.sha256(b"event%d" % seq).digest()
        self.records.append(
            RecordInsert(seq, row.uid, row.last, FINISHED, row.head, b"event", chain, None, None, None, None)
        )
        self._set(row.uid, finish_due=0, last=seq, seq=seq)
        return made

    def acknowledge(self, made: TrajectoryInsert, ack_ms: int = 9000) -> None:
        """A trajectory is acknowledged, which changes no session."""
        self._seq()
        self.acks.append(TrajectoryAck(made.session, made.number, ack_ms))

    def _record(
        self, row: SessionUpsert, seq: int, status: int, turn: int, size: int, state: bytes | None, tokens: bytes | None
    ) -> None:
        meta = b"meta%d" % seq
        chain = hashlib.sha256(meta).digest()
        self.records.append(
            RecordInsert(
                seq, row.uid, row.last, status, turn, meta, chain, tokens, state, b"arr", content_of(seq, size)
            )
        )

    def close(self, n: int, state: int = CLOSED, receipt: bytes = b"receipt", cleanup_due: int = 7000) -> SessionClose:
        """The row that ends a session. Not part of `batch`: add it there."""
        row = self.rows[uid_of(n)]
        prev = row.seq
        seq = self._seq()
        self.rows[row.uid] = row._replace(state=state, running=0, lease=None, provisional=0, finish_due=0, seq=seq)
        if row.uid not in self.changed:
            self.stored[row.uid] = seq
        return SessionClose(row.uid, prev, seq, state, receipt, cleanup_due)

    def reopen(self, n: int, facts: bytes | None = None) -> FakeBatch:
        """A batch of its own in which a CLOSED session is OPEN again."""
        row = self.rows[uid_of(n)]
        seq = self._seq()
        again = SessionReopen(
            row.uid, row.seq, seq, row.stale_ms, 6000 if row.depth == 0 else 0, 77, facts or row.facts
        )
        self.rows[row.uid] = row._replace(state=OPEN, seq=seq)
        self.stored[row.uid] = seq
        return FakeBatch(seq, seq, roots=[row.root], reopen_rows=[tuple(again)])

    def step(
        self,
        n: int,
        state: int = CLOSED,
        *,
        due: int = 8000,
        purge: tuple[int, ...] = (),
        last: int | None = None,
        whole: bool = False,
    ) -> FakeBatch:
        """A batch of its own with one step of a clean-up."""
        row = self.rows[uid_of(n)]
        seq = self._seq()
        last = row.last if last is None else last
        step = CleanupStep(row.uid, row.seq, seq, state, last, row.facts, b"cleanup%d" % seq, due)
        self.rows[row.uid] = row._replace(state=state, last=last, seq=seq)
        self.stored[row.uid] = seq
        batch = FakeBatch(seq, seq, roots=[row.root], step_rows=[tuple(step)], purged=list(purge))
        if whole:
            batch.purged_whole.append(row.uid)
        return batch

    def batch(self, *closes: SessionClose) -> FakeBatch:
        """What changed since the last `taken`."""
        closed = {close.uid: close.prev for close in closes}
        rows = []
        for uid in self.changed:
            row = self.rows[uid]
            if uid in closed:  # as it was before its close
                row = row._replace(state=OPEN, seq=closed[uid])
            rows.append(tuple(row._replace(prev=self.stored.get(uid, 0))))
        return FakeBatch(
            self.first,
            self.next_seq - 1,
            rows,
            [tuple(r) for r in self.records],
            [tuple(s) for s in self.statuses],
            [tuple(c) for c in closes],
            sorted({self.rows[uid].root for uid in self.changed}),
            [tuple(r) for r in self.rewards],
            [tuple(t) for t in self.finished],
            [tuple(a) for a in self.acks],
        )

    def taken(self) -> None:
        """The batch is stored."""
        for uid in self.changed:
            self.stored[uid] = self.rows[uid].seq
        self.changed.clear()
        self.records.clear()
        self.statuses.clear()
        self.rewards.clear()
        self.finished.clear()
        self.acks.clear()
        self.first = self.next_seq


def take(put: Callable[[FakeBatch], Any], maker: Maker, *closes: SessionClose) -> None:
    """Store what changed; it must be taken."""
    assert put(maker.batch(*closes)) is Outcome.STORED
    maker.taken()


def _end(seq: int, outcome: int) -> dict[str, Any]:
    return {"running": 0, "lease": None, "last": seq, "outcome": outcome, "seq": seq}


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables of a store file, in the order of their keys."""
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return {table: list(conn.execute(f"SELECT * FROM {table} ORDER BY 1")) for table in TABLES}
    finally:
        conn.close()


def make_older(now: Path, directory: Path, version: int, tables: Iterable[str]) -> list[str]:
    """A store of an earlier schema version with the rows that these tables have in the store `now`. The columns that
    its sessions have."""
    directory.mkdir(mode=0o700)
    with contextlib.closing(apsw.Connection(str(directory / "roost.db"))) as conn:
        conn.pragma("application_id", schema.APPLICATION_ID)
        for _, script in schema.migrations()[:version]:
            conn.execute(script)
        conn.execute("ATTACH ? AS now; DELETE FROM shard", (str(now),))
        for table in tables:
            names = [str(row[0]) for row in conn.execute("SELECT name FROM main.pragma_table_info(?)", (table,))]
            columns = ", ".join(names)
            conn.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
        conn.pragma("user_version", version)
        columns_then = [str(row[0]) for row in conn.execute("SELECT name FROM main.pragma_table_info('session')")]
    (directory / "roost.db").chmod(0o600)
    return columns_then


def sessions(path: Path, columns: Iterable[str]) -> list[tuple[Any, ...]]:
    """These columns of all sessions of a store file, in order of uid."""
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as conn:
        return list(conn.execute(f"SELECT {', '.join(columns)} FROM session ORDER BY uid"))


def integrity(path: Path) -> str:
    """What PRAGMA integrity_check says of a store file."""
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return str(conn.execute("PRAGMA integrity_check(1)").get)
    finally:
        conn.close()
