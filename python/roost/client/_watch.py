"""Streams that never end by themselves: opened again whenever they break."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc

from roost.errors import RoostError, ShuttingDown
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from roost.client._retry import RetryPolicy

log = logging.getLogger("roost.client")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Resync:
    """What has happened before this is not told: read with `list_sessions` what there is. The first thing of every
    watch, and where events were lost: the server was started anew, or this reader was too slow."""


SessionNews = sessions.SessionEvent | Resync
OwnerEvent = turns.Interrupt | turns.OwnedSessionClosed | turns.LeaseLost | turns.MailWaiting | turns.Release


async def reopened(
    stream: Callable[[], AsyncIterator[Answer]], retry: RetryPolicy, what: str
) -> AsyncIterator[tuple[int, Answer]]:
    """The answers of a stream that is opened again when it breaks or ends, each with how often that was. Raises what
    says something about the request, and with retries off every break."""
    clock = asyncio.get_running_loop().time
    times = breaks = 0
    while True:
        opened, worked = clock(), False
        try:
            async for answer in stream():
                worked = True
                yield times, answer
            error: RoostError = ShuttingDown("the server ended the stream", code=grpc.StatusCode.UNAVAILABLE)
        except RoostError as failed:
            error = failed
        if worked or clock() - opened > retry.maximum:
            breaks = 0
        delay = retry.delay(error, breaks, math.inf)
        if delay is None:
            raise error
        log.info("watching %s: the stream ended (%s); it is opened again", what, error)
        breaks += 1
        times += 1
        await asyncio.sleep(delay)
