"""`roost.workload.verify` against a real server: what it blames is what is wrong."""

from __future__ import annotations

import json

from roost_server import Server, fresh

from roost.client import AsyncClient
from roost.workload.transcripts import Conversation, parse_line
from roost.workload.verify import TURN_LABEL, verify


def conversation(name: str) -> Conversation:
    messages = [{"role": role, "content": f"{role} {n} of {name}"} for n, role in enumerate(["user", "assistant"] * 3)]
    return parse_line(json.dumps({"session": name, "messages": messages}).encode())


async def played(client: AsyncClient, source: Conversation, finish_after: int = 0) -> str:
    name = fresh()
    for number, content in enumerate(source.turns, 1):
        async with client.turn(name, open=True) as turn:
            turn.record(content, labels={TURN_LABEL: str(number)})
        if number == finish_after:
            await client.finish_trajectory(name)
    return name


async def test_the_session_that_is_not_there_is_the_one_that_is_blamed(shared: Server) -> None:
    async with AsyncClient(shared.address) as client:
        sources = [conversation(str(n)) for n in range(6)]
        told = [(await played(client, source), source) for source in sources]
        told[3] = (fresh("unknown"), sources[3])
        verdict = await verify(client, told)
        assert [difference.session_id for difference in verdict.differences] == [told[3][0]]
        assert (verdict.sessions, verdict.lost) == (5, len(sources[3].turns))


async def test_a_session_of_several_trajectories_is_one_conversation(shared: Server) -> None:
    async with AsyncClient(shared.address) as client:
        sources = [conversation(str(n)) for n in range(3)]
        told = [(await played(client, source, n), source) for n, source in enumerate(sources)]
        verdict = await verify(client, told)
        assert verdict.ok, verdict.differences
        assert verdict.sessions == 3
