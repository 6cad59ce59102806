"""What a restart left behind: which of the things found outside nobody owns, and when it is right to end them.

An orphan bears the prefix and the id of this store, was made in this or an earlier life of its server, and no OPEN or
SEALED session owns its name (I20). A name is owned from before its resource is made (PLANNED) until the close that ends
it, and is never given out again: once unowned, it stays so. Hence the one order that matters, and that `sweep` keeps:
first the inventory is taken, then the owned names are read. The other way round, what was made in between would
look like an orphan.

An orphan is ended only when every sweep over at least one lease found it, the same instance each time. A sweep
whose inventory failed ends nothing and forgets what was found before it, because what it stands for ("it has been
unowned all the time that we looked") was not seen. What was condemned already stays condemned until a sweep no
longer finds it: that decision was complete, and a failed attempt to end it must not be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .base import DriverError, Item, Lister
from .marker import Marker

AT_ONCE: Final = 8  # orphans being ended at once: one that takes its whole time limit must not hold up all others


@dataclass(frozen=True)
class Ours:
    """Whose orphans are meant: names with this prefix and store id, up to this epoch.

    An epoch after `epoch` is that of a server that took the store over: its resources are not ours to judge.
    """

    prefix: str
    store_id: str
    epoch: int

    def claims(self, name: str) -> bool:
        """True if the name is one that this store gave out, in a life of its server that we know of."""
        marker = Marker.parse(name)
        return (
            marker is not None
            and marker.prefix == self.prefix
            and marker.store_id == self.store_id
            and marker.epoch <= self.epoch
        )


@dataclass(frozen=True)
class Sweeps:
    """What earlier sweeps of one inventory left to know; empty at the start. One for each driver, or node agent."""

    # Orphans of the latest sweep, with the time from which on every sweep has found them.
    since: Mapping[Item, float] = field(default_factory=dict)
    condemned: frozenset[Item] = frozenset()

    def failed(self) -> Sweeps:
        """After a sweep whose inventory failed."""
        return Sweeps(condemned=self.condemned)


def orphans(inventory: Iterable[Item], ours: Ours, owned: Collection[str]) -> list[Item]:
    """What bears a name of ours that nobody owns, in the order of the inventory.

    `owned`: of these names those of resources of OPEN and SEALED sessions, PLANNED ones included, read after the
    inventory was taken. Give a set.
    """
    return [item for item in inventory if ours.claims(item.name) and item.name not in owned]


def judge(sweeps: Sweeps, found: Iterable[Item], began: float, ended: float, lease: float) -> tuple[Sweeps, list[Item]]:
    """What follows from the orphans that one sweep found: the state for the next one, and what is to be ended now.

    `began`, `ended`: when its inventory was started and done, in seconds of a clock that never goes back. `lease`:
    seconds that must lie between the end of the first inventory and the beginning of the one that condemns.
    """
    since = {item: sweeps.since.get(item, ended) for item in found}
    doomed = [item for item, first in since.items() if item in sweeps.condemned or began - first >= lease]
    return Sweeps(since, frozenset(doomed)), doomed


async def end_all(driver: Lister, items: Iterable[Item]) -> list[tuple[Item, DriverError | None]]:
    """End exactly these items, some at once; of each that could not be ended, why."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def end(item: Item) -> DriverError | None:
        async with gate:
            try:
                await driver.end(item)
            except DriverError as error:
                return error
            return None

    async with asyncio.TaskGroup() as group:
        tasks = [(item, group.create_task(end(item))) for item in items]
    return [(item, task.result()) for item, task in tasks]


@dataclass(frozen=True)
class Swept:
    """What one sweep did. `error` is set if its inventory failed; then it did nothing else."""

    sweeps: Sweeps  # for the next sweep
    found: list[Item] = field(default_factory=list)  # orphans, whether or not their time has come
    ended: list[Item] = field(default_factory=list)
    failed: list[tuple[Item, DriverError]] = field(default_factory=list)  # stay condemned; the next sweep tries again
    error: DriverError | None = None


async def sweep(
    driver: Lister,
    ours: Ours,
    owned: Callable[[Sequence[str]], Awaitable[Collection[str]]],
    sweeps: Sweeps,
    *,
    lease: float,
    clock: Callable[[], float],
    dry_run: bool = False,
) -> Swept:
    """One sweep over what a driver sees. `owned` reads which of the names are owned; what it raises passes through.

    With `dry_run` nothing is ended and the state moves on as if the sweep had not been: `found` is the list.
    """
    began = clock()
    try:
        inventory = await driver.inventory()
    except DriverError as error:
        return Swept(sweeps if dry_run else sweeps.failed(), error=error)
    ended_at = clock()
    claimed = [item for item in inventory if ours.claims(item.name)]
    found = orphans(claimed, ours, await owned([item.name for item in claimed]))
    if dry_run:
        return Swept(sweeps, found)
    after, doomed = judge(sweeps, found, began, ended_at, lease)
    outcomes = await end_all(driver, doomed)
    return Swept(
        after,
        found,
        [item for item, error in outcomes if error is None],
        [(item, error) for item, error in outcomes if error is not None],
    )
