"""WatchOwner: a host is told what others do to its turns and sessions, and what it is to do.

A stream begins with what is still to be done: turns to end, sessions with mail, resources to release. After that it
goes by the events that the engine keeps in memory, and asks the store what became due. It remembers what it has told; a
stream that breaks, or that has fallen behind the events, begins again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

from roost.handlers.cold import NOTHING_YET, Cold, Follow, Step
from roost.handlers.errors import invalid, parse
from roost.v1 import turn_service_pb2 as pb

if TYPE_CHECKING:
    from roost._core import Engine

PAGE: Final = 100  # resources and mailboxes that one step reads, events that it takes
EXAMINED: Final = 1_000  # messages that one step looks through for those of the host's sessions
REMEMBERED: Final = 10_000  # turns and sessions that a stream has told of before it begins again to forget old ones
_MOST: Final = 128  # characters of an owner


def owner_count(engine: Engine) -> int:
    """Grows whenever there may be something to tell a host."""
    return engine.watch_count() + engine.releases_count()


def watch_owner(cold: Cold, data: bytes) -> Iterator[Step]:
    """Stream what concerns this owner, each thing once."""
    owner = parse(cold.engine, pb.WatchOwnerRequest, data).owner
    if not owner:
        raise invalid(cold.engine, "owner", "must not be empty")
    if len(owner) > _MOST:
        rule = f"has {len(owner)} characters; at most {_MOST} are allowed"
        raise invalid(cold.engine, "owner", rule, size=len(owner), limit=_MOST)
    yield from _Stream(cold, owner).steps()


class _Stream:
    """What one stream has told."""

    def __init__(self, cold: Cold, owner: str) -> None:
        self._cold = cold
        self._owner = owner
        self._watch = cold.engine.watch_owner(cold.tenant, owner)
        self._interrupts: set[tuple[bytes, int]] = set()  # turns that run: session and fence
        # Of sessions: what of their mail was told, as `OwnerMail` has it; and from when on there may be more to tell.
        self._mail: dict[bytes, tuple[int, int, int]] = {}
        self._later: dict[bytes, int] = {}
        self._releases: set[str] = set()
        self._released = -1  # the count of releases when they were last looked at

    def steps(self) -> Iterator[Step]:
        """All of it."""
        engine = self._cold.engine
        while True:
            # From here on, so that nothing falls between what there is and what comes. What is in both is told once.
            self._watch = engine.watch_owner(self._cold.tenant, self._owner)
            yield from self._asked_to_end()
            yield from self._all_mail()
            most = max(REMEMBERED, 2 * self._remembered())
            behind = False
            while not behind:
                seen = owner_count(engine)
                if engine.releases_count() != self._released:
                    yield from self._resources()
                behind, more = yield from self._events()
                yield from self._mail_by_now()
                behind = behind or self._remembered() > most
                if not (behind or more):
                    yield Follow(seen, "owner", self._look, self._next_ms())

    def _remembered(self) -> int:
        return len(self._interrupts) + len(self._mail)

    def _look(self) -> bool:
        """Whether there is something to read: asked on the event loop."""
        engine = self._cold.engine
        return engine.releases_count() != self._released or engine.watch_look(self._watch)

    # -- turns and sessions

    def _asked_to_end(self) -> Iterator[Step]:
        told, self._interrupts = self._interrupts, set()
        for _, session, fence, _, answer in self._cold.engine.interrupts_of(self._cold.tenant, self._owner):
            self._interrupts.add((session, fence))
            if (session, fence) not in told:
                yield answer

    def _events(self) -> Generator[Step, None, tuple[bool, bool]]:
        """The next events. Whether some are missing before them, and whether there may be more at once."""
        events, lost, more = self._cold.engine.watch_owned(self._watch, PAGE)
        for what, session, fence, runnable, answer in events:
            if what == "interrupt":
                if (session, fence) in self._interrupts:
                    continue
                self._interrupts.add((session, fence))
            elif what == "lease_lost":
                self._interrupts.discard((session, fence))
            elif what == "closed":
                self._mail.pop(session, None)
                self._later.pop(session, None)
            if runnable is not None:
                self._later[session] = runnable
            if what:
                yield answer
        return lost, more

    # -- mail: events say where to look, the store what there is

    def _all_mail(self) -> Iterator[Step]:
        """Looks at all sessions of the host that have some."""
        cold, told = self._cold, self._mail
        self._mail, self._later = {}, {}
        after, more = None, True
        while more:
            sessions, after = cold.store.owner_mail(cold.tenant, self._owner, after, EXAMINED)
            more = after is not None
            self._mail |= {session: told[session] for session in sessions if session in told}
            yield from self._tell_mail(list(sessions))

    def _mail_by_now(self) -> Iterator[Step]:
        now_ms = self._cold.engine.wall_ms()
        due = [session for session, due_ms in self._later.items() if due_ms <= now_ms]
        for session in due:
            del self._later[session]
        yield from self._tell_mail(due)

    def _tell_mail(self, sessions: list[bytes]) -> Iterator[Step]:
        """Looks into the mailboxes of these sessions."""
        cold = self._cold
        for start in range(0, len(sessions), PAGE):
            now_ms = cold.engine.wall_ms()
            for row in cold.store.mailboxes(self._owner, sessions[start : start + PAGE], now_ms):
                if row.due > now_ms:
                    self._later[row.session] = row.due
                    continue
                mail = (row.first, row.last, row.last_due)
                if self._mail.get(row.session) != mail:
                    self._mail[row.session] = mail
                    waiting = pb.MailWaiting(session_id=row.session_id, queued=row.queued)
                    yield pb.WatchOwnerResponse(mail=waiting).SerializeToString()
            yield NOTHING_YET

    def _next_ms(self) -> int | None:
        """When there may be mail to tell of, by the service clock."""
        if not self._later:
            return None
        engine = self._cold.engine
        return engine.service_ms() + max(1, min(self._later.values()) - engine.wall_ms())

    # -- resources: the store says what is due

    def _resources(self) -> Iterator[Step]:
        cold = self._cold
        # Before the reads, so that what becomes due during them is not passed over.
        self._released = cold.engine.releases_count()
        due: set[str] = set()
        after = ""
        while page := cold.store.owner_releases(cold.tenant, self._owner, after, PAGE):
            due.update(row.name for row in page)
            for row in page:
                if row.name not in self._releases:
                    release = pb.Release(session_id=row.session_id, name=row.name, handle=row.handle)
                    yield pb.WatchOwnerResponse(release=release).SerializeToString()
            if len(page) < PAGE:
                break
            after = page[-1].name
            yield NOTHING_YET
        self._releases = due  # what is not due any more never is again
