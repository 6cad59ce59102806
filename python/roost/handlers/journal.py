"""The one writer thread: takes batches from the engine, appends them, tells the engine what became of them.

The order and the answers are the engine's; this thread only carries. An append whose outcome is unknown ends the
process (`fail`), because neither "it happened" nor "it did not" may be said. So does one that finds another owner.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from roost._core import failpoint
from roost.handlers.errors import failure
from roost.handlers.measures import Measures
from roost.store.base import Outcome, Store, StoreFailed

if TYPE_CHECKING:
    from roost._core import Batch, Engine

SHARD: Final = 0  # the embedded server has one
LINGER_US: Final = 1_000  # the engine waits this long for company, unless nothing else is in flight
PROBE_SECONDS: Final = 1.0
NOTE_SECONDS: Final = 30.0  # how often a store in which nothing happens is told for how long it has been served
_IDLE_MS: Final = 500

log = structlog.get_logger("roost.journal")


class JournalWriter:
    """Drains the journal on a thread of its own.

    `wake` is called, from that thread, once for each batch after which the engine has finished tickets.
    `fail(message)` must not return: the store's state is unknown, or it is another's.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        wake: Callable[[], None],
        fail: Callable[[str], None],
        measures: Measures | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._wake = wake
        self._fail = fail
        self._appends = (measures or Measures()).appends
        self._stopping = False
        self._space = "ok"
        self._probed = 0.0
        self._noted = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="roost-writer", daemon=True)

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread once the queue is empty, and wait for it."""
        self._stopping = True
        self._engine.wake_writer()
        self._thread.join()

    def _run(self) -> None:
        carried = time.monotonic()
        try:
            while True:
                batch = self._engine.next_batch(timeout_ms=_IDLE_MS, linger_us=LINGER_US)
                if batch is not None:
                    self._carry(batch)
                    carried = time.monotonic()
                elif self._stopping:
                    return
                elif time.monotonic() - carried >= _IDLE_MS / 1_000:
                    # None comes early when the thread was woken for what it had taken already: that is no quiet time.
                    self._store.idle()
                    if time.monotonic() - self._noted >= NOTE_SECONDS:
                        # What is idle grows stale by this clock, over restarts too.
                        self._noted = time.monotonic()
                        self._store.keep_time(self._engine.service_ms())
                if time.monotonic() - self._probed >= PROBE_SECONDS:
                    self._probe()
        except BaseException as error:  # noqa: BLE001 - StoreFailed, a bug, a panic: in each the outcome is unknown
            self._fail(failure("journal writer", error))

    def _carry(self, batch: Batch) -> None:
        """Append one batch and report."""
        outcome = self._append(batch)
        quarantine: list[bytes] = []
        if outcome is Outcome.REFUSED_CONSTRAINT:
            quarantine = self._tree_by_tree(batch)
            outcome = Outcome.STORED
        if self._engine.appended(batch, outcome.value, quarantine):
            self._wake()
        if outcome is not Outcome.STORED:
            log.warning("batch_refused", outcome=outcome.value, first_seq=batch.first_seq, last_seq=batch.last_seq)
            # The engine takes the disk for full by itself then: it wants to hear what is true, the old news too.
            self._probe(tell=outcome is Outcome.REFUSED_FULL)

    def _append(self, batch: Batch) -> Outcome:
        """Append. Where another server owns the store by now, this one knows nothing any more and must end."""
        failpoint("journal.append.before")
        began = time.monotonic()
        outcome = self._store.append(SHARD, self._store.epoch, batch.first_seq, batch, self._engine.service_ms())
        self._appends.record(time.monotonic() - began)
        failpoint("journal.append.after")
        if outcome is Outcome.REFUSED_FENCED:
            raise StoreFailed("another server has taken the store over")
        return outcome

    def _tree_by_tree(self, batch: Batch) -> list[bytes]:
        """After a constraint error (our bug): store what can be stored; the roots of the trees that fail alone."""
        parts = batch.split()
        failed: list[bytes] = []
        for part in parts:
            # A batch of one tree has just failed alone.
            outcome = Outcome.REFUSED_CONSTRAINT if len(parts) == 1 else self._append(part)
            if outcome is Outcome.REFUSED_CONSTRAINT:
                failed.extend(part.roots)
                roots = [root.hex() for root in part.roots]
                log.error("tree_quarantined", roots=roots, first_seq=part.first_seq, last_seq=part.last_seq)
            elif outcome is not Outcome.STORED:
                # Some trees of this batch are stored and some are not; a restart reads which.
                raise RuntimeError(f"the store refused a part of a batch as {outcome.value!r}")
        return failed

    def _probe(self, tell: bool = False) -> None:
        """Tell the engine of the room on disk when it changes, or anyway."""
        self._probed = time.monotonic()
        space = self._store.probe_space()
        self._engine.set_store_bytes(self._store.used_bytes())
        if space != self._space or tell:
            log.warning("space", was=self._space, now=space)
            self._space = space
            if self._engine.set_space(space):
                self._wake()
