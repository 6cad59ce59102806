"""Putting a backup in the place of a store: verified first, then there at once or not at all.

A store that comes from a backup goes on from an earlier point than the one it was taken from, which may have served
since: it is another line of the same store. What the other line gave out must mean nothing in this one, so the counters
that name things jump beyond all that any line can have reached: the epoch (names of resources, tokens of watches), the
journal's sequence (places in exports and in mailboxes), the fences of sessions in which no turn runs. Two of them are
taken from the clock, as nothing that is written into one line is known to the next. A lease needs no jump: it bears
random bytes. One that was given out before the backup is of both lines, and its turn goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from . import backup, claim, connect, schema, secret
from .base import StoreError

PARTIAL: Final = "restore.partial"
REPLACED: Final = "replaced-"
BACKUPS: Final = "backups"

_BASE_SECONDS: Final = 1_767_225_600  # 2026-01-01 UTC
# A line would have to be started once a minute since then, and to store so many entries a second, to get as far.
_EPOCH_SECONDS: Final = 60
_SEQUENCES_A_SECOND: Final = 1 << 20
_GRANTS: Final = 1 << 20  # of one session

# What a data directory may hold that has no store (yet).
_NO_STORE: Final = frozenset(
    {claim.LOCK_FILE, claim.RESERVE_FILE, claim.READERS_FILE, secret.SECRET_FILE, PARTIAL, BACKUPS, "lost+found"}
)

# In the order in which they are passed.
STEPS: Final = (
    "restore.begun",
    "restore.copied",
    "restore.verified",
    "restore.bumped",
    "restore.kept",
    "restore.named",
)


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    manifest: backup.Manifest
    epoch: int  # the next start makes it one more
    last_seq: int
    replaced: Path | None  # where the store lies that was there
    secret: str  # "given", "kept", "other" (there is one, and it is not the store's), or "none"


def check_finished(directory: Path) -> None:
    """StoreError UNFINISHED if a restore ended in the middle and left no store: none must be made in its place."""
    if (directory / PARTIAL).exists() and not (directory / claim.STORE_FILE).exists():
        raise StoreError(
            "UNFINISHED",
            f"A restore into {directory} did not end: repeat it, or remove {directory / PARTIAL} to begin "
            "with an empty store.",
        )


def restore(
    source: Path,
    data_dir: Path,
    *,
    secret_file: Path | None = None,
    replace: bool = False,
    progress: backup.Progress = backup.quiet,
    at: backup.Step = backup.onward,
) -> Restored:
    """Make the backup `source` the store of `data_dir`, which has none; with `replace` the one that is there is kept
    beside it. StoreError, and then the directory holds what it held."""
    connect.check_library()
    manifest = backup.read_manifest(source)
    if manifest.schema_version > schema.newest_version():
        raise StoreError(
            "NEWER_VERSION",
            f"{source} has schema version {manifest.schema_version} and this Roost knows versions up to "
            f"{schema.newest_version()}: restore it with the newer Roost.",
        )
    value = _given_secret(source, manifest, secret_file)
    directory = claim.prepare_directory(data_dir)
    try:
        _check_place(directory, source, replace)
        held = claim.Claim(directory)
        try:
            return _restore(source, directory, manifest, value, replace, progress, at)
        finally:
            held.release()
    except (apsw.Error, OSError) as error:
        if isinstance(error, apsw.FullError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                "DISK_FULL", f"The disk that holds {directory} is full: make room there and repeat the restore."
            ) from error
        raise StoreError("IO_ERROR", f"{source} could not be restored into {directory} ({error}).") from error


def _given_secret(source: Path, manifest: backup.Manifest, secret_file: Path | None) -> bytes:
    """The secret that is to be put beside the store, empty for none. StoreError BAD_SECRET."""
    if secret_file is None and secret.SECRET_FILE not in manifest.files:
        return b""
    path = secret_file or source / secret.SECRET_FILE
    try:
        value = secret.read(path)
    except FileNotFoundError:
        raise StoreError("BAD_SECRET", f"The server's secret {path} is not there.") from None
    if hashlib.sha256(value).hexdigest() != manifest.secret_sha256:
        raise StoreError(
            "BAD_SECRET", f"The secret {path} is not that of the store in {source}: give the one that was."
        )
    return value


def _check_place(directory: Path, source: Path, replace: bool) -> None:
    """Before anything is written."""
    if (directory / claim.STORE_FILE).exists():
        if not replace:
            raise StoreError(
                "EXISTS",
                f"There is a store in {directory}: give another --data-dir, or say --replace to put that one aside.",
            )
    else:
        strange = sorted(
            path.name
            for path in directory.iterdir()
            if path.name not in _NO_STORE and not path.name.startswith(REPLACED)
        )
        if strange:
            raise StoreError(
                "EXISTS", f"{directory} is not empty, it holds {strange[0]!r}: give --data-dir an empty directory."
            )
    need = (source / claim.STORE_FILE).stat().st_size + backup.SPARE_BYTES
    free = backup.free_bytes(directory)
    if free < need:
        raise StoreError(
            "DISK_FULL",
            f"The store needs {need >> 20} MiB, and {free >> 20} MiB are free in {directory}: make room there.",
        )


def _restore(
    source: Path,
    directory: Path,
    manifest: backup.Manifest,
    value: bytes,
    replace: bool,
    progress: backup.Progress,
    at: backup.Step,
) -> Restored:
    store, partial = directory / claim.STORE_FILE, directory / PARTIAL
    kept = _secret_there(directory, manifest, value)
    old = _close_old(store) if replace and store.exists() else None
    with _partial(directory, partial):
        at("restore.begun")
        made = partial / claim.STORE_FILE
        read = backup.copy_file(source / claim.STORE_FILE, made, progress)
        backup.check_digest(source / claim.STORE_FILE, read, manifest.files[claim.STORE_FILE])
        at("restore.copied")
        backup.check_content(made, backup.examine(made, progress), manifest)
        at("restore.verified")
        epoch, last_seq = _bump(made, old[1] if old else 0)
        at("restore.bumped")
        if kept == "given":
            backup.write_file(partial / secret.SECRET_FILE, value)
            (partial / secret.SECRET_FILE).rename(directory / secret.SECRET_FILE)
            claim.fsync_dir(directory)
        replaced = _keep_old(directory, store, old[0], old[1]) if old else None
        at("restore.kept")
        if old is None and store.exists():
            raise StoreError("EXISTS", f"A store was made in {directory} meanwhile.")
        # At once: before it the old store is there whole, or none; after it the new one.
        made.replace(store)
        claim.fsync_dir(directory)
        at("restore.named")
    return Restored(manifest, epoch, last_seq, replaced, kept)


@contextlib.contextmanager
def _partial(directory: Path, partial: Path) -> Iterator[None]:
    """A directory for the making of a store, empty. A server does not start beside it unless there is a store."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    claim.fsync_dir(directory)
    try:
        yield
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _close_old(store: Path) -> tuple[int, int]:
    """Bring all of a store that nobody serves into its one file; its schema version and epoch. StoreError if it cannot
    be: a log that stayed behind would be taken for the new store's."""
    advice = "move the files roost.db* away yourself, and restore without --replace."
    claim.check_file(store, store.parent)
    try:
        conn = connect.connect(store)
        try:
            if schema.pragma_int(conn, "application_id") != schema.APPLICATION_ID:
                raise StoreError(
                    "NOT_OURS", f"{store} is a SQLite database of another program: give another --data-dir."
                )
            version = schema.pragma_int(conn, "user_version")
            row = conn.execute("SELECT epoch FROM shard WHERE shard = 0").get
            conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            conn.close()
    except apsw.Error as error:
        raise StoreError("CORRUPT", f"{store} cannot be closed ({error}): {advice}") from error
    log = store.with_name(store.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError("LOCKED", f"Another program has {store} open: close it first.")
    return version, int(str(row))


def _bump(made: Path, epoch_of_old: int) -> tuple[int, int]:
    """Let the counters jump; the epoch and the last sequence from now on. Raises apsw errors."""
    seconds = max(0, int(time.time()) - _BASE_SECONDS)
    conn = apsw.Connection(os.fspath(made), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        conn.pragma("synchronous", "EXTRA")
        conn.execute("BEGIN IMMEDIATE")
        row = conn.execute(
            "UPDATE shard SET epoch = max(epoch + 1, ?1, ?2), last_seq = max(last_seq + ?3, ?4) WHERE shard = 0 "
            "RETURNING epoch, last_seq",
            (epoch_of_old + 1, seconds // _EPOCH_SECONDS, _SEQUENCES_A_SECOND, seconds * _SEQUENCES_A_SECOND),
        ).fetchone()
        conn.execute("UPDATE session SET fence = fence + ?1 WHERE running = 0", (_GRANTS,))
        conn.execute("COMMIT")
        assert row is not None  # examine has read it
        return row[0], row[1]
    finally:
        conn.close()


def _secret_there(directory: Path, manifest: backup.Manifest, value: bytes) -> str:
    """What becomes of the secret, as Restored says it. One that is there already stays. StoreError BAD_SECRET."""
    path = directory / secret.SECRET_FILE
    if not path.exists():
        return "given" if value else "none"
    if hashlib.sha256(secret.read(path)).hexdigest() == manifest.secret_sha256:
        return "kept"
    if not value:
        return "other"
    raise StoreError("BAD_SECRET", f"{path} is not the secret of this store, and another was given: move it away.")


def _keep_old(directory: Path, store: Path, version: int, epoch: int) -> Path:
    """A second name for the store that is to go, so that the new one can take the first in one step."""
    place = directory / f"{REPLACED}schema-{version}-epoch-{epoch}"
    name = place / claim.STORE_FILE
    for other in directory.glob(f"{REPLACED}*/{claim.STORE_FILE}"):
        if other.samefile(store):  # a restore was killed before it replaced anything
            other.unlink()
            with contextlib.suppress(OSError):
                other.parent.rmdir()
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        os.link(store, name)
    except FileExistsError:
        raise StoreError("EXISTS", f"{name} is there already: move it away.") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise StoreError(
            "UNWRITABLE",
            f"{store} cannot get a second name ({error.strerror}): move the files roost.db* away yourself, and restore "
            "without --replace.",
        ) from error
    claim.fsync_dir(place)
    claim.fsync_dir(directory)
    return place
