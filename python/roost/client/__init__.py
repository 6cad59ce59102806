"""The Python client of Roost: `AsyncClient` for asyncio, `Client` for everything else.

from roost.client import Client

with Client("localhost:7117") as roost:
    with roost.turn("my-session", open=True) as turn:
        turn.record(content=run_the_model(turn.checkpoint))
"""

from roost.client._aio import AsyncClient, open_options
from roost.client._convert import message_input, pack_u32, record_input, resource_pool, token_span, unpack_u32
from roost.client._retry import NO_RETRY, RetryPolicy
from roost.client._sync import Client, Turn
from roost.client._tls import Tls
from roost.client._turn import AsyncTurn
from roost.client._watch import Resync
from roost.errors import RoostError

__all__ = [
    "NO_RETRY",
    "AsyncClient",
    "AsyncTurn",
    "Client",
    "Resync",
    "RetryPolicy",
    "RoostError",
    "Tls",
    "Turn",
    "message_input",
    "open_options",
    "pack_u32",
    "record_input",
    "resource_pool",
    "token_span",
    "unpack_u32",
]
