"""RestoreSessions: sessions made again from their dumps, one at a time, in steps that the engine journals.

A dump is read twice: whole and verified first, so that a damaged one changes nothing (I22), then row by row. In memory
is a part of the dump and what one step brings, whatever the size of the session. What breaks off in between is deleted
by clean-up, here or after the next start, for no step follows on it any more.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from google.rpc import error_details_pb2, status_pb2

from roost._core import failpoint, request_hash, tenant_uid
from roost.handlers.cold import is_restoring
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.manifest import Manifest
from roost.handlers.dump.names import check_dump
from roost.handlers.dump.reader import (
    DumpedMail,
    DumpedRecord,
    DumpedSession,
    DumpedTrajectory,
    read_rows,
    read_session,
    verify_dump,
)
from roost.handlers.dump.target import Target
from roost.handlers.errors import Refused, invalid, parse, refused
from roost.handlers.reload import Read, read_one
from roost.store.base import RecordRow, SessionRow, Store
from roost.store.v1.store_pb2 import SessionFacts
from roost.v1 import trajectory_service_pb2 as pb
from roost.v1 import types_pb2

if TYPE_CHECKING:
    from roost._core import Engine, Refusal

MOST_NAMES: Final = 100
STEP_RECORDS: Final = 256  # what one step brings at most; a record longer than STEP_BYTES is a step of its own
STEP_BYTES: Final = 4 << 20
STEP_TRAJECTORIES: Final = 1_000
MOST_REQUEST_ID: Final = 128

# Where a crash test may kill the process.
FAILPOINTS: Final = tuple(f"restore.{step}.{when}" for step in ("begin", "rows", "end") for when in ("before", "after"))

_REASONS: Final = {
    Why.NOT_FOUND: "DUMP_NOT_FOUND",
    Why.DAMAGED: "DUMP_DAMAGED",
    Why.CORRUPT: "DUMP_DAMAGED",
    Why.NEWER: "DUMP_NEWER",
}

log = structlog.get_logger("roost.restore")

Mark = tuple[str, bytes]  # a request_id and its hash
End = tuple[int, int, int, list[int], int, bytes, Mark | None]  # as the engine's step "restore" wants it


@dataclass
class _Sequences:
    """Where the records of a dump stood, and where they stand here: both grow."""

    then: array[int] = field(default_factory=lambda: array("q"))
    now: array[int] = field(default_factory=lambda: array("q"))

    def of(self, then: int) -> int:
        """Of a record, or 0; DumpError DAMAGED if there is none."""
        if then == 0:
            return 0
        at = bisect_left(self.then, then)
        if at == len(self.then) or self.then[at] != then:
            raise DumpError(Why.DAMAGED, "the dump is damaged: its session names a record that it does not hold")
        return self.now[at]

    def last_by(self, then: int) -> int:
        """Of the last record up to there; 0 if there is none."""
        at = bisect_right(self.then, then)
        return self.now[at - 1] if at else 0


@dataclass
class _Step:
    """What the next step brings."""

    records: list[tuple[RecordRow, float | None]] = field(default_factory=list)
    trajectories: list[DumpedTrajectory] = field(default_factory=list)
    mail: list[DumpedMail] = field(default_factory=list)
    size: int = 0

    def is_full(self, more: int) -> bool:
        """Whether it must go before this many bytes more."""
        many = len(self.trajectories) == STEP_TRAJECTORIES or STEP_RECORDS in (len(self.records), len(self.mail))
        return many or (self.size > 0 and self.size + more > STEP_BYTES)


class Restorer:
    """Restores sessions from one target; None: there is none.

    `read` runs a job on the reader thread; `settle` waits for what the engine answered to a step; `undo` has clean-up
    delete what a restore left. `live` has the uid of the session that is being restored. A call is given what names the
    caller's tenant, which raises Refused once the caller may not go on: it is asked before each session.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        target: Target | None,
        read: Read,
        settle: Callable[[Any], Awaitable[bytes | Refusal]],
        undo: Callable[[bytes], Awaitable[None]],
        live: set[bytes],
    ) -> None:
        self._engine = engine
        self._store = store
        self._target = target
        self._read = partial(read_one, read)
        self._settle = settle
        self._undo = undo
        self._live = live
        # One session at a time: what the store was seen not to know stays unknown, and memory is bounded.
        self._turn = asyncio.Lock()

    async def __call__(self, tenant_of: Callable[[], str], data: bytes) -> bytes:
        """Answer RestoreSessions, encoded. Raises Refused."""
        tenant = tenant_of()
        request = parse(self._engine, pb.RestoreSessionsRequest, data)
        self._check(request)
        if self._target is None:
            raise refused(self._engine, "NO_DUMP_TARGET", "the server has no dump target to restore from")
        mark = self._mark(request)
        results: dict[str, pb.RestoreResult] = {}
        for name in await self._in_order(self._target, tenant, list(request.dump_names), results):
            async with self._turn:
                results[name] = await self._result(self._target, tenant_of(), name, mark)
        response = pb.RestoreSessionsResponse(results=[results[name] for name in request.dump_names])
        return response.SerializeToString()

    # -- the request

    def _check(self, request: pb.RestoreSessionsRequest) -> None:
        names = request.dump_names
        if not 0 < len(names) <= MOST_NAMES:
            rule = f"{len(names)} are given; from 1 to {MOST_NAMES} are allowed"
            raise invalid(self._engine, "dump_names", rule, size=len(names), limit=MOST_NAMES)
        try:
            sessions = {check_dump(name)[:2] for name in names}
        except DumpError as error:
            raise invalid(self._engine, "dump_names", str(error)) from None
        if len(sessions) != len(names):
            raise invalid(self._engine, "dump_names", "two are of one session: name the one that is to come back")
        request_id = request.request_id
        if len(request_id) > MOST_REQUEST_ID or not all("!" <= c <= "~" for c in request_id):
            rule = "must be at most 128 printable ASCII characters without spaces"
            raise invalid(self._engine, "request_id", rule)

    def _mark(self, request: pb.RestoreSessionsRequest) -> Mark | None:
        if not request.request_id:
            return None
        payload = pb.RestoreSessionsRequest(dump_names=request.dump_names)
        return request.request_id, request_hash(payload.SerializeToString())

    async def _in_order(
        self, target: Target, tenant: str, names: list[str], results: dict[str, pb.RestoreResult]
    ) -> list[str]:
        """The names, parents before children; what cannot be read is refused at once."""
        if len(names) == 1:
            return names
        depths: dict[str, int] = {}
        for name in names:
            try:
                # A known one needs no place: it is answered without a look into its dump.
                _check_tenant(tenant, name)
                row = await self._row(tenant, name)
                depths[name] = row.depth if row is not None else (await read_session(target, name)).depth
            except (DumpError, Refused) as error:
                results[name] = self._refusal(error)
        return sorted(depths, key=depths.__getitem__)

    # -- one dump

    async def _result(self, target: Target, tenant: str, name: str, mark: Mark | None) -> pb.RestoreResult:
        """What became of a dump."""
        try:
            _check_tenant(tenant, name)
            row = await self._row(tenant, name)
            repeated = row is not None and self._is_repeat(row, mark)
            if row is None:
                row = await self._restored(target, tenant, name, mark)
            [session] = self._engine.describe([row])
            return pb.RestoreResult(session=types_pb2.Session.FromString(session), repeated=repeated)
        except (DumpError, Refused) as error:
            return self._refusal(error)
        except ValueError as error:  # the engine's: it names no content
            return self._refusal(DumpError(Why.DAMAGED, f"dump {name} is damaged: {error}"))

    def _is_repeat(self, row: SessionRow, mark: Mark | None) -> bool:
        """True for what this very request has made; Refused for whatever else is known."""
        if is_restoring(row.cleanup):
            message = f"session {row.session_id!r} is being restored"
            raise refused(self._engine, "SESSION_RESTORING", message, session_id=row.session_id)
        made = SessionFacts.FromString(row.facts).restore_request
        if mark is not None and made.request_id == mark[0]:
            if made.hash != mark[1]:
                message = f"request_id {mark[0]!r} was used with another payload"
                raise refused(self._engine, "REQUEST_MISMATCH", message, request_id=mark[0])
            return True
        raise refused(self._engine, "SESSION_EXISTS", f"session {row.session_id!r} is known", session_id=row.session_id)

    async def _restored(self, target: Target, tenant: str, name: str, mark: Mark | None) -> SessionRow:
        """Restore a session that is not known. What it leaves where it fails is deleted."""
        manifest = await verify_dump(target, name)
        uid = _uid(name)
        self._live.add(uid)
        begun = False
        try:
            sequences, facts, step = _Sequences(), SessionFacts(), _Step()
            row: SessionRow | None = None
            async for dumped in read_rows(target, name):
                if isinstance(dumped, DumpedSession):
                    if await self._read(partial(self._store.session_by_uid, uid)) is not None:
                        # Roost has not written of another tenant's session that it is this one's.
                        raise DumpError(Why.DAMAGED, f"dump {name} is damaged: its session cannot be")
                    parent = await self._parent(tenant, dumped)
                    begun = True
                    row = await self._begin(tenant, dumped, parent)
                    facts.ParseFromString(dumped.facts)
                    continue
                assert row is not None  # the session's line is the first
                size = _size(dumped)
                if step.is_full(size):
                    row = await self._take(row, step, sequences)
                    step = _Step()
                if isinstance(dumped, DumpedRecord):
                    step.records.append((dumped.row, dumped.reward))
                    step.size += size
                    continue
                if isinstance(dumped, DumpedMail):
                    step.mail.append(dumped)
                    step.size += size
                    continue
                if step.records:  # their sequences are known once they are there
                    row = await self._take(row, step, sequences)
                    step = _Step()
                after, ready = sequences.of(dumped.after_seq), sequences.of(dumped.ready_seq)
                step.trajectories.append(dumped._replace(after_seq=after, ready_seq=ready))
            assert row is not None
            if step.records:
                row = await self._take(row, step, sequences)
                step = _Step()
            row = await self._take(row, step, sequences, _end(facts, sequences, manifest, mark))
            begun = False
        finally:
            self._live.discard(uid)
            if begun and not _is_cancelled():
                await self._undone(uid)
        log.info("session_restored", session=row.session_id, name=name, records=len(sequences.now))
        return row

    async def _undone(self, uid: bytes) -> None:
        """Have deleted what there is. What cannot be now, clean-up deletes later."""
        try:
            await self._undo(uid)
        except Exception:
            log.exception("restore_not_undone", uid=uid.hex())

    async def _parent(self, tenant: str, session: DumpedSession) -> str:
        """The id of the session that one goes below: the very parent that it had; "" for a root."""
        if not session.parent:
            return ""
        parent: SessionRow | None = await self._read(partial(self._store.session_by_uid, session.parent))
        if parent is None or parent.tenant != tenant or is_restoring(parent.cleanup):
            message = f"the parent of session {session.session_id!r} is not known: restore its dump as well"
            raise refused(self._engine, "PARENT_NOT_FOUND", message, session_id=session.session_id)
        above, _, _ = session.path.rpartition("/")
        if (parent.root, parent.path, parent.depth + 1) != (session.root, above, session.depth):
            raise DumpError(Why.DAMAGED, "the dump is damaged: its session is not where its parent is")
        return parent.session_id

    async def _begin(self, tenant: str, session: DumpedSession, parent: str) -> SessionRow:
        """Make the row. Whoever reads it from now on is told that it is being restored."""
        failpoint("restore.begin.before")
        self._done(await self._settle(self._engine.restore_session(tenant, session, parent)))
        failpoint("restore.begin.after")
        return await self._found(session.uid)

    async def _take(self, row: SessionRow, step: _Step, sequences: _Sequences, end: End | None = None) -> SessionRow:
        """Take a step; the row that it leaves."""
        name = "restore.end" if end else "restore.rows"
        failpoint(f"{name}.before")
        made = ("restore", step.records, step.trajectories, step.mail, end)
        arguments = (row.tenant, row.session_id, row.uid, row.root, row.seq, made)
        self._done(await self._settle(self._engine.cleanup_step(*arguments)))
        failpoint(f"{name}.after")
        row = await self._found(row.uid)
        sequences.then.extend(record.seq for record, _ in step.records)
        sequences.now.extend(range(row.last + 1 - len(step.records), row.last + 1))
        return row

    def _done(self, answer: bytes | Refusal) -> None:
        if type(answer) is tuple:
            raise Refused(answer)
        if answer != b"done":
            raise refused(self._engine, "INTERNAL_ERROR", "the session was changed while it was restored")

    # -- reads

    async def _row(self, tenant: str, name: str) -> SessionRow | None:
        """The session of a dump's name, if it is known to the tenant."""
        row: SessionRow | None = await self._read(partial(self._store.session_by_uid, _uid(name)))
        return row if row is not None and row.tenant == tenant else None

    async def _found(self, uid: bytes) -> SessionRow:
        row: SessionRow | None = await self._read(partial(self._store.session_by_uid, uid))
        if row is None:
            raise refused(self._engine, "INTERNAL_ERROR", "the session is gone while it was restored")
        return row

    # -- refusals

    def _refusal(self, error: DumpError | Refused) -> pb.RestoreResult:
        if isinstance(error, DumpError):
            reason = _REASONS.get(error.why, "DUMP_UNREADABLE")
            error = refused(self._engine, reason, str(error), detail=error.why)
        code, message, details = error.refusal
        refusal = types_pb2.Refusal(code=code, message=message)
        for detail in status_pb2.Status.FromString(details).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                refusal.reason = info.reason
                refusal.metadata.update(info.metadata)
        return pb.RestoreResult(refusal=refusal)


def _end(facts: SessionFacts, sequences: _Sequences, manifest: Manifest, mark: Mark | None) -> End:
    """The last step: what the session's facts name, as it is here."""
    return (
        sequences.of(facts.state_seq),
        sequences.of(facts.head_seq),
        sequences.of(facts.trajectory_seq),
        [sequences.last_by(receipt.close_seq) for receipt in facts.past_receipts],
        manifest.stored_bytes,
        bytes.fromhex(manifest.sha256),
        mark,
    )


def _check_tenant(tenant: str, name: str) -> None:
    """DumpError NOT_FOUND for the name of another tenant's dump: it does not exist (I17)."""
    if check_dump(name)[0] != tenant_uid(tenant):
        raise DumpError(Why.NOT_FOUND, f"there is no dump {name}")


def _is_cancelled() -> bool:
    """Whether the caller is gone: nothing may be waited for any more."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _uid(name: str) -> bytes:
    return bytes.fromhex(check_dump(name)[1].replace("-", ""))


def _size(dumped: DumpedRecord | DumpedTrajectory | DumpedMail) -> int:
    """Bytes of its columns that may be long."""
    columns: tuple[bytes | None, ...] = ()
    if isinstance(dumped, DumpedRecord):
        row = dumped.row
        columns = (row.meta, row.tokens, row.state, row.arrays, row.content)
    elif isinstance(dumped, DumpedMail):
        columns = (dumped.meta, dumped.content)
    return sum(len(column) for column in columns if column)
