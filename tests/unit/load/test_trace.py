"""Sessions rebuilt from prefix blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.workload.trace import BLOCK, Request, TracedTurn, TraceError, parse, read, rebuild

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "data" / "conversation-trace.jsonl"


def request(at: int, tokens: int, output: int, *blocks: int) -> Request:
    assert len(blocks) == -(-tokens // BLOCK)
    return Request(at, tokens, output, blocks)


def test_a_request_that_continues_another_is_its_next_turn() -> None:
    first = request(0, 1100, 300, 0, 1, 2)  # two full blocks, a third of 76 tokens
    second = request(5_000, 2000, 100, 0, 1, 3, 4)
    assert rebuild([first, second]) == [
        TracedTurn(session=0, turn=1, at=0.0, offset=0, tokens=1400, output=300),
        TracedTurn(session=0, turn=2, at=5.0, offset=1400, tokens=700, output=100),
    ]


def test_the_common_system_prompt_alone_joins_nobody() -> None:
    plan = rebuild([request(0, 600, 1, 0, 1), request(1, 600, 1, 0, 2), request(2, 600, 1, 0, 1)])
    assert [turn.session for turn in plan] == [0, 1, 2]


def test_the_longest_common_prefix_wins() -> None:
    short = request(0, 1024, 10, 0, 1)
    long = request(1, 1536, 10, 0, 1, 2)  # continues `short`: session 0
    other = request(2, 1024, 10, 0, 9)
    again = request(3, 2048, 10, 0, 1, 2, 3)
    plan = rebuild([short, long, other, again])
    assert [(turn.session, turn.turn) for turn in plan] == [(0, 1), (0, 2), (1, 1), (0, 3)]


def test_a_fork_is_a_session_of_its_own() -> None:
    root = request(0, 1024, 10, 0, 1)
    left = request(1, 1536, 10, 0, 1, 2)
    right = request(2, 1536, 10, 0, 1, 3)
    assert [turn.session for turn in rebuild([root, left, right])] == [0, 0, 1]


def test_an_edited_answer_is_dropped_back_to_the_common_blocks() -> None:
    first = request(0, 1100, 2000, 0, 1, 2)  # holds 3,100 tokens
    second = request(1, 1600, 5, 0, 1, 3, 4)  # shorter than that: the answer is not in it
    turn = rebuild([first, second])[1]
    assert (turn.offset, turn.tokens) == (1024, 1600 - 1024 + 5)


def test_times_count_from_the_first_request_in_order() -> None:
    plan = rebuild([request(9_000, 1, 1, 5), request(2_000, 1, 1, 6)])
    assert [turn.at for turn in plan] == [0.0, 7.0]
    assert rebuild([]) == []


@pytest.mark.parametrize(
    "bad",
    [
        b"{}",
        b"[]",
        b"nonsense",
        b'{"timestamp":-1,"input_length":1,"output_length":1,"hash_ids":[0]}',
        b'{"timestamp":0,"input_length":"x","output_length":1,"hash_ids":[0]}',
        b'{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":3}',
    ],
)
def test_a_bad_line_is_named(bad: bytes) -> None:
    with pytest.raises(TraceError, match="t, line 2: "):
        list(parse([b"\n", bad], "t"))


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded trace is not on this machine")
def test_the_recorded_trace_gives_sessions_that_only_grow_or_cut_back() -> None:
    requests = read(RECORDED)
    plan = rebuild(requests)
    assert len(plan) == len(requests) == 3658
    held: dict[int, int] = {}
    number: dict[int, int] = {}
    for turn, source in zip(plan, sorted(requests, key=lambda r: r.timestamp), strict=True):
        assert 0 <= turn.offset <= held.get(turn.session, 0)
        assert turn.tokens > 0
        held[turn.session] = turn.offset + turn.tokens
        assert held[turn.session] == source.input_length + source.output_length
        number[turn.session] = number.get(turn.session, 0) + 1
        assert turn.turn == number[turn.session]
    assert sum(turn.turn > 1 for turn in plan) > 900  # the trace really has sessions of several turns
