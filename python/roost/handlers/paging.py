"""What lists share: sizes of pages, opaque tokens that are bound to the filters, and the tree that a list is of."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final

from google.protobuf.message import Message

from roost.handlers.cold import Cold
from roost.handlers.errors import invalid, refused

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
_MARK = 8


def size_of(cold: Cold, request: Any) -> int:
    """How many a page has; Refused INVALID_FIELD for a negative `page_size`."""
    if request.page_size < 0:
        rule = f"must not be negative, and is {request.page_size}"
        raise invalid(cold.engine, "page_size", rule, value=request.page_size)
    return min(request.page_size or DEFAULT_PAGE, MAX_PAGE)


def mark_of(request: Message, tenant: str, scope: bytes = b"") -> bytes:
    """A short hash of the list, its filters and the caller: what a token is bound to. The page size may change.
    `scope`: what else it is bound to."""
    filters = type(request)()
    filters.CopyFrom(request)
    for name in ("page_token", "page_size", "resume_token"):
        if name in request.DESCRIPTOR.fields_by_name:
            filters.ClearField(name)
    encoded = request.DESCRIPTOR.full_name.encode() + scope + filters.SerializeToString(deterministic=True)
    return hashlib.blake2b(encoded, digest_size=_MARK, key=tenant.encode()[:64]).digest()


def token_of(position: bytes, mark: bytes) -> str:
    """The token of the place where the next page begins."""
    return base64.urlsafe_b64encode(position + mark).decode()


def position_of(cold: Cold, token: str, mark: bytes, name: str = "page_token") -> bytes:
    """The place that a token stands for, b"" without one; Refused BAD_PAGE_TOKEN unless it is one of this list. `name`:
    the field that it came in."""
    if not token:
        return b""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) <= _MARK or raw[-_MARK:] != mark:
        raise refused(cold.engine, "BAD_PAGE_TOKEN", f"{name}: is not a token of this list with these filters")
    return raw[:-_MARK]


def tree_of(cold: Cold, root_session_id: str, outline: bool = True) -> bytes | None:
    """The uid of the tree that a list is narrowed to: the one named, else that of the caller's own key; None: all of
    the tenant. `outline`: it may be named by who sees no more of its root. Refused INVALID_FIELD or
    SESSION_NOT_FOUND."""
    if not root_session_id:
        return None if cold.reach is None else cold.reach.root  # it sees no other tree
    row = cold.by_id(root_session_id, "root_session_id", outline)
    if row.root != row.uid:
        rule = f"{root_session_id!r} is not the root of its tree"
        raise invalid(cold.engine, "root_session_id", rule, session_id=root_session_id)
    return row.uid
