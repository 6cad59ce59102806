"""`client.turn` and the blocking client against a real server."""

from __future__ import annotations

import asyncio

import pytest
from roost_server import Server, fresh

from roost.client import AsyncClient, Client, open_options, token_span
from roost.errors import (
    LeaseLost,
    PathCollision,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    TenantTurns,
    TokenPrefixMismatch,
    TurnEnded,
    TurnInProgress,
    TurnMismatch,
)
from roost.v1 import types_pb2 as types

OPEN = types.SESSION_STATE_OPEN


async def test_i4_i7_turns_commit_and_the_next_starts_from_their_checkpoint(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        async with client.turn(name, open=open_options(labels={"kind": "test"})) as turn:
            assert (turn.number, turn.attempt, turn.created, turn.checkpoint.length) == (1, 1, True, 0)
            turn.record("hello", tokens=[1, 2, 3], state=b"one")
        async with client.turn(name, expected_turn=2, expected_head_version=1) as turn:
            assert list(turn.checkpoint_tokens) == [1, 2, 3]
            assert turn.checkpoint.state == b"one"
            assert not turn.created
            await turn.commit(b"{}", tokens=[4], then="continue")
            assert (turn.number, turn.checkpoint.length) == (3, 4)
            await turn.commit(b"[]", completed=True, then="close")
        session = await client.get_session(name)
        assert (session.turn_count, session.checkpoint_tokens, session.labels["kind"]) == (3, 4, "test")
        assert session.state == types.SESSION_STATE_CLOSED
        assert session.last_outcome == types.TURN_OUTCOME_COMPLETED
        history = [record async for record in client.read_history(name)]
        assert [record.record.content for record in history] == [b"hello", b"{}", b"[]"]
        assert history[0].record.content_type == "text/plain; charset=utf-8"


async def test_i8_an_exception_leaves_a_provisional_and_frees_the_slot(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with client.turn(name, open=True) as turn:
                turn.record("half an answer")
                _ = 1 / 0
        session = await client.get_session(name)
        assert (session.turn_count, session.provisional_turn, session.activity) == (0, 1, types.ACTIVITY_IDLE)
        assert session.last_outcome == types.TURN_OUTCOME_ABORTED
        (record,) = [record async for record in client.read_history(name)]
        assert (record.status, record.record.content) == (types.RECORD_STATUS_PROVISIONAL, b"half an answer")
        async with client.turn(name) as turn:
            assert (turn.number, turn.attempt) == (1, 2)


async def test_i24_cancellation_inside_the_block_aborts(shared: Server) -> None:
    name = fresh()
    inside = asyncio.Event()
    async with AsyncClient(shared.address) as client:

        async def body() -> None:
            async with client.turn(name, open=True):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await inside.wait()
        assert (await client.get_session(name)).activity == types.ACTIVITY_RUNNING
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        session = await client.get_session(name)
        assert (session.activity, session.provisional_turn) == (types.ACTIVITY_IDLE, 1)


async def test_i3_a_second_turn_is_refused_while_one_runs(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client, client.turn(name, open=True):
        with pytest.raises(TurnInProgress):
            await client.begin_turn(name)


async def test_a_session_that_closes_under_a_turn_ends_its_block(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client, AsyncClient(shared.address) as other:
        cancelled = False
        with pytest.raises(SessionClosed):  # noqa: PT012
            async with client.turn(name, open=True, lease=5) as turn:
                await other.close_session(name)
                try:
                    await asyncio.Event().wait()  # until a renewal finds out
                except asyncio.CancelledError:
                    cancelled = turn.lost.is_set()
                    raise
        assert cancelled


def test_the_blocking_client_does_the_same(shared: Server) -> None:
    name = fresh()
    with Client(shared.address) as client:
        with client.turn(name, open=True) as turn:
            assert turn.number == 1
            turn.record("one", tokens=[1])
        with pytest.raises(KeyError), client.turn(name) as turn:  # noqa: PT012
            turn.record("two")
            raise KeyError
        with client.turn(name) as turn:
            assert (turn.number, turn.attempt, list(turn.checkpoint_tokens)) == (2, 2, [1])
            turn.commit("two")
        assert client.get_session(name).turn_count == 2
        statuses = [record.status for record in client.read_history(name)]
        assert statuses == [
            types.RECORD_STATUS_COMMITTED,
            types.RECORD_STATUS_SUPERSEDED,
            types.RECORD_STATUS_COMMITTED,
        ]
        exported = list(client.export_trajectories([name], selection="all"))
        assert [record.record.content for part in exported for record in part.records] == [b"one", b"two"]
        assert client.close_session(name).closed
        with pytest.raises(SessionClosed):
            client.begin_turn(name)


async def test_refusals_are_typed(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        with pytest.raises(SessionNotFound):
            await client.begin_turn(name)
        await client.open_session(name)
        with pytest.raises(SessionExists):
            await client.open_session(name)
        again = await client.open_session(name, if_exists="return")
        assert not again.created
        with pytest.raises(TurnMismatch) as caught:
            await client.begin_turn(name, expected_turn=7)
        assert caught.value.metadata
        with pytest.raises(TokenPrefixMismatch):
            async with client.turn(name) as turn:
                turn.record("x", tokens=token_span([1], offset=5))
        await client.open_session(parent=name, name="scout")
        with pytest.raises(PathCollision):
            await client.open_session(parent=name, name="scout")


async def test_i21_a_repeated_request_has_one_effect(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        first = await client.begin_turn(name, open=True, request_id="begin-1")
        again = await client.begin_turn(name, open=True, request_id="begin-1")
        assert (again.grant.lease, again.grant.fence) == (first.grant.lease, first.grant.fence)
        committed = await client.commit_turn(name, first.grant.lease, request_id="commit-1")
        repeated = await client.commit_turn(name, first.grant.lease, request_id="commit-1")
        assert repeated.repeated
        assert repeated.turn == committed.turn == 1
        with pytest.raises(TurnEnded):
            await client.begin_turn(name, open=True, request_id="begin-1")
        assert (await client.get_session(name)).turn_count == 1


async def test_lists_iterate_over_pages(shared: Server) -> None:
    async with AsyncClient(shared.address) as client:
        root = (await client.open_session(fresh())).session.session_id
        children = [(await client.open_session(parent=root)).session.session_id for _ in range(7)]
        listed = [session.session_id async for session in client.list_sessions(root=root, page_size=3, state="open")]
        assert listed == [root, *children]
        async with client.turn(children[2]):
            running = [session.session_id async for session in client.list_sessions(root=root, running=True)]
            assert running == [children[2]]


async def test_a_full_server_is_waited_for_and_a_waiter_may_leave(start: object) -> None:
    server = start("--max-turns-per-tenant", "1")  # type: ignore[operator]
    async with AsyncClient(server.address) as client:
        async with client.turn("holder", open=True) as turn:
            with pytest.raises(TenantTurns) as caught:
                await client.begin_turn("next", open=True)
            assert caught.value.quota
            leaver = asyncio.create_task(client.begin_turn("leaver", open=True, wait=60))
            waiter = asyncio.create_task(client.begin_turn("waiter", open=True, wait=60))
            await until(client, "waiting", 2)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            await until(client, "waiting", 1)  # the server has heard of it
            await turn.commit("done")
        begun = await waiter
        assert begun.grant.turn == 1
        with pytest.raises(SessionNotFound):  # I24: a waiter that left has made nothing
            await client.get_session("leaver")
        await client.abort_turn("waiter", begun.grant.lease)
        assert (await client.get_stats()).gauges["slots_held"] == 0  # I1


async def until(client: AsyncClient, gauge: str, value: int) -> None:
    """Wait until a gauge of the server has a value."""
    async with asyncio.timeout(20):
        while (await client.get_stats()).gauges[gauge] != value:
            await asyncio.sleep(0.005)


async def test_renewal_keeps_a_turn_alive_past_its_lease_and_what_is_not_renewed_is_lost(start: object) -> None:
    """The slot of the turn that nobody renews is what the third turn waits for: the server itself says when the lease
    is over, and by then the other, begun before it with the same lease, would be over too."""
    server = start("--max-turns-per-tenant", "2")  # type: ignore[operator]
    async with AsyncClient(server.address) as client:
        async with client.turn("renewed", open=True, lease=5) as turn:
            async with client.turn("forgotten", open=True, lease=5) as forgotten:
                client._renewals.remove(forgotten)
                third = await client.begin_turn("third", open=True, wait=60)
                await client.abort_turn("third", third.grant.lease)
                session = await client.get_session("forgotten")
                assert session.last_outcome == types.TURN_OUTCOME_EXPIRED
                newer = await client.begin_turn("forgotten")
                with pytest.raises(LeaseLost):
                    await forgotten.commit("too late")
                assert forgotten.finished
            assert not turn.lost.is_set()
            turn.record("in time")
        assert (await client.get_session("renewed")).turn_count == 1
        assert (await client.get_session("forgotten")).turn_count == 0
        await client.commit_turn("forgotten", newer.grant.lease)
