"""The one writer of a store: appends, each one durable transaction, and what becomes of its errors."""

from __future__ import annotations

import logging
from typing import NamedTuple

import apsw

from .base import Batch, Outcome, StoreFailed
from .checkpoint import Checkpointer
from .schema import pragma_int
from .space import Reserve
from .statements import ANY_ROWS, BadBatch, Plan

log = logging.getLogger(__name__)

# What SQLite or apsw says of rows that break a rule or cannot be bound: our bug, and nothing of it is stored.
_CONSTRAINT = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    BadBatch,
    TypeError,
    ValueError,
    OverflowError,
)


class Place(NamedTuple):
    """Where an append goes, as the statement that checks the shard binds it."""

    shard: int
    epoch: int
    last_seq: int
    service_ms: int


class Writer:
    """Owns the writing connection. Used by one thread at a time."""

    def __init__(self, conn: apsw.Connection, reserve: Reserve, checkpointer: Checkpointer, opened_at: int) -> None:
        self._conn = conn
        self._reserve = reserve
        self._checkpointer = checkpointer
        # Sequences up to here were stored by an earlier epoch.
        self._opened_at = opened_at
        self._failed: str | None = None

    @property
    def failed(self) -> bool:
        """True once StoreFailed was raised: nothing may be written any more, not even by a checkpoint."""
        return self._failed is not None

    def append(self, shard: int, epoch: int, first_seq: int, batch: Batch, service_ms: int = 0) -> Outcome:
        """See base.Store.append."""
        self._check()
        try:
            plan = Plan(batch)
            if first_seq <= self._opened_at:
                raise BadBatch(f"sequence {first_seq} was stored before this start")
            if batch.last_seq < first_seq:
                raise BadBatch("a batch ends before it begins")
        except _CONSTRAINT:
            log.exception("refused a batch from sequence %d", first_seq)
            return Outcome.REFUSED_CONSTRAINT
        here = Place(shard, epoch, batch.last_seq, service_ms)
        outcome = self._transaction(here, plan)
        if outcome is Outcome.REFUSED_FULL and self._reserve.give_up():
            log.warning("the disk is full: the reserve file was given up")
            outcome = self._transaction(here, plan)
        if outcome is Outcome.STORED:
            try:
                self._checkpointer.committed()
            except Exception as error:  # noqa: BLE001
                # The batch is durable in the log and is answered; the next append says that the store has failed.
                self._failed = f"checkpoint: {error}"
        return outcome

    def _transaction(self, here: Place, plan: Plan) -> Outcome:
        conn = self._conn
        try:
            conn.execute("BEGIN IMMEDIATE")
            outcome = self._fence(here)
            if outcome is Outcome.STORED:
                for sql, bindings, rows in plan.statements():
                    conn.execute(sql, bindings)
                    if rows not in (ANY_ROWS, conn.changes()):
                        raise BadBatch(f"{rows - conn.changes()} of {rows} rows were not as expected ({sql[:24]}...)")
                conn.execute("COMMIT")
                return Outcome.STORED
        except apsw.FullError:
            outcome = Outcome.REFUSED_FULL
        except _CONSTRAINT:
            log.exception("refused a batch up to sequence %d", here.last_seq)
            outcome = Outcome.REFUSED_CONSTRAINT
        except Exception as error:
            raise self._fail("append", error) from error
        try:
            # SQLite ends the transaction by itself after some errors.
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        except Exception as error:
            raise self._fail("rollback", error) from error
        return outcome

    def _fence(self, here: Place) -> Outcome:
        """Check that we still own the shard, and note how far it is written and for how long it has been served."""
        # max: the batches of Batch.split overlap in their sequences.
        self._conn.execute(
            "UPDATE shard SET last_seq = max(last_seq, ?3), service_ms = max(service_ms, ?4) "
            "WHERE shard = ?1 AND epoch = ?2",
            here,
        )
        return Outcome.STORED if self._conn.changes() == 1 else Outcome.REFUSED_FENCED

    def keep_time(self, epoch: int, service_ms: int) -> None:
        """See base.Store.keep_time. What it says is lost where there is no room: the next append says it again."""
        self._check()
        try:
            self._fence(Place(0, epoch, 0, service_ms))
        except apsw.FullError:
            pass
        except Exception as error:
            raise self._fail("keep_time", error) from error

    def probe_space(self) -> str:
        """See base.Store.probe_space."""
        self._check()
        return self._reserve.probe()

    def used_bytes(self) -> int:
        """See base.Store.used_bytes."""
        self._check()
        conn = self._conn
        pages = pragma_int(conn, "page_count") - pragma_int(conn, "freelist_count")
        return pages * pragma_int(conn, "page_size")

    def idle(self) -> None:
        """See SqliteStore.idle."""
        self._check()
        try:
            self._checkpointer.idle()
        except Exception as error:
            raise self._fail("checkpoint", error) from error

    def _check(self) -> None:
        if self._failed is None and self._checkpointer.failure is not None:
            self._failed = f"checkpoint: {self._checkpointer.failure}"
        if self._failed is not None:
            raise StoreFailed(self._failed)

    def _fail(self, what: str, error: Exception) -> StoreFailed:
        self._failed = f"{what}: {type(error).__name__}: {error}"
        return StoreFailed(self._failed)
