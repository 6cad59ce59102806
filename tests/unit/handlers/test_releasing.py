"""Releases by drivers: each is tried until it is done, one at a time, and none holds up another (I12, I25)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.drivers import DriverError, Resource
from roost.drivers.backoff import Backoff
from roost.handlers import releasing
from roost.handlers.releasing import AT_ONCE, Releaser, Step
from roost.store.base import DueResource

HTTP, PROCESS, TMUX = 2, 3, 4
PATIENCE = 20.0  # seconds
SECRET = "handle-that-nobody-may-see"


class World:
    """Engine, store and journal in one: rows that are due, and what came of them."""

    def __init__(self) -> None:
        self.now = 1_000
        self.count = 0
        self.rows: dict[str, DueResource] = {}
        self.steps: list[tuple[str, Step]] = []
        self.refuses = 0  # steps that are not written down
        self.reads = 0
        self.broken = False
        self.between: Callable[[], Awaitable[None]] | None = None  # what happens between a read and its answer

    def add(self, *names: str, kind: int = HTTP, due: int = 1) -> None:
        for name in names:
            self.rows[name] = DueResource(name, b"", b"", "t", f"session-of-{name}", kind, SECRET, 0, due)
        self.count += 1

    # -- the engine

    def releases_count(self) -> int:
        return self.count

    def wall_ms(self) -> int:
        return self.now

    async def journal(self, name: str, step: Step) -> bool:
        await asyncio.sleep(0)
        if self.refuses:
            self.refuses -= 1
            return False
        self.steps.append((name, step))
        if name not in self.rows:
            return False
        if step[0] == "released":
            del self.rows[name]
        else:
            row = self.rows[name]
            self.rows[name] = row._replace(attempts=row.attempts + 1, due=self.now + step[2])
        return True

    # -- the store

    def due_resources(self, until_ms: int, after: tuple[int, str] | None, limit: int) -> list[DueResource]:
        self.reads += 1
        rows = sorted(self.rows.values(), key=lambda row: (row.due, row.name))
        return [row for row in rows if row.due <= until_ms and (row.due, row.name) > (after or (0, ""))][:limit]

    async def read(self, job: Callable[[], Any]) -> Any:
        if self.broken:
            return (13, "INTERNAL_ERROR", b"")
        answer = job()
        await asyncio.sleep(0)
        if self.between is not None:
            await self.between()
        return answer

    def released(self) -> list[str]:
        return [name for name, step in self.steps if step == ("released",)]

    def failures(self, name: str) -> list[Step]:
        return [step for of, step in self.steps if of == name and step[0] == "failed"]


class FakeDriver:
    """Releases what it is asked to, fails or hangs where it is told to, and sees that no name is released twice at
    once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[Resource] = []
        self.now: set[str] = set()
        self.most = 0
        self.fails: dict[str, list[Exception]] = {}
        self.hangs: set[str] = set()
        self.hold: asyncio.Event | None = None

    async def release(self, resource: Resource) -> None:
        assert resource.name not in self.now, "released twice at once"
        self.calls.append(resource.name)
        self.seen.append(resource)
        self.now.add(resource.name)
        self.most = max(self.most, len(self.now))
        try:
            await asyncio.sleep(0)
            if resource.name in self.hangs:
                await asyncio.Event().wait()
            if self.hold is not None:
                await self.hold.wait()
            if self.fails.get(resource.name):
                raise self.fails[resource.name].pop(0)
        finally:
            self.now.discard(resource.name)

    async def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other without a pause, and what is late is so at once."""
    monkeypatch.setattr(releasing, "_POLL_SECONDS", 0)
    monkeypatch.setattr(releasing, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(releasing, "_LATE", 0.0)


@asynccontextmanager
async def running(world: World, drivers: dict[int, Any], limit: float = PATIENCE) -> Any:
    """A Releaser at work."""
    engine: Any = world
    backoff = Backoff(initial=1.0, maximum=300.0, jitter=0.0)
    releaser = Releaser(engine, engine, world.read, world.journal, drivers, limit, backoff)
    task = asyncio.create_task(releaser.run())
    try:
        yield releaser
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not releaser._running
    assert +releaser._busy == {}


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0)


async def test_i12_what_is_due_is_released_once_with_what_is_known_of_it() -> None:
    world, driver = World(), FakeDriver()
    names = [f"r{n}" for n in range(300)]
    world.add(*names)
    world.add("later", due=5_000)
    async with running(world, {HTTP: driver}):
        await until(lambda: len(world.steps) == 300)
        assert sorted(driver.calls) == sorted(world.released()) == sorted(names)
        assert driver.seen[0] == Resource(driver.calls[0], f"session-of-{driver.calls[0]}", SECRET)
        assert driver.most == AT_ONCE
        world.now = 5_000
        await until(lambda: not world.rows)
    assert driver.calls.count("later") == 1


async def test_what_fails_is_tried_again_with_back_off_and_its_reason_is_written_down() -> None:
    world, driver = World(), FakeDriver()
    world.add("flaky")
    driver.fails["flaky"] = [DriverError("it is busy", retryable=True) for _ in range(3)]
    async with running(world, {HTTP: driver}):
        for n in (1, 2, 3):
            await until(lambda n=n: len(world.steps) == n)  # type: ignore[misc]
            world.now = world.rows["flaky"].due
        await until(lambda: not world.rows)
    assert world.failures("flaky") == [("failed", "it is busy", ms) for ms in (1_000, 2_000, 4_000)]
    assert world.released() == ["flaky"]


@pytest.mark.parametrize("attempts", [0, 20, 5_000])
async def test_what_cannot_succeed_by_itself_waits_for_as_long_as_there_is(attempts: int) -> None:
    world, driver = World(), FakeDriver()
    world.add("denied")
    world.rows["denied"] = world.rows["denied"]._replace(attempts=attempts)
    driver.fails["denied"] = [DriverError("set the key right", retryable=False)]
    async with running(world, {HTTP: driver}):
        await until(lambda: world.steps)
    assert world.failures("denied") == [("failed", "set the key right", 300_000)]


async def test_i25_a_bug_in_a_driver_fails_one_release_and_says_nothing_of_it() -> None:
    world, driver = World(), FakeDriver()
    world.add("bad", "good")
    driver.fails["bad"] = [KeyError(SECRET)]
    async with running(world, {HTTP: driver}):
        await until(lambda: len(world.steps) == 2)
    assert world.failures("bad") == [("failed", "internal: KeyError", 1_000)]
    assert world.released() == ["good"]


async def test_a_kind_without_a_driver_says_so_and_stays() -> None:
    world = World()
    world.add("old", kind=TMUX)
    async with running(world, {HTTP: FakeDriver()}):
        await until(lambda: world.steps)
    async with running(world, {}):  # without any driver too
        world.now = world.rows["old"].due
        await until(lambda: len(world.steps) == 2)
    ((_, reason, wait), *_) = world.failures("old")
    assert "no driver for TMUX" in reason
    assert wait == 300_000
    assert "old" in world.rows


async def test_one_that_hangs_ends_at_the_limit_and_holds_up_no_other() -> None:
    world, driver = World(), FakeDriver()
    world.add("hangs")
    driver.hangs = {"hangs"}
    async with running(world, {HTTP: driver}, limit=0.2):
        await until(lambda: driver.calls)
        names = [f"r{n}" for n in range(50)]
        world.add(*names)
        await until(lambda: len(world.released()) == 50)
        assert "hangs" in driver.now or world.failures("hangs")
        await until(lambda: world.failures("hangs"))
    ((_, reason, _),) = world.failures("hangs")
    assert reason == "the release of hangs took longer than 0.2 s"


async def test_a_driver_that_hangs_holds_up_no_other_driver() -> None:
    world, http, process = World(), FakeDriver(), FakeDriver()
    stuck = [f"a{n:03}" for n in range(200)]  # before the others in the order of what is due
    http.hangs = set(stuck)
    world.add(*stuck, kind=HTTP)
    async with running(world, {HTTP: http, PROCESS: process}):
        await until(lambda: len(http.now) == AT_ONCE // 2)
        world.add(*(f"z{n}" for n in range(20)), kind=PROCESS)
        await until(lambda: len(world.released()) == 20)
        assert len(http.now) == AT_ONCE // 2


async def test_a_page_that_is_older_than_the_end_of_a_release_starts_it_no_second_time() -> None:
    world, driver = World(), FakeDriver()
    driver.hold = asyncio.Event()
    world.add("one")

    async def between() -> None:
        # The page that holds "one" as due is on its way; meanwhile its release ends, and is durable.
        if driver.calls and driver.hold is not None and not driver.hold.is_set():
            driver.hold.set()
            await until(lambda: not world.rows and not releaser._running)

    world.between = between
    async with running(world, {HTTP: driver}) as releaser:
        await until(lambda: not world.rows)
        reads = world.reads
        await until(lambda: world.reads > reads + 3)
    assert driver.calls == ["one"]


async def test_a_step_that_is_not_written_down_is_done_again_and_not_at_once() -> None:
    world, driver = World(), FakeDriver()
    world.add("one")
    world.refuses = 2
    async with running(world, {HTTP: driver}):
        await until(lambda: not world.rows)
    assert driver.calls == ["one"] * 3
    assert world.steps == [("one", ("released",))]


async def test_reads_that_fail_are_tried_again() -> None:
    world, driver = World(), FakeDriver()
    world.broken = True
    world.add("one")
    async with running(world, {HTTP: driver}):
        for _ in range(100):
            await asyncio.sleep(0)
        assert driver.calls == []
        world.broken = False
        await until(lambda: not world.rows)


async def test_the_end_of_the_server_leaves_what_runs_to_the_next_start() -> None:
    world, driver = World(), FakeDriver()
    world.add("slow")
    driver.hangs = {"slow"}
    async with running(world, {HTTP: driver}):
        await until(lambda: driver.now)
    assert driver.now == set()
    assert world.steps == []
    driver.hangs = set()
    async with running(world, {HTTP: driver}):
        await until(lambda: not world.rows)
    assert driver.calls == ["slow", "slow"]
