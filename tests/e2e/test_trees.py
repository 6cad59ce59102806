"""Trees of agents on a real server: what systems before this one are known to get wrong, each with its right answer.

The engine's own part of these is in `rust/core/tests/engine/mail.rs`; here it is with a store, restarts and callers at
once.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, ClockedServer, Server, fresh, letter, refusal, refused, until

from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
RESIDENT, UNLOADED = types.RESIDENCY_RESIDENT, types.RESIDENCY_UNLOADED
QUEUED, DELIVERED = types.MESSAGE_STATE_QUEUED, types.MESSAGE_STATE_DELIVERED
CONSUMED, DEAD = types.MESSAGE_STATE_CONSUMED, types.MESSAGE_STATE_DEAD
PATIENCE = DEADLINE / 2  # seconds that a poll waits for what must come


def tree(api: Api, *children: str, **options: Any) -> str:
    """A root, and children `<root>.<name>` of these names."""
    root = fresh("root")
    api.open(root, **options)
    for name in children:
        api.open(f"{root}.{name}", parent_session_id=root, name=name)
    return root


def waiting(api: Api, name: str, **fields: Any) -> Any:
    """A BeginTurn that waits, once the server counts it."""
    request = turns.BeginTurnRequest(session_id=name, **fields)
    request.wait.FromSeconds(100)
    before = api.stats().gauges["waiting"]
    future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
    until(lambda: api.stats().gauges["waiting"] > before)
    return future


def contents(mail: Any) -> list[bytes]:
    return [each.content for each in mail]


# -- what is not in memory


def test_an_unloaded_agent_is_listed_as_what_it_is(start: Start) -> None:
    with start("--max-resident", "1").api() as api:
        root = tree(api, "scout", "critic", "writer")
        names = {root, *(f"{root}.{name}" for name in ("scout", "critic", "writer"))}
        for name in sorted(names):
            api.turn(name)
        until(lambda: api.stats().gauges["resident_sessions"] == 1)
        told = {s.session_id: s for s in api.list_all(root_session_id=root)}
        assert set(told) == names
        assert sorted(s.residency for s in told.values()) == [RESIDENT, UNLOADED, UNLOADED, UNLOADED]
        assert {s.path for s in told.values()} == {"/root", "/root/scout", "/root/critic", "/root/writer"}
        assert all(api.get(name).residency == told[name].residency for name in names), "reading has loaded it"
        # It keeps its name, and its agent can be run and ended as any other.
        gone = next(name for name, s in told.items() if s.residency == UNLOADED and name != root)
        with refused(grpc.StatusCode.ALREADY_EXISTS, "PATH_COLLISION"):
            api.open(parent_session_id=root, name=gone.rpartition(".")[2])
        assert api.turn(gone).turn == 2
        assert api.close(gone).receipt.turn_count == 2


def test_a_completion_reaches_a_parent_that_is_not_in_memory(start: Start) -> None:
    """I15: and does not bring it there."""
    with start("--max-resident", "1").api() as api:
        root = tree(api, "scout", wake_on_completion=True)
        child = f"{root}.scout"
        lease = api.begin(child).grant.lease
        until(lambda: api.get(root).residency == UNLOADED)
        api.commit(child, lease, completion=types.MessageInput(content=b"found it"))
        (told,) = api.list_mail(root)
        assert (told.kind, told.content, told.sender_path) == (
            types.MESSAGE_KIND_COMPLETED,
            b"found it",
            "/root/scout",
        )
        assert api.get(root).residency == UNLOADED
        polled = api.poll(wait=PATIENCE)
        assert (polled.session_id, contents(polled.grant.mail)) == (root, [b"found it"])
        api.commit(root, polled.grant.lease)
        assert api.list_mail(root)[0].state == CONSUMED


def test_a_session_that_has_only_mail_is_a_victim_as_any_other(start: Start) -> None:
    with start("--max-resident", "2").api() as api:
        mailed, *others = [api.open().session.session_id for _ in range(3)]
        api.send(mailed, b"for later")
        for name in others:
            api.turn(name)
        until(lambda: api.get(mailed).residency == UNLOADED)
        loads = api.stats().counters["reloads"]
        api.send(mailed, b"and this", trigger=True)
        assert api.wait_mail(mailed).queued == 2
        assert api.wait_mail(mailed).runnable
        assert contents(api.list_mail(mailed)) == [b"for later", b"and this"]
        stats = api.stats()
        assert (stats.counters["reloads"], stats.gauges["resident_sessions"]) == (loads, 2)
        assert api.get(mailed).residency == UNLOADED
        assert contents(api.begin(mailed).grant.mail) == [b"for later", b"and this"]


def test_i10_touches_in_evictions_leave_no_ghost(start: Start) -> None:
    """A session that is touched while it is evicted stays or is found again: none counts that is gone or refused."""
    server = start("--max-resident", "1", "--max-turns-per-tree", "64", ROOST_TURN_LOG="false")
    with server.api() as api:
        root = tree(api, *(f"n{n}" for n in range(5)))
        names = [f"{root}.n{n}" for n in range(5)] + [api.open().session.session_id for _ in range(3)]

        def agent(number: int) -> list[str]:
            """Its own session's turns, and touches of the others in between."""
            with server.api() as own:
                for turn in range(1, 26):
                    name = names[number]
                    begun = own.begin(name)
                    assert begun.grant.turn == turn
                    assert own.commit(name, begun.grant.lease, b"%d" % turn).turn == turn
                    request = sessions.UpdateSessionRequest(session_id=names[(number + turn) % len(names)])
                    own.sessions.UpdateSession(request, timeout=DEADLINE)
            return [names[number]]

        with ThreadPoolExecutor(len(names)) as pool:
            assert sorted(name for done in pool.map(agent, range(len(names))) for name in done) == sorted(names)

        def counted() -> bool:
            listed = api.list_all(residency=RESIDENT)
            return api.stats().gauges["resident_sessions"] == len(listed) <= 1

        until(counted)
        stats = api.stats()
        assert stats.counters["evictions"] >= 100
        assert stats.counters["reloads"] >= 100
        assert stats.gauges["slots_held"] == 0
        assert [api.get(name).turn_count for name in names] == [25] * len(names)


class StallingServer(Server):
    """A server in which the load of a session is held up as long as a test wants (tests/support/stalling_roost.py)."""

    program = (str(Path(__file__).parents[1] / "support" / "stalling_roost.py"),)

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="roost-")
        self._control = f"{self._directory.name}/stall"
        super().__init__(data_dir, *flags, STALL_SOCKET=self._control)

    def hold(self, uid: str) -> None:
        self._say(f"hold {uid.replace('-', '')}")

    def release(self) -> None:
        self._say("release")

    def _say(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self._control)
            control.sendall(line.encode() + b"\n")
            assert control.recv(16) == b"done\n"

    def end(self) -> None:
        super().end()
        self._directory.cleanup()


def test_a_load_that_stalls_holds_up_its_own_session_alone(tmp_path: Path) -> None:
    server = StallingServer(tmp_path / "data", "--max-resident", "1")
    with contextlib.ExitStack() as stack:
        stack.callback(server.end)
        api = stack.enter_context(server.start().api())
        root = tree(api, "stuck", "other")
        stuck, other, elsewhere = f"{root}.stuck", f"{root}.other", tree(api)
        until(lambda: api.get(stuck).residency == UNLOADED)
        server.hold(api.get(stuck).uid)
        begins = api.turns.BeginTurn.future(turns.BeginTurnRequest(session_id=stuck), timeout=DEADLINE)
        for turn in range(1, 4):
            # Each of these is loaded anew each time, its own tree's sessions too.
            for name in (root, other, elsewhere):
                assert api.turn(name).turn == turn
        # What needs no more than the tree's header goes on for the session itself.
        api.send(stuck, b"are you there?")
        assert api.wait_mail(stuck).queued == 1
        assert api.get(stuck).turn_count == 0
        assert not begins.done()
        server.release()
        grant = begins.result(DEADLINE).grant
        assert grant.turn == 1
        api.commit(stuck, grant.lease)
        assert api.get(stuck).turn_count == 1


# -- what outlives the server


@pytest.mark.parametrize(
    "killed", [pytest.param(True, id="killed", marks=pytest.mark.crash), pytest.param(False, id="stopped")]
)
def test_i5_mail_slots_and_statuses_outlive_the_server(start: Start, killed: bool) -> None:
    server = start("--max-turns-per-tree", "3", ROOST_DEFAULT_LEASE_MS="3600000")
    with server.api() as api:
        root = tree(api, "busy", "flagged", "queued", "ended", "gave-up", wake_on_completion=True)
        busy, flagged, queued, ended, gave_up = (
            f"{root}.{name}" for name in ("busy", "flagged", "queued", "ended", "gave-up")
        )
        api.send(busy, b"with its turn", sender_session_id=root)
        api.send(queued, b"start", trigger=True, ttl=3_600)
        api.turn(ended, completion=types.MessageInput(content=b"done"))
        api.close(ended)
        api.abort(gave_up, api.begin(gave_up).grant.lease, b"half", final=True)
        leases = {name: api.begin(name, owner="host-1").grant.lease for name in (busy, flagged)}
        api.send(busy, b"after its turn")
        api.interrupt(flagged)
        before = picture(api, root)
        assert [mail.state for mail in api.list_mail(busy)] == [DELIVERED, QUEUED]
        assert api.get(flagged).running.interrupt_requested
    if killed:
        server.kill()
    else:
        assert server.terminate() == 0
    server.start()
    with server.api() as api:
        assert picture(api, root) == before
        gauges = api.stats().gauges
        assert (gauges["slots_held"], gauges["turns_running"]) == (2, 2)
        # The two that run are charged to their tree, and its root's place is free.
        with refused(EXHAUSTED, "TREE_TURNS") as why:
            api.begin(queued)
        assert (why.metadata["limit"], why.metadata["used"]) == ("3", "2")
        woken = api.poll(wait=PATIENCE)
        assert woken.session_id == root
        assert [mail.kind for mail in woken.grant.mail] == [types.MESSAGE_KIND_COMPLETED, types.MESSAGE_KIND_FAILED]
        api.commit(root, woken.grant.lease)
        assert contents(api.commit(busy, leases[busy], then=turns.THEN_CONTINUE).next.mail) == [b"after its turn"]
        assert [mail.state for mail in api.list_mail(busy)] == [CONSUMED, DELIVERED]
        assert api.commit(flagged, leases[flagged], then=turns.THEN_CONTINUE).next_refused.reason == "TURN_INTERRUPTED"
        started = api.poll(wait=PATIENCE)
        assert (started.session_id, contents(started.grant.mail)) == (queued, [b"start"])
        assert api.close(root).receipt.children_closed == 4


def picture(api: Api, root: str) -> Any:
    """A tree and its mail as anybody sees it, but for where it is and when its turns began as this server counts."""
    told = {s.session_id: s for s in api.list_all(root_session_id=root)}
    for s in told.values():
        s.ClearField("residency")
    return told, {name: api.list_mail(name) for name in told}, {name: api.history(name) for name in told}


def test_i15_a_message_that_kills_its_hosts_ends_dead_and_its_sender_sees_it(start: Start) -> None:
    """Five hosts take it and are not heard of again; the server itself is killed in between."""
    server = start(clocked=True)
    assert isinstance(server, ClockedServer)
    with server.api() as api:
        root = tree(api, "worker")
        worker = f"{root}.worker"
        api.send(worker, b"poison", trigger=True, sender_session_id=root)
    for attempt in range(1, 6):
        with server.api() as host:
            polled = host.poll(wait=PATIENCE, owner=f"host-{attempt}")
        assert (polled.session_id, polled.grant.mail[0].deliveries) == (worker, attempt)
        if attempt == 3:
            server.kill()
            server.start()
        server.clock.skip(60)  # a lease
        with server.api() as api:
            until(lambda: api.get(worker).activity == types.ACTIVITY_IDLE)
        server.clock.skip(60)  # the longest pause, which begins when the server has seen that the lease is over
    with server.api() as api:
        (told,) = api.list_mail(sender_session_id=root)
        assert (told.state, told.deliveries) == (DEAD, 5)
        assert not api.wait_mail(worker).runnable
        assert not api.begin(worker).grant.mail


# -- caps


def test_i2_agents_that_have_finished_do_not_count(start: Start) -> None:
    with start("--set", "max_sessions_per_tree=3", "--max-turns-per-tree", "2").api() as api:
        root = tree(api, "first", "second")
        for turn in range(1, 6):
            with refused(EXHAUSTED, "TREE_SESSIONS") as why:
                api.open(parent_session_id=root)
            assert (why.metadata["limit"], why.metadata["used"]) == ("3", "3")
            first = [s.session_id for s in api.list_all(root_session_id=root, path_prefix="/root/first")][-1]
            # The end of its work frees its slot; its close frees its place, and its name.
            api.turn(first, completion=types.MessageInput(content=b"done"))
            assert api.turn(f"{root}.second").turn == turn
            api.close(first)
            api.open(parent_session_id=root, name="first")
        assert len(api.list_all(root_session_id=root)) == 2 + 6
        assert len(api.list_all(root_session_id=root, state=types.SESSION_STATE_OPEN)) == 3
        assert api.stats().gauges["slots_held"] == 0


def test_i2_children_at_the_cap_never_lock_their_root_out(start: Start, tmp_path: Path) -> None:
    names = [f"n{n}" for n in range(8)]
    with start("--max-turns-per-tree", "3").api() as api:
        root = tree(api, *names)
        running = {name: api.begin(f"{root}.{name}").grant.lease for name in names[:2]}
        waits = {name: waiting(api, f"{root}.{name}", priority=100) for name in names[2:]}
        for turn in range(1, 4):
            # The root waits for none of them, in whatever order they came.
            assert api.turn(root, then=turns.THEN_IDLE).turn == turn
        assert not any(wait.done() for wait in waits.values())
        # Nor does it take their places: with its turn running, two children run.
        lease = api.begin(root).grant.lease
        for name in names[2:]:
            ending = next(iter(running))
            api.commit(f"{root}.{ending}", running.pop(ending))
            running[name] = waits[name].result(DEADLINE).grant.lease
            assert api.stats().gauges["slots_held"] == 3
        api.commit(root, lease)
    with start("--max-turns-per-tree", "1", data_dir=tmp_path / "alone").api() as api:
        root = tree(api, "child")
        with refused(EXHAUSTED, "TREE_TURNS"):
            api.begin(f"{root}.child")
        api.turn(root)


def test_mail_to_a_running_agent_is_in_its_next_request(start: Start) -> None:
    """And the slot is not seen free in between, by who watches nor by who waits for it (I1)."""
    server = start("--max-turns-per-tenant", "1")
    with server.api() as api, watched_slots(server) as seen:
        name, other = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(name).grant.lease
        wait = waiting(api, other)
        seen.clear()
        for number in range(100):
            api.send(name, b"%d" % number)
            grant = api.commit(name, lease, then=turns.THEN_CONTINUE).next
            assert (contents(grant.mail), grant.turn) == ([b"%d" % number], number + 2)
            lease = grant.lease
        assert set(seen) == {1}
        assert len(seen) > 10
        assert not wait.done()
        api.commit(name, lease)
        api.commit(other, wait.result(DEADLINE).grant.lease)


@contextlib.contextmanager
def watched_slots(server: Server) -> Iterator[list[int]]:
    """How many slots are held, as often as it can be asked."""
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        with server.api() as api:
            while not stop.is_set():
                seen.append(api.stats().gauges["slots_held"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_a_first_message_comes_with_its_agent_or_not_at_all(start: Start) -> None:
    """I22: whatever stands against the one leaves nothing of the other."""
    limits = ("max_sessions_per_tree=4", "max_depth=1", "max_message_bytes=1000")
    server = start(*(flag for limit in limits for flag in ("--set", limit)))
    with server.api() as api:
        root = tree(api, "first")
        child = f"{root}.first"
        sent = api.stats().gauges["messages_sent"]
        start_it = letter(b"begin", trigger=True)
        against: list[tuple[str, Callable[[str], Any]]] = [
            ("PATH_COLLISION", lambda id: api.open(id, first_message=start_it, parent_session_id=root, name="first")),
            ("TREE_DEPTH", lambda id: api.open(id, first_message=start_it, parent_session_id=child)),
            ("PARENT_NOT_FOUND", lambda id: api.open(id, first_message=start_it, parent_session_id="nobody")),
            ("INVALID_FIELD", lambda id: api.open(id, first_message=letter(b""), parent_session_id=root)),
            ("TOO_LARGE", lambda id: api.open(id, first_message=letter(bytes(1_001)), parent_session_id=root)),
        ]
        for reason, call in against:
            id = fresh()
            with pytest.raises(grpc.RpcError) as error:
                call(id)
            assert refusal(error.value).reason == reason
            with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
                api.get(id)
        assert api.stats().gauges["messages_sent"] == sent
        assert len(api.list_all(root_session_id=root)) == 2
        id = fresh()
        api.open(id, first_message=start_it, parent_session_id=root)
        polled = api.poll(wait=PATIENCE)
        assert (polled.session_id, contents(polled.grant.mail)) == (id, [b"begin"])
        assert (polled.grant.mail[0].sender_session_id, polled.grant.mail[0].sender_path) == (root, "/root")
