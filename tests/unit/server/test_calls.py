"""Calls are counted by the status that their callers got: over a real grpc.aio server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from roost.handlers.measures import Histogram
from roost.server.calls import CODES, SECONDS, Calls, Method

PATHS = [f"/test.Service/{name}" for name in ("Answers", "Refuses", "Fails", "Hangs", "Streams", "StreamHangs")]


async def answers(_request: bytes, _context: Any) -> bytes:
    return b"reply"


async def refuses(_request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
    return b""


async def fails(_request: bytes, _context: Any) -> bytes:
    raise ValueError


async def hangs(_request: bytes, _context: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


async def streams(request: bytes, context: Any) -> AsyncGenerator[bytes]:
    yield b"1"
    yield b"2"
    if request:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no")


async def stream_hangs(_request: bytes, _context: Any) -> AsyncGenerator[bytes]:
    yield b"1"
    await asyncio.Event().wait()


@pytest.fixture
async def served() -> AsyncIterator[tuple[Calls, grpc.aio.Channel]]:
    calls = Calls(PATHS)
    unary = dict(zip(PATHS, (answers, refuses, fails, hangs), strict=False))
    handlers = {
        path.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(calls.unary(path, handler))
        for path, handler in unary.items()
    }
    for path, stream in zip(PATHS[4:], (streams, stream_hangs), strict=True):
        told = grpc.unary_stream_rpc_method_handler(calls.stream(path, stream))
        handlers[path.rpartition("/")[2]] = told
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield calls, channel
    await server.stop(None)


def told(calls: Calls, name: str) -> tuple[int, dict[str, int]]:
    """How many calls of a method began, and how they ended."""
    method = next(method for method in calls.methods() if method.name == name)
    assert sum(method.seconds.counts) == sum(method.ended)
    return method.started, {CODES[number]: count for number, count in enumerate(method.ended) if count}


async def until(true: Any) -> None:
    while not true():
        await asyncio.sleep(0)


async def test_a_call_counts_by_its_code(served: Any) -> None:
    calls, channel = served
    assert await channel.unary_unary(PATHS[0])(b"") == b"reply"
    for path, code in ((PATHS[1], grpc.StatusCode.RESOURCE_EXHAUSTED), (PATHS[2], grpc.StatusCode.UNKNOWN)):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(path)(b"")
        assert error.value.code() is code
    assert told(calls, "Answers") == (1, {"OK": 1})
    assert told(calls, "Refuses") == (1, {"RESOURCE_EXHAUSTED": 1})
    assert told(calls, "Fails") == (1, {"UNKNOWN": 1})
    assert told(calls, "Hangs") == (0, {})


async def test_one_that_is_given_up_counts_as_cancelled_or_as_late(served: Any) -> None:
    calls, channel = served
    call = channel.unary_unary(PATHS[3])(b"")
    await until(lambda: told(calls, "Hangs")[0])
    assert told(calls, "Hangs") == (1, {})
    call.cancel()
    await until(lambda: told(calls, "Hangs")[1])
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary(PATHS[3])(b"", timeout=0.1)
    await until(lambda: sum(told(calls, "Hangs")[1].values()) == 2)
    assert told(calls, "Hangs") == (2, {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1})


async def test_a_stream_counts_once_whatever_it_sends(served: Any) -> None:
    calls, channel = served
    assert [part async for part in channel.unary_stream(PATHS[4])(b"")] == [b"1", b"2"]
    with pytest.raises(grpc.aio.AioRpcError):
        assert not [part async for part in channel.unary_stream(PATHS[4])(b"x")]
    assert told(calls, "Streams") == (2, {"OK": 1, "NOT_FOUND": 1})
    call = channel.unary_stream(PATHS[5])(b"")
    assert await call.read() == b"1"
    call.cancel()
    await until(lambda: told(calls, "StreamHangs")[1])
    assert told(calls, "StreamHangs") == (1, {"CANCELLED": 1})


async def test_a_stream_that_is_dropped_is_closed_at_once() -> None:
    closed = []

    async def stream(_request: bytes, _context: Any) -> AsyncGenerator[bytes]:
        try:
            yield b"1"
        finally:
            closed.append(True)

    calls = Calls(PATHS)
    dropped = calls.stream(PATHS[4], stream)(b"", SimpleNamespace(time_remaining=lambda: None))
    assert await anext(dropped) == b"1"
    await dropped.aclose()
    assert closed == [True]
    assert told(calls, "Streams") == (1, {"CANCELLED": 1})


def test_two_methods_of_one_name_would_be_one_series() -> None:
    with pytest.raises(ValueError, match="same name"):
        Calls(["/a.A/Get", "/b.B/Get"])


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.record(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 6.6)
    method = Method("x")
    method.end(0, 1e9)
    assert method.seconds.counts[len(SECONDS)] == 1
