"""Orphans: who owns a name keeps it (I20), and only what sweeps over a whole lease found is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.drivers import DriverError, Item, Marker, Resource
from roost.drivers.reap import Ours, Sweeps, Swept, judge, orphans, sweep

STORE, OTHER = "deadbeef", "0badcafe"
OURS = Ours("roost", STORE, epoch=5)
LEASE = 60.0


def name(n: int = 1, *, prefix: str = "roost", store: str = STORE, epoch: int = 5, uid: int = 1) -> str:
    return str(Marker(prefix, store, epoch, uid.to_bytes(16, "big"), n))


# ---- which ----------------------------------------------------------------------------------------------------------

FOREIGN = [
    name(store=OTHER),  # another live server's, as in a rolling restart
    name(prefix="roosts"),
    name(prefix="my-roost"),
    "x" + name(),
    name() + "x",
    "bak-" + name(),
    name() + "-1",
    name().upper(),
    f"notes on {name()}",
    name()[:-1],
    "roost",
    "",
]


def test_only_names_of_this_store_that_nobody_owns_are_orphans() -> None:
    mine, planned, gone = name(1), name(2), name(3, epoch=2)
    inventory = [Item(n, "i") for n in (mine, planned, gone, *FOREIGN)]
    assert orphans(inventory, OURS, {mine, planned}) == [Item(gone, "i")]


def test_what_a_later_server_of_this_store_made_is_not_ours_to_judge() -> None:
    later, same = Item(name(epoch=6), "i"), Item(name(epoch=5), "i")
    assert orphans([later, same], OURS, set()) == [same]


names = st.one_of(
    st.builds(
        name,
        st.integers(1, 3),
        prefix=st.sampled_from(["roost", "roosts", "r"]),
        store=st.sampled_from([STORE, OTHER]),
        epoch=st.integers(4, 7),
        uid=st.integers(0, 2),
    ),
    st.sampled_from(FOREIGN),
    st.text(),
)


@given(st.lists(st.builds(Item, names, st.sampled_from("ab"))), st.sets(names))
def test_orphans_are_what_a_plain_reading_of_the_rule_says(inventory: list[Item], owned: set[str]) -> None:
    expected = []
    for item in inventory:
        fields = item.name.split("-")
        ours = fields[:2] == ["roost", STORE] and item.name == name(
            int(fields[-1]) if fields[-1:] and fields[-1].isdecimal() and int(fields[-1]) else 1,
            epoch=int(fields[2]) if fields[2:] and fields[2].isdecimal() else 0,
            uid=int(fields[3], 16) if len(fields) == 5 and len(fields[3]) == 32 else 0,
        )
        if ours and int(fields[2]) <= 5 and item.name not in owned:
            expected.append(item)
    assert orphans(inventory, OURS, owned) == expected


# ---- when -----------------------------------------------------------------------------------------------------------

A, A2, B = Item(name(1), "first"), Item(name(1), "second"), Item(name(2), "first")


def run(*found: tuple[float, set[Item] | None]) -> list[set[Item]]:
    """What each of these sweeps (time, what it found or None for an error) condemns."""
    sweeps, all_doomed = Sweeps(), []
    for now, items in found:
        doomed: list[Item] = []
        if items is None:
            sweeps = sweeps.failed()
        else:
            sweeps, doomed = judge(sweeps, items, now, now, LEASE)
        all_doomed.append(set(doomed))
    return all_doomed


def test_two_sweeps_a_lease_apart_condemn_and_one_does_not() -> None:
    assert run((0, {A}), (60, {A, B})) == [set(), {A}]
    assert run((0, {A}), (59.9, {A})) == [set(), set()]
    assert run((0, {A}), (30, {A}), (60, {A})) == [set(), set(), {A}]


def test_what_one_sweep_did_not_find_starts_anew() -> None:
    assert run((0, {A}), (30, {B}), (60, {A, B}), (90, {A, B}), (120, {A, B})) == [set(), set(), set(), {B}, {A, B}]


def test_a_successor_of_the_same_name_is_another_item() -> None:
    assert run((0, {A}), (60, {A2}), (119, {A2}), (120, {A2})) == [set(), set(), set(), {A2}]


def test_an_error_while_listing_reaps_nothing_and_breaks_the_row() -> None:
    assert run((0, {A}), (30, None), (60, {A}), (119, {A}), (120, {A})) == [set(), set(), set(), set(), {A}]


def test_what_is_condemned_stays_so_until_it_is_gone() -> None:
    """A kill that failed is tried again at once, also after a sweep that could not list."""
    assert run((0, {A}), (60, {A}), (61, {A}), (62, None), (63, {A}), (64, set()), (65, {A})) == [
        set(),
        {A},
        {A},
        set(),
        {A},
        set(),
        set(),
    ]


def test_the_lease_lies_between_the_two_listings() -> None:
    """A listing that took long does not shorten what lies between."""
    sweeps, _ = judge(Sweeps(), [A], 0, 10, LEASE)
    assert judge(sweeps, [A], 60, 75, LEASE)[1] == []
    assert judge(sweeps, [A], 70, 71, LEASE)[1] == [A]


@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.floats(0, 5), st.one_of(st.none(), st.sets(st.sampled_from([A, A2, B])))),
        max_size=14,
    )
)
def test_the_rule_against_a_model_that_remembers_everything(steps: list[tuple[float, float, set[Item] | None]]) -> None:
    """The model looks at the whole history at each sweep; the state that is handed on must come to the same."""
    sweeps, now = Sweeps(), 0.0
    history: list[tuple[float, float, set[Item] | None, set[Item]]] = []
    for gap, took, found in steps:
        began, now = now + gap, now + gap + took
        expected = set()
        for item in found or ():
            row = True  # every sweep since then listed and found it
            still = True  # every sweep since then that listed found it
            for _, before, earlier, doomed in reversed(history):
                row = row and earlier is not None and item in earlier
                still = still and (earlier is None or item in earlier)
                if (row and began - before >= LEASE) or (still and item in doomed):
                    expected.add(item)
        if found is None:
            sweeps, got = sweeps.failed(), []
        else:
            sweeps, got = judge(sweeps, found, began, now, LEASE)
        assert set(got) == expected
        history.append((began, now, found, expected))


# ---- a whole sweep --------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Resources outside and who owns what, changed by hosts while sweeps run."""

    there: set[Item] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    now: float = 0.0
    broken: bool = False
    stuck: set[Item] = field(default_factory=set)
    killed: list[Item] = field(default_factory=list)
    made: int = 0
    between: bool = False  # a host attaches and creates between the inventory and the reading of the owners

    def create(self) -> str:
        self.made += 1
        made = name(self.made)
        self.owned.add(made)  # PLANNED before there is anything
        self.there.add(Item(made, "first"))
        return made

    async def inventory(self) -> list[Item]:
        if self.broken:
            raise DriverError("cannot list", retryable=True)
        listed = sorted(self.there, key=lambda item: item.name)
        if self.between:
            self.create()
        return listed

    async def owners(self, names: Sequence[str]) -> Collection[str]:
        assert all(OURS.claims(name) for name in names)
        return self.owned & set(names)

    async def end(self, item: Item) -> None:
        assert item.name not in self.owned, "I20"
        if item in self.stuck:
            raise DriverError("it does not end", retryable=True)
        self.there.discard(item)
        self.killed.append(item)

    async def release(self, resource: Resource) -> None:
        raise AssertionError("a sweep ends items")

    async def close(self) -> None:
        pass


async def once(world: World, sweeps: Sweeps, dry_run: bool = False) -> Swept:
    return await sweep(world, OURS, world.owners, sweeps, lease=LEASE, clock=lambda: world.now, dry_run=dry_run)


async def test_a_sweep_reads_the_owners_after_the_inventory() -> None:
    """What is attached and made while a sweep runs is owned when the owners are read."""
    world = World()
    kept = world.create()
    seen: list[str] = []
    listing, owning = world.inventory, world.owners

    async def inventory() -> list[Item]:
        seen.append("inventory")
        world.create()
        return await listing()

    async def owners(names: Sequence[str]) -> Collection[str]:
        seen.append("owners")
        return await owning(names)

    world.inventory, world.owners = inventory, owners
    swept = await once(world, Sweeps())
    assert seen == ["inventory", "owners"]
    assert swept.found == []
    assert kept in world.owned


async def test_a_kill_that_failed_is_told_and_tried_again() -> None:
    world = World()
    lost, stuck = Item(world.create(), "first"), Item(world.create(), "first")
    world.owned.clear()
    world.stuck = {stuck}
    first = await once(world, Sweeps())
    assert (first.found, first.ended, first.failed) == ([lost, stuck], [], [])
    world.now = 60
    second = await once(world, first.sweeps)
    assert second.ended == [lost]
    assert [item for item, _ in second.failed] == [stuck]
    world.broken = True
    third = await once(world, second.sweeps)
    assert third.error is not None
    assert (third.ended, third.failed) == ([], [])
    world.broken, world.stuck = False, set()
    fourth = await once(world, third.sweeps)
    assert fourth.ended == [stuck]
    assert world.there == set()


async def test_a_dry_run_lists_and_touches_neither_world_nor_state() -> None:
    world = World()
    lost = Item(world.create(), "first")
    world.owned.clear()
    first = await once(world, Sweeps())
    world.now = 60
    dry = await once(world, first.sweeps, dry_run=True)
    assert dry.found == [lost]
    assert dry.sweeps == first.sweeps
    assert world.killed == []
    world.broken = True
    dry = await once(world, first.sweeps, dry_run=True)
    assert dry.error is not None
    assert dry.sweeps == first.sweeps


async def test_owners_that_cannot_be_read_end_the_sweep() -> None:
    world = World()
    world.create()

    async def owners(_names: Sequence[str]) -> Collection[str]:
        raise OSError("the store is gone")

    world.owners = owners
    with pytest.raises(OSError):
        await once(world, Sweeps())
    assert world.killed == []


ACTIONS = st.lists(
    st.sampled_from(
        ["create", "disown", "vanish", "respawn", "break", "mend", "jam", "free", "race", "sweep", "sweep"]
    ),
    max_size=40,
)


@given(ACTIONS, st.randoms(use_true_random=False))
def test_whatever_happens_around_sweeps_nothing_owned_is_ended(actions: list[str], random: Random) -> None:
    """I20, and the lease: nothing is ended that was owned, or of which this instance was there, for less than one."""
    world, sweeps, instances = World(), Sweeps(), 0
    foreign = {Item(n, "first") for n in FOREIGN}
    world.there |= foreign
    seen_since: dict[Item, float] = {}
    for action in [*actions, "mend", "free", "sweep", "sweep", "sweep"]:
        world.now += random.choice([1.0, 30.0, 60.0])
        ours = sorted(world.there - foreign, key=lambda item: (item.name, item.instance))
        if action == "create":
            world.create()
        elif action == "disown" and world.owned:
            world.owned.remove(random.choice(sorted(world.owned)))
        elif action == "vanish" and ours:
            world.there.remove(random.choice(ours))
        elif action == "respawn" and ours:
            old = random.choice(ours)
            instances += 1
            world.there.remove(old)
            world.there.add(replace(old, instance=f"again {instances}"))
        elif action in ("break", "mend"):
            world.broken = action == "break"
        elif action in ("jam", "free"):
            world.stuck = set(ours) if action == "jam" else set()
        elif action == "race":
            world.between = not world.between
        elif action == "sweep":
            owned, there, before = set(world.owned), set(world.there), len(world.killed)
            for item in there:
                if item.name not in owned:
                    seen_since.setdefault(item, world.now)
            sweeps = asyncio.run(once(world, sweeps)).sweeps
            for item in world.killed[before:]:
                assert item.name not in owned
                assert world.now - seen_since[item] >= LEASE
    world.between = False
    for _ in range(2):  # and what nobody owns does go in the end
        world.now += LEASE
        sweeps = asyncio.run(once(world, sweeps)).sweeps
    assert {item for item in world.there if item.name not in world.owned} == foreign
