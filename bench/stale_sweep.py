"""What a sweep costs that finds ten stale trees, among ten thousand idle ones and among a million.

    python bench/stale_sweep.py [--quick] [--json] [--rounds N] [--dir DIR]

The real engine and the real store, without a server: timed is from the moment at which ten trees are due until their
closes are durable. The bar: among a million it takes at most twice what it takes among ten thousand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rpc_echo import STALE_MS, fill

from roost._core import LIMITS, Engine
from roost.store import SqliteStore

BAR = 2.0
STALE = 10


def settle(engine: Engine, store: SqliteStore) -> None:
    """Carry between engine and store, as the server's threads do, until nothing is left."""
    while True:
        engine.tick()
        batch = engine.next_batch(timeout_ms=0, linger_us=0)
        if batch is not None:
            outcome = store.append(0, store.epoch, batch.first_seq, batch, engine.service_ms())
            engine.appended(batch, outcome.value, [])
            continue
        effects = engine.next_effects(timeout_ms=0)
        if not effects:
            return
        for kind, number, *arguments in effects:
            if kind == "stale":
                engine.stale_found(number, store.stale(*arguments)[0])
            elif kind == "find":
                engine.found(number, store.find(*arguments))
            elif kind == "due":
                engine.due_found(number, *store.due(*arguments))
            else:
                raise SystemExit(f"the engine asked for {kind}")


def sweep(store: SqliteStore, round_: int) -> float:
    """Seconds for one sweep that closes ten trees. Each round takes others."""
    limits = {name: default for name, default, _, _ in LIMITS}
    engine = Engine(limits, store.last_seq + round_ * 1_000, 0)
    settle(engine, store)  # the first look: nothing is due
    uids = store._conn.execute(
        "SELECT uid FROM session WHERE state = 1 ORDER BY session_id LIMIT ?", (STALE,)
    ).fetchall()
    engine.skip_time(STALE_MS // 2)
    for (uid,) in uids:
        store._conn.execute("UPDATE session SET stale_ms = 1, stale_due = 1 WHERE uid = ?", (uid,))
    before = engine.stats()["trees_swept"]
    began = time.perf_counter()
    engine.sweep_now()
    settle(engine, store)
    took = time.perf_counter() - began
    swept = engine.stats()["trees_swept"] - before
    if swept != STALE:
        raise SystemExit(f"{swept} trees were swept, not {STALE}")
    return took


def measure(directory: Path, counts: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Both stores, round by round side by side."""
    stores = []
    for count in counts:
        fill(directory / str(count), count)
        stores.append(SqliteStore(directory / str(count)))
    times: list[list[float]] = [[], []]
    for round_ in range(rounds + 1):
        for store, found in zip(stores, times, strict=True):
            took = sweep(store, round_)
            if round_:  # the first one warms up
                found.append(took)
    for store in stores:
        store.close()
    few, many = (statistics.median(found) for found in times)
    return {
        "sessions": list(counts),
        "stale": STALE,
        "seconds": [[round(took, 5) for took in found] for found in times],
        "median_ms": [round(few * 1e3, 2), round(many * 1e3, 2)],
        "ratio": round(many / few, 2),
        "bar": BAR,
        "reached": many / few <= BAR,
    }


def main() -> int:
    """Run and print; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 and 100,000 sessions, three rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dir", help="where to make the stores (default: the system's temporary directory)")
    arguments = parser.parse_args()
    counts, rounds = ((1_000, 100_000), 3) if arguments.quick else ((10_000, 1_000_000), arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="roost-bench-", dir=arguments.dir) as directory:
        result = measure(Path(directory), counts, rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        few, many = result["median_ms"]
        print(f"a sweep that closes {STALE} trees, among {counts[0]:,} and among {counts[1]:,} idle ones")
        verdict = "reached" if result["reached"] else "MISSED"
        print(f"  {few} ms and {many} ms: ratio {result['ratio']}, bar {BAR:g}: {verdict}")
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
