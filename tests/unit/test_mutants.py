"""The breaks that `make mutants` looks for are breaks of the code as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PATCHES = sorted((PROJECT / "tests" / "mutants").glob("*.patch"))


def test_there_is_one_for_each_break_that_other_servers_had() -> None:
    assert {patch.stem for patch in PATCHES} == {
        "count-guard-aba",
        "double-release",
        "provisional-advances",
        "rollback-before-success",
        "slot-before-turn",
    }


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_it_applies_to_the_code_of_today(patch: Path) -> None:
    command = ["git", "apply", "--check", str(patch)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
