"""One dump of one ended session: encoded part by part, stored, read back and compared; then its manifest, the same way.

The manifest is what makes it a dump. Until it is there, a dump that was begun is begun again, and parts that are right
already are kept; once it is there, nothing of the dump is written any more. So a crash at any
step leaves no dump or one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from roost._core import VERSION, DumpEncoder, dump_name, failpoint
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.manifest import MOST_BYTES, MOST_PART_BYTES, Counts, Manifest, Part
from roost.handlers.dump.names import MANIFEST, check_dump, part_name
from roost.handlers.dump.reader import counts_of, read_manifest, verify_dump
from roost.handlers.dump.target import Target

if TYPE_CHECKING:
    from roost.store.base import RecordLine, RecordRow, SessionRow, Store

T = TypeVar("T")

PAGE_LINES: Final = 256  # of the list of records; what one step reads of it
PAGE_BYTES: Final = 1 << 20  # of payloads; what one step is to read
READ_AHEAD: Final = 32  # records that one step reads at most
_OPEN: Final = 1  # roost.v1.SESSION_STATE_OPEN
DEFAULT_PART_BYTES: Final = 8 << 20  # of lines, uncompressed; part of the format: another gives other parts

# Where a crash test may kill the process, in the order in which they are passed.
FAILPOINTS: Final = (
    "dump.begin",
    "dump.part-put",
    "dump.part-stored",
    "dump.part-verified",
    "dump.manifest-put",
    "dump.manifest-stored",
    "dump.manifest-verified",
)


class Read(Protocol):
    """Runs one short read of the store where the store may be read; returns and raises what the read does."""

    def __call__(self, step: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True)
class DumpResult:
    """A dump that is stored and was verified: read back and compared."""

    name: str
    bytes: int  # of its parts, as stored
    sha256: str  # over its lines
    counts: Counts
    repeated: bool  # it was there before


async def write_dump(
    store: Store, target: Target, uid: bytes, read: Read, *, part_bytes: int = DEFAULT_PART_BYTES
) -> DumpResult:
    """Dump the session, which must have ended, or find that this was done.

    Never two dumps of one close: one that is there and has other content is DumpError CONFLICT. A session that does not
    verify (I23) is CORRUPT. What the target says of itself comes as the DumpError that it raised; try again later.
    """
    row, lines = await _history(store, uid, read)
    name = dump_name(row.tenant, row.uid, _close_number(row))
    failpoint("dump.begin")
    parts = _parts(store, row, lines, read, part_bytes)
    del lines
    there = await target.get(f"{name}/{MANIFEST}", MOST_BYTES)
    if there is not None:
        return await _found(target, name, Manifest.decode(there, name), await _summary(name, parts))
    await target.prepare(name)
    stored: list[Part] = []
    async for made in parts:
        if isinstance(made, _Summary):
            manifest = _manifest(name, made, stored)
            break
        part = made.named(part_name(len(stored)))
        await _put_part(target, name, part, made.data)
        stored.append(part)
    else:
        raise AssertionError("an encoding ends with its summary")
    encoded = manifest.encode()
    failpoint("dump.manifest-put")
    if not await target.create(f"{name}/{MANIFEST}", encoded):
        return await _found(target, name, await read_manifest(target, name), manifest)
    failpoint("dump.manifest-stored")
    if await target.get(f"{name}/{MANIFEST}", MOST_BYTES) != encoded:
        raise _not_what_was_written(MANIFEST)
    failpoint("dump.manifest-verified")
    return DumpResult(name, manifest.stored_bytes, manifest.sha256, manifest.counts, repeated=False)


async def _history(store: Store, uid: bytes, read: Read) -> tuple[SessionRow, list[RecordLine]]:
    """The session and all its records, newest first, without payloads."""
    found = await read(partial(store.record_lines, uid, PAGE_LINES))
    if found is None:
        raise DumpError(Why.NOT_FOUND, "there is no such session to dump")
    row, page = found
    if row.state == _OPEN or row.receipt is None:
        raise DumpError(Why.NOT_ENDED, "the session is open: close it before it is dumped")
    lines = list(page)
    while len(page) == PAGE_LINES:
        page = await read(partial(store.older_lines, uid, lines[-1], PAGE_LINES))
        lines += page
    return row, lines


def _close_number(row: SessionRow) -> int:
    from google.protobuf.message import DecodeError

    from roost.store.v1 import store_pb2

    try:
        return store_pb2.Receipt.FromString(row.receipt or b"").close_number
    except DecodeError:
        raise DumpError(Why.CORRUPT, "the session does not verify: its receipt does not decode") from None


@dataclass(frozen=True)
class _Made:
    """A part that was encoded."""

    data: bytes
    sha256: str
    raw_bytes: int
    lines: int

    def named(self, name: str) -> Part:
        return Part(name=name, bytes=len(self.data), raw_bytes=self.raw_bytes, lines=self.lines, sha256=self.sha256)


@dataclass(frozen=True)
class _Summary:
    """The end of an encoding."""

    counts: Counts
    sha256: str


async def _parts(
    store: Store, row: SessionRow, lines: list[RecordLine], read: Read, part_bytes: int
) -> AsyncIterator[_Made | _Summary]:
    """The parts of the session in order, then the summary; encoded on threads, with the GIL released.

    While a page of payloads is encoded and its parts are stored, the next one is read: two pages and a part in memory.
    """
    try:
        unread = await read(partial(store.count_unread, row.uid))
        encoder = await asyncio.to_thread(DumpEncoder, row, lines, unread, part_bytes)
        seqs = [line.seq for line in reversed(lines)]
        del lines
        rewards = await read(partial(store.read_rewards, row.uid))
        async for page in _pages(store, seqs, read):
            for part in await asyncio.to_thread(encoder.push, page, rewards):
                yield _Made(*part)
        trajectories = await read(partial(store.session_trajectories, row.uid))
        for part in await asyncio.to_thread(encoder.trajectories, trajectories):
            yield _Made(*part)
        after = 0
        while mail := await read(partial(store.unread_mail, row.uid, after, PAGE_BYTES)):
            after = mail[-1].seq
            for part in await asyncio.to_thread(encoder.mail, mail):
                yield _Made(*part)
        last, summary = await asyncio.to_thread(encoder.finish)
    except ValueError as error:
        raise DumpError(Why.CORRUPT, f"the session does not verify: {error}") from None
    yield _Made(*last)
    yield _Summary(counts_of(summary), summary[-1])


async def _pages(store: Store, seqs: list[int], read: Read) -> AsyncIterator[list[RecordRow]]:
    """Records in full, in order, about PAGE_BYTES a page, one page read ahead."""
    at, ahead = 0, 1
    coming: asyncio.Task[list[RecordRow]] | None = None

    async def page(wanted: list[int]) -> list[RecordRow]:
        return await read(partial(store.read_records, wanted))

    try:
        while at < len(seqs) or coming is not None:
            if coming is None:
                coming = asyncio.create_task(page(seqs[at : at + ahead]))
                at += ahead
            rows = await coming
            coming = None
            size = sum(_size(record) for record in rows)
            # The next read is as long as records of this size fill a page.
            ahead = max(1, min(READ_AHEAD, PAGE_BYTES * len(rows) // size)) if size else READ_AHEAD
            if at < len(seqs):
                coming = asyncio.create_task(page(seqs[at : at + ahead]))
                at += ahead
            yield rows
    finally:
        if coming is not None:
            coming.cancel()


def _size(row: RecordRow) -> int:
    return sum(len(column) for column in (row.meta, row.tokens, row.state, row.arrays, row.content) if column)


def _manifest(name: str, summary: _Summary, parts: list[Part]) -> Manifest:
    _, uid, close_number = check_dump(name)
    return Manifest(
        schema=summary.counts.schema,
        roost=VERSION,
        uid=uid,
        close_number=close_number,
        counts=summary.counts,
        sha256=summary.sha256,
        parts=tuple(parts),
    )


async def _put_part(target: Target, name: str, part: Part, data: bytes) -> None:
    """Store a part and read it back. One of a crash that is right is kept; one that is not is replaced."""
    where = f"{name}/{part.name}"
    failpoint("dump.part-put")
    if not await target.create(where, data) and await _stored(target, where) != data:
        if await target.get(f"{name}/{MANIFEST}", MOST_BYTES) is not None:
            raise _conflict(name)  # somebody else finished it meanwhile
        await target.replace(where, data)
    failpoint("dump.part-stored")
    if await _stored(target, where) != data:
        raise _not_what_was_written(part.name)
    failpoint("dump.part-verified")


async def _stored(target: Target, where: str) -> bytes | None:
    """What is there; None as well for what is longer than any part."""
    try:
        return await target.get(where, MOST_PART_BYTES)
    except DumpError as error:
        if error.why is Why.DAMAGED:
            return None
        raise


async def _summary(name: str, parts: AsyncIterator[_Made | _Summary]) -> Manifest:
    """The manifest that the session has, but for its parts, which are thrown away."""
    async for made in parts:
        if isinstance(made, _Summary):
            return _manifest(name, made, [])
    raise AssertionError("an encoding ends with its summary")


async def _found(target: Target, name: str, there: Manifest, ours: Manifest) -> DumpResult:
    """There is a manifest: the dump is done if it is of the same content and all of it is there."""
    if not there.same_content(ours):
        raise _conflict(name)
    await verify_dump(target, name)
    return DumpResult(name, there.stored_bytes, there.sha256, there.counts, repeated=True)


def _conflict(name: str) -> DumpError:
    return DumpError(
        Why.CONFLICT, f"there is another dump {name} with other content: move it away, or look why there are two"
    )


def _not_what_was_written(file: str) -> DumpError:
    return DumpError(Why.SERVER_ERROR, f"the dump target gave back something else than what it was given as {file}")
