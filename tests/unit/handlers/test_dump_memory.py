"""A dump takes the memory of a few pages and a part, however large the session is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ended_sessions import House

SUPPORT = Path(__file__).parents[2] / "support"
MIB = 1 << 20


def extra_rss(tmp_path: Path, turns: int) -> int:
    """Bytes that a process grows by which dumps a session of so many turns of nearly 1 MiB."""
    house = House(tmp_path / "data", journal_queue_bytes=1 << 30)
    house.open("large")
    for _ in range(turns):
        house.turn("large", os.urandom(MIB - 4096))  # which cannot be compressed
    house.close("large")
    house.store.close()
    (tmp_path / "dumps").mkdir()
    arguments = [str(tmp_path / "data"), "large", str(tmp_path / "dumps"), "{}", str(8 * MIB)]
    command = [sys.executable, str(SUPPORT / "dump_once.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["counts"]["records"] == turns
    assert said["bytes"] > turns * (MIB - 4096)
    return int(said["extra_rss"])


def test_a_session_of_a_hundred_mib(tmp_path: Path) -> None:
    assert extra_rss(tmp_path, 100) < 90 * MIB


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_session_of_a_gib(tmp_path: Path) -> None:
    assert extra_rss(tmp_path, 1_024) < 200 * MIB
