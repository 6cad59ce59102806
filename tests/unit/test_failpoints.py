"""A failpoint kills or fails the process that names it, at the hit it names, and no other; wheels have none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PASS = """
import roost._core as core
for n in range(1, 5):
    for name in ("other", "here"):
        try:
            core.failpoint(name)
        except OSError as error:
            print("EIO" if error.errno == 5 else error, flush=True)
            continue
        print(name, n, flush=True)
"""
ALL = [f"{name} {n}" for n in range(1, 5) for name in ("other", "here")]


def passed(setting: str | None) -> tuple[int, list[str], str]:
    """Exit status, the failpoints that a process came past, what it said."""
    env = {key: value for key, value in os.environ.items() if key != "ROOST_FAILPOINT"}
    if setting is not None:
        env["ROOST_FAILPOINT"] = setting
    done = subprocess.run([sys.executable, "-c", PASS], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(("setting", "hit"), [("here", 1), ("here:1", 1), ("here:3", 3)])
def test_the_process_is_killed_at_that_hit(setting: str, hit: int) -> None:
    status, lines, _ = passed(setting)
    assert status == -signal.SIGKILL
    assert lines == ALL[: hit * 2 - 1]


def test_an_error_is_raised_once() -> None:
    status, lines, _ = passed("here:2:error")
    assert status == 0
    assert lines == [*ALL[:3], "EIO", *ALL[4:]]


@pytest.mark.parametrize("setting", [None, "nowhere", "here:5"])
def test_nothing_happens_that_was_not_asked_for(setting: str | None) -> None:
    assert passed(setting)[:2] == (0, ALL)


@pytest.mark.parametrize("setting", ["", "here:0", "here:x", "here:1:kill", "here:1:error:more"])
def test_a_setting_that_means_nothing_is_an_error(setting: str) -> None:
    status, lines, said = passed(setting)
    assert (status, lines) == (1, [])
    assert "is not name[:n][:error]" in said


def test_a_wheel_has_no_failpoints() -> None:
    """The feature is off unless it is asked for, and what builds a wheel does not ask."""
    crate = tomllib.loads((PROJECT / "rust/python/Cargo.toml").read_text())
    assert crate["features"] == {"failpoints": []}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert not {"features", "cargo-extra-args", "all-features"} & project["tool"]["maturin"].keys()
