"""What the cold handlers share: the engine, the store, and rows rendered as messages.

A cold handler runs on the reader thread. A unary one is a function from request bytes to reply bytes; a
streaming one is a generator of reply bytes whose every step is one short read, so that many interleave and no
read transaction outlives a page. A step that has nothing to send yet yields NOTHING_YET; one that has nothing to do
before something happens yields a Follow. Both raise `Refused`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from roost.handlers.errors import Refused, check_id, refused, session_not_found
from roost.store.base import FINISHED, RecordLine, RecordRow, SessionRow, Store
from roost.store.v1.store_pb2 import Cleanup

if TYPE_CHECKING:
    from roost._core import Engine
    from roost.handlers.reach import Reach

T = TypeVar("T")
PAGE_BYTES: Final = 1 << 20  # a reply message is closed once it is this long
PAGE_RECORDS: Final = 100
NOTHING_YET: Final = b""
KEY_INVALID: Final = 'no valid API key: send one as "authorization: Bearer <key>"'  # the engine's words
PAGE_LINES: Final = 256  # of the list of a session's records; what one step reads of it
READ_AHEAD: Final = 32  # records read at once; bounds memory where a page turns out longer than expected


@dataclass(frozen=True)
class Follow:
    """A stream waits until a count of the engine's is above this: of trajectories that became READY
    (`ready_sequence`), of events (`watch_count`), or of what an owner may be told (those, and `releases_count`). Where
    `look` is given, it goes on only if that finds something. It waits no longer than up to `until_ms` of the service
    clock."""

    seen: int
    what: Literal["ready", "events", "owner"] = "ready"
    look: Callable[[], bool] | None = None
    until_ms: int | None = None


Step = bytes | Follow


def is_purging(cleanup: bytes | None) -> bool:
    """Whether the content of a session whose row has this is not all there: deleted, in part or whole, or still being
    restored."""
    if cleanup is None:
        return False
    told = Cleanup.FromString(cleanup)
    return told.purging or told.restoring


def is_restoring(cleanup: bytes | None) -> bool:
    """Whether a session whose row has this is being made from its dump, or what is left of that is being deleted."""
    return cleanup is not None and Cleanup.FromString(cleanup).restoring


@dataclass(frozen=True)
class Dress:
    """What records show beside what their rows hold. Rewards by sequence of the record."""

    omit_payload: bool = False
    rewards: Mapping[int, float] = field(default_factory=dict)
    discounted: Mapping[int, float] = field(default_factory=dict)
    exported: bool = False  # their spans have loss masks: of zeros unless they are COMMITTED


@dataclass(frozen=True)
class Cold:
    """What a cold handler may use, for one caller."""

    engine: Engine
    store: Store
    tenant: str
    reach: Reach | None = None  # None: all of the tenant
    arrived_ms: int = 0  # by the engine's service clock: when the call came

    def step(self, step: Callable[[], T]) -> T:
        """Run one step of a handler, once it is clear what the caller reaches at that moment; Refused KEY_INVALID or
        SESSION_CLOSED where the session of its key is no more."""
        if self.reach is not None:
            why = self.reach.look(self.store, self.tenant)
            if why == "gone":
                raise refused(self.engine, "KEY_INVALID", KEY_INVALID)
            if why == "ended":
                name = self.reach.session_id
                raise refused(self.engine, "SESSION_CLOSED", f"session {name!r} has ended", session_id=name)
        return step()

    def reaches(self, row: SessionRow) -> bool:
        """Whether the caller reaches this session of its tenant."""
        return self.reach is None or self.reach.reaches(row)

    def sees(self, row: SessionRow) -> bool:
        """Whether the caller sees the outline of this session of its tenant."""
        return self.reach is None or self.reach.sees(row)

    def session(self, address: str, field: str = "session_id") -> SessionRow:
        """The row of the session that a field names, by id or by path; Refused INVALID_FIELD or SESSION_NOT_FOUND. What
        the caller may not see and what is not there are told alike: with the address as it came (I17)."""
        if "/" not in address:
            return self.by_id(address, field)
        refusal = self.engine.check_address(field, address, self.reach is not None)
        if refusal is not None:
            raise Refused(refusal)
        row = self._at_path(address)
        if row is None or not self.reaches(row):
            raise session_not_found(self.engine, address)
        return row

    def by_id(self, session_id: str, field: str, outline: bool = False) -> SessionRow:
        """As `session`, for a field that takes ids alone. `outline`: that the caller sees its outline is enough."""
        check_id(self.engine, field, session_id)
        row = self.store.read_session(self.tenant, session_id)
        seen = row is not None and (self.sees(row) if outline else self.reaches(row))
        if row is None or not seen:
            raise session_not_found(self.engine, session_id)
        return row

    def _at_path(self, address: str) -> SessionRow | None:
        """The row of an OPEN session by a path that is well formed."""
        root_id, _, names = address.partition("/")
        if self.reach is None:
            root = self.store.read_session(self.tenant, root_id)
            if root is None or root.root != root.uid:
                return None
            return self.store.read_path(root.uid, f"/{names}")
        if root_id == ".":
            return self.store.read_path(self.reach.root, f"{self.reach.path}/{names}")
        if root_id not in ("", self.reach.root_session_id):
            return None
        return self.store.read_path(self.reach.root, f"/{names}")

    def check_content(self, row: SessionRow) -> None:
        """Refused SESSION_RESTORING or SESSION_PURGED where not all of a session's content is there."""
        if is_restoring(row.cleanup):
            message = f"session {row.session_id!r} is being restored"
            raise refused(self.engine, "SESSION_RESTORING", message, session_id=row.session_id)
        if is_purging(row.cleanup):
            message = f"the content of session {row.session_id!r} is deleted"
            raise refused(self.engine, "SESSION_PURGED", message, session_id=row.session_id)

    def verified(self, row: SessionRow) -> Generator[Step, None, tuple[SessionRow, list[RecordLine]]]:
        """The session and the list of its records, newest first; SESSION_CORRUPT unless all of them are there as they
        were appended, payloads apart (I23). In steps: `row, lines = yield from cold.verified(row)`.

        The list is of one moment, that of the first step, statuses included: only a session's newest record can change
        its status without a rewind, and what a rewind since then has superseded follows from the records.
        """
        found = self.store.record_lines(row.uid, PAGE_LINES)
        if found is None:  # purged since its row was read
            raise session_not_found(self.engine, row.session_id)
        row, page = found
        self.check_content(row)
        lines = list(page)
        while len(page) == PAGE_LINES:
            yield NOTHING_YET
            page = self.store.older_lines(row.uid, lines[-1], PAGE_LINES)
            lines += page
        try:
            statuses = self.engine.verify_chain(lines, row.facts)
        except ValueError as error:
            raise self.corrupt(row.session_id, error) from error
        lines = [
            line if line.status == status else line._replace(status=status)
            for line, status in zip(lines, statuses, strict=True)
        ]
        if len(lines) > PAGE_LINES:
            yield NOTHING_YET
        return row, lines

    def records(self, lines: list[RecordLine]) -> list[RecordLine]:
        """The records of verified lines, oldest first, without the events among them."""
        return [line for line in reversed(lines) if line.status != FINISHED]

    def corrupt(self, session_id: str, error: ValueError) -> Refused:
        """DATA_LOSS for a session that does not verify. The engine's message names sequences, never content."""
        message = f"session {session_id!r} does not verify: {error}"
        return refused(self.engine, "SESSION_CORRUPT", message, session_id=session_id, detail=error)

    def pages(self, session_id: str, lines: list[RecordLine], dress: Dress) -> Iterator[list[bytes]]:
        """Encoded roost.v1.Record, at most PAGE_RECORDS or about PAGE_BYTES a page, one page a step.

        Statuses are those of `lines`, so that a long read tells of one moment.
        """
        page: list[bytes] = []
        size, at, ahead = 0, 0, 4
        while at < len(lines):
            part = lines[at : at + ahead]
            at += len(part)
            for encoded in self._records(session_id, part, dress):
                if page and size + len(encoded) > PAGE_BYTES:
                    yield page
                    page, size = [], 0
                page.append(encoded)
                size += len(encoded)
                if len(page) == PAGE_RECORDS:
                    yield page
                    page, size = [], 0
            # The next read is as long as records of this size fill a page.
            ahead = max(1, min(READ_AHEAD, PAGE_BYTES * len(page) // size)) if size else READ_AHEAD
        if page:
            yield page

    def rows(self, lines: list[RecordLine]) -> list[RecordRow]:
        """The records of these lines in full, with the lines' statuses."""
        rows = self.store.read_records([line.seq for line in lines])
        return [row._replace(status=line.status) for row, line in zip(rows, lines, strict=True)]

    def _records(self, session_id: str, lines: list[RecordLine], dress: Dress) -> list[bytes]:
        """Encode records; what does not match its digest is SESSION_CORRUPT."""
        try:
            if dress.omit_payload:
                rows = [RecordRow(*line[:6], None, None, None, None) for line in lines]
            else:
                rows = self.rows(lines)
            return [
                self.engine.describe_record(
                    row,
                    dress.omit_payload,
                    dress.exported,
                    dress.rewards.get(row.seq),
                    dress.discounted.get(row.seq),
                )
                for row in rows
            ]
        except ValueError as error:
            raise self.corrupt(session_id, error) from error
