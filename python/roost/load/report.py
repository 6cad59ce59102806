"""What a load run measured, and how it is printed. Counters that must be zero decide the exit code."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from roost.load.arrivals import Arrivals
from roost.workload.latency import Latency

CPU_LIMIT = 0.90  # share of a core above which a one-loop generator cannot be trusted
LAG_LIMIT_MS = 20.0  # 99th percentile of the event loop's lag
LATE_LIMIT = 0.01  # share of late arrivals


@dataclass
class Measured:
    """Counts and latencies of one phase (warm-up or measurement)."""

    arrivals: Arrivals = field(default_factory=Arrivals)
    begin: Latency = field(default_factory=Latency)
    commit: Latency = field(default_factory=Latency)
    pair: Latency = field(default_factory=Latency)
    pairs: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass
class Correctness:
    """What must never happen, warm-up included: throughput of wrong answers is zero."""

    lost_leases: int = 0
    turn_mismatches: int = 0
    wrong_numbers: int = 0

    @property
    def total(self) -> int:
        """How many in all."""
        return self.lost_leases + self.turn_mismatches + self.wrong_numbers


class SelfWatch:
    """The generator's own CPU share and event-loop lag: is it the server that was measured?"""

    STEP = 0.01

    def __init__(self) -> None:
        self.lag = Latency()
        self._task: asyncio.Task[None] | None = None
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Begin to watch."""
        self._wall, self._cpu = time.monotonic(), _cpu()
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self.STEP
            await asyncio.sleep(self.STEP)
            self.lag.record(max(clock() - due, 0.0))

    def stop(self) -> float:
        """Stop; returns the share of one core that this process used meanwhile."""
        if self._task is not None:
            self._task.cancel()
        wall = time.monotonic() - self._wall
        return (_cpu() - self._cpu) / wall if wall > 0 else 0.0


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bottleneck(cpu: float, lag_p99_ms: float, arrivals: Arrivals) -> str:
    """Why the generator was the bottleneck; empty if it was not."""
    if cpu > CPU_LIMIT:
        return f"it used {cpu:.0%} of a core"
    if lag_p99_ms > LAG_LIMIT_MS:
        return f"its event loop ran {lag_p99_ms:.0f} ms late (99th percentile)"
    if arrivals.offered and arrivals.late / arrivals.offered > LATE_LIMIT:
        return f"{arrivals.late} of {arrivals.offered} arrivals started late"
    return ""


def build(
    config: dict[str, Any],
    measured: Measured,
    correctness: Correctness,
    seconds: float,
    cpu: float,
    lag: Latency,
    server: dict[str, int],
    interrupted: bool,
) -> dict[str, Any]:
    """The report as JSON-able data. Rates are per second, latencies in milliseconds."""
    why = bottleneck(cpu, lag.percentile(99), measured.arrivals)
    arrivals = measured.arrivals
    return {
        "tool": "roost load",
        "config": config,
        "interrupted": interrupted,
        "seconds": round(seconds, 3),
        "pairs": measured.pairs,
        "pairs_per_second": round(measured.pairs / seconds, 1) if seconds > 0 else 0.0,
        "errors": dict(measured.errors),
        "arrivals": {
            "offered": arrivals.offered,
            "started": arrivals.started,
            "late": arrivals.late,
            "dropped": arrivals.dropped,
            "latest_ms": round(arrivals.latest * 1e3, 1),
        },
        "latency": {
            "begin": measured.begin.summary(),
            "commit": measured.commit.summary(),
            "pair": measured.pair.summary(),
        },
        "histograms": {name: getattr(measured, name).encoded() for name in ("begin", "commit", "pair")},
        "correctness": {
            "lost_leases": correctness.lost_leases,
            "turn_mismatches": correctness.turn_mismatches,
            "wrong_numbers": correctness.wrong_numbers,
        },
        "generator": {
            "cpu_share": round(cpu, 3),
            "lag_p99_ms": round(lag.percentile(99), 2),
            "was_bottleneck": bool(why),
            "why": why,
        },
        "server": server,
    }
