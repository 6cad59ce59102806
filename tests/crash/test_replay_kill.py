"""kill -9 of the server at random moments of a replay: what was acknowledged is there once, the rest goes on.

I5 (an acknowledged write survives any crash), I21 (the same request_id has one effect, across restarts) and I24 (a
caller that vanishes leaves I1-I3 true) seen from outside: the export is the input byte for byte, and no slot is held.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.errors import TurnInProgress
from roost.workload import generate, transcripts
from roost.workload.fates import Fates
from roost.workload.local_server import LocalServer
from roost.workload.replay import Replay, ReplayOptions, ReplayReport, make_client
from roost.workload.transcripts import Conversation
from roost.workload.verify import verify

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "airline-trajectories.jsonl"

pytestmark = pytest.mark.crash


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[LocalServer]:
    server = LocalServer(directory, ["--max-resident", "10"])
    server.start()
    try:
        await server.ready()
        yield server
    finally:
        await asyncio.to_thread(server.stop)


async def replay_through_kills(
    directory: Path,
    conversations: list[Conversation],
    kills: list[int],
    concurrency: int = 24,
    fates: Fates = Fates(),  # noqa: B008 - it is frozen
) -> tuple[ReplayReport, int]:
    """Play; kill the server each time that many turns were acknowledged; then verify everything. Returns what
    was played, and how many lives the server had."""
    done = 0
    due = asyncio.Event()
    left = sorted(kills)

    def on_turn(count: int) -> None:
        nonlocal done
        done += count
        if left and done >= left[0]:
            due.set()

    async def killer(server: LocalServer) -> None:
        while left:
            await due.wait()
            due.clear()
            while left and done >= left[0]:  # two moments may have passed since we last looked: one kill
                left.pop(0)
            server.kill()  # with calls in flight on all sides
            server.start()
            await server.ready()

    options = ReplayOptions(prefix="kill:", concurrency=concurrency, fates=fates)
    async with serving(directory) as server, make_client(server.target, 60.0) as client:
        player = Replay(client, conversations, options, on_turn)
        async with asyncio.TaskGroup() as group:  # a server that does not come back fails the test at once
            group.create_task(killer(server))
            playing = group.create_task(player.run())
        report = playing.result()
        assert report.failures == []
        assert report.vanished == 0  # I5
        assert report.played == report.turns
        assert server.lives > len(kills) / 2
        verdict = await verify(client, [(player.session_id(c), c) for c in conversations], fates=fates)
        assert verdict.differences == []
        assert (verdict.lost, verdict.duplicated, verdict.ok) == (0, 0, True)  # I5, I21
        stats = await client.get_stats()
        assert stats.gauges["slots_held"] == 0  # I1, I24
        assert stats.gauges["turns_running"] == 0
        assert stats.epoch == server.lives
        return report, server.lives


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
async def test_i5_i21_i24_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    conversations = list(transcripts.parse(generate.lines(30, seed)))
    total = sum(len(c.turns) for c in conversations)
    await replay_through_kills(tmp_path, conversations, rng.sample(range(1, total - 20), 2 if seed == 1 else 4))


@pytest.mark.long
async def test_i5_a_kill_before_the_first_acknowledged_turn_and_at_the_last(tmp_path: Path) -> None:
    conversations = list(transcripts.parse(generate.lines(6, seed=9)))
    total = sum(len(c.turns) for c in conversations)
    await replay_through_kills(tmp_path, conversations, [1, 2, total])


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")
async def test_i5_i21_i24_the_recorded_sessions_survive_kills(tmp_path: Path) -> None:
    rng = random.Random(20240515)
    await replay_through_kills(tmp_path, transcripts.read(RECORDED), rng.sample(range(1, 1790), 3), concurrency=32)


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")
@pytest.mark.long
async def test_i5_i8_i21_turns_that_fail_are_retried_or_end_their_sessions_through_three_kills(tmp_path: Path) -> None:
    """What is given up leaves its session with what was committed before, and one ABORTED record; all else is whole."""
    conversations, fates = transcripts.read(RECORDED), Fates(abort_rate=0.1, give_up_rate=0.02)
    given_up = sum(fates.given_up(c) > 0 for c in conversations)
    kills = [200, 700, 1_100]
    report, lives = await replay_through_kills(tmp_path, conversations, kills, concurrency=32, fates=fates)
    assert (report.given_up, report.failures, lives) == (given_up, [], 4)
    assert given_up >= 20
    assert report.aborted >= 100


async def test_i1_i24_a_turn_that_runs_at_the_kill_keeps_its_slot_and_its_lease(tmp_path: Path) -> None:
    """A restart does not end a running turn: it is charged again, and its commit is accepted."""
    async with serving(tmp_path) as server, make_client(server.target, 60.0) as client:
        async with client.turn("held", open=True) as turn:
            server.kill()
            server.start()
            await server.ready()
            assert (await client.get_stats()).gauges["slots_held"] == 1
            with pytest.raises(TurnInProgress):
                await client.begin_turn("held")
            await turn.commit("over the restart")
        assert (await client.get_session("held")).turn_count == 1
        assert (await client.get_stats()).gauges["slots_held"] == 0
