"""Dumps read: listed, verified, and their rows for a restore. Whatever stands in a target is read with distrust."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from roost._core import DumpDecoder, tenant_uid
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.manifest import MOST_BYTES, Counts, Manifest, Part
from roost.handlers.dump.names import MANIFEST, check_dump
from roost.handlers.dump.target import Target

if TYPE_CHECKING:
    from roost._core import DumpSummary
    from roost.store.base import RecordRow

T = TypeVar("T")
MOST_LISTED: Final = 1_000


class DumpedSession(NamedTuple):
    """The session of a dump: columns of base.SessionRow, without those that a restore makes anew."""

    uid: bytes
    tenant: str
    session_id: str
    root: bytes
    parent: bytes  # b"" for a root
    path: str
    depth: int
    create_ms: int
    head: int
    head_version: int
    fence: int
    last: int
    facts: bytes
    receipt: bytes
    dump: str  # the name of its dump, as made from the columns above


class DumpedTrajectory(NamedTuple):
    """A finished trajectory of the session of a dump."""

    number: int
    ready_seq: int
    after_seq: int
    first_turn: int
    turn_count: int
    ready_ms: int


class DumpedMail(NamedTuple):
    """A message of a dump that ended with its session: columns of base.UnreadMail."""

    message_id: bytes
    sender: bytes  # b"": a host
    kind: int
    expire: int
    deliveries: int
    fence: int
    create_ms: int
    meta: bytes
    content: bytes | None


@dataclass(frozen=True)
class DumpedRecord:
    """A record or event, as the store had it, and its reward."""

    row: RecordRow
    reward: float | None


Row = DumpedSession | DumpedRecord | DumpedTrajectory | DumpedMail


async def list_dumps(
    target: Target, *, tenant: str | None = None, after: str = "", limit: int = MOST_LISTED
) -> list[str]:
    """One page of the names of dumps, in order; of a tenant, or of all. The next page is `after` the last of them."""
    if after:
        check_dump(after)
    return await target.dumps(None if tenant is None else tenant_uid(tenant), after, limit)


async def read_manifest(target: Target, name: str) -> Manifest:
    """The manifest of a dump; DumpError NOT_FOUND, DAMAGED, NEWER."""
    check_dump(name)
    data = await target.get(f"{name}/{MANIFEST}", MOST_BYTES)
    if data is None:
        raise DumpError(Why.NOT_FOUND, f"there is no dump {name}")
    return Manifest.decode(data, name)


async def verify_dump(
    target: Target, name: str, *, progress: Callable[[Manifest, Part], None] | None = None
) -> Manifest:
    """Read all of a dump: each part against the manifest, each payload against its digest, the history against its
    chain (I23). DumpError DAMAGED says what is wrong. `progress` is called behind each part."""
    manifest = await read_manifest(target, name)
    decoder = DumpDecoder()
    for part in manifest.parts:
        data = await _read_part(target, name, part)
        of = await _decoded(name, part, decoder.check, data, part.raw_bytes)
        if part is manifest.parts[0] and of != name:
            raise _damaged(name, "it holds a session that it is not named after")
        if progress is not None:
            progress(manifest, part)
    await _finish(name, manifest, decoder)
    return manifest


async def read_rows(target: Target, name: str) -> AsyncIterator[Row]:
    """The session, its records, oldest first, its trajectories, its mail. Each row is verified by itself; only the end
    of the iteration says that they are all of them and that the history verifies: what was done with them before must
    be undone if this raises."""
    from roost.store.base import RecordRow

    manifest = await read_manifest(target, name)
    decoder = DumpDecoder()
    for part in manifest.parts:
        data = await _read_part(target, name, part)
        rows = await _decoded(name, part, decoder.part, data, part.raw_bytes)
        del data
        for row in rows:
            if row[0] == "record":
                yield DumpedRecord(RecordRow._make(row[1]), row[2])
            elif row[0] == "trajectory":
                yield DumpedTrajectory._make(row[1])
            elif row[0] == "mail":
                yield DumpedMail._make(row[1])
            else:
                session = DumpedSession._make(row[1])
                if session.dump != name:
                    raise _damaged(name, "it holds a session that it is not named after")
                yield session
    await _finish(name, manifest, decoder)


async def read_session(target: Target, name: str) -> DumpedSession:
    """The session of a dump, from its first part; what is behind that is not looked at."""
    async for row in read_rows(target, name):
        if isinstance(row, DumpedSession):
            return row
        break
    raise _damaged(name, "it does not begin with its session")


async def _read_part(target: Target, name: str, part: Part) -> bytes:
    data = await target.get(f"{name}/{part.name}", part.bytes)
    if data is None:
        raise _damaged(name, f"{part.name} is missing")
    if len(data) != part.bytes:
        raise _damaged(name, f"{part.name} has {len(data)} bytes, not {part.bytes}")
    if await asyncio.to_thread(_sha256, data) != part.sha256:
        raise _damaged(name, f"{part.name} does not match its SHA-256")
    return data


async def _decoded(name: str, part: Part, decode: Callable[[bytes, int], T], data: bytes, raw_bytes: int) -> T:
    try:
        return await asyncio.to_thread(decode, data, raw_bytes)
    except ValueError as error:
        raise _damaged(name, f"{part.name}: {error}") from None


async def _finish(name: str, manifest: Manifest, decoder: DumpDecoder) -> None:
    try:
        summary = await asyncio.to_thread(decoder.finish)
    except ValueError as error:
        raise _damaged(name, str(error)) from None
    if (counts_of(summary), summary[-1]) != (manifest.counts, manifest.sha256):
        raise _damaged(name, "its lines are not those that its manifest counts")


def counts_of(summary: DumpSummary) -> Counts:
    """The counts of a summary."""
    records, trajectories, mail, lines, size, _ = summary
    return Counts(records=records, trajectories=trajectories, lines=lines, bytes=size, mail=mail)


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _damaged(name: str, what: str) -> DumpError:
    return DumpError(Why.DAMAGED, f"dump {name} is damaged: {what}")
