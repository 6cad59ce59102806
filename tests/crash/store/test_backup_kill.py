"""I5: a backup or restore that is killed at any step leaves nothing that looks whole and is not, and is repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_rows import Maker, dump, take

from roost.store import SqliteStore, StoreError, claim
from roost.store import backup as backups
from roost.store import restore as restores
from roost.store.backup import back_up, verify
from roost.store.restore import PARTIAL

pytestmark = pytest.mark.crash

VICTIM = Path(__file__).parents[2] / "support" / "killed_copies.py"


class Victims:
    """Runs operations that die at a step."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, operation: str, most: int, source: Path, to: Path) -> tuple[int, str]:
        """The exit status, and the step it died at."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([operation, most, str(source), str(to)]) + "\n")
        self._process.stdin.flush()
        status, step = json.loads(self._process.stdout.readline())
        return status, step


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ROOST_")}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(VICTIM)], env=env, **pipes) as process:
        yield Victims(process)
        process.communicate("")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with sessions in it, closed; and a backup of it beside it, after which it went on."""
    where = tmp_path_factory.mktemp("store")
    store = SqliteStore(where / "data", reserve_bytes=1 << 16, reserve_margin=0)
    maker = Maker()
    for n in range(1, 3):
        maker.open(n)
        maker.begin(n)
        take(lambda batch: store.append(0, store.epoch, batch.first_seq, batch), maker)
    back_up(where / "data", where / "backup")
    maker.commit(1, size=5_000)
    take(lambda batch: store.append(0, store.epoch, batch.first_seq, batch), maker)
    store.close()
    return where


def opened(directory: Path) -> dict[str, Any]:
    """What a server finds there."""
    SqliteStore(directory, reserve_bytes=1 << 16, reserve_margin=0).close()
    return dump(directory / claim.STORE_FILE)


def test_a_backup_killed_anywhere_is_whole_or_not_there(victims: Victims, data: Path, tmp_path: Path) -> None:
    wanted = dump(data / "data" / "roost.db")
    died = []
    for most in range(1, 100):
        to = tmp_path / f"b{most}"
        status, step = victims.run("back_up", most, data / "data", to)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        died.append(step)
        if to.exists():
            assert step == "backup.named"
            verify(to)
        else:
            # What is left by another name is none either, unless all of it is there.
            left = to.with_name(to.name + backups.PARTIAL)
            if step != "backup.manifest":
                with pytest.raises(StoreError, match="no whole backup"):
                    verify(left)
            back_up(data / "data", to)
            assert not left.exists()
        assert dump(to / "roost.db") == wanted
    assert [step for step in died if step in backups.STEPS] == list(backups.STEPS)
    assert len(died) > len(backups.STEPS), "it is also killed between the named steps"


@pytest.mark.parametrize("replace", [False, True], ids=["empty", "replace"])
def test_a_restore_killed_anywhere_leaves_the_store_of_before_or_the_new_one(
    victims: Victims, data: Path, tmp_path: Path, replace: bool
) -> None:
    old = dump(data / "data" / "roost.db")["record"]
    new = dump(data / "backup" / "roost.db")["record"]
    assert old != new
    died = []
    for most in range(1, 100):
        directory = tmp_path / f"d{most}"
        if replace:
            shutil.copytree(data / "data", directory)
        status, step = victims.run("replace" if replace else "restore", most, data / "backup", directory)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        died.append(step)
        if step == "restore.named":
            assert opened(directory)["record"] == new
            continue
        if replace:
            assert opened(directory)["record"] == old
        else:
            with pytest.raises(StoreError, match=PARTIAL):
                SqliteStore(directory)
            assert not (directory / claim.STORE_FILE).exists()
        restores.restore(data / "backup", directory, replace=replace)
        assert not (directory / PARTIAL).exists()
        assert len(list(directory.glob(f"{restores.REPLACED}*"))) == replace
        assert opened(directory)["record"] == new
    assert [step for step in died if step in restores.STEPS] == list(restores.STEPS)
    assert len(died) > len(restores.STEPS)
