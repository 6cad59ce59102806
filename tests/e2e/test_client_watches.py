"""The Python client's part in the life of resources, against a real server: pools, and hosts that outlive restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import Start
from roost_server import Server, fresh

from roost.client import AsyncClient, resource_pool
from roost.errors import PoolFull, ResourceReleasing, RoostError
from roost.v1 import resource_service_pb2 as r
from roost.v1 import types_pb2 as types


@pytest.fixture
async def client(shared: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(shared.address, owner=fresh("host")) as made:
        yield made


async def opened(client: AsyncClient) -> str:
    session_id = fresh()
    await client.open_session(session_id)
    return session_id


async def test_a_host_makes_room_for_the_next_one(client: AsyncClient) -> None:
    first, second = await opened(client), await opened(client)
    pool = resource_pool(fresh("pool"), max_resources=1)
    old = await client.attach_resource(first, "client", handle="old", pool=pool)
    assert (old.state, old.created) == (r.RESOURCE_STATE_PLANNED, True)
    with pytest.raises(PoolFull) as full:
        await client.attach_resource(second, "client", pool=pool, wait=0)
    assert full.value.retry_delay is not None

    watching = client.watch_owner()
    waiting = asyncio.create_task(client.attach_resource(second, "client", pool=pool, wait=30, request_id="r"))
    release = await anext(watching)
    assert (release.session_id, release.name, release.handle) == (first, old.name, "old")
    with pytest.raises(ResourceReleasing):
        await client.confirm_resource(first, old.name)
    assert not waiting.done()
    assert (await client.detach_resource(first, old.name)).released
    new = await waiting
    assert (await client.attach_resource(second, "client", pool=pool, wait=30, request_id="r")).name == new.name

    async with client.turn(second):
        with pytest.raises(PoolFull) as full:  # at once: its session runs
            await client.attach_resource(first, "client", pool=pool, wait=30)
    assert second in str(full.value.quota)
    await client.close_session(second)
    last = await anext(watching)
    await client.detach_resource(last.session_id, last.name)
    assert [resource async for resource in client.list_resources(owner=client.owner)] == []


async def test_a_host_outlives_the_server(start: Start, tmp_path: Path) -> None:
    server = start(listen=f"unix:{tmp_path}/s")
    async with AsyncClient(server.address, owner="host") as client:
        session_id = await opened(client)
        names = [(await client.attach_resource(session_id, "client")).name for _ in range(3)]
        watching = client.watch_owner()
        waiting = asyncio.ensure_future(anext(watching))
        await client.close_session(session_id)
        told = {(await waiting).name} | {(await anext(watching)).name for _ in range(2)}
        assert told == set(names)
        await client.detach_resource(session_id, names[0])
        server.kill()
        start(listen=f"unix:{tmp_path}/s")
        # What is not detached yet is told again, and nothing else.
        assert {(await anext(watching)).name for _ in range(2)} == set(names[1:])
        for name in names:
            assert (await client.detach_resource(session_id, name)).released
        while (await client.get_session(session_id)).state != types.SESSION_STATE_CLOSED:
            await asyncio.sleep(0.05)


async def test_an_inventory_is_judged(client: AsyncClient) -> None:
    session_id = await opened(client)
    owned = (await client.attach_resource(session_id, "client")).name
    lost = (await client.attach_resource(session_id, "client")).name
    await client.detach_resource(session_id, lost)
    items = [r.InventoryItem(name=name, instance="1") for name in (owned, lost, "notes")]
    for dry_run in (True, False):
        answer = await client.reconcile_inventory(fresh("node"), items, listing_time=0.1, dry_run=dry_run)
        assert [(orphan.item.name, orphan.end) for orphan in answer.orphans] == [(lost, False)]
        assert answer.next.ToMilliseconds() > 0
    with pytest.raises(RoostError) as refused:
        await client.reconcile_inventory("", items, listing_time=0.1)
    assert refused.value.reason == "INVALID_FIELD"
