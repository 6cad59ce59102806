"""Exceptions from the table of reasons."""

from __future__ import annotations

import pickle

import grpc
import pytest
from fake_server import details

from roost import errors
from roost.errors import RoostError, TurnMismatch, from_status


def test_a_reason_becomes_its_class_with_all_it_says() -> None:
    encoded = details("TURN_MISMATCH", 9, "turn 3 was expected", 250, expected="3", actual="5")
    error = from_status(9, "turn 3 was expected", encoded, "/roost.v1.TurnService/BeginTurn")
    assert type(error) is TurnMismatch
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.metadata == {"expected": "3", "actual": "5"}
    assert error.retry_delay == 0.25
    assert str(error) == "TURN_MISMATCH: turn 3 was expected (BeginTurn)"


def test_an_unknown_reason_falls_back() -> None:
    error = from_status(9, "new", details("SOMETHING_NEWER", 9))
    assert type(error) is RoostError
    assert error.reason == "SOMETHING_NEWER"


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", b"\x08\x05"])
def test_a_status_without_usable_details_is_still_an_error(garbage: bytes) -> None:
    error = from_status(grpc.StatusCode.INTERNAL, "boom", garbage)
    assert type(error) is RoostError
    assert error.code is grpc.StatusCode.INTERNAL
    assert str(error) == "INTERNAL: boom"


def test_another_domain_is_not_ours() -> None:
    encoded = details("TURN_MISMATCH", 9).replace(b"roost", b"other")
    assert type(from_status(9, "x", encoded)) is RoostError


@pytest.mark.parametrize("cls", [RoostError, *errors.BY_REASON.values()])
def test_every_class_survives_pickling(cls: type[RoostError]) -> None:
    error = cls("busy", code=grpc.StatusCode.ABORTED, metadata={"a": "1"}, retry_delay=0.5, method="/x/Y")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert (copy.code, copy.reason, copy.metadata, copy.retry_delay) == (
        error.code,
        error.reason,
        error.metadata,
        error.retry_delay,
    )


def test_every_class_knows_its_reason_and_advice() -> None:
    for reason, cls in errors.BY_REASON.items():
        assert reason == cls.REASON
        assert cls().reason == reason
        assert cls.ADVICE
        assert cls.__doc__


def test_the_classes_are_those_of_the_engines_table() -> None:
    core = pytest.importorskip("roost._core")
    assert [(reason, cls.ADVICE) for reason, cls in errors.BY_REASON.items()] == [
        (reason, advice) for reason, _, _, advice in core.REASONS
    ]
