"""Opening: what a start finds, each failure with its own reason and one sentence, and nothing harmed by it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import Maker, dump, integrity, uid_of

from roost.store import Outcome, SqliteStore, StoreError, claim, connect, schema

Open = Callable[..., SqliteStore]


def refused(open_store: Open, reason: str, path: Path | None = None, **options: Any) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(path, **options)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def made(open_store: Open, sessions: int = 1) -> Path:
    """A store with sessions in it, closed."""
    store = open_store()
    maker = Maker()
    for n in range(1, sessions + 1):
        maker.open(n)
    batch = maker.batch()
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
    store.close()
    return store._path


def test_a_new_store_is_private_and_durable(open_store: Open, tmp_path: Path) -> None:
    store = open_store(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    for path in (tmp_path / "a" / "b").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert store._conn.pragma("journal_mode") == "wal"
    assert store._conn.pragma("synchronous") == 2  # FULL: every commit is synced
    assert store._conn.pragma("application_id") == schema.APPLICATION_ID
    assert store._conn.pragma("user_version") == schema.newest_version()
    assert (len(store.store_id), store.epoch, store.last_seq) == (8, 1, 0)
    assert store.sizes()["reserve_bytes"] == 1 << 20


def test_the_shared_memory_file_has_its_room_beforehand(open_store: Open, directory: Path) -> None:
    """If it had to grow on a full disk, SQLite would call that an I/O error, and the server would stop."""
    open_store()
    assert (directory / "roost.db-shm").stat().st_blocks * 512 >= 1 << 20


def test_the_epoch_grows_at_each_start_and_the_id_stays(open_store: Open) -> None:
    seen = []
    for _ in range(3):
        store = open_store()
        seen.append((store.epoch, store.store_id))
        store.close()
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert len({store_id for _, store_id in seen}) == 1


def test_the_last_sequence_outlives_a_damaged_shard_row(open_store: Open) -> None:
    store = open_store()
    maker = Maker()
    maker.open(1)
    maker.begin(1)
    maker.commit(1)
    batch = maker.batch()
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
    store._conn.execute("UPDATE shard SET last_seq = 0")
    store.close()
    assert open_store().last_seq == batch.last_seq


def test_a_second_server_fails_and_does_no_harm(open_store: Open, directory: Path) -> None:
    first = open_store()
    before = dump(directory / "roost.db")
    message = refused(open_store, "LOCKED")
    assert str(os.getpid()) in message
    assert dump(directory / "roost.db") == before
    first.close()
    assert open_store().epoch == first.epoch + 1


def test_the_lock_ends_with_the_process(open_store: Open, directory: Path) -> None:
    code = (
        "import sys; from roost.store import SqliteStore\n"
        "s = SqliteStore(sys.argv[1], reserve_bytes=4096, reserve_margin=0); print(s.epoch, flush=True)\n"
        "sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(claim.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        assert str(child.pid) in refused(open_store, "LOCKED")
        child.kill()
        child.wait()
    assert open_store().epoch == 2


def test_another_program_with_the_file_open_is_noticed(open_store: Open) -> None:
    path = made(open_store)
    code = (
        "import apsw, sys; c = apsw.Connection(sys.argv[1]); c.execute('SELECT * FROM shard').fetchall()\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        assert str(child.pid) in refused(open_store, "LOCKED")
        child.communicate("")
    assert open_store().epoch == 2


def test_a_database_of_another_program_is_left_alone(open_store: Open, directory: Path) -> None:
    directory.mkdir()
    path = directory / "roost.db"
    with contextlib.closing(apsw.Connection(str(path))) as conn:
        conn.execute("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)")
    before = path.read_bytes()
    assert "another program" in refused(open_store, "NOT_OURS")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"x", b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_left_alone(open_store: Open, directory: Path, content: bytes) -> None:
    directory.mkdir()
    path = directory / "roost.db"
    path.write_bytes(content)
    refused(open_store, "NOT_OURS")
    assert path.read_bytes() == content


def test_a_directory_or_link_in_place_of_the_file(open_store: Open, directory: Path, tmp_path: Path) -> None:
    directory.mkdir()
    (directory / "roost.db").mkdir()
    refused(open_store, "NOT_OURS")
    (directory / "roost.db").rmdir()
    (directory / "roost.db").symlink_to(tmp_path / "elsewhere")
    refused(open_store, "NOT_OURS")
    assert not (tmp_path / "elsewhere").exists()


def test_a_newer_store_is_left_alone(open_store: Open) -> None:
    path = made(open_store)
    with contextlib.closing(apsw.Connection(str(path))) as conn:
        conn.pragma("user_version", schema.newest_version() + 1)
    before = dump(path)
    assert f"version {schema.newest_version() + 1}" in refused(open_store, "NEWER_VERSION")
    assert dump(path) == before


def test_a_store_is_brought_up_to_date_step_by_step(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    path = made(open_store, sessions=3)
    before = dump(path)
    steps = schema.migrations()
    newer = (*steps, (len(steps) + 1, "CREATE TABLE later (a INTEGER) STRICT;"))
    broken = (*newer, (len(steps) + 2, "CREATE TABLE half (a INTEGER) STRICT; CREATE TABLE later (a INTEGER) STRICT;"))
    monkeypatch.setattr(schema, "migrations", lambda: broken)
    refused(open_store, "IO_ERROR")
    with contextlib.closing(apsw.Connection(str(path))) as conn:
        # The step that failed left nothing; the one before it stays.
        assert conn.pragma("user_version") == len(steps) + 1
        assert conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'half'").get is None
    monkeypatch.setattr(schema, "migrations", lambda: newer)
    open_store().close()
    after = dump(path)
    assert after["session"] == before["session"]
    monkeypatch.undo()
    refused(open_store, "NEWER_VERSION")


def _schema(path: Path) -> dict[str, str]:
    """What each table and index is, without its line breaks, comments and the name it had while it was made."""
    with contextlib.closing(apsw.Connection(str(path))) as conn:
        found: list[Any] = conn.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    plain = {name: re.sub(r"--[^\n]*", "", sql).replace(f'"{name}"', name) for name, sql in found}
    return {name: " ".join(sql.split()) for name, sql in plain.items()}


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_earlier_version_keeps_every_row(
    open_store: Open, directory: Path, tmp_path: Path, version: int
) -> None:
    store = open_store()
    maker = Maker()
    for n in (1, 2, 3, 4):
        maker.open(n)
        for turn in range(5):
            maker.begin(n)
            maker.abort(n) if turn % 2 and n > 2 else maker.commit(n, size=5000, state=b"state")
    maker.begin(2)
    batch = maker.batch()
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
    maker.taken()
    ended = maker.batch(maker.close(4))
    assert store.append(0, store.epoch, ended.first_seq, ended) is Outcome.STORED
    store.close()
    store_path = store._path
    now = dump(store_path)

    old = tmp_path / "old"
    old.mkdir(mode=0o700)
    with contextlib.closing(apsw.Connection(str(old / "roost.db"))) as conn:
        conn.pragma("application_id", schema.APPLICATION_ID)
        for _, script in schema.migrations()[:version]:
            conn.execute(script)
        conn.execute("ATTACH ? AS now; DELETE FROM shard", (str(store._path),))
        for table in ("meta", "shard", "session", "record"):
            names = ", ".join(
                str(row[0]) for row in conn.execute("SELECT name FROM main.pragma_table_info(?)", (table,))
            )
            conn.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM now.{table}")
        columns = ", ".join(str(row[0]) for row in conn.execute("SELECT name FROM main.pragma_table_info('session')"))
        conn.pragma("user_version", version)
    (old / "roost.db").chmod(0o600)

    before = (old / "roost.db").read_bytes()
    real = os.statvfs

    def little(path: Any) -> Any:
        found = real(path)
        # With the reserve of one page it is a page too little.
        room = 2 * len(before) // found.f_frsize - 2
        return os.statvfs_result((*found[:4], room, *found[5:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", little)
        assert "newer version" in refused(open_store, "DISK_FULL", old, reserve_bytes=4096)
    assert (old / "roost.db").read_bytes()[100:] == before[100:]
    store = open_store(old)
    assert (store.epoch, store.last_seq, store.service_ms) == (2, ended.last_seq, 0)
    assert sorted(store.running_roots()) == [uid_of(2)]
    maker.taken()
    maker.reward(1, maker.rows[uid_of(1)].last, 0.5)
    maker.finish(1)
    batch = maker.batch()
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
    assert len(store.session_trajectories(uid_of(1))) == 1
    store.close()
    assert integrity(old / "roost.db") == "ok"
    after = dump(old / "roost.db")
    assert after["meta"] == now["meta"]
    assert after["record"][:-1] == now["record"]
    with contextlib.closing(apsw.Connection(str(old / "roost.db"))) as conn:
        conn.execute("ATTACH ? AS now", (str(store_path),))
        rows = f"SELECT {columns} FROM {{}}session WHERE session_id <> 's1' ORDER BY uid"
        assert conn.execute(rows.format("main.")).fetchall() == conn.execute(rows.format("now.")).fetchall()
        # Roots are looked at once, for their facts say when they are stale; who has ended is kept for a week from now.
        fresh = "SELECT session_id, closes, stale_ms, stale_due, cleanup_due FROM session WHERE session_id <> 's1'"
        *there, ended = conn.execute(fresh).fetchall()
        assert there == [("s2", 0, -1, 1, 0), ("s3", 0, -1, 1, 0)]
        assert ended[:4] == ("s4", 1, -1, 0)
        assert 6 * 86_400 < ended[4] / 1_000 - time.time() < 8 * 86_400
    assert _schema(old / "roost.db") == _schema(store_of_today(open_store, tmp_path))


def store_of_today(open_store: Open, tmp_path: Path) -> Path:
    store = open_store(tmp_path / "today")
    store.close()
    return store._path


def test_a_start_that_was_killed_before_the_first_migration_is_begun_again(open_store: Open, directory: Path) -> None:
    directory.mkdir()
    with contextlib.closing(apsw.Connection(str(directory / "roost.db"))) as conn:
        conn.pragma("journal_mode", "WAL")
        conn.execute("CREATE TABLE a (b); DROP TABLE a")
    assert open_store().epoch == 1


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096 * 3)


def _smear(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 64)


def _header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\xff" * 30)


def _schema_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xee" * 50)


@pytest.mark.parametrize("damage", [_cut, _smear, _header, _schema_page])
def test_a_damaged_file_is_not_served(open_store: Open, damage: Callable[[Path], None]) -> None:
    path = made(open_store, sessions=200)
    damage(path)
    assert "backup" in refused(open_store, "CORRUPT")


def test_a_big_file_is_not_read_through_at_start(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(open_store, sessions=200)
    monkeypatch.setattr(connect, "QUICK_CHECK_BYTES", 4096)
    store = open_store()
    assert store.epoch == 2
    store.close()
    _cut(path)
    refused(open_store, "CORRUPT")


def test_a_data_dir_that_is_a_file(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(open_store, "NOT_A_DIRECTORY", tmp_path / "file")
    refused(open_store, "NOT_A_DIRECTORY", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """As somebody whom permissions bind: root they do not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_cannot_be_written(open_store: Open, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    with _as_nobody():
        refused(open_store, "UNWRITABLE", closed)
        refused(open_store, "UNWRITABLE", closed / "below")
    assert list(closed.iterdir()) == []


def test_a_file_system_without_locks_says_so(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused(open_store, "UNWRITABLE")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:50 / /mnt/share rw - {kind} server:/export rw
31 30 0:51 / /mnt/share/local\\040disk rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.s3fs", "lustre"])
def test_a_network_file_system_is_refused(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, kind: str, directory: Path
) -> None:
    mounts = MOUNTS.format(kind=kind)
    assert claim.network_file_system(Path("/mnt/share/data"), mounts) == kind
    assert claim.network_file_system(Path("/mnt/share"), mounts) == kind
    assert claim.network_file_system(Path("/mnt/shared"), mounts) is None
    assert claim.network_file_system(Path("/mnt/share/local disk/data"), mounts) is None
    assert claim.network_file_system(Path("/home"), mounts) is None
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"22 1 254:0 / / rw - {kind} x rw\n")
    assert kind in refused(open_store, "NETWORK_FS")
    monkeypatch.undo()
    assert not directory.exists()  # nothing was made there


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "zfs"])
def test_a_local_file_system_is_welcome(kind: str) -> None:
    assert claim.network_file_system(Path("/mnt/share/data"), MOUNTS.format(kind=kind)) is None


def test_without_proc_statfs_decides(tmp_path: Path) -> None:
    assert claim._statfs_network(tmp_path) is None


def test_an_old_sqlite_is_refused(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    refused(open_store, "SQLITE_TOO_OLD")
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    open_store()


def test_a_failed_start_gives_the_directory_up(open_store: Open, directory: Path) -> None:
    directory.mkdir()
    (directory / "roost.db").write_bytes(b"x" * 1000)
    refused(open_store, "NOT_OURS")
    (directory / "roost.db").unlink()
    open_store()


def test_close_leaves_one_whole_file(open_store: Open, directory: Path) -> None:
    path = made(open_store, sessions=5)
    assert sorted(entry.name for entry in directory.iterdir()) == [
        "roost.db",
        "roost.lock",
        "roost.reserve",
        "roost.secret",
    ]
    assert integrity(path) == "ok"
    assert len(dump(path)["session"]) == 5


def test_close_twice_is_nothing(open_store: Open) -> None:
    store = open_store()
    store.close()
    store.close()
