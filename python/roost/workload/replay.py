"""Plays recorded conversations against a server, many at once, and survives the server's death at any moment.

Every call is repeated with its request_id until the server answers again. What a repeat cannot settle (a lease that
is over, a begin whose turn ended) is settled by the session itself: its turn count says which turn is next, and
`expected_turn` lets nothing else begin. So no turn is ever played twice, and none is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from roost.client import AsyncClient, RetryPolicy
from roost.errors import (
    CallTimeout,
    ConnectionFailed,
    LeaseLost,
    RoostError,
    SessionClosed,
    SessionExists,
    TurnEnded,
    TurnInProgress,
    TurnMismatch,
)
from roost.v1 import types_pb2 as types
from roost.workload.fates import Fates, partial
from roost.workload.latency import Latency
from roost.workload.transcripts import CONTENT_TYPE, Conversation
from roost.workload.verify import TURN_LABEL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence


class ReplayRefused(Exception):
    """The replay must not go on, e.g. because a session exists already. The message is for a person."""


@dataclass(frozen=True)
class ReplayOptions:
    """How to play. `prefix`: put before every session id; `resume`: go on with sessions that exist; `patience`: seconds
    for which a server may be away; `lease`: seconds; `think`: seconds a turn lasts between begin and commit; `fates`:
    which turns fail."""

    prefix: str = ""
    concurrency: int = 32
    resume: bool = False
    patience: float = 120.0
    lease: float = 60.0
    think: float = 0.0
    fates: Fates = field(default_factory=Fates)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class ReplayReport:
    """What was played. `turns`: those that are to be committed; `aborted`: attempts aborted on purpose and tried again;
    `given_up`: turns given up on purpose, and their conversations with them; `retried`: calls repeated plus turns begun
    again; `vanished`: acknowledged turns that the server no longer had when it was asked (a broken promise)."""

    sessions: int = 0
    turns: int = 0
    played: int = 0
    already: int = 0
    aborted: int = 0
    given_up: int = 0
    retried: int = 0
    vanished: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    begin: Latency = field(default_factory=Latency)
    commit: Latency = field(default_factory=Latency)


def make_client(target: str, patience: float, **more: Any) -> AsyncClient:
    """A client that stays with a server that restarts: calls are repeated for `patience` seconds."""
    retry = RetryPolicy(maximum=1.0, attempt_timeout=min(10.0, patience))
    return AsyncClient(target, timeout=patience, retry=retry, owner="roost-replay", **more)


class Replay:
    """One replay of a list of conversations. `on_turn` is called after every acknowledged turn."""

    def __init__(
        self,
        client: AsyncClient,
        conversations: Sequence[Conversation],
        options: ReplayOptions,
        on_turn: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self.client = client
        self.conversations = conversations
        self.options = options
        planned = sum(options.fates.planned(c) for c in conversations)
        self.report = ReplayReport(sessions=len(conversations), turns=planned)
        self._on_turn = on_turn
        self._again = 0

    def session_id(self, conversation: Conversation) -> str:
        """The id under which a conversation is played."""
        return self.options.prefix + conversation.session

    async def run(self) -> ReplayReport:
        """Play everything. Raises ReplayRefused, ConnectionFailed or CallTimeout (the server is away for longer than
        `patience`); a session that fails otherwise is in `report.failures`."""
        started = time.monotonic()
        queue = iter(self.conversations)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(max(1, min(self.options.concurrency, len(self.conversations)))):
                    group.create_task(self._work(queue))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            self.report.seconds = time.monotonic() - started
            self.report.retried = self.client.retries + self._again
        return self.report

    async def _work(self, queue: Iterator[Conversation]) -> None:
        for conversation in queue:
            try:
                await self._play(conversation)
            except (ReplayRefused, ConnectionFailed, CallTimeout):
                raise
            except RoostError as error:
                self.report.failures.append(f"session {self.session_id(conversation)}: {error}")

    async def _play(self, conversation: Conversation) -> None:
        session_id, turns = self.session_id(conversation), conversation.turns
        done, failed = await self._open(session_id, conversation)
        if done:
            self.report.already += done
            self._on_turn(done)
        while done < len(turns):
            fate = self.options.fates.of(conversation, done + 1)
            try:
                if fate == "give up":
                    if not failed:
                        await self._fail(session_id, done + 1, turns[done], final=True)
                    self.report.given_up += 1
                    self._on_turn(len(turns) - done)  # none of the rest is played
                    return
                if fate == "retry":
                    await self._fail(session_id, done + 1, turns[done], final=False)
                    self.report.aborted += 1
                await self._turn(session_id, done + 1, turns[done], after_abort=fate == "retry")
                done += 1
            except (TurnMismatch, TurnEnded, LeaseLost):
                # Somebody moved on without us: our own commit whose answer never came, or an expiry.
                self._again += 1
                count = (await self.client.get_session(session_id)).turn_count
                if count < done:
                    self.report.vanished += done - count
                    raise
                if count > done + 1:
                    raise ReplayRefused(
                        f"session {session_id} has {count} turns where {done + 1} were played: somebody else plays it"
                    ) from None
                if count == done:
                    continue
                done = count
            self.report.played += 1
            self._on_turn(1)

    async def _open(self, session_id: str, conversation: Conversation) -> tuple[int, bool]:
        """Open the session; returns how many of its turns are there already, and whether its last one was given up."""
        labels = {"replay-reward": f"{conversation.reward:g}", **self.options.labels}
        try:
            opened = await self._patiently(
                lambda request_id: self.client.open_session(
                    session_id,
                    labels=labels,
                    if_exists="return" if self.options.resume else "refuse",
                    request_id=request_id,
                )
            )
            session = opened.session
        except SessionExists:
            raise ReplayRefused(
                f"session {session_id} exists already: give another --run-id, or --resume to go on with it"
            ) from None
        except SessionClosed:
            if not self.options.resume:
                raise ReplayRefused(
                    f"session {session_id} was played and closed before: give another --run-id"
                ) from None
            session = await self.client.get_session(session_id)
            if session.turn_count < self.options.fates.planned(conversation):
                raise ReplayRefused(
                    f"session {session_id} was closed after {session.turn_count} turns: it cannot go on"
                ) from None
        count = int(session.turn_count)
        if count > len(conversation.turns):
            raise ReplayRefused(
                f"session {session_id} has {count} turns, the file {len(conversation.turns)}: another conversation"
            )
        return count, session.last_outcome == types.TURN_OUTCOME_FAILED

    async def _fail(self, session_id: str, number: int, content: bytes, final: bool) -> None:
        """One attempt that the engine aborts half-way, and that is given up for good if it is `final`."""

        async def once(request_id: str) -> None:
            async with self.client.turn(
                session_id, expected_turn=number, lease=self.options.lease, request_id=request_id
            ) as turn:
                labels = {TURN_LABEL: str(number)}
                turn.record(partial(content), content_type=CONTENT_TYPE, finish_reason="abort", labels=labels)
                await turn.abort(final=final)

        await self._patiently(once)

    async def _turn(self, session_id: str, number: int, content: bytes, after_abort: bool = False) -> None:
        """One turn, begin to commit, both acknowledged. After an abort it is given what that left."""

        async def once(request_id: str) -> None:
            asked = time.perf_counter()
            async with self.client.turn(
                session_id,
                expected_turn=number,
                lease=self.options.lease,
                want_provisional=after_abort,
                request_id=request_id,
            ) as turn:
                self.report.begin.record(time.perf_counter() - asked)
                left = turn.provisional
                # What an expiry left after a crash is empty, and took the place of what the abort left.
                aborted = left is not None and left.outcome == types.TURN_OUTCOME_ABORTED
                if left is not None and aborted and left.record.content != partial(content):
                    raise ReplayRefused(f"session {session_id}: what turn {number} left is not what it was given")
                if self.options.think:
                    await asyncio.sleep(self.options.think)
                asked = time.perf_counter()
                await turn.commit(content, content_type=CONTENT_TYPE, labels={TURN_LABEL: str(number)})
                self.report.commit.record(time.perf_counter() - asked)

        await self._patiently(once)

    async def _patiently(self, call: Callable[[str], Awaitable[Any]]) -> Any:
        """Repeat a call that found no room, or a turn that an earlier run of ours left behind. Same request_id: what
        was refused was not remembered."""
        request_id = str(uuid.uuid4())
        deadline = time.monotonic() + self.options.patience + self.options.lease
        pause = 0.05
        while True:
            try:
                return await call(request_id)
            except RoostError as error:
                waits = isinstance(error, TurnInProgress) or error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                if not waits or time.monotonic() > deadline:
                    raise
                self._again += 1
                pause = min(pause * 1.5, 1.0)
                await asyncio.sleep(error.retry_delay or pause)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that a person should see: a refusal before a lost connection."""
    flat: list[BaseException] = []

    def walk(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                walk(one)
        else:
            flat.append(error)

    walk(errors)
    with contextlib.suppress(StopIteration):
        return next(error for error in flat if isinstance(error, ReplayRefused))
    return flat[0]
