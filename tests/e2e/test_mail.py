"""Mail over a real socket: delivered in order, consumed once, kept over crashes (I5, I15, I21)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import keyed
from conftest import Start
from restored import dump_names, restored
from roost_server import DEADLINE, Api, ClockedServer, Server, fresh, refused, roost, until

from roost.client import AsyncClient
from roost.errors import QueueFull
from roost.v1 import mail_service_pb2 as mail
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

QUEUED, DELIVERED, CONSUMED = types.MESSAGE_STATE_QUEUED, types.MESSAGE_STATE_DELIVERED, types.MESSAGE_STATE_CONSUMED
EXPIRED, DEAD, ENDED = types.MESSAGE_STATE_EXPIRED, types.MESSAGE_STATE_DEAD, types.MESSAGE_STATE_CLOSED
COMPLETED, FAILED = types.MESSAGE_KIND_COMPLETED, types.MESSAGE_KIND_FAILED
TOLD_CLOSED, MESSAGE = types.MESSAGE_KIND_CLOSED, types.MESSAGE_KIND_MESSAGE
EXHAUSTED, PRECONDITION = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def contents(messages: Any) -> list[bytes]:
    return [message.content for message in messages]


def states(api: Api, session_id: str) -> list[Any]:
    return [message.state for message in api.list_mail(session_id)]


def clocked(start: Start, *flags: str) -> ClockedServer:
    server = start(*flags, clocked=True)
    assert isinstance(server, ClockedServer)
    return server


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedServer]:
    """A server whose time the tests of this module move."""
    server = ClockedServer(tmp_path_factory.mktemp("clocked") / "data")
    yield server.start()
    server.end()


@pytest.fixture
def alone(shared: Server) -> Iterator[Api]:
    """A tenant of its own on the shared server: what is runnable there is this test's."""
    with keyed(shared, None, fresh("t")) as stubs:
        yield stubs


@pytest.fixture
def timed(clock: ClockedServer) -> Iterator[Api]:
    """As `alone`, on the server whose time a test moves."""
    with keyed(clock, None, fresh("t")) as stubs:
        yield stubs


def test_i15_a_turn_gets_its_mail_in_order_and_its_commit_consumes_it(api: Api) -> None:
    name, sender = api.open().session.session_id, api.open().session.session_id
    first = api.send(name, b"one", sender_session_id=sender, content_type="x/y", labels={"k": "v"})
    api.send(name, b"two")
    grant = api.begin(name).grant
    assert contents(grant.mail) == [b"one", b"two"]
    assert grant.more_mail == 0
    got = grant.mail[0]
    assert (got.message_id, got.session_id, got.sender_session_id) == (first.message_id, name, sender)
    assert (got.kind, got.state, got.deliveries, got.content_type) == (MESSAGE, DELIVERED, 1, "x/y")
    assert dict(got.labels) == {"k": "v"}
    assert states(api, name) == [DELIVERED, DELIVERED]
    api.send(name, b"three")  # for the next turn
    api.commit(name, grant.lease)
    assert states(api, name) == [CONSUMED, CONSUMED, QUEUED]
    assert contents(api.begin(name).grant.mail) == [b"three"]
    # Who sent it sees what became of it.
    assert [(m.message_id, m.state) for m in api.list_mail(sender_session_id=sender)] == [(first.message_id, CONSUMED)]


def test_a_turn_takes_a_hundred_messages_and_a_mebibyte_at_most(api: Api) -> None:
    name = api.open().session.session_id
    for n in range(103):
        api.send(name, b"%d" % n)
    grant = api.begin(name).grant
    assert contents(grant.mail) == [b"%d" % n for n in range(100)]
    assert grant.more_mail == 3
    api.commit(name, grant.lease)
    for _ in range(5):
        api.send(name, b"x" * 250_000)
    grant = api.begin(name).grant
    assert [len(m.content) for m in grant.mail] == [3, 3, 3, 250_000, 250_000, 250_000, 250_000]
    assert grant.more_mail == 1


@pytest.mark.parametrize("how", ["aborted", "expired", "taken over"])
def test_i15_mail_of_a_turn_without_a_commit_goes_back_to_its_place(clock: ClockedServer, how: str) -> None:
    with clock.api() as api:
        name = api.open().session.session_id
        api.send(name, b"one")
        api.send(name, b"two")
        grant = api.begin(name, lease=10).grant
        api.send(name, b"three")
        if how == "aborted":
            api.abort(name, grant.lease, b"half")
        elif how == "expired":
            clock.clock.skip(11)
            until(lambda: states(api, name)[0] == QUEUED)
        takeover = turns.IF_RUNNING_TAKEOVER if how == "taken over" else turns.IF_RUNNING_REFUSE
        again = api.begin(name, if_running=takeover).grant
        assert [(m.content, m.deliveries) for m in again.mail] == [(b"one", 2), (b"two", 2), (b"three", 1)]
        api.commit(name, again.lease)
        assert states(api, name) == [CONSUMED] * 3


def test_i15_a_late_commit_consumes_the_mail_that_it_was_handed(clock: ClockedServer) -> None:
    with clock.api() as api:
        name = api.open().session.session_id
        api.send(name, b"one")
        grant = api.begin(name, lease=10).grant
        clock.clock.skip(11)
        until(lambda: states(api, name) == [QUEUED])
        api.commit(name, grant.lease, b"late")
        assert states(api, name) == [CONSUMED]


def test_i15_a_message_that_five_turns_did_not_commit_is_dead(api: Api) -> None:
    name, sender = api.open().session.session_id, api.open().session.session_id
    api.send(name, b"poison", sender_session_id=sender)
    for attempt in range(1, 6):
        grant = api.begin(name).grant
        assert [m.deliveries for m in grant.mail] == [attempt]
        api.send(name, b"after %d" % attempt) if attempt == 5 else None
        api.abort(name, grant.lease)
    (seen,) = api.list_mail(sender_session_id=sender)
    assert (seen.state, seen.deliveries) == (DEAD, 5)
    assert contents(api.begin(name).grant.mail) == [b"after 5"]


def test_i15_what_was_not_taken_in_time_expires_and_what_was_does_not(clock: ClockedServer) -> None:
    with clock.api() as api:
        name = api.open(stale_timeout={"seconds": 0}).session.session_id
        api.send(name, b"soon", ttl=5)
        api.send(name, b"later", ttl=600)
        api.send(name, b"never")
        clock.clock.skip(6)
        assert states(api, name) == [EXPIRED, QUEUED, QUEUED]
        grant = api.begin(name, lease=3_600).grant
        assert contents(grant.mail) == [b"later", b"never"]
        clock.clock.skip(601)
        assert states(api, name) == [EXPIRED, DELIVERED, DELIVERED]
        api.commit(name, grant.lease)
        assert states(api, name) == [EXPIRED, CONSUMED, CONSUMED]


def test_a_full_mailbox_says_so_and_is_open_to_what_children_tell(start: Start) -> None:
    server = start(
        "--set", "max_mailbox_messages=3", "--set", "max_mailbox_bytes=2000", "--set", "max_message_bytes=1500"
    )
    with server.api() as api:
        root = api.open().session.session_id
        for _ in range(3):
            api.send(root)
        with refused(EXHAUSTED, "MAILBOX_FULL") as why:
            api.send(root)
        assert (why.metadata["limit_name"], why.metadata["limit"]) == ("max_mailbox_messages", "3")
        child = api.open(parent_session_id=root).session.session_id
        api.close(child)
        assert [m.kind for m in api.list_mail(root)][3:] == [TOLD_CLOSED]
        # Its next turn makes room.
        grant = api.begin(root).grant
        assert len(grant.mail) == 4
        with refused(EXHAUSTED, "MAILBOX_FULL"):
            api.send(root)
        api.commit(root, grant.lease)
        api.send(root, b"x" * 1_500)
        with refused(EXHAUSTED, "MAILBOX_FULL") as why:
            api.send(root, b"x" * 501)
        assert (why.metadata["limit_name"], why.metadata["limit"]) == ("max_mailbox_bytes", "2000")
        api.send(root, b"x" * 500)
        with refused(INVALID, "TOO_LARGE"):
            api.send(root, b"x" * 1_501)
        limits = {limit.name: (limit.value, limit.source) for limit in api.stats().limits}
        assert limits["max_mailbox_messages"] == (3, "flag")
        assert limits["max_deliveries"] == (5, "default")


@pytest.mark.parametrize("restart", ["not", "terminated", "killed"])
@pytest.mark.parametrize("before", ["queued", "consumed"])
def test_i21_the_same_request_is_one_message(start: Start, restart: str, before: str) -> None:
    server = start()
    with server.api() as api:
        name, sender = api.open("to").session.session_id, api.open("from").session.session_id
        made = api.send(name, b"once", request_id="r", sender_session_id=sender)
        assert not made.repeated
        other = api.send(name, b"by a host", request_id="r")
        if before == "consumed":
            api.turn(name)
    if restart != "not":
        server.terminate() if restart == "terminated" else server.kill()
        server.start()
    with server.api() as api:
        again = api.send(name, b"once", request_id="r", sender_session_id=sender)
        assert (again.message_id, again.repeated) == (made.message_id, True)
        assert api.send(name, b"by a host", request_id="r").message_id == other.message_id
        with refused(INVALID, "REQUEST_MISMATCH"):
            api.send(name, b"another", request_id="r")
        assert api.send(sender, b"once", request_id="r").message_id not in (made.message_id, other.message_id)
        assert contents(api.list_mail(name)) == [b"once", b"by a host"]


def test_i5_i15_a_killed_server_keeps_what_it_acknowledged_and_where_it_was(start: Start) -> None:
    server = start("--set", "max_turns_per_tree=100")
    with server.api() as api:
        names = [api.open(f"s{n}").session.session_id for n in range(6)]
        for name in names:
            api.send(name, b"first " + name.encode(), trigger=True)
        leases = {name: api.begin(name).grant.lease for name in names[:4]}
        for name in names:
            api.send(name, b"second", ttl=3_600)
        api.commit("s0", leases["s0"])
        api.abort("s1", leases["s1"])
        before = {name: api.list_mail(name) for name in names}
    server.kill()
    server.start()
    with server.api() as api:
        assert {name: api.list_mail(name) for name in names} == before
        assert [m.state for m in before["s0"]] == [CONSUMED, QUEUED]
        assert [m.state for m in before["s2"]] == [DELIVERED, QUEUED]
        # A turn that ran still runs, and has its mail: a repeat of nothing is needed for its commit.
        api.commit("s2", leases["s2"])
        assert states(api, "s2") == [CONSUMED, QUEUED]
        api.abort("s3", leases["s3"])
        assert contents(api.begin("s3").grant.mail) == [b"first s3", b"second"]
        # What was to be polled still is.
        polled = {api.poll().session_id for _ in range(2)}
        assert polled == {"s4", "s5"}


def test_i5_every_acknowledged_message_survives_a_kill_among_many(start: Start) -> None:
    server = start()
    with server.api() as api:
        names = [api.open(f"s{n}").session.session_id for n in range(4)]
    sent: dict[str, list[bytes]] = {name: [] for name in names}
    over = threading.Event()

    def sender(name: str) -> None:
        """Sends until the server is gone; what was not acknowledged may or may not be there."""
        with server.api() as api:
            for n in range(100_000):
                content = b"%d" % n
                try:
                    api.send(name, content, request_id=f"r{n}")
                except grpc.RpcError:
                    if over.is_set():
                        return
                    if n > 900:  # the mailbox is full
                        return
                    raise
                sent[name].append(content)

    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(sender, name) for name in names]
        until(lambda: min(len(done) for done in sent.values()) > 50)
        over.set()
        server.kill()
        for task in tasks:
            task.result(DEADLINE)
    server.start()
    with server.api() as api:
        for name in names:
            found = contents(api.list_mail(name))
            assert found[: len(sent[name])] == sent[name]
            assert len(found) - len(sent[name]) in (0, 1)
            # I21: sent again, it is there once.
            assert api.send(name, found[-1], request_id=f"r{len(found) - 1}").repeated


# -- waiting for mail


def test_waiting_for_mail_ends_when_some_comes(api: Api) -> None:
    name = api.open().session.session_id
    none = api.wait_mail(name)
    assert (none.queued, none.cursor, none.runnable) == (0, 0, False)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(api.wait_mail, name, wait=DEADLINE)
        until(lambda: api.stats().gauges["waiting"] == 1)
        api.send(name, trigger=True)
        found = waiting.result(DEADLINE)
    assert (found.queued, found.runnable) == (1, True)
    assert found.cursor > 0
    # It took nothing; and behind the cursor there is no more until there is.
    assert states(api, name) == [QUEUED]
    assert api.wait_mail(name, wait=1, after=found.cursor).queued == 0
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(api.wait_mail, name, wait=DEADLINE, after=found.cursor)
        until(lambda: api.stats().gauges["waiting"] == 1)
        api.send(name)
        assert waiting.result(DEADLINE).queued == 1
    assert api.wait_mail(name).queued == 2


def test_waiting_for_mail_of_a_session_that_closes_ends(api: Api) -> None:
    name = api.open().session.session_id
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(api.wait_mail, name, wait=DEADLINE)
        until(lambda: api.stats().gauges["waiting"] == 1)
        api.close(name)
        with refused(PRECONDITION, "SESSION_CLOSED"):
            waiting.result(DEADLINE)
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        api.wait_mail("nobody")


@pytest.mark.parametrize("method", ["WaitMail", "PollTurn"])
async def test_a_connection_has_so_many_calls_that_wait(start: Start, method: str) -> None:
    server = start("--set", "max_waiters_per_connection=4")
    async with AsyncClient(server.address) as one, AsyncClient(server.address) as two:
        await one.open_session("s")

        def call(client: AsyncClient) -> Any:
            return client.wait_mail("s", wait=60) if method == "WaitMail" else client.poll_turn(wait=60)

        waiting = []
        for count in range(1, 6):  # the fifth on the other connection
            waiting.append(asyncio.create_task(call(one if count < 5 else two)))
            while (await one.get_stats()).gauges["waiting"] < count:
                assert not waiting[-1].done(), waiting[-1].exception()
            if count == 4:
                with pytest.raises(QueueFull):
                    await call(one)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# -- polling


def test_a_message_with_trigger_makes_its_session_runnable(alone: Api) -> None:
    alone.open("quiet")
    alone.open("loud")
    alone.send("quiet", b"no hurry")
    assert not alone.poll().session_id
    alone.send("loud", b"now", trigger=True)
    polled = alone.poll(owner="host-1")
    assert (polled.session_id, polled.uid) == ("loud", alone.get("loud").uid)
    assert contents(polled.grant.mail) == [b"now"]
    assert (polled.grant.turn, alone.get("loud").owner) == (1, "host-1")
    assert not alone.poll().session_id  # nobody gets it twice
    alone.send("loud", b"and more", trigger=True)
    assert not alone.poll().session_id  # nor while it runs
    alone.commit("loud", polled.grant.lease)
    again = alone.poll()
    assert (again.session_id, contents(again.grant.mail)) == ("loud", [b"and more"])


def test_i21_a_repeated_poll_gets_the_same_turn_while_it_runs(alone: Api) -> None:
    alone.open("s")
    alone.send("s", b"one", trigger=True)
    first = alone.poll(request_id="r")
    again = alone.poll(request_id="r")
    assert (again.session_id, again.grant.lease) == ("s", first.grant.lease)
    assert contents(again.grant.mail) == [b"one"]
    alone.commit("s", first.grant.lease)
    assert not alone.poll(request_id="r").session_id


def test_hosts_that_wait_get_what_becomes_runnable_each_another(alone: Api) -> None:
    with ThreadPoolExecutor() as pool:
        for n in range(3):
            alone.open(f"s{n}")
        hosts = [pool.submit(alone.poll, wait=DEADLINE, owner=f"host-{n}") for n in range(3)]
        until(lambda: alone.stats().gauges["waiting"] == 3)
        for n in range(3):
            alone.send(f"s{n}", b"go", trigger=True)
        polled = [host.result(DEADLINE) for host in hosts]
        assert {one.session_id for one in polled} == {"s0", "s1", "s2"}
        assert len(alone.list_all(activity=types.ACTIVITY_RUNNING)) == 3


def test_a_poll_may_be_of_one_tree(alone: Api) -> None:
    for root in ("one", "two"):
        alone.open(root)
        alone.open(f"{root}-child", parent_session_id=root)
        alone.send(f"{root}-child", b"go", trigger=True)
    assert alone.poll(root_session_id="two").session_id == "two-child"
    assert not alone.poll(root_session_id="two").session_id
    assert alone.poll(root_session_id="one").session_id == "one-child"


def test_a_turn_that_fails_is_polled_again_after_a_pause_that_grows(timed: Api, clock: ClockedServer) -> None:
    timed.open("s", stale_timeout={"seconds": 0})
    timed.send("s", b"kills its host", trigger=True)
    for pause in (0, 1, 2, 4, 8):
        if pause == 8:
            assert not timed.wait_mail("s").runnable
        clock.clock.skip(pause)
        assert timed.wait_mail("s").runnable
        polled = timed.poll(wait=5)
        assert polled.session_id == "s", pause
        # Not renewed: its host is gone.
        clock.clock.skip(61)
        until(lambda: timed.get("s").activity == types.ACTIVITY_IDLE)
    assert [m.state for m in timed.list_mail("s")] == [DEAD]
    clock.clock.skip(120)
    assert not timed.poll().session_id


def test_an_interrupted_turn_is_not_restarted_by_its_own_mail(timed: Api, clock: ClockedServer) -> None:
    timed.open("root", wake_on_completion=True)
    timed.open("s", parent_session_id="root")
    timed.send("s", b"go", trigger=True)
    polled = timed.poll()
    timed.interrupt("s")
    timed.abort("s", polled.grant.lease)
    clock.clock.skip(120)
    assert not timed.poll().session_id
    assert timed.list_mail("root") == []  # interrupts are silent
    timed.send("s", b"go on", trigger=True)
    polled = timed.poll()
    assert (polled.session_id, contents(polled.grant.mail)) == ("s", [b"go", b"go on"])


# -- what children tell


def test_the_parent_hears_each_end_once(alone: Api) -> None:
    alone.open("root")
    alone.open("worker", parent_session_id="root")
    for n in range(2):
        lease = alone.begin("worker").grant.lease
        alone.commit("worker", lease, completion=types.MessageInput(content=b"done %d" % n, content_type="x/y"))
    alone.turn("worker", completed=True)
    alone.abort("worker", alone.begin("worker").grant.lease, final=True)
    alone.close("worker")  # FAILED was its last word
    alone.open("quitter", parent_session_id="root")
    alone.turn("quitter")
    alone.close("quitter", reason=types.CLOSE_REASON_ERROR)
    told = alone.list_mail("root")
    seen = [(m.kind, m.sender_session_id, m.content, m.turn, m.close_reason) for m in told]
    assert seen == [
        (COMPLETED, "worker", b"done 0", 1, 0),
        (COMPLETED, "worker", b"done 1", 2, 0),
        (COMPLETED, "worker", b"", 3, 0),
        (FAILED, "worker", b"", 4, 0),
        (TOLD_CLOSED, "quitter", b"", 0, types.CLOSE_REASON_ERROR),
    ]
    assert {m.state for m in told} == {QUEUED}
    assert {m.trigger for m in told} == {False}
    assert not alone.poll().session_id
    assert len(alone.begin("root").grant.mail) == 5


@pytest.mark.parametrize("killed", [False, True], ids=["", "after a kill"])
def test_a_childs_end_wakes_a_parent_that_asked_for_it(start: Start, killed: bool) -> None:
    server = start()
    with server.api() as api:
        api.open("root", wake_on_completion=True)
        assert api.get("root").wake_on_completion
        api.open("child", parent_session_id="root")
        with refused(PRECONDITION, "ROOT_TRIGGER"):
            api.send("root", sender_session_id="child", trigger=True)
        api.turn("child", completion=types.MessageInput(content=b"result"))
    if killed:
        server.kill()
        server.start()
    with server.api() as api:
        polled = api.poll()
        assert (polled.session_id, contents(polled.grant.mail)) == ("root", [b"result"])
        assert polled.grant.mail[0].trigger


def test_mail_to_a_running_agent_is_in_its_next_turn(api: Api) -> None:
    name = api.open().session.session_id
    grant = api.begin(name).grant
    api.send(name, b"meanwhile")
    answer = api.commit(name, grant.lease, b"x", then=turns.THEN_CONTINUE)
    assert contents(answer.next.mail) == [b"meanwhile"]
    assert states(api, name) == [DELIVERED]


def test_a_session_is_born_with_its_first_message(api: Api) -> None:
    root, child = fresh(), fresh()
    api.open(root)
    request = sessions.OpenSessionRequest(session_id=child, request_id=fresh())
    request.options.parent_session_id = root
    request.first_message.content = b"the task"
    for _ in range(2):  # the second is a repeat
        api.sessions.OpenSession(request, timeout=DEADLINE)
    (message,) = api.list_mail(child)
    assert (message.content, message.sender_session_id, message.sender_path) == (b"the task", root, "/root")
    assert contents(api.begin(child).grant.mail) == [b"the task"]


# -- beside it


def test_mail_loads_no_session(start: Start) -> None:
    server = start("--max-resident", "1")
    with server.api() as api:
        names = [api.open(f"s{n}").session.session_id for n in range(5)]
        for name in names:
            api.turn(name)
        before = api.stats()
        for name in names:
            api.send(name, b"for " + name.encode())
            assert api.wait_mail(name).queued == 1
            assert len(api.list_mail(name)) == 1
        after = api.stats()
        assert after.counters["reloads"] == before.counters["reloads"]
        assert after.gauges["resident_sessions"] <= 1
        for name in names:
            assert contents(api.begin(name).grant.mail) == [b"for " + name.encode()]


def test_unread_mail_is_in_the_final_dump_and_comes_back(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "dumps"
    place.mkdir()
    flags = ("--dump-target", str(place))
    first = start(*flags, data_dir=tmp_path / "first")
    with first.api() as api:
        api.open("s")
        api.send("s", b"read")
        api.turn("s")
        api.send("s", b"unread", request_id="r", labels={"k": "v"})
        receipt = api.close("s").receipt
        assert receipt.unread_messages == 1
        until(lambda: api.get("s").state == types.SESSION_STATE_CLOSED)
        before = [m for m in api.list_mail("s") if m.state == ENDED]
        assert contents(before) == [b"unread"]
    (name,) = dump_names(place)
    assert name == receipt.dump_name
    shown = roost("dumps", "show", str(place), name)
    assert "unread messages" in shown.stdout
    assert roost("dumps", "verify", str(place)).returncode == 0
    second = start(*flags, data_dir=tmp_path / "second")
    with second.api() as api:
        restored(api, [name])
        assert api.list_mail("s") == before
        assert api.get("s").receipt == receipt
    second.kill()
    second.start()
    with second.api() as api:
        assert api.list_mail("s") == before
        api.reopen("s")
        assert not api.begin("s").grant.mail
        assert api.send("s", b"unread", request_id="r", labels={"k": "v"}).message_id == before[0].message_id


def test_i14_a_purged_session_keeps_no_mail(start: Start) -> None:
    server = clocked(start, "--set", "retention_ms=1d", "--set", "purge_without_dump=true")
    with server.api() as api:
        api.open("root", stale_timeout={"seconds": 0})
        api.open("s", parent_session_id="root")
        api.send("s", b"unread")
        api.send("root", b"of it", sender_session_id="s")
        api.close("s")
        assert len(api.list_mail("s")) == 1
        server.clock.skip(86_400 + 60)
        until(lambda: api.get("s").cleanup.HasField("purged_time"))
        with refused(PRECONDITION, "SESSION_PURGED"):
            api.list_mail("s")
        assert contents(api.list_mail(sender_session_id="s")) == [b"of it", b""]


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"content": b""}, "INVALID_FIELD", "message.content"),
        ({"content": b"x" * (256 * 1024 + 1)}, "TOO_LARGE", "message.content"),
        ({"content_type": "x" * 129}, "TOO_LARGE", "message.content_type"),
        ({"labels": {"": "x"}}, "INVALID_FIELD", "message.labels"),
        ({"ttl": {"nanos": 999}}, "INVALID_FIELD", "message.ttl"),
        ({"request_id": "a b"}, "INVALID_FIELD", "request_id"),
        ({"sender_session_id": "a b"}, "INVALID_FIELD", "sender_session_id"),
        ({"sender_session_id": "nobody"}, "SESSION_NOT_FOUND", ""),
        ({"session_id": "nobody"}, "SESSION_NOT_FOUND", ""),
        ({"session_id": "a b"}, "INVALID_FIELD", "session_id"),
    ],
)
def test_i22_bad_messages_are_refused_and_change_nothing(
    api: Api, fields: dict[str, Any], reason: str, field: str
) -> None:
    name = api.open().session.session_id
    before = api.stats().counters["entries_stored"]
    message = {"content": b"x"} | {k: v for k, v in fields.items() if k in types.MessageInput.DESCRIPTOR.fields_by_name}
    outer = {"session_id": name} | {k: v for k, v in fields.items() if k not in message}
    request = mail.SendMessageRequest(message=types.MessageInput(**message), **outer)
    with refused(NOT_FOUND if reason == "SESSION_NOT_FOUND" else INVALID, reason) as why:
        api.mail.SendMessage(request, timeout=DEADLINE)
    assert why.metadata.get("field", "") == field
    assert api.list_mail(name) == []
    assert api.stats().counters["entries_stored"] == before


def test_i25_no_content_is_in_the_log(start: Start) -> None:
    server = start()
    with server.api() as api:
        api.open("s")
        api.send("s", b"secret-content", labels={"k": "secret-label"}, content_type="secret/type", trigger=True)
        polled = api.poll()
        api.abort("s", polled.grant.lease)
        api.close("s")
    server.terminate()
    assert "session" in server.logged
    assert "secret" not in server.logged
