"""Backups and restores of a store: whole and verified or not there, and another line of the store from then on."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import FakeBatch, Maker, dump, integrity, take

from roost.store import Outcome, SqliteStore, StoreError, backup, claim
from roost.store.backup import MANIFEST, back_up, read_manifest, verify
from roost.store.restore import PARTIAL, restore

Open = Callable[..., SqliteStore]
Put = Callable[[FakeBatch], Outcome]

PRESENT = 300  # lines of one store may be this far apart in the tests


@pytest.fixture
def maker(put: Put) -> Maker:
    """Four sessions with records, stored; a turn runs in the fourth."""
    maker = Maker()
    for n in range(1, 5):
        maker.open(n)
        take(put, maker)
        maker.begin(n)
        if n < 4:
            take(put, maker)
            maker.commit(n, size=20_000, state=b"state")
    take(put, maker)
    return maker


def files(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


def refused(reason: str, call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    with pytest.raises(StoreError) as caught:
        call(*arguments, **more)
    assert caught.value.reason == reason, caught.value
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def without_jumps(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows but those that a restore counts on: the shard's, and the fences."""
    rows = dump(path)
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    columns = [str(row[1]) for row in conn.execute("PRAGMA table_info(session)")]
    conn.close()
    fence = columns.index("fence")
    rows["session"] = [row[:fence] + row[fence + 1 :] for row in rows["session"]]
    del rows["shard"]
    return rows


def test_a_backup_of_a_served_store_holds_what_is_in_its_log(
    store: SqliteStore, maker: Maker, put: Put, directory: Path, tmp_path: Path
) -> None:
    log = directory / "roost.db-wal"
    assert log.stat().st_size > 20_000, "the test is about rows that are not in the file yet"
    manifest = back_up(directory, tmp_path / "b")
    assert sorted(files(tmp_path / "b")) == [MANIFEST, "roost.db"]
    for path in (tmp_path / "b", *(tmp_path / "b").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert dump(tmp_path / "b" / "roost.db") == dump(directory / "roost.db")
    assert integrity(tmp_path / "b" / "roost.db") == "ok"
    assert (manifest.store_id, manifest.epoch, manifest.last_seq) == (
        store.store_id,
        1,
        store.last_seq + maker.next_seq - 1,
    )
    assert (manifest.counts["session"], manifest.counts["record"]) == (4, 3)
    assert verify(tmp_path / "b") == read_manifest(tmp_path / "b") == manifest
    # The store is as it was, and goes on.
    maker.commit(4)
    take(put, maker)
    assert dump(tmp_path / "b" / "roost.db") != dump(directory / "roost.db")


def test_a_backup_is_of_one_instant(
    store: SqliteStore, maker: Maker, put: Put, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored while it copies is not in it, and does not make it begin anew."""
    before = dump(directory / "roost.db")
    ticks = 0
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)

    def meanwhile(what: str, done: int, total: int) -> None:
        nonlocal ticks
        if what == "copy" and ticks < 5:
            assert done < total
            ticks += 1
            maker.begin(1)
            take(put, maker)
            maker.commit(1, size=200_000)
            take(put, maker)
            store.idle()

    back_up(directory, tmp_path / "b", progress=meanwhile)
    assert ticks == 5
    assert dump(tmp_path / "b" / "roost.db") == before
    assert dump(directory / "roost.db") != before


def test_nobody_waits_for_a_backup(store: SqliteStore, maker: Maker, put: Put, directory: Path) -> None:
    """A reader keeps the log from being emptied: the writer must not stand still until it ends."""
    reader = apsw.Connection(str(directory / "roost.db"), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM session").get == 4
    maker.commit(4)
    take(put, maker)
    waited: list[int] = []
    store._conn.set_busy_handler(lambda n: waited.append(n) or False)  # what SQLite would call to wait
    store.idle()
    assert not waited
    reader.close()
    store.idle()
    assert (directory / "roost.db-wal").stat().st_size == 0


def test_a_server_starts_while_a_backup_reads(open_store: Open, directory: Path) -> None:
    store = open_store()
    store.close()
    reading = (
        "import sys; from pathlib import Path; from roost.store import claim, connect\n"
        "where = Path(sys.argv[1])\n"
        "mark = claim.reader_mark(where) if sys.argv[2] == 'marked' else None\n"
        "conn = connect.connect(where / 'roost.db', reader=True); conn.execute('BEGIN')\n"
        "print(conn.execute('SELECT count(*) FROM session').get, flush=True); sys.stdin.read()\n"
    )
    for marked, starts in (("marked", True), ("not", False)):
        command = [sys.executable, "-c", reading, str(directory), marked]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"0\n"
            if starts:
                open_store().close()
            else:
                assert str(process.pid) in refused("LOCKED", open_store)
            process.communicate(b"")


def test_a_stopped_store_is_backed_up_with_its_log(
    store: SqliteStore, maker: Maker, directory: Path, tmp_path: Path
) -> None:
    """As a crash left it."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("roost.db", "roost.db-wal"):
        (crashed / name).write_bytes((directory / name).read_bytes())
    back_up(crashed, tmp_path / "b")
    assert dump(tmp_path / "b" / "roost.db") == dump(directory / "roost.db")


def test_the_secret_is_in_it_only_if_asked_for(store: SqliteStore, directory: Path, tmp_path: Path) -> None:
    plain = back_up(directory, tmp_path / "plain")
    whole = back_up(directory, tmp_path / "whole", with_secret=True)
    assert store.secret not in b"".join(files(tmp_path / "plain").values())
    assert (tmp_path / "whole" / "roost.secret").read_bytes() == store.secret
    assert plain.secret_sha256 == whole.secret_sha256 == hashlib.sha256(store.secret).hexdigest()
    # Each way to bring it back, and another one.
    (tmp_path / "other").write_bytes(b"x" * 32)
    (tmp_path / "other").chmod(0o600)
    message = refused("BAD_SECRET", restore, tmp_path / "plain", tmp_path / "r", secret_file=tmp_path / "other")
    assert "not that of the store" in message
    refused("BAD_SECRET", restore, tmp_path / "plain", tmp_path / "r", secret_file=tmp_path / "missing")
    assert not (tmp_path / "r").exists()
    said = [
        restore(tmp_path / "plain", tmp_path / "r1").secret,
        restore(tmp_path / "plain", tmp_path / "r2", secret_file=directory / "roost.secret").secret,
        restore(tmp_path / "whole", tmp_path / "r3").secret,
    ]
    assert said == ["none", "given", "given"]
    assert not (tmp_path / "r1" / "roost.secret").exists()
    for name in ("r2", "r3"):
        assert (tmp_path / name / "roost.secret").read_bytes() == store.secret
        assert stat.S_IMODE((tmp_path / name / "roost.secret").stat().st_mode) == 0o600
    # One that is there already is left alone.
    (tmp_path / "r4").mkdir()
    (tmp_path / "other").rename(tmp_path / "r4" / "roost.secret")
    refused("BAD_SECRET", restore, tmp_path / "whole", tmp_path / "r4")
    assert restore(tmp_path / "plain", tmp_path / "r4").secret == "other"
    assert (tmp_path / "r4" / "roost.secret").read_bytes() == b"x" * 32


def test_a_place_that_is_taken_is_left_alone(store: SqliteStore, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").write_text("mine")
    refused("EXISTS", back_up, directory, tmp_path / "b")
    assert files(tmp_path / "b") == {"precious": b"mine"}
    refused("UNWRITABLE", back_up, directory, tmp_path / "not" / "mounted")
    refused("NO_STORE", back_up, tmp_path, tmp_path / "c")
    (tmp_path / "db").mkdir()
    apsw.Connection(str(tmp_path / "db" / "roost.db")).execute("CREATE TABLE t (x)")
    refused("NOT_OURS", back_up, tmp_path / "db", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "data", "db"]


def test_a_restored_store_is_another_line(
    store: SqliteStore, maker: Maker, put: Put, open_store: Open, directory: Path, tmp_path: Path
) -> None:
    back_up(directory, tmp_path / "b")
    # The other line goes on, and is started again and again.
    maker.commit(4)
    take(put, maker)
    store.close()
    for _ in range(3):
        store = open_store()
        store.close()
    seen = store.epoch, maker.next_seq
    taken = files(tmp_path / "b")
    done = restore(tmp_path / "b", tmp_path / "r")
    assert files(tmp_path / "b") == taken
    assert sorted(entry.name for entry in (tmp_path / "r").iterdir()) == ["roost.db", "roost.lock"]
    assert without_jumps(tmp_path / "r" / "roost.db") == without_jumps(tmp_path / "b" / "roost.db")
    assert done.epoch >= seen[0] + PRESENT
    assert done.last_seq >= seen[1] + (1 << 30)
    new = open_store(tmp_path / "r")
    assert (new.store_id, new.epoch, new.last_seq) == (store.store_id, done.epoch + 1, done.last_seq)
    # A fence is never given twice; a turn that runs keeps its own.
    columns = "SELECT uid, fence, running FROM session ORDER BY uid"
    old = apsw.Connection(str(tmp_path / "b" / "roost.db")).execute(columns).fetchall()
    for (uid, fence, running), row in zip(old, new._conn.execute(columns).fetchall(), strict=True):
        assert row == (uid, fence if running else fence + (1 << 20), running)
    # It is appended to as any other.
    maker = Maker(new.last_seq + 1)
    maker.open(9)
    batch = maker.batch()
    assert new.append(0, new.epoch, batch.first_seq, batch) is Outcome.STORED


def test_lines_of_one_backup_differ(
    store: SqliteStore, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is written into one line is known to the next."""
    back_up(directory, tmp_path / "b")
    first = restore(tmp_path / "b", tmp_path / "r1")
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    second = restore(tmp_path / "b", tmp_path / "r2")
    assert second.epoch >= first.epoch + 2
    assert second.last_seq >= first.last_seq + (100 << 20)


def test_only_a_place_without_a_store_is_restored_into(
    store: SqliteStore, maker: Maker, open_store: Open, directory: Path, tmp_path: Path
) -> None:
    back_up(directory, tmp_path / "b")
    assert f"process {os.getpid()}" in refused("LOCKED", restore, tmp_path / "b", directory, replace=True)
    store.close()
    before = files(directory)
    assert "--replace" in refused("EXISTS", restore, tmp_path / "b", directory)
    assert files(directory) == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused("EXISTS", restore, tmp_path / "b", strange)
    assert files(strange) == {"thesis.txt": b"mine"}
    # What a store without its file leaves is no store.
    (directory / "roost.db").unlink()
    restore(tmp_path / "b", directory)
    open_store().close()


def test_a_store_that_is_replaced_is_kept(
    store: SqliteStore, maker: Maker, put: Put, open_store: Open, directory: Path, tmp_path: Path
) -> None:
    back_up(directory, tmp_path / "b")
    maker.commit(4)
    take(put, maker)
    store.close()
    conn = apsw.Connection(str(directory / "roost.db"))  # as a server of long ago, or one whose clock was ahead
    conn.execute("UPDATE shard SET epoch = 99999999")
    conn.close()
    now = dump(directory / "roost.db")
    done = restore(tmp_path / "b", directory, replace=True)
    assert done.epoch == 100_000_000
    assert done.replaced == directory / "replaced-schema-7-epoch-99999999"
    assert dump(done.replaced / "roost.db") == now
    assert without_jumps(directory / "roost.db") == without_jumps(tmp_path / "b" / "roost.db")
    # And back again.
    back_up(done.replaced, tmp_path / "again")
    restore(tmp_path / "again", directory, replace=True)
    assert without_jumps(directory / "roost.db")["record"] == now["record"]
    open_store().close()


def test_a_log_that_cannot_be_closed_keeps_its_store(
    store: SqliteStore, maker: Maker, directory: Path, tmp_path: Path
) -> None:
    """A log that stayed behind would be played into the file that comes from the backup."""
    back_up(directory, tmp_path / "b")
    store.close()
    holding = (
        "import apsw, sys; c = apsw.Connection(sys.argv[1]); c.execute('BEGIN')\n"
        "print(c.execute('SELECT count(*) FROM session').get, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holding, str(directory / "roost.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = dump(directory / "roost.db")
        assert str(process.pid) in refused("LOCKED", restore, tmp_path / "b", directory, replace=True)
        assert dump(directory / "roost.db") == before
        process.communicate(b"")
    restore(tmp_path / "b", directory, replace=True)


def test_what_is_damaged_is_not_restored(store: SqliteStore, maker: Maker, directory: Path, tmp_path: Path) -> None:
    manifest = back_up(directory, tmp_path / "b", with_secret=True)
    good = files(tmp_path / "b")

    def broken(name: str, content: bytes | None) -> None:
        """The backup with one file changed or gone: neither verified nor restored."""
        path = tmp_path / "b" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o600)
        for call, arguments in ((verify, (tmp_path / "b",)), (restore, (tmp_path / "b", tmp_path / "r"))):
            with pytest.raises(StoreError) as caught:
                call(*arguments)
            assert caught.value.reason in {
                "BAD_BACKUP",
                "NO_BACKUP",
                "BAD_SECRET",
                "CORRUPT",
                "NEWER_VERSION",
                "IO_ERROR",
            }
            assert not (tmp_path / "r" / "roost.db").exists()
            assert not (tmp_path / "r" / PARTIAL).exists()
        path.unlink(missing_ok=True)
        path.write_bytes(good[name])
        path.chmod(0o600)

    database, text = good["roost.db"], good[MANIFEST].decode()
    broken("roost.db", database[:-4096])
    broken("roost.db", database[: len(database) // 2] + b"\xff" + database[len(database) // 2 + 1 :])
    broken("roost.db", None)
    broken("roost.secret", b"y" * 32)
    broken("roost.secret", None)
    broken(MANIFEST, None)
    broken(MANIFEST, text[:-20].encode())
    for name, value in (("store_id", "00000000"), ("epoch", 3), ("schema_version", 99), ("format", 2), ("counts", {})):
        broken(MANIFEST, json.dumps(json.loads(text) | {name: value}).encode())
    # A file whose checksum fits and whose pages do not.
    torn = tmp_path / "torn.db"
    torn.write_bytes(database)
    conn = apsw.Connection(str(torn))
    conn.pragma("writable_schema", True)
    conn.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'running = 1', 'running = 0') WHERE name = 'session_running'"
    )
    conn.close()
    content = torn.read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    told = json.loads(text)
    told["files"]["roost.db"] = entry
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(told))
    broken("roost.db", content)
    (tmp_path / "b" / MANIFEST).write_text(text)
    assert verify(tmp_path / "b") == manifest
    restore(tmp_path / "b", tmp_path / "r")


def test_a_restore_that_did_not_end_lets_no_empty_store_be_made(
    open_store: Open, directory: Path, tmp_path: Path
) -> None:
    open_store().close()
    back_up(directory, tmp_path / "b")
    half = tmp_path / "half"
    (half / PARTIAL).mkdir(parents=True)
    assert PARTIAL in refused("UNFINISHED", open_store, half)
    assert not (half / claim.STORE_FILE).exists()
    restore(tmp_path / "b", half)
    assert open_store(half).store_id == read_manifest(tmp_path / "b").store_id


def test_two_backups_to_one_place_do_not_mix(store: SqliteStore, maker: Maker, directory: Path, tmp_path: Path) -> None:
    told = []

    def second(point: str) -> None:
        if point == "backup.copied":
            told.append(refused("LOCKED", back_up, directory, tmp_path / "b"))

    back_up(directory, tmp_path / "b", at=second)
    assert told
    verify(tmp_path / "b")
