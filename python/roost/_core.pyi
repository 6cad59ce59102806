"""The Rust engine as Python sees it. Nothing here blocks on disk; `next_batch` and `next_effects` block their
thread with the GIL released."""

from collections.abc import Sequence
from typing import Any, Final

Refusal = tuple[int, str, bytes]  # (grpc code, message, encoded google.rpc.Status for grpc-status-details-bin)

METHODS: Final[
    dict[str, int]
]  # full gRPC method name "/roost.v1.TurnService/BeginTurn" -> method number for Engine.call
REASONS: Final[list[tuple[str, int, str, str]]]  # (reason, grpc code, what it means, what the caller should do)
LIMITS: Final[list[tuple[str, int, int, int]]]  # (limit, default, least, greatest value)
VERSION: Final[str]

class Batch:
    first_seq: int
    last_seq: int
    roots: list[bytes]
    def sessions(self) -> list[tuple[Any, ...]]: ...  # SessionUpsert columns
    def records(self) -> list[tuple[Any, ...]]: ...  # RecordInsert columns
    def statuses(self) -> list[tuple[Any, ...]]: ...  # StatusUpdate columns
    def closes(self) -> list[tuple[Any, ...]]: ...  # SessionClose columns
    def split(self) -> list[Batch]: ...

class Engine:
    def __init__(self, limits: dict[str, int], last_seq: int) -> None:
        """limits: the integer settings of `roost.server.config` that the engine enforces; an unknown or missing key
        is a ValueError."""

    # -- transport (event-loop thread)
    def call(self, method: int, request: bytes, tenant: str, connection: int) -> bytes | int | Refusal:
        """Run one RPC: the encoded reply, a refusal, or a ticket whose end `completed` yields."""
    def completed(self) -> list[tuple[int, bytes | Refusal]]:
        """Tickets that ended since the last call."""
    def cancel(self, ticket: int) -> None:
        """The caller of this ticket is gone. No completion follows."""
    def undelivered(self, method: int, request: bytes, reply: bytes, tenant: str) -> None:
        """A reply that `completed` yielded could not be written: a grant in it is released."""
    def refuse(self, reason: str, message: str, metadata: dict[str, str]) -> Refusal:
        """Build a refusal from the table of reasons, for handlers written in Python."""
    def tick(self) -> int:
        """Do what is due (leases, waits, evictions); returns the ms until the next call is useful (at most 100)."""
    def describe(self, rows: Sequence[tuple[Any, ...]]) -> list[bytes]:
        """Encode SessionRow tuples as roost.v1.Session, with activity and residency from memory."""
    def describe_record(self, row: tuple[Any, ...], omit_payload: bool) -> bytes:
        """Encode a RecordRow tuple as roost.v1.Record; verifies its digests unless omitted. ValueError if corrupt."""
    def verify_chain(self, lines: Sequence[tuple[Any, ...]], facts: bytes) -> None:
        """Verify the hash chain of RecordLine tuples (newest first) against the facts. ValueError if it does not."""
    def stats(self) -> dict[str, int]:
        """The counters and gauges of GetStats by name."""
    def begin_drain(self) -> None:
        """Refuse new turns and end waits with UNAVAILABLE SHUTTING_DOWN; commits, aborts, renewals go on."""
    def flushed(self) -> bool:
        """True when every entry is durable and no ticket is open."""

    # -- journal (writer thread)
    def next_batch(self, timeout_ms: int, linger_us: int) -> Batch | None: ...
    def appended(self, batch: Batch, outcome: str, quarantine: list[bytes]) -> bool:
        """outcome: "stored", "full" or "constraint". quarantine: roots of `batch` that failed alone while
        the rest was stored. True when `completed` has something."""
    def set_space(self, space: str) -> bool:
        """ "ok", "low" or "full", from Store.probe_space. True when `completed` has something."""
    def wake_writer(self) -> None: ...

    # -- reloads (reader thread)
    def next_effects(self, timeout_ms: int) -> list[tuple[Any, ...]]:
        """Reads the engine needs, in order:
        ("find", id, tenant, session_id)  ("header", id, root)  ("session", id, uid, with_tokens)
        ("read", id, tenant, session_id)"""
    def found(self, effect: int, found: tuple[Any, ...] | None) -> bool: ...  # Found
    def header_loaded(self, effect: int, tenant: str, rows: Sequence[tuple[Any, ...]]) -> bool: ...  # HeaderRow
    def session_loaded(self, effect: int, loaded: tuple[Any, ...] | None) -> bool: ...  # LoadedSession
    def session_read(self, effect: int, row: tuple[Any, ...] | None) -> bool: ...  # SessionRow
    def load_failed(self, effect: int, message: str) -> bool: ...
    def wake_reader(self) -> None: ...
