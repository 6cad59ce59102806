"""WatchSessions: what happens to sessions, from the events that the engine keeps in memory.

A stream is a place among them: it reads the next ones when the answer before was taken, so a client that reads slowly
costs nothing. When it has fallen behind what is kept, it is told so, once, and goes on from then.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Final

from roost.handlers.cold import NOTHING_YET, PAGE_BYTES, Cold, Follow, Step
from roost.handlers.errors import invalid, parse
from roost.handlers.paging import mark_of, position_of, token_of, tree_of
from roost.handlers.wire import field
from roost.v1 import session_service_pb2 as pb

BATCH: Final = 500  # events of one answer
SILENCE_MS: Final = 30_000  # after which an answer without events comes: a resume token is never much older
_NUMBER: Final = 8  # bytes of each part of a token's position
_RESYNC: Final = b"\x18\x01"  # WatchSessionsResponse.resync = true
_SECRET: Final = secrets.token_bytes(32)  # of this life of the server; so are all positions


def watch_sessions(cold: Cold, data: bytes) -> Iterator[Step]:
    """Stream the events that match, in order."""
    request = parse(cold.engine, pb.WatchSessionsRequest, data)
    root = tree_of(cold, request.root_session_id, outline=False)
    prefix = _prefix(cold, request.path_prefix, root)
    for kind in request.kinds:
        if not kind or kind not in pb.SessionEventKind.values():
            raise invalid(cold.engine, "kinds", f"{kind} is not the kind of an event", value=kind)
    inside, scope = None, b""
    if cold.reach is not None:
        inside, scope = cold.reach.uid, cold.reach.uid + cold.reach.life.to_bytes(_NUMBER, "big")
    mark = mark_of(request, cold.tenant, scope)
    at = _position(cold, request.resume_token, mark)
    watch = cold.engine.watch_sessions(
        cold.tenant, inside=inside, root=root, path_prefix=prefix, kinds=list(request.kinds), at=at
    )
    # From another life of the server: what happened in between is in no memory.
    head = _RESYNC if request.resume_token and at is None else b""
    silent_ms = 0  # the first answer comes at once
    while True:
        # Before the read, so that what happens during it is not waited for in vain.
        seen, now_ms = cold.engine.watch_count(), cold.engine.service_ms()
        events, position, more = cold.engine.watch_events(watch, BATCH, PAGE_BYTES)
        if events or now_ms >= silent_ms:
            silent_ms = now_ms + SILENCE_MS
            yield events + head + field(2, _token(cold, position, mark).encode())
            head = b""
        elif more:
            yield NOTHING_YET
        if not more:
            yield Follow(seen, "events", partial(cold.engine.watch_look, watch), silent_ms)


def _prefix(cold: Cold, prefix: str, root: bytes | None) -> str | None:
    if not prefix:
        return None
    if root is None:
        raise invalid(cold.engine, "path_prefix", "requires root_session_id")
    if f"{prefix}/".split("/")[:2] != ["", "root"]:
        raise invalid(cold.engine, "path_prefix", "must begin with /root")
    return prefix.rstrip("/")


# -- tokens: the life of the server, and a position, which is not to be seen: it counts what others do (I17)


def _token(cold: Cold, position: int, mark: bytes) -> str:
    nonce = secrets.token_bytes(_NUMBER)
    hidden = (position ^ _veil(nonce)).to_bytes(_NUMBER, "big")
    return token_of(cold.store.epoch.to_bytes(_NUMBER, "big") + nonce + hidden, mark)


def _position(cold: Cold, token: str, mark: bytes) -> int | None:
    """The position of a token; None without one, and of another life of the server."""
    raw = position_of(cold, token, mark, "resume_token")
    if len(raw) != 3 * _NUMBER or int.from_bytes(raw[:_NUMBER], "big") != cold.store.epoch:
        return None
    nonce, hidden = raw[_NUMBER : 2 * _NUMBER], raw[2 * _NUMBER :]
    return int.from_bytes(hidden, "big") ^ _veil(nonce)


def _veil(nonce: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(nonce, digest_size=_NUMBER, key=_SECRET).digest(), "big")
