"""Recorded conversations, cut into turns without changing a byte.

A file holds one conversation a line: `{"session": id, "reward": number, "messages": [...]}`. A turn is one assistant
message; its content is a JSON array of the messages since the turn before it, that one included, and the last turn
also holds what follows it. The messages are slices of the file's own text, never parsed and written again, and the
white space around the commas between turns stays with them: `join` of a session's contents is the file's array,
byte for byte.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CONTENT_TYPE = "application/json"

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


class TranscriptError(ValueError):
    """A line is not a conversation that can be played. The message says where and why."""


@dataclass(frozen=True)
class Conversation:
    """One recorded conversation. `messages`: the bytes of its array as they are in the file; `turns`: the content of
    each turn, in order."""

    session: str
    reward: float
    messages: bytes
    turns: tuple[bytes, ...]


def read(path: Path) -> list[Conversation]:
    """Read a file of conversations. TranscriptError where a line is wrong or a session comes twice."""
    with path.open("rb") as file:
        return list(parse(file, str(path)))


def parse(lines: Iterable[bytes], name: str = "input") -> Iterator[Conversation]:
    """Parse lines; empty ones are skipped. `name` is for messages."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            conversation = parse_line(line)
        except (ValueError, RecursionError) as error:
            raise TranscriptError(f"{name}, line {number}: {error}") from None
        if conversation.session in seen:
            first = seen[conversation.session]
            raise TranscriptError(f"{name}, line {number}: session {conversation.session!r} is on line {first} already")
        seen[conversation.session] = number
        yield conversation


def parse_line(line: bytes) -> Conversation:
    """Parse one conversation. ValueError says what is wrong."""
    text = line.decode("utf-8")  # strict: encoding a slice again gives exactly its bytes
    fields, start, end = _scan(text)
    session, reward = fields.get("session"), fields.get("reward", 0.0)
    if not isinstance(session, str) or not session:
        raise ValueError('"session" must be a string that is not empty')
    if not isinstance(reward, int | float) or isinstance(reward, bool):
        raise ValueError('"reward" must be a number')
    if start < 0:
        raise ValueError('"messages" is missing')
    return Conversation(session, float(reward), text[start:end].encode(), tuple(_cut(text, start, session)))


def join(contents: Iterable[bytes]) -> bytes:
    """The messages array that turns' contents make together. ValueError if a content is not an array."""
    inner = []
    for content in contents:
        if content[:1] != b"[" or content[-1:] != b"]" or len(content) < 2:
            raise ValueError("a turn's content is not a JSON array")
        inner.append(content[1:-1])
    return b"[" + b",".join(inner) + b"]"


def _scan(text: str) -> tuple[dict[str, Any], int, int]:
    """The fields of the object in `text`, and where the value of "messages" starts and ends (-1 if it is missing)."""
    fields: dict[str, Any] = {}
    start = end = -1
    at = _expect(text, _skip(text, 0), "{")
    at = _skip(text, at)
    while text[at : at + 1] != "}":
        key, at = _DECODE(text, at)
        if not isinstance(key, str):
            raise ValueError("a key of the object is not a string")
        if key in fields:
            raise ValueError(f'"{key}" is there twice')
        at = _skip(text, _expect(text, _skip(text, at), ":"))
        value_at = at
        fields[key], at = _DECODE(text, at)
        if key == "messages":
            start, end = value_at, at
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise ValueError(f"expected , or }} at character {at}")
    if text[at + 1 :].strip():
        raise ValueError("something follows the object")
    return fields, start, end


def _cut(text: str, start: int, session: str) -> list[bytes]:
    """The contents of the turns of the array that starts at `start`."""
    at = _expect(text, start, "[")
    ends: list[int] = []  # where each turn ends: at the comma after its assistant message
    begin = at
    at = _skip(text, at)
    while text[at : at + 1] != "]":
        message, at = _DECODE(text, at)
        if not isinstance(message, dict):
            raise ValueError("a message is not an object")
        at = _skip(text, at)
        if message.get("role") == "assistant":
            ends.append(at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    if not ends:
        raise ValueError(f"session {session!r} has no assistant message: there is no turn to play")
    ends[-1] = at  # the last turn also holds what follows it
    turns = []
    for stop in ends:
        turns.append(b"[" + text[begin:stop].encode() + b"]")
        begin = stop + 1
    return turns


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, char: str) -> int:
    if text[at : at + 1] != char:
        raise ValueError(f"expected {char} at character {at}")
    return at + 1
