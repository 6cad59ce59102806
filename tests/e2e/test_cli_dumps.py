"""`roost dumps`: what it prints, how it ends, and that it needs neither a server nor the server's packages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_keys import ADMIN, create, keyed
from conftest import Start
from ended_sessions import House, read_now
from restored import CLOSED, until
from roost_server import environment, roost
from s3_server import S3, SECRET, running

from roost.handlers.dump.target import open_target
from roost.handlers.dump.writer import write_dump


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3, Path, list[str]]]:
    """Three dumps in a directory, and the same in S3."""
    where = tmp_path_factory.mktemp("dumps")
    house = House(tmp_path_factory.mktemp("store") / "data")
    uids = [house.played(f"chat-{n}") for n in range(3)]
    with running() as s3:

        async def write() -> list[str]:
            for target in (open_target("s3://bucket/dumps", s3.options), open_target(str(where))):
                names = [(await write_dump(house.store, target, uid, read_now, part_bytes=1_000)).name for uid in uids]
            return sorted(names)

        names = asyncio.run(write())
        house.store.close()
        yield s3, where, names


@pytest.fixture(params=["directory", "s3"])
def url(request: pytest.FixtureRequest, written: tuple[S3, Path, list[str]]) -> list[str]:
    """The target as arguments; the secret is in the environment of the command."""
    if request.param == "directory":
        return [str(written[1])]
    options = {key: value for key, value in written[0].options.items() if key != "secret_access_key"}
    return ["s3://bucket/dumps", *(part for key, value in options.items() for part in ("--option", f"{key}={value}"))]


def dumps(command: str, arguments: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    done = roost("dumps", command, *arguments, *more, AWS_SECRET_ACCESS_KEY=SECRET)
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done


def test_they_are_listed_in_order_and_in_pages(url: list[str], written: tuple[S3, Path, list[str]]) -> None:
    names = written[2]
    assert json.loads(dumps("list", url, "-o", "json").stdout) == names
    assert [line for line in dumps("list", url).stdout.split() if "/" in line] == names
    page = dumps("list", url, "-o", "json", "--limit", "2")
    assert json.loads(page.stdout) == names[:2]
    assert f"go on with --after {names[1]}" in page.stderr
    last = dumps("list", url, "-o", "json", "--limit", "2", "--after", names[1])
    assert (json.loads(last.stdout), last.stderr) == (names[2:], "")
    assert json.loads(dumps("list", url, "-o", "json", "--tenant", "default").stdout) == names
    assert dumps("list", url, "--tenant", "other").stderr == "no dumps\n"


def test_one_is_shown(url: list[str], written: tuple[S3, Path, list[str]]) -> None:
    name = written[2][0]
    manifest = json.loads((written[1] / name / "manifest.json").read_bytes())
    manifest["counts"].setdefault("mail", 0)
    assert json.loads(dumps("show", [url[0], name, *url[1:]], "-o", "json").stdout) == manifest
    table = dumps("show", [url[0], name, *url[1:]]).stdout
    assert manifest["uid"] in table
    assert manifest["sha256"] in table
    gone = dumps("show", [url[0], name[:-1] + "9", *url[1:]])
    assert (gone.returncode, gone.stderr) == (69, f"roost: there is no dump {name[:-1]}9\n")


def test_all_are_verified_or_one(url: list[str], written: tuple[S3, Path, list[str]]) -> None:
    done = dumps("verify", url, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [(one["dump"], one["ok"], one["records"]) for one in json.loads(done.stdout)] == [
        (n, True, 8) for n in written[2]
    ]
    one = dumps("verify", [url[0], written[2][1], *url[1:]])
    assert one.returncode == 0
    assert written[2][1] in one.stdout
    assert written[2][0] not in one.stdout


def test_a_damaged_one_is_told_and_the_others_are_verified(tmp_path: Path, written: tuple[S3, Path, list[str]]) -> None:
    import shutil

    _, where, names = written
    shutil.copytree(where, tmp_path / "copy")
    part = tmp_path / "copy" / names[1] / "part-00001.jsonl.zst"
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    done = dumps("verify", [str(tmp_path / "copy")], "-o", "json")
    assert (done.returncode, done.stderr) == (4, "roost: 1 of 3 dumps do not verify\n")
    assert [one["ok"] for one in json.loads(done.stdout)] == [True, False, True]
    alone = dumps("verify", [str(tmp_path / "copy"), names[1]])
    assert alone.returncode == 4
    assert alone.stderr.startswith(f"roost: dump {names[1]} is damaged: part-00001.jsonl.zst ")
    (tmp_path / "copy" / names[1] / "manifest.json").write_text('{"schema": 9}')
    newer = dumps("show", [str(tmp_path / "copy"), names[1]])
    assert (newer.returncode, "use a newer one" in newer.stderr) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list", "ftp://x"], 2, "not ftp://"),
        (["list", "s3://bucket", "--option", "nonsense=1"], 2, "'nonsense'"),
        (["list", "s3://bucket", "--option", "region"], 2, "KEY=VALUE"),
        (["show", ".", "../x"], 2, "not that of a dump"),
        (["list", ".", "--after", "../x"], 2, "not that of a dump"),
        (["list", "/nowhere/at/all"], 3, "create it, or mount its disk"),
        (["verify", "/nowhere/at/all"], 3, "create it, or mount its disk"),
        (["list", "/dev/null"], 69, "cannot be used"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_code(arguments: list[str], code: int, says: str) -> None:
    done = roost("dumps", *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_no_store_and_no_server_is_needed(written: tuple[S3, Path, list[str]]) -> None:
    """With the extra `cli` alone; a directory does not even need obstore, and a URL says that it does."""
    program = """
import sys
for name in ("apsw", "obstore", "structlog"):
    sys.modules[name] = None
from roost.cli.main import main
main()
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "dumps", *arguments]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)

    done = run("verify", str(written[1]), "-o", "json")
    assert (done.returncode, len(json.loads(done.stdout))) == (0, 3), done.stderr
    without = run("list", "s3://bucket")
    assert without.returncode == 2
    assert (
        without.stderr
        == "roost: dumps in an object store need the package obstore: install roost[server] or roost[cli]\n"
    )


def test_dumps_are_restored_by_a_server(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "dumps"
    place.mkdir()
    first = start("--dump-target", str(place), data_dir=tmp_path / "first")
    with first.api() as api:
        api.open("root")
        api.turn("root")
        api.close("root")
        until(lambda: api.get("root").state == CLOSED)
        assert api.reopen("root").reopened == 1
        api.open("child", parent_session_id="root")
        api.close("root")
        until(lambda: {api.get(name).state for name in ("root", "child")} == {CLOSED})
        names = [api.get(name).receipt.dump_name for name in ("root", "child")]
    second = start("--dump-target", str(place), data_dir=tmp_path / "second")
    at = ["--target", second.address]
    done = roost("dumps", "restore", names[1], *at)
    assert (done.returncode, "PARENT_NOT_FOUND" in done.stderr) == (1, True)
    done = roost("dumps", "restore", "--all", "--from", str(place), "-o", "json", *at)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # Of the two dumps of the root that of its last close.
    assert [one["dump"] for one in told] == names
    assert [one["session"]["state"] for one in told] == ["SESSION_STATE_CLOSED"] * 2
    done = roost("dumps", "restore", "--all", "--from", str(place), *at)
    assert (done.returncode, done.stdout.count("SESSION_EXISTS")) == (0, 2)
    done = roost("dumps", "restore", names[0], *at)
    assert done.returncode == 1
    assert done.stderr.startswith("roost: SESSION_EXISTS: ")
    for wrong in ([], ["--all"], [*names, "--all"]):
        assert roost("dumps", "restore", *wrong, *at).returncode == 2


def test_all_dumps_of_one_tenant_are_restored(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "dumps"
    place.mkdir()
    first = start("--dump-target", str(place), data_dir=tmp_path / "first", ROOST_ADMIN_KEY=ADMIN)
    for tenant in ("", "acme"):
        with keyed(first, ADMIN, tenant) as api:
            api.open(f"of-{tenant}")
            api.turn(f"of-{tenant}")
            api.close(f"of-{tenant}")
            until(lambda api=api: {session.state for session in api.list_all()} == {CLOSED})
    second = start("--dump-target", str(place), data_dir=tmp_path / "second", ROOST_ADMIN_KEY=ADMIN)
    everything = ("dumps", "restore", "--all", "--from", str(place), "-o", "json", "--target", second.address)
    key = create(second, "acme").key
    for arguments, used, expected in (
        (("--tenant", "acme"), key, {"of-acme"}),
        ((), ADMIN, {"of-"}),
        (("--tenant", "acme"), ADMIN, {""}),  # it is known by now
    ):
        done = roost(*arguments, *everything, ROOST_API_KEY=used)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert {one["session"]["session_id"] if "session" in one else "" for one in told} == expected
