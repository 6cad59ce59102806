"""Before a migration: room is looked for and the store backed up; so many such backups are kept, and no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_rows import Maker, dump, take

from roost.store import SqliteStore, StoreError, claim, schema
from roost.store.backup import read_manifest, verify

Open = Callable[..., SqliteStore]

REAL = schema.migrations()


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this program one with so many migrations more."""

    def know(more: int, sql: str = "CREATE TABLE added_{n} (x INTEGER) STRICT;") -> None:
        first = REAL[-1][0] + 1
        known = (*REAL, *((n, sql.format(n=n)) for n in range(first, first + more)))
        monkeypatch.setattr(schema, "migrations", lambda: known)

    return know


@pytest.fixture
def filled(open_store: Open, directory: Path) -> dict[str, Any]:
    """A store with a session in it, closed; its rows."""
    store = open_store()
    maker = Maker()
    maker.open(1)
    take(lambda batch: store.append(0, store.epoch, batch.first_seq, batch), maker)
    store.close()
    return dump(directory / "roost.db")


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "backups").iterdir()) if (directory / "backups").exists() else []


def test_each_upgrade_leaves_a_backup_and_so_many_are_kept(
    open_store: Open, directory: Path, filled: dict[str, Any], newer: Callable[..., None]
) -> None:
    number = REAL[-1][0]
    newer(1)
    open_store().close()
    assert kept(directory) == [f"schema-{number}-epoch-1"]
    assert dump(directory / "backups" / kept(directory)[0] / "roost.db") == filled
    verify(directory / "backups" / kept(directory)[0])
    open_store().close()  # nothing to migrate
    assert len(kept(directory)) == 1
    for more in (2, 3):
        newer(more)
        open_store().close()
    assert kept(directory) == [f"schema-{number + 1}-epoch-3", f"schema-{number + 2}-epoch-4"]


def test_without_one(open_store: Open, directory: Path, filled: dict[str, Any], newer: Callable[..., None]) -> None:
    newer(1)
    open_store(migration_backups=0).close()
    assert kept(directory) == []
    newer(0)
    with pytest.raises(StoreError, match="or restore a backup made before the upgrade") as caught:
        open_store()
    assert caught.value.reason == "NEWER_VERSION"


def test_an_older_version_names_the_newest_backup_that_it_knows(
    open_store: Open, directory: Path, filled: dict[str, Any], newer: Callable[..., None]
) -> None:
    for more in (1, 2):
        newer(more)
        open_store().close()
    newer(0)
    names = kept(directory)
    with pytest.raises(StoreError) as caught:
        open_store()
    assert f"roost restore {directory / 'backups' / names[0]} --data-dir {directory} --replace" in str(caught.value)
    assert read_manifest(directory / "backups" / names[0]).when() in str(caught.value)
    assert names[1] not in str(caught.value)


def test_a_migration_that_fails_is_tried_again_with_the_same_backup(
    open_store: Open, directory: Path, filled: dict[str, Any], newer: Callable[..., None]
) -> None:
    newer(1, "CREATE TABLE added_{n} (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1);")
    for _ in range(2):
        with pytest.raises(StoreError):
            open_store()
        (name,) = kept(directory)
        inode = (directory / "backups" / name).stat().st_ino
    newer(1)
    open_store().close()
    assert (directory / "backups" / name).stat().st_ino == inode
    assert dump(directory / "backups" / name / "roost.db") == filled


def test_room_is_looked_for_first(
    open_store: Open,
    directory: Path,
    filled: dict[str, Any],
    newer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = (directory / "roost.db").stat().st_size
    room = SimpleNamespace(f_bavail=5 * size // 2, f_frsize=1)
    (directory / "roost.reserve").unlink()  # it would be given up
    newer(1)
    real = os.statvfs
    monkeypatch.setattr(claim.os, "statvfs", lambda path: room if Path(path) == directory else real(path))
    with pytest.raises(StoreError) as caught:
        open_store(reserve_bytes=0)
    assert caught.value.reason == "DISK_FULL"
    assert "migration_backups = 0" in str(caught.value)
    assert kept(directory) == []
    assert dump(directory / "roost.db") == filled
    open_store(reserve_bytes=0, migration_backups=0).close()
