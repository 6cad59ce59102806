"""Appends batches to a store for ever and says each one that was acknowledged: the victim of test_store_kill.

Batch k depends on k alone, so that the test can tell what must be stored.
"""

from __future__ import annotations

import random
import sys

from store_rows import FakeBatch, Maker

TREES = 40


class Script:
    """The batches, in order. `maker` holds what is stored after the last one that `following` gave."""

    def __init__(self) -> None:
        self.maker = Maker()
        self.number = 0
        self.rewarded: dict[tuple[bytes, int], float] = {}
        self.acknowledged: dict[tuple[bytes, int], int] = {}

    def following(self) -> FakeBatch:
        """The next batch; the one before counts as stored."""
        self.maker.taken()
        self.number += 1
        rng = random.Random(self.number)
        if self.number == 1:
            for n in range(1, TREES + 1):
                self.maker.open(n)
        for n in rng.sample(range(1, TREES + 1), rng.choice((1, 5, 40))):
            row = self.maker.rows[n.to_bytes(16, "big")]
            done = self.maker.done.get(row.uid, [])
            dice = rng.random()
            if not row.running and row.head and dice < 0.2:
                self.maker.reward(n, row.last, dice, due=rng.choice((0, self.number)))
                self.rewarded[row.uid, row.last] = dice
            elif not row.running and row.head and dice < 0.4:
                self.maker.finish(n)
            elif done and dice < 0.5:
                made = rng.choice(done)
                self.maker.acknowledge(made, self.number)
                self.acknowledged.setdefault((made.session, made.number), self.number)
            elif not row.running:
                self.maker.begin(n)
            elif rng.random() < 0.3:
                self.maker.abort(n, size=rng.choice((10, 5000)))
            else:
                self.maker.commit(n, size=rng.choice((10, 5000, 50_000)), state=b"state")
        return self.maker.batch()


def main(directory: str) -> None:
    """Open the store, catch up with it, append."""
    from roost.store import Outcome, SqliteStore

    store = SqliteStore(directory, reserve_bytes=1 << 16, reserve_margin=0)
    script = Script()
    while script.maker.next_seq <= store.last_seq:
        script.following()
    print("ready", flush=True)
    while True:
        batch = script.following()
        assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
        print(script.number, flush=True)
        if script.number % 37 == 0:
            store.idle()


if __name__ == "__main__":
    main(sys.argv[1])
