"""Streams that the client puts together: exports that are followed over breaks, checkpoints in parts."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from fake_server import END, FakeServer, Refuse

from roost.client import AsyncClient, RetryPolicy
from roost.errors import CallTimeout, ConnectionFailed, LeaseLost, RoostError, SessionNotFound
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import trajectory_service_pb2 as t
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

GONE = Refuse(grpc.StatusCode.UNAVAILABLE)
STOPPING = Refuse(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def part(number: int, *contents: bytes, first: bool = True, last: bool = True) -> t.ExportTrajectoriesResponse:
    made = t.ExportTrajectoriesResponse(session_id="s1", last=last)
    if first:
        made.session.session_id = "s1"
        made.trajectory.trajectory_id = f"u-{number}"
        made.trajectory.ready_sequence = number * 10
    made.records.extend(types.Record(record=types.RecordInput(content=content)) for content in contents)
    return made


def found(one: Any) -> tuple[str, list[bytes]]:
    return one.trajectory_id, [record.record.content for record in one.records]


async def test_parts_become_whole_trajectories(server: FakeServer, client: AsyncClient) -> None:
    server.script["ExportTrajectories"].extend(
        [part(1, b"a", last=False), part(1, b"b", first=False), part(2), part(3, b"c"), END]
    )
    got = [found(one) async for one in client.trajectories(["s1"], discount=0.5, include_superseded=True)]
    assert got == [("u-1", [b"a", b"b"]), ("u-2", []), ("u-3", [b"c"])]
    (request,) = server.requests("ExportTrajectories")
    assert (list(request.session_ids), request.discount, request.include_superseded) == (["s1"], 0.5, True)
    assert (request.selection, request.style) == (t.TRAJECTORY_SELECTION_READY, t.EXPORT_STYLE_INDIVIDUAL)


@pytest.mark.parametrize("how", [GONE, STOPPING], ids=["gone", "stopping"])
async def test_a_follower_goes_on_behind_the_last_whole_one(
    server: FakeServer, client: AsyncClient, how: Refuse
) -> None:
    server.script["ExportTrajectories"].extend(
        [
            *(part(1, b"a"), part(2, b"half", last=False), how),
            *(part(2, b"half", last=False), part(2, b"rest", first=False), how),
            *(part(3, b"c"), asyncio.Event()),
        ]
    )
    got = []
    async for one in client.trajectories(follow=True, after_sequence=5, limit=3):
        got.append(found(one))
    assert got == [("u-1", [b"a"]), ("u-2", [b"half", b"rest"]), ("u-3", [b"c"])]
    asked = [(r.after_sequence, r.limit, r.follow) for r in server.requests("ExportTrajectories")]
    assert asked == [(5, 3, True), (10, 2, True), (20, 1, True)]


async def test_who_does_not_follow_is_told_of_the_break(server: FakeServer, client: AsyncClient) -> None:
    server.script["ExportTrajectories"].extend([part(1, b"a"), part(2, b"half", last=False), GONE])
    stream = client.trajectories()
    assert found(await anext(stream)) == ("u-1", [b"a"])
    with pytest.raises(ConnectionFailed):
        await anext(stream)
    assert len(server.requests("ExportTrajectories")) == 1


async def test_a_follower_that_cannot_reach_its_server_is_told() -> None:
    policy = RetryPolicy(initial=0.001, maximum=0.01)
    async with AsyncClient("127.0.0.1:1", timeout=0.2, retry=policy) as client:
        # Which of the two says how the last of its attempts ended.
        with pytest.raises((ConnectionFailed, CallTimeout)):
            await anext(client.trajectories(follow=True))


async def test_a_refusal_ends_a_follower_too(server: FakeServer, client: AsyncClient) -> None:
    server.script["ExportTrajectories"].append(Refuse(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"))
    with pytest.raises(SessionNotFound):
        async for _ in client.trajectories(["nobody"], follow=True):
            pass


async def test_a_reader_that_leaves_ends_its_stream(server: FakeServer, client: AsyncClient) -> None:
    server.script["ExportTrajectories"].extend([part(1), asyncio.Event()])
    stream = client.trajectories(follow=True)
    assert found(await anext(stream)) == ("u-1", [])
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(server.cancelled["ExportTrajectories"].wait(), 30)


def grant_without_tokens(offset: int, length: int) -> turns.BeginTurnResponse:
    checkpoint = turns.Checkpoint(offset=offset, length=length, omitted=True)
    return turns.BeginTurnResponse(grant=turns.Grant(lease=b"L", turn=2, attempt=1, checkpoint=checkpoint))


def tokens(*values: int) -> turns.GetCheckpointResponse:
    ids = b"".join(value.to_bytes(4, "little") for value in values)
    return turns.GetCheckpointResponse(checkpoint=turns.Checkpoint(token_ids=ids))


async def test_i7_a_checkpoint_is_read_on_where_its_stream_broke(server: FakeServer, client: AsyncClient) -> None:
    server.script["BeginTurn"].append(grant_without_tokens(10, 15))
    server.script["GetCheckpoint"].extend([tokens(1, 2), GONE, tokens(3), GONE, tokens(4), tokens(5), END])
    async with client.turn("s1") as turn:
        assert list(turn.checkpoint_tokens) == [1, 2, 3, 4, 5]
        assert not turn.checkpoint.omitted
    assert [request.from_offset for request in server.requests("GetCheckpoint")] == [10, 12, 13]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([tokens(1), END, END], RoostError),
        ([Refuse(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")], LeaseLost),
    ],
    ids=["ends early", "refused"],
)
async def test_i24_a_turn_whose_checkpoint_cannot_be_read_is_aborted(
    server: FakeServer, client: AsyncClient, script: list[Any], error: type[RoostError]
) -> None:
    server.script["BeginTurn"].append(grant_without_tokens(0, 5))
    server.script["GetCheckpoint"].extend(script)
    with pytest.raises(error):
        async with client.turn("s1"):
            raise AssertionError("the block must not run")
    assert [request.lease for request in server.requests("AbortTurn")] == [b"L"]


async def test_a_client_that_interrupts_its_own_turn_need_not_wait_for_a_renewal(
    server: FakeServer, client: AsyncClient
) -> None:
    async with client.turn("s1") as one, client.turn("s2") as other:
        server.script["InterruptSession"].extend(
            [
                sessions.InterruptSessionResponse(),  # nothing ran
                sessions.InterruptSessionResponse(turn=7),  # another's
                sessions.InterruptSessionResponse(turn=1, repeated=True),  # of long ago
                sessions.InterruptSessionResponse(turn=1),
            ]
        )
        for _ in range(3):
            await client.interrupt_session("s1")
            assert not one.interrupt_requested.is_set()
        await client.interrupt_session("s1")
        assert one.interrupt_requested.is_set()
        assert not other.interrupt_requested.is_set()
    requests = server.requests("InterruptSession")
    assert len({request.request_id for request in requests}) == 4
