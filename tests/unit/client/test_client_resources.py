"""Resources: what the client sends, where it waits, what it repeats, and how it watches over breaks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from fake_server import END, FakeServer, Refuse

from roost.client import NO_RETRY, AsyncClient, Client, RetryPolicy, resource_pool
from roost.errors import CallTimeout, ConnectionFailed, KeyScope, RoostError, SessionClosed, ShuttingDown
from roost.v1 import resource_service_pb2 as r
from roost.v1 import turn_service_pb2 as turns

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
GONE = Refuse(UNAVAILABLE)


def release(*names: str) -> list[turns.WatchOwnerResponse]:
    return [turns.WatchOwnerResponse(release=turns.Release(session_id="s1", name=name)) for name in names]


async def test_an_attach_sends_what_it_was_given(server: FakeServer) -> None:
    pool = resource_pool("boxes", key="ann", max_resources=8, max_resources_per_key=0, idle_ttl=timedelta(minutes=5))
    async with AsyncClient(server.target, owner="host-1") as client:
        await client.attach_resource("s1", "tmux", handle="h", pool=pool, wait=0.25)
        await client.attach_resource("s1", "client", owner="other", wait=0, request_id="r")
        await client.attach_resource("s1", "process")
    first, second, third = server.requests("AttachResource")
    assert (first.session_id, first.kind, first.owner, first.handle) == ("s1", r.RESOURCE_KIND_TMUX, "host-1", "h")
    assert (first.pool.name, first.pool.key, first.pool.idle_ttl.seconds) == ("boxes", "ann", 300)
    assert (first.pool.max_resources, first.pool.max_resources_per_key) == (8, 0)
    assert (first.wait.seconds, first.wait.nanos, first.name) == (0, 250_000_000, "")
    assert (second.kind, second.owner, second.request_id) == (r.RESOURCE_KIND_CLIENT, "other", "r")
    # "Not at all" is not "as long as you like", and a cap of none is not one of 0.
    assert second.HasField("wait")
    assert not third.HasField("wait")
    assert not third.HasField("pool")
    assert not resource_pool("boxes").HasField("max_resources")
    assert len({first.request_id, second.request_id, third.request_id}) == 3


async def test_an_attach_that_may_wait_uses_the_connection_of_waiting_calls(
    server: FakeServer, client: AsyncClient
) -> None:
    pool = resource_pool("boxes")
    await client.begin_turn("s0", wait=5)
    await client.attach_resource("waits", "tmux", pool=pool)
    await client.attach_resource("waits-5", "tmux", pool=pool, wait=5)
    await client.attach_resource("no-wait", "tmux", pool=pool, wait=0)
    await client.attach_resource("no-pool", "tmux", wait=5)
    peers = {request.session_id: peer for _, request, peer in server.calls}
    assert peers["waits"] == peers["waits-5"] == peers["s0"]
    assert peers["no-wait"] == peers["no-pool"] != peers["s0"]


async def test_a_waiting_attach_has_its_wait_and_some_time(server: FakeServer) -> None:
    release = asyncio.Event()
    server.script["AttachResource"].append(release)
    async with AsyncClient(server.target, timeout=0.05, retry=RetryPolicy(attempt_timeout=0.05)) as client:
        waiting = asyncio.create_task(client.attach_resource("s1", "tmux", pool=resource_pool("boxes"), wait=60))
        await server.arrived["AttachResource"].wait()
        server.script["GetSession"].append(asyncio.Event())
        with pytest.raises(CallTimeout):  # another call has given up meanwhile
            await client.get_session("s1")
        assert not waiting.done()
        release.set()
        await waiting
        server.script["AttachResource"].append(asyncio.Event())
        with pytest.raises(CallTimeout):  # without a wait of its own it has the time of every call
            await client.attach_resource("s1", "tmux", pool=resource_pool("boxes"))
    assert len(server.requests("AttachResource")) == 2


async def test_i21_what_changes_resources_is_repeated_as_it_was(server: FakeServer, client: AsyncClient) -> None:
    for name in ("AttachResource", "DetachResource"):
        server.script[name].extend([GONE, Refuse(UNAVAILABLE, "NOT_STORED")])
    await client.attach_resource("s1", "http")
    await client.detach_resource("s1", "roost-x")
    for name in ("AttachResource", "DetachResource"):
        first, *others = server.requests(name)
        assert [first, first] == others
    server.calls.clear()
    server.script["AttachResource"].append(GONE)
    await client.confirm_resource("s1", "roost-x", "12@boot:7")
    for request in server.requests("AttachResource"):
        assert (request.name, request.handle, request.request_id, request.kind) == ("roost-x", "12@boot:7", "", 0)


async def test_an_inventory_is_never_sent_again(server: FakeServer, client: AsyncClient) -> None:
    """It would count as one that was just taken."""
    server.script["ReconcileInventory"].append(GONE)
    items = [r.InventoryItem(name="roost-x", instance="1")]
    with pytest.raises(ConnectionFailed):
        await client.reconcile_inventory("node", items, listing_time=0.5)
    (request,) = server.requests("ReconcileInventory")
    assert (request.node, list(request.items), request.dry_run) == ("node", items, False)
    assert request.listing_time.nanos == 500_000_000
    server.script["ReconcileInventory"].append(asyncio.Event())
    with pytest.raises(CallTimeout):
        await client.reconcile_inventory("node", items, listing_time=0.5, timeout=0.05)
    assert len(server.requests("ReconcileInventory")) == 2


async def test_a_list_reads_page_after_page(server: FakeServer, client: AsyncClient) -> None:
    def page(*names: str, token: str = "") -> r.ListResourcesResponse:
        return r.ListResourcesResponse(resources=[r.Resource(name=name) for name in names], next_page_token=token)

    server.script["ListResources"].extend([page("a", "b", token="t1"), page(token="t2"), page("c")])
    found = client.list_resources(session_id="s1", root="r1", owner="o", state="releasing", pool="p", page_size=2)
    assert [resource.name async for resource in found] == ["a", "b", "c"]
    asked = server.requests("ListResources")
    assert [request.page_token for request in asked] == ["", "t1", "t2"]
    for request in asked:
        request.page_token = ""
    assert (
        asked
        == [
            r.ListResourcesRequest(
                session_id="s1",
                root_session_id="r1",
                owner="o",
                state=r.RESOURCE_STATE_RELEASING,
                pool="p",
                page_size=2,
            )
        ]
        * 3
    )
    assert [_ async for _ in client.list_resources()] == []
    assert server.requests("ListResources")[-1] == r.ListResourcesRequest()


@pytest.mark.parametrize("how", [GONE, Refuse(UNAVAILABLE, "SHUTTING_DOWN"), END], ids=["gone", "stopping", "ended"])
async def test_a_watcher_opens_a_stream_that_broke_again(server: FakeServer, client: AsyncClient, how: Any) -> None:
    news = turns.WatchOwnerResponse()  # of a later version
    script = [*release("a", "b", "a"), news, how, *release("b", "c"), how, GONE, *release("d"), asyncio.Event()]
    server.script["WatchOwner"].extend(script)
    watching = client.watch_owner("host-1")
    # Once a stream, and what was not detached again in the next one.
    assert [(await anext(watching)).name for _ in range(5)] == ["a", "b", "b", "c", "d"]
    assert server.requests("WatchOwner") == [turns.WatchOwnerRequest(owner="host-1")] * 4
    await watching.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(server.cancelled["WatchOwner"].wait(), 30)


async def test_a_watcher_whose_stream_reaches_its_time_opens_another(server: FakeServer, client: AsyncClient) -> None:
    server.script["WatchOwner"].extend([*release("a"), asyncio.Event()])
    watching = client.watch_owner("host-1", timeout=0.2)
    assert (await anext(watching)).name == "a"
    again = asyncio.create_task(anext(watching))  # type: ignore[arg-type]
    while len(server.requests("WatchOwner")) < 2:
        await asyncio.sleep(0)
    server.script["WatchOwner"].extend(release("b"))
    assert (await again).name == "b"


async def test_a_watcher_waits_longer_each_time(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[int, float]] = []
    policy = RetryPolicy(initial=0.001, maximum=1_000.0)
    real = RetryPolicy.delay

    def delay(self: RetryPolicy, error: RoostError, attempt: int, remaining: float) -> float | None:
        waits.append((attempt, remaining))
        return real(policy, error, 0, remaining)

    monkeypatch.setattr(RetryPolicy, "delay", delay)
    server.script["WatchOwner"].extend([END, END, END, *release("a"), END, END, *release("b"), asyncio.Event()])
    async with AsyncClient(server.target, retry=policy) as client:
        watching = client.watch_owner("host-1")
        assert [(await anext(watching)).name for _ in range(2)] == ["a", "b"]
    # A stream that told something starts the waits anew.
    assert [attempt for attempt, _ in waits] == [0, 1, 2, 0, 1]
    assert {remaining for _, remaining in waits} == {float("inf")}


async def test_a_watcher_is_told_what_is_an_answer(server: FakeServer, client: AsyncClient) -> None:
    server.script["WatchOwner"].append(Refuse(grpc.StatusCode.PERMISSION_DENIED, "KEY_SCOPE"))
    with pytest.raises(KeyScope):
        await anext(client.watch_owner("host-1"))
    server.script["WatchOwner"].extend([*release("a"), Refuse(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED")])
    watching = client.watch_owner("host-1")
    assert (await anext(watching)).name == "a"
    with pytest.raises(SessionClosed):
        await anext(watching)


async def test_a_watcher_that_cannot_reach_its_server_is_told() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=0.2, retry=RetryPolicy(initial=0.001, maximum=0.01)) as client:
        with pytest.raises((ConnectionFailed, CallTimeout)):
            await anext(client.watch_owner("host-1"))


async def test_without_retries_a_watcher_is_told_of_the_break(server: FakeServer) -> None:
    server.script["WatchOwner"].extend([*release("a"), GONE, END])
    async with AsyncClient(server.target, owner="host-1", retry=NO_RETRY) as client:
        watching = client.watch_owner()
        assert (await anext(watching)).name == "a"
        with pytest.raises(ConnectionFailed):
            await anext(watching)
        with pytest.raises(ShuttingDown):
            await anext(client.watch_owner())
    assert {request.owner for request in server.requests("WatchOwner")} == {"host-1"}


async def test_the_blocking_client_does_the_same(server: FakeServer) -> None:
    server.script["WatchOwner"].extend([*release("a"), GONE, *release("a"), asyncio.Event()])
    server.script["DetachResource"].append(r.DetachResourceResponse(released=True))

    def use() -> list[str]:
        with Client(server.target, owner="host-1") as client:
            client.attach_resource("s1", "client", pool=resource_pool("boxes"), wait=1)
            watching = client.watch_owner()
            found = [next(watching).name, next(watching).name]
            watching.close()  # type: ignore[attr-defined]
            assert client.detach_resource("s1", "a").released
            return found

    assert await asyncio.to_thread(use) == ["a", "a"]
