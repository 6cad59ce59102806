"""Event-loop delay: by how much later than asked the loop comes to a timer. What one callback takes too long, every
call waits for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from roost.handlers.measures import Histogram

_EVERY: Final = 0.02  # seconds between two samples
_KEPT: Final = 3_000  # samples: the last minute
_TOLD: Final = 50  # samples between two times that the gauges are set


class LoopDelay:
    """Keeps the gauges "loop_delay_p50_us", "loop_delay_p99_us" and "loop_delay_max_us" of the last minute, in
    microseconds, and a histogram of all samples, in seconds."""

    def __init__(self, gauges: dict[str, int], histogram: Histogram) -> None:
        self._gauges = gauges
        self._histogram = histogram
        self._samples: deque[float] = deque(maxlen=_KEPT)
        self._since_told = 0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + _EVERY  # the loop's own clock counts milliseconds
            await asyncio.sleep(_EVERY)
            late = max(0.0, time.monotonic() - due)
            self._samples.append(late)
            self._histogram.record(late)
            self._since_told += 1
            if self._since_told >= _TOLD:
                self._since_told = 0
                self._tell()

    def _tell(self) -> None:
        samples = sorted(self._samples)
        for name, share in (("p50", 0.50), ("p99", 0.99), ("max", 1.0)):
            at = min(len(samples) - 1, int(share * len(samples)))
            self._gauges[f"loop_delay_{name}_us"] = int(samples[at] * 1e6)
