"""examples/multi_agent.py as a user runs it: with a server of its own, and on one that is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Start
from roost_server import environment

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "multi_agent.py"
AGENTS = [f"agent-{number:02}" for number in range(1, 13)]


@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.long)], ids=["own server", "an address"])
def test_twelve_agents_are_done_whatever_becomes_of_their_hosts(start: Start, own: bool) -> None:
    address = [] if own else [start("--max-turns-per-tree", "4").address]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), *address],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said = done.stdout
    refused = re.search(
        r"(agent-\d+) cannot run now: max_turns_per_tree is 4, .* and ([34]) turns run \((.*)\)\.", said
    )
    assert refused is not None, said
    assert len(re.findall(r"agent-\d+ for \d+\.\d s", refused[3])) == 3
    assert ("the root for " in refused[3]) == (refused[2] == "4")
    assert refused[1] not in refused[3]
    assert "It would be number 1 in the queue." in said
    # The one that was stopped goes on from what it had; the one whose host is gone is begun anew by another host.
    stopped = re.search(r"main: has asked (agent-\d+) to stop", said)
    assert stopped is not None
    assert re.search(
        rf"runs {stopped[1]} for .* and 'go on', asked once more, which goes on from 'half a thought'", said
    )
    killed = re.search(r"main: kills (host-\d) in the middle of a turn of (agent-\d+)", said)
    assert killed is not None
    again = re.findall(rf"(host-\d): runs {killed[2]} for .*, asked once more", said)
    assert again, said
    assert killed[1] not in again, said
    # Each is done once.
    heard = [name for names in re.findall(r"which hears that (.*) is done", said) for name in names.split(", ")]
    assert sorted(heard) == AGENTS
    assert "the root is closed, and 12 agents with it; 0 turns ran, 0 messages were unread" in said
    assert "children_closed: 12" in said
