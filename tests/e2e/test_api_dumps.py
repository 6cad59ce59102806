"""Sessions that end are dumped before they are CLOSED, by a real server: to a directory, to an S3 server (I12, I14)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import Api, ClockedServer, refused, roost, until
from s3_server import S3, running

from roost.handlers.dump.reader import list_dumps, verify_dump
from roost.handlers.dump.target import open_target
from roost.v1 import types_pb2 as types

SEALED, CLOSED = types.SESSION_STATE_SEALED, types.SESSION_STATE_CLOSED
FAILED = grpc.StatusCode.FAILED_PRECONDITION
HURTFUL = ("..", "a" * 256, "A-b", "a-B", "x:y", "con", "." * 128, "-rf")


def dumps(where: str, options: dict[str, str] | None = None) -> list[str]:
    """The names of all dumps there, each verified."""

    async def all_of_them() -> list[str]:
        target = open_target(where, options or {})
        page = await list_dumps(target)
        for name in page:
            await verify_dump(target, name)
        return page

    return asyncio.run(all_of_them())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "dumps"
    made.mkdir()
    return made


def played(api: Api, turns: int = 3, **options: Any) -> str:
    name = api.open(**options).session.session_id
    for n in range(turns):
        api.turn(name, b"turn %d" % n)
    return str(name)


def test_a_closed_session_is_dumped_once_under_the_name_of_its_receipt(start: Start, place: Path) -> None:
    server = start("--dump-target", str(place))
    with server.api() as api:
        root = played(api)
        child = played(api, parent_session_id=root)
        receipt = api.close(root).receipt
        until(lambda: {api.get(name).state for name in (root, child)} == {CLOSED})
        assert api.get(root).receipt == receipt
        names = [api.get(name).receipt.dump_name for name in (root, child)]
        assert dumps(str(place)) == sorted(names)
        cleanup = api.get(root).cleanup
        assert cleanup.HasField("dump_time")
        assert cleanup.dump_bytes > 0
        assert len(cleanup.dump_sha256) == 32
        assert api.stats().counters["sessions_dumped"] == 2
        # Another close is another dump, and the first stays.
        assert api.reopen(root).reopened == 2
        api.turn(root, b"more")
        second = api.close(root).receipt
        until(lambda: {api.get(name).state for name in (root, child)} == {CLOSED})
        assert second.dump_name == receipt.dump_name.removesuffix("-1") + "-2"
        assert len(dumps(str(place))) == 4
    done = roost("dumps", "verify", str(place))
    assert done.returncode == 0, done.stderr


def test_ids_built_to_hurt_stay_in_the_directory_and_apart(start: Start, place: Path) -> None:
    before = sorted(path.name for path in place.parent.iterdir())
    with start("--dump-target", str(place)).api() as api:
        for name in HURTFUL:
            api.open(name)
            api.turn(name, name.encode())
            api.close(name)
        until(lambda: all(api.get(name).state == CLOSED for name in HURTFUL))
        assert len(dumps(str(place))) == len(HURTFUL)
    (tenant,) = place.iterdir()
    assert {path.name[-2:] for path in tenant.iterdir()} == {"-1"}
    assert sorted(path.name for path in place.parent.iterdir()) == sorted({*before, "data"})


def test_a_target_that_is_gone_holds_up_only_the_dumps_and_is_used_when_it_is_back(
    start: Start, tmp_path: Path
) -> None:
    missing = tmp_path / "later"
    with start("--dump-target", str(missing)).api() as api:
        waiting = [played(api) for _ in range(5)]
        for name in waiting:
            api.close(name)
        until(lambda: all(api.get(name).cleanup.attempts for name in waiting))
        session = api.get(waiting[0])
        assert session.state == SEALED
        assert session.cleanup.error.startswith("unreachable: ")
        with refused(FAILED, "SESSION_SEALED"):
            api.reopen(waiting[0])
        # Everything else goes on.
        assert len(api.history(waiting[0])) == 3
        other = played(api)
        api.turn(other)
        assert api.close(waiting[0]).receipt == session.receipt
        missing.mkdir()
        until(lambda: all(api.get(name).state == CLOSED for name in waiting))
        assert len(dumps(str(missing))) == len(waiting)
        assert not api.get(waiting[0]).cleanup.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_may_not_be_written_is_told(start: Start, place: Path) -> None:
    place.chmod(0o500)
    with start("--dump-target", str(place)).api() as api:
        name = played(api)
        api.close(name)
        until(lambda: api.get(name).cleanup.attempts)
        assert api.get(name).cleanup.error.startswith("denied: ")
        place.chmod(0o700)
        until(lambda: api.get(name).state == CLOSED)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running() as server:
        yield server


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (("500 Internal Server Error", "InternalError"), "server-error"),
        (("507 Insufficient Storage", "InsufficientStorage"), "full"),
        (("403 Forbidden", "AccessDenied"), "denied"),
        ("hang", "slow"),
    ],
    ids=["500", "full", "denied", "hang"],
)
def test_an_s3_server_in_trouble_is_waited_for(start: Start, s3: S3, trouble: Any, why: str) -> None:
    options = s3.options
    env = {
        "AWS_ENDPOINT_URL": options["endpoint"],
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": options["region"],
        "AWS_ACCESS_KEY_ID": options["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
    }
    where = f"s3://bucket/{why}"
    server = start("--dump-target", where, "--set", "dump_timeout_ms=500", **env)
    s3.trouble = lambda method, _: trouble if method == "PUT" else None
    try:
        with server.api() as api:
            names = [played(api) for _ in range(3)]
            for name in names:
                api.close(name)
            until(lambda: all(api.get(name).cleanup.attempts for name in names))
            assert {api.get(name).state for name in names} == {SEALED}
            played(api)
            # I25: neither the log nor the session says a secret.
            assert api.get(names[0]).cleanup.error.startswith(f"{why}: ")
            s3.trouble = lambda _method, _path: None
            until(lambda: all(api.get(name).state == CLOSED for name in names))
            assert len(dumps(where, options)) == 3
            assert options["secret_access_key"] not in api.get(names[0]).cleanup.error
        server.terminate()
        assert options["secret_access_key"] not in server.logged
    finally:
        s3.trouble = lambda _method, _path: None


def test_i14_what_is_dumped_is_purged_when_its_time_is_over(start: Start, place: Path) -> None:
    server = start("--dump-target", str(place), "--set", "retention_ms=1d", clocked=True)
    assert isinstance(server, ClockedServer)
    with server.api() as api:
        name = played(api)
        api.close(name)
        until(lambda: api.get(name).state == CLOSED)
        server.clock.skip(86_400 + 60)
        until(lambda: api.get(name).cleanup.HasField("purged_time"))
        with refused(FAILED, "SESSION_PURGED"):
            api.history(name)
        assert len(dumps(str(place))) == 1


def test_a_stale_tree_is_dumped(start: Start, place: Path) -> None:
    flags = ("--dump-target", str(place), "--stale-timeout", "60s", "--sweep-interval", "1s")
    server = start(*flags, clocked=True)
    assert isinstance(server, ClockedServer)
    with server.api() as api:
        root = played(api)
        child = played(api, parent_session_id=root)
        server.clock.skip(61)
        server.clock.skip(2)
        until(lambda: {api.get(name).state for name in (root, child)} == {CLOSED})
        assert api.get(root).receipt.reason == types.CLOSE_REASON_STALE
        assert len(dumps(str(place))) == 2


@pytest.mark.parametrize("target", ["ftp://x/y", "s3://", "s3://user:secret@bucket", "file://elsewhere/x"])
def test_a_target_that_cannot_be_one_ends_the_start(tmp_path: Path, target: str) -> None:
    done = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"), "--dump-target", target)
    assert done.returncode == 78
    assert "dump_target" in done.stderr
    assert "secret" not in done.stderr
    assert not (tmp_path / "d").exists()
