"""The clients against a real server, where turns go wrong and are trained on: given up, retried, generated on from,
taken over, interrupted, rewound, rewarded, exported, followed over a restart."""

from __future__ import annotations

import asyncio
import threading

import pytest
from conftest import Start
from roost_server import Server, fresh

from roost.client import AsyncClient, Client, token_span
from roost.client.training import areal_rows, slime_samples
from roost.errors import LeaseLost, LeaseMalformed, RewindRefused, TrajectoryEmpty, TurnInProgress
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

COMMITTED, ABORTED = types.RECORD_STATUS_COMMITTED, types.RECORD_STATUS_ABORTED
SUPERSEDED, PROVISIONAL = types.RECORD_STATUS_SUPERSEDED, types.RECORD_STATUS_PROVISIONAL


async def lines(client: AsyncClient, name: str) -> list[tuple[int, int, types.RecordStatus, bytes]]:
    return [(r.turn, r.attempt, r.status, r.record.content) async for r in client.read_history(name)]


async def test_i8_a_retry_generates_on_from_what_the_attempt_left(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        async with client.turn(name, open=True) as turn:
            assert turn.provisional is None
            turn.record(b"Once upon", tokens=[1, 2], finish_reason="abort")
            answer = await turn.abort()
            assert (answer.status, answer.turn, answer.attempt) == (PROVISIONAL, 1, 1)
        async with client.turn(name, want_provisional=True) as turn:
            assert (turn.number, turn.attempt, len(turn.checkpoint_tokens)) == (1, 2, 0)
            assert turn.provisional is not None
            partial = turn.provisional.record
            assert (partial.content, partial.finish_reason) == (b"Once upon", "abort")
            turn.record(partial.content + b" a time", tokens=[1, 2, 3, 4])
        assert await lines(client, name) == [
            (1, 1, SUPERSEDED, b"Once upon"),
            (1, 2, COMMITTED, b"Once upon a time"),
        ]


async def test_a_turn_that_is_given_up_is_aborted_for_good(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        async with client.turn(name, open=True) as turn:
            turn.record(b"broken")
            answer = await turn.abort(final=True)
            assert answer.status == ABORTED
        async with client.turn(name, want_provisional=True) as turn:
            assert turn.provisional is None
            turn.record(b"other")
        assert await lines(client, name) == [(1, 1, ABORTED, b"broken"), (1, 2, COMMITTED, b"other")]


async def test_i3_a_takeover_ends_the_block_of_the_one_before(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as first, AsyncClient(shared.address) as second:

        async def taken_over() -> None:
            async with first.turn(name, open=True, lease=5):
                async with second.turn(name, if_running="takeover") as other:
                    other.record(b"second")
                # The next renewal tells: the block is cancelled where it waits.
                await asyncio.Event().wait()

        with pytest.raises(LeaseLost):
            await taken_over()
        assert await lines(second, name) == [(1, 1, SUPERSEDED, b""), (1, 2, COMMITTED, b"second")]


async def test_an_interrupt_reaches_the_holder_and_whoever_waits_is_told(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as holder, AsyncClient(shared.address) as other:
        async with holder.turn(name, open=True, lease=5) as turn:
            answer = await other.interrupt_session(name)
            assert answer.turn == 1
            await turn.interrupt_requested.wait()
            turn.record(b"what there was")
            await turn.abort()
        assert [line[2] for line in await lines(other, name)] == [PROVISIONAL]
        async with holder.turn(name) as turn:
            with pytest.raises(TurnInProgress):
                await other.begin_turn(name)
            await other.interrupt_session(name, force=True)
            with pytest.raises(LeaseLost):
                await turn.commit(b"too late")
            assert turn.finished


async def test_a_rewind_keeps_what_it_takes_back_until_it_commits(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        for turn_number in range(1, 4):
            async with client.turn(name, open=True) as turn:
                turn.record(b"turn %d" % turn_number, tokens=[turn_number])
        async with client.turn(name) as turn:
            assert list(turn.checkpoint_tokens) == [1, 2, 3]
            with pytest.raises(RewindRefused):
                await turn.commit(b"no", base_turn=9)
            assert (await client.get_session(name)).turn_count == 3
            turn.record(b"other", tokens=token_span([7], offset=1), base_turn=1)
        assert [line for line in await lines(client, name) if line[2] == COMMITTED] == [
            (1, 1, COMMITTED, b"turn 1"),
            (2, 2, COMMITTED, b"other"),
        ]
        async with client.turn(name) as turn:
            assert (turn.number, list(turn.checkpoint_tokens)) == (3, [1, 7])
            await turn.abort(final=True)


async def test_i7_a_long_checkpoint_is_read_before_the_block_starts(shared: Server) -> None:
    name = fresh()
    length, step = 600_000, 200_000
    async with AsyncClient(shared.address) as client:
        for start in range(0, length, step):
            async with client.turn(name, open=True) as turn:
                turn.record(b"long", tokens=range(start, start + step), state=b"state")
        async with client.turn(name) as turn:
            assert not turn.checkpoint.omitted
            assert turn.checkpoint_tokens.tolist() == list(range(length))
            assert turn.checkpoint.state == b"state"
        grant = (await client.begin_turn(name)).grant
        assert grant.checkpoint.omitted
        got = bytearray()
        async for part in client.get_checkpoint(name, grant.lease, from_offset=length - 10):
            got += part.token_ids
        assert len(got) == 40
        with pytest.raises(LeaseMalformed):
            async for _ in client.get_checkpoint(name, b"no lease"):
                pass


async def test_rewards_and_exports_become_rows(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client:
        await client.open_session(name)
        with pytest.raises(TrajectoryEmpty):
            await client.finish_trajectory(name)
        for turn_number in range(2):
            async with client.turn(name) as turn:
                ids = [10 * turn_number + n for n in range(3)]
                span = token_span(
                    ids,
                    offset=turn.checkpoint.length,
                    loss_mask=[0, 1, 1],
                    logprobs=[0.0, -0.5, -0.25],
                    weight_versions=[(-1, 1), (turn_number, 2)],
                )
                turn.record(b"said", tokens=span, finish_reason="length" if turn_number else "stop")
        await client.set_reward(name, 0.5, turn=1)
        done = await client.finish_trajectory(name, reward=1.0)
        both = {}
        for style in ("individual", "concat"):
            (both[style],) = [
                one
                async for one in client.trajectories([name], style=style, discount=0.5)  # type: ignore[arg-type]
            ]
            assert both[style].trajectory_id == done.trajectory.trajectory_id
        single = areal_rows(both["individual"])
        assert [row["input_ids"].tolist() for row in single] == [[[0, 1, 2]], [[0, 1, 2, 10, 11, 12]]]
        assert [row["loss_mask"].tolist() for row in single] == [[[0, 1, 1]], [[0, 0, 0, 0, 1, 1]]]
        assert [row["rewards"].tolist() for row in single] == [[1.0], [1.0]]  # 0.5 + 0.5 * 1.0, and 1.0
        (whole,) = areal_rows(both["concat"])
        assert whole["loss_mask"].tolist() == [[0, 1, 1, 0, 1, 1]]
        assert whole["versions"].tolist() == [[-1, 0, 0, -1, 1, 1]]
        assert whole["logprobs"].tolist() == [[0.0, -0.5, -0.25, 0.0, -0.5, -0.25]]
        assert [sample["status"] for sample in slime_samples(both["individual"])] == ["completed", "truncated"]
        assert [sample["status"] for sample in slime_samples(both["concat"])] == ["truncated"]
        (result,) = await client.ack_trajectories([both["concat"].trajectory_id])
        assert not result.repeated
        assert [one async for one in client.trajectories([name])] == []
        assert len([one async for one in client.trajectories([name], selection="all")]) == 1
        assert len([one async for one in client.trajectories(trajectory_ids=[done.trajectory.trajectory_id])]) == 1


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_i5_a_follower_misses_nothing_and_sees_nothing_twice_over_a_restart(start: Start, killed: bool) -> None:
    server = start()
    seen: list[str] = []
    arrived = asyncio.Event()

    async def follow(client: AsyncClient) -> None:
        async for one in client.trajectories(follow=True):
            seen.append(one.trajectory_id)
            arrived.set()

    async def finished(client: AsyncClient) -> str:
        name = fresh()
        async with client.turn(name, open=True) as turn:
            turn.record(b"x")
        return (await client.finish_trajectory(name)).trajectory.trajectory_id

    async with AsyncClient(server.address) as client, AsyncClient(server.address) as reader:
        following = asyncio.create_task(follow(reader))
        expected = [await finished(client) for _ in range(3)]
        while len(seen) < 3:
            arrived.clear()
            await arrived.wait()
        if killed:
            server.kill()
        else:
            server.terminate()
        start(listen=server.address)
        expected += [await finished(client) for _ in range(3)]
        while len(seen) < 6:
            arrived.clear()
            await arrived.wait()
        following.cancel()
    assert seen == expected


def test_the_blocking_client_does_all_of_it(shared: Server) -> None:
    name = fresh()
    with Client(shared.address) as client:
        with client.turn(name, open=True) as turn:
            turn.record("partial")
            assert turn.abort().status == PROVISIONAL
        with client.turn(name, want_provisional=True) as turn:
            assert turn.provisional is not None
            turn.record(turn.provisional.record.content + b" and the rest", tokens=[1, 2])
        started, told = threading.Event(), threading.Event()

        def hold() -> None:
            with client.turn(name) as turn:
                started.set()
                while not turn.interrupt_requested:
                    pass
                turn.abort(final=True)
            told.set()

        holder = threading.Thread(target=hold)
        holder.start()
        assert started.wait(60)
        assert client.interrupt_session(name).turn == 2
        holder.join(60)
        assert told.is_set()
        with client.turn(name) as turn:
            assert list(turn.checkpoint_tokens) == [1, 2]
            assert [part.length for part in client.get_checkpoint(name, turn.grant.lease)][:1] == [2]
            turn.record("again", base_turn=0)
        client.set_reward(name, 1.0)
        client.finish_trajectory(name)
        (one,) = client.trajectories([name], style="concat")
        assert (one.trajectory.turn_count, len(one.rows())) == (1, 1)
        assert client.ack_trajectories([one.trajectory_id])[0].repeated is False
        statuses = [record.status for record in client.read_history(name)]
    assert statuses == [SUPERSEDED, SUPERSEDED, ABORTED, COMMITTED]


async def test_continue_reports_timings_and_keeps_the_turn(shared: Server) -> None:
    name = fresh()
    async with AsyncClient(shared.address) as client, client.turn(name, open=True) as turn:
        answer = await turn.commit(b"one", then="continue", timings={"engine_ms": 12.5})
        assert answer.HasField("next")
        assert (turn.number, turn.attempt) == (2, 1)
        with pytest.raises(TurnInProgress):
            await client.begin_turn(name)
        final: turns.CommitTurnResponse = await turn.commit(b"two", then="close")
        assert final.HasField("receipt")
