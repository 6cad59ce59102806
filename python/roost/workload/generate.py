"""Conversations of the same shape as the recorded airline sessions, for machines that do not have the file.

The numbers below were measured on that file (150 sessions, 1,808 turns, 3,916 messages, 2.4 MB): 4 to 30 turns a
session (mean 12), a system message of 6.3 KB, then user and assistant in turn, 48 % of the assistant messages being
tool calls whose answer follows, every session ending with a message after the last assistant one.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Deciles of the number of turns, with the extremes.
TURNS = (4, 5, 6, 7, 10, 11, 12, 15, 17, 20, 30)
SYSTEM_BYTES = 6_200
TOOL_CALL_SHARE = 0.48
# Sizes in characters as (5 %, median, 95 %, maximum); a size is drawn by interpolating between them.
USER = (20, 80, 180, 290)
ASSISTANT = (100, 250, 700, 1_270)
ARGUMENTS = (20, 30, 460, 1_050)
TOOL = (30, 800, 1_430, 9_200)

_SYLLABLES = (
    "flight seat cabin change cancel refund économy business passenger luggage date price user id reservation "
    "certificate policy please thank you the a to for with on “quoted” 12 345 –dash"
).split()


def lines(sessions: int = 150, seed: int = 1) -> Iterator[bytes]:
    """Lines of a file of conversations: the same for the same arguments, whatever the machine."""
    for index in range(sessions):
        # One generator a session: session k is the same whatever the number of sessions.
        rng = random.Random(f"roost:{seed}:{index}")
        conversation = {
            "session": f"generated-{index:05d}",
            "reward": float(rng.random() < 0.42),
            "messages": list(_messages(rng)),
        }
        # Not ASCII-only, as the recorded file: bytes and characters must not be taken for one another.
        yield json.dumps(conversation, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _messages(rng: random.Random) -> Iterator[dict[str, object]]:
    step = rng.randrange(len(TURNS) - 1)
    turns = rng.randint(TURNS[step], TURNS[step + 1])
    yield {"role": "system", "content": _text(rng, SYSTEM_BYTES)}
    yield {"role": "user", "content": _text(rng, _size(rng, USER))}
    for turn in range(turns):
        if rng.random() < TOOL_CALL_SHARE:
            call = f"call_{rng.getrandbits(64):016x}"
            function = {"name": rng.choice(("get_user", "search", "update")), "arguments": _arguments(rng)}
            calls = [{"id": call, "type": "function", "function": function}]
            yield {"role": "assistant", "content": None, "tool_calls": calls}
            yield {"role": "tool", "tool_call_id": call, "content": _text(rng, _size(rng, TOOL))}
        else:
            yield {"role": "assistant", "content": _text(rng, _size(rng, ASSISTANT))}
            last = turn == turns - 1
            yield {"role": "user", "content": "###STOP###" if last else _text(rng, _size(rng, USER))}


def _arguments(rng: random.Random) -> str:
    return json.dumps({"query": _text(rng, _size(rng, ARGUMENTS))}, ensure_ascii=False)


def _size(rng: random.Random, quantiles: tuple[int, int, int, int]) -> int:
    low, median, high, most = quantiles
    u = rng.random()
    if u < 0.5:
        return round(low + (median - low) * u / 0.5)
    if u < 0.95:
        return round(median + (high - median) * (u - 0.5) / 0.45)
    return round(high + (most - high) * ((u - 0.95) / 0.05) ** 3)


def _text(rng: random.Random, size: int) -> str:
    words: list[str] = []
    length = 0
    while length < size:
        word = rng.choice(_SYLLABLES)
        if rng.random() < 0.06:
            word += rng.choice((".\n", ",", "?", "\t", '"', "\\"))
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:size]
