"""The release of resources by drivers: what is due is ended outside first and journaled then, until it is gone.

The store is the list of what is to be done: each row says when it is to be tried next. So nothing is queued in memory,
and a start goes on where the last server was killed; a release that was done and not journaled is done again, which
drivers take for a success. Runs on the event loop; reads go to the reader thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from roost._core import failpoint
from roost.drivers import Driver, DriverError, Resource
from roost.drivers.backoff import Backoff
from roost.drivers.base import within
from roost.handlers.measures import Measures
from roost.handlers.reload import Read, read_one
from roost.store.base import DueResource, Store
from roost.v1.resource_service_pb2 import ResourceKind

if TYPE_CHECKING:
    from roost._core import Engine

LOOK_SECONDS: Final = 1.0  # between two looks at what is due while nothing else asks for one
_POLL_SECONDS: Final = 0.1
_REST: Final = 5  # times as long as a look took it is rested: one over a long list must not take the reader for itself
_PAGE: Final = 128  # rows of what is due that one read takes
AT_ONCE: Final = 16
_LATE: Final = 5.0  # seconds that a driver may be over its own time limit

Step = tuple[Any, ...]

log = structlog.get_logger("roost.releases")


class Releaser:
    """Releases what is due.

    `read` runs a job on the reader thread; `journal` has the engine journal what came of a release and says whether it
    did; `drivers` by kind, which share the places of AT_ONCE, so that one that hangs holds up no other; `limit` is the
    time in seconds that one release gets. Tries are told to `measures`.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        read: Read,
        journal: Callable[[str, Step], Awaitable[bool]],
        drivers: Mapping[int, Driver],
        limit: float,
        backoff: Backoff | None = None,
        measures: Measures | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._rows = partial(read_one, read)
        self._journal = journal
        self._drivers = drivers
        self._limit = limit + _LATE
        self._backoff = backoff or Backoff()
        self._measures = measures or Measures()
        self._share = AT_ONCE // max(1, len(drivers))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[int] = Counter()  # releases that run, by kind
        self._over: set[str] = set()  # releases that ended since the page was asked for that is looked at
        self._room = False  # one has ended: another may begin

    async def run(self) -> None:
        """Work until cancelled; what runs then is tried again after the next start."""
        seen, looked, rest = -1, 0.0, 0.0
        try:
            while True:
                count, since = self._engine.releases_count(), time.monotonic() - looked
                if (self._room or count != seen or since >= LOOK_SECONDS) and since >= rest:
                    seen, self._room = count, False
                    began = time.monotonic()
                    try:
                        await self.look()
                    except Exception:
                        log.exception("releases_failed")
                    looked = time.monotonic()
                    rest = _REST * (looked - began)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Begin what is due now, as much of it as there is room for."""
        after: tuple[int, str] | None = None
        until = self._engine.wall_ms()
        while not self._full():
            self._over.clear()
            page: list[DueResource] = await self._rows(partial(self._store.due_resources, until, after, _PAGE))
            for due in page:
                # The page may be older than the end of a release.
                if due.name in self._running or due.name in self._over or self._busy[due.kind] >= self._share:
                    continue
                self._busy[due.kind] += 1
                task = self._running[due.name] = asyncio.create_task(self._release(due))
                task.add_done_callback(partial(self._ended, due))
            if len(page) < _PAGE:
                return
            after = (page[-1].due, page[-1].name)

    def _full(self) -> bool:
        return bool(self._drivers) and all(self._busy[kind] >= self._share for kind in self._drivers)

    def _ended(self, due: DueResource, _task: asyncio.Task[None]) -> None:
        del self._running[due.name]
        self._over.add(due.name)
        self._busy[due.kind] -= 1
        self._room = True

    async def _release(self, due: DueResource) -> None:
        """Release one, and have it said what came of it."""
        try:
            step = await self._try(due)
            failpoint("release.done")
            done = await self._journal(due.name, step)
            failpoint("release.after")
        except Exception:
            log.exception("release_failed", session=due.session_id, resource=due.name)
            done = False
        if not done:
            # It was not written down, or is another's business by now: at once again would be in vain.
            await asyncio.sleep(LOOK_SECONDS)

    async def _try(self, due: DueResource) -> Step:
        kind = ResourceKind.Name(due.kind).removeprefix("RESOURCE_KIND_")
        about = {"session": due.session_id, "resource": due.name, "kind": kind, "attempts": due.attempts + 1}
        began = time.monotonic()
        retryable = True
        try:
            driver = self._drivers.get(due.kind)
            if driver is None:
                raise DriverError(f"the server has no driver for {kind} by now: set it up as it was", retryable=False)
            failpoint("release.before")
            work = driver.release(Resource(due.name, due.session_id, due.handle))
            await within(self._limit, f"the release of {due.name}", work)
        except DriverError as error:
            reason, retryable = str(error), error.retryable
        except Exception as error:
            log.exception("release_error", **about)
            reason = f"internal: {type(error).__name__}"  # its text could quote what it was given (I25)
        else:
            log.info("resource_released", **about, release_ms=round((time.monotonic() - began) * 1_000))
            self._measures.released(kind.lower(), True, time.monotonic() - began)
            return ("released",)
        self._measures.released(kind.lower(), False, time.monotonic() - began)
        seconds = self._backoff.delay(due.attempts) if retryable else self._backoff.maximum
        log.warning("release_failed", **about, reason=reason, retry_ms=int(seconds * 1_000))
        return ("failed", reason, int(seconds * 1_000))
