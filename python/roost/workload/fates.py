"""Which turns of a replay fail: some are aborted and tried again, some are given up for good.

Decided by a seed, the session and the turn alone, so that whoever verifies a replay knows it without being told.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from roost.workload.transcripts import Conversation

Fate = Literal["commit", "retry", "give up"]


@dataclass(frozen=True)
class Fates:
    """`abort_rate`: share of turns whose first attempt is aborted; `give_up_rate`: share of turns that are given up."""

    abort_rate: float = 0.0
    give_up_rate: float = 0.0
    seed: int = 1

    def of(self, conversation: Conversation, turn: int) -> Fate:
        """What becomes of a turn (from 1)."""
        draw = random.Random(f"{self.seed}/{conversation.session}/{turn}").random()
        if draw < self.give_up_rate:
            return "give up"
        return "retry" if draw < self.give_up_rate + self.abort_rate else "commit"

    def given_up(self, conversation: Conversation) -> int:
        """The turn with which the conversation is given up; 0: it is played to its end."""
        turns = range(1, len(conversation.turns) + 1)
        return next((turn for turn in turns if self.of(conversation, turn) == "give up"), 0)

    def planned(self, conversation: Conversation) -> int:
        """How many of its turns are committed."""
        given_up = self.given_up(conversation)
        return given_up - 1 if given_up else len(conversation.turns)


def partial(content: bytes) -> bytes:
    """What a turn that fails has produced of its content."""
    return content[: len(content) // 2]
