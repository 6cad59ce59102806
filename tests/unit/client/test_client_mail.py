"""Mail: what the client sends, where it waits, what it repeats, and the turns that `poll_turn` brings."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from fake_server import FakeServer, Refuse
from google.protobuf import duration_pb2

from roost.client import NO_RETRY, AsyncClient, Client, message_input, open_options
from roost.errors import ConnectionFailed, LeaseLost, MailboxFull, RootTrigger
from roost.v1 import mail_service_pb2 as m
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

GONE = Refuse(grpc.StatusCode.UNAVAILABLE)
TEXT = "text/plain; charset=utf-8"


def polled(lease: float = 60, mail: tuple[bytes, ...] = (b"go",)) -> turns.PollTurnResponse:
    grant = turns.Grant(
        lease=b"L",
        turn=3,
        attempt=2,
        fence=9,
        lease_duration=duration_pb2.Duration(nanos=int(lease % 1 * 1e9), seconds=int(lease)),
        mail=[types.Message(content=content) for content in mail],
        more_mail=4,
    )
    return turns.PollTurnResponse(session_id="s7", uid="u7", grant=grant)


async def test_a_message_is_sent_as_it_was_given(server: FakeServer, client: AsyncClient) -> None:
    server.script["SendMessage"].append(m.SendMessageResponse(message_id="m1"))
    answer = await client.send(
        "s1", b"\xff", content_type="x/y", labels={"a": "b"}, trigger=True, ttl=timedelta(seconds=1.5), sender="s2"
    )
    assert answer.message_id == "m1"
    await client.send("s1", "äh", request_id="mine")
    first, second = server.requests("SendMessage")
    assert (first.session_id, first.sender_session_id) == ("s1", "s2")
    assert first.message == types.MessageInput(
        content=b"\xff",
        content_type="x/y",
        labels={"a": "b"},
        trigger=True,
        ttl=duration_pb2.Duration(seconds=1, nanos=500_000_000),
    )
    assert second.message == types.MessageInput(content="äh".encode(), content_type=TEXT)
    assert not second.message.HasField("ttl")
    assert (len(first.request_id), second.request_id) == (36, "mine")


async def test_i21_a_message_is_repeated_with_the_same_request_id(server: FakeServer, client: AsyncClient) -> None:
    server.script["SendMessage"].extend([GONE, GONE, m.SendMessageResponse(message_id="m1", repeated=True)])
    assert (await client.send("s1", "once")).repeated
    requests = server.requests("SendMessage")
    assert len(requests) == 3
    assert len({request.SerializeToString() for request in requests}) == 1
    assert client.retries == 2


async def test_what_is_refused_is_not_sent_again(server: FakeServer, client: AsyncClient) -> None:
    full = Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "MAILBOX_FULL", retry_ms=1)
    server.script["SendMessage"].extend([full, Refuse(grpc.StatusCode.FAILED_PRECONDITION, "ROOT_TRIGGER")])
    with pytest.raises(MailboxFull):
        await client.send("s1", "x")
    with pytest.raises(RootTrigger):
        await client.send("s1", "x", trigger=True)
    assert len(server.requests("SendMessage")) == 2


async def test_calls_that_wait_have_their_own_connection(server: FakeServer, client: AsyncClient) -> None:
    await client.send("s1", "x")
    await client.wait_mail("s1")
    await client.wait_mail("s1", wait=2.5, after=7)
    assert await client.poll_turn() is None
    quick, waiting = server.requests("WaitMail")
    assert not quick.HasField("wait")
    assert (waiting.wait.seconds, waiting.wait.nanos, waiting.after) == (2, 500_000_000, 7)
    peers = {
        name: [peer for method, _, peer in server.calls if method.endswith(f"/{name}")]
        for name in ("SendMessage", "WaitMail", "PollTurn")
    }
    assert peers["WaitMail"][0] == peers["SendMessage"][0]
    assert peers["WaitMail"][1] == peers["PollTurn"][0] != peers["SendMessage"][0]


async def test_a_call_that_waits_may_take_its_wait_and_longer(server: FakeServer) -> None:
    """Its deadline is the wait's, not the client's `timeout`."""
    async with AsyncClient(server.target, timeout=0.05, retry=NO_RETRY) as client:
        for method, call in (
            ("WaitMail", lambda: client.wait_mail("s1", wait=1)),
            ("PollTurn", lambda: client.poll_turn(wait=0)),  # which the server takes as 1 s
        ):
            go_on = asyncio.Event()
            server.script[method].append(go_on)
            task: asyncio.Task[Any] = asyncio.create_task(call())
            await server.arrived[method].wait()
            await asyncio.sleep(0.1)  # twice the time-out: it must not have passed
            assert not task.done()
            go_on.set()
            await task


async def test_a_wait_goes_on_over_a_break(server: FakeServer, client: AsyncClient) -> None:
    server.script["WaitMail"].extend([GONE, m.WaitMailResponse(queued=2, cursor=9, runnable=True)])
    answer = await client.wait_mail("s1", wait=1)
    assert (answer.queued, answer.cursor, answer.runnable) == (2, 9, True)
    server.script["PollTurn"].extend([GONE, polled()])
    turn = await client.poll_turn(wait=1)
    assert turn is not None
    first, second = server.requests("PollTurn")
    assert first.request_id == second.request_id


async def test_lists_are_read_page_by_page(server: FakeServer, client: AsyncClient) -> None:
    def page(token: str, *contents: bytes) -> m.ListMailResponse:
        return m.ListMailResponse(messages=[types.Message(content=c) for c in contents], next_page_token=token)

    server.script["ListMail"].extend([page("t1", b"1", b"2"), GONE, page("t2"), page("", b"3")])
    found = [
        message.content
        async for message in client.list_mail(sender="s1", states=["dead", "expired"], omit_content=True, page_size=2)
    ]
    assert found == [b"1", b"2", b"3"]
    requests = server.requests("ListMail")
    assert [request.page_token for request in requests] == ["", "t1", "t1", "t2"]
    assert {(r.sender_session_id, r.session_id, r.page_size, r.omit_content) for r in requests} == {("s1", "", 2, True)}
    assert [*requests[0].states] == [types.MESSAGE_STATE_DEAD, types.MESSAGE_STATE_EXPIRED]
    assert [message async for message in client.list_mail("s2")] == []
    assert server.requests("ListMail")[-1].session_id == "s2"
    with pytest.raises(ValueError, match="UNKNOWN"):
        await anext(client.list_mail("s1", states=["unknown"]))  # type: ignore[list-item]


async def test_a_polled_turn_is_a_turn(server: FakeServer) -> None:
    server.script["PollTurn"].append(polled(mail=(b"one", b"two")))
    async with AsyncClient(server.target, owner="host-1") as client:
        turn = await client.poll_turn(wait=5, root="r", lease=30, want_provisional=True)
        assert turn is not None
        assert (turn.session_id, turn.uid, turn.number, turn.attempt, turn.fence) == ("s7", "u7", 3, 2, 9)
        async with turn:
            assert (turn.uid, turn.created) == ("u7", False)
            assert [message.content for message in turn.mail] == [b"one", b"two"]
            assert turn.more_mail == 4
            turn.record("answer")
    (poll,) = server.requests("PollTurn")
    assert (poll.owner, poll.root_session_id, poll.want_provisional) == ("host-1", "r", True)
    assert (poll.wait.seconds, poll.lease_duration.seconds) == (5, 30)
    (commit,) = server.requests("CommitTurn")
    assert (commit.session_id, commit.lease, commit.record.content) == ("s7", b"L", b"answer")
    assert not server.requests("BeginTurn")


async def test_a_polled_turn_is_renewed_and_can_be_lost(server: FakeServer, client: AsyncClient) -> None:
    server.script["PollTurn"].append(polled(lease=0.15))
    refusal = types.Refusal(code=9, reason="LEASE_LOST", message="gone")
    ok = turns.RenewTurnsResponse(results=[turns.RenewalResult()])
    lost = turns.RenewTurnsResponse(results=[turns.RenewalResult(refusal=refusal)])
    server.script["RenewTurns"].extend([ok, lost])
    turn = await client.poll_turn()
    assert turn is not None
    with pytest.raises(LeaseLost):
        async with turn:
            await asyncio.Event().wait()
    assert {r.renewals[0].session_id for r in server.requests("RenewTurns")} == {"s7"}


async def test_a_polled_turn_that_nobody_runs_is_not_renewed(server: FakeServer, client: AsyncClient) -> None:
    """Its lease ends, and its mail goes to another host."""
    server.script["PollTurn"].append(polled())
    turn = await client.poll_turn()
    assert turn is not None
    assert not client._renewals._turns
    async with turn:
        assert client._renewals._turns == {turn}


async def test_a_block_that_fails_puts_a_polled_turns_mail_back(server: FakeServer, client: AsyncClient) -> None:
    server.script["PollTurn"].append(polled())
    turn = await client.poll_turn()
    assert turn is not None
    with pytest.raises(ZeroDivisionError):
        async with turn:
            raise ZeroDivisionError
    (abort,) = server.requests("AbortTurn")
    assert (abort.session_id, abort.lease, abort.final) == ("s7", b"L", False)


async def test_what_the_parent_is_told_goes_with_the_commit(server: FakeServer, client: AsyncClient) -> None:
    async with client.turn("s1") as turn:
        turn.record("a", completion="done")
    async with client.turn("s1") as turn:
        await turn.commit("a", completion=message_input(b"\1", labels={"k": "v"}))
    await client.commit_turn("s1", b"L", completion=b"raw")
    async with client.turn("s1") as turn:
        turn.record("a", completed=True)
    first, second, third, fourth = server.requests("CommitTurn")
    assert first.completion == types.MessageInput(content=b"done", content_type=TEXT)
    assert second.completion == types.MessageInput(content=b"\1", labels={"k": "v"})
    assert third.completion == types.MessageInput(content=b"raw")
    assert fourth.completed
    assert not fourth.HasField("completion")


async def test_a_session_is_opened_with_its_first_message(server: FakeServer, client: AsyncClient) -> None:
    await client.open_session("s1", first_message="task", wake_on_completion=True, fork_from="s0", fork_turn=3)
    await client.open_session("s2", first_message=message_input("task", trigger=True, ttl=9))
    await client.open_session("s3")
    first, second, third = server.requests("OpenSession")
    assert first.first_message == types.MessageInput(content=b"task", content_type=TEXT)
    assert (first.options.wake_on_completion, first.fork_from.session_id, first.fork_from.turn) == (True, "s0", 3)
    assert (second.first_message.trigger, second.first_message.ttl.seconds) == (True, 9)
    assert not third.HasField("first_message")
    assert not third.HasField("fork_from")
    assert open_options(wake_on_completion=True).wake_on_completion


async def test_the_blocking_client_does_the_same(server: FakeServer) -> None:
    server.script["SendMessage"].append(m.SendMessageResponse(message_id="m1"))
    server.script["PollTurn"].extend([polled(), turns.PollTurnResponse()])
    server.script["ListMail"].append(m.ListMailResponse(messages=[types.Message(content=b"1")]))

    def use() -> list[Any]:
        with Client(server.target, owner="host-1") as client:
            sent = client.send("s1", "x").message_id
            turn = client.poll_turn(wait=1)
            assert turn is not None
            with turn:
                mail = [message.content for message in turn.mail]
                turn.record("answer", completion="done")
            listed = [message.content for message in client.list_mail("s1")]
            return [sent, turn.session_id, turn.uid, mail, turn.more_mail, client.poll_turn(wait=1), listed]

    assert await asyncio.to_thread(use) == ["m1", "s7", "u7", [b"go"], 4, None, [b"1"]]
    (commit,) = server.requests("CommitTurn")
    assert commit.completion.content == b"done"


async def test_a_host_that_cannot_reach_its_server_is_told() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=0.2, retry=NO_RETRY) as client:
        with pytest.raises(ConnectionFailed):
            await client.poll_turn(wait=1)
