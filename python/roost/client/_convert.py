"""Python values to API messages: durations, token spans, enums by name, records."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from google.protobuf import duration_pb2

from roost.v1 import (
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

Seconds = float | int | timedelta
Then = Literal["idle", "continue", "close"]
IfRunning = Literal["refuse", "takeover"]
Selection = Literal["ready", "all"]
Style = Literal["individual", "concat"]
IfExists = Literal["refuse", "return"]
CloseReason = Literal["quit", "admin", "error", "reload", "fork", "new", "resume"]
State = Literal["open", "sealed", "closed"]
ResourceKind = Literal["client", "http", "process", "tmux"]
ResourceState = Literal["planned", "live", "releasing"]
MessageState = Literal["queued", "delivered", "consumed", "expired", "dead", "closed"]
EventKind = Literal["opened", "turn_begun", "turn_ended", "interrupted", "mail", "closed", "reopened", "updated"]
Tokens = types_pb2.TokenSpan | Iterable[int]
Letter = types_pb2.MessageInput | bytes | str

THEN: Mapping[Then, Any] = {
    "idle": turn_service_pb2.THEN_IDLE,
    "continue": turn_service_pb2.THEN_CONTINUE,
    "close": turn_service_pb2.THEN_CLOSE,
}
IF_RUNNING: Mapping[IfRunning, Any] = {
    "refuse": turn_service_pb2.IF_RUNNING_REFUSE,
    "takeover": turn_service_pb2.IF_RUNNING_TAKEOVER,
}
SELECTION: Mapping[Selection, Any] = {
    "ready": trajectory_service_pb2.TRAJECTORY_SELECTION_READY,
    "all": trajectory_service_pb2.TRAJECTORY_SELECTION_ALL,
}
STYLE: Mapping[Style, Any] = {
    "individual": trajectory_service_pb2.EXPORT_STYLE_INDIVIDUAL,
    "concat": trajectory_service_pb2.EXPORT_STYLE_CONCAT,
}
IF_EXISTS: Mapping[IfExists, Any] = {
    "refuse": session_service_pb2.IF_EXISTS_REFUSE,
    "return": session_service_pb2.IF_EXISTS_RETURN,
}


def close_reason(name: CloseReason) -> Any:
    """The enum value of a close reason. ValueError for an unknown one."""
    return types_pb2.CloseReason.Value(f"CLOSE_REASON_{name.upper()}")


def session_state(name: State | None) -> Any:
    """The enum value of a session state; None: any state."""
    return types_pb2.SessionState.Value(f"SESSION_STATE_{name.upper()}") if name else None


def resource_kind(name: ResourceKind) -> Any:
    """The enum value of a kind of resource. ValueError for an unknown one."""
    return resource_service_pb2.ResourceKind.Value(f"RESOURCE_KIND_{name.upper()}")


def resource_state(name: ResourceState | None) -> Any:
    """The enum value of a state of a resource; None: any state."""
    return resource_service_pb2.ResourceState.Value(f"RESOURCE_STATE_{name.upper()}") if name else None


def message_state(name: MessageState) -> Any:
    """The enum value of a state of a message. ValueError for an unknown one."""
    return types_pb2.MessageState.Value(f"MESSAGE_STATE_{name.upper()}")


def event_kind(name: EventKind) -> Any:
    """The enum value of a kind of event. ValueError for an unknown one."""
    return session_service_pb2.SessionEventKind.Value(f"SESSION_EVENT_KIND_{name.upper()}")


def duration(value: Seconds | None) -> duration_pb2.Duration | None:
    """Seconds or a timedelta as a Duration; None stays None ("not set")."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not math.isfinite(value):
        raise ValueError(f"a duration must be finite, not {value}")
    seconds = int(value)
    return duration_pb2.Duration(seconds=seconds, nanos=round((value - seconds) * 1e9))


def seconds(value: duration_pb2.Duration) -> float:
    """A Duration as seconds."""
    return value.seconds + value.nanos / 1e9


def pack_u32(values: Iterable[int]) -> bytes:
    """Token ids as u32 little-endian. OverflowError for a value outside 0..2**32-1."""
    return _little(array.array("I", values))


def unpack_u32(data: bytes) -> array.array[int]:
    """u32 little-endian bytes as an array of token ids."""
    return _unpack(array.array("I"), data)


def unpack_f32(data: bytes) -> array.array[float]:
    """f32 little-endian bytes as an array of numbers."""
    return _unpack(array.array("f"), data)


def _unpack(values: array.array[Any], data: bytes) -> array.array[Any]:
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _little(values: array.array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def token_span(
    token_ids: Iterable[int] | bytes,
    *,
    offset: int = 0,
    logprobs: Iterable[float] | bytes = b"",
    loss_mask: Iterable[int] | bytes = b"",
    weight_versions: Sequence[tuple[int, int]] = (),
) -> types_pb2.TokenSpan:
    """Build a TokenSpan. `offset`: where it starts in the session's tokens. Bytes are taken as they are (u32, f32, u8,
    little-endian); other iterables are packed. `weight_versions`: runs of (version, number of tokens)."""
    return types_pb2.TokenSpan(
        offset=offset,
        token_ids=token_ids if isinstance(token_ids, bytes) else pack_u32(token_ids),
        logprobs=logprobs if isinstance(logprobs, bytes) else _little(array.array("f", logprobs)),
        loss_mask=loss_mask if isinstance(loss_mask, bytes) else bytes(loss_mask),
        weight_versions=[types_pb2.WeightVersionRun(version=v, count=c) for v, c in weight_versions],
    )


def record_input(
    content: bytes | str | None = None,
    *,
    content_type: str = "",
    tokens: Tokens | None = None,
    offset: int = 0,
    usage: types_pb2.Usage | None = None,
    finish_reason: str = "",
    labels: Mapping[str, str] | None = None,
    attachments: Iterable[types_pb2.Attachment] = (),
) -> types_pb2.RecordInput:
    """Build a RecordInput. Text becomes UTF-8. `offset` is used where `tokens` is a plain sequence of ids."""
    content, content_type = _encoded(content, content_type)
    if tokens is not None and not isinstance(tokens, types_pb2.TokenSpan):
        tokens = token_span(tokens, offset=offset)
    return types_pb2.RecordInput(
        content=content or b"",
        content_type=content_type,
        tokens=tokens,
        usage=usage,
        finish_reason=finish_reason,
        labels=labels,
        attachments=attachments,
    )


def message_input(
    content: bytes | str = b"",
    *,
    content_type: str = "",
    labels: Mapping[str, str] | None = None,
    trigger: bool = False,
    ttl: Seconds | None = None,
) -> types_pb2.MessageInput:
    """Build a MessageInput. Text becomes UTF-8. `trigger`: it makes its session runnable. `ttl`: seconds after which it
    is EXPIRED if no turn has taken it; None: it stays."""
    encoded, content_type = _encoded(content, content_type)
    return types_pb2.MessageInput(
        content=encoded or b"", content_type=content_type, labels=labels, trigger=trigger, ttl=duration(ttl)
    )


def letter(given: Letter | None) -> types_pb2.MessageInput | None:
    """A message that may be given as its content alone; None: there is none."""
    return message_input(given) if isinstance(given, bytes | str) else given


def _encoded(content: bytes | str | None, content_type: str) -> tuple[bytes | None, str]:
    """Text as UTF-8, and its type where none is given."""
    if isinstance(content, str):
        return content.encode(), content_type or "text/plain; charset=utf-8"
    return content, content_type


def resource_pool(
    name: str,
    *,
    key: str = "",
    max_resources: int | None = None,
    max_resources_per_key: int | None = None,
    idle_ttl: Seconds | None = None,
) -> resource_service_pb2.Pool:
    """The pool that a resource takes a place of: for `pool=` of `attach_resource`. Caps are those of this call, the
    resource itself counted; None: as many as come. `key`: what the second one counts, for instance a user. `idle_ttl`:
    seconds without a turn of its session after which the resource is released; None or 0: never."""
    return resource_service_pb2.Pool(
        name=name,
        key=key,
        max_resources=max_resources,
        max_resources_per_key=max_resources_per_key,
        idle_ttl=duration(idle_ttl),
    )
