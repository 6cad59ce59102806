"""kill -9 at random moments: every acknowledged batch is there, whole, and of the others none is half there (I5)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from appender import Script
from store_rows import dump, integrity

import roost
from roost.store import SqliteStore

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        [str(Path(roost.__file__).parents[1]), str(HERE), str(HERE.parents[1] / "unit" / "store")]
    )
}


def killed(directory: Path, acks: int) -> int:
    """Run the appender and kill it after that many more batches. The number of the last one it acknowledged."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "appender.py"), str(directory)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        last = 0
        for _ in range(acks):
            last = int(child.stdout.readline())
        child.kill()  # while it works on the batches after this one
        for line in child.stdout:  # what it said before it died counts
            if line.endswith("\n"):
                last = int(line)
    return last


# Many stores rather than one for all: each start reads what there is, and so does each look at it.
LONG = [pytest.param(50, seed, marks=[pytest.mark.long, pytest.mark.timeout(600)]) for seed in range(2, 42)]


@pytest.mark.crash
@pytest.mark.parametrize(("cycles", "seed"), [(12, 1), *LONG])
def test_i5_every_acknowledged_batch_survives_kill_9(tmp_path: Path, cycles: int, seed: int) -> None:
    directory = tmp_path / "data"
    script = Script()
    rng = random.Random(seed)
    open_until = 0
    for cycle in range(cycles):
        acked = killed(directory, rng.randrange(1, 30))
        store = SqliteStore(directory, reserve_bytes=1 << 16, reserve_margin=0)
        assert store.epoch == 2 * cycle + 2
        store.close()
        while script.maker.next_seq <= store.last_seq:
            script.following()
        assert script.number >= acked, "an acknowledged batch is lost"
        assert script.maker.next_seq - 1 == store.last_seq, "a batch is half there"
        assert script.number > open_until
        open_until = script.number
        path = directory / "roost.db"
        if cycle % 10 == 0 or cycle == cycles - 1:
            assert integrity(path) == "ok"
        stored = dump(path)
        sessions = {row[0]: row for row in stored["session"]}
        assert set(sessions) == set(script.maker.rows)
        for uid, row in script.maker.rows.items():
            assert sessions[uid][8:16] == (*row[9:16], row.finish_due)
            assert sessions[uid][25] == row.seq
        live: dict[bytes, int] = {}
        for row in stored["record"]:
            assert row[2] == live.get(row[1], 0)  # prev: no gap in the line
            live[row[1]] = row[0]
        assert live == {uid: row.last for uid, row in script.maker.rows.items() if row.last}
        finished = [made for done in script.maker.done.values() for made in done]
        assert sorted(row[:9] for row in stored["trajectory"]) == sorted(tuple(made) for made in finished)
        assert {tuple(row[:2]): row[9] for row in stored["trajectory"] if row[9]} == script.acknowledged
        assert {tuple(row[:2]): row[2] for row in stored["reward"]} == script.rewarded
