"""Many calls of one client process wait for a tenant's eight slots, while the turns that have them go on.

All are served, first come first within a priority; the turns that run are not held up by who waits; and when it is over
nothing of it is left. Guards I1, I2 and I24.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import Server, refusal

from roost.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import turn_service_pb2_grpc as stubs

CAP = 8
ON_ONE = 512  # max_waiters_per_connection
WAVE = 50  # calls that are sent together: which of them comes first is nobody's to say
PATIENCE = 300.0
PRIORITIES = (0, 5, -5)


class Crowd:
    """One client process with as many connections as so many waiting calls ask for, and one for all others."""

    def __init__(self, server: Server, waiters: int) -> None:
        self.server = server
        self.channels = [self._channel() for _ in range(-(-waiters // ON_ONE) + 1)]
        self.turns: list[Any] = [stubs.TurnServiceStub(channel) for channel in self.channels]
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(self.channels[-1])

    def _channel(self) -> Any:
        # A connection of its own.
        return grpc.aio.insecure_channel(self.server.address, options=[("grpc.use_local_subchannel_pool", 1)])

    async def gauges(self) -> dict[str, int]:
        return dict((await self.admin.GetStats(admin_service_pb2.GetStatsRequest(), timeout=PATIENCE)).gauges)

    async def until_waiting(self, count: int) -> None:
        while (await self.gauges())["waiting"] != count:
            pass

    async def begin(self, name: str, connection: int, priority: int = 0, wait: int = 0) -> Any:
        request = turns.BeginTurnRequest(session_id=name, priority=priority, open=types_pb2.OpenOptions())
        request.wait.FromSeconds(wait)
        return (await self.turns[connection].BeginTurn(request, timeout=PATIENCE)).grant

    async def commit(self, name: str, lease: bytes, then: turns.Then = turns.THEN_IDLE) -> Any:
        request = turns.CommitTurnRequest(session_id=name, lease=lease, then=then)
        return await self.turns[-1].CommitTurn(request, timeout=PATIENCE)

    def memory(self) -> int:
        """Of the server, as the operating system counts it. Unit: bytes."""
        pages = int(Path(f"/proc/{self.server.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def crowd_of(server: Server, waiters: int) -> AsyncIterator[Crowd]:
    crowd = Crowd(server, waiters)
    try:
        yield crowd
    finally:
        for channel in crowd.channels:
            await channel.close()


async def play(crowd: Crowd, count: int, commits: int) -> list[tuple[int, int]]:
    """`count` wait, in waves; `commits` turns are committed while they do; then all get theirs. Who got it, in order:
    as (priority, wave)."""
    leases = {name: (await crowd.begin(name, -1)).lease for name in (f"runner-{n}" for n in range(CAP))}
    order: list[tuple[int, int]] = []

    async def turn(n: int, wave: int) -> None:
        priority = PRIORITIES[wave % len(PRIORITIES)]
        grant = await crowd.begin(f"waiter-{n}", n // ON_ONE, priority, wait=int(PATIENCE))
        order.append((priority, wave))
        await crowd.commit(f"waiter-{n}", grant.lease)

    waits: list[asyncio.Task[None]] = []
    for wave in range(count // WAVE):
        # Each spread over all connections.
        waits += [asyncio.create_task(turn(n, wave)) for n in range(wave, count, count // WAVE)]
        await crowd.until_waiting(len(waits))
    assert len(waits) == count

    # As many as may: the next is told so at once.
    with pytest.raises(grpc.RpcError) as full:
        await crowd.begin("one-too-many", -1, wait=int(PATIENCE))
    assert refusal(full.value).reason == "QUEUE_FULL"

    # The turns that run go on, and every commit is answered while all the others wait.
    for name in itertools.islice(itertools.cycle(leases), commits):
        leases[name] = (await crowd.commit(name, leases[name], turns.THEN_CONTINUE)).next.lease
    during = await crowd.gauges()
    assert (during["waiting"], during["slots_held"], during["turns_running"]) == (count, CAP, CAP)
    assert not order

    # Some go away (I24): they are passed over.
    gone = waits[WAVE // 2 :: WAVE]
    for wait in gone:
        wait.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await crowd.until_waiting(count - len(gone))

    for name, lease in leases.items():
        await crowd.commit(name, lease)
    await asyncio.gather(*(wait for wait in waits if wait not in set(gone)))
    assert len(order) == count - len(gone), "somebody starved"
    return order


def check_order(order: list[tuple[int, int]]) -> None:
    """Whoever is served, all that come before it were, but for such as still have their turn: the other seven slots."""
    left = Counter(order)
    for priority, wave in order:
        left[priority, wave] -= 1
        before = sum(n for (p, w), n in left.items() if p > priority or (p == priority and w < wave))
        assert before <= CAP - 1, (
            f"{before} that come before a call of wave {wave} and priority {priority} still waited"
        )


@pytest.mark.parametrize(
    ("count", "commits"),
    [
        pytest.param(1_000, 200),
        pytest.param(10_000, 2_000, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
async def test_who_waits_is_served_in_order_and_leaves_nothing(start: Start, count: int, commits: int) -> None:
    env = {"ROOST_DEFAULT_LEASE_MS": "3600000", "ROOST_TURN_LOG": "false"}
    flags = ("--max-turns-per-tenant", str(CAP), "--set", f"max_waiters={count}", "--set", "max_resident_sessions=100")
    server = start(*flags, **env)
    async with crowd_of(server, count) as crowd:
        before = crowd.memory()
        after: list[tuple[dict[str, int], int]] = []
        for _ in range(2):
            order = await play(crowd, count, commits)
            check_order(order)
            gauges = await crowd.gauges()
            assert (gauges["waiting"], gauges["slots_held"], gauges["turns_running"]) == (0, 0, 0)
            assert gauges["calls_in_flight"] <= 1  # this one
            after.append((gauges, crowd.memory()))
        print(f"{count} waiters: RSS {before >> 20} MiB before, then {[rss >> 20 for _, rss in after]}")
        # What the queues took the first time is enough for the second.
        assert after[1][0]["resident_bytes"] <= after[0][0]["resident_bytes"] * 1.1
        assert after[1][1] <= after[0][1] * 1.1 + (16 << 20)
