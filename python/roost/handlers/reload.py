"""The one reader thread: reads what the engine asks for (headers, sessions, ids), and pages for the cold RPCs.

Hot reads go first. A cold read is one page; between two pages the engine's reads are served again, so that a
long export delays no turn by more than one page. Results go to the event loop in one wake-up a round.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from roost.handlers.errors import Refused, failure, refused
from roost.handlers.measures import Measures
from roost.store.base import Store, StoreFailed

if TYPE_CHECKING:
    from roost._core import Engine

_IDLE_MS: Final = 500
COLD_A_ROUND: Final = 4  # cold pages answered with one wake-up of the loop while the engine asks for nothing

Answer = Any  # bytes, a Follow, None (a stream ended) or a Refusal
Job = tuple[Callable[[], Answer], "asyncio.Future[Answer]"]

log = structlog.get_logger("roost.reload")


Read = Callable[[Callable[[], Any]], Awaitable[Any]]  # `StoreReader.read`


async def read_one(read: Read, job: Callable[[], Any]) -> Any:
    """What one cold read finds, for the server's own work: where `read` answers a Refusal, that is raised (Refused)."""
    answer = await read(lambda: [job()])
    if type(answer) is not list:
        raise Refused(answer)
    return answer[0]


class StoreReader:
    """Serves reads on a thread of its own.

    `on_loop` schedules a call on the event loop from any thread; `drain`, run there, hands out the engine's finished
    tickets. `fail(message)` must not return: the store cannot be read. Hot reads are told to `measures`.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        on_loop: Callable[..., object],
        drain: Callable[[], None],
        fail: Callable[[str], None],
        measures: Measures | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._on_loop = on_loop
        self._drain = drain
        self._fail = fail
        self._measures = measures or Measures()
        self._reads = _reads(engine, store)
        self._jobs: deque[Job] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="roost-reader", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Cold jobs still queued are dropped: their calls are over."""
        self._stopping = True
        self._engine.wake_reader()
        self._thread.join()

    async def read(self, job: Callable[[], Answer]) -> Answer:
        """Run one cold read on the reader thread; called on the event loop. What it raises becomes a Refusal."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, future))
        self._engine.wake_reader()
        return await future

    def queued(self) -> int:
        """Cold reads that wait."""
        return len(self._jobs)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round()
        except BaseException as error:  # noqa: BLE001 - StoreFailed, a bug, a panic: nothing can be loaded any more
            self._fail(failure("store reader", error))

    def _round(self) -> None:
        """Serve what the engine asks for, then some cold pages, and wake the loop once."""
        completed = self._serve(0 if self._jobs else _IDLE_MS)
        answers: list[tuple[asyncio.Future[Answer], Answer]] = []
        for _ in range(COLD_A_ROUND):
            if not self._jobs:
                break
            job, future = self._jobs.popleft()
            if not future.cancelled():  # its caller is gone
                answers.append((future, self._answer(job)))
            if self._serve(0):
                completed = True
                break  # callers wait for that
        if completed or answers:
            self._on_loop(self._deliver, answers, completed)

    def _deliver(self, answers: list[tuple[asyncio.Future[Answer], Answer]], completed: bool) -> None:
        """On the event loop: end the futures of a round."""
        if completed:
            self._drain()
        for future, answer in answers:
            if not future.done():
                future.set_result(answer)

    def _serve(self, timeout_ms: int) -> bool:
        """Answer the engine's reads; True when it has finished tickets."""
        completed = False
        for effect in self._engine.next_effects(timeout_ms=timeout_ms):
            kind, number = effect[0], effect[1]
            try:
                completed |= self._load(kind, number, effect[2:])
            except StoreFailed:
                raise
            except Exception as error:
                # One session that cannot be read fails its own callers; the others go on.
                log.exception("load_failed", kind=kind)
                completed |= self._engine.load_failed(number, f"{type(error).__name__}")
        return completed

    def _load(self, kind: str, number: int, arguments: tuple[Any, ...]) -> bool:
        read, tell = self._reads[kind]
        began, began_ns = time.monotonic(), time.time_ns()
        try:
            found = read(*arguments)
        finally:
            self._measures.reads[kind].record(time.monotonic() - began)
            if self._measures.spans.on:
                # Before the engine is told: then the call goes on, and is over before it is said what it waited for.
                self._measures.spans.read(self._engine.read_for(number), kind, began_ns, time.time_ns())
        return tell(number, found)

    def _answer(self, job: Callable[[], Answer]) -> Answer:
        """Run a cold page. A bug in a handler fails its own call, without a word of content."""
        try:
            answer: Answer = job()
        except Refused as error:
            return error.refusal
        except StoreFailed:
            raise
        except Exception:
            log.exception("handler_failed")
            return refused(self._engine, "INTERNAL_ERROR", "the server failed to answer; see its log").refusal
        return answer


def _reads(engine: Engine, store: Store) -> dict[str, tuple[Callable[..., Any], Callable[[int, Any], bool]]]:
    """For each kind of read that the engine asks for: how the store is asked, and how the engine is told."""

    def trajectories(number: int, rows: Any) -> bool:
        found = [row and (row.tenant, row.root, row.root_session_id, int(row.ack_ms > 0)) for row in rows]
        return engine.trajectories_found(number, found)

    return {
        "session": (store.load_session, engine.session_loaded),
        "find": (store.find, engine.found),
        "read": (store.read_session, engine.session_read),
        "header": (store.load_header, lambda number, found: engine.header_loaded(number, *found)),
        "trajectories": (store.read_trajectories, trajectories),
        "stale": (store.stale, lambda number, found: engine.stale_found(number, found[0])),
        "family": (store.family, engine.family_read),
        "due": (store.due, lambda number, found: engine.due_found(number, *found)),
        "mail": (store.read_mail, engine.mail_read),
        "sent": (store.sent, engine.sent_found),
        "runnable": (store.runnable, lambda number, found: engine.runnable_found(number, *found)),
    }
