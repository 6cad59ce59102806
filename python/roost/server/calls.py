"""Counts the calls of each method: how many began, how they ended, and how long they took.

The door knows a call's begin and end; each method's handler is wrapped once, when it is registered, so that a call
costs two looks at the clock and three additions. Methods are those of the protos and codes those of gRPC: nothing that
a client sends can add to them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Final

import grpc

from roost.handlers.measures import Context, Histogram, Stream, Unary

# Seconds. Calls that wait (for a slot, for mail) and streams are long by intent.
SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def code_of(error: BaseException, context: Context) -> int:
    """The number of the status that a call ends with which this exception leaves."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        left = context.time_remaining()
        over = left is not None and left <= 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED
    else:
        code = context.code() or grpc.StatusCode.UNKNOWN
    number: int = code.value[0]
    return number


class Method:
    """The numbers of one method."""

    __slots__ = ("ended", "name", "seconds", "started")

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0
        self.ended = [0] * len(CODES)  # by number of the code
        self.seconds = Histogram(SECONDS)

    def end(self, code: int, seconds: float) -> None:
        """A call has ended."""
        self.ended[code] += 1
        self.seconds.record(seconds)


class Calls:
    """All methods, by path ("/roost.v1.TurnService/BeginTurn"). Runs on the event loop; any thread may read."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._methods = {path: Method(path.rpartition("/")[2]) for path in paths}
        if len({method.name for method in self._methods.values()}) != len(self._methods):
            raise ValueError("two services have a method of the same name")

    def methods(self) -> Iterable[Method]:
        """Every method, called or not."""
        return self._methods.values()

    def refused(self, path: str, code: grpc.StatusCode) -> None:
        """A call was refused before its handler began."""
        method = self._methods[path]
        method.started += 1
        method.end(code.value[0], 0.0)

    def unary(self, path: str, handler: Unary) -> Unary:
        """The handler, and each of its calls counted."""
        method, clock = self._methods[path], time.perf_counter

        async def handle(request: bytes, context: Context) -> bytes:
            method.started += 1
            began, code = clock(), 0
            try:
                return await handler(request, context)
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                method.end(code, clock() - began)

        return handle

    def stream(self, path: str, handler: Stream) -> Stream:
        """As `unary`, for a call that answers with a stream."""
        method, clock = self._methods[path], time.perf_counter

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes]:
            method.started += 1
            began, code = clock(), 0
            try:
                # Closed here, because what is left to the garbage collector counts as running until then.
                async with aclosing(handler(request, context)) as replies:
                    async for reply in replies:
                        yield reply
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                method.end(code, clock() - began)

        return handle
