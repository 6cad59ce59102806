"""I5, I14: a process killed at any step of a dump leaves no dump or the dump; the next one ends with exactly one,
verified, that is the same as if nobody had been killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House
from s3_server import S3, running
from samples import some

from roost.handlers.dump.reader import list_dumps, verify_dump
from roost.handlers.dump.target import Target, open_target
from roost.handlers.dump.writer import FAILPOINTS

pytestmark = pytest.mark.crash

PART_BYTES = 1_000
SUPPORT = Path(__file__).parents[1] / "support"
FINAL = ("dump.manifest-stored", "dump.manifest-verified")  # from here on it is a dump


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one ended session."""
    where = tmp_path_factory.mktemp("store") / "data"
    house = House(where)
    house.played("chat")
    house.store.close()
    return where


class Place:
    """A target, and a process that dumps into it."""

    def __init__(self, data_dir: Path, where: str, options: dict[str, str]) -> None:
        self.arguments = [str(data_dir), "chat", where, json.dumps(options), str(PART_BYTES)]
        self.target: Target = open_target(where, options)

    def dump(self, failpoint: str = "") -> tuple[int, Any]:
        """Its exit status, and what it said."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("ROOST_")}
        if failpoint:
            env["ROOST_FAILPOINT"] = failpoint
        command = [sys.executable, str(SUPPORT / "dump_once.py"), *self.arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in {0, -signal.SIGKILL} or failpoint.endswith("error"), done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def dumps(self) -> list[str]:
        """The dumps there are; each must verify."""

        async def look() -> list[str]:
            names = await list_dumps(self.target)
            for name in names:
                await verify_dump(self.target, name)
            return names

        return asyncio.run(look())


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, data_dir: Path, tmp_path: Path) -> Place:
    if request.param == "directory":
        return Place(data_dir, str(tmp_path), {})
    return Place(data_dir, f"s3://bucket/{tmp_path.name}", request.getfixturevalue("server").options)


def passed(place: Place, name: str, at_least: int) -> list[str]:
    """The failpoint at its first and second time, and at the first time of its last part if it is one of parts."""
    return [f"{name}:{n}" for n in ((1, 2, at_least) if ".part-" in name else (1,))]


@pytest.mark.parametrize("name", some(FAILPOINTS))
def test_killed_there_and_run_again_there_is_exactly_one_dump(place: Place, name: str) -> None:
    last = 6  # parts there are at least
    for failpoint in passed(place, name, last):
        status, _ = place.dump(failpoint)
        assert status == -signal.SIGKILL, f"{failpoint} was not passed"
        assert len(place.dumps()) == (name in FINAL)
    status, said = place.dump()
    assert (status, said["repeated"]) == (0, name in FINAL)
    assert place.dumps() == [said["name"]]
    again = place.dump()[1]
    assert (again["repeated"], again["sha256"], again["bytes"]) == (True, said["sha256"], said["bytes"])


@pytest.mark.parametrize("name", some(FAILPOINTS))
def test_an_error_there_is_an_error_and_the_next_try_ends_it(place: Place, name: str) -> None:
    status, said = place.dump(f"{name}:1:error")
    assert (status, said) == (1, None)
    assert place.dump()[1]["repeated"] == (name in FINAL)
    assert len(place.dumps()) == 1


def test_killed_at_every_step_one_after_the_other_it_is_the_dump_of_one_that_was_not(
    data_dir: Path, tmp_path: Path
) -> None:
    """To the byte, and with no file beside it."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for where in (calm, killed):
        where.mkdir()
    Place(data_dir, str(calm), {}).dump()
    place = Place(data_dir, str(killed), {})
    for name in FAILPOINTS:
        for failpoint in (f"{name}:1", f"{name}:2"):
            place.dump(failpoint)
    place.dump()

    def files(where: Path) -> dict[str, str]:
        found = [file for file in sorted(where.rglob("*")) if file.is_file()]
        return {str(file.relative_to(where)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}

    assert files(calm) == files(killed)
    assert len(files(calm)) > 4
