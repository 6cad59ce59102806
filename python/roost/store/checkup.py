"""Looking at a store without changing it: is it readable, whole, consistent in itself, and is there room.

Everything is read in one snapshot, so a store that is served may be looked at. What only the engine can tell, whether
the hash chains of histories verify, is asked of a function that is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import apsw

from . import backup, claim, connect, schema, secret, space, upgrade
from .base import RecordLine, SessionRow, StoreError
from .reader import Reader

Status = Literal["ok", "warn", "fail"]

_LOW_BYTES: Final = 1 << 30
_NAMED: Final = 3  # examples in a message


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `advice` says what to do unless all is well."""

    subject: str
    name: str
    status: Status
    message: str
    advice: str = ""


# Raises ValueError if a session's records, newest first, are not what was appended.
Verify = Callable[[SessionRow, list[RecordLine]], None]

# What must find nothing: name, what it is that was found, statement. Sessions whose content is being purged or restored
# may lack records: what is said of records is said of OPEN sessions.
_RULES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "parents",
        "open sessions whose parent is not open (orphans)",
        (
            "SELECT s.session_id FROM session AS s LEFT JOIN session AS p ON p.uid = s.parent "
            "WHERE s.state = 1 AND s.depth > 0 AND (p.uid IS NULL OR p.state <> 1 OR p.root <> s.root)"
        ),
    ),
    (
        "paths (I16)",
        "open sessions whose path does not follow from their parent's",
        (
            "SELECT s.session_id FROM session AS s LEFT JOIN session AS p ON p.uid = s.parent WHERE s.state = 1 AND "
            "CASE s.depth WHEN 0 THEN s.path <> '/root' "
            "ELSE p.depth + 1 <> s.depth OR substr(s.path, 1, length(p.path) + 1) <> p.path || '/' END"
        ),
    ),
    (
        "owners of records",
        "histories without a session",
        "SELECT DISTINCT hex(session) FROM record WHERE session NOT IN (SELECT uid FROM session)",
    ),
    (
        "owners of rewards",
        "rewards without a session",
        "SELECT DISTINCT hex(session) FROM reward WHERE session NOT IN (SELECT uid FROM session)",
    ),
    (
        "owners of trajectories",
        "trajectories without a session",
        "SELECT DISTINCT hex(session) FROM trajectory WHERE session NOT IN (SELECT uid FROM session)",
    ),
    (
        "owners of messages",
        "mailboxes without a session",
        "SELECT DISTINCT hex(recipient) FROM message WHERE recipient NOT IN (SELECT uid FROM session)",
    ),
    (
        "owners of resources (I20)",
        "resources without a session",
        "SELECT name FROM resource WHERE session NOT IN (SELECT uid FROM session)",
    ),
    (
        "turn numbers (I4)",
        "open sessions whose committed turns are not 1 to their turn count",
        (
            "SELECT s.session_id FROM session AS s LEFT JOIN (SELECT session, count(*) AS n, "
            "count(DISTINCT turn) AS d, max(turn) AS m FROM record WHERE status = 1 GROUP BY session) AS r "
            "ON r.session = s.uid WHERE s.state = 1 AND (coalesce(r.n, 0) <> s.head OR coalesce(r.d, 0) <> s.head "
            "OR coalesce(r.m, 0) <> s.head)"
        ),
    ),
    (
        "provisionals (I8)",
        "open sessions whose live provisional is not the one that they name",
        (
            "SELECT s.session_id FROM session AS s LEFT JOIN (SELECT session, count(*) AS n, max(seq) AS seq, "
            "max(turn) AS turn FROM record WHERE status = 2 GROUP BY session) AS r ON r.session = s.uid WHERE "
            "s.state = 1 AND (coalesce(r.n, 0) > 1 OR coalesce(r.seq, 0) <> s.provisional OR "
            "coalesce(r.turn, s.head + 1) <> s.head + 1)"
        ),
    ),
    (
        "newest records (I23)",
        "open sessions whose newest record is not there",
        (
            "SELECT s.session_id FROM session AS s LEFT JOIN record AS r ON r.seq = s.last "
            "WHERE s.state = 1 AND s.last > 0 AND (r.seq IS NULL OR r.session <> s.uid)"
        ),
    ),
    (
        "mail of ended sessions (I15)",
        "ended sessions with mail that may still be delivered",
        (
            "SELECT DISTINCT s.session_id FROM message AS m JOIN session AS s ON s.uid = m.recipient "
            "WHERE m.state <= 2 AND s.state <> 1"
        ),
    ),
    (
        "sequence",
        "sequences above the last one that was given out",
        (
            "SELECT n FROM (SELECT max(seq) AS n FROM record UNION ALL SELECT max(seq) FROM message UNION ALL "
            "SELECT max(seq) FROM session) WHERE n > (SELECT last_seq FROM shard WHERE shard = 0)"
        ),
    ),
)


def look(data_dir: Path, verify: Verify | None, progress: backup.Progress = backup.quiet) -> Iterator[Check]:
    """Look at the store of a data directory. Without `verify` only what is quick: not its pages, nor its histories."""
    store = data_dir / claim.STORE_FILE
    if not store.is_file():
        yield _fail("file", f"there is no store in {data_dir}", "name the server's data directory with --data-dir")
        return
    connect.check_library()
    mark = claim.reader_mark(data_dir)
    conn: apsw.Connection | None = None
    try:
        conn = connect.connect(store, reader=True)
        version = upgrade.check_version(conn, store)
        conn.execute("BEGIN")
        yield _version(conn, store, version)
        yield from _room(data_dir, store)
        yield _secret(data_dir)
        if verify is not None:
            yield _pages(conn, progress)
        if version == schema.newest_version():
            yield from _rules(conn, progress)
            if verify is not None:
                yield _histories(conn, store, verify, progress)
    except StoreError as error:
        yield _fail("file", str(error), "see docs/OPERATIONS.md, Damage")
    except (apsw.CorruptError, apsw.NotADBError) as error:
        yield _fail("pages", f"{store} is damaged ({error})", "restore the newest backup")
    except (apsw.Error, OSError) as error:
        yield _fail("file", f"{store} cannot be read ({error})", "run this as the server's user; look at the disk")
    finally:
        if conn is not None:
            conn.close()
        if mark is not None:
            os.close(mark)


def _fail(name: str, message: str, advice: str) -> Check:
    return Check("store", name, "fail", message, advice)


def _version(conn: apsw.Connection, store: Path, version: int) -> Check:
    if version == 0:
        return Check("store", "schema", "warn", f"{store} is empty", "start the server on it")
    about = f"store {schema.store_id(conn)}, schema version {version}"
    newest = schema.newest_version()
    if version < newest:
        advice = f"the next start brings it to version {newest}, after a backup; see docs/OPERATIONS.md, Upgrading"
        return Check("store", "schema", "warn", about, advice)
    return Check("store", "schema", "ok", about)


def _room(data_dir: Path, store: Path) -> Iterator[Check]:
    free, size = backup.free_bytes(data_dir), backup.size_of(store)
    message = f"{free >> 20} MiB are free beside {size >> 20} MiB of store"
    if free < space.RESERVE_BYTES:
        yield _fail("room", message, "make room: the server refuses new work when there is none")
    elif free < max(_LOW_BYTES, size // 10):
        yield Check("store", "room", "warn", message, "make room, or set max_store_bytes")
    else:
        yield Check("store", "room", "ok", message)
    if (data_dir / claim.RESERVE_FILE).exists():
        yield Check("store", "reserve", "ok", "the reserve for a full disk is there")
    else:
        advice = "make room; the server makes it again by itself"
        yield Check("store", "reserve", "warn", "the reserve for a full disk was given up, or never made", advice)


def _secret(data_dir: Path) -> Check:
    try:
        secret.read(data_dir / secret.SECRET_FILE)
    except FileNotFoundError:
        advice = (
            f"put the copy of {secret.SECRET_FILE} back; without it the next start makes one, and sessions' keys end"
        )
        return Check("store", "secret", "warn", f"there is no {secret.SECRET_FILE}", advice)
    except StoreError as error:
        return _fail("secret", str(error), "see docs/OPERATIONS.md, Who may call")
    return Check("store", "secret", "ok", "the server's secret is there, and its owner's alone")


def _pages(conn: apsw.Connection, progress: backup.Progress) -> Check:
    progress("pages", 0, 0)
    found = conn.execute("PRAGMA integrity_check(1)").get
    if found != "ok":
        return _fail("pages", f"the file is damaged: {str(found).splitlines()[-1][:200]}", "restore the newest backup")
    return Check("store", "pages", "ok", f"{schema.pragma_int(conn, 'page_count'):,} pages are as they should be")


def _rules(conn: apsw.Connection, progress: backup.Progress) -> Iterator[Check]:
    for at, (name, what, statement) in enumerate(_RULES):
        progress("rows", at, len(_RULES))
        found = [row[0] for row in conn.execute(f"SELECT * FROM ({statement}) LIMIT {_NAMED + 1}")]
        if found:
            some = ", ".join(str(value) for value in found[:_NAMED]) + (", .." if len(found) > _NAMED else "")
            yield _fail(name, f"{what}: {some}", "restore the newest backup, and report this: it is a bug, or damage")
        else:
            yield Check("store", name, "ok", f"no {what}")


def _histories(conn: apsw.Connection, store: Path, verify: Verify, progress: backup.Progress) -> Check:
    total = int(str(conn.execute("SELECT count(*) FROM session").get))
    reader = Reader(lambda: connect.connect(store, reader=True))
    bad: list[str] = []
    done = records = 0
    try:
        for (uid,) in conn.execute("SELECT uid FROM session ORDER BY uid"):
            done += 1
            progress("histories", done, total)
            found = reader.record_lines(uid, -1)
            if found is None:  # forgotten meanwhile
                continue
            row, lines = found
            records += len(lines)
            try:
                verify(row, lines)
            except ValueError as error:
                bad.append(f"{row.session_id} ({error})")
    finally:
        reader.close()
    if bad:
        some = ", ".join(bad[:_NAMED]) + (", .." if len(bad) > _NAMED else "")
        return _fail(
            "histories (I23)", f"{len(bad)} sessions do not verify: {some}", "restore them from dumps, or a backup"
        )
    return Check("store", "histories (I23)", "ok", f"{done:,} sessions, {records:,} records: every hash chain verifies")
