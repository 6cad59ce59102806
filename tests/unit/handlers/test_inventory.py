"""ReconcileInventory: nothing owned is ever named to be ended, an orphan after a whole lease (I17, I20, I22)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from typing import Any

import pytest

from roost.drivers import Marker
from roost.drivers.reap import Ours
from roost.handlers import inventory as module
from roost.handlers.cold import Cold
from roost.handlers.errors import Refused
from roost.handlers.inventory import Reconciler
from roost.v1 import resource_service_pb2 as pb

LEASE = 60.0
OURS = Ours("roost", "1f0c77ab", 5)


def name(n: int, store: str = OURS.store_id, epoch: int = 3) -> str:
    return str(Marker("roost", store, epoch, bytes(16), n))


class House:
    """A reconciler, who owns what, and the time."""

    def __init__(self) -> None:
        self.reconciler = Reconciler(OURS, lambda: LEASE)
        self.owned: set[str] = set()
        self.asked: list[str] = []
        self.now = 1_000.0

    def known_resources(self, names: Sequence[str]) -> set[str]:
        self.asked += names
        return self.owned & set(names)

    def refuse(self, reason: str, message: str, metadata: dict[str, str]) -> tuple[int, str, bytes]:
        return 3, f"{reason} {message}", b""

    def call(self, items: Collection[tuple[str, str]], node: str = "node", tenant: str = "t", **fields: Any) -> Any:
        itself: Any = self
        cold = Cold(itself, itself, tenant, arrived_ms=round(self.now * 1_000))
        request = pb.ReconcileInventoryRequest(node=node, **fields)
        for item, instance in items:
            request.items.add(name=item, instance=instance)
        return pb.ReconcileInventoryResponse.FromString(self.reconciler(cold, request.SerializeToString()))

    def orphans(self, items: Collection[tuple[str, str]], **fields: Any) -> list[tuple[str, str, bool]]:
        found = self.call(items, **fields).orphans
        return [(orphan.item.name, orphan.item.instance, orphan.end) for orphan in found]


def test_i20_an_orphan_is_to_end_once_each_inventory_over_a_lease_has_found_it() -> None:
    house = House()
    house.owned = {name(1)}
    items = [(name(1), "a"), (name(2), "b"), ("someone's", "c"), (name(3, store="ffffffff"), "d")]
    answer = house.call(items)
    assert [(orphan.item.name, orphan.end) for orphan in answer.orphans] == [(name(2), False)]
    assert answer.next.ToMilliseconds() == 60_000
    assert house.asked == [name(1), name(2)]
    house.now += 20
    answer = house.call([*items, (name(4), "new")])
    assert [orphan.end for orphan in answer.orphans] == [False, False]
    assert answer.next.ToMilliseconds() == 60_000  # for the newest of them
    house.now += 39.999
    assert house.orphans(items) == [(name(2), "b", False)]
    house.now += 0.001
    assert house.orphans(items) == [(name(2), "b", True)]
    # It could not be ended: it is to be, until it is gone.
    assert house.orphans(items) == [(name(2), "b", True)]
    assert house.orphans(items[:1]) == []
    assert house.orphans(items) == [(name(2), "b", False)]


def test_i20_names_of_a_later_epoch_are_another_servers() -> None:
    house = House()
    assert house.orphans([(name(1, epoch=6), "a"), (name(1, epoch=5), "b")]) == [(name(1, epoch=5), "b", False)]


def test_an_inventory_began_when_its_listing_did() -> None:
    """The lease lies between the end of the first and the beginning of the one that condemns."""
    house = House()
    items = [(name(1), "a")]
    house.orphans(items, listing_time={"seconds": 30})
    house.now += 69.999
    assert house.orphans(items, listing_time={"seconds": 10}) == [(name(1), "a", False)]
    house.now += 0.001
    assert house.orphans(items, listing_time={"seconds": 10}) == [(name(1), "a", True)]


def test_one_that_was_absent_or_replaced_begins_anew() -> None:
    house = House()
    house.orphans([(name(1), "a"), (name(2), "b")])
    house.now += 30
    house.orphans([(name(1), "another")])
    house.now += 30
    assert house.orphans([(name(1), "another"), (name(2), "b")]) == [(name(1), "another", False), (name(2), "b", False)]


def test_nodes_and_tenants_are_judged_by_their_own_inventories() -> None:
    house = House()
    items = [(name(1), "a")]
    house.orphans(items)
    house.now += LEASE
    assert house.orphans(items, node="other") == [(name(1), "a", False)]
    assert house.orphans(items, tenant="u") == [(name(1), "a", False)]
    assert house.orphans(items) == [(name(1), "a", True)]


def test_i22_a_dry_run_counts_for_nothing() -> None:
    house = House()
    items = [(name(1), "a")]
    assert house.orphans(items, dry_run=True) == [(name(1), "a", False)]
    house.now += LEASE
    assert house.orphans(items) == [(name(1), "a", False)]
    house.now += LEASE
    # It tells what would follow, and nothing follows.
    assert house.orphans(items, dry_run=True) == [(name(1), "a", True)]
    assert house.orphans([], dry_run=True) == []
    assert house.orphans(items) == [(name(1), "a", True)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"node": ""}, "node: must not be empty"),
        ({"node": "n" * 257}, "node: has 257 characters; at most 256"),
        ({"items": [("x", "")] * 10_001}, "items: has 10001 entries; at most 10000"),
        ({"items": [("x", "é" * 129)]}, "items.instance: has 258 bytes; at most 256"),
        ({"listing_time": {"seconds": -1}}, "listing_time: must be a duration"),
        ({"listing_time": {"nanos": -1}}, "listing_time: must be a duration"),
        ({"listing_time": {"seconds": 1 << 40}}, "listing_time: must be a duration"),
    ],
)
def test_i22_what_breaks_a_rule_is_refused_and_counts_for_nothing(fields: dict[str, Any], says: str) -> None:
    house = House()
    with pytest.raises(Refused, match=f"INVALID_FIELD {says}"):
        house.call(fields.pop("items", [(name(1), "a")]), **fields)
    assert len(house.reconciler._nodes) == 0


def test_as_much_as_may_be_is_accepted() -> None:
    house = House()
    items = [(name(n + 1), "i" * 256) for n in range(10_000)]
    house.owned = {item for item, _ in items[:9_000]}
    assert len(house.orphans(items, node="n" * 256)) == 1_000


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    for n in range(1_005):
        house.orphans([(name(1), "a")], node=f"node-{n}")
    remembered = house.reconciler._nodes
    assert len(remembered) == 1_000 == house.reconciler._remembered
    house.now += LEASE
    assert house.orphans([(name(1), "a")], node="node-5") == [(name(1), "a", True)]
    assert house.orphans([(name(1), "a")], node="node-4") == [(name(1), "a", False)]  # forgotten: it begins anew
    # The one that was used longest ago went for it.
    assert ("t", "node-6") not in remembered
    house.orphans([], node="node-5")
    assert ("t", "node-5") not in remembered
    monkeypatch.setattr(module, "MAX_ORPHANS", 1_200)
    house.orphans([(name(n), "a") for n in range(1, 301)], node="large")
    assert house.reconciler._remembered == sum(len(sweeps.since) for sweeps in remembered.values()) == 1_200
    assert ("t", "large") in remembered


def test_i20_whatever_happens_between_inventories_nothing_owned_is_named() -> None:
    random = Random(20)
    for _ in range(200):
        house = House()
        there: dict[str, int] = {}
        unowned_since: dict[str, float] = {}
        made = 0
        for _ in range(40):
            house.now += random.choice((0, 1, 20, 61))
            match random.choice(("attach", "release", "restart", "look", "look", "dry")):
                case "attach":
                    made += 1
                    house.owned.add(name(made))
                    there[name(made)] = 1
                case "release" if house.owned:
                    gone = random.choice(sorted(house.owned))
                    house.owned.discard(gone)
                    unowned_since[gone] = house.now
                case "restart" if there:
                    there[random.choice(sorted(there))] += 1
                case "look" | "dry" as how:
                    items = [(item, str(instance)) for item, instance in there.items()]
                    for item, _, end in house.orphans(items, dry_run=how == "dry"):
                        assert item not in house.owned
                        if end:
                            assert house.now - unowned_since[item] >= LEASE
                            if how == "look" and random.random() < 0.7:
                                del there[item]
                case _:
                    pass
