"""How a server gets its admin key, what it refuses to take for one, and where it refuses to listen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import grpc
import pytest
from api_keys import ADMIN, OTHER_ADMIN, keyed
from conftest import Start
from roost_server import Server, refused, roost

from roost._core import new_admin_key

SERVE = ("serve", "--listen", "127.0.0.1:0")


def key_file(directory: Path, content: str = ADMIN + "\n", mode: int = 0o600) -> Path:
    path = directory / "admin.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def accepts(server: Server, key: str) -> bool:
    with keyed(server, key) as api:
        try:
            return bool(api.stats().version)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017
            return False


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_an_admin_key_from_a_file(tmp_path: Path, start: Start, mode: int) -> None:
    server = start("--admin-key-file", str(key_file(tmp_path, mode=mode)))
    assert accepts(server, ADMIN)
    assert not accepts(server, OTHER_ADMIN)


def test_an_admin_key_from_the_environment_and_a_file_named_there(tmp_path: Path, start: Start) -> None:
    server = start(ROOST_ADMIN_KEY=f" {ADMIN}\n")
    assert accepts(server, ADMIN)
    # Nothing that this server starts inherits it.
    server.terminate()
    server = start(ROOST_ADMIN_KEY_FILE=str(key_file(tmp_path, OTHER_ADMIN)))
    assert accepts(server, OTHER_ADMIN)
    assert not accepts(server, ADMIN)


def test_the_admin_key_is_replaced_by_a_restart(tmp_path: Path, start: Start) -> None:
    start(ROOST_ADMIN_KEY=ADMIN).terminate()
    server = start(ROOST_ADMIN_KEY=OTHER_ADMIN)
    assert accepts(server, OTHER_ADMIN)
    assert not accepts(server, ADMIN)


WEAK = "roost_admin_" + "0" * 32 + "_" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        ("", 0o600, "form"),
        ("correct horse battery staple", 0o600, "form"),
        (ADMIN[:-1], 0o600, "form"),
        (ADMIN.upper(), 0o600, "form"),
        (f"{ADMIN}\n{OTHER_ADMIN}", 0o600, "form"),
        (ADMIN.replace("_admin_", "_tenant_"), 0o600, "another kind"),
        (WEAK, 0o600, "not random"),
        (ADMIN, 0o644, "mode 0644"),
        (ADMIN, 0o620, "mode 0620"),
        (ADMIN, 0o604, "mode 0604"),
    ],
)
def test_a_bad_admin_key_file_is_refused(tmp_path: Path, content: str, mode: int, why: str) -> None:
    path = key_file(tmp_path, content, mode)
    ended = roost(*SERVE, "--data-dir", str(tmp_path / "data"), "--admin-key-file", str(path))
    one_sentence(ended.stderr, why)
    assert ended.returncode == 78
    assert content == "" or content not in ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_missing_admin_key_file_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (("nothing", "No such file"), (".", "not a file"), ("pipe", "not a file")):
        ended = roost(*SERVE, "--data-dir", str(tmp_path / "data"), "--admin-key-file", str(tmp_path / name))
        one_sentence(ended.stderr, why)
        assert ended.returncode == 78


def test_a_bad_key_in_the_environment_and_two_sources_are_refused(tmp_path: Path) -> None:
    data_dir = ("--data-dir", str(tmp_path / "data"))
    ended = roost(*SERVE, *data_dir, ROOST_ADMIN_KEY=WEAK)
    assert (ended.returncode, WEAK in ended.stderr) == (78, False)
    one_sentence(ended.stderr, "not random")
    # Set and empty is a mistake, not a server without keys.
    ended = roost(*SERVE, *data_dir, ROOST_ADMIN_KEY="")
    assert ended.returncode == 78
    ended = roost(*SERVE, *data_dir, "--admin-key-file", str(key_file(tmp_path)), ROOST_ADMIN_KEY=ADMIN)
    assert ended.returncode == 78
    one_sentence(ended.stderr, "both set")


def test_the_configuration_shows_no_key() -> None:
    shown = roost("config", "show", "-o", "json", ROOST_ADMIN_KEY=ADMIN)
    assert shown.returncode == 0
    assert ADMIN.rpartition("_")[2] not in shown.stdout + shown.stderr


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_secret_is_not_replaced(start: Start, content: bytes) -> None:
    server = start(ROOST_ADMIN_KEY=ADMIN)
    server.terminate()
    secret = server.data_dir / "roost.secret"
    secret.write_bytes(content)
    ended = roost(*SERVE, "--data-dir", str(server.data_dir))
    assert ended.returncode == 69
    one_sentence(ended.stderr, "damaged")
    assert secret.read_bytes() == content


def test_a_secret_that_others_can_read_is_refused(start: Start) -> None:
    server = start()
    server.terminate()
    secret = server.data_dir / "roost.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.chmod(0o640)
    ended = roost(*SERVE, "--data-dir", str(server.data_dir))
    assert ended.returncode == 69
    one_sentence(ended.stderr, "mode 0600")


def test_half_a_secret_of_a_crashed_start_is_no_secret(start: Start) -> None:
    server = start()
    server.terminate()
    (server.data_dir / "roost.secret").unlink()
    (server.data_dir / "roost.secret-new").write_bytes(b"half")
    start().terminate()
    assert len((server.data_dir / "roost.secret").read_bytes()) == 32
    assert not (server.data_dir / "roost.secret-new").exists()


# -- where it listens


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
def test_plaintext_beyond_this_machine_is_refused(tmp_path: Path, listen: str, keys: bool) -> None:
    env = {"ROOST_ADMIN_KEY": ADMIN} if keys else {}
    ended = roost("serve", "--listen", listen, "--data-dir", str(tmp_path / "data"), **env)
    assert ended.returncode == 78
    one_sentence(ended.stderr, "--insecure")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
def test_insecure_is_warned_of(start: Start, keys: bool) -> None:
    env = {"ROOST_ADMIN_KEY": ADMIN} if keys else {}
    server = start("--insecure", listen="0.0.0.0:0", **env)
    server.terminate()
    warned = [line for line in server.logged.splitlines() if '"event": "insecure"' in line]
    assert len(warned) == 1
    assert '"level": "warning"' in warned[0]
    assert ("in plaintext" if keys else "may do everything") in warned[0]


def test_loopback_and_unix_sockets_need_neither(tmp_path: Path, start: Start) -> None:
    for listen in ("127.0.0.1:0", "localhost:0", f"unix:{tmp_path}/s"):
        server = start(listen=listen)
        with server.api() as api:
            assert api.open().created
        server.terminate()
        assert '"insecure"' not in server.logged


def test_a_new_admin_key_works(tmp_path: Path, start: Start) -> None:
    assert new_admin_key() != new_admin_key()
    file = tmp_path / "made.key"
    made = roost("keys", "new-admin-key", str(file))
    assert (made.returncode, made.stdout) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_text().strip()
    assert key not in made.stderr
    server = start("--admin-key-file", str(file))
    assert accepts(server, key)
    with server.api() as api, refused(grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID"):
        api.stats()
    again = roost("keys", "new-admin-key", str(file))
    assert again.returncode == 69
    assert file.read_text().strip() == key


def one_sentence(stderr: str, part: str) -> None:
    assert stderr.startswith("roost: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert part in stderr
