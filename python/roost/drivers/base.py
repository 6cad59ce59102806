"""What Roost asks of a driver: end one resource, and, where the outside can be asked, say what is there.

A driver decides nothing and remembers nothing. Which resource is to end is the engine's business, when to try again the
caller's (`backoff`), which of the things found are orphans that of `reap`. Every call is bounded in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class DriverError(Exception):
    """A driver could not do what it was asked. The message is one sentence for a person; it holds no secret.

    `retryable`: the same call may succeed later. Otherwise something must be set right first: a configuration, a
    missing program, rights.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class BadOption(ValueError):
    """A driver cannot be made with this argument of its constructor (`option`). The message is one sentence."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource to end. `name` is its marker's, `session_id` the client's own id of its session.

    `handle` is what its host said about it once it was there, in the words of its driver; empty if the host never did.
    """

    name: str
    session_id: str
    handle: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Something that an inventory found.

    `instance` tells it from everything else that ever bore its name: what was replaced by another of the same name
    is not the same item.
    """

    name: str
    instance: str


class Driver(Protocol):
    """Ends resources of one kind."""

    async def release(self, resource: Resource) -> None:
        """End it. Returns once it is gone; one that is gone already, or never was, is a success. DriverError."""

    async def close(self) -> None:
        """Give back what the driver itself holds open."""


class Lister(Driver, Protocol):
    """A driver that can also say what is there."""

    async def inventory(self) -> list[Item]:
        """Everything of this kind that it can see, whoever owns it. DriverError if the list may not be whole."""

    async def end(self, item: Item) -> None:
        """End exactly this item and no successor of the same name; one that is gone is a success. DriverError."""


async def within(seconds: float, doing: str, work: Awaitable[T]) -> T:
    """Await `work`, for at most `seconds`; DriverError (retryable) says that `doing` took longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise DriverError(f"{doing} took longer than {seconds:g} s", retryable=True) from None
