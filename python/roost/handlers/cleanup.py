"""What follows the end of a session: its dump while it is SEALED, the purge of its content when its retention is over,
the end of its tombstone.

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
from roost.store.base import CleanupRow, SessionRow, Store
from roost.store.v1.store_pb2 import Cleanup, Receipt, SessionFacts

if TYPE_CHECKING:
    from roost._core import Engine

LOOK_SECONDS: Final = 1.0  # between two looks at what is due while no session ends
_POLL_SECONDS: Final = 0.1
COUNT_SECONDS: Final = 30.0  # between two counts of the sessions that are kept for want of an acknowledgement
_PAGE: Final = 64  # rows of what is due that one read takes
_PURGE_RECORDS: Final = 256  # records that one step deletes
DUMPS_AT_ONCE: Final = 4
STREAM_SECONDS: Final = 3_600.0  # how long a purge waits for exports that began before it
_SEALED: Final = 2  # roost.v1.SESSION_STATE_SEALED
_OPEN: Final = 1

log = structlog.get_logger("roost.cleanup")

Step = tuple[Any, ...]
Read = Callable[[Callable[[], Any]], Awaitable[Any]]


class DumpFailed(Exception):
    """A dump could not be made or verified. The message is a stable word, a colon and a sentence, without content."""


class Dump(Protocol):
    """Dumps a SEALED session under a name, verifies it, and returns its size in bytes and its SHA-256. The same name
    again is the same dump. Raises DumpFailed."""

    async def __call__(self, row: SessionRow, name: str) -> tuple[int, bytes]: ...


class Cleaner:
    """Does the steps that are due.

    `read` runs a job on the reader thread; `journal` has the engine journal a step and says whether it was done;
    `oldest_stream` says when the oldest running export began; `dump` is None without a dump target; `gauges` is told
    how many sessions are kept because they were neither dumped nor acknowledged ("sessions_kept"); `restoring` has the
    uids of the sessions that are being restored now.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        read: Read,
        journal: Callable[[SessionRow, Step], Awaitable[bool]],
        oldest_stream: Callable[[], float | None],
        dump: Dump | None,
        purge_without_dump: bool,
        gauges: dict[str, int],
        restoring: Container[bytes] = (),
    ) -> None:
        self._engine = engine
        self._store = store
        self._read = read
        self._journal = journal
        self._oldest_stream = oldest_stream
        self._dump = dump
        self._purge_without_dump = purge_without_dump
        self._dumping: dict[bytes, asyncio.Task[None]] = {}
        self._marked: dict[bytes, float] = {}  # sessions that wait for exports, since when
        self._gauges = gauges
        self._restoring = restoring

    async def run(self) -> None:
        """Work until cancelled. A failure of ours is logged, and the step is taken again at the next look."""
        if self._purge_without_dump:
            await self._reconsider()
        seen, looked, counted = -1, 0.0, 0.0
        try:
            while True:
                ended = self._engine.ended_count()
                if ended != seen or time.monotonic() - looked >= LOOK_SECONDS:
                    seen, looked = ended, time.monotonic()
                    try:
                        await self.look()
                        if time.monotonic() - counted >= COUNT_SECONDS:
                            self._gauges["sessions_kept"] = await self._rows(self._store.count_kept)
                            counted = time.monotonic()
                    except Exception:
                        log.exception("cleanup_failed")
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            for task in self._dumping.values():
                task.cancel()
            await asyncio.gather(*self._dumping.values(), return_exceptions=True)

    async def look(self) -> None:
        """Take every step that is due now; dumps go on by themselves."""
        after: tuple[int, bytes] | None = None
        until = self._engine.wall_ms()
        while True:
            page: list[CleanupRow] = await self._rows(partial(self._store.cleanups, until, after, _PAGE))
            for due in page:
                await self.take(due.uid)
            if len(page) < _PAGE:
                return
            after = (page[-1].cleanup_due, page[-1].uid)

    async def settled(self) -> None:
        """Wait for the dumps under way."""
        while self._dumping:
            await asyncio.gather(*self._dumping.values(), return_exceptions=True)

    async def _rows(self, job: Callable[[], Any]) -> Any:
        """A read; what went wrong there, logged by then, is an exception here."""
        [answer] = await self._read(lambda: [job()])
        return answer

    async def take(self, uid: bytes) -> None:
        """The steps of one session that are due."""
        while True:
            row: SessionRow | None = await self._rows(partial(self._store.session_by_uid, uid))
            if row is None or row.state == _OPEN or not 0 < row.cleanup_due <= self._engine.wall_ms():
                return
            if row.state == _SEALED and is_restoring(row):
                # What a restore left half made, which ended or was killed, goes; its dump is there.
                if row.uid in self._restoring or not await self._step(row, ("purge", [], row.last, False)):
                    return
                continue
            if row.state == _SEALED:
                await self._start_dump(row)
                return
            step = await self._next_step(row)
            if step is None or not await self._step(row, step):
                return

    async def _step(self, row: SessionRow, step: Step) -> bool:
        failpoint(f"cleanup.{step[0]}.before")
        done = await self._journal(row, step)
        failpoint(f"cleanup.{step[0]}.after")
        return done

    # -- SEALED: the dump

    async def _start_dump(self, row: SessionRow) -> None:
        """Begin the dump of a session, if none is under way and there is room for one."""
        if row.uid in self._dumping:
            return
        while len(self._dumping) >= DUMPS_AT_ONCE:
            await asyncio.wait(self._dumping.values(), return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._clean(row))
        self._dumping[row.uid] = task
        task.add_done_callback(lambda _: self._dumping.pop(row.uid, None))

    async def _clean(self, row: SessionRow) -> None:
        """Dump a SEALED session and have it CLOSED; or have it said why not."""
        name = Receipt.FromString(row.receipt or b"").dump_name
        try:
            if not name:
                step: Step = ("cleaned",)
            elif self._dump is None:
                raise DumpFailed("no_target: the server has no dump target by now; set dump_target as it was")
            else:
                step = ("dumped", *await self._dump(row, name))
        except DumpFailed as error:
            log.warning("dump_failed", session=row.session_id, name=name, reason=str(error))
            step = ("failed", str(error))
        except Exception as error:
            log.exception("dump_failed", session=row.session_id, name=name)
            step = ("failed", f"internal: {type(error).__name__}")
        await self._step(row, step)

    # -- CLOSED: purge, then forget

    async def _next_step(self, row: SessionRow) -> Step | None:
        cleanup = Cleanup.FromString(row.cleanup or b"")
        if cleanup.purged_ms:
            return ("forget",)
        acknowledged = False
        if not (cleanup.purging or cleanup.dump_ms or self._purge_without_dump):
            acknowledged = await self._rows(partial(_acknowledged, self._store, row))
            if not acknowledged:
                return ("keep",)
        if not cleanup.purging and row.last:
            # From here on no export begins; those that run are waited for.
            self._marked[row.uid] = time.monotonic()
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

    async def _reconsider(self) -> None:
        """Sessions that were kept for want of a dump or an acknowledgement may go by now."""
        after = b""
        while page := await self._rows(partial(self._store.kept, after, _PAGE)):
            for uid in page:
                row: SessionRow | None = await self._rows(partial(self._store.session_by_uid, uid))
                if row is not None and row.cleanup_due == -1:
                    await self._step(row, ("purge", [], row.last, False))
            after = page[-1]


def _acknowledged(store: Store, row: SessionRow) -> bool:
    """Whether every COMMITTED record on the live line belongs to an acknowledged trajectory (I14)."""
    facts = SessionFacts.FromString(row.facts)
    if facts.trajectory_turns != row.head:
        return False
    return all(trajectory.ack_ms for trajectory in store.session_trajectories(row.uid))
