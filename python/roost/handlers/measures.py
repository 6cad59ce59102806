"""What is measured in Python beside the engine's numbers: how long reads, appends, dumps and releases take, and how
late the event loop is. What the engine measures and the calls are elsewhere (`Engine.distributions`, `server.calls`).

Labels are fixed here, before anything is measured: nothing that a client sends can add to them, and no id gets in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

Context = Any  # grpc.aio.ServicerContext of bytes
# How the calls of a method are answered.
Unary = Callable[[bytes, Context], Awaitable[bytes]]
Stream = Callable[[bytes, Context], AsyncGenerator[bytes]]

READS: Final = (
    "due",
    "family",
    "find",
    "header",
    "mail",
    "read",
    "runnable",
    "sent",
    "session",
    "stale",
    "trajectories",
)
DRIVERS: Final = ("http", "process", "tmux")
# Seconds.
_SHORT: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LONG: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
_DELAYS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Counts of values by the first bound that is not below them; the last count is of those above all. One thread
    writes; any may read, and may see a value in one of the two numbers a moment before it is in the other."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def record(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Spans:
    """What traces are told of the server's work beside its calls. This one tells nobody."""

    on: bool = False

    def unary(self, _path: str, handler: Unary) -> Unary:
        """The handler of a method, with a span around each call."""
        return handler

    def stream(self, _path: str, handler: Stream) -> Stream:
        """As `unary`, for one that answers with a stream."""
        return handler

    def read(self, ticket: int | None, kind: str, began_ns: int, ended_ns: int) -> None:
        """A read for the call with this ticket. Called on the reader thread, before the engine has the answer."""

    def dump(self, names: Sequence[str], began_ns: int, ended_ns: int, done: bool) -> None:
        """A dump was tried. `names`: of the dumps of the session and of those above it that the same close ended, the
        session's first."""

    def waits(self, ticket: int) -> None:
        """The call that runs waits for this ticket. Called on the event loop, as what follows."""

    def left(self, ticket: int) -> None:
        """It does not any more."""

    def settle(self) -> None:
        """The tickets that ended are about to be handed out."""


class Measures:
    """The histograms, by who writes them."""

    def __init__(self) -> None:
        self.spans = Spans()
        # The reader thread.
        self.reads = {kind: Histogram(_SHORT) for kind in READS}
        # The writer thread.
        self.appends = Histogram(_SHORT)
        # The event loop. Results: whether it was done.
        self.dumps = {result: Histogram(_LONG) for result in (True, False)}
        self.dump_bytes = 0
        self.releases = {(kind, result): Histogram(_LONG) for kind in DRIVERS for result in (True, False)}
        self.loop_delay = Histogram(_DELAYS)

    def released(self, kind: str, done: bool, seconds: float) -> None:
        """A driver has tried to release a resource. Kinds without one here are tried by nobody."""
        told = self.releases.get((kind, done))
        if told is not None:
            told.record(seconds)
