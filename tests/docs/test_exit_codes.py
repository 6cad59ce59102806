"""The exit codes that commands name are those of `roost --help`, and docs/OPERATIONS.md lists the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roost.cli import config_cmd, demo, load, main, reap, replay, serve, stats
from roost.cli.load import WRONG
from roost.cli.output import BAD_CONFIG, CANNOT_REACH, DIFFERENT, REFUSED, STORE_FAILED, UNUSABLE

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "OPERATIONS.md"


def listed(text: str) -> set[int]:
    """Codes at the start of a line: `   0  done`, `| 130, 143 | ended`."""
    lines = re.findall(r"^[| ]*(\d+(?:, \d+)*)  ?[|a-z]", text, re.MULTILINE)
    return {int(code) for line in lines for code in line.split(", ")}


def test_the_help_and_the_manual_list_the_same_codes() -> None:
    helped = listed(main.EPILOG.partition("Examples")[0])
    chapter = OPERATIONS.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    assert helped == listed(chapter)
    assert helped >= {0, 2, REFUSED, CANNOT_REACH, DIFFERENT, WRONG, UNUSABLE, STORE_FAILED, BAD_CONFIG}


@pytest.mark.parametrize("module", [config_cmd, demo, load, reap, replay, serve, stats], ids=lambda m: m.__name__)
def test_a_command_has_no_codes_of_its_own(module: object) -> None:
    epilog = " ".join(getattr(module, "EPILOG", "").split())
    named = {int(code) for code in re.findall(r"(?:Exit codes:| -) (\d+) ", epilog.partition("Examples")[0])}
    assert ("Exit codes" in epilog) == bool(named)
    assert named <= listed(main.EPILOG)
