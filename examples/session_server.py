"""An HTTP session server in the style of the RL gateways: Roost keeps the sessions, this speaks HTTP.

pip install aiohttp; roost serve &
python examples/session_server.py [ADDR [PORT]]        (of Roost; to listen on: 127.0.0.1:7117, 8000)

POST   /sessions                         -> {"session_id"}
POST   /sessions/ID/v1/chat/completions  {"messages": [...]}: the whole conversation, as agents send it
POST   /sessions/ID/abort                ends what is generated now; the next try starts where this one did
GET    /sessions/ID/samples              what there is to train on, as slime's and miles's samples
DELETE /sessions/ID                      for good

An agent that hangs up aborts its turn. One that repeats a request, or takes some turns back, rewinds:
they stay until the new one is stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

from aiohttp import web
from grpc import StatusCode as Code

from roost.client import AsyncClient, token_span
from roost.client.training import slime_samples
from roost.errors import RoostError, SessionClosed

ROOST = web.AppKey("roost", AsyncClient)
STATUS = {Code.NOT_FOUND: 404, Code.INVALID_ARGUMENT: 400, Code.FAILED_PRECONDITION: 409, Code.RESOURCE_EXHAUSTED: 429}


def tokenize(message: dict[str, str]) -> list[int]:
    """Stands for a tokenizer with a chat template: a byte a token."""
    return list(f"<{message['role']}>{message['content']}</>".encode(errors="replace"))


async def generate(number: int, question: str, stop: asyncio.Event) -> tuple[str, str]:
    """Stands for the inference engine: what it said, and why it ended."""
    words = f"Answer {number} to {question}".split()
    for at in range(len(words)):
        if stop.is_set():
            return " ".join(words[:at]), "abort"
        await asyncio.sleep(0.005)
    return " ".join(words), "stop"


def digest(messages: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


async def chat(request: web.Request) -> web.Response:
    try:
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in (await request.json())["messages"]]
        question = messages[-1]["content"]
    except (ValueError, TypeError, LookupError):
        raise web.HTTPBadRequest(text='the body must be {"messages": [{"role": ..., "content": ...}, ...]}') from None
    async with request.app[ROOST].turn(request.match_info["id"]) as turn:
        # The state has a line for each turn: how many messages and tokens there were after it, and which messages.
        line: list[list[Any]] = json.loads(turn.checkpoint.state or b"[]")
        built_on = [n for n, (count, _, which) in enumerate(line, 1) if which == digest(messages[:count])]
        base = max((n for n in built_on if line[n - 1][0] < len(messages)), default=0)
        count, offset, _ = line[base - 1] if base else (0, 0, "")
        text, why = await generate(len(messages), question, turn.interrupt_requested)
        answer = {"role": "assistant", "content": text}
        prompt, output = [token for m in messages[count:] for token in tokenize(m)], tokenize(answer)
        mask = bytes(len(prompt)) + b"\1" * len(output)
        after = [len(messages) + 1, offset + len(mask), digest([*messages, answer])]
        turn.record(
            json.dumps([*messages[count:], answer]),
            content_type="application/json",
            tokens=token_span(prompt + output, offset=offset, loss_mask=mask),
            finish_reason=why,
            base_turn=base,
            state=json.dumps([*line[:base], after]).encode(),
        )
        if why == "abort":
            await turn.abort()  # else the end of the block commits
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": answer, "finish_reason": why}]}
    return web.json_response(body, headers={"x-sglang-aborted": "1"} if why == "abort" else None)


async def session(request: web.Request) -> web.Response:
    roost, name, found = request.app[ROOST], request.match_info.get("id", ""), list[dict[str, Any]]()
    if request.method == "DELETE":
        return web.json_response({"turns": (await roost.close_session(name)).receipt.turn_count})
    if request.path.endswith("/abort"):
        return web.json_response({"turn": (await roost.interrupt_session(name)).turn})
    if request.path.endswith("/samples"):
        async for one in roost.trajectories([name], selection="all", style="concat"):
            found += slime_samples(one, len(found))
        return web.json_response(found)
    return web.json_response({"session_id": (await roost.open_session()).session.session_id})


@web.middleware
async def refusals(request: web.Request, handler: Any) -> Any:
    try:
        return await handler(request)
    except RoostError as error:
        status = 410 if isinstance(error, SessionClosed) else STATUS.get(error.code, 503)
        return web.json_response({"error": {"code": error.reason, "message": error.message}}, status=status)


async def served(target: str) -> web.Application:
    app = web.Application(middlewares=[refusals])
    app[ROOST] = AsyncClient(target, owner="session-server")
    app.on_cleanup.append(lambda app: app[ROOST].close())
    app.add_routes([web.post("/sessions", session), web.post("/sessions/{id}/v1/chat/completions", chat)])
    app.add_routes([web.post("/sessions/{id}/abort", session), web.get("/sessions/{id}/samples", session)])
    app.add_routes([web.delete("/sessions/{id}", session)])
    return app


if __name__ == "__main__":
    address, port = (sys.argv[1:] + ["127.0.0.1:7117", "8000"][len(sys.argv) - 1 :])[:2]
    web.run_app(served(address), host="127.0.0.1", port=int(port), handler_cancellation=True)
