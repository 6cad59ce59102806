"""ReconcileInventory: which of the things that a node has found are orphans, and which are to be ended now.

The rule is that of the boot reap (`roost.drivers.reap`); here the inventory comes with the call, and what earlier ones
left to know of a node is kept in memory. A server that starts has forgotten it and waits for another lease.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Final

from google.protobuf.duration_pb2 import Duration

from roost.drivers import Item
from roost.drivers.reap import Ours, Sweeps, judge, orphans
from roost.handlers.cold import Cold
from roost.handlers.errors import invalid, parse
from roost.v1 import resource_service_pb2 as pb

MAX_ITEMS: Final = 10_000
MAX_NODE: Final = 256  # characters
MAX_INSTANCE: Final = 256  # bytes
MAX_NODES: Final = 1_000  # that are remembered; of the others the first inventory is to come again
MAX_ORPHANS: Final = 200_000  # that are remembered, of all nodes
_CENTURY: Final = 100 * 366 * 86_400  # seconds


class Reconciler:
    """Answers ReconcileInventory. `lease`: seconds that one lives now. For the reader thread alone."""

    def __init__(self, ours: Ours, lease: Callable[[], float]) -> None:
        self._ours = ours
        self._lease = lease
        self._nodes: OrderedDict[tuple[str, str], Sweeps] = OrderedDict()  # by tenant and node, used last at the end
        self._remembered = 0  # orphans, in all of them

    def __call__(self, cold: Cold, data: bytes) -> bytes:
        """Answer, encoded."""
        request = parse(cold.engine, pb.ReconcileInventoryRequest, data)
        listing = _checked(cold, request)
        ended = cold.arrived_ms / 1_000
        claimed = [Item(item.name, item.instance) for item in request.items if self._ours.claims(item.name)]
        # Read after the inventory was taken, of all tenants: what another one owns is no orphan either (I20).
        found = orphans(claimed, self._ours, cold.store.known_resources([item.name for item in claimed]))
        node = (cold.tenant, request.node)
        earlier = self._nodes.get(node, Sweeps())
        lease = self._lease()
        after, ending = judge(earlier, found, ended - listing, ended, lease)
        doomed = set(ending)
        if not request.dry_run:
            self._remember(node, after)
        response = pb.ReconcileInventoryResponse()
        for item in found:
            known = pb.InventoryItem(name=item.name, instance=item.instance)
            response.orphans.append(pb.Orphan(item=known, end=item in doomed))
        # The next inventory must begin so late that what is not to end yet may then be; rounded up.
        last = max((after.since[item] for item in found if item not in doomed), default=ended)
        response.next.FromMilliseconds(max(0, ceil(1_000 * (last + lease - ended))))
        return response.SerializeToString()

    def _remember(self, node: tuple[str, str], sweeps: Sweeps) -> None:
        """Keep what is known of a node; the nodes that were used longest ago make room for it."""
        earlier = self._nodes.pop(node, Sweeps())
        self._remembered += len(sweeps.since) - len(earlier.since)
        if sweeps.since:
            self._nodes[node] = sweeps
        while len(self._nodes) > MAX_NODES or (self._remembered > MAX_ORPHANS and len(self._nodes) > 1):
            _, forgotten = self._nodes.popitem(last=False)
            self._remembered -= len(forgotten.since)


def _checked(cold: Cold, request: pb.ReconcileInventoryRequest) -> float:
    """How long the inventory took, in seconds; Refused INVALID_FIELD for what breaks a rule."""
    engine = cold.engine
    if not request.node:
        raise invalid(engine, "node", "must not be empty")
    if len(request.node) > MAX_NODE:
        rule = f"has {len(request.node)} characters; at most {MAX_NODE} are allowed"
        raise invalid(engine, "node", rule, size=len(request.node), limit=MAX_NODE)
    if len(request.items) > MAX_ITEMS:
        rule = f"has {len(request.items)} entries; at most {MAX_ITEMS} are allowed"
        raise invalid(engine, "items", rule, size=len(request.items), limit=MAX_ITEMS)
    for item in request.items:
        size = len(item.instance.encode())
        if size > MAX_INSTANCE:
            rule = f"has {size} bytes; at most {MAX_INSTANCE} are allowed"
            raise invalid(engine, "items.instance", rule, size=size, limit=MAX_INSTANCE)
    return _seconds(cold, request.listing_time)


def _seconds(cold: Cold, time: Duration) -> float:
    if not (0 <= time.seconds <= _CENTURY and 0 <= time.nanos < 1_000_000_000):
        rule = "must be a duration from 0 to 100 years"
        raise invalid(cold.engine, "listing_time", rule, seconds=time.seconds, nanos=time.nanos)
    return time.seconds + time.nanos / 1_000_000_000
