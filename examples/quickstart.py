"""The whole life of a session in one page: open, turns, a failure, history, close.

roost serve &
python examples/quickstart.py [ADDR]
"""

from __future__ import annotations

import asyncio
import json
import sys

from roost.client import AsyncClient, open_options
from roost.errors import TurnInProgress


async def model(messages: list[dict[str, str]]) -> dict[str, str]:
    """Stands for the call of a language model."""
    return {"role": "assistant", "content": f"You said: {messages[-1]['content']}"}


async def main(target: str) -> None:
    async with AsyncClient(target, owner="quickstart") as roost:
        opened = await roost.open_session(labels={"task": "demo"})
        name = opened.session.session_id
        messages: list[dict[str, str]] = []

        # A turn: a slot, a lease that is renewed while the block runs, a commit at its end.
        for text in ("hello", "what is a roost?"):
            async with roost.turn(name) as turn:
                question = {"role": "user", "content": text}
                answer = await model([*messages, question])
                turn.record(json.dumps([question, answer]), content_type="application/json")
            messages += [question, answer]
            print(f"turn {turn.number}: {answer['content']}")

        # Nobody else can run a turn of this session meanwhile; what a failed turn recorded stays as PROVISIONAL.
        try:
            async with roost.turn(name) as turn:
                try:
                    await roost.begin_turn(name)
                except TurnInProgress as busy:
                    print(f"as it should be: {busy}")
                turn.record("half an answ")
                raise RuntimeError("the model went away")
        except RuntimeError as error:
            print(f"turn {turn.number} aborted: {error}")

        # A child session, made by its first turn.
        async with roost.turn(f"{name}.scout", open=open_options(parent=name, name="scout")) as turn:
            turn.record("found it")

        async for record in roost.read_history(name):
            print(f"  turn {record.turn}, attempt {record.attempt}, status {record.status}: {record.record.content!r}")
        closed = await roost.close_session(name)
        print(f"closed after {closed.receipt.turn_count} turns, with {closed.receipt.children_closed} child")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7117"))
