"""Values that cannot be are refused before anything is installed, with a message that names the value."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_tools import CHART, run

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))


@pytest.mark.parametrize("values", BAD, ids=lambda path: path.stem)
def test_a_bad_value_is_refused_by_name(values: Path) -> None:
    said, _, _ = values.read_text().partition("\n")
    expected = said.removeprefix("# refused: ")
    assert expected != said, f"{values.name} does not say in its first line what is refused"
    done = run("helm", "template", "roost", CHART, "--values", values)
    assert done.returncode != 0, "it was accepted"
    assert done.stdout == ""
    assert expected in done.stderr


def test_there_are_bad_values() -> None:
    assert len(BAD) >= 30
