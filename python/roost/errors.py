"""What a Roost call raises: one exception class for each reason in the server's table of error reasons.

Every failure of a Roost RPC carries a google.rpc.ErrorInfo with a stable reason. `from_rpc` turns it into the class
of that reason, so that callers write `except TurnInProgress` and never look at message text. A reason this version
does not know becomes a plain `RoostError`. The classes at the end are generated from `roost._core.REASONS`:
`python -m roost.client._generate` rewrites them, `--check` (part of `make lint`) fails when they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOMAIN = "roost"
DETAILS_KEY = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class QuotaHit:
    """The cap that refused: its name (`subject`), what it counts (`description`)."""

    subject: str
    description: str


class RoostError(Exception):
    """A failed Roost call.

    `code`: the gRPC status code. `reason`: the stable UPPER_SNAKE reason, "" if the failure did not come from Roost
    (a lost connection, a deadline). `message`: one sentence for a person. `metadata`: every number and name of the
    message. `retry_delay`: seconds after which the server says that trying again is useful, None where it does not.
    `quota`: the caps that refused. `method`: the full name of the RPC, "" if unknown.
    """

    REASON: ClassVar[str] = ""
    ADVICE: ClassVar[str] = ""

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay: float | None = None,
        quota: Iterable[QuotaHit] = (),
        method: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason or self.REASON
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_delay = retry_delay
        self.quota: tuple[QuotaHit, ...] = tuple(quota)
        self.method = method

    @property
    def holders(self) -> list[tuple[str, float]]:
        """Of a cap that refused: the sessions that hold it, longest first, and for how long in seconds; at most eight,
        those that the caller may see."""
        found = (one.rpartition("=") for one in self.metadata.get("holders", "").split())
        return [(name, int(ms) / 1_000) for name, _, ms in found if ms.isdecimal()]

    def __str__(self) -> str:
        label = self.reason or self.code.name
        where = f" ({self.method.rsplit('/', 1)[-1]})" if self.method else ""
        return f"{label}: {self.message}{where}" if self.message else f"{label}{where}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code.name}, reason={self.reason!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword arguments do not survive BaseException's own pickling; errors must cross process pools whole.
        state = {
            "code": self.code,
            "reason": self.reason,
            "metadata": self.metadata,
            "retry_delay": self.retry_delay,
            "quota": self.quota,
            "method": self.method,
        }
        return (_rebuild, (type(self), self.message, state))


def _rebuild(cls: type[RoostError], message: str, state: dict[str, Any]) -> RoostError:
    return cls(message, **state)


class ConnectionFailed(RoostError):
    """The server could not be reached, or the connection broke before an answer came. Without a request_id it is
    not known whether the call took effect."""


class CallTimeout(RoostError, TimeoutError):
    """The call's own deadline passed before an answer came. It is not known whether it took effect; repeat it with the
    same request_id to find out."""


def from_rpc(error: grpc.RpcError, method: str = "") -> RoostError:
    """Make the typed exception of a failed call (sync or async)."""
    failed = cast("Any", error)
    code = failed.code() or grpc.StatusCode.UNKNOWN
    details = failed.details() or ""
    encoded = b""
    for key, value in failed.trailing_metadata() or ():
        if key == DETAILS_KEY:
            encoded = bytes(value)
    return from_status(code, details, encoded, method)


def from_status(code: grpc.StatusCode | int, message: str, encoded: bytes, method: str = "") -> RoostError:
    """Make the typed exception from a status code, its message and the bytes of grpc-status-details-bin."""
    if isinstance(code, int):
        code = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    reason, metadata, retry_delay, quota = "", {}, None, []
    for detail in _details(encoded):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            failure = error_details_pb2.QuotaFailure()
            detail.Unpack(failure)
            quota = [QuotaHit(v.subject, v.description) for v in failure.violations]
    cls = class_for(reason, code)
    return cls(
        message, code=code, reason=reason, metadata=metadata, retry_delay=retry_delay, quota=quota, method=method
    )


def from_refusal(refusal: Any, method: str = "") -> RoostError:
    """Make the typed exception of a `roost.v1.Refusal`: the answer about one part of a call that succeeded."""
    code = _CODES.get(refusal.code, grpc.StatusCode.UNKNOWN)
    cls = class_for(refusal.reason, code)
    return cls(refusal.message, code=code, reason=refusal.reason, metadata=dict(refusal.metadata), method=method)


def class_for(reason: str, code: grpc.StatusCode) -> type[RoostError]:
    """The class of a reason; RoostError for one this version does not know."""
    if reason:
        return BY_REASON.get(reason, RoostError)
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectionFailed
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CallTimeout
    return RoostError


def _details(encoded: bytes) -> Iterable[Any]:
    if not encoded:
        return ()
    status = status_pb2.Status()
    try:
        status.ParseFromString(encoded)
    except Exception:  # noqa: BLE001 - a proxy's garbage must not hide the status itself
        return ()
    return list(status.details)


# --- generated from roost._core.REASONS; do not edit below this line ---


class MalformedRequest(RoostError):
    """MALFORMED_REQUEST: The bytes are not a message of this method. Fix the client; do not retry."""

    REASON = "MALFORMED_REQUEST"
    ADVICE = "Fix the client; do not retry."


class InvalidField(RoostError):
    """INVALID_FIELD: A field breaks its rule; `field` names it. Fix the request; do not retry."""

    REASON = "INVALID_FIELD"
    ADVICE = "Fix the request; do not retry."


class TooLarge(RoostError):
    """TOO_LARGE: A field is over its size limit; `field`, `size` and `limit` say by how much. Send less, or put
    large arrays in your own object store."""

    REASON = "TOO_LARGE"
    ADVICE = "Send less, or put large arrays in your own object store."


class BadPageToken(RoostError):
    """BAD_PAGE_TOKEN: The page or resume token is not one of this list, or watch, with these filters and this key.
    Start again without it."""

    REASON = "BAD_PAGE_TOKEN"
    ADVICE = "Start again without it."


class LeaseMalformed(RoostError):
    """LEASE_MALFORMED: The bytes are not a lease of this server. Send the lease of BeginTurn as it came."""

    REASON = "LEASE_MALFORMED"
    ADVICE = "Send the lease of BeginTurn as it came."


class RequestMismatch(RoostError):
    """REQUEST_MISMATCH: This request_id was used with another payload. Use a new request_id for a new request."""

    REASON = "REQUEST_MISMATCH"
    ADVICE = "Use a new request_id for a new request."


class KeyInvalid(RoostError):
    """KEY_INVALID: The call bears no API key that is valid here: none, one that is not known, or one that was
    revoked. Send a valid key as `authorization: Bearer <key>`."""

    REASON = "KEY_INVALID"
    ADVICE = "Send a valid key as `authorization: Bearer <key>`."


class KeyScope(RoostError):
    """KEY_SCOPE: A key of this kind may not do this, whatever it is done to. Use a key that may: an admin key for
    AdminService, a tenant key for new trees, restores and `force`."""

    REASON = "KEY_SCOPE"
    ADVICE = "Use a key that may: an admin key for AdminService, a tenant key for new trees, restores and `force`."


class KeyNotFound(RoostError):
    """KEY_NOT_FOUND: No API key of this id is known. List the keys; the ids are there."""

    REASON = "KEY_NOT_FOUND"
    ADVICE = "List the keys; the ids are there."


class TenantKeys(RoostError):
    """TENANT_KEYS: The tenant has as many active API keys as it may. Revoke the one that is no longer used."""

    REASON = "TENANT_KEYS"
    ADVICE = "Revoke the one that is no longer used."


class KeysOff(RoostError):
    """KEYS_OFF: The server runs without keys: it has no admin key. Start it with an admin key."""

    REASON = "KEYS_OFF"
    ADVICE = "Start it with an admin key."


class KeyLost(RoostError):
    """KEY_LOST: The key cannot be shown again: the server's secret was replaced since it was made. Revoke it and
    create another."""

    REASON = "KEY_LOST"
    ADVICE = "Revoke it and create another."


class SessionNotFound(RoostError):
    """SESSION_NOT_FOUND: No session of this id is known. Open it first."""

    REASON = "SESSION_NOT_FOUND"
    ADVICE = "Open it first."


class ParentNotFound(RoostError):
    """PARENT_NOT_FOUND: No session of the parent's id is known. Open the parent first."""

    REASON = "PARENT_NOT_FOUND"
    ADVICE = "Open the parent first."


class TurnNotFound(RoostError):
    """TURN_NOT_FOUND: The session's live line has no turn of this number. Read the session's history."""

    REASON = "TURN_NOT_FOUND"
    ADVICE = "Read the session's history."


class TrajectoryNotFound(RoostError):
    """TRAJECTORY_NOT_FOUND: No finished trajectory of this id is known. Export what is READY; the ids are there."""

    REASON = "TRAJECTORY_NOT_FOUND"
    ADVICE = "Export what is READY; the ids are there."


class ResourceNotFound(RoostError):
    """RESOURCE_NOT_FOUND: The session never had a resource of this name, or has it no more. Use the name that
    AttachResource gave; attach again."""

    REASON = "RESOURCE_NOT_FOUND"
    ADVICE = "Use the name that AttachResource gave; attach again."


class DumpNotFound(RoostError):
    """DUMP_NOT_FOUND: The dump target holds no dump of this name. Look for its name with `roost dumps list`;
    receipts bear it."""

    REASON = "DUMP_NOT_FOUND"
    ADVICE = "Look for its name with `roost dumps list`; receipts bear it."


class SessionExists(RoostError):
    """SESSION_EXISTS: A session of this id is open; of a restore: the session, or another of its id, is known. Use
    it, choose another id, or say if_exists RETURN; a session is restored where it is not known."""

    REASON = "SESSION_EXISTS"
    ADVICE = "Use it, choose another id, or say if_exists RETURN; a session is restored where it is not known."


class PathCollision(RoostError):
    """PATH_COLLISION: An open sibling has this name. Choose another name."""

    REASON = "PATH_COLLISION"
    ADVICE = "Choose another name."


class SessionClosed(RoostError):
    """SESSION_CLOSED: The session has ended; it never comes back by itself. Open another one."""

    REASON = "SESSION_CLOSED"
    ADVICE = "Open another one."


class SessionSealed(RoostError):
    """SESSION_SEALED: The session has ended and its clean-up, or that of a descendant which ended with it, still
    runs. Retry after the delay; GetSession tells how far it is."""

    REASON = "SESSION_SEALED"
    ADVICE = "Retry after the delay; GetSession tells how far it is."


class SessionPurged(RoostError):
    """SESSION_PURGED: The session has ended and its content is deleted, or is being deleted. Restore it from its
    dump, where it is not known: on another server, or here once its tombstone is over."""

    REASON = "SESSION_PURGED"
    ADVICE = "Restore it from its dump, where it is not known: on another server, or here once its tombstone is over."


class SessionRestoring(RoostError):
    """SESSION_RESTORING: The session is being made from its dump, or what is left of a try is being deleted. Retry
    after the delay."""

    REASON = "SESSION_RESTORING"
    ADVICE = "Retry after the delay."


class TurnInProgress(RoostError):
    """TURN_IN_PROGRESS: A turn of this session runs or waits already. Wait until it ends, or end it."""

    REASON = "TURN_IN_PROGRESS"
    ADVICE = "Wait until it ends, or end it."


class TurnMismatch(RoostError):
    """TURN_MISMATCH: The session's head is not what the caller expected. Read the session and decide again."""

    REASON = "TURN_MISMATCH"
    ADVICE = "Read the session and decide again."


class TurnEnded(RoostError):
    """TURN_ENDED: The turn that this request_id began is over; `outcome` says how. Begin a new turn with a new
    request_id."""

    REASON = "TURN_ENDED"
    ADVICE = "Begin a new turn with a new request_id."


class TurnInterrupted(RoostError):
    """TURN_INTERRUPTED: InterruptSession ended the wait, or asked the turn to end. Begin again when the session is
    to go on."""

    REASON = "TURN_INTERRUPTED"
    ADVICE = "Begin again when the session is to go on."


class LeaseLost(RoostError):
    """LEASE_LOST: The lease is not the session's latest grant, or its turn has ended. Nothing was written. Begin
    the turn again."""

    REASON = "LEASE_LOST"
    ADVICE = "Begin the turn again."


class TokenPrefixMismatch(RoostError):
    """TOKEN_PREFIX_MISMATCH: The token span does not continue the checkpoint. Send the right offset, raise
    max_trim, or set new_segment."""

    REASON = "TOKEN_PREFIX_MISMATCH"
    ADVICE = "Send the right offset, raise max_trim, or set new_segment."


class RewindRefused(RoostError):
    """REWIND_REFUSED: `base_turn` is not a turn that the session may go back to. Nothing was written. Go back by
    at most max_rewind turns, and not into a finished trajectory."""

    REASON = "REWIND_REFUSED"
    ADVICE = "Go back by at most max_rewind turns, and not into a finished trajectory."


class TrajectoryEmpty(RoostError):
    """TRAJECTORY_EMPTY: The active trajectory has nothing to finish, or no committed turn to reward. Run a turn
    first."""

    REASON = "TRAJECTORY_EMPTY"
    ADVICE = "Run a turn first."


class TrajectoryFinished(RoostError):
    """TRAJECTORY_FINISHED: The turn belongs to a trajectory that is finished: its rewards are fixed. Set rewards
    before the trajectory is finished."""

    REASON = "TRAJECTORY_FINISHED"
    ADVICE = "Set rewards before the trajectory is finished."


class NoDumpTarget(RoostError):
    """NO_DUMP_TARGET: The server has no dump target. Set `dump_target` to where the dumps lie."""

    REASON = "NO_DUMP_TARGET"
    ADVICE = "Set `dump_target` to where the dumps lie."


class DumpNewer(RoostError):
    """DUMP_NEWER: A newer version of Roost wrote the dump. Restore it on that version or a newer one."""

    REASON = "DUMP_NEWER"
    ADVICE = "Restore it on that version or a newer one."


class ResourceReleasing(RoostError):
    """RESOURCE_RELEASING: The resource is to end: its pool needed the place, it was idle for too long, or it was
    detached. Do not make it; if it is there, end it and detach it. Attach another."""

    REASON = "RESOURCE_RELEASING"
    ADVICE = "Do not make it; if it is there, end it and detach it. Attach another."


class DriverOff(RoostError):
    """DRIVER_OFF: The server has no driver for resources of this kind. Configure the driver, or use kind CLIENT."""

    REASON = "DRIVER_OFF"
    ADVICE = "Configure the driver, or use kind CLIENT."


class TreeTurns(RoostError):
    """TREE_TURNS: The tree runs as many turns as it may. Wait for a slot (`wait`), or end a turn that the details
    name."""

    REASON = "TREE_TURNS"
    ADVICE = "Wait for a slot (`wait`), or end a turn that the details name."


class TenantTurns(RoostError):
    """TENANT_TURNS: The tenant runs as many turns as it may. Wait for a slot (`wait`), or end a turn that the
    details name; ListSessions has the rest by activity RUNNING."""

    REASON = "TENANT_TURNS"
    ADVICE = (
        "Wait for a slot (`wait`), or end a turn that the details name; ListSessions has the rest by activity RUNNING."
    )


class TreeSessions(RoostError):
    """TREE_SESSIONS: The tree has as many open sessions as it may. Close sessions of the tree."""

    REASON = "TREE_SESSIONS"
    ADVICE = "Close sessions of the tree."


class ResourceLimit(RoostError):
    """RESOURCE_LIMIT: The session, or the server, has as many resources as it may. Detach resources, or raise the
    limit that the details name."""

    REASON = "RESOURCE_LIMIT"
    ADVICE = "Detach resources, or raise the limit that the details name."


class PoolFull(RoostError):
    """POOL_FULL: The pool has no place: it admits nothing, all its holders run turns, or none ended in time. Wait
    until a holder's turn ends, or raise the cap."""

    REASON = "POOL_FULL"
    ADVICE = "Wait until a holder's turn ends, or raise the cap."


class StoreBytes(RoostError):
    """STORE_BYTES: The store is as large as it may be; no session is made. Close and acknowledge sessions, shorten
    the retention, or raise max_store_bytes."""

    REASON = "STORE_BYTES"
    ADVICE = "Close and acknowledge sessions, shorten the retention, or raise max_store_bytes."


class TreeDepth(RoostError):
    """TREE_DEPTH: The tree is as deep as it may be. Open the session higher up."""

    REASON = "TREE_DEPTH"
    ADVICE = "Open the session higher up."


class MailboxFull(RoostError):
    """MAILBOX_FULL: The session's mailbox is as full as it may be. Have it run a turn, which takes its mail; send
    less, or with a ttl."""

    REASON = "MAILBOX_FULL"
    ADVICE = "Have it run a turn, which takes its mail; send less, or with a ttl."


class RootTrigger(RoostError):
    """ROOT_TRIGGER: A descendant may not make the root of its tree runnable. Send without `trigger`; open the root
    with wake_on_completion to be woken by its children's ends."""

    REASON = "ROOT_TRIGGER"
    ADVICE = "Send without `trigger`; open the root with wake_on_completion to be woken by its children's ends."


class QueueFull(RoostError):
    """QUEUE_FULL: As many calls wait as may, on this connection or in all. Wait less, or spread waiting calls over
    connections."""

    REASON = "QUEUE_FULL"
    ADVICE = "Wait less, or spread waiting calls over connections."


class Overloaded(RoostError):
    """OVERLOADED: Calls wait too long at the door; some of the new work is refused there. Retry after the delay,
    with the same request_id."""

    REASON = "OVERLOADED"
    ADVICE = "Retry after the delay, with the same request_id."


class JournalBehind(RoostError):
    """JOURNAL_BEHIND: The disk is behind; new work is held off. Retry after the delay."""

    REASON = "JOURNAL_BEHIND"
    ADVICE = "Retry after the delay."


class JournalFull(RoostError):
    """JOURNAL_FULL: The disk is far behind; nothing is taken. Retry after the delay."""

    REASON = "JOURNAL_FULL"
    ADVICE = "Retry after the delay."


class StoreLow(RoostError):
    """STORE_LOW: The disk is almost full; new work is refused, running work may end. Free disk space; the server
    goes on by itself."""

    REASON = "STORE_LOW"
    ADVICE = "Free disk space; the server goes on by itself."


class StoreFull(RoostError):
    """STORE_FULL: The disk is full; nothing can be written. Free disk space; the server goes on by itself."""

    REASON = "STORE_FULL"
    ADVICE = "Free disk space; the server goes on by itself."


class NotStored(RoostError):
    """NOT_STORED: The change was not stored, and nothing of it happened. Retry with the same request_id."""

    REASON = "NOT_STORED"
    ADVICE = "Retry with the same request_id."


class Recovering(RoostError):
    """RECOVERING: The server re-reads its state after a write that the store refused. Retry after the delay."""

    REASON = "RECOVERING"
    ADVICE = "Retry after the delay."


class LoadFailed(RoostError):
    """LOAD_FAILED: The session could not be read from the store. Retry; if it stays, look at the server's log."""

    REASON = "LOAD_FAILED"
    ADVICE = "Retry; if it stays, look at the server's log."


class DumpUnreadable(RoostError):
    """DUMP_UNREADABLE: The dump target cannot be read; the message says why. Retry; if it stays, look at the
    target."""

    REASON = "DUMP_UNREADABLE"
    ADVICE = "Retry; if it stays, look at the target."


class ShuttingDown(RoostError):
    """SHUTTING_DOWN: The server is stopping. Retry; another process, or the next one, answers."""

    REASON = "SHUTTING_DOWN"
    ADVICE = "Retry; another process, or the next one, answers."


class SessionCorrupt(RoostError):
    """SESSION_CORRUPT: What the store holds of this session does not verify; it is quarantined, the others are
    served. Restore it from a dump or backup."""

    REASON = "SESSION_CORRUPT"
    ADVICE = "Restore it from a dump or backup."


class DumpDamaged(RoostError):
    """DUMP_DAMAGED: The dump is not what Roost wrote. Nothing of it was restored. Restore another dump or a
    backup; `roost dumps verify` says what is wrong."""

    REASON = "DUMP_DAMAGED"
    ADVICE = "Restore another dump or a backup; `roost dumps verify` says what is wrong."


class TreeQuarantined(RoostError):
    """TREE_QUARANTINED: The store refused this tree's entries alone; it is set aside until a restart. Report it
    with the server's log; restart the server."""

    REASON = "TREE_QUARANTINED"
    ADVICE = "Report it with the server's log; restart the server."


class InternalError(RoostError):
    """INTERNAL_ERROR: The server has a bug. Report it with the server's log."""

    REASON = "INTERNAL_ERROR"
    ADVICE = "Report it with the server's log."


BY_REASON: dict[str, type[RoostError]] = {
    "MALFORMED_REQUEST": MalformedRequest,
    "INVALID_FIELD": InvalidField,
    "TOO_LARGE": TooLarge,
    "BAD_PAGE_TOKEN": BadPageToken,
    "LEASE_MALFORMED": LeaseMalformed,
    "REQUEST_MISMATCH": RequestMismatch,
    "KEY_INVALID": KeyInvalid,
    "KEY_SCOPE": KeyScope,
    "KEY_NOT_FOUND": KeyNotFound,
    "TENANT_KEYS": TenantKeys,
    "KEYS_OFF": KeysOff,
    "KEY_LOST": KeyLost,
    "SESSION_NOT_FOUND": SessionNotFound,
    "PARENT_NOT_FOUND": ParentNotFound,
    "TURN_NOT_FOUND": TurnNotFound,
    "TRAJECTORY_NOT_FOUND": TrajectoryNotFound,
    "RESOURCE_NOT_FOUND": ResourceNotFound,
    "DUMP_NOT_FOUND": DumpNotFound,
    "SESSION_EXISTS": SessionExists,
    "PATH_COLLISION": PathCollision,
    "SESSION_CLOSED": SessionClosed,
    "SESSION_SEALED": SessionSealed,
    "SESSION_PURGED": SessionPurged,
    "SESSION_RESTORING": SessionRestoring,
    "TURN_IN_PROGRESS": TurnInProgress,
    "TURN_MISMATCH": TurnMismatch,
    "TURN_ENDED": TurnEnded,
    "TURN_INTERRUPTED": TurnInterrupted,
    "LEASE_LOST": LeaseLost,
    "TOKEN_PREFIX_MISMATCH": TokenPrefixMismatch,
    "REWIND_REFUSED": RewindRefused,
    "TRAJECTORY_EMPTY": TrajectoryEmpty,
    "TRAJECTORY_FINISHED": TrajectoryFinished,
    "NO_DUMP_TARGET": NoDumpTarget,
    "DUMP_NEWER": DumpNewer,
    "RESOURCE_RELEASING": ResourceReleasing,
    "DRIVER_OFF": DriverOff,
    "TREE_TURNS": TreeTurns,
    "TENANT_TURNS": TenantTurns,
    "TREE_SESSIONS": TreeSessions,
    "RESOURCE_LIMIT": ResourceLimit,
    "POOL_FULL": PoolFull,
    "STORE_BYTES": StoreBytes,
    "TREE_DEPTH": TreeDepth,
    "MAILBOX_FULL": MailboxFull,
    "ROOT_TRIGGER": RootTrigger,
    "QUEUE_FULL": QueueFull,
    "OVERLOADED": Overloaded,
    "JOURNAL_BEHIND": JournalBehind,
    "JOURNAL_FULL": JournalFull,
    "STORE_LOW": StoreLow,
    "STORE_FULL": StoreFull,
    "NOT_STORED": NotStored,
    "RECOVERING": Recovering,
    "LOAD_FAILED": LoadFailed,
    "DUMP_UNREADABLE": DumpUnreadable,
    "SHUTTING_DOWN": ShuttingDown,
    "SESSION_CORRUPT": SessionCorrupt,
    "DUMP_DAMAGED": DumpDamaged,
    "TREE_QUARANTINED": TreeQuarantined,
    "INTERNAL_ERROR": InternalError,
}
