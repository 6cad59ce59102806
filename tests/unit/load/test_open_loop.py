"""The accounting of the open loop, with a clock that the test owns: nothing is hidden when it falls behind."""

from __future__ import annotations

import itertools

import pytest

from roost.load.arrivals import Arrivals, OpenLoop, constant, poisson
from roost.load.report import bottleneck
from roost.workload.latency import Latency


class Clock:
    """Time that only sleeping, or the test, moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def play(
    starts: list[float], cost: float = 0.0, room: int = 1_000_000, stop_at: float = float("inf")
) -> tuple[Arrivals, list[float], Clock]:
    """Run starts through a loop in which launching one costs `cost` seconds and `room` find place."""
    clock, counts = Clock(), Arrivals()
    launched: list[float] = []

    def launch(intended: float) -> None:
        launched.append(intended)
        clock.now += cost

    loop = OpenLoop(lambda: len(launched) < room, clock, clock.sleep)
    await loop.run(iter(starts), launch, lambda _at: counts, lambda: clock.now - 100.0 >= stop_at)
    return counts, launched, clock


async def test_work_starts_when_it_is_due() -> None:
    counts, launched, clock = await play([0.0, 0.5, 2.0])
    assert launched == pytest.approx([100.0, 100.5, 102.0])
    assert (counts.offered, counts.started, counts.late, counts.dropped) == (3, 3, 0, 0)
    assert clock.now == pytest.approx(102.0)


async def test_a_slow_generator_is_seen_as_late_and_intended_times_do_not_move() -> None:
    counts, launched, _ = await play(list(constant(100.0, 0.1)), cost=0.05)  # due every 10 ms, each takes 50 ms
    assert launched == pytest.approx([100.0 + n / 100 for n in range(10)])  # never shifted
    assert counts.late == 9
    assert counts.latest == pytest.approx(9 * 0.05 - 0.09)


async def test_arrivals_without_room_are_dropped_and_counted() -> None:
    counts, launched, _ = await play([0.1 * n for n in range(10)], room=3)
    assert len(launched) == 3
    assert (counts.offered, counts.started, counts.dropped) == (10, 3, 7)


async def test_an_interrupt_ends_the_wait_for_a_rare_arrival() -> None:
    counts, launched, clock = await play([0.0, 3600.0], stop_at=1.0)
    assert (len(launched), counts.offered) == (1, 1)
    assert clock.now < 102.0


def test_constant_arrivals_are_even() -> None:
    assert list(constant(4.0, 1.0)) == [0.0, 0.25, 0.5, 0.75]


def test_poisson_arrivals_have_the_rate_and_the_seed_decides() -> None:
    starts = list(poisson(1000.0, 10.0, seed=7))
    assert 9_600 < len(starts) < 10_400
    assert starts == sorted(starts)
    assert starts == list(poisson(1000.0, 10.0, seed=7))
    assert starts != list(poisson(1000.0, 10.0, seed=8))
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert max(gaps) > 4 * sum(gaps) / len(gaps)  # bursts and holes, not a metronome


def test_the_generator_says_when_it_was_the_bottleneck() -> None:
    assert "core" in bottleneck(0.97, 1.0, Arrivals())
    assert "late" in bottleneck(0.5, 100.0, Arrivals())
    assert "2 of 100" in bottleneck(0.5, 1.0, Arrivals(offered=100, late=2))
    assert bottleneck(0.5, 1.0, Arrivals(offered=100, late=1)) == ""


def test_latencies_are_in_milliseconds_and_bounded() -> None:
    latency = Latency()
    assert latency.summary() == {"count": 0}
    for ms in range(1, 101):
        latency.record(ms / 1e3)
    latency.record(1e9)  # beyond the range: counted at its end
    assert latency.count == 101
    assert latency.percentile(50) == pytest.approx(51, rel=0.01)
    assert latency.summary()["max_ms"] == pytest.approx(3_600_000, rel=0.01)
