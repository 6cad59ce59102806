"""What Roost asks of a store: the interface that SQLite implements and PostgreSQL will.

A store keeps rows; it decides nothing. The engine (Rust) builds every row, the journal handler appends
them in batches, the reload handler reads them back. All methods block; they are called from the one writer
thread (`append`, `probe_space`, `idle`) and the one reader thread (everything else), never from the event loop.

Rows are tuples in the column orders given below. `bytes` columns that hold protobuf are messages of
`roost.store.v1`; uids are the 16 raw bytes of a UUIDv7, a zero-length value stands for "none".
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class SessionUpsert(NamedTuple):
    """One session row as the engine wants it after a batch (the last of the batch if it changed more than once).

    `prev` is the `seq` that the stored row must still have (0: the row must not exist): the compare-and-set
    that enforces I4 and I8 in the store. The columns up to `stale_due` are written by the insert only.
    """

    uid: bytes
    tenant: str
    session_id: str
    root: bytes  # uid of the tree's root; its own uid for a root
    parent: bytes  # uid of the parent; b"" for a root
    path: str
    depth: int  # 0 for a root
    create_ms: int
    stale_due: int  # of a root: service time before which its tree is not stale, 0: never (StaleUpdate moves it)
    state: int  # roost.v1.SessionState: OPEN; SessionClose and the steps after it set others
    head: int  # COMMITTED turns on the live line
    head_version: int
    fence: int
    provisional: int  # rowid of the live PROVISIONAL record, 0 if none
    last: int  # rowid of the last record appended, 0 if none
    running: int  # 1 while a turn holds a slot
    lease: bytes | None  # roost.store.v1.RunningGrant
    facts: bytes  # roost.store.v1.SessionFacts
    outcome: int  # roost.v1.TurnOutcome of its latest turn
    wakes: int  # 1: what its children's ends tell it makes it runnable
    owner: str  # who began its latest turn, "" before the first
    finish_due: int  # wall-clock ms from which on the active trajectory finishes by itself, 0: never
    stale_ms: int  # of a root: idle time in ms after which its tree is stale, 0: never
    active_ms: int  # service time of the last activity in its tree
    seq: int  # journal sequence of the entry that wrote this row
    prev: int


class RecordInsert(NamedTuple):
    """One record, or event. `seq` is the rowid; `prev` the rowid of the session's record before it (0: the first)."""

    seq: int
    session: bytes
    prev: int
    status: int  # roost.v1.RecordStatus, or FINISHED
    turn: int
    meta: bytes  # roost.store.v1.RecordMeta
    chain: bytes  # 32 bytes: BLAKE3(chain of prev | meta)
    tokens: bytes | None
    state: bytes | None  # the client's state where this record sets it
    arrays: bytes | None  # logprobs followed by loss mask
    content: bytes | None


class RecordCopy(NamedTuple):
    """One record whose tokens, state, arrays and content are those of the record `source`, which is stored."""

    seq: int
    session: bytes
    prev: int
    status: int
    turn: int
    meta: bytes
    chain: bytes
    source: int


class TrajectoryInsert(NamedTuple):
    """A trajectory that was finished: the records of its session with after_seq < seq <= ready_seq."""

    session: bytes
    number: int  # from 1
    tenant: str
    root: bytes
    ready_seq: int  # journal sequence of the entry that finished it; the order in which trajectories became READY
    after_seq: int
    first_turn: int
    turn_count: int
    ready_ms: int


class RewardUpsert(NamedTuple):
    """The reward of a record, in place of an earlier one."""

    session: bytes
    seq: int
    value: float


class TrajectoryAck(NamedTuple):
    """A trajectory was acknowledged; one that was so before keeps its time."""

    session: bytes
    number: int
    ack_ms: int


class StatusUpdate(NamedTuple):
    """A record whose status changes (COMMITTED or PROVISIONAL to SUPERSEDED or ABORTED)."""

    seq: int
    status: int


class SessionClose(NamedTuple):
    """Ends a session without its facts in memory: sets state and receipt; running, provisional and finish_due 0, lease
    NULL.

    `prev` is compared and set as in SessionUpsert. Applied after the batch's upserts.
    """

    uid: bytes
    prev: int
    seq: int
    state: int
    receipt: bytes  # roost.store.v1.Receipt
    cleanup_due: int  # wall-clock ms of its next step


class StaleUpdate(NamedTuple):
    """Before this service time (0: never) the tree of this OPEN root, which allows so much idle time, is not stale."""

    root: bytes
    stale_ms: int
    stale_due: int


class SessionReopen(NamedTuple):
    """Makes a CLOSED session OPEN again. Alone in its batch with others of its tree: what follows finds it open."""

    uid: bytes
    prev: int
    seq: int
    stale_ms: int
    stale_due: int
    active_ms: int
    facts: bytes


class SessionRestore(NamedTuple):
    """Makes the row of a session that is restored from its dump: SEALED, without records as yet."""

    uid: bytes
    tenant: str
    session_id: str
    root: bytes
    parent: bytes
    path: str
    depth: int
    create_ms: int
    head: int
    head_version: int
    fence: int
    stale_ms: int
    closes: int
    cleanup_due: int
    close_seq: int  # as its receipt has it: sessions that one close ended have the same
    seq: int
    facts: bytes
    outcome: int
    wakes: int
    receipt: bytes
    cleanup: bytes


class CleanupStep(NamedTuple):
    """One step of an ended session's clean-up or restore. `prev` is compared and set as in SessionUpsert."""

    uid: bytes
    prev: int
    seq: int
    state: int  # SEALED or CLOSED
    last: int  # rowid of the newest record that is left, 0 if none
    facts: bytes
    cleanup: bytes  # roost.store.v1.Cleanup
    cleanup_due: int  # wall-clock ms of the next step, -1: when all of it is acknowledged


class SessionForget(NamedTuple):
    """Deletes the row of a session whose content is purged."""

    uid: bytes
    prev: int


class ApiKeyRow(NamedTuple):
    """A key of a tenant, without the key."""

    key_id: bytes  # UUIDv7
    tenant: str
    hash: bytes  # 32 bytes; what a presented key is compared with
    create_ms: int
    revoke_ms: int  # 0: it is active
    request: bytes | None  # roost.store.v1.RequestMark of the CreateApiKey


class ApiKeyRevoke(NamedTuple):
    """An active key was revoked."""

    key_id: bytes
    revoke_ms: int


class ResourceInsert(NamedTuple):
    """A resource that was attached. While its row is there, the resource is owned."""

    name: str  # of drivers.marker; unique for good
    session: bytes
    root: bytes
    tenant: str
    kind: int  # roost.v1.ResourceKind
    state: int  # roost.v1.ResourceState
    owner: str
    handle: str
    pool: str  # "" for none
    pool_key: str
    idle_ttl_ms: int  # 0: never
    create_ms: int
    due: int  # wall-clock ms from which on it is to be released, 0: not yet
    attempts: int
    error: str
    request: bytes | None  # roost.store.v1.RequestMark of the AttachResource


class ResourceUpdate(NamedTuple):
    """What changes of a resource; at most one of each in a batch."""

    name: str
    state: int
    handle: str | None  # None: as it was
    due: int
    attempts: int
    error: str


class ResourcesDue(NamedTuple):
    """All resources of a session are to be released from then on."""

    session: bytes
    due: int


class CleanupDue(NamedTuple):
    """The next step of a session is due then, if it is SEALED; its sequence stays."""

    uid: bytes
    due: int


class MailInsert(NamedTuple):
    """A message that was sent. `seq` is the rowid."""

    seq: int
    message_id: bytes  # UUIDv7
    recipient: bytes
    root: bytes  # of the recipient's tree
    tenant: str
    sender: bytes | None  # None: a host
    kind: int  # roost.v1.MessageKind
    state: int  # roost.v1.MessageState: QUEUED; MailUpdate sets others
    due: int  # wall-clock ms from which on it makes its session runnable, -1: it does not
    expire: int  # wall-clock ms at which it expires while it is QUEUED, 0: never
    deliveries: int
    fence: int  # of the grant that took it last, 0: none has
    create_ms: int
    meta: bytes  # roost.store.v1.MessageMeta
    content: bytes | None
    request: str | None  # sender and request_id: one message to a recipient has it; None: no repeat is told


class MailUpdate(NamedTuple):
    """What became of a message; at most one of each in a batch, which may also insert it."""

    seq: int
    state: int
    due: int
    deliveries: int
    fence: int


class Batch(Protocol):
    """What one `append` stores, whole or not at all. Made by the engine (`roost._core.Batch`)."""

    @property
    def first_seq(self) -> int: ...
    @property
    def last_seq(self) -> int: ...
    @property
    def roots(self) -> Sequence[bytes]:
        """The trees concerned."""

    def sessions(self) -> list[tuple[Any, ...]]: ...
    def records(self) -> list[tuple[Any, ...]]: ...
    def copies(self) -> list[tuple[Any, ...]]: ...
    def statuses(self) -> list[tuple[Any, ...]]: ...
    def closes(self) -> list[tuple[Any, ...]]: ...
    def rewards(self) -> list[tuple[Any, ...]]: ...
    def finished(self) -> list[tuple[Any, ...]]: ...
    def acks(self) -> list[tuple[Any, ...]]: ...
    def stales(self) -> list[tuple[Any, ...]]: ...
    def reopens(self) -> list[tuple[Any, ...]]: ...
    def restores(self) -> list[tuple[Any, ...]]: ...
    def steps(self) -> list[tuple[Any, ...]]: ...
    def purged_records(self) -> list[int]:
        """Rowids of records to delete."""

    def purged_sessions(self) -> list[bytes]:
        """Sessions whose rewards, trajectories and mailboxes are to be deleted."""

    def forgets(self) -> list[tuple[Any, ...]]: ...
    def keys(self) -> list[tuple[Any, ...]]: ...
    def revoked_keys(self) -> list[tuple[Any, ...]]: ...
    def limits(self) -> list[tuple[str, int | None]]:
        """Limits that were set; None: the configuration says it again. Each at most once."""

    def resources(self) -> list[tuple[Any, ...]]: ...
    def resource_updates(self) -> list[tuple[Any, ...]]: ...
    def resources_due(self) -> list[tuple[Any, ...]]: ...
    def resource_deletes(self) -> list[str]:
        """Names of resources that are released."""

    def cleanups_due(self) -> list[tuple[Any, ...]]: ...
    def mail(self) -> list[tuple[Any, ...]]: ...
    def mail_updates(self) -> list[tuple[Any, ...]]: ...
    def mail_ends(self) -> list[bytes]:
        """Sessions whose messages that are QUEUED or DELIVERED end (state CLOSED, due -1), those of this batch too."""

    def split(self) -> Sequence[Batch]:
        """One batch a tree, in the order of their first entries."""


class Outcome(enum.Enum):
    """What became of an append. An unknown outcome is not here: it is an exception, and the process exits."""

    STORED = "stored"
    REFUSED_FULL = "full"  # no room; nothing was stored
    REFUSED_FENCED = "fenced"  # another owner has the shard; nothing was stored
    REFUSED_CONSTRAINT = "constraint"  # a compare-and-set or constraint failed: a bug; nothing was stored


class StoreError(Exception):
    """The store cannot be opened or used. The message is one sentence for a person; `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreFailed(Exception):
    """An I/O or unknown error: what was in flight may or may not be stored. Fail-stop (exit code 70)."""


# A status of the record table that is no roost.v1.RecordStatus: the event that finished a trajectory.
FINISHED = 5


class HeaderRow(NamedTuple):
    """One OPEN session of a tree; its facts only where its trajectory is to finish by itself."""

    uid: bytes
    session_id: str
    parent: bytes
    path: str
    depth: int
    head: int
    head_version: int
    fence: int
    provisional: int
    last: int
    running: int
    lease: bytes | None
    finish_due: int
    closes: int
    stale_ms: int
    active_ms: int
    stale_due: int
    facts: bytes | None
    seq: int
    outcome: int
    wakes: int
    owner: str
    mail: list[MailHead]  # what its mailbox holds, in order of sequence


class MailHead(NamedTuple):
    """A message that is QUEUED or DELIVERED."""

    seq: int
    state: int
    due: int
    expire: int
    deliveries: int
    fence: int
    size: int  # bytes of its content
    outcome: int  # 1: a child's end told it (its kind is not MESSAGE)


class MailFound(NamedTuple):
    """A message in full, as a turn gets it."""

    seq: int
    message_id: bytes
    kind: int
    deliveries: int
    create_ms: int
    expire: int
    meta: bytes
    content: bytes | None


class RunnableRow(NamedTuple):
    """A QUEUED message that makes its OPEN session runnable."""

    due: int
    seq: int
    session_id: str


class ListedMail(NamedTuple):
    """A message in a list."""

    seq: int
    message_id: bytes
    session_id: str  # of its recipient
    kind: int
    state: int  # EXPIRED as well where it is QUEUED and its time has passed
    deliveries: int
    create_ms: int
    expire: int
    meta: bytes
    content: bytes | None  # None as well where it is left out
    size: int  # bytes of meta and content


class UnreadMail(NamedTuple):
    """A message that ended with its session, as a dump holds it."""

    seq: int
    message_id: bytes
    sender: bytes | None
    kind: int
    expire: int
    deliveries: int
    fence: int
    create_ms: int
    meta: bytes
    content: bytes | None


class Found(NamedTuple):
    """Where a session id leads. `rows` are the OPEN sessions of its tree, parents before children."""

    uid: bytes
    root: bytes
    state: int
    rows: list[HeaderRow]
    parent: bytes  # b"" for a root
    cleanup: bytes | None  # of one that is not OPEN


class SessionRow(NamedTuple):
    """One session in full, any state."""

    uid: bytes
    tenant: str
    session_id: str
    root: bytes
    parent: bytes
    parent_session_id: str
    root_session_id: str
    path: str
    depth: int
    create_ms: int
    state: int
    head: int
    head_version: int
    fence: int
    provisional: int
    last: int
    running: int
    lease: bytes | None
    facts: bytes
    receipt: bytes | None
    finish_due: int
    closes: int
    cleanup_due: int
    cleanup: bytes | None
    seq: int
    owner: str


class RecordLine(NamedTuple):
    """A record or event without content: what a reload folds. `tokens` is None unless asked for."""

    seq: int
    prev: int
    status: int
    turn: int
    meta: bytes
    chain: bytes
    tokens: bytes | None


class RecordRow(NamedTuple):
    """A record in full."""

    seq: int
    prev: int
    status: int
    turn: int
    meta: bytes
    chain: bytes
    tokens: bytes | None
    state: bytes | None
    arrays: bytes | None
    content: bytes | None


class LoadedSession(NamedTuple):
    """What a reload reads. `records` are newest first, all of them, linked by `prev`; `state` is the client's state and
    `state_seq` the record that set it (None and 0 if none did); `provisional` the live provisional, if it was asked
    for and there is one; `size` how many bytes of payloads and metas the COMMITTED records up to the turn
    asked for have, if that was asked for, else 0."""

    row: SessionRow
    records: list[RecordLine]
    state_seq: int
    state: bytes | None
    provisional: RecordRow | None
    size: int


class TrajectoryRow(NamedTuple):
    """One finished trajectory."""

    session: bytes
    number: int
    tenant: str
    root: bytes
    ready_seq: int
    after_seq: int
    first_turn: int
    turn_count: int
    ready_ms: int
    ack_ms: int  # 0: not acknowledged
    root_session_id: str


class DueRow(NamedTuple):
    """An OPEN session whose active trajectory finishes by itself."""

    finish_due: int
    uid: bytes
    tenant: str
    session_id: str


class StaleRow(NamedTuple):
    """The OPEN root of a tree that may be stale."""

    stale_due: int
    uid: bytes
    tenant: str
    session_id: str


class CleanupRow(NamedTuple):
    """An ended session whose next step is due."""

    cleanup_due: int
    uid: bytes


class ResourceRow(NamedTuple):
    """A resource as start-up loads it."""

    name: str
    session: bytes
    root: bytes
    tenant: str
    session_id: str
    kind: int
    state: int
    pool: str
    pool_key: str
    idle_ttl_ms: int
    attempts: int
    request: bytes | None


class DueResource(NamedTuple):
    """A resource that a driver is to release."""

    name: str
    session: bytes
    root: bytes
    tenant: str
    session_id: str
    kind: int
    handle: str
    attempts: int  # tries that failed
    due: int


class ListedResource(NamedTuple):
    """A resource in a list, with what tells who reaches its session."""

    name: str
    session: bytes
    root: bytes
    tenant: str
    kind: int
    state: int
    owner: str
    handle: str
    pool: str
    pool_key: str
    idle_ttl_ms: int
    create_ms: int
    due: int
    attempts: int
    error: str
    session_id: str
    parent: bytes  # of its session; b"" for a root


class OwnerRelease(NamedTuple):
    """A resource that its host is to release."""

    name: str
    session_id: str
    handle: str


class OwnerMail(NamedTuple):
    """A session that runs no turn and has mail that makes it runnable."""

    session: bytes
    session_id: str
    queued: int  # messages that no turn has taken, others too
    first: int  # of those that make it runnable: the first and the last sequence, the earliest and the latest time
    last: int
    due: int  # wall-clock milliseconds
    last_due: int


@dataclass(frozen=True)
class ReadyFilter:
    """Filters of a list of trajectories that are not acknowledged; all must match."""

    tenant: str
    root: bytes | None = None
    sessions: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class SessionFilter:
    """Filters of a list that the store applies; all must match. Labels are matched by the caller."""

    tenant: str
    root: bytes | None = None
    path_prefix: str | None = None  # this path and what is below it
    state: int | None = None
    running: bool = False


@dataclass(frozen=True)
class ResourceFilter:
    """Filters of a list of resources; all must match."""

    tenant: str
    session: bytes | None = None
    root: bytes | None = None
    owner: str | None = None
    state: int | None = None
    pool: str | None = None


@dataclass(frozen=True)
class MailFilter:
    """Filters of a list of messages: to a session, or from one; all must match."""

    recipient: bytes | None = None
    sender: bytes | None = None
    states: int = 0  # bit n: those in the state n; 0: all
    now_ms: int = 0  # wall clock: what is QUEUED and expired by then is EXPIRED
    content: bool = True  # False: it is left out


class Store(Protocol):
    """One durable store. Opening it claims it: a second server on it fails with StoreError LOCKED."""

    store_id: str  # 8 hex characters, made with the store
    epoch: int  # grows by one at each open; every append checks it
    last_seq: int  # highest journal sequence stored at open
    service_ms: int  # for how long the store had been served at open
    secret: bytes  # 32 bytes made with the store and kept apart from its rows: what keys are made from

    def append(self, shard: int, epoch: int, first_seq: int, batch: Batch, service_ms: int = 0) -> Outcome:
        """Store the batch in one durable transaction, and for how long the store has been served. Raises StoreFailed
        where the outcome is unknown."""

    def probe_space(self) -> str:
        """Say "ok", "low" (the reserve file is gone; it was tried to make again) or "full"."""

    def idle(self) -> None:
        """Nothing was appended for a while: the writer thread lets the store tidy up (SQLite empties its log)."""

    def running_roots(self) -> list[bytes]:
        """The roots of all trees in which a turn runs. What start-up loads."""

    def find(self, tenant: str, session_id: str) -> Found | None:
        """Look an id up and, if it is OPEN, read its tree's header, in one snapshot."""

    def load_header(self, root: bytes) -> tuple[str, list[HeaderRow]]:
        """The tenant and the OPEN sessions of a tree, parents before children."""

    def load_session(
        self,
        uid: bytes,
        with_tokens: bool,
        with_provisional: bool = False,
        state_turn: int | None = None,
        with_size: bool = False,
    ) -> LoadedSession | None:
        """Read one session for a reload, in one snapshot. The state is the newest, or that after turn `state_turn`; the
        size that of the records up to there."""

    def read_session(self, tenant: str, session_id: str) -> SessionRow | None:
        """Read one session row."""

    def list_sessions(self, where: SessionFilter, after: bytes, limit: int) -> list[SessionRow]:
        """At most `limit` rows with uid > after, in order of uid."""

    def record_lines(self, uid: bytes, limit: int) -> tuple[SessionRow, list[RecordLine]] | None:
        """The session row and its newest `limit` records, newest first, without payloads, in one snapshot."""

    def older_lines(self, uid: bytes, line: RecordLine, limit: int) -> list[RecordLine]:
        """The `limit` records before `line`, newest first, without payloads. Fewer: there are no more."""

    def read_records(self, seqs: Sequence[int]) -> list[RecordRow]:
        """Records in full, in the order asked for."""

    def read_tokens(self, seqs: Sequence[int]) -> list[tuple[int, bytes | None]]:
        """Sequence and tokens of records, in the order asked for."""

    def read_rewards(self, uid: bytes) -> dict[int, float]:
        """The rewards of a session's records, by sequence."""

    def read_trajectories(self, ids: Sequence[tuple[bytes, int]]) -> list[TrajectoryRow | None]:
        """The finished trajectories of these sessions and numbers, in the order asked for; None for one there is
        not."""

    def session_trajectories(self, uid: bytes) -> list[TrajectoryRow]:
        """All finished trajectories of a session, in order of number."""

    def last_ready(self, tenant: str) -> int:
        """The largest ready_seq of a tenant's trajectories that are not acknowledged, 0 if there are none."""

    def ready_trajectories(self, where: ReadyFilter, after_seq: int, limit: int) -> list[TrajectoryRow]:
        """At most `limit` that are not acknowledged, with ready_seq > after_seq, in order of ready_seq."""

    def due(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[DueRow], int | None]:
        """At most `limit` sessions whose finish is due by then, in order of (time, uid), behind `after`; and the time
        of the next one after them."""

    def stale(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[StaleRow], int | None]:
        """At most `limit` trees that may be stale by this service time, in order of (time, uid), behind `after`; and
        the time of the next one after them."""

    def family(self, uid: bytes) -> list[SessionRow]:
        """A session, whatever its state, and the sessions below it that the same close ended, parents before
        children."""

    def has_children(self, root: bytes, uid: bytes) -> bool:
        """Whether a session of this tree stands below this one, in whatever state."""

    def cleanups(self, state: int, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> list[CleanupRow]:
        """At most `limit` sessions of this state (SEALED or CLOSED) whose next step is due by then, in order of (time,
        uid), behind `after`."""

    def kept(self, after: bytes, limit: int) -> list[bytes]:
        """At most `limit` sessions that are kept until they are acknowledged, with uid > after, in order of uid."""

    def counts(self) -> dict[str, int]:
        """How many those are ("sessions_kept"), how many SEALED ones wait for their next step, due or not
        ("sessions_sealed"), and how many messages are QUEUED or DELIVERED ("messages_live"). Costs what there is."""

    def read_path(self, root: bytes, path: str) -> SessionRow | None:
        """Read the row of the OPEN session that has this path in its tree."""

    def session_by_uid(self, uid: bytes) -> SessionRow | None:
        """Read one session row."""

    def keep_time(self, service_ms: int) -> None:
        """Note how long the store has been served, where no append does. For the writer thread."""

    def used_bytes(self) -> int:
        """Bytes of the store's file that hold something: what is free in it is used again. For the writer thread."""

    def read_mail(self, seqs: Sequence[int]) -> list[MailFound]:
        """Those of these messages that are QUEUED or DELIVERED, in full, in order of sequence."""

    def sent(self, recipient: bytes, request: str) -> tuple[bytes, bytes] | None:
        """Id and meta of the message to this session that bears this request."""

    def runnable(
        self, tenant: str, until_ms: int, after: tuple[int, int] | None, limit: int
    ) -> tuple[list[RunnableRow], int | None]:
        """At most `limit` QUEUED messages whose time to make their sessions runnable has come, in order of (time,
        sequence), behind `after`; and the time of the next one after them. All of them are of OPEN sessions."""

    def list_mail(
        self, where: MailFilter, after: int, limit: int, examine: int, size: int
    ) -> tuple[list[ListedMail], int | None]:
        """At most `limit` messages with seq > after, in order of seq, among the next `examine` of the session, and no
        more once they have `size` bytes; and the seq behind which a list of what follows goes on, None if nothing
        does."""

    def count_unread(self, uid: bytes) -> int:
        """How many messages ended with this session."""

    def unread_mail(self, uid: bytes, after: int, size: int) -> list[UnreadMail]:
        """Those with seq > after, in order of seq, until they have `size` bytes; [] if there are none."""

    def api_keys(self) -> list[ApiKeyRow]:
        """All keys of tenants, revoked ones too. What start-up loads."""

    def limits(self) -> list[tuple[str, int]]:
        """The limits that were set while a server ran, by name. What start-up loads."""

    def resources(self) -> list[ResourceRow]:
        """All resources, in order of name. What start-up loads. StoreError CORRUPT where a session is missing."""

    def due_resources(self, until_ms: int, after: tuple[int, str] | None, limit: int) -> list[DueResource]:
        """At most `limit` resources that drivers are to release by then, in order of (time, name), behind `after`."""

    def list_resources(
        self, where: ResourceFilter, after: str, limit: int, examine: int
    ) -> tuple[list[ListedResource], str | None]:
        """At most `limit` resources with name > after, in order of name, among the next `examine` of the tenant, tree
        or session; and the name behind which a list of what follows goes on, None if nothing does."""

    def owner_releases(self, tenant: str, owner: str, after: str, limit: int) -> list[OwnerRelease]:
        """At most `limit` resources that this host is to release, with name > after, in order of name."""

    def owner_mail(
        self, tenant: str, owner: str, after: tuple[int, int] | None, examine: int
    ) -> tuple[set[bytes], tuple[int, int] | None]:
        """Of the next `examine` QUEUED messages of the tenant that make their sessions runnable, now or later, in order
        of (time, sequence), behind `after`: the sessions whose latest turn this host began; and what the next look goes
        on behind, None if there is no more."""

    def mailboxes(self, owner: str, sessions: Sequence[bytes], now_ms: int) -> list[OwnerMail]:
        """The mailboxes of those of these sessions that are OPEN, run no turn, whose latest turn this host began, and
        that have QUEUED messages that make them runnable, now or later. What has expired by now is none."""

    def known_resources(self, names: Sequence[str]) -> set[str]:
        """Those of these names that a resource has."""

    def sizes(self) -> dict[str, int]:
        """Bytes of the store's files, by name ("store_bytes", "wal_bytes", "reserve_bytes")."""

    def close(self) -> None:
        """Checkpoint and release the store."""
