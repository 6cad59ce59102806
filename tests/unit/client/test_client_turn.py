"""`client.turn`: commits, aborts, renewals, lost leases (I3 on the client's side, I24)."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest
from fake_server import FakeServer, Refuse
from google.protobuf import duration_pb2

from roost.client import AsyncClient, Client, RetryPolicy, token_span
from roost.errors import (
    CallTimeout,
    ConnectionFailed,
    InvalidField,
    LeaseLost,
    RoostError,
    SessionClosed,
    TokenPrefixMismatch,
)
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
SHORT = 0.15  # seconds of lease: the fake server has no minimum, so renewals come at once


def refused(reason: str, code: int = 9) -> turns.RenewalResult:
    return turns.RenewalResult(refusal=types.Refusal(code=code, reason=reason, message="gone"))


def short_grant(turn: int = 1) -> turns.BeginTurnResponse:
    grant = turns.Grant(lease=b"short", turn=turn, lease_duration=duration_pb2.Duration(nanos=int(SHORT * 1e9)))
    return turns.BeginTurnResponse(grant=grant)


async def test_what_was_recorded_is_committed_at_the_end(server: FakeServer, client: AsyncClient) -> None:
    checkpoint = turns.Checkpoint(offset=0, token_ids=b"\1\0\0\0\2\0\0\0", length=2, state=b"mine")
    server.script["BeginTurn"].append(
        turns.BeginTurnResponse(grant=turns.Grant(lease=b"L", turn=3, attempt=2, fence=9, checkpoint=checkpoint))
    )
    async with client.turn("s1", open=True, expected_turn=3) as turn:
        assert (turn.number, turn.attempt, turn.fence) == (3, 2, 9)
        assert list(turn.checkpoint_tokens) == [1, 2]
        assert turn.checkpoint.state == b"mine"
        turn.record("draft")
        turn.record(b"{}", content_type="application/json", tokens=[5, 6], state=b"new", labels={"a": "b"})
    (commit,) = server.requests("CommitTurn")
    assert (commit.session_id, commit.lease, commit.record.content, commit.state) == ("s1", b"L", b"{}", b"new")
    assert commit.record.tokens.offset == 2  # continues the checkpoint
    assert commit.record.tokens.token_ids == b"\5\0\0\0\6\0\0\0"
    (begin,) = server.requests("BeginTurn")
    assert begin.HasField("open")
    assert begin.expected_turn == 3
    assert not server.requests("AbortTurn")


async def test_a_turn_without_a_record_commits_an_empty_one(server: FakeServer, client: AsyncClient) -> None:
    async with client.turn("s1"):
        pass
    (commit,) = server.requests("CommitTurn")
    assert commit.record.content == b""
    assert not commit.record.HasField("tokens")


async def test_an_explicit_commit_is_the_only_one(server: FakeServer, client: AsyncClient) -> None:
    async with client.turn("s1") as turn:
        await turn.commit("text", then="close", completed=True)
        assert turn.finished
        with pytest.raises(RuntimeError, match="already finished"):
            await turn.commit("again")
    (commit,) = server.requests("CommitTurn")
    assert commit.then == turns.THEN_CLOSE
    assert commit.completed


async def test_an_exception_aborts_and_keeps_what_was_recorded(server: FakeServer, client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with client.turn("s1") as turn:
            turn.record("half", tokens=token_span([1, 2]))
            _ = 1 / 0
    (abort,) = server.requests("AbortTurn")
    assert abort.record.content == b"half"
    assert not server.requests("CommitTurn")


async def test_i24_cancellation_inside_the_block_aborts(server: FakeServer, client: AsyncClient) -> None:
    inside = asyncio.Event()

    async def body() -> None:
        async with client.turn("s1"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(server.requests("AbortTurn")) == 1


async def test_i24_a_second_cancellation_does_not_stop_the_abort(server: FakeServer) -> None:
    release = asyncio.Event()
    server.script["AbortTurn"].append(release)
    inside = asyncio.Event()

    async def body(client: AsyncClient) -> None:
        async with client.turn("s1"):
            inside.set()
            await asyncio.Event().wait()

    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(body(client))
        await inside.wait()
        task.cancel()
        await server.arrived["AbortTurn"].wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (ending,) = client._background
        release.set()
        await ending  # it was not cancelled with its caller
    assert len(server.requests("AbortTurn")) == 1


async def test_i24_cancellation_during_the_commit_does_not_stop_it(server: FakeServer, client: AsyncClient) -> None:
    release = asyncio.Event()
    server.script["CommitTurn"].append(release)

    async def body() -> None:
        async with client.turn("s1"):
            pass

    task = asyncio.create_task(body())
    await server.arrived["CommitTurn"].wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (ending,) = client._background
    release.set()
    await ending
    assert not server.requests("AbortTurn")


@pytest.mark.parametrize(("reason", "cls"), [("LEASE_LOST", LeaseLost), ("SESSION_CLOSED", SessionClosed)])
async def test_a_lost_lease_cancels_the_block_and_raises(
    server: FakeServer, client: AsyncClient, reason: str, cls: type[RoostError]
) -> None:
    server.script["BeginTurn"].append(short_grant())
    server.script["RenewTurns"].append(turns.RenewTurnsResponse(results=[refused(reason)]))
    seen: list[AsyncClient | bool] = []
    with pytest.raises(cls, match="gone"):  # noqa: PT012
        async with client.turn("s1") as turn:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(turn.lost.is_set())
                raise
    assert seen == [True]
    assert not server.requests("CommitTurn")
    assert not server.requests("AbortTurn")  # there is nothing left to abort
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0  # our cancellation was taken back


async def test_a_cancellation_from_outside_is_not_taken_for_a_loss(server: FakeServer, client: AsyncClient) -> None:
    server.script["BeginTurn"].append(short_grant())
    server.script["RenewTurns"].append(turns.RenewTurnsResponse(results=[refused("LEASE_LOST")]))

    async def body() -> None:
        async with client.turn("s1") as turn:
            task = asyncio.current_task()
            assert task is not None
            turn._on_lost = task.cancel  # a caller that cancels at the very same moment
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(body())


async def test_leases_are_renewed_in_bulk_while_blocks_run(server: FakeServer, client: AsyncClient) -> None:
    for _ in range(20):
        server.script["BeginTurn"].append(short_grant())
    async with asyncio.TaskGroup() as group:
        started = asyncio.Barrier(21)

        async def body(number: int) -> None:
            async with client.turn(f"s{number}"):
                await started.wait()
                while len(server.requests("RenewTurns")) < 5:  # bounded by the test's timeout
                    await asyncio.sleep(0)
                    server.arrived["RenewTurns"].clear()
                    await server.arrived["RenewTurns"].wait()

        for number in range(20):
            group.create_task(body(number))
        await started.wait()
    sizes = [len(request.renewals) for request in server.requests("RenewTurns")]
    assert max(sizes) == 20
    assert len(server.requests("CommitTurn")) == 20


async def test_a_server_that_is_away_is_not_a_loss(server: FakeServer) -> None:
    server.script["BeginTurn"].append(short_grant())
    server.script["RenewTurns"].extend([Refuse(grpc.StatusCode.UNAVAILABLE)] * 4)
    async with AsyncClient(server.target, retry=RetryPolicy(enabled=False)) as client, client.turn("s1") as turn:
        while server.script["RenewTurns"]:
            server.arrived["RenewTurns"].clear()
            await server.arrived["RenewTurns"].wait()
        assert not turn.lost.is_set()
    assert len(server.requests("CommitTurn")) == 1


async def test_a_commit_that_finds_the_lease_lost_says_so_and_aborts_nothing(
    server: FakeServer, client: AsyncClient
) -> None:
    server.script["CommitTurn"].append(Refuse(PRECONDITION, "LEASE_LOST"))
    with pytest.raises(LeaseLost):
        async with client.turn("s1"):
            pass
    assert not server.requests("AbortTurn")


async def test_a_commit_that_is_refused_frees_the_slot(server: FakeServer, client: AsyncClient) -> None:
    server.script["CommitTurn"].append(Refuse(PRECONDITION, "TOKEN_PREFIX_MISMATCH"))
    with pytest.raises(TokenPrefixMismatch):
        async with client.turn("s1") as turn:
            await turn.commit("x", tokens=token_span([1], offset=9))
    assert len(server.requests("AbortTurn")) == 1


@pytest.mark.parametrize("reason", ["TOKEN_PREFIX_MISMATCH", "REWIND_REFUSED", "TOO_LARGE"])
async def test_a_commit_at_the_end_of_the_block_that_is_refused_frees_the_slot(
    server: FakeServer, client: AsyncClient, reason: str
) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT if reason == "TOO_LARGE" else PRECONDITION
    server.script["CommitTurn"].append(Refuse(code, reason))
    with pytest.raises(RoostError, match=reason) as caught:
        async with client.turn("s1") as turn:
            turn.record("x")
    (abort,) = server.requests("AbortTurn")
    assert abort.record.content == b"x"
    assert not hasattr(caught.value, "__notes__")
    assert client._renewals._turns == set()


async def test_a_commit_without_an_answer_is_left_to_the_lease(server: FakeServer) -> None:
    """It may be stored: an abort would say otherwise. But nobody renews the turn any more."""
    async with AsyncClient(server.target, timeout=0.2, retry=RetryPolicy(initial=0.001, maximum=0.01)) as client:
        server.script["CommitTurn"].append(asyncio.Event())
        with pytest.raises(CallTimeout):
            async with client.turn("s1"):
                pass
        assert server.requests("AbortTurn") == []
        assert client._renewals._turns == set()


async def test_a_commit_and_its_abort_that_are_both_refused(server: FakeServer, client: AsyncClient) -> None:
    server.script["CommitTurn"].append(Refuse(PRECONDITION, "TOKEN_PREFIX_MISMATCH"))
    server.script["AbortTurn"].append(Refuse(PRECONDITION, "LEASE_LOST"))
    with pytest.raises(TokenPrefixMismatch) as caught:
        async with client.turn("s1"):
            pass
    assert "could not be aborted" in caught.value.__notes__[0]
    assert client._renewals._turns == set()


async def test_a_commit_that_the_transport_refuses_frees_the_slot(server: FakeServer, client: AsyncClient) -> None:
    """Larger than gRPC takes: a status without a reason, but surely not stored."""
    large = Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
    server.script["CommitTurn"].append(large)
    server.script["AbortTurn"].append(large)
    with pytest.raises(RoostError):
        async with client.turn("s1") as turn:
            turn.record("x")
    assert [request.HasField("record") for request in server.requests("AbortTurn")] == [True, False]


async def test_a_commit_that_was_to_go_on_and_is_tried_again_at_the_end_keeps_no_slot(
    server: FakeServer, client: AsyncClient
) -> None:
    server.script["CommitTurn"].extend(
        [Refuse(PRECONDITION, "TURN_INTERRUPTED"), turns.CommitTurnResponse(turn=1, next=turns.Grant(lease=b"L2"))]
    )
    async with client.turn("s1") as turn:
        with contextlib.suppress(RoostError):
            await turn.commit("x", then="continue")
    assert [request.lease for request in server.requests("AbortTurn")] == [b"L2"]
    assert client._renewals._turns == set()


async def test_i24_cancellation_while_a_commit_goes_on_ends_the_turn_it_went_on_with(
    server: FakeServer, client: AsyncClient
) -> None:
    going = asyncio.Event()
    server.script["CommitTurn"].extend([going, turns.CommitTurnResponse(turn=1, next=turns.Grant(lease=b"L2"))])

    async def body() -> None:
        async with client.turn("s1") as turn:
            await turn.commit("x", then="continue")

    task = asyncio.create_task(body())
    await server.arrived["CommitTurn"].wait()
    task.cancel()
    await asyncio.sleep(0)
    assert server.requests("AbortTurn") == []
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [request.lease for request in server.requests("AbortTurn")] == [b"L2"]
    assert client._renewals._turns == set()


async def test_a_block_cannot_go_on_after_its_end(server: FakeServer, client: AsyncClient) -> None:
    async with client.turn("s1") as turn:
        with pytest.raises(ValueError, match="commit"):
            turn.record("x", then="continue")


async def test_an_abort_that_cannot_be_served_now_keeps_what_was_recorded(
    server: FakeServer, client: AsyncClient
) -> None:
    server.script["AbortTurn"].append(Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_LOW"))
    with pytest.raises(KeyError) as caught:  # noqa: PT012
        async with client.turn("s1") as turn:
            turn.record("x")
            raise KeyError
    assert len(server.requests("AbortTurn")) == 1
    assert "could not be aborted" in caught.value.__notes__[0]


async def test_an_abort_whose_record_is_refused_goes_without_it(server: FakeServer, client: AsyncClient) -> None:
    server.script["AbortTurn"].append(Refuse(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"))
    with pytest.raises(KeyError):  # noqa: PT012
        async with client.turn("s1") as turn:
            turn.record("x", labels={"k" * 10: "v"}, timings={"BAD": 1})
            raise KeyError
    first, second = server.requests("AbortTurn")
    assert first.HasField("record")
    assert (dict(first.timings), dict(second.timings)) == ({"BAD": 1.0}, {})
    assert not second.HasField("record")
    assert first.request_id != second.request_id


async def test_a_failed_abort_does_not_hide_the_blocks_own_exception(server: FakeServer, client: AsyncClient) -> None:
    server.script["AbortTurn"].append(Refuse(grpc.StatusCode.INTERNAL, "INTERNAL_ERROR", "bug"))
    with pytest.raises(KeyError) as caught:
        async with client.turn("s1"):
            raise KeyError
    assert "could not be aborted" in caught.value.__notes__[0]


async def test_continue_makes_it_the_next_turn(server: FakeServer, client: AsyncClient) -> None:
    server.script["CommitTurn"].append(turns.CommitTurnResponse(turn=1, next=turns.Grant(lease=b"L2", turn=2)))
    refusal = types.Refusal(code=8, reason="TENANT_TURNS", message="full")
    server.script["CommitTurn"].append(turns.CommitTurnResponse(turn=2, next_refused=refusal))
    async with client.turn("s1") as turn:
        await turn.commit("one", then="continue")
        assert (turn.number, turn.grant.lease, turn.finished) == (2, b"L2", False)
        await turn.commit("two", then="continue")
        assert turn.finished
        assert turn.next_refused is not None
        assert turn.next_refused.reason == "TENANT_TURNS"
    assert [commit.lease for commit in server.requests("CommitTurn")] == [b"lease-s1", b"L2"]


async def test_an_interrupt_is_seen(server: FakeServer, client: AsyncClient) -> None:
    server.script["BeginTurn"].append(short_grant())
    server.script["RenewTurns"].append(
        turns.RenewTurnsResponse(results=[turns.RenewalResult(interrupt_requested=True)])
    )
    async with client.turn("s1") as turn:
        await turn.interrupt_requested.wait()


# -- the blocking client, on the same core


async def blocking(work: object) -> object:
    return await asyncio.to_thread(work)  # type: ignore[arg-type]


async def test_blocking_turn_commits_and_aborts(server: FakeServer) -> None:
    def work() -> None:
        with Client(server.target) as client:
            with client.turn("s1", open=True) as turn:
                assert turn.number == 1
                turn.record("text")
            with pytest.raises(ZeroDivisionError), client.turn("s2") as turn:
                _ = 1 / 0
            with client.turn("s3") as turn:
                turn.commit("explicit")

    await blocking(work)
    assert [commit.session_id for commit in server.requests("CommitTurn")] == ["s1", "s3"]
    assert [abort.session_id for abort in server.requests("AbortTurn")] == ["s2"]


async def test_blocking_turn_sees_a_lost_lease(server: FakeServer) -> None:
    server.script["BeginTurn"].append(short_grant())
    server.script["RenewTurns"].append(turns.RenewTurnsResponse(results=[refused("LEASE_LOST")]))

    def work() -> None:
        with Client(server.target) as client, pytest.raises(LeaseLost), client.turn("s1") as turn:  # noqa: PT012
            assert turn.lost.wait(10)
            with pytest.raises(LeaseLost):
                turn.check()

    await blocking(work)
    assert not server.requests("CommitTurn")


async def test_blocking_client_serves_many_threads_and_refuses_its_own(server: FakeServer) -> None:
    def work() -> None:
        with Client(server.target) as client:

            def one(number: int) -> None:
                with client.turn(f"s{number}") as turn:
                    turn.record(str(number))

            threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            async def inside() -> None:
                client.get_stats()

            with pytest.raises(RuntimeError, match="own event loop"):
                client._bridge.run(inside())
        with pytest.raises(RuntimeError, match="closed"):
            client.get_stats()

    await blocking(work)
    assert len(server.requests("CommitTurn")) == 8


async def test_blocking_errors_are_the_same(server: FakeServer) -> None:
    server.script["OpenSession"].append(Refuse(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "session_id"))

    def work() -> None:
        with Client(server.target) as client, pytest.raises(InvalidField):
            client.open_session("?")
        with Client("127.0.0.1:1", timeout=0.3) as client, pytest.raises(ConnectionFailed):
            client.get_stats()

    await blocking(work)


async def test_lists_are_read_page_by_page(server: FakeServer, client: AsyncClient) -> None:
    from roost.v1 import session_service_pb2 as sessions

    server.script["ListSessions"].extend(
        [
            sessions.ListSessionsResponse(sessions=[types.Session(session_id="a")], next_page_token="t1"),
            sessions.ListSessionsResponse(next_page_token="t2"),  # a page may be empty
            sessions.ListSessionsResponse(sessions=[types.Session(session_id="b")]),
        ]
    )
    assert [s.session_id async for s in client.list_sessions(state="open", running=True)] == ["a", "b"]
    assert [request.page_token for request in server.requests("ListSessions")] == ["", "t1", "t2"]
