"""The HTTP session server of examples/ under concurrent retries, deletes in mid-call and aborts.

What the gateways it stands for got wrong must not happen: a turn that was answered and is not there (I3, I5), a deleted
session that comes back (I13), a retry that destroys a good turn before it has succeeded, a 5xx.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
from aiohttp import web
from conftest import Start
from roost_server import Api, Server

from roost.v1 import types_pb2 as types

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import session_server

EXAMPLE = Path(session_server.__file__)
COMMITTED, SUPERSEDED = types.RECORD_STATUS_COMMITTED, types.RECORD_STATUS_SUPERSEDED
PROVISIONAL = types.RECORD_STATUS_PROVISIONAL
Message = dict[str, str]


@dataclass
class Gateway:
    """A session server in front of a Roost."""

    http: aiohttp.ClientSession
    address: str
    roost: Server
    statuses: Counter[int] = field(default_factory=Counter)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        async with self.http.request(method, self.address + path, json=body) as response:
            self.statuses[response.status] += 1
            assert response.status < 500, await response.text()
            return response.status, await response.json(content_type=None), response.headers

    async def create(self) -> str:
        status, body, _ = await self.call("POST", "/sessions")
        assert status == 200
        return str(body["session_id"])

    async def chat(self, name: str, messages: list[Message]) -> tuple[int, Any, Any]:
        return await self.call("POST", f"/sessions/{name}/v1/chat/completions", {"messages": messages})


@asynccontextmanager
async def gateway_on(roost: Server) -> AsyncIterator[Gateway]:
    runner = web.AppRunner(await session_server.served(roost.address), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Gateway(http, f"http://127.0.0.1:{runner.addresses[0][1]}", roost)
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def gateway(start: Start) -> AsyncIterator[Gateway]:
    async with gateway_on(start("--max-resident", "8")) as made:
        yield made


def said(name: str, number: int) -> Message:
    return {"role": "user", "content": f"question {number} of {name} " + "word " * 5}


def answer_of(body: Any) -> Message:
    message: Message = body["choices"][0]["message"]
    return message


def test_it_is_under_120_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 120


async def test_the_life_of_a_session(gateway: Gateway) -> None:
    name = await gateway.create()
    first = [said(name, 1)]
    status, body, headers = await gateway.chat(name, first)
    assert (status, body["choices"][0]["finish_reason"], "x-sglang-aborted" in headers) == (200, "stop", False)
    second = [*first, answer_of(body), said(name, 2)]
    assert (await gateway.chat(name, second))[0] == 200
    # The same again: the turn is taken back when the new one is there.
    assert (await gateway.chat(name, second))[0] == 200
    _, found, _ = await gateway.call("GET", f"/sessions/{name}/samples")
    (sample,) = found
    text = bytes(sample["tokens"]).decode()
    assert text.startswith("<user>question 1")
    assert text.count("<assistant>") == text.count("</>") / 2 == 2
    assert sum(sample["loss_mask"]) == sum(len(session_server.tokenize(m)) for m in map(answer_of, [body, body]))
    assert (await gateway.call("DELETE", f"/sessions/{name}"))[1] == {"turns": 2}
    for status, body, _ in (await gateway.chat(name, first), await gateway.call("POST", f"/sessions/{name}/abort")):
        assert (status, body["error"]["code"]) == (410, "SESSION_CLOSED")
    assert len((await gateway.call("GET", f"/sessions/{name}/samples"))[1]) == 1


async def test_bad_requests_are_told_so(gateway: Gateway) -> None:
    name = await gateway.create()
    for body in (None, [], {}, {"messages": []}, {"messages": "x"}, {"messages": [{"role": "user"}]}):
        status, text, _ = await gateway_text(gateway, name, body)
        assert (status, "messages" in text) == (400, True)
    assert (await gateway.chat("nobody", [said("x", 1)]))[0] == 404
    assert (await gateway.chat(name, [{"role": "user", "content": "half of a \ud83d pair"}]))[0] == 200


async def test_a_rewind_that_is_refused_stops_nothing(gateway: Gateway) -> None:
    name = await gateway.create()
    messages: list[Message] = []
    for n in range(10):
        messages.append(said(name, n))
        messages.append(answer_of((await gateway.chat(name, messages))[1]))
    status, body, _ = await gateway.chat(name, messages[:1])
    assert (status, body["error"]["code"]) == (409, "REWIND_REFUSED")
    assert (await gateway.chat(name, [*messages, said(name, 10)]))[0] == 200


async def gateway_text(gateway: Gateway, name: str, body: Any) -> tuple[int, str, None]:
    url = f"{gateway.address}/sessions/{name}/v1/chat/completions"
    async with gateway.http.post(url, json=body) as response:
        return response.status, await response.text(), None


async def test_an_abort_answers_with_what_there_is_and_the_retry_starts_before_it(gateway: Gateway) -> None:
    name = await gateway.create()
    messages = [said(name, 1)]
    long = [{"role": "user", "content": "word " * 1_000}]
    asked = asyncio.create_task(gateway.chat(name, long))
    with gateway.roost.api() as api:
        await running(api, name)
        await gateway.call("POST", f"/sessions/{name}/abort")
        status, body, headers = await asked
        assert (status, headers["x-sglang-aborted"]) == (200, "1")
        assert body["choices"][0]["finish_reason"] == "abort"
        assert api.get(name).turn_count == 0
        assert (await gateway.chat(name, messages))[0] == 200
        records = api.history(name)
    assert [(r.turn, r.attempt, r.status) for r in records] == [(1, 1, SUPERSEDED), (1, 2, COMMITTED)]
    assert records[1].record.tokens.offset == 0


async def test_a_caller_that_hangs_up_aborts_its_turn(gateway: Gateway) -> None:
    name = await gateway.create()
    asked = asyncio.create_task(gateway.chat(name, [{"role": "user", "content": "word " * 1_000}]))
    with gateway.roost.api() as api:
        await running(api, name)
        asked.cancel()
        while api.get(name).activity == types.ACTIVITY_RUNNING:
            await asyncio.sleep(0)
        assert [r.status for r in api.history(name)] == [PROVISIONAL]


async def running(api: Api, name: str) -> None:
    while api.get(name).activity != types.ACTIVITY_RUNNING:
        await asyncio.sleep(0)


@dataclass
class Told:
    """What agents were answered in one session."""

    name: str
    answered: list[tuple[list[Message], Message]] = field(default_factory=list)
    deleted: bool = False


async def agent(gateway: Gateway, seed: int, turns: int = 6) -> Told:
    """Plays a conversation. Each request is sent several times at once, some are aborted, and some sessions are deleted
    while they run. Some it sends again after it was answered, as an agent would that had given the answer up."""
    rng = random.Random(seed)
    told = Told(await gateway.create())
    messages: list[Message] = []
    for number in range(1, turns + 1):
        messages.append(said(told.name, number))
        answer, again = None, rng.random() < 0.3
        while answer is None or again:
            again = again and answer is None
            calls = [gateway.chat(told.name, messages) for _ in range(rng.randint(1, 3))]
            if rng.random() < 0.2:
                calls.append(gateway.call("POST", f"/sessions/{told.name}/abort"))
            deletes = rng.random() < 0.03
            if deletes:
                calls.insert(rng.randrange(len(calls) + 1), gateway.call("DELETE", f"/sessions/{told.name}"))
            for status, body, headers in await asyncio.gather(*calls):
                if status == 200 and "choices" in body and "x-sglang-aborted" not in headers:
                    answer = answer_of(body)
                    told.answered.append((list(messages), answer))
                elif status != 200:
                    assert status in (409, 410), (status, body)
            if deletes:
                told.deleted = True
                for _ in range(3):
                    status, body, _ = await gateway.chat(told.name, messages)
                    assert (status, body["error"]["code"]) == (410, "SESSION_CLOSED")
                return told
        messages.append(answer)
    return told


async def test_retries_deletes_and_aborts_all_at_once(gateway: Gateway) -> None:
    played = await asyncio.gather(*(agent(gateway, seed) for seed in range(40)))
    assert sum(told.deleted for told in played) >= 3
    assert gateway.statuses[409] > 20
    with gateway.roost.api() as api:
        superseded = 0
        for told in played:
            session = api.get(told.name)
            assert session.state == (types.SESSION_STATE_CLOSED if told.deleted else types.SESSION_STATE_OPEN)
            assert session.activity == types.ACTIVITY_IDLE
            kept = [r for r in api.history(told.name) if r.outcome == types.TURN_OUTCOME_COMMITTED]
            superseded += sum(r.status == SUPERSEDED for r in kept)
            # No lost turn: every answer was stored before it was given, and nothing else was.
            answers = Counter(json.dumps(answer) for _, answer in told.answered)
            stored = Counter(json.dumps(json.loads(r.record.content)[-1]) for r in kept)
            if told.deleted:
                # A delete can come between a commit and its answer.
                assert answers <= stored
            else:
                assert answers == stored
            # The line is one that the agent was told.
            line = [m for r in kept if r.status == COMMITTED for m in json.loads(r.record.content)]
            if not told.deleted:
                messages, answer = told.answered[-1]
                assert line == [*messages, answer]
            assert len(line) == 2 * session.turn_count
        assert superseded > 5
        gauges = api.stats().gauges
        assert (gauges["slots_held"], gauges["turns_running"], gauges["waiting"]) == (0, 0, 0)
