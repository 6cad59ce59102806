"""Runs coroutines on an event loop in a thread of its own: what lets the blocking client use the async one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

T = TypeVar("T")
_LEAVE_SECONDS: Final = 5.0  # how long a call that was interrupted may take to end


class Bridge:
    """An event loop in a daemon thread. It does not survive a fork: a child process makes its own client."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="roost-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result. An interrupt (Ctrl-C) cancels it."""
        problem = None
        if self._closed:
            problem = "the Roost client is closed"
        elif os.getpid() != self._pid:
            problem = "a Roost client does not survive a fork: make a new one in the child process"
        elif threading.current_thread() is self._thread:
            problem = "the blocking Roost client was called from its own event loop: use AsyncClient there"
        if problem is not None:
            work.close()
            raise RuntimeError(problem)
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []  # the loop forgets what nobody else holds

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda task: _settle(future, task))

        def stop() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # the interrupt came before it was begun
                work.close()
                _cancelled(future)

        try:
            self._loop.call_soon_threadsafe(begin)
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the Roost client was closed while the call was under way") from None
        except BaseException:
            # An interrupt comes at any line above. The call ends before anything else is begun: an iterator that still
            # runs cannot be closed.
            if not future.done():
                self._loop.call_soon_threadsafe(stop)
                concurrent.futures.wait([future], timeout=_LEAVE_SECONDS)
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Iterate over an async iterator, one hand-over an item; leaving early ends it."""
        end = object()

        async def step() -> Any:
            return await anext(items, end)

        async def leave() -> None:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

        try:
            while (item := self.run(step())) is not end:
                yield item
        finally:
            if not self._closed:
                self.run(leave())

    def remaining(self, when: float) -> float:
        """Seconds from now until a time of the loop's clock."""
        return when - self._loop.time()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last`, then stop the thread. Closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            if os.getpid() == self._pid:
                try:
                    self.run(last())
                finally:
                    self._closed = True
                    self._loop.call_soon_threadsafe(self._loop.stop)
                    self._thread.join(timeout=5)
            self._closed = True


def _settle(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    """Give a future what a task came to."""
    if task.cancelled():
        _cancelled(future)
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _cancelled(future: concurrent.futures.Future[T]) -> None:
    if future.cancel():
        future.set_running_or_notify_cancel()  # else nobody who waits for it is told
