"""Memory by the session, as the operating system counts it.

The bar: at most 1 KiB for an idle resident session plus its own bytes; for an unloaded one nothing beyond its line in
its tree's header while that is loaded, and nothing at all once the header is gone too. Each case runs the engine alone
in a process, over a store that knows no session and keeps none: what grows there is the engine's.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from roost_server import environment

from roost._core import LIMITS, METHODS, Engine
from roost.v1 import turn_service_pb2

KIB = 1024
PER_RESIDENT = KIB
# A line of a header is about 200 bytes by design; with what finds it by its id, and the room that tables of both keep.
PER_LINE = 512
# Neither a session nor a line: what is left is noise of the allocator.
PER_FORGOTTEN = 16
TENANT = "t"
TREE = 1000  # sessions in a tree, where there are trees


@dataclass(frozen=True)
class Case:
    """`sessions` are measured, after `warm` others have filled what has a fixed size."""

    sessions: int
    warm: int
    limits: dict[str, int]
    state: int = 0  # bytes of a session's own
    trees: bool = False  # TREE sessions each; else each session is a tree of its own
    turns: int = 1  # of each session
    tokens: int = 0  # new ones a turn
    at_once: int = 256  # turns of different sessions that run at once


@dataclass(frozen=True)
class Measured:
    """RSS gained for each session, and the engine's own numbers after it."""

    each: float
    stats: dict[str, int]


def measure(case: Case) -> Measured:
    """Play the turns of each session of the case, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, __file__, json.dumps(asdict(case))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return Measured(**json.loads(ended.stdout))


@pytest.mark.parametrize(
    ("state", "trees"),
    [
        pytest.param(0, True, id="0-in-trees", marks=pytest.mark.long),
        pytest.param(2_000, False, id="2000-alone"),
        pytest.param(0, False, id="0-alone", marks=pytest.mark.long),
        pytest.param(2_000, True, id="2000-in-trees", marks=pytest.mark.long),
    ],
)
def test_an_idle_resident_session_takes_at_most_a_kib_beside_its_own_bytes(state: int, trees: bool) -> None:
    count = 40_000 if state else 150_000
    found = measure(Case(count, 10_000, {"max_resident_sessions": 1_000_000}, state, trees))
    assert found.stats["resident_sessions"] == count + 10_000
    assert found.each <= PER_RESIDENT + state, found
    assert found.each >= state, "they are not in memory at all"
    # What is counted against max_resident_bytes is most of what they really take.
    charged = found.stats["resident_bytes"] / (count + 10_000)
    assert found.each / 2 <= charged <= found.each * 1.2, found


@pytest.mark.long
def test_an_unloaded_session_takes_no_more_than_its_line_in_a_loaded_header() -> None:
    found = measure(Case(150_000, 10_000, {"max_resident_sessions": 100}, state=2000, trees=True))
    assert found.stats["resident_sessions"] == 100
    assert found.stats["tree_headers"] == 160_000 // TREE
    assert found.each <= PER_LINE, found


@pytest.mark.long
@pytest.mark.parametrize("trees", [pytest.param(True, id="in-trees"), pytest.param(False, id="alone")])
def test_memory_does_not_grow_with_the_number_of_known_sessions(trees: bool) -> None:
    """Headers go as well when bytes are short: a session that nobody asks for costs nothing."""
    limits = {"max_resident_sessions": 100, "max_resident_bytes": 4 << 20}
    found = measure(Case(150_000, 20_000, limits, state=200, trees=trees))
    assert found.stats["resident_bytes"] <= 4 << 20
    assert found.stats["resident_sessions"] <= 100
    assert found.each <= PER_FORGOTTEN, found


def test_a_sessions_memory_grows_with_its_tokens_and_no_faster() -> None:
    """100 turns of 2,000 new tokens: four bytes for a token of the checkpoint, and the room that growth keeps."""
    found = {turns: measure(Case(50, 20, {}, turns=turns, tokens=2_000, at_once=4)) for turns in (10, 50, 100)}
    for turns, measured in found.items():
        tokens = 4 * 2_000 * turns
        assert tokens <= measured.each <= 2 * tokens + PER_RESIDENT, found
        assert tokens <= measured.stats["resident_bytes"] / 70 <= 2 * tokens + PER_RESIDENT, found
    # By the turn, from 10 to 50 and from 50 to 100: 2.5 times as much if it grew with the square of them.
    early, late = (found[50].each - found[10].each) / 40, (found[100].each - found[50].each) / 50
    assert 0.67 <= late / early <= 1.5, found


# -- the process that is measured


def _play(case: Case) -> Measured:
    fixed = {"max_turns_per_tree": 10_000, "max_watch_events": 1}
    limits = {name: default for name, default, _, _ in LIMITS} | fixed | case.limits
    engine = Engine(limits, 0)
    _turns(engine, case, 0, case.warm)
    before = _rss()
    _turns(engine, case, case.warm, case.warm + case.sessions)
    return Measured((_rss() - before) / case.sessions, engine.stats())


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _turns(engine: Engine, case: Case, first: int, last: int) -> None:
    """The turns of each of the sessions, which it makes; some of them at once."""
    for start, turn in itertools.product(range(first, last, case.at_once), range(case.turns)):
        running: dict[int, str] = {}
        for n in range(start, min(start + case.at_once, last)):
            request = turn_service_pb2.BeginTurnRequest(session_id=_name(n))
            request.open.SetInParent()
            if case.trees and n % TREE:
                request.open.parent_session_id, request.open.name = _name(n - n % TREE), f"worker-{n}"
            running[_call(engine, "BeginTurn", request)] = _name(n)
        for ticket, reply in _settled(engine):
            grant = turn_service_pb2.BeginTurnResponse.FromString(reply).grant
            commit = turn_service_pb2.CommitTurnRequest(session_id=running[ticket], lease=grant.lease)
            if case.state:
                commit.state = os.urandom(case.state)
            if case.tokens:
                commit.record.tokens.offset = case.tokens * turn
                commit.record.tokens.token_ids = os.urandom(4 * case.tokens)
            _call(engine, "CommitTurn", commit)
        assert len(_settled(engine)) == len(running)
        for _ in range(case.at_once // 16):  # evictions are budgeted
            engine.tick()


def _call(engine: Engine, name: str, request: Any) -> int:
    ticket = engine.call(METHODS[f"/roost.v1.TurnService/{name}"], request.SerializeToString(), "", TENANT, 1)
    assert isinstance(ticket, int), ticket
    return ticket


def _settled(engine: Engine) -> list[tuple[int, bytes]]:
    """Answer what the engine asks its store (which holds nothing), store what it writes; the calls that ended."""
    while effects := engine.next_effects(timeout_ms=0):
        for kind, number, *_ in effects:
            if kind == "due":
                engine.due_found(number, [], None)
                continue
            if kind == "stale":
                engine.stale_found(number, [])
                continue
            assert kind == "find"
            engine.found(number, None)
    while (batch := engine.next_batch(timeout_ms=0, linger_us=0)) is not None:
        engine.appended(batch, "stored", [])
    ended: list[tuple[int, bytes]] = []
    for ticket, reply in engine.completed():
        assert isinstance(reply, bytes), reply
        ended.append((ticket, reply))
    return ended


def _name(n: int) -> str:
    return f"session-{n:08}"


if __name__ == "__main__":
    print(json.dumps(asdict(_play(Case(**json.loads(sys.argv[1]))))))
