"""What is refused at the door, when, and what gRPC's own retries are told of refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from roost._core import LIMITS, Engine
from roost.client._retry import MOMENTARY as REPEATED
from roost.server.overload import KEPT, Gate, Overload
from roost.server.status import MOMENTARY, status_of
from roost.server.transport import SERVICES

BEGIN = "/roost.v1.TurnService/BeginTurn"


@pytest.fixture
def engine() -> Engine:
    return Engine({name: default for name, default, _, _ in LIMITS}, 0)


@pytest.fixture
def door(engine: Engine) -> Overload:
    return Overload(0.5, engine.refuse, {})


class Context:
    """Keeps what a handler says of its call."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.said.update({name.removeprefix("set_"): value})


def served(door: Overload, path: str = BEGIN) -> tuple[Any, list[tuple[str, grpc.StatusCode]]]:
    """What one call is answered with, and what was told of refusals."""
    told: list[tuple[str, grpc.StatusCode]] = []
    gate = Gate({BEGIN: "its handler"}, door, lambda path, code: told.append((path, code)))
    return gate.service(SimpleNamespace(method=path, invocation_metadata=())), told


def test_what_is_kept_is_of_the_api_and_begins_nothing() -> None:
    methods = {f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods}
    assert methods > KEPT
    begins = ("Begin", "Open", "Reopen", "Poll", "Send", "Wait", "Attach", "Restore", "Dump", "List", "Read", "Watch")
    assert not [path for path in KEPT if path.rpartition("/")[2].startswith(begins)]


async def test_one_in_five_is_refused_while_probes_wait_too_long_and_none_else(door: Overload) -> None:
    """One that is slow may be a moment in which the loop did something else."""
    probes = (0.5, 0.51, 0.1, 0.51, 3.0, 0.6, 0.1, 3.0)
    for wait, share in zip(probes, (0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.0, 0.0), strict=True):
        door.probed(wait)
        answers = [served(door)[0] for _ in range(100)]
        assert sum(answer != "its handler" for answer in answers) / 100 == share
        assert served(door, "/roost.v1.TurnService/NoSuch")[0] is None


async def test_a_refusal_says_why_and_when_to_come_again(door: Overload) -> None:
    door.probed(0.6)
    door.probed(1.234)
    delays = set()
    for _ in range(50):
        handler, told = served(door)
        if handler == "its handler":
            assert not told
            continue
        assert told == [(BEGIN, grpc.StatusCode.RESOURCE_EXHAUSTED)]
        context = Context()
        await handler.stream_stream(None, context)
        assert context.said["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(context.said["trailing_metadata"])
        parts = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        info = error_details_pb2.ErrorInfo.FromString(parts[0].value)
        retry = error_details_pb2.RetryInfo.FromString(parts[1].value)
        assert (info.reason, dict(info.metadata)) == ("OVERLOADED", {"wait_ms": "1234", "limit_ms": "500"})
        assert all(number in context.said["details"] for number in info.metadata.values())
        assert trailers["grpc-retry-pushback-ms"] == str(retry.retry_delay.ToMilliseconds())
        delays.add(retry.retry_delay.ToMilliseconds())
    assert len(delays) > 1  # not all at once
    assert delays <= set(range(500, 1_501))


def test_probes_that_are_dropped_are_slow(door: Overload) -> None:
    door.probed(0.001, dropped=True)
    assert [served(door)[0] for _ in range(20)] == ["its handler"] * 20
    door.probed(0.001, dropped=True)
    assert [served(door)[0] for _ in range(20)] != ["its handler"] * 20


def test_a_limit_of_nothing_refuses_nothing(engine: Engine) -> None:
    door = Overload(0.0, engine.refuse, {})
    for _ in range(3):
        door.probed(60.0)
    assert [served(door)[0] for _ in range(20)] == ["its handler"] * 20


@pytest.mark.parametrize(
    ("reason", "retry_ms", "pushback"),
    [
        ("OVERLOADED", 700, "700"),
        ("JOURNAL_BEHIND", 200, "200"),
        ("JOURNAL_FULL", 500, "500"),
        ("TENANT_TURNS", 1_000, "-1"),  # a BeginTurn without `wait` wants its answer now
        ("TREE_TURNS", None, "-1"),
        ("SHUTTING_DOWN", None, None),  # as the client's policy has it
        ("SESSION_SEALED", 300, None),  # of a code that gRPC does not retry
        ("KEY_INVALID", None, None),
    ],
)
def test_what_grpcs_own_retries_are_told(
    engine: Engine, reason: str, retry_ms: int | None, pushback: str | None
) -> None:
    text = "OVERLOADED google.rpc.RetryInfo"  # what is quoted in a sentence decides nothing
    _, _, trailers = status_of(engine.refuse(reason, text, {"x": text}, retry_ms))
    assert dict(trailers).get("grpc-retry-pushback-ms") == pushback


def test_client_and_server_agree_on_what_passes() -> None:
    assert MOMENTARY == REPEATED
