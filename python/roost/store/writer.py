"""The one writer of a store: appends, each one durable transaction, and what becomes of its errors."""

from __future__ import annotations

import logging

import apsw

from .base import Batch, Outcome, StoreFailed
from .checkpoint import Checkpointer
from .space import Reserve
from .statements import BadBatch, Plan

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

    def append(self, shard: int, epoch: int, first_seq: int, batch: Batch) -> Outcome:
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
        outcome = self._store(shard, epoch, batch.last_seq, plan)
        if outcome is Outcome.REFUSED_FULL and self._reserve.give_up():
            log.warning("the disk is full: the reserve file was given up")
            outcome = self._store(shard, epoch, batch.last_seq, plan)
        if outcome is Outcome.STORED:
            try:
                self._checkpointer.committed()
            except Exception as error:  # noqa: BLE001
                # The batch is durable in the log and is answered; the next append says that the store has failed.
                self._failed = f"checkpoint: {error}"
        return outcome

    def _store(self, shard: int, epoch: int, last_seq: int, plan: Plan) -> Outcome:
        outcome = self._transaction(shard, epoch, last_seq, plan, reopen=False)
        if outcome is Outcome.REFUSED_CONSTRAINT and plan.may_reopen:
            # A session that is OPEN again after it was closed is rare: only then is it worth a second try.
            outcome = self._transaction(shard, epoch, last_seq, plan, reopen=True)
        return outcome

    def _transaction(self, shard: int, epoch: int, last_seq: int, plan: Plan, *, reopen: bool) -> Outcome:
        conn = self._conn
        try:
            conn.execute("BEGIN IMMEDIATE")
            outcome = self._fence(shard, epoch, last_seq)
            if outcome is Outcome.STORED:
                for sql, bindings, rows in plan.statements(reopen):
                    conn.execute(sql, bindings)
                    if conn.changes() != rows:
                        raise BadBatch(f"{rows - conn.changes()} of {rows} rows were not as expected ({sql[:24]}...)")
                conn.execute("COMMIT")
                return Outcome.STORED
        except apsw.FullError:
            outcome = Outcome.REFUSED_FULL
        except _CONSTRAINT:
            if reopen or not plan.may_reopen:
                log.exception("refused a batch up to sequence %d", last_seq)
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

    def _fence(self, shard: int, epoch: int, last_seq: int) -> Outcome:
        """Check that we still own the shard, and note how far it is written."""
        # max: the batches of Batch.split overlap in their sequences.
        self._conn.execute(
            "UPDATE shard SET last_seq = max(last_seq, ?3) WHERE shard = ?1 AND epoch = ?2", (shard, epoch, last_seq)
        )
        return Outcome.STORED if self._conn.changes() == 1 else Outcome.REFUSED_FENCED

    def probe_space(self) -> str:
        """See base.Store.probe_space."""
        self._check()
        return self._reserve.probe()

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
