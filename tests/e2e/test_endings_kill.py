"""I5, I12-I14, I20 under kill -9: a server that dies before or after any step of seal, dump, verify, release, purge and
forget.

After the next start every session is OPEN and whole, with what it has outside, or goes on to CLOSED with one verified
dump and nothing left outside: never both, never neither, never two dumps of one close.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from resources_api import HTTP, Resources, Sandboxes
from roost_server import Api, ClockedServer

from roost.handlers.dump.reader import list_dumps, read_manifest, verify_dump
from roost.handlers.dump.target import open_target
from roost.handlers.dump.writer import FAILPOINTS as DUMP_STEPS
from roost.v1 import types_pb2 as types

pytestmark = pytest.mark.crash

OPEN, SEALED, CLOSED = types.SESSION_STATE_OPEN, types.SESSION_STATE_SEALED, types.SESSION_STATE_CLOSED
CLEANUP_STEPS = tuple(
    f"cleanup.{step}.{when}" for step in ("dumped", "cleaned", "purge", "forget") for when in ("before", "after")
)
# The writer's batches: among them those that hold the closes.
BATCHES = ("journal.append.before", "journal.append.after")
# The driver is called between the first two.
RELEASE_STEPS = ("release.before", "release.done", "release.after")
STEPS = (*BATCHES, *DUMP_STEPS, *RELEASE_STEPS, *CLEANUP_STEPS)
TREES = 3
DAY = 86_400


@dataclass
class Told:
    """What the server has acknowledged of a session."""

    turns: int = 0
    closed: bool = False
    # Names of its sandboxes: each was attached before it was made, and is there.
    sandboxes: set[str] = field(default_factory=set)


@dataclass
class House:
    """One store and one dump directory, and what was acknowledged of them."""

    data: Path
    dumps: Path
    outside: Sandboxes
    sessions: dict[str, Told] = field(default_factory=dict)
    kills: int = 0

    @contextmanager
    def server(self, purges: bool, failpoint: str = "") -> Iterator[ClockedServer]:
        kept = f"{DAY}s" if not purges else "0"
        env = {"ROOST_FAILPOINT": failpoint} if failpoint else {}
        flags = ("--dump-target", str(self.dumps), "--set", f"retention_ms={kept}", "--log-level", "error")
        flags += self.outside.flags
        server = ClockedServer(self.data, *flags, "--set", "tombstone_retention_ms=1h", **env)
        server.start()
        try:
            yield server
        finally:
            server.end()

    def play(self, api: Api) -> None:
        """Trees with turns, closed one after another; ends when the server does."""
        for _ in range(TREES):
            root = self._open(api)
            child = self._open(api, root)
            for name in (root, child, root):
                api.turn(name, b"a turn")
                self.sessions[name].turns += 1
                made = Resources(api).attach(name, HTTP).name
                self.sessions[name].sandboxes.add(made)
                self.outside.there.add(made)
            api.close(root)
            for name in (root, child):
                self.sessions[name].closed = True

    def _open(self, api: Api, parent: str = "") -> str:
        name = f"s{len(self.sessions)}"
        self.sessions[name] = Told()
        api.open(name, parent_session_id=parent)
        return name

    def dumped(self) -> dict[str, int]:
        """The verified dumps by name, and the records in each."""

        async def all_of_them() -> dict[str, int]:
            target = open_target(str(self.dumps))
            found = {}
            for name in await list_dumps(target):
                await verify_dump(target, name)
                found[name] = (await read_manifest(target, name)).counts.records
            return found

        return asyncio.run(all_of_them())

    def check(self, api: Api, forgotten: bool) -> None:
        """What must be true once nothing is left to do."""
        names: dict[str, int] = {}
        known = {session.session_id for session in api.list_all()}
        for session_id, told in self.sessions.items():
            if session_id not in known:
                # It was never acknowledged, or its tombstone is over.
                assert told.turns == 0 or (forgotten and told.closed)
                continue
            session = api.get(session_id)
            assert session.turn_count >= told.turns
            if session.state == OPEN:
                assert not told.closed
                assert told.sandboxes <= self.outside.there
                assert len(api.history(session_id)) == session.turn_count
                continue
            while session.state == SEALED:
                session = api.get(session_id)
            assert session.state == CLOSED
            assert session.cleanup.HasField("dump_time")
            assert session.receipt.resources >= len(told.sandboxes)
            assert not told.sandboxes & self.outside.there
            names[session.receipt.dump_name] = session.turn_count
        dumped = self.dumped()
        assert {name: dumped[name] for name in names} == names
        # Never two of one session, which was closed once: dumps of those that are forgotten are there as well.
        uids = [name.rpartition("-")[0] for name in dumped]
        assert len(set(uids)) == len(uids)
        assert forgotten or set(dumped) == set(names)


def killed(house: House, step: str, hit: int, purges: bool) -> None:
    """One life of a server that dies at a step, if it comes there so often, and the next one, which puts it right."""
    forgets = step.startswith("cleanup.forget")
    with house.server(purges, f"{step}:{hit}") as server, server.api() as api:
        try:
            house.play(api)
            # What is left to do is done until the server dies, or nothing is left.
            while any(api.get(name).state != CLOSED for name in house.sessions):
                pass
            if purges:
                while not all(api.get(name).cleanup.HasField("purged_time") for name in house.sessions):
                    pass
            if forgets:
                server.clock.skip(3_700)
                while api.list_all():
                    pass
        except (grpc.RpcError, OSError):
            assert server.wait() == -signal.SIGKILL
            house.kills += 1
    with house.server(purges) as server, server.api() as api:
        house.check(api, forgets)
    house.sessions = {name: told for name, told in house.sessions.items() if not told.closed and not forgets}


def lives(tmp_path: Path, seed: int, steps: list[tuple[str, int]]) -> int:
    """Kill at each of these steps; how many lives ended so."""
    rng = random.Random(seed)
    kills = 0
    for n, (step, hit) in enumerate(steps):
        house = House(tmp_path / f"data{n}", tmp_path / f"dumps{n}", Sandboxes())
        house.dumps.mkdir()
        purges = step.startswith(("cleanup.purge", "cleanup.forget")) or rng.random() < 0.3
        try:
            killed(house, step, hit, purges)
        finally:
            house.outside.end()
        kills += house.kills
    return kills


def test_a_kill_at_some_steps_leaves_one_dump_of_each_close(tmp_path: Path) -> None:
    rng = random.Random(4)
    # Some kinds: the others have tests of their own, and all come in the long run.
    kinds = (BATCHES, DUMP_STEPS, CLEANUP_STEPS[:4])
    steps = [(rng.choice(kind), rng.randint(1, 3)) for kind in kinds]
    assert lives(tmp_path, 4, steps) >= len(steps) - 1


@pytest.mark.long
def test_a_kill_at_each_step_leaves_one_dump_of_each_close(tmp_path: Path) -> None:
    rng = random.Random(4)
    steps = [(step, rng.randint(1, 4)) for step in STEPS]
    assert lives(tmp_path, 4, steps) >= len(STEPS) - 2


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_hundreds_of_kills_leave_one_dump_of_each_close(tmp_path: Path, seed: int) -> None:
    rng = random.Random(f"endings {seed}")
    most = {step: 30 if step in BATCHES else 6 for step in STEPS}
    steps = [(step, rng.randint(1, most[step])) for step in STEPS for _ in range(3)]
    assert lives(tmp_path, seed, steps) >= 50
