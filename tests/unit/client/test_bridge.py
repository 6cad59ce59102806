"""Ctrl-C in the blocking client: wherever it comes, what was under way has ended, and the client is good as before."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import pytest

from roost.client import _bridge
from roost.client._bridge import Bridge


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    async def last() -> None:
        pass

    made = Bridge()
    yield made
    made.close(last)


class Interrupts:
    """Raises KeyboardInterrupt at the n-th line that `Bridge.run` comes to, once."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.came = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not Bridge.run.__code__:
            return None
        return self.line

    def line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not self.came:
            self.left -= 1
            if self.left < 0:
                self.came = True
                raise KeyboardInterrupt
        return self.line


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # the line before it is handed over
def test_an_interrupt_at_any_line_leaves_an_iterator_that_can_be_closed(bridge: Bridge) -> None:
    line = 0
    while True:
        ended = []

        async def numbers(ended: list[bool] = ended) -> AsyncIterator[int]:
            try:
                for n in range(2):
                    await asyncio.sleep(0)
                    yield n
            finally:
                ended.append(True)

        interrupts = Interrupts(line)
        seen = []
        sys.settrace(interrupts)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                seen.extend(bridge.iterate(numbers()))
        finally:
            sys.settrace(None)
        assert ended or interrupts.came, f"line {line}"
        assert bridge.run(answer()) == 42
        if not interrupts.came:
            break
        line += 1
    assert seen == [0, 1]
    assert line > 20


def test_an_interrupted_call_has_ended_when_the_caller_goes_on(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, steps = threading.Event(), []

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10_000):
                await asyncio.sleep(0)
            steps.append("ended")

    def interrupted(*_: Any) -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(_bridge.concurrent.futures.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bridge.run(slow())
    assert steps == ["ended"]
    monkeypatch.undo()
    assert bridge.run(answer()) == 42


async def answer() -> int:
    return 42
