"""An engine that panics is left half-changed: whichever of its methods did, the process must end and not serve on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from roost.handlers.stats import About
from roost.server.transport import Transport


class Panic(BaseException):
    """As a panic of the engine reaches Python: no Exception, so that nobody catches it by accident."""


class Ended(BaseException):
    """Stands for the end of the process."""


class FakeEngine:
    """Panics in one method; finishes the tickets that a test tells it."""

    def __init__(self, panics: str) -> None:
        self.panics = panics
        self.finished: list[tuple[int, bytes]] = []

    def _do(self, name: str) -> None:
        if self.panics == name:
            raise Panic("secret content")

    def completed(self) -> list[tuple[int, bytes]]:
        self._do("completed")
        finished, self.finished = self.finished, []
        return finished

    def cancel(self, ticket: int) -> None:
        self._do("cancel")

    def undelivered(self, method: int, request: bytes, reply: bytes, authorization: str, tenant: str) -> None:
        self._do("undelivered")

    def ready_sequence(self) -> int:
        return 0

    def watch_count(self) -> int:
        return 0

    def service_ms(self) -> int:
        return 0

    def releases_count(self) -> int:
        return 0

    def tick(self) -> int:
        self._do("tick")
        return 100

    def call(self, method: int, request: bytes, authorization: str, tenant: str, connection: int) -> int:
        self._do("call")
        return 1


def guarded(panics: str) -> tuple[Any, Any, list[str]]:
    """A transport on an engine that panics there, the engine, and what ended the process."""
    failures: list[str] = []

    def fail(message: str) -> None:
        failures.append(message)
        raise Ended

    engine: Any = FakeEngine(panics)
    store: Any = None
    reconcile: Any = None
    return Transport(engine, store, 1 << 20, About(0.0), reconcile, fail), engine, failures


@pytest.mark.parametrize("method", ["tick", "completed"])
async def test_a_panic_in_the_tick_ends_the_process(method: str) -> None:
    transport, _, failures = guarded(method)
    with pytest.raises(Ended):
        transport.start_ticking()
    assert failures == ["the engine failed: Panic"]


async def test_a_panic_while_answers_are_handed_out_ends_the_process() -> None:
    transport, _, failures = guarded("completed")
    with pytest.raises(Ended):
        transport.drain()
    assert failures == ["the engine failed: Panic"]


async def test_a_panic_in_a_call_ends_the_process() -> None:
    transport, _, failures = guarded("call")
    with pytest.raises(Ended):
        transport._call(1, b"", ("", ""), 0)
    assert failures == ["the engine failed: Panic"]


@pytest.mark.parametrize("answered", [False, True], ids=["cancel", "undelivered"])
async def test_a_panic_while_a_call_is_given_up_ends_the_process(answered: bool) -> None:
    transport, engine, failures = guarded("undelivered" if answered else "cancel")
    over: list[BaseException] = []

    async def wait() -> None:
        try:
            await transport._wait(1, b"", ("", ""), 7)
        except Ended as error:
            over.append(error)

    call = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    if answered:
        engine.finished.append((7, b"reply"))
        transport.drain()
    call.cancel()
    await call
    assert len(over) == 1
    assert failures == ["the engine failed: Panic"]
