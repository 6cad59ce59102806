"""The comparison itself: it must find what is lost, what is there twice, and what differs by one byte."""

from __future__ import annotations

import json

import pytest

from roost.v1 import types_pb2 as types
from roost.workload.fates import partial
from roost.workload.transcripts import Conversation, parse_line
from roost.workload.verify import TURN_LABEL, Verdict, compare

MESSAGES = [{"role": role, "content": role * n} for n, role in enumerate(["user", "assistant"] * 4, 1)]


def conversation() -> Conversation:
    return parse_line(json.dumps({"session": "s", "messages": MESSAGES}).encode())


def records(source: Conversation) -> list[types.Record]:
    return [
        types.Record(
            turn=number,
            status=types.RECORD_STATUS_COMMITTED,
            record=types.RecordInput(content=content, labels={TURN_LABEL: str(number)}),
        )
        for number, content in enumerate(source.turns, 1)
    ]


def check(exported: list[types.Record]) -> Verdict:
    verdict = Verdict()
    compare("s", conversation(), exported, verdict)
    return verdict


def test_what_is_equal_is_verified() -> None:
    verdict = check(records(conversation()))
    assert verdict.ok
    assert (verdict.sessions, verdict.turns, verdict.bytes) == (1, 4, len(conversation().messages))


def test_provisional_records_are_no_part_of_it() -> None:
    exported = records(conversation())
    exported.insert(1, types.Record(turn=2, status=types.RECORD_STATUS_PROVISIONAL))
    assert check(exported).ok


def given_up(at: int) -> tuple[Verdict, list[types.Record]]:
    """Records of a conversation that was given up at a turn, as they should be."""
    exported = records(conversation())[:at]
    exported[-1].status = types.RECORD_STATUS_ABORTED
    exported[-1].record.content = partial(conversation().turns[at - 1])
    return Verdict(), exported


def test_what_was_given_up_ends_with_one_aborted_record() -> None:
    for at in range(1, 5):
        verdict, exported = given_up(at)
        compare("s", conversation(), exported, verdict, at)
        assert (verdict.ok, verdict.turns) == (True, at - 1), verdict.differences


@pytest.mark.parametrize("wrong", ["none", "two", "whole", "elsewhere", "not given up", "went on"])
def test_a_turn_that_was_given_up_must_have_left_what_it_had(wrong: str) -> None:
    verdict, exported = given_up(3)
    if wrong == "none":
        exported.pop()
    elif wrong == "two":
        exported.append(exported[-1])
    elif wrong == "whole":
        exported[-1].record.content = conversation().turns[2]
    elif wrong == "elsewhere":
        exported.insert(0, exported.pop())
    elif wrong == "went on":
        exported.append(records(conversation())[2])
    compare("s", conversation(), exported, verdict, 0 if wrong == "not given up" else 3)
    assert not verdict.ok


def test_a_lost_turn_is_named() -> None:
    exported = records(conversation())
    del exported[1]
    verdict = check(exported)
    assert (verdict.lost, verdict.duplicated, verdict.ok) == (1, 0, False)
    assert any("session s, turn 2: lost" in str(d) for d in verdict.differences)


def test_a_turn_that_was_played_twice_is_named() -> None:
    exported = records(conversation())
    exported.insert(2, exported[1])
    verdict = check(exported)
    assert (verdict.lost, verdict.duplicated, verdict.ok) == (0, 1, False)
    assert any("turn 2: recorded 2 times" in str(d) for d in verdict.differences)


@pytest.mark.parametrize("at", [0, 10, -1])
def test_one_byte_is_enough(at: int) -> None:
    exported = records(conversation())
    content = bytearray(exported[2].record.content)
    content[at] ^= 1
    exported[2].record.content = bytes(content)
    verdict = check(exported)
    assert not verdict.ok
    assert verdict.differences[0].turn == 3


def test_numbers_must_be_those_of_the_line() -> None:
    exported = records(conversation())
    exported[3].turn = 9
    assert not check(exported).ok


def test_nothing_exported_is_everything_lost() -> None:
    verdict = check([])
    assert (verdict.lost, verdict.ok) == (4, False)
