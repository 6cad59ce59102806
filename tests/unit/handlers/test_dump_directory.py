"""Dumps in a directory: whole files of mode 0600, on disk before they count, never outside; and what its disk says."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from small_disk import ballast, mounted

from roost.handlers.dump import directory
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.target import open_target

TENANT = "0123456789abcdef" * 2
DUMP = f"{TENANT}/0198f6a0-0000-7000-8000-000000000001-1"
NAME = f"{DUMP}/part-00000.jsonl.zst"


async def failed(why: Why, operation: Any) -> str:
    with pytest.raises(DumpError) as error:
        await operation
    assert error.value.why is why, str(error.value)
    return str(error.value)


async def test_only_its_own_user_may_read_it(tmp_path: Path) -> None:
    await open_target(str(tmp_path)).create(NAME, b"x")
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    for above in ((tmp_path / NAME).parent, tmp_path / TENANT):
        assert stat.S_IMODE(above.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", [TENANT, DUMP, NAME])
async def test_no_link_leads_out_of_it(tmp_path: Path, place: str) -> None:
    """Whoever may write into the directory gets no file written, replaced or read elsewhere."""
    where, outside = tmp_path / "dumps", tmp_path / "outside"
    outside.mkdir()
    (outside / "0198f6a0-0000-7000-8000-000000000001-1").mkdir()
    secret = outside / "0198f6a0-0000-7000-8000-000000000001-1" / "part-00000.jsonl.zst"
    secret.write_bytes(b"secret")
    (secret.parent / "manifest.json").write_bytes(b"{}")
    link = where / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside if place == TENANT else secret.parent if place == DUMP else secret)
    before = sorted(outside.rglob("*"))
    target = open_target(str(where))
    await failed(Why.DENIED, target.get(NAME, 100))
    if place == NAME:
        assert not await target.create(NAME, b"x")
        await target.replace(NAME, b"mine")
        assert not link.is_symlink()
    else:
        await failed(Why.DENIED, target.create(NAME, b"x"))
        await failed(Why.DENIED, target.replace(NAME, b"x"))
        assert await target.dumps(None, "", 10) == []
    assert sorted(outside.rglob("*")) == before
    assert secret.read_bytes() == b"secret"


async def test_a_pipe_in_place_of_a_part_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / DUMP).mkdir(parents=True)
    os.mkfifo(tmp_path / NAME)
    await failed(Why.DENIED, open_target(str(tmp_path), operation_seconds=20).get(NAME, 100))


async def test_what_a_crash_left_half_written_is_no_part_and_goes(tmp_path: Path) -> None:
    """Killed between writing and naming: the file has another name, which nothing reads."""
    program = f"""
import asyncio, os
from roost.handlers.dump import directory
from roost.handlers.dump.target import open_target
os.link = lambda *_, **__: os.kill(os.getpid(), 9)
asyncio.run(open_target({str(tmp_path)!r}).create({NAME!r}, b"x" * 1000))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    (left,) = (tmp_path / DUMP).iterdir()
    assert left.name.endswith(".tmp")
    target = open_target(str(tmp_path))
    assert await target.get(NAME, 1_000) is None
    await target.prepare(DUMP)
    assert list((tmp_path / DUMP).iterdir()) == []
    await target.prepare(DUMP.replace("-1", "-2"))  # of which there is nothing


async def test_the_bytes_and_then_the_names_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, also where the name was there: whoever made it may have died before the sync."""
    done: list[str] = []
    sync, link = os.fsync, os.link

    def synced(fd: int) -> None:
        done.append(Path(f"/dev/fd/{fd}").resolve().name)
        sync(fd)

    def linked(*arguments: Any, **named: Any) -> None:
        done.append("link")
        link(*arguments, **named)

    monkeypatch.setattr(directory.os, "fsync", synced)
    monkeypatch.setattr(directory.os, "link", linked)
    target = open_target(str(tmp_path))
    for _ in range(2):
        done.clear()
        await target.create(NAME, b"x")
        temporary, *rest = done
        assert temporary.startswith(".part-00000.jsonl.zst.")
        assert rest == ["link", DUMP.split("/")[1], TENANT, tmp_path.name]


async def test_a_directory_that_is_gone_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    where = tmp_path / "dumps"
    target = open_target(str(where))
    for operation in (
        target.create(NAME, b"x"),
        target.replace(NAME, b"x"),
        target.get(NAME, 1),
        target.dumps(None, "", 1),
    ):
        assert "create it, or mount its disk" in await failed(Why.UNREACHABLE, operation)
    assert not where.exists()
    where.mkdir()
    assert await target.create(NAME, b"x")


async def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_bytes(b"")
    await failed(Why.DENIED, open_target(str(tmp_path / "dumps")).create(NAME, b"x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the mode of a directory means nothing to root")
async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        await failed(Why.DENIED, open_target(str(tmp_path)).create(NAME, b"x"))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    """As nobody, in a process of its own."""
    (tmp_path / "dumps").mkdir(mode=0o755)
    program = f"""
import asyncio, os
from roost.handlers.dump.errors import DumpError
from roost.handlers.dump.target import open_target
target = open_target("dumps")
os.chdir({str(tmp_path)!r})
target = open_target("/proc/self/fd/" + str(os.open("dumps", os.O_RDONLY)))
os.setuid(65534)
async def main():
    try:
        await target.create({NAME!r}, b"x")
    except DumpError as error:
        print(error.why)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "denied\n", done.stderr
    assert list((tmp_path / "dumps").iterdir()) == []


def test_a_quota_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on the size of files, which needs no privilege; in a process of its own."""
    program = f"""
import asyncio, json, resource
from roost.handlers.dump.errors import DumpError
from roost.handlers.dump.target import open_target
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
target = open_target({str(tmp_path)!r})
async def main():
    said = []
    for size in (20_000, 5_000):
        try:
            said.append(await target.create({NAME!r}, bytes(size)))
        except DumpError as error:
            said.append([error.why, str(error)])
    print(json.dumps(said))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (why, said), made = json.loads(done.stdout)
    assert (why, made) == ("full", True)
    assert "free some space" in said
    assert [file.name for file in (tmp_path / DUMP).iterdir()] == ["part-00000.jsonl.zst"]
    assert (tmp_path / NAME).stat().st_size == 5_000


async def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    with mounted(tmp_path, 8 << 20) as disk:
        target = open_target(str(disk))
        await target.create(NAME, b"first")
        ballast(disk / "ballast", 100_000)
        await failed(Why.FULL, target.create(NAME.replace("00000.", "00001."), os.urandom(1 << 20)))
        assert sorted(file.name for file in (disk / DUMP).iterdir()) == ["part-00000.jsonl.zst"]
        (disk / "ballast").unlink()
        assert await target.create(NAME.replace("00000.", "00001."), os.urandom(1 << 20))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        await failed(Why.DENIED, target.create(NAME.replace("00000.", "00002."), b"x"))
        assert await target.get(NAME, 10) == b"first"


async def test_an_operation_that_hangs_is_left_behind_and_not_too_many_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = open_target(str(tmp_path), operation_seconds=0.05)
    released = threading.Event()
    started: list[int] = []

    def hang(*_: Any, **__: Any) -> None:
        started.append(1)
        released.wait()
        raise OSError(5, "at last")

    monkeypatch.setattr(directory, "_write", hang)
    for _ in range(8):
        await failed(Why.SLOW, target.create(NAME, b"x"))
    assert len(started) == 4
    released.set()
    monkeypatch.undo()
    async with asyncio.timeout(30):
        while target._hanging:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
    assert await open_target(str(tmp_path)).create(NAME, b"x")
