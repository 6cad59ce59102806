"""Dumps in a local directory: whole files of mode 0600, on disk before they count, and never outside of it.

Every component is opened relative to the one above it and no link is followed, so that whoever can plant one in the
directory leads nobody out of it. Each operation opens the directory anew: one that comes back is used again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.names import MANIFEST, check_dump, check_object, is_dump_of

T = TypeVar("T")

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKE_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Non-blocking: what was planted may be a pipe.
_READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TEMPORARY: Final = ".tmp"
_ABANDONED: Final = 4  # operations that hang before no more are started

_WHY: Final = {
    Why.FULL: {errno.ENOSPC, errno.EDQUOT, errno.EFBIG},
    Why.DENIED: {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR},
    Why.UNREACHABLE: {errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN},
}
_SAYS: Final = {
    Why.FULL: "the dump directory has no room: free some space or raise the quota",
    Why.DENIED: "the dump directory cannot be used: let the server's user write to it, and keep links out of it",
    Why.UNREACHABLE: "the dump directory is not there: create it, or mount its disk",
    Why.SERVER_ERROR: "the disk of the dump directory failed",
}


class Directory:
    """A target; see target.Target."""

    def __init__(self, path: Path, operation_seconds: float) -> None:
        self._path = path.absolute()
        self._seconds = operation_seconds
        self._hanging = 0  # operations that were left behind and have not ended

    @property
    def url(self) -> str:
        """See target.Target."""
        return self._path.as_uri()

    async def prepare(self, dump: str) -> None:
        """Remove files that were being written when the process died."""
        check_dump(dump)
        await self._run(lambda: self._prepare(dump))

    async def create(self, name: str, data: bytes) -> bool:
        """See target.Target."""
        return await self._run(lambda: self._put(name, data, replace=False))

    async def replace(self, name: str, data: bytes) -> None:
        """See target.Target."""
        await self._run(lambda: self._put(name, data, replace=True))

    async def get(self, name: str, limit: int) -> bytes | None:
        """See target.Target."""
        return await self._run(lambda: self._get(name, limit))

    async def dumps(self, tenant: str | None, after: str, limit: int) -> list[str]:
        """See target.Target."""
        return await self._run(lambda: self._dumps(tenant, after, limit))

    async def _run(self, work: Callable[[], T]) -> T:
        """Run it on a thread of its own until the time limit. One that hangs, as on a dead network file system, is left
        behind; it keeps no process from ending."""
        if self._hanging >= _ABANDONED:
            raise DumpError(Why.SLOW, f"the dump directory does not answer: {self._hanging} operations hang")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        left_behind = False

        def deliver(result: T | None, error: BaseException | None) -> None:
            self._hanging -= left_behind
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result: T | None = None
            failed: BaseException | None = None
            try:
                result = work()
            except OSError as error:
                failed = _translated(error)
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                failed = error
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(deliver, result, failed)

        threading.Thread(target=run, name="roost-dump-io", daemon=True).start()
        try:
            async with asyncio.timeout(self._seconds):
                return await future
        except TimeoutError:
            left_behind = True
            self._hanging += 1
            said = f"the dump directory did not answer within {self._seconds:g} s"
            raise DumpError(Why.SLOW, said) from None

    @contextmanager
    def _within(self, *names: str, make: bool = False) -> Iterator[list[int]]:
        """Descriptors of the directory and of these below it, each in the one before it."""
        # The directory itself is the operator's word: it may be a link.
        opened = [os.open(self._path, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)]
        try:
            for name in names:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=opened[-1])
                opened.append(os.open(name, _OPEN_DIRECTORY, dir_fd=opened[-1]))
            yield opened
        finally:
            for fd in opened:
                os.close(fd)

    def _prepare(self, dump: str) -> None:
        with suppress(FileNotFoundError), self._within(*dump.split("/")) as opened:
            for name in _names(opened[-1]):
                if name.endswith(_TEMPORARY):
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=opened[-1])

    def _put(self, name: str, data: bytes, *, replace: bool) -> bool:
        tenant, dump, file = check_object(name)
        with self._within(tenant, dump, make=True) as opened:
            where = opened[-1]
            temporary = f".{file}.{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                _write(where, temporary, data)
                if replace:
                    os.replace(temporary, file, src_dir_fd=where, dst_dir_fd=where)
                else:
                    os.link(temporary, file, src_dir_fd=where, dst_dir_fd=where, follow_symlinks=False)
                made = True
            except FileExistsError:
                made = False
            finally:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=where)
            # The name, and the names of the directories, which a process that died may have made.
            for fd in reversed(opened):
                os.fsync(fd)
        return made

    def _get(self, name: str, limit: int) -> bytes | None:
        tenant, dump, file = check_object(name)
        with self._within():
            pass  # that it is not there at all is an error
        try:
            with self._within(tenant, dump) as opened:
                fd = os.open(file, _READ_FILE, dir_fd=opened[-1])
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as stored:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ELOOP, "not a file")
            if found.st_size > limit:
                raise DumpError(Why.DAMAGED, f"{name} has {found.st_size} bytes, and {limit} at most are right")
            return stored.read(limit)

    def _dumps(self, tenant: str | None, after: str, limit: int) -> list[str]:
        names: list[str] = []
        with self._within() as opened:
            tenants = _names(opened[-1]) if tenant is None else [tenant]
        for one in tenants:
            if one < after.partition("/")[0]:
                continue
            try:
                with self._within(one) as opened:
                    for dump in _names(opened[-1]):
                        name = f"{one}/{dump}"
                        if name > after and is_dump_of(one, dump) and _has_manifest(opened[-1], dump):
                            names.append(name)
                            if len(names) == limit:
                                return names
            except (FileNotFoundError, NotADirectoryError):
                continue  # a file that somebody keeps beside the dumps, or a tenant that has none
        return names


def _write(directory: int, name: str, data: bytes) -> None:
    """A new file whose bytes are on disk."""
    fd = os.open(name, _MAKE_FILE, 0o600, dir_fd=directory)
    with os.fdopen(fd, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(fd)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries)


def _has_manifest(tenant: int, dump: str) -> bool:
    try:
        fd = os.open(dump, _OPEN_DIRECTORY, dir_fd=tenant)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return stat.S_ISREG(os.stat(MANIFEST, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)


def _translated(error: OSError) -> DumpError:
    """The word and the sentence of an error, with the system's own words for it."""
    why = next((word for word, numbers in _WHY.items() if error.errno in numbers), Why.SERVER_ERROR)
    return DumpError(why, f"{_SAYS[why]} ({os.strerror(error.errno or 0)})")
