"""The open loop: work starts when it is due, whether or not earlier work has ended.

Latency counts from the *intended* start, so that a server (or a generator) that falls behind shows it. Nothing is
skipped in silence: an arrival that starts late is counted as late, one for which there is no room as dropped.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

LATE_AFTER = 0.010  # seconds; less is the event loop's own grain


def constant(rate: float, duration: float) -> Iterator[float]:
    """Intended starts, in seconds from the beginning: evenly spaced, `rate` a second."""
    count = 0
    while (at := count / rate) < duration:
        yield at
        count += 1


def poisson(rate: float, duration: float, seed: int) -> Iterator[float]:
    """Intended starts of a Poisson process: what many independent callers look like."""
    rng = random.Random(seed)
    at = rng.expovariate(rate)
    while at < duration:
        yield at
        at += rng.expovariate(rate)


@dataclass
class Arrivals:
    """What became of the arrivals."""

    offered: int = 0
    started: int = 0
    late: int = 0
    dropped: int = 0
    latest: float = 0.0  # seconds by which the latest start was late


class OpenLoop:
    """Starts work at its intended times. `room()` says whether one more may start now; `clock` and `sleep` are
    arguments so that tests need no time."""

    def __init__(
        self,
        room: Callable[[], bool],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        late_after: float = LATE_AFTER,
    ) -> None:
        self._room = room
        self._clock = clock
        self._sleep = sleep
        self._late_after = late_after

    async def run(
        self,
        starts: Iterable[float],
        launch: Callable[[float], None],
        counts: Callable[[float], Arrivals],
        stop: Callable[[], bool] = lambda: False,
    ) -> float:
        """Call `launch(intended)` for each start (seconds from now on), `intended` being a time of the clock.
        `counts(at)` is where an arrival is counted (warm-up apart). Returns the time at which it began."""
        began = self._clock()
        for at in starts:
            intended = began + at
            while (pause := intended - self._clock()) > 0 and not stop():
                await self._sleep(min(pause, 0.2))  # in steps: an interrupt must not wait for a rare arrival
            if stop():
                break
            arrivals = counts(at)
            arrivals.offered += 1
            lateness = self._clock() - intended
            arrivals.latest = max(arrivals.latest, lateness)
            if lateness > self._late_after:
                arrivals.late += 1
            if not self._room():
                arrivals.dropped += 1
                if lateness > self._late_after:
                    await self._sleep(0)  # behind and full: let what runs end
                continue
            arrivals.started += 1
            launch(intended)
        return began
