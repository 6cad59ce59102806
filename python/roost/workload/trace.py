"""Rebuilds sessions from a trace of requests that names prompts by their prefix blocks.

A line is one request: `{"timestamp" (ms), "input_length", "output_length" (tokens), "hash_ids"}`, where `hash_ids`
are the ids of the prompt's 512-token blocks, each standing for everything up to its end. A request whose blocks begin
with all full blocks of an earlier request continues that request: it is the next turn of the same session. The last
block of a prompt is mostly not full, and the answer that follows it changes it, so it says nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

BLOCK = 512  # tokens
# Requests that share less are not taken for one conversation: every request of a service begins with its system prompt.
MIN_BLOCKS = 2


@dataclass(frozen=True)
class Request:
    """One request of the trace. `timestamp`: ms; lengths in tokens."""

    timestamp: int
    input_length: int
    output_length: int
    blocks: tuple[int, ...]

    @property
    def full_blocks(self) -> int:
        """How many blocks the prompt fills."""
        return min(len(self.blocks), self.input_length // BLOCK)


@dataclass(frozen=True)
class TracedTurn:
    """One turn to play. `session`: index from 0; `turn`: number from 1; `at`: seconds from the start of the trace;
    `offset`: how many tokens it shares with what the session holds; `tokens`: new ones, prompt tail and answer."""

    session: int
    turn: int
    at: float
    offset: int
    tokens: int
    output: int


class TraceError(ValueError):
    """A line of the trace is wrong. The message says where and why."""


def read(path: Path) -> list[Request]:
    """Read a trace. TraceError where a line is wrong."""
    with path.open("rb") as file:
        return list(parse(file, str(path)))


def parse(lines: Iterable[bytes], name: str = "trace") -> Iterator[Request]:
    """Parse lines of a trace; empty ones are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            request = Request(
                int(fields["timestamp"]),
                int(fields["input_length"]),
                int(fields["output_length"]),
                tuple(fields["hash_ids"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise TraceError(f"{name}, line {number}: {type(error).__name__}: {error}") from None
        if request.timestamp < 0 or request.input_length < 0 or request.output_length < 0:
            raise TraceError(f"{name}, line {number}: a number is negative")
        yield request


def rebuild(requests: Iterable[Request], min_blocks: int = MIN_BLOCKS) -> list[TracedTurn]:
    """The turns of the sessions behind the requests, in order of time.

    A turn's `offset` is what its session holds (prompt and answer of the turn before) where the new prompt is at least
    that long, else the length of the common full blocks: the answer was edited, and is dropped.
    """
    latest: dict[int, int] = {}  # id of the last full block of a session's latest turn -> session
    length: list[int] = []  # tokens each session holds
    turns: list[int] = []
    keys: list[int | None] = []
    plan: list[TracedTurn] = []
    ordered = sorted(requests, key=lambda r: r.timestamp)  # stable: lines of the same instant stay in order
    start = ordered[0].timestamp if ordered else 0
    for request in ordered:
        shared = next((n for n in range(request.full_blocks, min_blocks - 1, -1) if request.blocks[n - 1] in latest), 0)
        if shared:
            session = latest[request.blocks[shared - 1]]
            held = length[session]
            offset = held if request.input_length >= held else min(shared * BLOCK, request.input_length)
        else:
            session, offset = len(length), 0
            length.append(0)
            turns.append(0)
            keys.append(None)
        total = request.input_length + request.output_length
        turns[session] += 1
        length[session] = total
        at = (request.timestamp - start) / 1000
        plan.append(TracedTurn(session, turns[session], at, offset, total - offset, request.output_length))
        previous = keys[session]
        if previous is not None and latest.get(previous) == session:
            del latest[previous]  # only the latest turn of a session can be continued: a fork is a session of its own
        key = request.blocks[request.full_blocks - 1] if request.full_blocks >= min_blocks else None
        keys[session] = key
        if key is not None:
            latest[key] = session
    return plan
