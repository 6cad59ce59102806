"""What the turns of one session should do, written as plainly as can be: no journal, no residency, no concurrency.

The state machine of test_turn_machine.py compares a real server with it. An operation returns what the answer should
say, or raises `Refuses` with the reason of the refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

MAX_REWIND = 8
FOREIGN = 0  # the fence that stands for a lease of another session


class Refuses(Exception):
    """The operation is refused, for this reason."""


@dataclass
class Entry:
    """One record of the history."""

    turn: int
    attempt: int
    status: str
    outcome: str
    fence: int
    trajectory: int
    content: bytes = b""
    offset: int = -1  # -1: the turn has no tokens
    tokens: tuple[int, ...] = ()
    state: bytes | None = None
    head_version: int = 0
    base_turn: int | None = None
    new_segment: bool = False
    reward: float | None = None
    ended_by: str = ""
    then: str = "idle"
    next_fence: int = 0
    next_refused: str = ""
    request_id: str = ""  # of its BeginTurn


@dataclass
class Grant:
    """The latest grant while it can still be committed."""

    fence: int
    turn: int
    attempt: int
    request_id: str
    running: bool = True
    interrupted: bool = False


@dataclass
class Trajectory:
    """One that is finished."""

    number: int
    first_turn: int
    entries: list[Entry]
    turns: list[Entry]
    acknowledged: bool = False


@dataclass
class Model:
    """One session and the clock it lives by (seconds)."""

    now: float = 0.0
    closed: bool = False
    entries: list[Entry] = field(default_factory=list)
    line: list[Entry] = field(default_factory=list)  # the live COMMITTED ones
    head_version: int = 0
    fence: int = 0
    grant: Grant | None = None
    provisional: Entry | None = None
    last_outcome: str = "NONE"
    trajectories: list[Trajectory] = field(default_factory=list)
    active: list[Entry] = field(default_factory=list)  # records of the active trajectory
    first: int = 1  # the first turn of the active trajectory
    due: float | None = None
    rewarded: tuple[int, float] | None = None
    interrupts: dict[str, tuple[str, int]] = field(default_factory=dict)
    folds: dict[int, tuple[tuple[int, ...], bytes]] = field(default_factory=lambda: {0: ((), b"")})
    rewound: int = 0

    # -- what is derived

    @property
    def running(self) -> bool:
        return self.grant is not None and self.grant.running

    def fold(self, turns: int | None = None) -> tuple[tuple[int, ...], bytes]:
        """Tokens and state after so many turns of the live line (I7)."""
        tokens: tuple[int, ...] = ()
        state = b""
        for entry in self.line[:turns]:
            if entry.offset >= 0:
                tokens = tokens[: entry.offset] + entry.tokens
            if entry.state is not None:
                state = entry.state
        return tokens, state

    # -- operations

    def begin(
        self, request_id: str, takeover: bool = False, turn: int | None = None, version: int | None = None
    ) -> tuple[Grant, bool]:
        """A grant, and whether it is the answer to a repeat."""
        self._open()
        if not self.running:
            self._finish_if_due()
        grant = self.grant
        if grant is not None and request_id and grant.request_id == request_id:
            if grant.running:
                return grant, True
            raise Refuses("TURN_ENDED")
        over = bool(request_id) and any(entry.request_id == request_id for entry in self.entries)
        if grant is not None and grant.running and not takeover:
            raise Refuses("TURN_ENDED" if over else "TURN_IN_PROGRESS")
        if turn not in (None, len(self.line) + 1) or version not in (None, self.head_version):
            raise Refuses("TURN_ENDED" if over else "TURN_MISMATCH")
        if over:
            raise Refuses("TURN_ENDED")
        if grant is not None and grant.running:
            outcome = "INTERRUPTED" if grant.interrupted else "EXPIRED"
            self._leave(grant, outcome, "takeover")
            self._finish_if_due()
        return self._grant(request_id), False

    def renew(self, fence: int) -> bool:
        """Whether an interrupt was asked for."""
        self._open()
        if self.grant is None or not self.running or self.grant.fence != fence:
            raise Refuses("LEASE_LOST")
        return self.grant.interrupted

    def commit(self, fence: int, made: Entry, max_trim: int = 0, completed: bool = False) -> dict[str, Any]:
        """`made` says what is to be committed."""
        grant = self._valid(fence, "commit")
        if isinstance(grant, Entry):
            return self._again(grant)
        base = None if made.base_turn is None or made.base_turn == len(self.line) else made.base_turn
        if base is not None:
            back = len(self.line) - base
            if back < 0 or base < self.first - 1 or back > MAX_REWIND:
                raise Refuses("REWIND_REFUSED")
        tokens, _ = self.fold(base)
        if made.offset >= 0:
            trimmed = len(tokens) - made.offset
            if trimmed < 0 or (trimmed > max_trim and not made.new_segment):
                raise Refuses("TOKEN_PREFIX_MISMATCH")
        attempt = grant.attempt if base is None else self._tries(base + 1) + 1
        refused = "" if made.then != "continue" else self._refuses_more(grant)
        if self.provisional is not None:
            self.provisional.status = "SUPERSEDED"
            self.provisional = None
        if base is not None:
            for entry in self.line[base:]:
                entry.status = "SUPERSEDED"
            del self.line[base:]
        self.head_version += 1
        if base is not None:
            self.rewound = self.head_version
            if self.rewarded is not None and self.rewarded[0] > base:
                self.rewarded = None
        outcome = "COMPLETED" if completed else "COMMITTED"
        entry = replace(
            made,
            turn=len(self.line) + 1,
            attempt=attempt,
            status="COMMITTED",
            outcome=outcome,
            fence=grant.fence,
            trajectory=len(self.trajectories) + 1,
            head_version=self.head_version,
            base_turn=base,
            ended_by="commit",
            request_id=grant.request_id,
        )
        self._append(entry)
        self.line.append(entry)
        self.folds[self.head_version] = self.fold()
        self.last_outcome, self.grant = outcome, None
        if self.due is not None and (self.due <= self.now or made.then == "close"):
            self._finish()
        answer: dict[str, Any] = {"turn": entry.turn, "head_version": self.head_version, "repeated": False}
        if made.then == "continue" and refused:
            answer["next_refused"] = entry.next_refused = refused
        elif made.then == "continue":
            answer["next"] = self._grant("")
            entry.next_fence = self.fence
        elif made.then == "close":
            self.closed, self.due = True, None
        return answer

    def abort(self, fence: int, made: Entry, final: bool = False) -> dict[str, Any]:
        grant = self._valid(fence, "abort")
        if isinstance(grant, Entry):
            return {"turn": grant.turn, "attempt": grant.attempt, "status": grant.status, "repeated": True}
        if made.offset > len(self.fold()[0]):
            raise Refuses("TOKEN_PREFIX_MISMATCH")
        outcome = "INTERRUPTED" if grant.interrupted else "FAILED" if final else "ABORTED"
        entry = self._leave(grant, outcome, "abort", made, final)
        self._finish_if_due()
        return {"turn": entry.turn, "attempt": entry.attempt, "status": entry.status, "repeated": False}

    def skip(self, seconds: float) -> None:
        """Time passes: longer than any lease."""
        self.now += seconds
        if self.grant is not None and self.grant.running:
            grant = self.grant
            self._leave(grant, "INTERRUPTED" if grant.interrupted else "EXPIRED", "expiry")
            # A late commit is accepted until a newer grant.
            self.grant = replace(grant, running=False)
        self._finish_if_due()

    def interrupt(self, request_id: str, force: bool = False) -> tuple[str, int]:
        self._open()
        if request_id in self.interrupts:
            return self.interrupts[request_id]
        grant = self.grant
        answer = ("RUNNING", grant.turn) if grant is not None and grant.running else ("IDLE", 0)
        self.interrupts = {request_id: answer} if request_id else self.interrupts
        if grant is not None and grant.running:
            grant.interrupted = True
            if force:
                self._leave(grant, "INTERRUPTED", "interrupt")
                self._finish_if_due()
        return answer

    def reward(self, turn: int, value: float, finish_after: float | None) -> tuple[int, bool]:
        """The turn that was rewarded, and whether its trajectory is READY."""
        self._open()
        head = len(self.line)
        wanted = turn or head
        if wanted > head:
            raise Refuses("TURN_NOT_FOUND")
        if wanted == 0 or wanted < self.first:
            if wanted and self.rewarded == (wanted, value):
                return wanted, True
            raise Refuses("TRAJECTORY_FINISHED" if turn else "TRAJECTORY_EMPTY")
        self.line[wanted - 1].reward = value
        self.rewarded = (wanted, value)
        if finish_after is not None:
            self.due = self.now + finish_after
            if not self.running:
                self._finish_if_due()
        return wanted, wanted < self.first

    def finish(self, value: float | None) -> Trajectory:
        self._open()
        if self.running:
            raise Refuses("TURN_IN_PROGRESS")
        if not self.active or (value is not None and len(self.line) < self.first):
            raise Refuses("TRAJECTORY_EMPTY")
        if value is not None:
            self.line[-1].reward = value
            self.rewarded = (len(self.line), value)
        return self._finish()

    def close(self) -> None:
        """Closing again is no error."""
        if self.closed:
            return
        if self.due is not None:
            self._finish()
        if self.provisional is not None:
            self.provisional.status = "ABORTED"
        self.closed, self.provisional, self.grant, self.due = True, None, None, None

    def exported(self, entries: list[Entry]) -> list[Entry]:
        """What an export holds of a trajectory: what is COMMITTED, and the ABORTED tail."""
        live = [entry for entry in entries if entry.status != "SUPERSEDED"]
        tail = live[-1] if live and live[-1].status == "ABORTED" else None
        return [entry for entry in entries if entry.status == "COMMITTED" or entry is tail]

    # -- inside

    def _open(self) -> None:
        if self.closed:
            raise Refuses("SESSION_CLOSED")

    def _grant(self, request_id: str) -> Grant:
        self.fence += 1
        turn = len(self.line) + 1
        self.grant = Grant(self.fence, turn, self._tries(turn) + 1, request_id)
        return self.grant

    def _tries(self, turn: int) -> int:
        """How often a turn of this number was tried."""
        return max((entry.attempt for entry in self.entries if entry.turn == turn), default=0)

    def _valid(self, fence: int, ended_by: str) -> Grant | Entry:
        """The grant of this fence if it can still end; the record it has made by the same call; or a refusal."""
        if fence == FOREIGN:
            raise Refuses("LEASE_LOST")
        if not self.closed and self.grant is not None and self.grant.fence == fence:
            return self.grant
        for entry in self.entries:
            if entry.fence == fence and entry.ended_by == ended_by:
                return entry
        raise Refuses("SESSION_CLOSED" if self.closed else "LEASE_LOST")

    def _again(self, entry: Entry) -> dict[str, Any]:
        answer: dict[str, Any] = {"turn": entry.turn, "head_version": entry.head_version, "repeated": True}
        if entry.then == "continue":
            if self.grant is not None and self.grant.running and entry.next_fence == self.grant.fence:
                answer["next"] = self.grant
            else:
                answer["next_refused"] = entry.next_refused or "TURN_ENDED"
        return answer

    def _refuses_more(self, grant: Grant) -> str:
        if not grant.running:
            return "LEASE_LOST"
        return "TURN_INTERRUPTED" if grant.interrupted else ""

    def _append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.active.append(entry)

    def _leave(
        self, grant: Grant, outcome: str, ended_by: str, made: Entry | None = None, final: bool = False
    ) -> Entry:
        if self.provisional is not None:
            self.provisional.status = "SUPERSEDED"
        entry = Entry(
            turn=grant.turn,
            attempt=grant.attempt,
            status="ABORTED" if final else "PROVISIONAL",
            outcome=outcome,
            fence=grant.fence,
            trajectory=len(self.trajectories) + 1,
            content=made.content if made else b"",
            offset=made.offset if made else -1,
            tokens=made.tokens if made else (),
            ended_by=ended_by,
            request_id=grant.request_id,
        )
        self._append(entry)
        self.provisional = None if final else entry
        self.last_outcome, self.grant = outcome, None
        return entry

    def _finish_if_due(self) -> None:
        if self.due is not None and self.due <= self.now and not self.running:
            self._finish()

    def _finish(self) -> Trajectory:
        if self.provisional is not None:
            self.provisional.status = "ABORTED"
            self.provisional = None
        if not self.running:
            self.grant = None
        made = Trajectory(len(self.trajectories) + 1, self.first, self.active, self.line[self.first - 1 :])
        self.trajectories.append(made)
        self.active, self.first, self.due = [], len(self.line) + 1, None
        return made
