"""Backups of a store: copied from one snapshot, verified, and whole or not there at all.

A backup is a directory with the database in one file, a manifest, and the server's secret if that was asked for. It is
made under another name beside its place, verified, synced, and renamed: what bears the name that was given is whole.
The store may be served meanwhile: the copy is of one read transaction, so it holds all that was acknowledged before.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import claim, connect, schema, secret
from .base import StoreError

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
PARTIAL: Final = ".partial"
_STEP_PAGES: Final = 1_024
_BLOCK: Final = 1 << 20
SPARE_BYTES: Final = 8 << 20  # beside the copy itself: its journal, the manifest, names
_MANIFEST_BYTES: Final = 1 << 20

# What is going on, how much of it is done, and of how much; 0 where that is not known.
Progress = Callable[[str, int, int], None]
# Told at each point after which a crash leaves something else on disk.
Step = Callable[[str], None]

# In the order in which they are passed.
STEPS: Final = ("backup.begun", "backup.copied", "backup.verified", "backup.manifest", "backup.named")


def quiet(_what: str, _done: int, _total: int) -> None:
    """Shows no progress."""


def onward(_point: str) -> None:
    """Goes on."""


class File(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a backup holds; written when all of it was verified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(ge=FORMAT, le=FORMAT)
    store_id: str = Field(pattern="^[0-9a-f]{8}$")
    schema_version: int = Field(ge=1)
    epoch: int = Field(ge=0)
    last_seq: int = Field(ge=0)
    service_ms: int = Field(ge=0)
    create_time: dt.datetime
    # Rows by table.
    counts: dict[str, int]
    files: dict[str, File]
    # Of the server's secret, so that a restore can tell another one; empty where the store had none. It is 256 random
    # bits: nothing follows from their hash.
    secret_sha256: str = Field(pattern="^([0-9a-f]{64})?$")

    def when(self) -> str:
        """When it was made, for a person."""
        return self.create_time.strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True)
class Content:
    """What a database holds, as far as a manifest says it."""

    store_id: str
    schema_version: int
    epoch: int
    last_seq: int
    service_ms: int
    counts: dict[str, int]


def back_up(
    data_dir: Path,
    to: Path,
    *,
    with_secret: bool = False,
    progress: Progress = quiet,
    at: Step = onward,
    vfs: str | None = None,
) -> Manifest:
    """Back the store in `data_dir` up into the new directory `to`. The store may be served meanwhile, by this process
    too. StoreError, and then there is no `to`."""
    connect.check_library()
    store = data_dir / claim.STORE_FILE
    to = Path(os.path.abspath(to))  # noqa: PTH100 - a link that is given stays the name
    try:
        _check_places(store, to)
        partial = to.with_name(to.name + PARTIAL)
        with _own(partial), _read_claim(data_dir):
            at("backup.begun")
            try:
                manifest = _fill(store, partial, with_secret, progress, at, vfs)
                at("backup.manifest")
                partial.rename(to)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            claim.fsync_dir(to.parent)
            at("backup.named")
            return manifest
    except (apsw.Error, OSError) as error:
        raise _failed(store, to, error) from error


def _check_places(store: Path, to: Path) -> None:
    """Before anything is made."""
    if not store.is_file():
        raise StoreError("NO_STORE", f"There is no store in {store.parent}: give --data-dir the server's directory.")
    if os.path.lexists(to) and not (to.is_dir() and not to.is_symlink() and not any(to.iterdir())):
        raise StoreError("EXISTS", f"{to} exists already: give the backup a name of its own.")
    if not to.parent.is_dir():
        raise StoreError("UNWRITABLE", f"The directory {to.parent} does not exist: make it, or mount its disk.")
    need = size_of(store) + SPARE_BYTES
    free = free_bytes(to.parent)
    if free < need:
        raise StoreError(
            "DISK_FULL",
            f"A backup of {store} needs {need >> 20} MiB, and {free >> 20} MiB are free in {to.parent}: make room.",
        )


def size_of(store: Path) -> int:
    """Bytes that a copy of a database may take: what is in its log may be new pages."""
    paths = (store, store.with_name(store.name + "-wal"))
    return sum(path.stat().st_size for path in paths if path.exists())


def free_bytes(directory: Path) -> int:
    """What this user may still write there. Raises OSError."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


@contextlib.contextmanager
def _own(partial: Path) -> Iterator[None]:
    """An empty directory that no other backup writes to; what a crash left in it goes."""
    partial.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("LOCKED", f"Another backup is being written to {partial}: wait until it ends.") from None
        for left in partial.iterdir():
            left.unlink()
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _read_claim(data_dir: Path) -> Iterator[None]:
    """Lets a server that starts meanwhile tell this process from a stranger that has its file open."""
    fd = claim.reader_mark(data_dir)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _fill(store: Path, partial: Path, with_secret: bool, progress: Progress, at: Step, vfs: str | None) -> Manifest:
    copy = partial / claim.STORE_FILE
    source = connect.connect(store, vfs=vfs, reader=True)
    try:
        schema.check_ours(source, str(store))
        source.execute("BEGIN")
        before = _shard(source)  # begins the snapshot
        created = dt.datetime.now(dt.UTC).replace(microsecond=0)
        _copy(source, copy, progress)
    finally:
        source.close()  # from here on the server's log may begin anew
    at("backup.copied")
    found = examine(copy, progress)
    if (found.epoch, found.last_seq, found.service_ms) != before:
        raise StoreError("CORRUPT", f"The copy of {store} is not what was copied: look at the disk, then try again.")
    at("backup.verified")
    files = {claim.STORE_FILE: _digest(copy, progress)}
    value = _secret_of(store.parent)
    if with_secret:
        if not value:
            raise StoreError(
                "BAD_SECRET", f"There is no {secret.SECRET_FILE} in {store.parent} to put into the backup."
            )
        write_file(partial / secret.SECRET_FILE, value)
        files[secret.SECRET_FILE] = _digest(partial / secret.SECRET_FILE, quiet)
    manifest = Manifest(
        format=FORMAT,
        store_id=found.store_id,
        schema_version=found.schema_version,
        epoch=found.epoch,
        last_seq=found.last_seq,
        service_ms=found.service_ms,
        create_time=created,
        counts=found.counts,
        files=files,
        secret_sha256=hashlib.sha256(value).hexdigest() if value else "",
    )
    write_file(partial / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
    claim.fsync_dir(partial)
    return manifest


def _shard(conn: apsw.Connection) -> tuple[int, int, int]:
    """Epoch, last sequence and service time."""
    columns = {str(row[1]) for row in conn.execute("PRAGMA table_info(shard)")}
    served = "service_ms" if "service_ms" in columns else "0"  # since schema 3
    row = conn.execute(f"SELECT epoch, last_seq, {served} FROM shard WHERE shard = 0").fetchone()
    if row is None or not all(isinstance(value, int) for value in row):
        raise StoreError("CORRUPT", "The store has lost its shard: restore the newest backup.")
    return row[0], row[1], row[2]


def _copy(source: apsw.Connection, copy: Path, progress: Progress) -> None:
    """Page by page out of one snapshot, which the source's transaction holds, into one file without a log."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    target = apsw.Connection(os.fspath(copy))
    try:
        # The file of a store says that it has a log; alone with it, SQLite needs no shared memory to take that out.
        target.pragma("locking_mode", "EXCLUSIVE")
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                copying.step(_STEP_PAGES)
                done = copying.page_count - copying.remaining
                progress("copy", done * connect.PAGE_BYTES, copying.page_count * connect.PAGE_BYTES)
        if target.pragma("journal_mode", "DELETE") != "delete":
            raise StoreError("IO_ERROR", f"The log of {copy} cannot be taken out.")
    finally:
        target.close()
    _sync(copy)


def examine(path: Path, progress: Progress = quiet) -> Content:
    """Verify a database that nobody writes to, and say what it holds. Reads all of it, and makes no file beside it.
    StoreError CORRUPT, NOT_OURS or NEWER_VERSION; raises apsw errors."""
    uri = f"file:{urllib.parse.quote(os.fspath(path))}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    progress("verify", 0, 0)
    try:
        conn = apsw.Connection(uri, flags=flags)
        try:
            conn.pragma("trusted_schema", False)
            conn.pragma("cell_size_check", True)
            if schema.check_ours(conn, str(path)) == 0:
                raise StoreError("NOT_OURS", f"{path} holds nothing: it is no backup of a store.")
            found = conn.execute("PRAGMA integrity_check(1)").get
            if found != "ok":
                raise connect.corrupt(path, str(found))
            tables = [
                str(row[0])
                for row in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
            ]
            counts = {name: int(str(conn.execute(f'SELECT count(*) FROM "{name}"').get)) for name in tables}
            version = schema.pragma_int(conn, "user_version")
            return Content(schema.store_id(conn), version, *_shard(conn), counts)
        finally:
            conn.close()
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise connect.corrupt(path, str(error)) from error


def read_manifest(backup: Path) -> Manifest:
    """The manifest of a backup. StoreError NO_BACKUP or BAD_BACKUP."""
    path = backup / MANIFEST
    try:
        with path.open("rb") as file:
            manifest = Manifest.model_validate_json(file.read(_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            "NO_BACKUP", f"{backup} is no whole backup: it has no {MANIFEST}. Give the directory that a backup made."
        ) from None
    except OSError as error:
        raise StoreError("NO_BACKUP", f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValidationError, json.JSONDecodeError) as error:
        place = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        where = ".".join(str(part) for part in place) or "the document"
        raise StoreError(
            "BAD_BACKUP", f"{path} is damaged, or of another version of Roost ({where}): take another backup."
        ) from None
    if not {claim.STORE_FILE} <= set(manifest.files) <= {claim.STORE_FILE, secret.SECRET_FILE}:
        raise StoreError("BAD_BACKUP", f"{path} names other files than a backup has: take another backup.")
    return manifest


def verify(backup: Path, progress: Progress = quiet) -> Manifest:
    """Read a backup as a whole: each file against the manifest, the database in itself. StoreError says what is
    wrong."""
    manifest = read_manifest(backup)
    try:
        for name, file in manifest.files.items():
            check_digest(backup / name, _digest(backup / name, progress), file)
        check_content(backup / claim.STORE_FILE, examine(backup / claim.STORE_FILE, progress), manifest)
    except FileNotFoundError as error:
        raise StoreError("BAD_BACKUP", f"{error.filename} is missing: take another backup.") from None
    except (apsw.Error, OSError) as error:
        raise StoreError("BAD_BACKUP", f"Cannot read {backup} ({error}).") from error
    return manifest


def check_digest(path: Path, found: File, wanted: File) -> None:
    """StoreError BAD_BACKUP if a file is not what its manifest says."""
    if found != wanted:
        raise StoreError("BAD_BACKUP", f"{path} is not what its manifest says: it is damaged, take another backup.")


def check_content(path: Path, found: Content, manifest: Manifest) -> None:
    """StoreError BAD_BACKUP if a database does not hold what the manifest says."""
    for name, value in vars(found).items():
        if getattr(manifest, name) != value:
            raise StoreError("BAD_BACKUP", f"{path} has another {name} than its manifest: take another backup.")


def copy_file(source: Path, to: Path, progress: Progress) -> File:
    """Copy a file of a backup, mode 0600, synced; what was read. Raises OSError."""
    total = source.stat().st_size
    digest, done = hashlib.sha256(), 0
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as reading, os.fdopen(fd, "wb") as writing:
        while block := reading.read(_BLOCK):
            digest.update(block)
            writing.write(block)
            done += len(block)
            progress("copy", done, total)
        writing.flush()
        os.fsync(writing.fileno())
    return File(bytes=done, sha256=digest.hexdigest())


def _digest(path: Path, progress: Progress) -> File:
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress("checksum", done, total)
    return File(bytes=done, sha256=digest.hexdigest())


def _secret_of(data_dir: Path) -> bytes:
    """The server's secret, empty where there is none. StoreError BAD_SECRET for one that cannot be trusted."""
    try:
        return secret.read(data_dir / secret.SECRET_FILE)
    except FileNotFoundError:
        return b""


def write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(store: Path, to: Path, error: Exception) -> StoreError:
    """What to tell a person about an error while a backup was made."""
    if isinstance(error, apsw.FullError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return StoreError("DISK_FULL", f"The disk that holds {to.parent} is full: make room there and try again.")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return connect.corrupt(store, str(error))
    if isinstance(error, apsw.BusyError):
        return StoreError("LOCKED", f"Another program has {store} locked: try again when it has ended.")
    if isinstance(error, PermissionError | apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
        what = getattr(error, "filename", None) or store
        return StoreError("UNWRITABLE", f"Cannot use {what} ({error}): run this as the user of the server.")
    return StoreError("IO_ERROR", f"The backup of {store} into {to} failed ({error}).")
