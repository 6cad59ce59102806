"""The writer thread against a scripted engine and store: every outcome of an append reaches the engine once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from roost.handlers import journal
from roost.handlers.journal import JournalWriter
from roost.store.base import Outcome, StoreFailed

STORED, CONSTRAINT, FULL = Outcome.STORED, Outcome.REFUSED_CONSTRAINT, Outcome.REFUSED_FULL
FENCED = Outcome.REFUSED_FENCED


class FakeBatch:
    def __init__(self, *roots: bytes) -> None:
        self.roots = list(roots)
        self.first_seq = self.last_seq = 1

    def split(self) -> list[FakeBatch]:
        return [FakeBatch(root) for root in self.roots]


class FakeEngine:
    def __init__(self, *batches: FakeBatch) -> None:
        self.batches = list(batches)
        self.appends: list[tuple[str, list[bytes]]] = []
        self.spaces: list[str] = []

    def next_batch(self, timeout_ms: int, linger_us: int) -> FakeBatch | None:
        return self.batches.pop(0) if self.batches else None

    def appended(self, batch: FakeBatch, outcome: str, quarantine: list[bytes]) -> bool:
        self.appends.append((outcome, quarantine))
        return True

    def set_space(self, space: str) -> bool:
        self.spaces.append(space)
        return False

    def wake_writer(self) -> None:
        pass

    def service_ms(self) -> int:
        return 5_000

    def set_store_bytes(self, size: int) -> None:
        assert size == 4_096


class FakeStore:
    epoch = 1

    def __init__(self, append: Callable[[list[bytes]], Outcome], space: str = "ok") -> None:
        self.append_roots = append
        self.space = space
        self.tried: list[list[bytes]] = []

    def append(self, shard: int, epoch: int, first_seq: int, batch: FakeBatch, service_ms: int) -> Outcome:
        assert service_ms == 5_000
        self.tried.append(batch.roots)
        return self.append_roots(batch.roots)

    def probe_space(self) -> str:
        return self.space

    def idle(self) -> None:
        pass

    def used_bytes(self) -> int:
        return 4_096


def run(engine: FakeEngine, store: FakeStore) -> tuple[int, list[str]]:
    """Drain the engine's batches; how often the loop was woken, and what ended the process."""
    wakes: list[None] = []
    failures: list[str] = []
    arguments: tuple[Any, Any] = (engine, store)
    writer = JournalWriter(*arguments, wake=lambda: wakes.append(None), fail=failures.append)
    writer.start()
    stopper = threading.Thread(target=writer.stop)
    stopper.start()
    stopper.join(10)
    assert not stopper.is_alive()
    return len(wakes), failures


def test_a_stored_batch_wakes_the_loop_once() -> None:
    engine = FakeEngine(FakeBatch(b"a", b"b"), FakeBatch(b"c"))
    assert run(engine, FakeStore(lambda _: STORED)) == (2, [])
    assert engine.appends == [("stored", []), ("stored", [])]


def test_a_constraint_error_quarantines_the_tree_that_fails_alone() -> None:
    engine = FakeEngine(FakeBatch(b"a", b"bad", b"c"))
    store = FakeStore(lambda roots: CONSTRAINT if b"bad" in roots else STORED)
    assert run(engine, store) == (1, [])
    assert store.tried == [[b"a", b"bad", b"c"], [b"a"], [b"bad"], [b"c"]]
    assert engine.appends == [("stored", [b"bad"])]


def test_a_batch_of_one_tree_has_failed_alone_already() -> None:
    engine = FakeEngine(FakeBatch(b"bad"))
    store = FakeStore(lambda _: CONSTRAINT)
    assert run(engine, store) == (1, [])
    assert store.tried == [[b"bad"]]
    assert engine.appends == [("stored", [b"bad"])]


def test_a_full_disk_is_a_refusal_and_the_engine_learns_of_the_room() -> None:
    engine = FakeEngine(FakeBatch(b"a"))
    assert run(engine, FakeStore(lambda _: FULL, space="full")) == (1, [])
    assert engine.appends == [("full", [])]
    assert engine.spaces == ["full"]


@pytest.mark.parametrize("space", ["ok", "low"])
def test_after_a_refusal_the_engine_is_told_again_what_it_was_told_before(space: str) -> None:
    """A refused batch makes the engine full by itself: told nothing, it would refuse everything for ever."""
    outcomes = [STORED, FULL]
    engine = FakeEngine(FakeBatch(b"a"), FakeBatch(b"a"))
    assert run(engine, FakeStore(lambda _: outcomes.pop(0), space=space)) == (2, [])
    assert engine.appends == [("stored", []), ("full", [])]
    assert engine.spaces == ([space] if space == "ok" else [space, space])


@pytest.mark.parametrize("outcomes", [[FENCED], [CONSTRAINT, STORED, FENCED]], ids=["batch", "part"])
def test_a_server_that_is_no_longer_the_owner_ends(outcomes: list[Outcome]) -> None:
    """Another one serves these sessions now: nothing that this one has in memory may be said again."""
    left = list(outcomes)
    engine = FakeEngine(FakeBatch(b"a", b"b"), FakeBatch(b"c"))
    _, failures = run(engine, FakeStore(lambda _: left.pop(0)))
    assert engine.appends == []
    assert failures == ["the journal writer failed: another server has taken the store over"]


@pytest.mark.parametrize("error", [StoreFailed("the disk is gone"), RuntimeError("secret content")])
def test_an_unknown_outcome_is_never_reported_and_ends_the_process(error: Exception) -> None:
    def fail(_: list[bytes]) -> Outcome:
        raise error

    engine = FakeEngine(FakeBatch(b"a"), FakeBatch(b"b"))
    _, failures = run(engine, FakeStore(fail))
    assert engine.appends == []
    assert len(failures) == 1
    # I25: only the store's own words are repeated.
    assert ("the disk is gone" in failures[0]) == isinstance(error, StoreFailed)
    assert "secret" not in failures[0]


def test_the_store_tidies_up_after_a_quiet_time_and_never_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch may be there for once while calls keep coming: emptying the log then would stand in their way."""
    now, idle_at = [100.0], []
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    script: list[tuple[float, FakeBatch | None]] = [
        (0.01, FakeBatch(b"a")),
        (0.0, None),  # woken for what it had taken already
        (0.4, FakeBatch(b"b")),
        (0.2, None),
        (0.5, None),
        (0.1, FakeBatch(b"c")),
        (0.0, None),
    ]

    class Engine(FakeEngine):
        def next_batch(self, timeout_ms: int, linger_us: int) -> FakeBatch | None:
            if not script:
                writer._stopping = True
                return None
            passed, batch = script.pop(0)
            now[0] += passed
            return batch

    class Store(FakeStore):
        def idle(self) -> None:
            idle_at.append(round(now[0] - 100.0, 2))

    parts: tuple[Any, Any] = (Engine(), Store(lambda _: STORED))
    failures: list[str] = []
    writer = JournalWriter(*parts, wake=lambda: None, fail=failures.append)
    writer._run()
    assert (idle_at, failures) == ([1.11], [])


def test_a_disk_that_fills_up_between_the_trees_of_a_batch_ends_the_process() -> None:
    """Some are stored and some are not: only a restart can tell which."""
    engine = FakeEngine(FakeBatch(b"a", b"b", b"c"))
    outcomes = [CONSTRAINT, STORED, FULL]
    _, failures = run(engine, FakeStore(lambda _: outcomes.pop(0)))
    assert engine.appends == []
    assert len(failures) == 1
