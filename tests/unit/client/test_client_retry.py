"""When calls are repeated, and with what (I21: the same request_id has one effect)."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest
from fake_server import FakeServer, Refuse

from roost.client import NO_RETRY, AsyncClient, RetryPolicy
from roost.client._retry import is_transient
from roost.errors import CallTimeout, ConnectionFailed, NotStored, RoostError, TurnInProgress

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def error(code: grpc.StatusCode, reason: str = "", message: str = "", retry_delay: float | None = None) -> RoostError:
    return RoostError(message, code=code, reason=reason, retry_delay=retry_delay)


@pytest.mark.parametrize(
    ("failure", "transient"),
    [
        (error(UNAVAILABLE), True),
        (error(UNAVAILABLE, "NOT_STORED"), True),
        (error(grpc.StatusCode.DEADLINE_EXCEEDED), True),
        (error(grpc.StatusCode.CANCELLED), True),
        (error(grpc.StatusCode.UNKNOWN, message="Stream removed"), True),
        (error(grpc.StatusCode.INTERNAL, message="Received RST_STREAM with error code 2"), True),
        (error(grpc.StatusCode.UNKNOWN, message="unexpected exception"), False),
        (error(grpc.StatusCode.INTERNAL, "INTERNAL_ERROR", "stream removed"), False),
        (error(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS", retry_delay=1.0), False),
        (error(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=1.0), True),
        (error(grpc.StatusCode.RESOURCE_EXHAUSTED, "JOURNAL_BEHIND", retry_delay=0.2), True),
        (error(grpc.StatusCode.ABORTED), False),
        (error(grpc.StatusCode.FAILED_PRECONDITION, "TURN_IN_PROGRESS"), False),
        (error(grpc.StatusCode.DATA_LOSS, "SESSION_CORRUPT"), False),
    ],
)
def test_only_failures_that_say_nothing_about_the_request_are_transient(failure: RoostError, transient: bool) -> None:
    assert is_transient(failure) is transient


def test_backoff_grows_to_its_maximum_and_jitter_only_takes_off() -> None:
    policy = RetryPolicy(initial=1.0, multiplier=2.0, maximum=5.0, jitter=0.4)
    failure = error(UNAVAILABLE)
    assert [policy.delay(failure, n, 100.0, lambda: 0.0) for n in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert policy.delay(failure, 3, 100.0, lambda: 1.0) == pytest.approx(3.0)
    assert policy.delay(failure, 10_000, 100.0, lambda: 0.0) == 5.0  # no overflow


def test_retry_info_is_the_least_wait() -> None:
    policy = RetryPolicy(initial=0.1, jitter=0.5)
    asked = error(UNAVAILABLE, "NOT_STORED", retry_delay=2.0)
    assert policy.delay(asked, 0, 100.0, lambda: 0.0) == 2.0
    assert policy.delay(asked, 0, 100.0, lambda: 1.0) == 3.0  # jitter comes on top


def test_no_repeat_that_would_pass_the_deadline() -> None:
    policy = RetryPolicy(initial=1.0, jitter=0.0)
    assert policy.delay(error(UNAVAILABLE), 0, 0.9) is None
    assert policy.delay(error(UNAVAILABLE, retry_delay=5.0), 0, 4.0) is None
    assert NO_RETRY.delay(error(UNAVAILABLE), 0, 100.0) is None


async def test_a_repeat_bears_the_same_request_id(server: FakeServer, client: AsyncClient) -> None:
    server.script["BeginTurn"].extend([Refuse(UNAVAILABLE), Refuse(UNAVAILABLE, "NOT_STORED")])
    await client.begin_turn("s1")
    ids = [request.request_id for request in server.requests("BeginTurn")]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    uuid.UUID(ids[0])
    assert client.retries == 2


async def test_two_calls_have_two_request_ids(server: FakeServer, client: AsyncClient) -> None:
    for _ in range(2):
        await client.open_session("s1")
        await client.close_session("s1")
        await client.commit_turn("s1", b"lease")
        await client.abort_turn("s1", b"lease")
    for name in ("OpenSession", "CloseSession", "CommitTurn", "AbortTurn"):
        assert len({request.request_id for request in server.requests(name)}) == 2, name


async def test_an_answer_is_not_repeated(server: FakeServer, client: AsyncClient) -> None:
    server.script["BeginTurn"].append(Refuse(grpc.StatusCode.FAILED_PRECONDITION, "TURN_IN_PROGRESS", "it runs"))
    with pytest.raises(TurnInProgress, match="it runs"):
        await client.begin_turn("s1")
    assert len(server.requests("BeginTurn")) == 1


async def test_the_last_error_is_raised_when_time_is_up(server: FakeServer) -> None:
    server.script["GetSession"].extend([Refuse(UNAVAILABLE, "NOT_STORED", "not stored")] * 1000)
    # The second wait would be longer than the time that is left, however slow this machine is.
    async with AsyncClient(server.target, retry=RetryPolicy(initial=0.01, multiplier=1e6, maximum=1e4)) as client:
        with pytest.raises(NotStored, match="not stored") as caught:
            await client.get_session("s1", timeout=60)
    assert len(server.requests("GetSession")) == 2
    assert "attempts" in caught.value.__notes__[0]


async def test_every_call_has_a_deadline(server: FakeServer) -> None:
    server.script["GetSession"].append(asyncio.Event())  # never answers
    async with AsyncClient(server.target, timeout=0.1) as client:
        with pytest.raises(CallTimeout) as caught:
            await client.get_session("s1")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_attempt_that_hangs_leaves_time_for_another(server: FakeServer) -> None:
    server.script["CommitTurn"].append(asyncio.Event())  # the connection went silent
    async with AsyncClient(server.target, timeout=30, retry=RetryPolicy(initial=0.001, attempt_timeout=0.1)) as client:
        await client.commit_turn("s1", b"lease")
    first, second = server.requests("CommitTurn")
    assert first == second


async def test_nobody_there_is_a_connection_failure() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises(ConnectionFailed):
            await client.get_session("s1")


async def test_waiting_calls_have_a_connection_of_their_own(server: FakeServer, client: AsyncClient) -> None:
    await client.begin_turn("s1")
    await client.begin_turn("s2", wait=5)
    await client.commit_turn("s1", b"lease")
    connections = {request.session_id: peer for method, request, peer in server.calls if "BeginTurn" in method}
    assert connections["s1"] != connections["s2"]
    assert server.peers("CommitTurn") == {connections["s1"]}


async def test_a_waiting_call_may_wait_longer_than_other_calls(server: FakeServer) -> None:
    release = asyncio.Event()
    server.script["BeginTurn"].append(release)
    async with AsyncClient(server.target, timeout=0.05, retry=RetryPolicy(attempt_timeout=0.05)) as client:
        waiting = asyncio.create_task(client.begin_turn("s1", wait=60))
        await server.arrived["BeginTurn"].wait()
        with pytest.raises(RoostError):  # a call that is not a waiting one has given up meanwhile  # noqa: PT012
            server.script["GetSession"].append(asyncio.Event())
            await client.get_session("s1")
        assert not waiting.done()
        release.set()
        assert (await waiting).grant.turn == 1
    assert len(server.requests("BeginTurn")) == 1
