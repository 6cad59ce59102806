"""The store's schema: forward-only migrations, numbered SQL files applied each in its own transaction."""

from __future__ import annotations

import re
import secrets
from functools import cache
from importlib import resources

import apsw

from .base import StoreError

# "Rost": tells our files from other SQLite databases (PRAGMA application_id, bytes 68-71 of the file).
APPLICATION_ID = 0x526F7374

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """All migrations as (number, SQL), in order. Numbers start at 1 and have no gaps."""
    found: list[tuple[int, str]] = []
    for entry in resources.files(__package__).joinpath("migrations").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), entry.read_text(encoding="utf-8")))
    found.sort()
    if [number for number, _ in found] != list(range(1, len(found) + 1)) or not found:
        raise RuntimeError("the store's migrations are not numbered 0001, 0002, ... without gaps")
    return tuple(found)


def newest_version() -> int:
    """The schema version that this program writes."""
    return migrations()[-1][0]


def pragma_int(conn: apsw.Connection, name: str) -> int:
    """The value of a PRAGMA that is one integer."""
    value = conn.pragma(name)
    if not isinstance(value, int):
        raise RuntimeError(f"PRAGMA {name} gave {value!r}, not an integer")
    return value


def check_ours(conn: apsw.Connection, where: str) -> int:
    """The file's schema version, 0 for an empty file. StoreError NOT_OURS or NEWER_VERSION if we must not touch it."""
    application_id = pragma_int(conn, "application_id")
    version = pragma_int(conn, "user_version")
    # A crash between the creation of the file and its first migration leaves a database with nothing in it.
    empty = application_id == 0 and version == 0 and conn.execute("SELECT 1 FROM sqlite_schema").get is None
    if application_id != APPLICATION_ID and not empty:
        raise StoreError(
            "NOT_OURS", f"{where} is a SQLite database of another program: choose another --data-dir or move it away."
        )
    if version > newest_version():
        raise StoreError(
            "NEWER_VERSION",
            f"{where} has schema version {version} and this Roost knows versions up to {newest_version()}: "
            "run the newer Roost, or restore a backup made before the upgrade.",
        )
    return version


def migrate(conn: apsw.Connection, version: int) -> None:
    """Bring the schema from `version` to the newest, one durable transaction a step.

    Raises apsw errors; what was migrated up to then stays, so that the next start goes on from there.
    """
    for number, sql in migrations():
        if number <= version:
            continue
        conn.execute("BEGIN IMMEDIATE")
        try:
            conn.execute(sql)
            if number == 1:
                # Both are fixed for the life of the store: the id names it in traces, dumps and backups.
                conn.pragma("application_id", APPLICATION_ID)
                conn.execute("INSERT INTO meta (key, value) VALUES ('store_id', ?)", (secrets.token_hex(4),))
            conn.pragma("user_version", number)
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise


def store_id(conn: apsw.Connection) -> str:
    """The id made with the store: 8 hex characters."""
    value = conn.execute("SELECT value FROM meta WHERE key = 'store_id'").get
    if not isinstance(value, str):
        raise StoreError("CORRUPT", "The store has lost its id: restore the newest backup.")
    return value
