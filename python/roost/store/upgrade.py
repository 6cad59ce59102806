"""Upgrades of a store that can be undone: a backup before the first migration, and the way back for an older Roost.

The backups lie in `backups/` of the data directory, so that they are on the disk that the store is on and are found by
whoever finds the store. An older Roost that meets a newer store cannot read it; it says which backup it can go back to.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Final

import apsw

from . import backup, claim, schema
from .base import StoreError
from .restore import BACKUPS

KEPT: Final = 2

_NAME: Final = re.compile(r"schema-(\d+)-epoch-(\d+)")

log = logging.getLogger(__name__)


def check_version(conn: apsw.Connection, store: Path) -> int:
    """As schema.check_ours; for a newer store the message names the backup to go back to, and how."""
    try:
        return schema.check_ours(conn, str(store))
    except StoreError as error:
        if error.reason != "NEWER_VERSION":
            raise
        found = newest(store.parent, schema.newest_version())
        if found is None:
            raise
        path, manifest = found
        command = shlex.join(["roost", "restore", str(path), "--data-dir", str(store.parent), "--replace"])
        have = schema.pragma_int(conn, "user_version")
        raise StoreError(
            "NEWER_VERSION",
            f"{store} has schema version {have} and this Roost knows versions up to {schema.newest_version()}: run the "
            f"newer Roost; or go back to the backup of {manifest.when()}, without what was stored since, with "
            f"`{command}`.",
        ) from None


def newest(directory: Path, version: int) -> tuple[Path, backup.Manifest] | None:
    """The newest backup from before a migration that a Roost of this schema version can use."""
    for path in reversed(_kept(directory)):
        try:
            manifest = backup.read_manifest(path)
        except StoreError:
            continue
        if manifest.schema_version <= version:
            return path, manifest
    return None


def prepare(store: Path, version: int, keep: int, reserve: int, at: backup.Step, vfs: str | None) -> None:
    """Before a migration: see that there is room, and back the store up if `keep` is not 0. StoreError, and then the
    store is as it was. `reserve`: bytes that a migration may use beside what is free."""
    directory = store.parent / BACKUPS
    epoch = _epoch(store, vfs)
    to = directory / f"schema-{version}-epoch-{epoch}"
    # One that an earlier try has made: nothing was stored since, or the epoch would have grown.
    made = keep > 0 and not to.exists()
    claim.check_room(store, reserve, made)
    if not made:
        return
    try:
        if not directory.exists():
            directory.mkdir(mode=0o700)
            claim.fsync_dir(directory.parent)
    except OSError as error:
        raise claim.unwritable(store.parent, error) from error
    log.warning("the store is backed up to %s before it is brought to schema version %d", to, schema.newest_version())
    backup.back_up(store.parent, to, at=at, vfs=vfs)


def prune(store: Path, keep: int) -> None:
    """After a migration: only the newest `keep` backups stay. 0 makes none and leaves what there is."""
    for path in _kept(store.parent)[:-keep] if keep else []:
        shutil.rmtree(path, ignore_errors=True)


def _kept(directory: Path) -> list[Path]:
    """Backups from before migrations, oldest first."""
    found = []
    for path in (directory / BACKUPS).glob("schema-*"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[2]), int(match[1]), path))
    return [path for _, _, path in sorted(found)]


def _epoch(store: Path, vfs: str | None) -> int:
    conn = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
    try:
        return int(str(conn.execute("SELECT epoch FROM shard WHERE shard = 0").get))
    finally:
        conn.close()
