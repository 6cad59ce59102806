"""Load runs: open loop, closed loop, and a trace. Each gives the report of `roost.load.report`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from roost.errors import KeyScope
from roost.load import arrivals, report
from roost.load.sessions import LoadSession, Pairs, Pool, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from roost.client import AsyncClient
    from roost.workload.trace import TracedTurn

DRAIN = 30.0  # seconds that pairs in flight get at the end


@dataclass(frozen=True)
class LoadOptions:
    """What to run. Times in seconds. `rate` (pairs a second) makes it an open loop, else `clients` run in closed loop.
    `max_in_flight` bounds an open loop; `seed` fixes arrivals, choice of sessions and payloads."""

    sessions: int = 1_000
    duration: float = 10.0
    warmup: float = 2.0
    rate: float = 0.0
    arrivals: str = "poisson"
    clients: int = 64
    max_in_flight: int = 1_000
    payload_bytes: int = 1_000
    tokens: int = 0
    seed: int = 1
    prefix: str = "load-"


class LoadRun:
    """One run. `stop` (may be set from outside, e.g. on Ctrl-C) ends it early with a partial report."""

    def __init__(self, client: AsyncClient, options: LoadOptions) -> None:
        self.client = client
        self.options = options
        self.stop = asyncio.Event()
        self.warm = report.Measured()
        self.measured = report.Measured()
        self.correctness = report.Correctness()
        self._pairs = Pairs(client, self.correctness, options.seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = report.SelfWatch()
        self._since = 0.0  # perf_counter at which measuring began
        self._until = 0.0

    async def pairs(self, on_prepared: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Begin/commit pairs over `sessions` sessions."""
        options = self.options
        sessions = await prepare(self.client, options.prefix, options.sessions)
        on_prepared()
        pool = Pool(sessions, options.seed)
        before = await self._server()
        if options.rate > 0:
            await self._open(pool)
        else:
            await self._closed(pool)
        return await self._report(asdict(options), before)

    async def _open(self, pool: Pool) -> None:
        options = self.options
        total = options.warmup + options.duration
        starts = (
            arrivals.poisson(options.rate, total, options.seed)
            if options.arrivals == "poisson"
            else arrivals.constant(options.rate, total)
        )

        def launch(intended: float) -> None:
            session = pool.take()
            into = self.measured if intended >= self._since else self.warm
            self._launch(self._one(pool, session, into, intended))

        self._begin(options.warmup)
        loop = arrivals.OpenLoop(lambda: bool(pool) and len(self._tasks) < options.max_in_flight, time.perf_counter)
        await loop.run(starts, launch, self._counts, self.stop.is_set)
        await self._drain()

    def _counts(self, at: float) -> arrivals.Arrivals:
        return (self.measured if at >= self.options.warmup else self.warm).arrivals

    async def _one(self, pool: Pool, session: LoadSession, into: report.Measured, intended: float) -> None:
        try:
            await self._pairs.run(session, into, intended, self.options.payload_bytes, None, self.options.tokens)
        finally:
            pool.give(session)

    async def _closed(self, pool: Pool) -> None:
        options = self.options
        self._begin(options.warmup)
        end = self._since + options.duration

        async def caller() -> None:
            while not self.stop.is_set() and (now := time.perf_counter()) < end:
                session = pool.take()
                await self._one(pool, session, self.measured if now >= self._since else self.warm, now)

        for _ in range(min(options.clients, options.sessions)):
            self._launch(caller())
        await self._drain(options.warmup + options.duration + DRAIN)

    async def trace(self, plan: Sequence[TracedTurn], speed_up: float) -> dict[str, Any]:
        """Play a rebuilt trace, open loop, `speed_up` times as fast as it was recorded. A turn whose session's turn
        before it still runs starts when that ends; its latency counts from when it was due."""
        options = self.options
        count = 1 + max((turn.session for turn in plan), default=-1)
        sessions = await prepare(self.client, options.prefix, count)
        locks = [asyncio.Lock() for _ in sessions]
        before = await self._server()
        due = iter(plan)

        async def play(turn: TracedTurn, intended: float) -> None:
            async with locks[turn.session]:
                session = sessions[turn.session]
                # An earlier turn may have been dropped: then this one brings what is missing.
                offset = min(turn.offset, session.tokens)
                tokens = turn.offset + turn.tokens - offset
                await self._pairs.run(session, self.measured, intended, options.payload_bytes, offset, tokens)

        def starts() -> Iterable[float]:
            for turn in plan:
                yield turn.at / speed_up

        def counts(_at: float) -> arrivals.Arrivals:
            self._next = next(due)
            return self.measured.arrivals

        self._begin(0.0)
        loop = arrivals.OpenLoop(lambda: len(self._tasks) < options.max_in_flight, time.perf_counter)
        await loop.run(starts(), lambda at: self._launch(play(self._next, at)), counts, self.stop.is_set)
        await self._drain()
        config = {
            "trace_turns": len(plan),
            "trace_sessions": count,
            "speed_up": speed_up,
            "payload_bytes": options.payload_bytes,
            "max_in_flight": options.max_in_flight,
            "seed": options.seed,
        }
        return await self._report(config, before)

    # -- parts

    def _launch(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, warmup: float) -> None:
        self._watch.start()
        self._since = time.perf_counter() + warmup

    async def _drain(self, limit: float = DRAIN) -> None:
        """Wait for what is in flight; an interrupt shortens the wait to a moment."""
        pending = set(self._tasks)
        deadline = time.perf_counter() + limit
        while pending and time.perf_counter() < deadline:
            _, pending = await asyncio.wait(pending, timeout=0.2)
            if self.stop.is_set():
                deadline = min(deadline, time.perf_counter() + 2.0)
        self._until = time.perf_counter()
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
            self.measured.errors["UNFINISHED"] += len(pending)

    async def _server(self) -> dict[str, int]:
        try:
            stats = await self.client.get_stats()
        except KeyScope:  # the counters are the admin's
            return {}
        names = ("evictions", "reloads", "turns_committed", "turns_expired", "refusals", "batches_stored")
        return {name: stats.counters[name] for name in names if name in stats.counters}

    async def _report(self, config: dict[str, Any], before: dict[str, int]) -> dict[str, Any]:
        cpu = self._watch.stop()
        after = await self._server()
        server = {name: value - before.get(name, 0) for name, value in after.items()}
        seconds = max(self._until - self._since, 0.0)
        return report.build(
            config, self.measured, self.correctness, seconds, cpu, self._watch.lag, server, self.stop.is_set()
        )
