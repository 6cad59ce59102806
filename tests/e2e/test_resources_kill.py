"""I12, I20, I21 under kill -9: a server that dies around a release, or around an attach, releases what is left, and all
of it ends once: no session is CLOSED before, none stays SEALED after, and nothing that is owned is ended.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import grpc
import pytest
from conftest import Start
from resources_api import HTTP, LIVE, PROCESS, PROCESSES, RELEASING, Agents, Sandboxes, connected
from roost_server import Server, until

from roost.v1 import types_pb2 as types

pytestmark = pytest.mark.crash

OPEN, SEALED, CLOSED = types.SESSION_STATE_OPEN, types.SESSION_STATE_SEALED, types.SESSION_STATE_CLOSED
# The driver is called between the first two.
STEPS = ("release.before", "release.done", "release.after")


def killed(server: Server) -> None:
    """It died at its failpoint; another is started, which has none."""
    assert server.wait() == -signal.SIGKILL
    server.env.pop("ROOST_FAILPOINT")
    server.start()


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_around_a_release_releases_again_and_closes_once(
    start: Start, sandboxes: Sandboxes, step: str, tmp_path: Path
) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    server = start(*sandboxes.flags, "--dump-target", str(dumps), ROOST_FAILPOINT=step)
    with connected(server) as (api, resources):
        api.turn(api.open("ends").session.session_id, b"a turn")
        api.open("stays")
        made, kept = resources.attach("ends", HTTP).name, resources.attach("stays", HTTP).name
        sandboxes.there = {made, kept}
        try:
            receipt = api.close("ends").receipt
        except grpc.RpcError:
            receipt = None  # it died before it could answer: the close is durable
    killed(server)
    with connected(server) as (api, resources):
        until(lambda: api.get("ends").state == CLOSED)
        # What was done and not written down is done once more, which is no error.
        assert sandboxes.deletes == {made: 2 if step == "release.done" else 1}
        assert sandboxes.there == {kept}
        assert [r.name for r in resources.list()] == [kept]
        session = api.get("ends")
        assert receipt in (None, session.receipt)
        assert session.receipt.resources == 1
        assert session.cleanup.HasField("dump_time")
        assert [path.parent.name for path in dumps.rglob("manifest.json")] == [Path(session.receipt.dump_name).name]
        assert api.get("stays").state == OPEN
    server.kill()
    server.start()
    with connected(server) as (api, _):
        assert api.get("ends") == session


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_around_the_end_of_a_process_ends_it_and_no_other(start: Start, agents: Agents, step: str) -> None:
    server = start(*PROCESSES, ROOST_FAILPOINT=step)
    with connected(server) as (api, resources):
        for name in ("ends", "stays"):
            api.open(name)
        made, kept = resources.attach("ends", PROCESS).name, resources.attach("stays", PROCESS).name
        for session, name in (("ends", made), ("stays", kept)):
            resources.confirm(session, name, agents.start(name))
        assert not resources.detach("ends", made)
    killed(server)
    with connected(server) as (api, resources):
        until(lambda: [(r.name, r.state) for r in resources.list()] == [(kept, LIVE)])
        assert agents.alive() == {kept}
        assert {api.get(name).state for name in ("ends", "stays")} == {OPEN}


@pytest.mark.parametrize("hit", [1, 2, 3, 5, 8])
def test_a_kill_around_any_entry_leaves_every_sandbox_owned_or_gone(
    start: Start, sandboxes: Sandboxes, hit: int
) -> None:
    """What was named is known, before and after: nothing is there without an owner, and nothing owned is ended."""
    rng = random.Random(hit)
    when = rng.choice(("before", "after"))
    server = start(*sandboxes.flags, ROOST_FAILPOINT=f"journal.append.{when}:{hit * 2}")
    named: set[str] = set()
    closing: set[str] = set()
    with connected(server) as (api, resources):
        try:
            for n in range(20):
                api.open(f"s{n}")
                made = resources.attach(f"s{n}", HTTP, request_id=f"r{n}").name
                named.add(made)
                sandboxes.there.add(made)
                resources.confirm(f"s{n}", made)
                if n % 2:
                    closing.add(f"s{n}")
                    api.close(f"s{n}")
        except grpc.RpcError:
            pass
    killed(server)
    with connected(server) as (api, resources):
        sessions = {session.session_id: session for session in api.list_all()}
        until(lambda: resources.list(state=RELEASING) == [])
        left = {r.name for r in resources.list()}
        assert left >= sandboxes.there
        assert named - left == set(sandboxes.deletes)
        assert not (named & left) & set(sandboxes.deletes)
        # I21: a repeat names the same.
        for name in sessions:
            if api.get(name).state != OPEN:
                assert name in closing
                continue
            again = resources.attach(name, HTTP, request_id=f"r{name[1:]}")
            assert (again.name in left) == (not again.created)
            api.close(name)
        until(lambda: {api.get(name).state for name in sessions} <= {CLOSED})
        assert sandboxes.there == set()
        assert resources.list() == []
