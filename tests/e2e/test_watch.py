"""WatchSessions and WatchOwner over a real server: each kind of event, breaks, restarts, overruns, filters, scope."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed, opened, revoke
from conftest import Start
from resources_api import Resources
from roost_server import DEADLINE, Api, ClockedServer, Server, environment, fresh, refused, until

from roost.client import AsyncClient, Resync
from roost.v1 import mail_service_pb2, mail_service_pb2_grpc, types_pb2
from roost.v1 import session_service_pb2 as s
from roost.v1 import turn_service_pb2 as t

HOST = "host"
NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
FAILED, UNAUTHENTICATED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED
Kind = s.SessionEventKind


def kind_of(event: Any) -> str:
    return Kind.Name(event.kind).removeprefix("SESSION_EVENT_KIND_")


class Watching:
    """A stream of WatchSessions, begun: what happens from here on it tells."""

    def __init__(self, api: Api, **fields: Any) -> None:
        self.stream = api.sessions.WatchSessions(s.WatchSessionsRequest(**fields), timeout=DEADLINE)
        self.token = ""
        self.resyncs: list[bool] = []
        self.first = self.answer()

    def answer(self) -> list[Any]:
        """The events of the next answer."""
        answer = next(self.stream)
        self.token = answer.resume_token
        self.resyncs.append(answer.resync)
        return list(answer.events)

    def until(self, session_id: str, kind: str = "UPDATED") -> list[Any]:
        """What is told before this has happened to this session."""
        found: list[Any] = []
        while True:
            for event in self.answer():
                if (event.session_id, kind_of(event)) == (session_id, kind):
                    return found
                found.append(event)


class Owner:
    """A stream of WatchOwner."""

    def __init__(self, api: Api, owner: str = HOST) -> None:
        self._api, self._owner = api, owner
        self.stream = api.turns.WatchOwner(t.WatchOwnerRequest(owner=owner), timeout=DEADLINE)

    def next(self) -> tuple[str, str]:
        """What is told next, and of which session."""
        answer = next(self.stream)
        kind = answer.WhichOneof("event")
        return kind, getattr(answer, kind).session_id

    def told(self) -> list[tuple[str, str]]:
        """All that is told so far: up to what happens now."""
        last = fresh("last")
        self._api.open(last)
        self._api.abort(last, self._api.begin(last, owner=self._owner).grant.lease)
        self._api.close(last)
        return list(iter(self.next, ("closed", last)))


def send(api: Api, session_id: str, trigger: bool = False, **message: Any) -> None:
    stub: Any = mail_service_pb2_grpc.MailServiceStub(api.channel)  # type: ignore[no-untyped-call]
    letter = types_pb2.MessageInput(content=b"x", trigger=trigger, **message)
    stub.SendMessage(mail_service_pb2.SendMessageRequest(session_id=session_id, message=letter), timeout=DEADLINE)


def update(api: Api, session_id: str, value: str = "") -> None:
    request = s.UpdateSessionRequest(session_id=session_id, labels={"n": value or fresh()})
    api.sessions.UpdateSession(request, timeout=DEADLINE)


# -- WatchSessions


def test_each_kind_of_event_tells_what_has_happened(api: Api) -> None:
    root, kid, name = fresh("root"), fresh("kid"), fresh("name").replace("-", "_")
    api.open(root)
    watching = Watching(api, root_session_id=root)
    assert watching.first == []
    api.open(kid, parent_session_id=root, name=name)
    lease = api.begin(kid, owner=HOST).grant.lease
    api.interrupt(kid)
    api.abort(kid, lease)
    api.commit(kid, api.begin(kid, owner=HOST).grant.lease, completed=True)
    send(api, kid, trigger=True)
    update(api, kid)
    api.close(root)
    api.reopen(root)
    update(api, root)
    told = watching.until(root)
    assert [(kind_of(e), e.session_id) for e in told] == [
        ("OPENED", kid),
        ("TURN_BEGUN", kid),
        ("INTERRUPTED", kid),
        ("TURN_ENDED", kid),
        ("TURN_BEGUN", kid),
        ("TURN_ENDED", kid),
        ("MAIL", root),
        ("MAIL", kid),
        ("UPDATED", kid),
        ("CLOSED", root),
        ("CLOSED", kid),
        ("REOPENED", root),
        ("REOPENED", kid),
    ]
    uid = api.get(kid).uid
    for event in told:
        assert event.root_session_id == root
        assert event.time.ToSeconds() > 1_600_000_000
        assert event.session_id == root or (event.uid, event.path) == (uid, f"/root/{name}")
    begun, asked, aborted, again, committed = told[1:6]
    assert (begun.turn, begun.attempt, begun.owner) == (asked.turn, asked.attempt, asked.owner) == (1, 1, HOST)
    assert (aborted.attempt, aborted.outcome) == (1, types_pb2.TURN_OUTCOME_INTERRUPTED)
    assert (again.turn, again.attempt) == (1, 2)
    assert (committed.turn, committed.outcome) == (1, types_pb2.TURN_OUTCOME_COMPLETED)
    assert (told[6].queued, told[6].trigger) == (1, False)
    assert (told[7].queued, told[7].trigger) == (1, True)
    assert told[9].close_reason == types_pb2.CLOSE_REASON_QUIT
    assert told[10].close_reason == types_pb2.CLOSE_REASON_PARENT_CLOSED


def test_a_broken_stream_is_gone_on_with_where_it_broke(shared: Server, api: Api) -> None:
    root = fresh()
    api.open(root)
    with shared.api() as other:
        watching = Watching(other, root_session_id=root)
        update(api, root)
        assert watching.until(root) == []
    # Its connection is gone; meanwhile things happen.
    for n in range(3):
        api.turn(root, str(n).encode())
    again = Watching(api, root_session_id=root, resume_token=watching.token)
    told = again.first
    while len(told) < 6:
        told += again.answer()
    assert [(kind_of(e), e.turn) for e in told] == [
        (kind, n) for n in (1, 2, 3) for kind in ("TURN_BEGUN", "TURN_ENDED")
    ]
    assert not any(again.resyncs)


def test_a_restart_is_told_and_what_happens_then(start: Start) -> None:
    server = start()
    with server.api() as api:
        api.open("s")
        watching = Watching(api)
        update(api, "s")
        watching.until("s")
    server.kill()
    server.start()
    with server.api() as api:
        update(api, "s")
        again = Watching(api, resume_token=watching.token)
        assert (again.first, again.resyncs) == ([], [True])
        api.turn("s")
        assert [kind_of(e) for e in again.until("s", "TURN_ENDED")] == ["TURN_BEGUN"]
        assert again.resyncs[1:] == [False] * len(again.resyncs[1:])
        # From now on its tokens are good.
        api.close("s")
        last = Watching(api, resume_token=again.token)
        assert (last.resyncs, [kind_of(e) for e in last.first or last.answer()]) == ([False], ["CLOSED"])


def test_an_overrun_is_told_once(start: Start) -> None:
    server = start("--set", "max_watch_events=16")
    with server.api() as api:
        for name in ("s", "busy"):
            api.open(name)
        watching = Watching(api)
        old = watching.token
        # A stream that reads loses nothing, however much there is.
        for _ in range(5):
            for _ in range(10):
                update(api, "busy")
            api.turn("s")
            assert watching.until("s", "TURN_ENDED")
        assert not any(watching.resyncs)
        again = Watching(api, resume_token=old)
        assert (again.first, again.resyncs) == ([], [True])
        update(api, "s")
        assert again.until("s") == []
        assert not any(again.resyncs[1:])
        assert api.stats().gauges["watch_events"] == 16


def test_a_reader_that_reads_nothing_costs_nothing(start: Start) -> None:
    """What it does not take is not kept for it: the bound holds, and it is told what it has lost."""
    server = start("--set", "max_watch_events=64")
    # As much is under way to it as a connection holds; let that be little.
    options = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
    with server.api() as api, grpc.insecure_channel(server.address, options=options) as channel:
        name = "s" * 250
        api.open(name)
        watching = Watching(Api(channel))
        happened, told = 2_000, 0
        for n in range(happened):
            update(api, name, str(n))
        assert api.stats().gauges["watch_events"] <= 64
        while not watching.resyncs[-1]:
            told += len(watching.answer())
        assert told < happened / 2
        last = fresh()
        api.open(last)
        assert watching.until(last, "OPENED") == []


def test_filters_are_kept_on_the_boundaries_of_names(api: Api) -> None:
    root, other = fresh("root"), fresh("other")
    api.open(root)
    api.open(other)
    ids = {}
    for name, parent in (("a", root), ("ab", root), ("b", root)):
        ids[name] = api.open(parent_session_id=parent, name=name).session.session_id
    ids["deep"] = api.open(parent_session_id=ids["a"], name="ab").session.session_id
    below = Watching(api, root_session_id=root, path_prefix="/root/a")
    slashed = Watching(api, root_session_id=root, path_prefix="/root/a/")
    tree = Watching(api, root_session_id=root)
    kinds = Watching(api, root_session_id=root, kinds=[Kind.SESSION_EVENT_KIND_CLOSED])
    for session in (other, root, *ids.values()):
        update(api, session)
    api.close(root)
    assert [e.session_id for e in below.until(ids["a"], "CLOSED")] == [ids["a"], ids["deep"]]
    assert [e.session_id for e in slashed.until(ids["a"], "CLOSED")] == [ids["a"], ids["deep"]]
    assert [e.session_id for e in tree.until(root, "CLOSED")] == [root, *ids.values()]
    assert kinds.until(root, "CLOSED") == []


def test_what_cannot_be_watched_is_refused(api: Api) -> None:
    root = api.open().session.session_id
    kid = api.open(parent_session_id=root).session.session_id
    for fields in (
        {"root_session_id": kid},
        {"root_session_id": "no id"},
        {"path_prefix": "/root"},
        {"root_session_id": root, "path_prefix": "root/a"},
        {"root_session_id": root, "path_prefix": "/rooted"},
        {"kinds": [0]},
        {"kinds": [99]},
    ):
        with refused(INVALID, "INVALID_FIELD") as why:
            Watching(api, **fields)
        assert why.metadata["field"] == list(fields)[-1]
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        Watching(api, root_session_id=fresh())
    token = Watching(api, root_session_id=root).token
    for fields in ({}, {"root_session_id": root, "path_prefix": "/root/a"}):
        with refused(INVALID, "BAD_PAGE_TOKEN"):
            Watching(api, resume_token=token, **fields)


# -- scope


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which every call needs a key."""
    server = Server(tmp_path_factory.mktemp("guarded") / "data", ROOST_ADMIN_KEY=ADMIN).start()
    yield server
    server.end()


def test_i17_tenants_see_their_own_and_sessions_what_is_below_them(guarded: Server) -> None:
    mine, others = create(guarded, fresh("t")).key, create(guarded, fresh("t")).key
    with keyed(guarded, mine) as api, keyed(guarded, others) as other:
        keys = {name: opened(api, name, parent) for name, parent in (("root", ""), ("a", "root"), ("b", "root"))}
        opened(api, "aa", "a")
        opened(other, "root")
        with keyed(guarded, keys["a"]) as agent, keyed(guarded, keys["root"]) as whole:
            watches = [Watching(api), Watching(whole), Watching(agent)]
            for name in ("root", "b", "aa"):
                api.turn(name)
            other.turn("root")
            update(api, "root")
            update(api, "a")
            tenant, tree, inside = (watching.until("a") for watching in watches)
            seen = [(name, kind) for name in ("root", "b", "aa") for kind in ("TURN_BEGUN", "TURN_ENDED")]
            expected = [*seen, ("root", "UPDATED")]
            assert [(e.session_id, kind_of(e)) for e in tenant] == expected
            assert [(e.session_id, kind_of(e)) for e in tree] == expected
            assert [(e.session_id, kind_of(e)) for e in inside] == seen[4:]
            # Not an answer too many: that others were at work does not show.
            assert all(len(told) > 0 for told in [inside])
            assert len(watches[2].resyncs) <= 1 + len(inside) + 1
            for fields in ({"root_session_id": "root"}, {"root_session_id": "b"}, {"root_session_id": "nobody"}):
                with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    Watching(agent, **fields)
            below = Watching(agent, path_prefix="/root/a/aa")
            update(api, "a")
            update(api, "aa")
            assert below.until("aa") == []
            for key in (api, whole):
                with refused(INVALID, "BAD_PAGE_TOKEN"):
                    Watching(key, resume_token=watches[2].token)
            with refused(INVALID, "BAD_PAGE_TOKEN"):
                Watching(other, resume_token=watches[0].token)


def test_a_stream_ends_with_its_session_or_its_key(guarded: Server) -> None:
    made = create(guarded, fresh("t"))
    with keyed(guarded, made.key) as api:
        key = opened(api, "root")
        opened(api, "kid", "root")
        with keyed(guarded, key) as agent:
            # It watches for something else altogether.
            ends = Watching(agent, kinds=[Kind.SESSION_EVENT_KIND_MAIL])
            api.close("root")
            with refused(FAILED, "SESSION_CLOSED"):
                ends.answer()
            with refused(FAILED, "SESSION_CLOSED"):
                Watching(agent)
        api.reopen("root")
        watching = Watching(api)
        revoke(guarded, made.api_key.key_id)
        with keyed(guarded, ADMIN, made.api_key.tenant) as admin:
            update(admin, "root")
        with refused(UNAUTHENTICATED, "KEY_INVALID"):
            watching.answer()
            watching.answer()


# -- WatchOwner


def test_a_host_is_told_what_others_do(start: Start) -> None:
    server = start(clocked=True)
    assert isinstance(server, ClockedServer)
    with server.api() as api:
        for name in ("expires", "taken", "forced", "closed", "own", "asked"):
            api.begin(name, open=types_pb2.OpenOptions(), owner=HOST, lease=3600 if name != "expires" else 60)
        api.open("idle")
        api.abort("idle", api.begin("idle", owner=HOST).grant.lease)
        owner, other = Owner(api), Owner(api, "other")
        assert owner.told() == []
        server.clock.skip(61)
        assert owner.next() == ("lease_lost", "expires")
        api.begin("taken", owner="other", if_running="IF_RUNNING_TAKEOVER")
        assert owner.next() == ("lease_lost", "taken")
        api.interrupt("forced", force=True)
        assert owner.next() == ("lease_lost", "forced")
        api.interrupt("asked")
        assert owner.next() == ("interrupt", "asked")
        api.close("closed")
        assert owner.next() == ("closed", "closed")
        send(api, "idle", trigger=True)
        assert owner.next() == ("mail", "idle")
        # What it does itself, and what is another's, it is not told.
        lease = api.begin("own", owner=HOST, if_running="IF_RUNNING_TAKEOVER").grant.lease
        api.commit("own", lease)
        send(api, "taken")
        send(api, "idle")
        api.close("taken")
        assert owner.told() == []
        assert other.told() == [("closed", "taken")]


def test_lost_leases_and_interrupts_name_the_turn(api: Api) -> None:
    name, host = api.open().session.session_id, fresh("host")
    api.turn(name)
    grant = api.begin(name, owner=host).grant
    watching = api.turns.WatchOwner(t.WatchOwnerRequest(owner=host), timeout=DEADLINE)
    api.interrupt(name)
    told = next(watching).interrupt
    assert (told.session_id, told.turn, told.fence) == (name, 2, grant.fence)
    api.begin(name, owner="another", if_running="IF_RUNNING_TAKEOVER")
    lost = next(watching).lease_lost
    assert (lost.session_id, lost.turn, lost.fence) == (name, 2, grant.fence)
    assert lost.outcome == types_pb2.TURN_OUTCOME_INTERRUPTED


def test_mail_waits_for_the_end_of_the_turn_and_for_its_pause(start: Start) -> None:
    server = start(clocked=True)
    assert isinstance(server, ClockedServer)
    with server.api() as api:
        api.open("m")
        lease = api.begin("m", owner=HOST).grant.lease
        owner = Owner(api)
        send(api, "m", trigger=True)
        assert owner.told() == []
        api.commit("m", lease)
        assert owner.next() == ("mail", "m")
        grant = api.begin("m", owner=HOST).grant
        assert len(grant.mail) == 1
        api.abort("m", grant.lease)
        assert owner.told() == []
        server.clock.skip(1.5)
        assert owner.next() == ("mail", "m")
        assert owner.told() == []


def test_i5_a_stream_begins_with_what_is_to_be_done_over_breaks_and_restarts(start: Start) -> None:
    server = start()
    with server.api() as api:
        resources = Resources(api)
        for name in ("asked", "mail", "gone"):
            api.open(name)
        # Its session is not in memory when it is asked for.
        api.abort("mail", api.begin("mail", owner=HOST).grant.lease)
        send(api, "mail", trigger=True)
        api.begin("asked", owner=HOST, lease=3600)
        api.interrupt("asked")
        resources.attach("gone")
        api.close("gone")
        expected = [("interrupt", "asked"), ("mail", "mail"), ("release", "gone")]
        for _ in range(2):
            assert Owner(api).told() == expected
    server.kill()
    server.start()
    with server.api() as api:
        assert Owner(api).told() == expected
        lease = api.begin("asked", owner=HOST, if_running="IF_RUNNING_TAKEOVER").grant.lease
        api.abort("asked", lease)
        api.commit("mail", api.begin("mail", owner=HOST).grant.lease)
        assert Owner(api).told() == expected[2:]


def test_a_host_that_falls_behind_begins_again(start: Start) -> None:
    """Where it is too slow for the events, it is told again what is to be done, and what it knows only once."""
    server = start("--set", "max_watch_events=4")
    with server.api() as api:
        for name in ("one", "two", "busy"):
            api.open(name)
            api.begin(name, owner=HOST, lease=3600)
        owner = Owner(api)
        api.interrupt("one")
        assert owner.next() == ("interrupt", "one")
        # More than is kept, in one burst: whether the stream sees each of them or begins again, it tells the same.
        for n in range(50):
            update(api, "busy", str(n))
            if n == 10:
                api.interrupt("two")
        assert owner.next() == ("interrupt", "two")
        # (A close may be among what it has lost: what is to be done comes in any case.)
        api.interrupt("busy")
        assert owner.next() == ("interrupt", "busy")


# -- the client, and the command line


async def test_the_client_goes_on_over_restarts(start: Start, tmp_path: Path) -> None:
    server = start(listen=f"unix:{tmp_path}/s")
    async with AsyncClient(server.address, owner=HOST) as client:
        news, told = client.watch_sessions(), client.watch_owner_events()
        assert isinstance(await anext(news), Resync)
        waiting = asyncio.ensure_future(anext(told))
        await client.open_session("s")
        await client.begin_turn("s", lease=3600)
        assert [kind_of(await anext(news)) for _ in range(2)] == ["OPENED", "TURN_BEGUN"]
        await client.interrupt_session("s")
        assert isinstance(await waiting, t.Interrupt)
        assert kind_of(await anext(news)) == "INTERRUPTED"
        following, again = asyncio.ensure_future(anext(news)), asyncio.ensure_future(anext(told))
        server.kill()
        start(listen=f"unix:{tmp_path}/s")
        assert isinstance(await following, Resync)
        interrupt = await again
        assert isinstance(interrupt, t.Interrupt)
        assert (interrupt.session_id, interrupt.turn) == ("s", 1)
        await client.close_session("s")
        assert [kind_of(await anext(news)) for _ in range(2)] == ["TURN_ENDED", "CLOSED"]
        closed = await anext(told)
        assert isinstance(closed, t.OwnedSessionClosed)
        assert closed.reason == types_pb2.CLOSE_REASON_QUIT


@pytest.mark.parametrize("output", ["table", "json"])
def test_the_command_line_prints_a_line_each(shared: Server, api: Api, output: str) -> None:
    root = fresh()
    api.open(root)
    arguments = ["sessions", "watch", "--target", shared.address, "--root", root, "--kind", "turn_ended", "-o", output]
    arguments += ["--kind", "closed"]
    command = [sys.executable, "-m", "roost", *arguments]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if output == "json":
            assert json.loads(process.stdout.readline()) == {"resync": True}
        else:
            assert "roost sessions list" in process.stderr.readline()
        api.turn(root)
        api.close(root)
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
    if output == "json":
        ended, closed = map(json.loads, lines)
        assert (ended["kind"], ended["turn"]) == ("SESSION_EVENT_KIND_TURN_ENDED", 1)
        assert (closed["session_id"], closed["close_reason"]) == (root, "CLOSE_REASON_QUIT")
    else:
        assert lines[0].split()[1:] == ["turn_ended", root, "/root", "turn=1", "attempt=1", "outcome=committed"]
        assert lines[1].split()[1:] == ["closed", root, "/root", "reason=quit"]


def test_a_watch_ends_with_the_server(start: Start) -> None:
    server = start()
    with server.api() as api:
        watching, owner = Watching(api), Owner(api)
        assert owner.told() == []
        server.process.send_signal(signal.SIGTERM)
        with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            until(lambda: watching.answer() is None)
        assert server.wait() == 0
