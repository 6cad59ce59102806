"""The boot reap: at the start, a lease later, and so on; what nobody owns is ended, what cannot be is told (I20)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.drivers import DriverError, Item, Marker, Resource
from roost.drivers.reap import Ours
from roost.handlers import reaping
from roost.handlers.reaping import Reaper

OURS = Ours("roost", "1f0c77ab", 5)
LEASE = 60.0
PATIENCE = 20.0


def name(n: int) -> str:
    return str(Marker("roost", OURS.store_id, 3, bytes(16), n))


class World:
    """Engine and store in one, and a machine with things on it."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.owned: set[str] = set()
        self.there: set[Item] = set()
        self.stuck: set[Item] = set()
        self.sweeps = 0
        self.unlistable = False
        self.unreadable = False
        self.attaches: str | None = None  # what is attached and made between the inventory and the read of the owners

    def service_ms(self) -> int:
        return self.now_ms

    def known_resources(self, names: Sequence[str]) -> set[str]:
        return self.owned & set(names)

    async def read(self, job: Callable[[], Any]) -> Any:
        return (13, "INTERNAL_ERROR", b"") if self.unreadable else job()

    async def inventory(self) -> list[Item]:
        self.sweeps += 1
        if self.unlistable:
            raise DriverError("no list", retryable=True)
        listed = sorted(self.there, key=lambda item: item.name)
        if self.attaches is not None:
            self.owned.add(self.attaches)
            self.there.add(Item(self.attaches, "1"))
        return listed

    async def end(self, item: Item) -> None:
        assert item.name not in self.owned, "I20"
        if item in self.stuck:
            raise DriverError("it does not end", retryable=True)
        self.there.discard(item)

    async def release(self, resource: Resource) -> None:
        raise AssertionError("a sweep ends items")

    async def close(self) -> None:
        pass

    async def swept(self, times: int) -> None:
        """Until so many sweeps are over."""
        async with asyncio.timeout(PATIENCE):
            while self.sweeps < times:
                await asyncio.sleep(0)
            for _ in range(20):  # what follows the inventory waits for nothing
                await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaping, "_POLL_SECONDS", 0)


@asynccontextmanager
async def running(*worlds: World) -> Any:
    """A reaper at work, over drivers "0", "1", ..; its gauges."""
    engine: Any = worlds[0]
    gauges: dict[str, int] = {}
    listers = {str(n): world for n, world in enumerate(worlds)}
    reaper = Reaper(engine, engine, worlds[0].read, listers, OURS, lambda: LEASE, gauges)
    task = asyncio.create_task(reaper.run())
    try:
        yield gauges
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def test_i20_the_second_sweep_a_lease_later_ends_orphans_and_nothing_else() -> None:
    world = World()
    kept = {Item(name(1), "1"), Item("someone's", "2")}
    world.there = kept | {Item(name(2), "3"), Item(name(3), "4")}
    world.owned = {name(1)}
    async with running(world) as gauges:
        assert gauges == {"orphans_found": 0, "orphans_ended": 0}
        await world.swept(1)
        assert gauges == {"orphans_found": 2, "orphans_ended": 0}
        world.now_ms += 59_999
        await world.swept(1)
        assert (world.sweeps, len(world.there)) == (1, 4)
        world.attaches = name(9)
        world.now_ms += 1
        await world.swept(2)
        assert world.there == kept | {Item(name(9), "1")}
        assert gauges == {"orphans_found": 2, "orphans_ended": 2}
        world.now_ms += 60_000
        await world.swept(3)
        assert gauges == {"orphans_found": 0, "orphans_ended": 2}


async def test_what_does_not_end_is_tried_again_and_a_failed_list_ends_nothing() -> None:
    world = World()
    stuck, other = Item(name(1), "1"), Item(name(2), "2")
    world.there, world.stuck = {stuck}, {stuck}
    async with running(world) as gauges:
        await world.swept(1)
        world.now_ms += 60_000
        await world.swept(2)
        assert (world.there, gauges["orphans_ended"]) == ({stuck}, 0)
        world.there.add(other)
        for failure in ("unlistable", "unreadable"):
            setattr(world, failure, True)
            world.now_ms += 60_000
            await world.swept(world.sweeps + 1)
            setattr(world, failure, False)
            assert world.there == {stuck, other}
        world.stuck.clear()
        world.now_ms += 60_000
        await world.swept(5)
        assert world.there == {other}  # what was condemned is; the other was first seen now
        world.now_ms += 60_000
        await world.swept(6)
        assert (world.there, gauges["orphans_ended"]) == (set(), 2)


async def test_drivers_are_swept_apart() -> None:
    one, two = World(), World()
    one.there, two.there = {Item(name(1), "1")}, {Item(name(2), "1")}

    async def hang() -> list[Item]:
        await asyncio.Event().wait()
        return []

    two.inventory = hang  # type: ignore[method-assign]
    async with running(one, two) as gauges:
        await one.swept(1)
        one.now_ms += 60_000
        await one.swept(2)
        assert one.there == set()
        assert gauges == {"orphans_found": 1, "orphans_ended": 1}


async def test_without_a_driver_nothing_is_swept() -> None:
    world = World()
    reader: Any = world
    await Reaper(reader, reader, world.read, {}, OURS, lambda: LEASE, {}).run()
