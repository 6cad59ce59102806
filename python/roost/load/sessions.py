"""The sessions a load run works on: which are idle, what each holds, and one begin/commit pair on one of them."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.client import record_input, token_span
from roost.errors import LeaseLost, RoostError, TurnMismatch

if TYPE_CHECKING:
    from roost.client import AsyncClient
    from roost.load.report import Correctness, Measured

COMPACT_AT = 100_000  # tokens; then the next turn starts a new segment, as agents do with a full context


@dataclass
class LoadSession:
    """One session as this generator knows it. What the server says must agree."""

    session_id: str
    turns: int = 0
    head_version: int = 0
    tokens: int = 0


class Payload:
    """Bytes of content and tokens, cut from a pool of random ones: making them must not be what is measured."""

    POOL = 1 << 22

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._pool = self._rng.randbytes(self.POOL)

    def take(self, size: int) -> bytes:
        """`size` bytes, different from call to call."""
        if size > self.POOL:
            raise ValueError(f"at most {self.POOL} bytes")
        start = self._rng.randrange(self.POOL - size + 1)
        return self._pool[start : start + size]


class Pool:
    """Idle sessions, taken at random."""

    def __init__(self, sessions: list[LoadSession], seed: int) -> None:
        self._idle = sessions
        self._rng = random.Random(seed)

    def __bool__(self) -> bool:
        return bool(self._idle)

    def take(self) -> LoadSession:
        """Take one. IndexError if none is idle."""
        if not self._idle:
            raise IndexError("no session is idle")
        at = self._rng.randrange(len(self._idle))
        self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
        return self._idle.pop()

    def give(self, session: LoadSession) -> None:
        """Give it back."""
        self._idle.append(session)


async def prepare(client: AsyncClient, prefix: str, count: int, concurrency: int = 64) -> list[LoadSession]:
    """Open `count` sessions, or take those of an earlier run with the same prefix."""
    sessions = [LoadSession(f"{prefix}{number:07d}") for number in range(count)]
    queue = iter(sessions)

    async def work() -> None:
        for session in queue:
            opened = (await client.open_session(session.session_id, if_exists="return", timeout=60)).session
            session.turns, session.head_version = opened.turn_count, opened.head_version
            session.tokens = opened.checkpoint_tokens

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, count)):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # one of them says it all
    return sessions


class Pairs:
    """Runs begin/commit pairs and counts what they did."""

    def __init__(self, client: AsyncClient, correctness: Correctness, seed: int) -> None:
        self.client = client
        self.correctness = correctness
        self.payload = Payload(seed)

    async def run(
        self,
        session: LoadSession,
        into: Measured,
        intended: float,
        content_bytes: int,
        offset: int | None,
        tokens: int,
    ) -> None:
        """One pair. `intended` (time.perf_counter) is where its latency starts; `offset` None: append `tokens` new
        tokens. Errors are counted, never raised; what the session then holds is asked from the server."""
        try:
            await self._pair(session, into, intended, content_bytes, offset, tokens)
        except RoostError as error:
            into.errors[error.reason or error.code.name] += 1
            if isinstance(error, LeaseLost):
                self.correctness.lost_leases += 1
            elif isinstance(error, TurnMismatch):
                self.correctness.turn_mismatches += 1
            await self._agree(session)

    async def _pair(
        self,
        session: LoadSession,
        into: Measured,
        intended: float,
        content_bytes: int,
        offset: int | None,
        tokens: int,
    ) -> None:
        number = session.turns + 1
        sent = time.perf_counter()
        begun = await self.client.begin_turn(
            session.session_id, expected_turn=number, known_head_version=session.head_version or None
        )
        answered = time.perf_counter()
        into.begin.record(answered - sent)
        grant = begun.grant
        if grant.turn != number or grant.checkpoint.length != session.tokens:
            self.correctness.wrong_numbers += 1
        held = session.tokens
        start = held if offset is None else min(offset, held)
        new_segment = offset is None and held >= COMPACT_AT
        if new_segment:
            start = 0
        span = token_span(self.payload.take(4 * tokens), offset=start) if tokens else None
        record = record_input(self.payload.take(content_bytes), tokens=span, content_type="application/octet-stream")
        sent = time.perf_counter()
        committed = await self.client.commit_turn(
            session.session_id, grant.lease, record, max_trim=held - start, new_segment=new_segment
        )
        answered = time.perf_counter()
        into.commit.record(answered - sent)
        into.pair.record(answered - intended)
        into.pairs += 1
        if committed.turn != number:
            self.correctness.wrong_numbers += 1
        session.turns, session.head_version = committed.turn, committed.head_version
        if tokens:
            session.tokens = start + tokens

    async def _agree(self, session: LoadSession) -> None:
        """After an error: the server may have one turn more than we know (an answer that was lost), nothing else."""
        try:
            known = await self.client.get_session(session.session_id)
        except RoostError:
            return  # the next pair will count it
        if known.turn_count not in (session.turns, session.turns + 1):
            self.correctness.turn_mismatches += 1
        session.turns, session.head_version = known.turn_count, known.head_version
        session.tokens = known.checkpoint_tokens
