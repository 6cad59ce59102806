"""A start that cannot succeed says so in one sentence, with its exit code, and has changed nothing."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
from pathlib import Path

import pytest
from conftest import Start
from roost_server import Server, roost


def test_a_store_in_use_is_not_opened_twice(shared: Server) -> None:
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(shared.data_dir))
    assert ended.returncode == 69
    assert _one_sentence(ended.stderr)
    assert str(shared.data_dir) in ended.stderr


def test_a_store_locked_by_another_program(tmp_path: Path, start: Start) -> None:
    server = start()
    server.terminate()
    store = next(path for path in server.data_dir.iterdir() if path.name.endswith((".db", ".sqlite", ".sqlite3")))
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(server.data_dir))
    other.close()
    assert ended.returncode == 69
    assert _one_sentence(ended.stderr)
    server.start()


@pytest.mark.parametrize("content", [b"this is no database at all" * 200, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_store_that_is_not_ours_or_corrupt(tmp_path: Path, start: Start, content: bytes) -> None:
    server = start()
    server.terminate()
    store = next(path for path in server.data_dir.iterdir() if path.name.endswith((".db", ".sqlite", ".sqlite3")))
    store.write_bytes(content)
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(server.data_dir))
    assert ended.returncode == 69
    assert _one_sentence(ended.stderr)
    assert store.read_bytes() == content


def test_an_unwritable_directory(tmp_path: Path) -> None:
    """As root, permissions do not hold: a file where the directory should be, and a place that takes none."""
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/roost")):
        ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir))
        assert ended.returncode == 69
        assert _one_sentence(ended.stderr)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "locked" / "data"))
        assert ended.returncode == 69
        assert _one_sentence(ended.stderr)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = roost("serve", "--listen", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "data"))
    assert ended.returncode == 69
    assert ended.stderr == f"roost: cannot listen on 127.0.0.1:{port}: the port is in use\n"
    assert not (tmp_path / "data").exists()


def test_the_port_of_a_running_server(shared: Server, tmp_path: Path) -> None:
    ended = roost("serve", "--listen", shared.address, "--data-dir", str(tmp_path / "data"))
    assert ended.stderr == f"roost: cannot listen on {shared.address}: the port is in use\n"


@pytest.mark.parametrize(
    ("listen", "code", "says"),
    [
        ("0.0.0.0:0", 78, "can be reached from other machines"),
        ("[::]:0", 78, "can be reached from other machines"),
        ("nonsense", 78, "neither host:port"),
        ("127.0.0.1:65536", 78, "neither host:port"),
        ("127.0.0.1:-1", 78, "neither host:port"),
        ("unix:", 78, "a path must follow"),
        ("unix:/" + "x" * 200, 78, "at most 107"),
        ("unix:/nowhere/at/all.sock", 69, "does not exist"),
        ("no.such.host.invalid:1", 69, "is not known"),
    ],
)
def test_bad_addresses(tmp_path: Path, listen: str, code: int, says: str) -> None:
    ended = roost("serve", "--listen", listen, "--data-dir", str(tmp_path / "data"))
    assert (ended.returncode, says in ended.stderr) == (code, True), ended.stderr
    assert _one_sentence(ended.stderr)
    assert not (tmp_path / "data").exists()


def test_unix_sockets_are_private_and_stale_ones_are_replaced(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "roost.sock"
    server = start(listen=f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    with server.api() as api:
        assert api.open().created
    second = roost("serve", "--listen", f"unix:{path}", "--data-dir", str(tmp_path / "other"))
    assert (second.returncode, "another server listens there" in second.stderr) == (69, True)
    server.kill()
    assert path.exists()
    server.start()
    with server.api() as api:
        assert api.open().created
    assert server.terminate() == 0
    assert not path.exists()
    path.write_text("not a socket")
    third = roost("serve", "--listen", f"unix:{path}", "--data-dir", str(tmp_path / "other"))
    assert (third.returncode, "not a socket" in third.stderr) == (69, True)
    assert path.read_text() == "not a socket"


def test_a_lock_file_left_by_a_crash_locks_nobody_out(start: Start) -> None:
    server = start()
    server.kill()
    for path in filter(Path.is_file, server.data_dir.iterdir()):
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more
    server.start()


def _one_sentence(text: str) -> bool:
    lines = [line for line in text.splitlines() if not line.startswith("{")]  # log lines are JSON
    return len(lines) == 1 and lines[0].startswith("roost: ") and "Traceback" not in text
