"""The recorded conversations played as trees: a root for each airline task, its trials as children that tell it when
they are done, by hosts that poll for whatever has something to do, under small caps.

Guards I1 and I2 at every instant that is looked at, I15 for every notice, and I23 for what was played.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Server, letter

from roost.client import AsyncClient
from roost.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    mail_service_pb2,
    mail_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    turn_service_pb2_grpc,
    types_pb2,
)
from roost.v1 import turn_service_pb2 as turns
from roost.workload import transcripts
from roost.workload.transcripts import CONTENT_TYPE, Conversation
from roost.workload.verify import TURN_LABEL, verify

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "airline-trajectories.jsonl"
TREE_TURNS, TENANT_TURNS = 3, 6
HOSTS = 10
AT_ONCE = 4  # turns that a host plays before it lets others go first
pytestmark = pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")


def tree_of(session: str) -> str:
    """The task that a trial is of."""
    return session.rpartition("-")[0]


@dataclass
class Seen:
    """What hosts and the watcher have seen."""

    running: Counter[str] = field(default_factory=Counter)  # turns that surely run now, by tree
    handed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # notices to roots, by root
    samples: int = 0
    full: int = 0  # of the samples, how many found the tenant's cap reached


class Fleet:
    """Hosts of one program on one server."""

    def __init__(self, channel: Any, conversations: Sequence[Conversation]) -> None:
        self.sessions: Any = session_service_pb2_grpc.SessionServiceStub(channel)
        self.turns: Any = turn_service_pb2_grpc.TurnServiceStub(channel)
        self.mail: Any = mail_service_pb2_grpc.MailServiceStub(channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.trials = {each.session: each for each in conversations}
        self.left = Counter(tree_of(session) for session in self.trials)
        self.seen = Seen()

    # -- the trees

    async def spawn(self) -> None:
        """The roots, and their trials with what starts them."""
        for root in self.left:
            await self.open(root, wake_on_completion=True)
        for session in self.trials:
            await self.open(session, parent_session_id=tree_of(session))

    async def open(self, session_id: str, **options: Any) -> None:
        request = session_service_pb2.OpenSessionRequest(
            session_id=session_id, options=types_pb2.OpenOptions(**options)
        )
        if options.get("parent_session_id"):
            request.first_message.CopyFrom(letter(b"begin", trigger=True))
        await self.sessions.OpenSession(request, timeout=DEADLINE)

    # -- a host

    async def host(self, name: str) -> None:
        """Runs whatever has something to do, until every root has heard of all its trials."""
        while self.left.total():
            request = turns.PollTurnRequest(owner=name)
            request.wait.FromSeconds(1)
            polled = await self.turns.PollTurn(request, timeout=DEADLINE)
            if polled.session_id in self.trials:
                await self.play(polled.session_id, polled.grant)
            elif polled.session_id:
                await self.hear(polled.session_id, polled.grant)

    async def play(self, session: str, grant: Any) -> None:
        """Some turns of a trial. At its end it tells its root; every second one is closed with that."""
        contents, last_of_these = self.trials[session].turns, grant.turn + AT_ONCE - 1
        self.began(tree_of(session))
        while True:
            number = grant.turn
            record = types_pb2.RecordInput(
                content=contents[number - 1], content_type=CONTENT_TYPE, labels={TURN_LABEL: str(number)}
            )
            request = turns.CommitTurnRequest(session_id=session, lease=grant.lease, record=record)
            if number == len(contents):
                request.completion.content = session.encode()
                request.then = turns.THEN_CLOSE if session.endswith("1") else turns.THEN_IDLE
            elif number < last_of_these:
                request.then = turns.THEN_CONTINUE
            else:
                await self.send(session, b"go on")
            if request.then != turns.THEN_CONTINUE:
                self.ends(tree_of(session))
            told = await self.turns.CommitTurn(request, timeout=DEADLINE)
            assert told.turn == number
            if request.then != turns.THEN_CONTINUE:
                return
            grant = told.next

    async def hear(self, root: str, grant: Any) -> None:
        """A turn of a root: what its trials have told it."""
        self.began(root)
        assert grant.mail, "a root runs for what it is told"
        self.seen.handed[root] += [mail.message_id for mail in grant.mail]
        assert all(mail.kind == types_pb2.MESSAGE_KIND_COMPLETED for mail in grant.mail)
        self.left[root] -= len(grant.mail)
        record = types_pb2.RecordInput(content=b"\n".join(mail.content for mail in grant.mail))
        self.ends(root)
        request = turns.CommitTurnRequest(session_id=root, lease=grant.lease, record=record)
        await self.turns.CommitTurn(request, timeout=DEADLINE)

    async def send(self, session: str, content: bytes) -> None:
        request = mail_service_pb2.SendMessageRequest(session_id=session, message=letter(content, trigger=True))
        await self.mail.SendMessage(request, timeout=DEADLINE)

    def began(self, tree: str) -> None:
        """From here to `ends` the turn holds its slot: the caps hold for as many (I2)."""
        running = self.seen.running
        running[tree] += 1
        assert running[tree] <= TREE_TURNS
        assert running.total() <= TENANT_TURNS

    def ends(self, tree: str) -> None:
        self.seen.running[tree] -= 1

    # -- who watches them

    async def watch(self) -> None:
        """Samples, until it is cancelled. A list is not of one instant; what is in two lists that follow each other ran
        between them, all at once."""
        before: dict[tuple[str, int, int], Any] = {}
        while True:
            gauges = (await self.admin.GetStats(admin_service_pb2.GetStatsRequest(), timeout=DEADLINE)).gauges
            assert gauges["slots_held"] <= TENANT_TURNS
            self.seen.full += gauges["slots_held"] == TENANT_TURNS
            now = {(s.session_id, s.running.turn, s.running.attempt): s for s in await self.running()}
            both = [s for key, s in now.items() if key in before]
            assert len(both) <= TENANT_TURNS
            trees = Counter(s.root_session_id for s in both)
            assert all(count <= TREE_TURNS for count in trees.values())
            below = Counter(s.root_session_id for s in both if s.parent_session_id)
            assert all(count <= TREE_TURNS - 1 for count in below.values()), "a place is the root's"
            before = now
            self.seen.samples += 1

    async def running(self) -> list[Any]:
        request = session_service_pb2.ListSessionsRequest(activity=types_pb2.ACTIVITY_RUNNING)
        found: list[Any] = []
        while True:
            page = await self.sessions.ListSessions(request, timeout=DEADLINE)
            found += page.sessions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


@contextlib.asynccontextmanager
async def fleet_on(server: Server, conversations: Sequence[Conversation]) -> AsyncIterator[Fleet]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Fleet(channel, conversations)


@pytest.mark.parametrize(
    "tasks", [pytest.param(8), pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
async def test_the_conversations_run_as_trees(start: Start, tasks: int) -> None:
    every = transcripts.read(RECORDED)
    roots = sorted({tree_of(each.session) for each in every})[:tasks]
    trials = [each for each in every if tree_of(each.session) in roots]
    assert len(trials) == 3 * tasks
    caps = ("--max-turns-per-tree", str(TREE_TURNS), "--max-turns-per-tenant", str(TENANT_TURNS))
    server = start(*caps, "--max-resident", "12", ROOST_TURN_LOG="false")
    async with fleet_on(server, trials) as fleet:
        watcher = asyncio.create_task(fleet.watch())
        hosts = asyncio.gather(*(fleet.host(f"host-{n}") for n in range(HOSTS)))
        await fleet.spawn()
        done, _ = await asyncio.wait([watcher, hosts], return_when=asyncio.FIRST_COMPLETED)
        assert hosts in done, watcher.exception()
        await hosts
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        assert fleet.seen.samples > 10
        assert fleet.seen.full > 0, "the caps were never reached"

    with server.api() as api:
        assert api.stats().gauges["slots_held"] == 0
        for root in roots:
            told = api.list_mail(root)
            # One of each trial, as it was handed to a turn, and that turn was committed.
            assert [mail.message_id for mail in told] == fleet.seen.handed[root]
            assert sorted(mail.content.decode() for mail in told) == sorted(
                each.session for each in trials if tree_of(each.session) == root
            )
            assert {mail.state for mail in told} == {types_pb2.MESSAGE_STATE_CONSUMED}
    async with AsyncClient(server.address) as client:
        verdict = await verify(client, [(each.session, each) for each in trials])
    assert verdict.ok, verdict.differences
    assert verdict.turns == sum(len(each.turns) for each in trials)
