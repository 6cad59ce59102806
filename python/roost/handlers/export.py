"""ExportTrajectories: trajectories one after the other, each verified, in parts, as records or as rows of tokens.

What a trajectory holds is fixed in one short read when it is reached; payloads are paged after that.
"""

from __future__ import annotations

import time
import uuid
from bisect import bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Final

from roost._core import Rows
from roost.handlers.cold import NOTHING_YET, PAGE_BYTES, READ_AHEAD, Cold, Dress, Follow, Step, is_purging
from roost.handlers.errors import Refused, invalid, parse, refused
from roost.handlers.paging import tree_of
from roost.handlers.wire import field, repeated
from roost.store.base import ReadyFilter, RecordLine, SessionFilter, SessionRow, TrajectoryRow
from roost.v1 import trajectory_service_pb2 as pb
from roost.v1 import types_pb2

MAX_IDS: Final = 1_000
_PAGE: Final = 100
_LARGEST: Final = (1 << 63) - 1
_LAST: Final = b"\x20\x01"  # ExportTrajectoriesResponse.last = true
_COMMITTED: Final = types_pb2.RECORD_STATUS_COMMITTED
_ABORTED: Final = types_pb2.RECORD_STATUS_ABORTED
_SUPERSEDED: Final = types_pb2.RECORD_STATUS_SUPERSEDED

Request = pb.ExportTrajectoriesRequest


class Verified:
    """A session whose records were verified, and what its trajectories share."""

    def __init__(self, cold: Cold, row: SessionRow, lines: list[RecordLine]) -> None:
        """`lines` as `Cold.verified` gives them: newest first."""
        self.row = row
        self.newest = lines[0].seq if lines else 0
        self._cold = cold
        self._lines = cold.records(lines)
        self._seqs = [line.seq for line in self._lines]
        self._rewards: dict[int, float] | None = None
        self._context = Rows()
        self._folded = 0  # records whose tokens are in it

    def records(self, after: int, upto: int | None) -> list[RecordLine]:
        """Those with after < seq <= upto, oldest first."""
        end = len(self._seqs) if upto is None else bisect_right(self._seqs, upto)
        return self._lines[bisect_right(self._seqs, after) : end]

    def rewards(self) -> dict[int, float]:
        """Of all its records, by sequence. Those of a finished trajectory do not change any more."""
        if self._rewards is None:
            self._rewards = self._cold.store.read_rewards(self.row.uid)
        return self._rewards

    def context(self, after: int) -> Generator[None, None, Rows]:
        """Rows that go on behind the COMMITTED records up to `after`, a few records a step. What was folded for an
        earlier trajectory is not read again."""
        end = bisect_right(self._seqs, after)
        if end < self._folded:
            self._context, self._folded = Rows(), 0
        while self._folded < end:
            part = self._lines[self._folded : min(end, self._folded + READ_AHEAD)]
            lines = [line for line in part if line.status == _COMMITTED]
            found = self._cold.store.read_tokens([line.seq for line in lines])
            try:
                for line, (_, tokens) in zip(lines, found, strict=True):
                    self._context.context(line.meta, tokens or b"")
            except ValueError as error:
                raise self._cold.corrupt(self.row.session_id, error) from error
            self._folded += len(part)
            yield None
        return self._context.copy()


@dataclass(frozen=True)
class Part:
    """One trajectory to export: the records of a session with after < seq <= upto, finished or not."""

    session: Verified
    number: int
    after: int
    upto: int | None
    finished: TrajectoryRow | None
    first_turn: int


class Sessions:
    """Verified sessions. The last one is kept: its trajectories often follow each other."""

    def __init__(self, cold: Cold) -> None:
        self._cold = cold
        self._last: Verified | None = None

    def of(self, row: SessionRow) -> Generator[Step, None, Verified]:
        """A session as it is now."""
        row, lines = yield from self._cold.verified(row)
        self._last = Verified(self._cold, row, lines)
        return self._last

    def at(self, trajectory: TrajectoryRow) -> Generator[Step, None, Verified | None]:
        """The session of a finished trajectory, at least as new as that; None if it was purged."""
        last = self._last
        if last is not None and last.row.uid == trajectory.session and last.newest >= trajectory.ready_seq:
            return last
        found = self._cold.store.record_lines(trajectory.session, 0)
        if found is None or is_purging(found[0].cleanup) or not self._cold.reaches(found[0]):
            return None
        return (yield from self.of(found[0]))


def export_trajectories(cold: Cold, data: bytes) -> Iterator[Step]:
    """Stream trajectories. What the request names is checked before the first part."""
    request = parse(cold.engine, Request, data)
    _check(cold, request)
    if request.trajectory_ids:
        parts = _named(cold, request)
    elif request.selection == pb.TRAJECTORY_SELECTION_ALL:
        parts = _all(cold, request)
    else:
        parts = _ready(cold, request)
    sent = 0
    for part in parts:
        if not isinstance(part, Part):
            yield part
            continue
        yield from _concat(cold, request, part) if _wants_rows(request) else _individual(cold, request, part)
        sent += 1
        if sent == request.limit:
            return


def _wants_rows(request: Request) -> bool:
    return request.style == pb.EXPORT_STYLE_CONCAT


def _check(cold: Cold, request: Request) -> None:
    """Rules that need no look at the store."""
    engine = cold.engine
    for name in ("session_ids", "trajectory_ids"):
        count = len(getattr(request, name))
        if count > MAX_IDS:
            rule = f"{count} are given; at most {MAX_IDS} are allowed"
            raise invalid(engine, name, rule, size=count, limit=MAX_IDS)
    for name, values in (("selection", pb.TrajectorySelection.values()), ("style", pb.ExportStyle.values())):
        if getattr(request, name) not in values:
            rule = f"{getattr(request, name)} is not a value of this enum"
            raise invalid(engine, name, rule, value=getattr(request, name))
    apart = [("session_ids", "root_session_id")]
    apart += [("trajectory_ids", name) for name in ("session_ids", "root_session_id", "selection", "follow")]
    apart += [("trajectory_ids", "after_sequence")]
    for one, other in apart:
        if getattr(request, one) and getattr(request, other):
            raise invalid(engine, other, f"cannot go together with {one}")
    if request.selection == pb.TRAJECTORY_SELECTION_ALL:
        for name in ("follow", "after_sequence"):
            if getattr(request, name):
                raise invalid(engine, name, "cannot go together with the selection ALL")
    if request.omit_payload and _wants_rows(request):
        raise invalid(engine, "omit_payload", "rows are payload: it cannot go together with the style CONCAT")
    if request.after_sequence > _LARGEST:
        raise invalid(engine, "after_sequence", "is larger than any sequence", limit=_LARGEST)
    if not (isfinite(_discount(request)) and 0 <= _discount(request) <= 1):
        raise invalid(engine, "discount", "must be from 0 to 1")


def _discount(request: Request) -> float:
    return request.discount if request.HasField("discount") else 1.0


# -- which trajectories


def _root(cold: Cold, request: Request) -> bytes | None:
    """The uid of the tree that the request names."""
    return tree_of(cold, request.root_session_id, outline=False)


def _sessions(cold: Cold, request: Request) -> Generator[Step, None, list[SessionRow]]:
    """The sessions that the request names, in its order."""
    rows: list[SessionRow] = []
    for session_id in request.session_ids:
        rows.append(cold.session(session_id, "session_ids"))
        if len(rows) % _PAGE == 0:
            yield NOTHING_YET
    return rows


def _ready(cold: Cold, request: Request) -> Iterator[Part | Step]:
    """What is READY and not acknowledged, in that order; what becomes READY meanwhile only to who follows."""
    rows = yield from _sessions(cold, request)
    sessions = tuple(row.uid for row in rows) if request.session_ids else None
    where = ReadyFilter(cold.tenant, _root(cold, request), sessions)
    verified = Sessions(cold)
    after = request.after_sequence
    newest = cold.store.last_ready(cold.tenant)
    while True:
        # Before the read, so that what becomes READY during it is not waited for in vain.
        seen = cold.engine.ready_sequence()
        page = cold.store.ready_trajectories(where, after, _PAGE)
        for trajectory in page:
            after = trajectory.ready_seq
            if after > newest and not request.follow:
                return
            part = yield from _finished(verified, trajectory)
            if part is not None:
                yield part
        if len(page) == _PAGE:
            yield NOTHING_YET
        elif request.follow:
            yield Follow(seen)
        else:
            return


def _named(cold: Cold, request: Request) -> Iterator[Part | Step]:
    """The trajectories of these ids, in their order."""
    keys = [_key(cold, trajectory_id) for trajectory_id in request.trajectory_ids]
    found = cold.store.read_trajectories(keys)
    for trajectory_id, row in zip(request.trajectory_ids, found, strict=True):
        if row is None or row.tenant != cold.tenant or not _reached(cold, row):
            raise _not_found(cold, trajectory_id)
    yield NOTHING_YET
    verified = Sessions(cold)
    for row in found:
        assert row is not None
        part = yield from _finished(verified, row)
        if part is None:
            raise _not_found(cold, _id(row.session, row.number))
        yield part


def _reached(cold: Cold, trajectory: TrajectoryRow) -> bool:
    """Whether the caller reaches the session of a trajectory: told before anything is sent, as for one there is not."""
    if cold.reach is None:
        return True
    found = cold.store.record_lines(trajectory.session, 0)
    return found is not None and cold.reaches(found[0])


def _all(cold: Cold, request: Request) -> Iterator[Part | Step]:
    """Every trajectory of each session, the active one last."""
    verified = Sessions(cold)
    for row in _every(cold, request):
        if not isinstance(row, SessionRow):
            yield row
            continue
        session = yield from verified.of(row)
        row, newest = session.row, session.newest
        # What was finished since the list of records was read is not finished in this export.
        done = [t for t in cold.store.session_trajectories(row.uid) if t.ready_seq <= max(newest, row.last)]
        yield from (_part(session, trajectory) for trajectory in done)
        after = done[-1].ready_seq if done else 0
        if newest > after or not done:
            turns = done[-1].first_turn + done[-1].turn_count - 1 if done else 0
            yield Part(session, len(done) + 1, after, None, None, turns + 1)


def _every(cold: Cold, request: Request) -> Iterator[SessionRow | Step]:
    """The sessions to export, in order."""
    if request.session_ids:
        yield from (yield from _sessions(cold, request))
        return
    # What is opened while the export runs is not part of it; else a busy server would never finish one.
    started_ms = time.time_ns() // 1_000_000
    where = SessionFilter(tenant=cold.tenant, root=_root(cold, request))
    after = b""
    while rows := cold.store.list_sessions(where, after, _PAGE):
        yield NOTHING_YET
        wanted = (row for row in rows if row.create_ms <= started_ms and not is_purging(row.cleanup))
        yield from (row for row in wanted if cold.reaches(row))
        after = rows[-1].uid


def _finished(verified: Sessions, trajectory: TrajectoryRow) -> Generator[Step, None, Part | None]:
    found = yield from verified.at(trajectory)
    return None if found is None else _part(found, trajectory)


def _part(session: Verified, t: TrajectoryRow) -> Part:
    return Part(session, t.number, t.after_seq, t.ready_seq, t, t.first_turn)


def _id(uid: bytes, number: int) -> str:
    return f"{uuid.UUID(bytes=uid)}-{number}"


def _key(cold: Cold, trajectory_id: str) -> tuple[bytes, int]:
    """The session and number that an id names; Refused INVALID_FIELD if it names none."""
    uid, _, number = trajectory_id.rpartition("-")
    try:
        key = uuid.UUID(uid).bytes, int(number)
    except ValueError:
        key = b"", 0
    if not 0 < key[1] < 1 << 32 or _id(*key) != trajectory_id:
        raise invalid(cold.engine, "trajectory_ids", "is not the id of a trajectory")
    return key


def _not_found(cold: Cold, trajectory_id: str) -> Refused:
    message = f"no finished trajectory {trajectory_id} is known"
    return refused(cold.engine, "TRAJECTORY_NOT_FOUND", message, trajectory_id=trajectory_id)


# -- what of each


def _chosen(part: Part, statuses: frozenset[int]) -> list[RecordLine]:
    """The records of a trajectory with one of these statuses, and the ABORTED one at its tail."""
    records = part.session.records(part.after, part.upto)
    live = [line for line in records if line.status != _SUPERSEDED]
    tail = live[-1].seq if live and live[-1].status == _ABORTED else 0
    return [line for line in records if line.status in statuses or line.seq == tail]


def _discounted(lines: list[RecordLine], rewards: dict[int, float], discount: float) -> dict[int, float]:
    """r[i] += discount * r[i+1], backward once through the COMMITTED records."""
    found: dict[int, float] = {}
    after = 0.0
    for line in reversed(lines):
        if line.status == _COMMITTED:
            after = found[line.seq] = rewards.get(line.seq, 0.0) + discount * after
    return found


def _head(cold: Cold, part: Part) -> bytes:
    """The fields that a trajectory's first part alone bears."""
    row = part.session.row
    try:
        session = cold.engine.describe([row])[0]
    except ValueError as error:
        raise cold.corrupt(row.session_id, error) from error
    trajectory = pb.Trajectory(
        trajectory_id=_id(row.uid, part.number),
        session_id=row.session_id,
        number=part.number,
        state=pb.TRAJECTORY_STATE_ACTIVE,
        first_turn=part.first_turn,
        turn_count=sum(line.status == _COMMITTED for line in part.session.records(part.after, part.upto)),
    )
    if part.finished is not None:
        acknowledged = part.finished.ack_ms > 0
        trajectory.state = pb.TRAJECTORY_STATE_ACKNOWLEDGED if acknowledged else pb.TRAJECTORY_STATE_READY
        trajectory.ready_sequence = part.finished.ready_seq
        trajectory.ready_time.FromMilliseconds(part.finished.ready_ms)
    return field(1, session) + field(5, trajectory.SerializeToString())


def _send(head: bytes, name: bytes, bodies: Iterator[bytes | None]) -> Iterator[Step]:
    """Parts from bodies: the first bears the head, the last says so. None where a step ends without a body."""
    held: bytes | None = None  # a part is sent once it is known whether another follows
    for body in bodies:
        if body is None:
            yield NOTHING_YET
            continue
        if held is not None:
            yield held
        held = head + name + body
        head = b""
    yield (head + name if held is None else held) + _LAST


def _individual(cold: Cold, request: Request, part: Part) -> Iterator[Step]:
    """The parts of a trajectory as records."""
    statuses = {_COMMITTED}
    if request.include_provisional:
        statuses |= {types_pb2.RECORD_STATUS_PROVISIONAL, _ABORTED}
    if request.include_superseded:
        statuses.add(_SUPERSEDED)
    lines = _chosen(part, frozenset(statuses))
    rewards, name = part.session.rewards(), part.session.row.session_id
    dress = Dress(request.omit_payload, rewards, _discounted(lines, rewards, _discount(request)), exported=True)

    def bodies() -> Iterator[bytes | None]:
        if part.after and not request.omit_payload:
            rows = yield from part.session.context(part.after)
            yield from (field(7, span) for span in iter(map(rows.context_part, count()).__next__, None))
            del rows
        for page in cold.pages(name, lines, dress):
            yield repeated(3, page)

    yield from _send(_head(cold, part), field(2, name.encode()), bodies())


def _concat(cold: Cold, request: Request, part: Part) -> Iterator[Step]:
    """The parts of a trajectory as rows of tokens."""
    lines = _chosen(part, frozenset((_COMMITTED,)))
    discounted = _discounted(lines, part.session.rewards(), _discount(request))
    name = part.session.row.session_id

    def bodies() -> Iterator[bytes | None]:
        rows = yield from part.session.context(part.after)
        ahead = 4
        at = size = 0
        while at < len(lines):
            page = cold.rows(lines[at : at + ahead])
            at += len(page)
            for row in page:
                try:
                    rows.push(row, discounted.get(row.seq), row.status == _COMMITTED)
                except ValueError as error:
                    raise cold.corrupt(name, error) from error
                size += sum(len(column) for column in row[6:] if column is not None)
                # A row that this record ended is taken before the next one comes: it may be as long as a checkpoint.
                yield from (field(6, one) for one in iter(rows.part, None))
            ahead = max(1, min(READ_AHEAD, PAGE_BYTES * at // size)) if size else READ_AHEAD
            yield None
        rows.finish()
        yield from (field(6, one) for one in iter(rows.part, None))

    yield from _send(_head(cold, part), field(2, name.encode()), bodies())
