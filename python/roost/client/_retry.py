"""When a failed call is worth repeating, and after how long. Pure: clock and randomness are arguments.

Only failures that say nothing about the request are repeated: UNAVAILABLE, a connection that broke, an attempt that
ran into its own time limit while the call still had time. Whether a repeat is *safe* is the caller's knowledge: reads,
renewals, and mutations that carry a request_id or a lease.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.errors import RoostError

# How grpc words a stream that died under a call; the code beside it is not always UNAVAILABLE.
_BROKEN_STREAM = ("stream removed", "rst_stream", "socket closed", "connection reset", "goaway", "broken pipe", "eof")

# The server is behind and does not say so with UNAVAILABLE, because other work goes on.
MOMENTARY = frozenset({"OVERLOADED", "JOURNAL_BEHIND"})


@dataclass(frozen=True)
class RetryPolicy:
    """How calls are repeated. Times in seconds.

    The wait before repeat n is `initial * multiplier**n`, at most `maximum`, of which a random part of up to `jitter`
    (0..1) is taken off; never less than what the server's RetryInfo asks for. Repeats stop when the call's deadline
    would pass. `attempt_timeout` bounds one attempt, so that a connection that went silent leaves time for another;
    it does not apply to calls that wait for a slot.
    """

    initial: float = 0.1
    multiplier: float = 1.7
    maximum: float = 3.0
    jitter: float = 0.4
    attempt_timeout: float = 10.0
    enabled: bool = True

    def delay(
        self, error: RoostError, attempt: int, remaining: float, rng: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds to wait before repeat number `attempt` (from 0); None: raise the error.

        `remaining` is the time left until the call's deadline.
        """
        if not self.enabled or not is_transient(error):
            return None
        backoff = min(self.maximum, self.initial * self.multiplier ** min(attempt, 64))
        wait = backoff * (1.0 - self.jitter * rng())
        if error.retry_delay is not None:
            # Jitter on top, never below: all clients of a restarted server were told the same delay.
            wait = max(wait, error.retry_delay * (1.0 + self.jitter * rng()))
        return wait if wait < remaining else None


NO_RETRY = RetryPolicy(enabled=False)


def is_transient(error: RoostError) -> bool:
    """True if the failure is the connection's or the server's momentary state, not an answer about the request."""
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return True
    if error.reason:
        return error.reason in MOMENTARY  # else Roost answered: that is the answer
    if error.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        # CANCELLED without ErrorInfo is a server that went down under the call, or that had too many at its door; a
        # local cancellation never gets here.
        return True
    if error.code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        text = error.message.lower()
        return any(mark in text for mark in _BROKEN_STREAM)
    return False
