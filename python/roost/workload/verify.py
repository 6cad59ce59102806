"""Compares what a server exports with what was played: byte for byte, and turn by turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.errors import RoostError
from roost.v1 import types_pb2 as types
from roost.workload.fates import Fates, partial
from roost.workload.transcripts import Conversation, join

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from roost.client import AsyncClient

TURN_LABEL = "replay-turn"  # which turn of the file a record is, written with it
CHUNK = 100  # sessions one ExportTrajectories asks for: a broken stream repeats little
STREAM_TRIES = 20


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was played. `turn` 0: the session as a whole."""

    session_id: str
    turn: int
    what: str

    def __str__(self) -> str:
        where = f"session {self.session_id}" + (f", turn {self.turn}" if self.turn else "")
        return f"{where}: {self.what}"


@dataclass
class Verdict:
    """What a verification found. `lost`: turns that were acknowledged and are not there; `duplicated`: turns that are
    there more than once."""

    sessions: int = 0
    turns: int = 0
    bytes: int = 0
    lost: int = 0
    duplicated: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if everything is as it was played."""
        return not (self.lost or self.duplicated or self.differences)


async def verify(
    client: AsyncClient,
    played: Sequence[tuple[str, Conversation]],
    on_session: Callable[[], None] = lambda: None,
    fates: Fates = Fates(),  # noqa: B008 - it is frozen
) -> Verdict:
    """Export the sessions (id, conversation) and compare. A stream that a restart of the server breaks is taken up
    again at the session it broke in. Raises what the last try raised if that does not help."""
    verdict = Verdict()
    wanted = dict(played)
    left = [session_id for session_id, _ in played]
    failures = 0
    while left:
        try:
            async for session_id, records in _export(client, left[:CHUNK]):
                compare(session_id, wanted[session_id], records, verdict, fates.given_up(wanted[session_id]))
                left.remove(session_id)
                on_session()
                failures = 0
        except RoostError as error:
            failures += 1
            # What Roost itself refuses (a session it does not know, or holds corrupt) is a result, not a bad line.
            if error.code.name in ("NOT_FOUND", "DATA_LOSS"):
                lost = error.metadata.get("session_id", "")
                if lost not in left:
                    raise
                left.remove(lost)
                verdict.lost += len(wanted[lost].turns)
                verdict.differences.append(Difference(lost, 0, str(error)))
            elif failures >= STREAM_TRIES:
                raise
    return verdict


async def _export(client: AsyncClient, session_ids: list[str]) -> AsyncIterator[tuple[str, list[types.Record]]]:
    """Each session with all its records, whatever trajectories they were finished into."""
    records: list[types.Record] = []
    session_id = ""
    async for part in client.export_trajectories(session_ids, selection="all"):
        if session_id and part.session_id != session_id:
            yield session_id, records
            records = []
        session_id = part.session_id
        records.extend(part.records)
    if session_id:
        yield session_id, records


def compare(
    session_id: str,
    conversation: Conversation,
    records: Iterable[types.Record],
    verdict: Verdict,
    given_up: int = 0,
) -> None:
    """Compare one session's exported records with its conversation, up to the turn with which it was given up; adds to
    the verdict. A turn that was given up is there as one ABORTED record, at the end."""
    verdict.sessions += 1
    records = list(records)
    committed = [r for r in records if r.status == types.RECORD_STATUS_COMMITTED]
    verdict.turns += len(committed)
    seen = Counter(r.record.labels.get(TURN_LABEL, "") for r in committed)
    turns = conversation.turns[: given_up - 1] if given_up else conversation.turns
    messages = conversation.messages if turns == conversation.turns else join(turns)
    want = {str(number) for number in range(1, len(turns) + 1)}
    lost, twice = want - seen.keys(), {key: n for key, n in seen.items() if n > 1}
    verdict.lost += len(lost)
    verdict.duplicated += sum(n - 1 for n in twice.values())
    found = [Difference(session_id, int(key), "lost") for key in sorted(lost, key=int)]
    found += [Difference(session_id, int(key or 0), f"recorded {n} times") for key, n in twice.items()]
    found += [Difference(session_id, 0, f"a record bears the label {key!r}") for key in seen.keys() - want]
    for place, record in enumerate(committed, 1):
        if record.turn != place:
            found.append(Difference(session_id, place, f"has the number {record.turn}"))
            break
    found += _tail(session_id, conversation, records, len(committed), given_up)
    exported = [r.record.content for r in committed]
    for number, (got, expected) in enumerate(zip(exported, turns, strict=False), 1):
        if got != expected:
            at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), "the end")
            sizes = f"{len(got)} bytes exported, {len(expected)} in the file"
            found.append(Difference(session_id, number, f"differs from byte {at} on ({sizes})"))
            break
    # The claim itself: the exported messages array against the bytes of the file. What is above says where.
    try:
        whole = join(exported)
    except ValueError as error:
        whole = b""
        found.append(Difference(session_id, 0, str(error)))
    if whole != messages and not found:
        found.append(Difference(session_id, 0, f"{len(exported)} turns exported, {len(turns)} in the file"))
    verdict.bytes += len(whole)
    verdict.differences.extend(found)


def _tail(
    session_id: str, conversation: Conversation, records: list[types.Record], committed: int, given_up: int
) -> list[Difference]:
    """What is wrong with the ABORTED records: there is one, the turn that was given up, or none."""
    others = [(place, r) for place, r in enumerate(records) if r.status == types.RECORD_STATUS_ABORTED]
    if not given_up:
        return [Difference(session_id, r.turn, "was not given up, and is aborted") for _, r in others]
    if len(others) != 1:
        return [Difference(session_id, given_up, f"was given up, and left {len(others)} records")]
    place, record = others[0]
    expected = (committed, given_up, types.RECORD_STATUS_ABORTED, partial(conversation.turns[given_up - 1]))
    if (place, record.turn, record.status, record.record.content) != expected:
        return [Difference(session_id, given_up, "was given up, and its record is not what it left")]
    return []
