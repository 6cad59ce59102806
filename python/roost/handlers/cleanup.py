"""What follows the end of a session: its dump while it is SEALED, the purge of its content when its retention is over,
the end of its tombstone. What it has outside ends between the first two (`releasing`).

The store is the list of what is to be done: each ended session's row says when its next step is due. So nothing is
queued in memory, and a start goes on where the last one was killed. Each step is done first and journaled by the engine
then (`Engine.cleanup_step`), which checks that the row is still the one that the step was decided by. Runs on the event
loop; reads go to the reader thread, dumps to wherever `Dump` takes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Container
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from roost._core import failpoint
from roost.handlers.cold import is_restoring
from roost.handlers.measures import Measures
from roost.handlers.reload import Read, read_one
from roost.store.base import CleanupRow, SessionRow, Store
from roost.store.v1.store_pb2 import Cleanup, Receipt, SessionFacts

if TYPE_CHECKING:
    from roost._core import Engine

LOOK_SECONDS: Final = 1.0  # between two looks at what is due while no session ends
_POLL_SECONDS: Final = 0.1
COUNT_SECONDS: Final = 30.0  # between two counts of what waits in the store (`Store.counts`)
_COUNT_REST: Final = (
    500  # times as long as a count took it is rested: it grows with what it counts, and reads wait for it
)
_PAGE: Final = 128  # rows of what is due that one read takes
_PURGE_RECORDS: Final = 256  # records that one step deletes
DUMPS_AT_ONCE: Final = 4
STREAM_SECONDS: Final = 3_600.0  # how long a purge waits for exports that began before it
_OPEN, _SEALED, _CLOSED = 1, 2, 3  # roost.v1.SessionState

log = structlog.get_logger("roost.cleanup")

Step = tuple[Any, ...]


class DumpFailed(Exception):
    """A dump could not be made or verified. The message is a stable word, a colon and a sentence, without content."""


class Dump(Protocol):
    """Dumps a SEALED session under a name, verifies it, and returns its size in bytes and its SHA-256. The same name
    again is the same dump. Raises DumpFailed."""

    async def __call__(self, row: SessionRow, name: str) -> tuple[int, bytes]: ...


class Cleaner:
    """Does the steps that are due.

    `read` runs a job on the reader thread; `journal` has the engine journal a step and says whether it was done;
    `oldest_stream` says when the oldest running export began; `dump` is None without a dump target;
    `purge_without_dump` says whether that is allowed now; `gauges` is told now and then what waits in the store
    (`Store.counts`); `restoring` has the uids of the sessions that are being restored now; `measures` is told of dumps.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        read: Read,
        journal: Callable[[SessionRow, Step], Awaitable[bool]],
        oldest_stream: Callable[[], float | None],
        dump: Dump | None,
        purge_without_dump: Callable[[], bool],
        gauges: dict[str, int],
        restoring: Container[bytes] = (),
        measures: Measures | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._rows = partial(read_one, read)
        self._journal = journal
        self._oldest_stream = oldest_stream
        self._dump = dump
        self._purge_without_dump = purge_without_dump
        self._dumping: dict[bytes, asyncio.Task[None]] = {}
        self._room = False  # a dump has ended: the next one may begin
        self._marked: dict[bytes, float] = {}  # sessions that wait for exports, since when
        self._gauges = gauges
        self._restoring = restoring
        self._measures = measures or Measures()

    async def run(self) -> None:
        """Work until cancelled, on the dumps and on what is CLOSED apart: what hangs in one holds up nothing else."""
        dumps = asyncio.create_task(self._run_dumps())
        try:
            await self._run_closed()
        finally:
            tasks = [dumps, *self._dumping.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_dumps(self) -> None:
        seen, looked = -1, 0.0
        while True:
            ended = self._engine.ended_count()
            if self._room or ended != seen or time.monotonic() - looked >= LOOK_SECONDS:
                seen, looked, self._room = ended, time.monotonic(), False
                try:
                    await self._start_dumps()
                except Exception:
                    log.exception("cleanup_failed")
            await asyncio.sleep(_POLL_SECONDS)

    async def _run_closed(self) -> None:
        looked = count_at = 0.0
        purges = again = False
        while True:
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                try:
                    await self.look()
                    before, purges = purges, self._purge_without_dump()
                    if purges and (again or not before):
                        # Sessions that were kept for want of a dump or an acknowledgement may go by now.
                        again = await self._reconsider()
                    if time.monotonic() >= count_at:
                        began = time.monotonic()
                        self._gauges.update(await self._rows(self._store.counts))
                        ended = time.monotonic()
                        count_at = ended + max(COUNT_SECONDS, _COUNT_REST * (ended - began))
                except Exception:
                    log.exception("cleanup_failed")
            await asyncio.sleep(_POLL_SECONDS)

    async def look(self) -> None:
        """Take the steps of CLOSED sessions that are due now, a page of sessions at once."""
        after: tuple[int, bytes] | None = None
        until = self._engine.wall_ms()
        while True:
            page: list[CleanupRow] = await self._rows(partial(self._store.cleanups, _CLOSED, until, after, _PAGE))
            await asyncio.gather(*(self._take(due.uid) for due in page))
            if len(page) < _PAGE:
                return
            after = (page[-1].cleanup_due, page[-1].uid)

    async def _due(self, uid: bytes) -> SessionRow | None:
        """The row of an ended session, if a step of it is due."""
        row: SessionRow | None = await self._rows(partial(self._store.session_by_uid, uid))
        if row is None or row.state == _OPEN or not 0 < row.cleanup_due <= self._engine.wall_ms():
            return None
        return row

    async def _take(self, uid: bytes) -> None:
        """The steps of one CLOSED session that are due. One that fails is tried again later, and is in nobody's way."""
        if uid in self._marked and not self._streams_are_over(uid):
            return
        row: SessionRow | None = None
        try:
            while (row := await self._due(uid)) is not None and row.state == _CLOSED:
                step = await self._next_step(row)
                if step is None or not await self._step(row, step):
                    return
                if step[0] == "keep":
                    # What was acknowledged while this was decided has asked for nothing: so it is looked at again.
                    kept = await self._kept(uid)
                    if kept is not None and await self._rows(partial(_acknowledged, self._store, kept)):
                        await self._step(kept, ("purge", [], kept.last, True))
        except Exception as error:
            log.exception("cleanup_failed", uid=uid.hex())
            if row is not None:
                await self._step(row, ("failed", f"internal: {type(error).__name__}"))

    async def _kept(self, uid: bytes) -> SessionRow | None:
        """The row of a session, if it is kept for want of a dump or an acknowledgement."""
        row: SessionRow | None = await self._rows(partial(self._store.session_by_uid, uid))
        return row if row is not None and row.cleanup_due == -1 else None

    async def _step(self, row: SessionRow, step: Step) -> bool:
        failpoint(f"cleanup.{step[0]}.before")
        done = await self._journal(row, step)
        failpoint(f"cleanup.{step[0]}.after")
        if done and step[0] == "purge" and not step[1] and step[2] and not is_restoring(row.cleanup):
            # The mark is on disk: no export begins from here on, and those that run are waited for.
            self._marked[row.uid] = time.monotonic()
        return done

    # -- SEALED: the dump, or the end of a restore that was not gone on with

    async def _start_dumps(self) -> None:
        """Begin what is due for SEALED sessions, as much as there is room for."""
        after: tuple[int, bytes] | None = None
        until = self._engine.wall_ms()
        while len(self._dumping) < DUMPS_AT_ONCE:
            page: list[CleanupRow] = await self._rows(
                partial(self._store.cleanups, _SEALED, until, after, DUMPS_AT_ONCE)
            )
            for due in page:
                if due.uid in self._dumping or len(self._dumping) >= DUMPS_AT_ONCE:
                    continue
                row = await self._due(due.uid)
                if row is None or row.state != _SEALED:
                    continue
                if not is_restoring(row.cleanup):
                    work = self._clean(row)
                elif row.uid not in self._restoring:
                    work = self.undo_restore(row.uid)
                else:
                    continue
                task = asyncio.create_task(work)
                self._dumping[due.uid] = task
                task.add_done_callback(partial(self._dumped, due.uid))
            if len(page) < DUMPS_AT_ONCE:
                return
            after = (page[-1].cleanup_due, page[-1].uid)

    def _dumped(self, uid: bytes, _task: asyncio.Task[None]) -> None:
        del self._dumping[uid]
        self._room = True

    async def _clean(self, row: SessionRow) -> None:
        """Dump a SEALED session and have it CLOSED; or have it said why not."""
        name = Receipt.FromString(row.receipt or b"").dump_name
        try:
            # With a dump it was SEALED for its resources, and the last of them is gone.
            if not name or Cleanup.FromString(row.cleanup or b"").dump_ms:
                step: Step = ("cleaned",)
            elif self._dump is None:
                raise DumpFailed("no_target: the server has no dump target by now; set dump_target as it was")
            else:
                step = ("dumped", *await self._write(self._dump, row, name))
        except DumpFailed as error:
            log.warning("dump_failed", session=row.session_id, name=name, reason=str(error))
            step = ("failed", str(error))
        except Exception as error:
            log.exception("dump_failed", session=row.session_id, name=name)
            step = ("failed", f"internal: {type(error).__name__}")
        await self._step(row, step)

    async def _write(self, dump: Dump, row: SessionRow, name: str) -> tuple[int, bytes]:
        """Dump a session, and have it measured and traced."""
        began, began_ns = time.monotonic(), time.time_ns()
        try:
            made = await dump(row, name)
        except Exception:
            await self._tell(row, False, began, began_ns)
            raise
        await self._tell(row, True, began, began_ns)
        self._measures.dump_bytes += made[0]
        return made

    async def _tell(self, row: SessionRow, done: bool, began: float, began_ns: int) -> None:
        ended_ns = time.time_ns()
        self._measures.dumps[done].record(time.monotonic() - began)
        if self._measures.spans.on:
            self._measures.spans.dump(await self._ended_with(row), began_ns, ended_ns, done)

    async def _ended_with(self, row: SessionRow) -> list[str]:
        """The names of the dumps of this session and of those above it that the same close ended, its own first."""
        names: list[str] = []
        above: SessionRow | None = row
        close = Receipt.FromString(row.receipt or b"").close_seq
        while above is not None and above.receipt is not None:
            receipt = Receipt.FromString(above.receipt)
            if receipt.close_seq != close:
                break
            names.append(receipt.dump_name)
            above = await self._rows(partial(self._store.session_by_uid, above.parent)) if above.parent else None
        return names

    async def undo_restore(self, uid: bytes) -> None:
        """Delete what a restore has left half made: its dump is there, and nobody has seen it. What cannot be deleted
        now is deleted later."""
        try:
            row = await self._due(uid)
            if row is None or not is_restoring(row.cleanup):
                return
            if row.state == _SEALED:
                await self._step(row, ("purge", [], row.last, False))
        except Exception:
            log.exception("cleanup_failed", uid=uid.hex())
            return
        await self._take(uid)

    # -- CLOSED: purge, then forget

    async def _next_step(self, row: SessionRow) -> Step | None:
        cleanup = Cleanup.FromString(row.cleanup or b"")
        if cleanup.purged_ms:
            below = await self._rows(partial(self._store.has_children, row.root, row.uid))
            return ("later",) if below else ("forget",)
        acknowledged = False
        if not (cleanup.purging or cleanup.dump_ms or self._purge_without_dump()):
            acknowledged = await self._rows(partial(_acknowledged, self._store, row))
            if not acknowledged:
                return ("keep",)
        if not cleanup.purging and row.last:
            return ("purge", [], row.last, acknowledged)
        if not self._streams_are_over(row.uid):
            return None
        found = await self._rows(partial(self._store.record_lines, row.uid, _PURGE_RECORDS))
        lines = found[1] if found is not None else []
        return ("purge", [line.seq for line in lines], lines[-1].prev if lines else 0, acknowledged)

    def _streams_are_over(self, uid: bytes) -> bool:
        """Whether all exports have ended that began before the purge, or had their time."""
        marked = self._marked.get(uid)
        if marked is None:  # by an earlier server: its exports ended with it
            return True
        oldest = self._oldest_stream()
        over = oldest is None or oldest > marked or time.monotonic() - marked > STREAM_SECONDS
        if over:
            del self._marked[uid]
        return over

    async def _reconsider(self) -> bool:
        """Begin the purge of a page of sessions that are kept. True if there are more."""
        page: list[bytes] = await self._rows(partial(self._store.kept, b"", _PAGE))

        async def begin(uid: bytes) -> None:
            row = await self._kept(uid)
            if row is not None:
                await self._step(row, ("purge", [], row.last, False))

        await asyncio.gather(*(begin(uid) for uid in page))
        return bool(page)


def _acknowledged(store: Store, row: SessionRow) -> bool:
    """Whether every COMMITTED record on the live line belongs to an acknowledged trajectory (I14)."""
    facts = SessionFacts.FromString(row.facts)
    if facts.trajectory_turns != row.head:
        return False
    return all(trajectory.ack_ms for trajectory in store.session_trajectories(row.uid))
