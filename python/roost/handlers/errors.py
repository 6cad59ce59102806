"""How a cold handler refuses a call: the engine's table of reasons, raised as one exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from roost.store.base import StoreFailed

if TYPE_CHECKING:
    from roost._core import Engine, Refusal

M = TypeVar("M", bound=Message)


def failure(who: str, error: BaseException) -> str:
    """One sentence about what ends the process. Only the store's own words are repeated: others could quote content."""
    return f"the {who} failed: {error if isinstance(error, StoreFailed) else type(error).__name__}"


_SHORT: Final = 256  # characters of a path in a message; an id has no more


class Refused(Exception):
    """A refusal of the call: (grpc code, message, encoded google.rpc.Status), as `Engine.call` returns it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal[1])
        self.refusal = refusal


def refused(engine: Engine, reason: str, message: str, **metadata: Any) -> Refused:
    """A refusal from the table of reasons; every number and name of `message` goes into `metadata` as well."""
    return Refused(engine.refuse(reason, message, {key: str(value) for key, value in metadata.items()}))


def parse(engine: Engine, kind: type[M], data: bytes) -> M:
    """Decode a request; Refused MALFORMED_REQUEST if the bytes are not one."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise refused(engine, "MALFORMED_REQUEST", f"the bytes are not a {name}", type=name) from None


def invalid(engine: Engine, field: str, rule: str, **metadata: Any) -> Refused:
    """A field that breaks its rule. The rule goes into the metadata whole, and with it every number it names."""
    return refused(engine, "INVALID_FIELD", f"{field}: {rule}", field=field, rule=rule, **metadata)


def session_not_found(engine: Engine, session_id: str) -> Refused:
    """The id or path leads nowhere (or nowhere that this caller may see)."""
    short = session_id if len(session_id) <= _SHORT else f"{session_id[:_SHORT]}..."  # details have 4 KiB
    return refused(engine, "SESSION_NOT_FOUND", f"there is no session {short!r}", session_id=session_id)


def check_id(engine: Engine, field: str, session_id: str) -> str:
    """A session id that keeps the rules, else Refused INVALID_FIELD; the same words as the engine's."""
    size = len(session_id)
    if not session_id:
        raise invalid(engine, field, "must not be empty")
    if size > 256:
        raise invalid(engine, field, f"has {size} characters; at most 256 are allowed", size=size, limit=256)
    if not (session_id.isascii() and all(c.isalnum() or c in "._:-" for c in session_id)):
        raise invalid(engine, field, "only A-Z a-z 0-9 . _ : - are allowed")
    return session_id
