"""The Rust engine as Python sees it. Nothing here blocks on disk; `next_batch` and `next_effects` block their
thread with the GIL released."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Refusal = tuple[int, str, bytes]  # (grpc code, message, encoded google.rpc.Status for grpc-status-details-bin)

METHODS: Final[
    dict[str, int]
]  # full gRPC method name "/roost.v1.TurnService/BeginTurn" -> method number for Engine.call
REASONS: Final[list[tuple[str, int, str, str]]]  # (reason, grpc code, what it means, what the caller should do)
RULES: Final[dict[str, str]]  # full gRPC method name -> what a session's key may do with it (roost_core::engine::Rule)
LIMITS: Final[list[tuple[str, int, int, int]]]  # (limit, default, least, greatest value)
LIMIT_CHANGES: Final[dict[str, str]]  # limit -> "free", "laid out" or "fixed" (roost_core::limits::Change)
DUMP_SCHEMA: Final[int]  # the version of the format of dumps
VERSION: Final[str]

def failpoint(name: str) -> None:
    """A place where a test may kill this process. Does nothing but in builds with the cargo feature `failpoints`, and
    there only if the environment variable ROOST_FAILPOINT names it: "name:n" kills the process (SIGKILL) at the n-th
    time that it comes here (default 1), "name:n:error" raises OSError (EIO) instead. The variable is read once."""

def tenant_uid(tenant: str) -> str:
    """What stands for a tenant in the names of its dumps: 32 hex characters."""

def request_hash(payload: bytes) -> bytes:
    """The hash that a request_id is kept with; the payload is the request encoded without its request_id."""

def dump_name(tenant: str, uid: bytes, close_number: int) -> str:
    """The name of the dump of one close of a session: "<tenant uid>/<uid>-<close number>"."""

# records, trajectories, messages, lines, bytes of the lines, their SHA-256 in hex
DumpSummary = tuple[int, int, int, int, int, str]

class DumpEncoder:
    """Writes one session as the parts of a dump: (zstd frame, its SHA-256 in hex, bytes uncompressed, lines). The same
    session gives the same parts. ValueError, which names no content, for a session that does not verify (I23)."""

    def __init__(
        self, row: tuple[Any, ...], lines: Sequence[tuple[Any, ...]], mail: int = ..., part_bytes: int = ...
    ) -> None:
        """row: a SessionRow with a receipt; lines: all its RecordLines, newest first; mail: how many messages ended
        with it."""
    def push(self, rows: Sequence[tuple[Any, ...]], rewards: Mapping[int, float]) -> list[tuple[bytes, str, int, int]]:
        """The next RecordRows, oldest first, events included; the parts that are full."""
    def trajectories(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[bytes, str, int, int]]:
        """All its TrajectoryRows, in order of number, behind the records; the parts that are full."""
    def mail(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[bytes, str, int, int]]:
        """The next UnreadMails, in order of sequence, behind the trajectories; the parts that are full."""
    def finish(self) -> tuple[tuple[bytes, str, int, int], DumpSummary]:
        """The last part."""

class DumpDecoder:
    """Reads the parts of one dump in order. ValueError, which names no content, for what is no part of a dump."""

    def __init__(self) -> None: ...
    def part(self, data: bytes, raw_bytes: int) -> list[tuple[Any, ...]]:
        """The rows of a part, each verified by itself: ("session", (uid, tenant, session_id, root, parent, path, depth,
        create_ms, head, head_version, fence, last, facts, receipt, name of its dump)), ("record", RecordRow, reward or
        None), ("trajectory", (number, ready_seq, after_seq, first_turn, turn_count, ready_ms)), ("mail", (message_id,
        sender, kind, expire, deliveries, fence, create_ms, meta, content)). It must have exactly `raw_bytes` bytes
        uncompressed; memory is taken for no more."""
    def check(self, data: bytes, raw_bytes: int) -> str | None:
        """As `part`, without making the rows. The name of the dump, if the session's line is in this part."""
    def finish(self) -> DumpSummary:
        """ValueError unless the parts were a whole session and its history verifies (I23)."""

def admin_key_fault(key: str) -> str | None:
    """What is wrong with an admin key, in words that do not tell it; None for a good one."""

def new_admin_key() -> str:
    """An admin key that nobody has."""

class Batch:
    first_seq: int
    last_seq: int
    roots: list[bytes]
    def sessions(self) -> list[tuple[Any, ...]]: ...  # SessionUpsert columns
    def records(self) -> list[tuple[Any, ...]]: ...  # RecordInsert columns
    def copies(self) -> list[tuple[Any, ...]]: ...  # RecordCopy columns
    def statuses(self) -> list[tuple[Any, ...]]: ...  # StatusUpdate columns
    def closes(self) -> list[tuple[Any, ...]]: ...  # SessionClose columns
    def rewards(self) -> list[tuple[Any, ...]]: ...  # RewardUpsert columns
    def finished(self) -> list[tuple[Any, ...]]: ...  # TrajectoryInsert columns
    def acks(self) -> list[tuple[Any, ...]]: ...  # TrajectoryAck columns
    def stales(self) -> list[tuple[Any, ...]]: ...  # StaleUpdate columns
    def reopens(self) -> list[tuple[Any, ...]]: ...  # SessionReopen columns
    def restores(self) -> list[tuple[Any, ...]]: ...  # SessionRestore columns
    def steps(self) -> list[tuple[Any, ...]]: ...  # CleanupStep columns
    def purged_records(self) -> list[int]: ...
    def purged_sessions(self) -> list[bytes]: ...
    def forgets(self) -> list[tuple[Any, ...]]: ...  # SessionForget columns
    def keys(self) -> list[tuple[Any, ...]]: ...  # ApiKeyRow columns
    def revoked_keys(self) -> list[tuple[Any, ...]]: ...  # ApiKeyRevoke columns
    def limits(self) -> list[tuple[str, int | None]]: ...
    def resources(self) -> list[tuple[Any, ...]]: ...  # ResourceInsert columns
    def resource_updates(self) -> list[tuple[Any, ...]]: ...  # ResourceUpdate columns
    def resources_due(self) -> list[tuple[Any, ...]]: ...  # ResourcesDue columns
    def resource_deletes(self) -> list[str]: ...
    def cleanups_due(self) -> list[tuple[Any, ...]]: ...  # CleanupDue columns
    def mail(self) -> list[tuple[Any, ...]]: ...  # MailInsert columns
    def mail_updates(self) -> list[tuple[Any, ...]]: ...  # MailUpdate columns
    def mail_ends(self) -> list[bytes]: ...
    def split(self) -> list[Batch]: ...

class Rows:
    """Builds the rows (encoded roost.v1.TrajectoryRow) of one trajectory. ValueError where a record is corrupt."""

    def context(self, meta: bytes, tokens: bytes) -> None:
        """A turn from before the trajectory, in order."""
    def context_part(self, n: int) -> bytes | None:
        """The tokens so far as encoded roost.v1.TokenSpan: part n of them."""
    def copy(self) -> Rows:
        """Another that goes on from here."""
    def push(self, row: tuple[Any, ...], discounted_reward: float | None, train: bool) -> None:
        """The next RecordRow; a row may end before it: take its parts before the next. Without `train` it is the
        ABORTED tail."""
    def finish(self) -> None:
        """The last row ends."""
    def part(self) -> bytes | None:
        """The next part of the row that has ended."""

# What it is ("interrupt", "closed", "lease_lost", "": nothing to tell), the session's uid, the fence of the grant it is
# about, from when on (wall clock) the session may be runnable, and the encoded WatchOwnerResponse.
Owned = tuple[str, bytes, int, int | None, bytes]

class Watch:
    position: int

class Engine:
    def __init__(
        self,
        limits: dict[str, int],
        last_seq: int,
        served_ms: int = 0,
        secret: bytes | None = None,
        admin_key: str | None = None,
        api_keys: Sequence[tuple[Any, ...]] | None = None,
        sources: Mapping[str, str] | None = None,
        most: Mapping[str, int] | None = None,
        set_limits: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        """limits: the integer settings of `roost.server.config` that the engine enforces; an unknown or missing key
        is a ValueError. served_ms: for how long the store had been served before: the service clock goes on from
        there. secret: the store's, without which no keys of tenants or sessions are made. api_keys: ApiKeyRow tuples.
        With an admin key, or an active one among api_keys, a call without a key is refused. sources: where the limits
        came from; most: what bounds some of them from above, beside their ranges; set_limits: those that were set
        before this start, which win."""

    limits_left_aside: list[str]  # those of set_limits that cannot be in force here

    def limits(self) -> list[tuple[str, int, str, int]]:
        """The limits in force: name, value, source ("set": SetLimits), use (-1: that is no one number)."""
    def limit(self, name: str) -> int:
        """One limit in force. ValueError for a name that is none's."""

    # -- transport (event-loop thread)
    def call(
        self, method: int, request: bytes, authorization: str, tenant: str, connection: int
    ) -> bytes | int | Refusal:
        """Run one RPC: the encoded reply, a refusal, or a ticket whose end `completed` yields. `authorization` and
        `tenant` are the metadata `authorization` and `x-roost-tenant`, empty where there are none."""
    def authorize(
        self, path: str, authorization: str, tenant: str
    ) -> tuple[str, tuple[str, bytes, int] | None] | Refusal:
        """Whether a caller may use a method that the engine does not answer: its tenant, and the id, uid and life of
        the session whose key it bears (what that reaches is for the handler to look at); or a refusal."""
    def check_address(self, field: str, text: str, keyed: bool) -> Refusal | None:
        """Why a field cannot name a session so, by id or path; None if it can. keyed: the call has a session's key."""
    def keys_required(self) -> bool:
        """Whether a call without a key is refused."""
    def cleanup_step(
        self, tenant: str, session_id: str, uid: bytes, root: bytes, prev: int, step: tuple[Any, ...]
    ) -> bytes | int | Refusal:
        """Journal a step of an ended session's clean-up, decided by its row of sequence `prev`: as `call`, with the
        reply b"done", or b"changed" where the row is another by now or the step is not one of its state. Steps:
        ("cleaned",), ("dumped", bytes, sha256), ("failed", why), ("purge", record sequences, newest left,
        acknowledged), ("keep",), ("forget",), ("later",), ("restore", [(RecordRow of a dump, reward)],
        [DumpedTrajectory with the sequences that its records have here], [DumpedMail], end). That one appends the
        records under consecutive sequences, of which the row's `last` is then the last, and messages that have ended
        with the session; `end` makes it CLOSED: None, or (state_seq, head_seq, trajectory_seq, for each of the past
        receipts the sequence of the last record before that close, bytes and SHA-256 of the dump, (request_id,
        request_hash) or None).
        After ("cleaned",) or ("dumped", ..) a session that has resources left stays SEALED, and they are due for their
        release; when the last of them is released, so is its next step, which is ("cleaned",)."""
    def restore_session(self, tenant: str, session: tuple[Any, ...], parent_session_id: str) -> bytes | int | Refusal:
        """Journal the row of a session that is to be restored, from a DumpedSession: as `call`, with the reply b"done".
        Its dump was verified, and the store does not know its uid; one session at a time. Refused PARENT_NOT_FOUND
        where the parent that it had is not the session of that id ("" for a root), or is not all there itself."""
    def set_resources(
        self, prefix: str, store_id: str, epoch: int, kinds: Sequence[int], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """What the names of resources are made of (see roost.drivers.marker), the kinds (roost.v1.ResourceKind) that
        may be attached, and all resources of the store as ResourceRow tuples. Before serving and before any header.
        """
    def resource_step(self, name: str, step: tuple[Any, ...]) -> bytes | int | Refusal:
        """Journal what came of a release: as `cleanup_step`, with the reply b"changed" where the resource is not one to
        be released any more. Steps: ("released",), ("failed", why, ms until it is to be tried again)."""
    def releases_count(self) -> int:
        """Grows whenever a resource came to be due for its release, durably."""
    def ended_count(self) -> int:
        """Grows whenever a close became durable."""
    def tree_activity(self, tenant: str, root_session_id: str) -> tuple[int | None, int, int] | None:
        """Of a tree in memory: service time (ms) of its last activity (None: a turn runs or waits now), idle time that
        it allows (ms; -1: its root's facts tell), open sessions."""
    def sweep_now(self) -> None:
        """Have the next sweep of stale trees begin at once."""
    def set_dumps(self, on: bool) -> None:
        """Whether ended sessions are SEALED until they are dumped."""
    def set_store_bytes(self, size: int) -> None:
        """How many bytes of the store are in use."""
    def service_ms(self) -> int:
        """For how long the store has been served, over all starts."""
    def wall_ms(self) -> int:
        """The wall clock, milliseconds since 1970, as the engine has it."""
    def completed(self) -> list[tuple[int, bytes | Refusal]]:
        """Tickets that ended since the last call."""
    def cancel(self, ticket: int) -> None:
        """The caller of this ticket is gone. No completion follows."""
    def undelivered(self, method: int, request: bytes, reply: bytes, authorization: str, tenant: str) -> None:
        """A reply that `completed` yielded could not be written: a grant in it is released."""
    def refuse(self, reason: str, message: str, metadata: dict[str, str], retry_ms: int | None = None) -> Refusal:
        """Build a refusal from the table of reasons, for handlers written in Python. It counts as told to a caller.
        retry_ms: after which it is worth to come again."""
    def skip_time(self, ms: int) -> None:
        """Move the service clock and the wall clock forward. For tests: leases and delays end without a wait."""
    def tick(self) -> int:
        """Do what is due (leases, waits, evictions); returns the ms until the next call is useful (at most 100)."""
    def describe(self, rows: Sequence[tuple[Any, ...]], outline: bool = False) -> list[bytes]:
        """Encode SessionRow tuples as roost.v1.Session, with activity and residency from memory; with `outline` without
        what only its own callers may see."""
    def describe_record(
        self,
        row: tuple[Any, ...],
        omit_payload: bool,
        exported: bool = False,
        reward: float | None = None,
        discounted_reward: float | None = None,
    ) -> bytes:
        """Encode a RecordRow tuple as roost.v1.Record; verifies its digests unless omitted. ValueError if corrupt. With
        `exported` its span has a loss mask, of zeros unless it is COMMITTED."""
    def verify_chain(self, lines: Sequence[tuple[Any, ...]], facts: bytes) -> list[int]:
        """Verify the hash chain of RecordLine tuples (newest first) against the facts. ValueError if it does not.
        Returns their statuses as of the newest, in the same order: a rewind may have changed the stored ones
        meanwhile."""
    def stats(self) -> dict[str, int]:
        """The counters and gauges of GetStats by name."""
    def distributions(self) -> dict[str, tuple[list[int], list[int], int]]:
        """Histograms by name ("turn_wait_ms", "turn_held_ms", "batch_entries"): the buckets' upper bounds, which belong
        to them; how many values are in each, and above the last bound; their sum."""
    def refusals(self) -> dict[str, int]:
        """How often calls were refused, by reason; every reason is there."""
    def read_for(self, effect: int) -> int | None:
        """The ticket of a call that waits for a read of `next_effects` that is not answered yet; None: no call does."""
    def ready_sequence(self) -> int:
        """The largest sequence of a trajectory that became READY, durably, while this server has run; 0: none has."""
    def watch_count(self) -> int:
        """Grows whenever something is told of a session: who watches looks again."""
    def watch_sessions(
        self,
        tenant: str,
        *,
        inside: bytes | None = None,
        root: bytes | None = None,
        path_prefix: str | None = None,
        kinds: Sequence[int] | None = None,
        at: int | None = None,
    ) -> Watch:
        """A reader of a tenant's events: of the session `inside` and what descended from it, of the tree of `root`, of
        `path_prefix` and below, of these kinds (none: all); from this position on, or from now on."""
    def watch_owner(self, tenant: str, owner: str) -> Watch:
        """A reader, from now on, of what concerns an owner."""
    def watch_look(self, watch: Watch) -> bool:
        """Whether there is something to take; what the reader does not want is passed over."""
    def watch_events(self, watch: Watch, most: int, most_bytes: int) -> tuple[bytes, int, bool]:
        """The next events as an encoded WatchSessionsResponse without its token (`resync`: some were lost before them),
        the position behind them, and whether there may be more at once. b"": nothing has happened."""
    def watch_owned(self, watch: Watch, most: int) -> tuple[list[Owned], bool, bool]:
        """What has happened to an owner, whether some was lost before that, and whether there may be more at once."""
    def interrupts_of(self, tenant: str, owner: str) -> list[Owned]:
        """The turns of an owner that run and were asked to end."""
    def set_logging(self, on: bool) -> None:
        """Whether turns and closes leave events."""
    def event_lines(self, form: str) -> tuple[bytes, int]:
        """The log lines ("json" or "logfmt") of what happened since the last call, as the server's other lines are
        written, and how many were dropped because there were too many."""
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
        ("find", id, tenant, session_id)  ("header", id, root)  ("read", id, tenant, session_id)
        ("session", id, uid, with_tokens, with_provisional, state_turn, with_size)
        ("trajectories", id, [(uid, number)])  ("due", id, until_ms, (finish_due, uid) | None, limit)"""
    def found(self, effect: int, found: tuple[Any, ...] | None) -> bool: ...  # Found
    def header_loaded(self, effect: int, tenant: str, rows: Sequence[tuple[Any, ...]]) -> bool: ...  # HeaderRow
    def session_loaded(self, effect: int, loaded: tuple[Any, ...] | None) -> bool: ...  # LoadedSession
    def session_read(self, effect: int, row: tuple[Any, ...] | None) -> bool: ...  # SessionRow
    def trajectories_found(self, effect: int, found: Sequence[tuple[str, bytes, str, int] | None]) -> bool:
        """found: (tenant, root, root's session id, acknowledged) or None, in the order asked for."""
    def mail_read(self, effect: int, found: Sequence[tuple[Any, ...]]) -> bool: ...  # MailFound
    def sent_found(self, effect: int, found: tuple[bytes, bytes] | None) -> bool:
        """The message of a request: its id and its meta; None: there is none."""
    def runnable_found(self, effect: int, found: Sequence[tuple[Any, ...]], next_ms: int | None) -> bool: ...
    # RunnableRow
    def due_found(self, effect: int, found: Sequence[tuple[Any, ...]], next_ms: int | None) -> bool: ...  # DueRow
    def stale_found(self, effect: int, found: Sequence[tuple[Any, ...]]) -> bool: ...  # StaleRow
    def family_read(self, effect: int, found: Sequence[tuple[Any, ...]]) -> bool: ...  # SessionRow
    def load_failed(self, effect: int, message: str) -> bool: ...
    def wake_reader(self) -> None: ...
