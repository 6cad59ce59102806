"""After how long a failed release is tried again. Pure: randomness is an argument, and there is no clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Times in seconds. The wait before repeat n (from 0) is `initial * multiplier**n`, at most `maximum`, of which a
    random part of up to `jitter` (0..1) is taken off, so that what failed together is not tried again together.
    """

    initial: float = 1.0
    multiplier: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum and self.multiplier >= 1 and 0 <= self.jitter < 1):
            raise ValueError("a back-off needs 0 < initial <= maximum, multiplier >= 1 and 0 <= jitter < 1")

    def delay(self, repeat: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds to wait before repeat number `repeat`. `rng` gives a number in [0, 1)."""
        try:
            wait = min(self.maximum, self.initial * self.multiplier**repeat)
        except OverflowError:
            wait = self.maximum
        return wait * (1.0 - self.jitter * rng())
