"""Writes a refusal to a call: its gRPC status, its details, and when to come again for what retries by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from roost._core import Refusal
    from roost.handlers.measures import Context

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# Reasons of RESOURCE_EXHAUSTED that say nothing about the request; the clients repeat these as well.
MOMENTARY: Final = frozenset({"OVERLOADED", "JOURNAL_BEHIND"})
# Codes that `service_config.json` has retried.
_RETRIED: Final = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})
_DETAILS: Final = "grpc-status-details-bin"
# How gRPC's own retries learn when to come again, or not to (gRFC A6): they do not read RetryInfo, which says the same.
_PUSHBACK: Final = "grpc-retry-pushback-ms"
_NEVER: Final = "-1"
_RETRY_INFO: Final = b"google.rpc.RetryInfo"

Status = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]


def status_of(refusal: Refusal) -> Status:
    """Code, message and trailers of a refusal."""
    number, message, details = refusal
    code = _CODES[number]
    pushback = _pushback(code, details) if code in _RETRIED else None
    if pushback is None:
        return code, message, ((_DETAILS, details),)
    return code, message, ((_DETAILS, details), (_PUSHBACK, pushback))


def _pushback(code: grpc.StatusCode, details: bytes) -> str | None:
    """None: whenever the client's policy has it."""
    exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED
    if _RETRY_INFO not in details:
        return _NEVER if exhausted else None
    parts = {part.type_url.rpartition("/")[2]: part.value for part in status_pb2.Status.FromString(details).details}
    reason = error_details_pb2.ErrorInfo.FromString(parts["google.rpc.ErrorInfo"]).reason
    retry = parts.get("google.rpc.RetryInfo")
    if exhausted and (retry is None or reason not in MOMENTARY):
        return _NEVER  # a cap that is full is an answer, though it may be worth to ask again later
    return None if retry is None else str(error_details_pb2.RetryInfo.FromString(retry).retry_delay.ToMilliseconds())


async def refuse(context: Context, refusal: Refusal) -> NoReturn:
    """End the call with the status of a refusal and its details."""
    await context.abort(*status_of(refusal))
    raise AssertionError("abort returned")
