"""Resources over a real socket: what a session has outside ends with it, once, and nobody else's does.

Agents are real processes, sandboxes are kept by a real HTTP service.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed, opened
from conftest import Start
from resources_api import (
    CLIENT,
    HTTP,
    LIVE,
    OWNER,
    PLANNED,
    PROCESS,
    PROCESSES,
    RELEASING,
    TMUX,
    Agents,
    Resources,
    Sandboxes,
    connected,
)
from roost_server import DEADLINE, ClockedServer, fresh, refusal, refused, roost, until

from roost.drivers import Marker
from roost.v1 import types_pb2 as types

OPEN, SEALED, CLOSED = types.SESSION_STATE_OPEN, types.SESSION_STATE_SEALED, types.SESSION_STATE_CLOSED
FAILED, NOT_FOUND = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
LEASE = 60.0  # seconds, of a server that is told nothing else


def clocked(start: Start, *flags: str, **env: str) -> ClockedServer:
    server = start(*flags, clocked=True, **env)
    assert isinstance(server, ClockedServer)
    return server


def lines(log: str, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.splitlines()) if line["event"] == event]


# -- one resource, of each kind


def test_i12_a_process_ends_with_its_session_and_the_session_is_closed_after_it(start: Start, agents: Agents) -> None:
    server = start(*PROCESSES)
    with connected(server) as (api, resources):
        name = api.open().session.session_id
        first = resources.attach(name, PROCESS)
        assert (first.state, first.created) == (PLANNED, True)
        assert Marker.parse(first.name) is not None
        assert resources.confirm(name, first.name, agents.start(first.name)).state == LIVE
        second = resources.attach(name, PROCESS).name
        agents.start(second)  # and its host dies before it can say so
        assert [(r.name, r.state, r.session_id) for r in resources.list(session_id=name)] == [
            (first.name, LIVE, name),
            (second, PLANNED, name),
        ]
        assert api.stats().gauges["resources"] == 2
        receipt = api.close(name).receipt
        assert receipt.resources == 2
        until(lambda: api.get(name).state == CLOSED)
        assert agents.alive() == set()
        assert resources.list() == []
        # The receipt says what the close decided, however often it is asked for.
        assert api.close(name).receipt == receipt
        gauges = api.stats()
        assert (gauges.gauges["resources"], gauges.counters["resources_released"]) == (0, 2)
    assert server.terminate() == 0
    assert {line["resource"] for line in lines(server.logged, "resource_released")} == {first.name, second}


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed (.ci/run installs it)")
def test_i20_a_tmux_session_ends_with_its_session_and_those_of_like_names_do_not(start: Start) -> None:
    with tempfile.TemporaryDirectory(prefix="roost-tmux-") as directory:  # paths of sockets are short
        socket = f"{directory}/tmux"

        def tmux(*command: str) -> str:
            asked = ["tmux", "-S", socket, "-f", "/dev/null", *command]
            return subprocess.run(asked, check=False, capture_output=True, text=True).stdout

        with connected(start("--set", "tmux_driver=true", "--set", f"tmux_socket={socket}")) as (api, resources):
            ends, stays = (api.open().session.session_id for _ in range(2))
            made, kept = (resources.attach(name, TMUX).name for name in (ends, stays))
            for name in (made, kept, made + "0"):
                tmux("new-session", "-d", "-s", name, "exec cat")
            api.close(ends)
            until(lambda: api.get(ends).state == CLOSED)
            assert set(tmux("list-sessions", "-F", "#{session_name}").split()) == {kept, made + "0"}
            assert [r.name for r in resources.list()] == [kept]
        tmux("kill-server")


def test_i12_each_sandbox_of_a_tree_is_deleted_once(start: Start, sandboxes: Sandboxes) -> None:
    with connected(start(*sandboxes.flags)) as (api, resources):
        root = api.open().session.session_id
        child = api.open(parent_session_id=root).session.session_id
        other = api.open().session.session_id
        names = {session: resources.attach(session, HTTP).name for session in (root, child, other)}
        sandboxes.there = set(names.values())
        receipt = api.close(root).receipt
        assert (receipt.resources, receipt.children_closed) == (1, 1)
        until(lambda: {api.get(name).state for name in (root, child)} == {CLOSED})
        assert sandboxes.there == {names[other]}
        assert sandboxes.deletes == {names[root]: 1, names[child]: 1}
        assert [r.name for r in resources.list()] == [names[other]]


def test_a_host_is_told_what_to_release_and_says_when_it_has(start: Start) -> None:
    server = start()
    with connected(server) as (api, resources), connected(server) as (_, others):
        sessions = [api.open().session.session_id for _ in range(3)]
        names = [resources.attach(name, handle=f"handle of {name}").name for name in sessions]
        for session, name in zip(sessions, names, strict=True):
            resources.confirm(session, name)
        stranger = api.open().session.session_id
        theirs = resources.attach(stranger, owner="another").name
        api.close(sessions[0])
        stream, watched = resources.watch(), others.watch("another")
        event = next(stream).release
        assert (event.session_id, event.name) == (sessions[0], names[0])
        assert event.handle == f"handle of {sessions[0]}"
        api.close(sessions[1])
        assert next(stream).release.name == names[1]  # and the first not again
        api.close(stranger)
        assert next(watched).release.name == theirs
        # A stream that is opened again tells what is still to be done.
        assert [next(again).release.name for again in [resources.watch()] for _ in range(2)] == sorted(names[:2])
        assert api.get(sessions[0]).state == SEALED
        assert resources.detach(sessions[0], names[0])
        until(lambda: api.get(sessions[0]).state == CLOSED)
        assert resources.detach(sessions[0], names[0])  # again is no error
        again = resources.watch()
        assert next(again).release.name == names[1]
        # One that its host has ended by itself: nothing is left to tell.
        assert resources.detach(sessions[2], names[2])
        assert api.close(sessions[2]).receipt.resources == 0
        assert api.get(sessions[2]).state == CLOSED
        # I24: who leaves a stream leaves nothing behind.
        again.cancel()
        until(lambda: api.stats().gauges["calls_in_flight"] == 0)
        assert server.terminate() == 0
        for watching in (stream, watched):
            with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
                next(watching)


def test_a_watching_host_is_told_each_of_many_once(start: Start) -> None:
    with connected(start()) as (api, resources):
        root = api.open().session.session_id
        children = [api.open(parent_session_id=root).session.session_id for _ in range(5)]
        names = {resources.attach(child).name for child in children for _ in range(50)}
        told: list[str] = []
        stream = resources.watch()
        reading = threading.Thread(target=lambda: told.extend(next(stream).release.name for _ in range(250)))
        reading.start()
        for child in children:
            api.close(child)
        reading.join(DEADLINE)
        assert sorted(told) == sorted(names)
        stream.cancel()


def test_a_host_that_watches_holds_up_no_purge(start: Start) -> None:
    """A purge waits for exports that read, and for nobody who waits himself."""
    server = clocked(start, "--set", "retention_ms=1h", "--set", "purge_without_dump=true")
    with connected(server) as (api, resources):
        name = api.open().session.session_id
        api.turn(name, b"a turn")
        made = resources.attach(name).name
        stream = resources.watch()
        api.close(name)
        assert next(stream).release.name == made
        assert resources.detach(name, made)
        until(lambda: api.get(name).state == CLOSED)
        server.clock.skip(3_700)
        until(lambda: api.get(name).cleanup.HasField("purged_time"))
        stream.cancel()


@pytest.mark.parametrize("owner", ["", "o" * 257])
def test_a_host_without_a_name_is_refused(start: Start, owner: str) -> None:
    with connected(start()) as (_, resources), refused(INVALID, "INVALID_FIELD"):
        next(resources.watch(owner))


# -- what is refused, and repeats


def test_i22_what_no_driver_could_end_is_not_attached(start: Start) -> None:
    with connected(start(*PROCESSES)) as (api, resources):
        name = api.open().session.session_id
        with refused(FAILED, "DRIVER_OFF"):
            resources.attach(name, HTTP)
        assert resources.list() == []
        assert api.close(name).receipt.resources == 0
        assert api.get(name).state == CLOSED


def test_i21_an_attach_that_is_repeated_names_the_same_over_a_restart(start: Start) -> None:
    server = start()
    with connected(server) as (api, resources):
        name = api.open("kept").session.session_id
        made = resources.attach(name, request_id="once").name
    server.kill()
    server.start()
    with connected(server) as (api, resources):
        again = resources.attach("kept", request_id="once")
        assert (again.name, again.created) == (made, False)
        with refused(INVALID, "REQUEST_MISMATCH"):
            resources.attach("kept", request_id="once", handle="other")
        other = resources.attach("kept").name
        assert [r.name for r in resources.list()] == [made, other]  # another epoch, and so another name


def test_what_is_being_released_is_not_confirmed(start: Start, sandboxes: Sandboxes) -> None:
    sandboxes.status = 503
    with connected(start(*sandboxes.flags)) as (api, resources):
        name = api.open().session.session_id
        made = resources.attach(name, HTTP).name
        assert not resources.detach(name, made)
        with refused(FAILED, "RESOURCE_RELEASING"):
            resources.confirm(name, made)
        with refused(NOT_FOUND, "RESOURCE_NOT_FOUND"):
            resources.confirm(name, made + "0")
        with refused(NOT_FOUND, "RESOURCE_NOT_FOUND"):
            resources.detach(name, "roost-1f0c77ab-1-0198c5f0a1b27c3d8e4f5a6b7c8d9e0f-1")


# -- releases that fail, hang, or meet a restart


def test_what_fails_is_listed_and_tried_again_at_once_when_it_is_detached(start: Start, sandboxes: Sandboxes) -> None:
    """I25: the error names neither the URL nor the handle."""
    sandboxes.status = 403
    server = start(*sandboxes.flags)
    with connected(server) as (api, resources):
        name = api.open().session.session_id
        made = resources.attach(name, HTTP, handle="secret-handle").name
        api.close(name)
        until(lambda: [r.attempts for r in resources.list()] == [1])
        (listed,) = resources.list(state=RELEASING)
        assert (listed.name, listed.kind, listed.handle) == (made, HTTP, "secret-handle")
        assert "answered 403" in listed.error
        assert listed.retry_time.ToMilliseconds() - listed.create_time.ToMilliseconds() > 200_000
        assert api.get(name).state == SEALED
        assert api.stats().counters["releases_failed"] == 1
        sandboxes.status = 0
        assert not resources.detach(name, made)  # the server is about to end it
        until(lambda: api.get(name).state == CLOSED)
        assert sandboxes.deletes == {made: 2}
    server.terminate()
    assert "secret-handle" not in server.logged
    assert "/v1/" not in server.logged
    assert [line["attempts"] for line in lines(server.logged, "release_failed")] == [1]


def test_one_that_hangs_holds_up_no_other(start: Start, sandboxes: Sandboxes, agents: Agents) -> None:
    with connected(start(*sandboxes.flags, *PROCESSES)) as (api, resources):
        stuck = [api.open().session.session_id for _ in range(20)]
        hang = {resources.attach(name, HTTP).name for name in stuck}
        sandboxes.hang = hang
        for name in stuck:
            api.close(name)
        until(lambda: len(sandboxes.deletes) >= 8)
        other = api.open().session.session_id
        agents.start(resources.attach(other, PROCESS).name)
        api.close(other)
        until(lambda: api.get(other).state == CLOSED)
        assert {api.get(name).state for name in stuck} == {SEALED}
        sandboxes.there = set(hang)
        sandboxes.over.set()
        until(lambda: {api.get(name).state for name in stuck} == {CLOSED})


def test_a_restart_goes_on_with_what_is_being_released(start: Start, sandboxes: Sandboxes) -> None:
    sandboxes.status = 503
    server = start(*sandboxes.flags)
    with connected(server) as (api, resources):
        name, still = (api.open(session_id).session.session_id for session_id in ("ends", "stays"))
        made, kept = resources.attach(name, HTTP).name, resources.attach(still, HTTP).name
        resources.confirm(still, kept, handle="kept")
        api.close(name)
        until(lambda: [r.attempts for r in resources.list(state=RELEASING)] == [1])
    server.kill()
    sandboxes.status = 0
    server.start()
    with connected(server) as (api, resources):
        gauges = api.stats().gauges
        assert gauges["resources"] - gauges["resources_releasing"] == 1
        until(lambda: api.get("ends").state == CLOSED)
        assert [(r.name, r.state, r.handle) for r in resources.list()] == [(kept, LIVE, "kept")]
        assert made in sandboxes.deletes
        assert kept not in sandboxes.deletes


def test_a_driver_that_is_gone_after_a_restart_leaves_its_resources_listed(start: Start, sandboxes: Sandboxes) -> None:
    server = start(*sandboxes.flags)
    with connected(server) as (api, resources):
        api.open("old")
        made = resources.attach("old", HTTP).name
    assert server.terminate() == 0
    server.flags = ()
    server.start()
    with connected(server) as (api, resources):
        api.close("old")
        until(lambda: [r.attempts for r in resources.list()] == [1])
        (listed,) = resources.list()
        assert "no driver for HTTP" in listed.error
        assert api.get("old").state == SEALED
    assert server.terminate() == 0
    server.flags = sandboxes.flags
    server.start()
    with connected(server) as (api, resources):
        assert not resources.detach("old", made)
        until(lambda: api.get("old").state == CLOSED)


def test_a_session_is_dumped_before_anything_of_it_is_released(
    start: Start, sandboxes: Sandboxes, tmp_path: Path
) -> None:
    """The dump is made once, and what is outside is there while it is made."""
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    server = clocked(start, *sandboxes.flags, "--dump-target", str(dumps))
    dumps.rmdir()  # no dump can be made
    with connected(server) as (api, resources):
        name = api.open().session.session_id
        api.turn(name, b"a turn")
        made, mine = resources.attach(name, HTTP).name, resources.attach(name, CLIENT).name
        receipt = api.close(name).receipt
        until(lambda: api.get(name).cleanup.attempts > 0)
        assert {r.state for r in resources.list()} == {RELEASING}
        assert not any(r.HasField("retry_time") for r in resources.list())
        assert sandboxes.deletes == {}
        dumps.mkdir()
        server.clock.skip(3_600)
        until(lambda: sandboxes.deletes == {made: 1})
        assert next(resources.watch()).release.name == mine
        session = api.get(name)
        assert (session.state, session.cleanup.HasField("dump_time")) == (SEALED, True)
        manifest = dumps / receipt.dump_name / "manifest.json"
        written = manifest.stat().st_mtime_ns
    # Over a restart the dump is not made again.
    server.kill()
    server.start()
    with connected(server) as (api, resources):
        assert resources.detach(name, mine)
        until(lambda: api.get(name).state == CLOSED)
        assert api.get(name).cleanup.dump_time == session.cleanup.dump_time
        assert manifest.stat().st_mtime_ns == written


# -- pools


def test_a_pool_of_three_serves_ten_agents(start: Start, agents: Agents) -> None:
    """I2, I9: never more processes than the pool has places, and none is ended whose session runs a turn."""
    with connected(start(*PROCESSES)) as (api, resources):
        pool = {"name": "agents", "key": "user", "max_resources": 3}
        busy = api.open().session.session_id
        api.begin(busy)
        sessions = [busy, *(api.open().session.session_id for _ in range(9))]
        made: dict[str, str] = {}
        for session in sessions:
            made[session] = resources.attach(session, PROCESS, pool=pool, wait=DEADLINE).name
            # The place was free before it was given away.
            assert len(agents.alive()) <= 2
            resources.confirm(session, made[session], agents.start(made[session]))
            assert made[busy] in agents.alive()
        assert agents.alive() == {made[session] for session in (busy, *sessions[-2:])}
        assert {r.session_id for r in resources.list(pool="agents")} == {busy, *sessions[-2:]}
        assert {api.get(session).state for session in sessions} == {OPEN}
        assert api.stats().counters["pool_evictions"] == 7
        for session in sessions:
            api.close(session)
        until(lambda: {api.get(session).state for session in sessions} == {CLOSED})
        assert agents.alive() == set()


def test_i2_agents_that_run_share_a_pool_and_never_more_than_it_has_places(start: Start, agents: Agents) -> None:
    server = start(*PROCESSES)
    pool = {"name": "agents", "key": "user", "max_resources": 3}
    alive: list[int] = []
    lock = threading.Lock()

    def work(n: int) -> None:
        with connected(server) as (api, resources):
            session = api.open(f"agent-{n}").session.session_id
            api.begin(session)  # from here on nobody has its agent ended
            made = ""
            while not made:
                try:
                    made = resources.attach(session, PROCESS, pool=pool, wait=DEADLINE).name
                except grpc.RpcError as error:
                    if refusal(error).reason != "POOL_FULL":
                        raise
            with lock:
                handle = agents.start(made)
                alive.append(len(agents.alive()))
            assert resources.confirm(session, made, handle).state == LIVE
            api.close(session)
            until(lambda: api.get(session).state == CLOSED)
            with lock:
                assert made not in agents.alive()

    with concurrent.futures.ThreadPoolExecutor(10) as workers:
        list(workers.map(work, range(10)))
    assert len(alive) == 10
    assert max(alive) <= 3


def test_a_pool_whose_holders_all_run_refuses_at_once(start: Start) -> None:
    with connected(start()) as (api, resources):
        pool = {"name": "one", "max_resources": 1}
        holder, other = (api.open().session.session_id for _ in range(2))
        api.begin(holder)
        held = resources.attach(holder, pool=pool).name
        with refused(EXHAUSTED, "POOL_FULL") as full:
            resources.attach(other, pool=pool, wait=DEADLINE)
        assert full.metadata["pool"] == "one"
        assert [r.name for r in resources.list()] == [held]


def test_who_waits_for_a_place_is_counted_by_connection(start: Start) -> None:
    server = start("--set", "max_waiters_per_connection=1")
    pool = {"name": "one", "max_resources": 1}
    with connected(server) as (api, resources), connected(server) as (_, others):
        names = [api.open().session.session_id for _ in range(4)]
        held = resources.attach(names[0], pool=pool).name
        with concurrent.futures.ThreadPoolExecutor(2) as pool_of_threads:
            first = pool_of_threads.submit(resources.attach, names[1], wait=DEADLINE, pool=pool)
            until(lambda: api.stats().gauges["pool_waiting"] == 1)
            with refused(EXHAUSTED, "QUEUE_FULL"):
                resources.attach(names[2], wait=DEADLINE, pool=pool)
            second = pool_of_threads.submit(others.attach, names[3], wait=DEADLINE, pool=pool)
            until(lambda: api.stats().gauges["pool_waiting"] == 2)
            # The places go in the order in which they were asked for.
            assert resources.detach(names[0], held)
            next_held = first.result().name
            assert not second.done()
            assert resources.detach(names[1], next_held)
            assert second.result().created


# -- lists


def test_lists_page_and_filter(start: Start) -> None:
    with connected(start()) as (api, resources):
        root = api.open().session.session_id
        child = api.open(parent_session_id=root).session.session_id
        other = api.open().session.session_id
        made = {
            session: [resources.attach(session, owner=owner).name for owner in ("a", "b") for _ in range(6)]
            for session in (root, child, other)
        }
        pooled = resources.attach(root, pool={"name": "p", "key": "k", "idle_ttl": {"seconds": 7}}).name
        resources.confirm(root, pooled)
        everything = sorted([*made[root], *made[child], *made[other], pooled])

        def names(**filters: Any) -> list[str]:
            return [r.name for r in resources.list(**filters)]

        assert names() == names(page_size=10) == names(page_size=1) == everything
        assert names(session_id=child, page_size=5) == sorted(made[child])
        assert names(root_session_id=root) == sorted([*made[root], *made[child], pooled])
        assert names(owner="b", page_size=3) == sorted(name for of in made.values() for name in of[6:])
        assert names(session_id=root, owner="a") == sorted(made[root][:6])
        assert names(state=LIVE) == names(pool="p") == [pooled]
        assert names(session_id=child, root_session_id=other) == []
        (one,) = resources.list(pool="p")
        assert (one.pool.name, one.pool.key, one.pool.idle_ttl.ToMilliseconds()) == ("p", "k", 7_000)
        assert (one.kind, one.owner, one.HasField("retry_time")) == (CLIENT, OWNER, False)
        assert abs(one.create_time.seconds - api.get(root).create_time.seconds) < 60

        token = resources.page(page_size=2, owner="a").next_page_token
        assert resources.page(page_size=5, owner="a", page_token=token).resources
        for filters in ({"owner": "b"}, {}, {"owner": "a", "state": PLANNED}):
            with refused(INVALID, "BAD_PAGE_TOKEN"):
                resources.page(page_token=token, **filters)
        for bad in ("x", token[:-4], "é"):
            with refused(INVALID, "BAD_PAGE_TOKEN"):
                resources.page(page_token=bad, owner="a")
        for filters in ({"session_id": "nobody"}, {"root_session_id": "nobody"}):
            with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                resources.page(**filters)
        for filters in ({"root_session_id": child}, {"page_size": -1}, {"state": 9}, {"session_id": "no id"}):
            with refused(INVALID, "INVALID_FIELD"):
                resources.page(**filters)


def test_i17_a_session_sees_what_it_and_its_descendants_have(start: Start) -> None:
    server = start(ROOST_ADMIN_KEY=ADMIN)
    tenants = [create(server, name).key for name in ("acme", "other")]
    with keyed(server, tenants[0]) as api, keyed(server, tenants[1]) as stranger:
        resources, theirs = Resources(api), Resources(stranger)
        opened(api, "root")
        keys = {name: opened(api, name, parent) for name, parent in (("left", "root"), ("right", "root"))}
        opened(api, "below", "left")
        made = {name: resources.attach(name).name for name in ("root", "left", "right", "below")}
        opened(stranger, "root")
        foreign = theirs.attach("root").name
        assert {r.name for r in resources.list()} == set(made.values())
        assert [r.name for r in theirs.list()] == [foreign]
        # What ended is seen by who reached it.
        api.close("below")
        with keyed(server, keys["left"]) as own:
            mine = Resources(own)
            assert {r.name for r in mine.list()} == {made["left"], made["below"]}
            # What else is in its tree shows neither in pages nor in tokens.
            assert [r.name for r in mine.list(page_size=1)] == sorted((made["left"], made["below"]))
            assert not mine.page(page_size=2).next_page_token
            assert len(mine.page(page_size=1).resources) == 1
            assert [r.name for r in mine.list(session_id="below")] == [made["below"]]
            for beyond in ("root", "right", "nobody"):
                with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    mine.list(session_id=beyond)
                with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    mine.attach(beyond)
                with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    mine.detach(beyond, made["right"])
            with refused(NOT_FOUND, "RESOURCE_NOT_FOUND"):
                mine.detach("left", made["right"])
            for call in (lambda: next(mine.watch()), lambda: mine.reconcile("node", {})):
                with refused(grpc.StatusCode.PERMISSION_DENIED, "KEY_SCOPE"):
                    call()
        # A host is told of its own tenant's only; an inventory counts what any tenant owns as owned.
        stranger.close("root")
        assert next(theirs.watch()).release.name == foreign
        assert next(resources.watch()).release.name == made["below"]
        lost = foreign[: foreign.rindex("-")] + "-99"
        found = {**dict.fromkeys(made.values(), "1"), foreign: "1", lost: "1"}
        assert resources.reconcile("node", found) == {lost: False}


# -- what nobody owns


def orphan(api: Any, resources: Resources) -> str:
    """A name that was given out, and that nobody owns any more."""
    session = api.open().session.session_id
    name = str(resources.attach(session).name)
    assert resources.detach(session, name)
    return name


def renamed(name: str, **fields: Any) -> str:
    marker = Marker.parse(name)
    assert marker is not None
    values = {field: fields.get(field, getattr(marker, field)) for field in ("prefix", "store_id", "epoch", "uid", "n")}
    return str(Marker(**values))


def test_i20_the_boot_reap_ends_exactly_the_orphans(start: Start, agents: Agents) -> None:
    server = clocked(start, *PROCESSES)
    with connected(server) as (api, resources):
        api.open("open")
        planned, live = (resources.attach("open", PROCESS).name for _ in range(2))
        resources.confirm("open", live, agents.start(live))
        agents.start(planned)
        lost = [orphan(api, resources) for _ in range(3)]
        theirs = [
            renamed(lost[0], store_id="00000000"),  # of another store
            renamed(lost[0], prefix="other"),
            renamed(lost[0], epoch=9),  # of a server that takes this store over
            "x" + lost[0],
            lost[0] + "x",
        ]
        for name in [*lost, *theirs]:
            agents.start(name)
    server.kill()
    server.flags = (*PROCESSES, "--set", "reap=process")
    server.start()
    with connected(server) as (api, _):
        until(lambda: api.stats().gauges["orphans_found"] == 3)
        assert agents.alive() == {planned, live, *lost, *theirs}
        server.clock.skip(LEASE)
        until(lambda: agents.alive() == {planned, live, *theirs})
        until(lambda: api.stats().gauges["orphans_ended"] == 3)
        server.clock.skip(LEASE)
        until(lambda: api.stats().gauges["orphans_found"] == 0)
        assert agents.alive() == {planned, live, *theirs}
    assert server.terminate() == 0
    assert {line["resource"] for line in lines(server.logged, "orphan_ended")} == set(lost)


def test_without_reap_nothing_is_ended(start: Start, agents: Agents) -> None:
    server = clocked(start, *PROCESSES)
    with connected(server) as (api, resources):
        agents.start(orphan(api, resources))
        for _ in range(3):
            server.clock.skip(LEASE)
        assert "orphans_ended" not in api.stats().gauges or api.stats().gauges["orphans_ended"] == 0
        assert len(agents.alive()) == 1


def test_i20_a_node_agent_is_told_exactly_the_orphans(start: Start) -> None:
    server = clocked(start)
    with connected(server) as (api, resources):
        session = api.open().session.session_id
        kept, sealed = resources.attach(session).name, api.open().session.session_id
        ending = resources.attach(sealed).name
        api.close(sealed)  # SEALED, and so it is owned
        lost = orphan(api, resources)
        there = {
            kept: "1",
            ending: "2",
            lost: "3",
            renamed(lost, store_id="00000000"): "4",
            renamed(lost, epoch=9): "5",
            f"x{lost}": "6",
            "something else": "7",
        }
        assert resources.reconcile("node", there) == {lost: False}
        server.clock.skip(LEASE / 2)
        assert resources.reconcile("node", there) == {lost: False}
        server.clock.skip(LEASE / 2)
        assert resources.reconcile("node", there, dry_run=True) == {lost: True}
        assert resources.reconcile("elsewhere", there) == {lost: False}
        assert resources.reconcile("node", {**there, lost: "replaced"}) == {lost: False}
        assert resources.reconcile("node", there) == {lost: False}  # that one was away
        server.clock.skip(LEASE)
        assert resources.reconcile("node", there) == {lost: True}
        # Its session is over for good: now it is an orphan too.
        assert resources.detach(sealed, ending)
        assert resources.reconcile("node", there) == {lost: True, ending: False}
        for bad in ({"node": ""}, {"node": "n" * 257}):
            with refused(INVALID, "INVALID_FIELD"):
                resources.reconcile(items={}, **bad)
        with refused(INVALID, "INVALID_FIELD"):
            resources.reconcile("node", {lost: "i" * 257})


# -- the configuration


def test_the_prefix_of_names_is_the_operators(start: Start) -> None:
    with connected(start("--set", "resource_prefix=lab-2")) as (api, resources):
        name = resources.attach(api.open().session.session_id).name
        assert re.fullmatch(rf"lab-2-{api.stats().store_id}-1-[0-9a-f]{{32}}-[0-9]+", name)


def test_a_bad_driver_ends_serve_before_anything_is_made(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    ended = roost("serve", "--data-dir", data, "--set", "reap=process")
    assert (ended.returncode, ended.stderr) == (78, "roost: reap: process is off: set process_driver as well\n")
    assert not (tmp_path / "data").exists()


def test_limits_of_resources_name_what_is_in_use(start: Start) -> None:
    flags = ("--set", "max_resources=3", "--set", "max_resources_per_session=2")
    with connected(start(*flags)) as (api, resources):
        one, two = (api.open(fresh()).session.session_id for _ in range(2))
        for _ in range(2):
            resources.attach(one)
        with refused(EXHAUSTED, "RESOURCE_LIMIT"):
            resources.attach(one)
        held = resources.attach(two).name
        with refused(EXHAUSTED, "RESOURCE_LIMIT"):
            resources.attach(two)
        assert {limit.name: limit.used for limit in api.stats().limits}["max_resources"] == 3
        assert resources.detach(two, held)
        resources.attach(two)
