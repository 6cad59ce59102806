"""`roost doctor`: what is well is called so, each thing that is wrong is found, the exit code says if any is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from roost_server import Server, roost

from roost._core import new_admin_key
from roost.cli import doctor, doctor_config
from roost.store import schema
from roost.store.checkup import Check, look

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a tree, an aborted turn, mail, a trajectory with a reward and an end; a copy of it while served."""
    where = tmp_path_factory.mktemp("doctor")
    server = Server(where / "data").start()
    with server.api() as api:
        api.open("root")
        api.open("child", parent_session_id="root")
        for content in (b"one", b"two"):
            api.turn("root", content)
        api.abort("child", api.begin("child").grant.lease, b"half")
        api.send("child", b"letter")
        api.reward("root", 1.0)
        api.finish("root")
        api.begin("root")
        api.open("ended")
        api.turn("ended", b"x")
        api.send("ended", b"unread")
        api.close("ended")
        # Of a served store, by the command; the key, the versions and the clocks of a server too.
        done = roost("doctor", "--data-dir", str(where / "data"), "--target", server.address)
        assert done.returncode == 0, done.stdout
        lines = [line.split() for line in done.stdout.splitlines() if not line.startswith(" ")]
        assert {status for status, *_ in lines} == {"ok"}, done.stdout
        found = {(subject, name.rstrip(":")) for _, subject, name, *_ in lines}
        assert found >= {("store", "pages"), ("store", "histories"), ("store", "turn")}
        names = ("reach", "health", "key", "version", "clock", "latency")
        assert found >= {("server", name) for name in names}
    server.kill()  # its log stays
    return where


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may break."""
    shutil.copytree(data / "data", tmp_path / "data", ignore=shutil.ignore_patterns("*.sock"))
    conn = apsw.Connection(str(tmp_path / "data" / "roost.db"))
    conn.close()  # all in one file
    return tmp_path / "data"


def checks(data_dir: Path, quick: bool = False) -> dict[str, Check]:
    return {check.name: check for check in look(data_dir, None if quick else doctor._verifier())}


def bad(data_dir: Path) -> set[str]:
    return {name for name, check in checks(data_dir).items() if check.status == "fail"}


UID = "(SELECT uid FROM session WHERE session_id = '{}')"

BREAKS = {
    "parents": "UPDATE session SET parent = x'00000000000000000000000000000001' WHERE session_id = 'child'",
    "paths (I16)": "UPDATE session SET path = '/elsewhere' WHERE session_id = 'child'",
    "owners of rewards": "UPDATE reward SET session = zeroblob(16)",
    "owners of trajectories": "UPDATE trajectory SET session = zeroblob(16)",
    "owners of messages": "UPDATE message SET recipient = zeroblob(16), state = 6, due = -1 WHERE state = 1",
    "owners of resources (I20)": "INSERT INTO resource VALUES ('r', zeroblob(16), zeroblob(16), 't', 1, 1, '', '', '', "
    "'', 0, 0, 0, 0, '', NULL)",
    "turn numbers (I4)": f"UPDATE record SET turn = 9 WHERE turn = 2 AND session = {UID.format('root')}",
    "provisionals (I8)": "UPDATE session SET provisional = 0 WHERE session_id = 'child'",
    "newest records (I23)": "UPDATE session SET last = last + 1000 WHERE session_id = 'child'",
    "mail of ended sessions (I15)": f"UPDATE message SET state = 1 WHERE recipient = {UID.format('ended')}",
    "sequence": "UPDATE shard SET last_seq = 1",
    "histories (I23)": f"UPDATE record SET meta = CAST(meta || x'00' AS BLOB) WHERE session = {UID.format('root')}",
}
# What cannot be broken alone.
BESIDE = {
    "parents": {"paths (I16)"},
    "turn numbers (I4)": {"histories (I23)"},
    "newest records (I23)": {"histories (I23)"},
    "provisionals (I8)": {"histories (I23)"},
}


@pytest.mark.parametrize("rule", BREAKS)
def test_each_rule_finds_what_breaks_it(broken: Path, rule: str) -> None:
    assert not bad(broken)
    conn = apsw.Connection(str(broken / "roost.db"))
    conn.execute(BREAKS[rule])
    assert conn.total_changes() > 0
    conn.close()
    found = bad(broken)
    assert rule in found
    assert found <= {rule} | BESIDE.get(rule, set())


def test_records_of_nobody(broken: Path) -> None:
    conn = apsw.Connection(str(broken / "roost.db"))
    conn.execute("DELETE FROM session WHERE session_id = 'ended'")
    conn.close()
    assert bad(broken) == {"owners of records", "owners of messages"}


def test_pages_files_and_versions(broken: Path, tmp_path: Path) -> None:
    (broken / "roost.secret").chmod(0o644)
    (broken / "roost.reserve").unlink()
    found = checks(broken, quick=True)
    assert (found["secret"].status, found["reserve"].status) == ("fail", "warn")
    assert not {"pages", "histories (I23)"} & set(found)
    file = broken / "roost.db"
    content = bytearray(file.read_bytes())
    conn = apsw.Connection(str(file))
    conn.execute(f"PRAGMA user_version = {schema.newest_version() + 1}")
    conn.close()
    assert "run the newer Roost" in checks(broken)["file"].message
    # A page of an index that is not one.
    conn = apsw.Connection(str(file))
    root = int(str(conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'session_tenant'").get))
    conn.close()
    content[(root - 1) * 4096 : (root - 1) * 4096 + 64] = b"\xff" * 64
    file.write_bytes(content)
    assert bad(broken) & {"pages", "file"}
    assert checks(tmp_path)["file"].status == "fail"


def config(file: str | None = None, **flags: Any) -> dict[str, Check]:
    return {check.name: check for check in doctor_config.look(flags, file)}


def test_a_configuration(tmp_path: Path) -> None:
    well = config(
        data_dir=str(tmp_path), max_resident_bytes="64MiB", max_store_bytes="64MiB", dump_target=str(tmp_path)
    )
    assert {check.status for check in well.values()} == {"ok"}
    (tmp_path / "roost.toml").write_text("max_dept = 3")
    assert "max_depth" in config(str(tmp_path / "roost.toml"))["settings"].message
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"listen": "0.0.0.0:7117"}, "listen", "fail"),
        ({"listen": "0.0.0.0:7117", "insecure": True}, "listen", "warn"),
        ({"listen": "nowhere"}, "listen", "fail"),
        ({"dump_target": str(tmp_path / "none")}, "dump_target", "fail"),
        ({}, "dump_target", "warn"),
        ({"http_release_url": "https://a/{name}", "http_release_hosts": ""}, "drivers", "fail"),
        ({"http_release_headers_file": str(tmp_path / "none")}, "http_release_headers_file", "fail"),
        ({"max_resident_bytes": "64TiB"}, "memory", "warn"),
        ({"max_connections": 1_000_000}, "open files", "warn"),
        ({"max_wait_ms": "1h"}, "waits", "warn"),
        ({"max_store_bytes": "1024TiB"}, "data_dir", "warn"),
    )
    for flags, name, status in cases:
        found = config(**{"data_dir": str(tmp_path), **flags})[name]
        assert (found.status, bool(found.advice)) == (status, True), (flags, found)


@pytest.mark.long
def test_exit_codes_and_json(start: Start, tmp_path: Path) -> None:
    gone = roost("doctor", "--target", f"unix:{tmp_path}/none", "--timeout", "0.5", "--json")
    (check,) = json.loads(gone.stdout)
    assert (gone.returncode, gone.stderr, check["status"], check["name"]) == (1, "", "fail", "reach")
    assert roost("doctor", "--config", str(tmp_path / "none")).returncode == 2
    server = start(ROOST_ADMIN_KEY=new_admin_key())
    asked = roost("doctor", "--target", server.address)
    assert asked.returncode == 1
    assert "fail  server  key" in asked.stdout


def test_a_clock_that_is_ahead(start: Start) -> None:
    server = start(clocked=True)
    server.clock.skip(3_600)
    found = {check.name: check for check in doctor._server(server.address, 10)}
    assert (found["clock"].status, found["key"].status) == ("warn", "ok")
    assert "+3600" in found["clock"].message or "+3599" in found["clock"].message
