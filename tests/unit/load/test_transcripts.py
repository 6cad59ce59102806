"""Cutting conversations into turns without changing a byte, and generating some of the same shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.workload import generate
from roost.workload.transcripts import TranscriptError, join, parse, parse_line, read

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "data" / "airline-trajectories.jsonl"


def line(messages: str, more: str = "") -> bytes:
    return f'{{"session":"s","reward":1{more},"messages":{messages}}}'.encode()


U = '{"role":"user","content":"u"}'
A = '{"role":"assistant","content":"a"}'
T = '{"role":"tool","content":"t"}'


def test_a_turn_holds_the_messages_since_the_last_one_and_the_last_what_follows() -> None:
    cut = parse_line(line(f"[{U},{U},{A},{T},{A},{A},{U},{T}]"))
    assert [turn.decode() for turn in cut.turns] == [f"[{U},{U},{A}]", f"[{T},{A}]", f"[{A},{U},{T}]"]
    assert all(json.loads(turn) for turn in cut.turns)


@pytest.mark.parametrize(
    "messages",
    [
        f"[{A}]",
        f"[{A},{A}]",
        f"[ {U} ,\t{A}\r\n, {T}  ,{A} ,{U} ]",
        f"[\n  {U},\n  {A},\n  {A}\n]",
        f'[{{"content":"\\u00e9\\ud83d\\ude00 \\" ]}}{{[, é😀","role":"assistant"}},{U}]',
        f'[{{"n":1.0e5,"x":[[1 , 2],{{}}],"role" : "assistant"}},{U}]',
        f'[{{"role":"assistant","content":"\\"role\\":\\"assistant\\""}},{U},{A}]',
    ],
)
def test_joined_turns_are_the_array_byte_for_byte(messages: str) -> None:
    cut = parse_line(line(messages))
    assert cut.messages == messages.encode()
    assert join(cut.turns) == messages.encode()
    for turn in cut.turns:
        json.loads(turn)


def test_the_position_of_messages_in_the_object_does_not_matter() -> None:
    cut = parse_line(f'  {{ "messages" : [{A}] , "session" : "x" , "other": {{"messages": [1]}} }} \n'.encode())
    assert (cut.session, cut.reward, cut.messages) == ("x", 0.0, f"[{A}]".encode())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "Expecting value|expected"),
        (b"[]", "expected {"),
        (line("[]"), "no assistant message"),
        (line(f"[{U}]"), "no assistant message"),
        (line("{}"), r"expected \["),
        (line("[1]"), "not an object"),
        (line(f"[{A},]"), "."),
        (line(f"[{A}]") + b"x", "something follows"),
        (line(f"[{A}]", ',"reward":2'), "twice"),
        (b'{"session":1,"messages":[]}', "session"),
        (b'{"session":"","messages":[]}', "session"),
        (b'{"session":"s","reward":"1","messages":[]}', "reward"),
        (b'{"session":"s"}', "missing"),
        (b'{"session":"s","messages":["\xff"]}', "utf-8|codec"),
        (b"[" * 100_000, "."),
    ],
)
def test_bad_lines_say_what_is_wrong(text: bytes, why: str) -> None:
    with pytest.raises((ValueError, RecursionError), match=why):
        parse_line(text)


def test_errors_name_file_and_line_and_ids_are_unique() -> None:
    good = line(f"[{A}]")
    with pytest.raises(TranscriptError, match=r"f, line 3: session .s. is on line 1"):
        list(parse([good, b"\n", good], "f"))
    with pytest.raises(TranscriptError, match="f, line 2: "):
        list(parse([good, b"[" * 100_000], "f"))


def test_join_refuses_what_is_no_array() -> None:
    with pytest.raises(ValueError, match="not a JSON array"):
        join([b"[1]", b"{}"])


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")
def test_the_recorded_sessions_survive_cutting() -> None:
    conversations = read(RECORDED)
    assert len(conversations) == 150
    assert sum(len(c.turns) for c in conversations) == 1808
    for conversation, raw in zip(conversations, RECORDED.read_bytes().splitlines(), strict=True):
        assert join(conversation.turns) == conversation.messages
        assert raw.count(conversation.messages) == 1
        roles = [m["role"] for m in json.loads(raw)["messages"]]
        assert len(conversation.turns) == roles.count("assistant")


def test_generated_conversations_have_the_shape_of_the_recorded_ones() -> None:
    lines = list(generate.lines(150, seed=1))
    conversations = list(parse(lines))
    turns = [len(c.turns) for c in conversations]
    assert (min(turns), max(turns)) >= (4, 20)
    assert max(turns) <= 30
    assert 10.5 < sum(turns) / len(turns) < 13.5  # recorded: 12.05
    assert 2_000_000 < sum(map(len, lines)) < 3_000_000  # recorded: 2.4 MB
    assert any(not raw.isascii() for raw in lines)


def test_generated_conversations_depend_on_seed_and_index_alone() -> None:
    assert list(generate.lines(5, seed=3)) == list(generate.lines(9, seed=3))[:5]
    assert list(generate.lines(5, seed=3)) != list(generate.lines(5, seed=4))
