"""What a dump target in trouble costs those who run turns: event-loop delay and turn latency, side by side in one run.

    python bench/dump_delay.py [--quick] [--json] [--seconds N] [--dir DIR]

Servers with a real S3 server as their dump target, each under the same load: callers that begin and commit turns, and
sessions that are closed, and so dumped, all the while. The S3 server answers as it should, answers 500 to every write,
answers each only after a second, or not at all. A server without a target stands beside them. The bar: the event-loop
delay's 99th percentile stays under 20 ms, whatever the target does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from roost.client import AsyncClient, record_input
from roost.workload.latency import Latency
from roost.workload.local_server import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import s3_server

BAR_MS = 20.0
CALLERS = 4
CLOSERS = 2
PAUSE = 0.02  # seconds between two turns of a caller: a server that is busy, not one at its limit
PAYLOAD = b"x" * 4_000
FAILED = ("500 Internal Server Error", "InternalError")
Trouble = Callable[[str, str], Any]


def _slowly(_method: str, _path: str) -> None:
    time.sleep(1.0)  # on the S3 server's own thread


CONDITIONS: dict[str, tuple[Trouble | None, Trouble | None]] = {
    "no target": (None, None),
    "healthy": (None, None),
    "answers 500": (
        lambda method, _: ("500 Internal Server Error", "InternalError") if method == "PUT" else None,
        None,
    ),
    "slow": (None, _slowly),
    "hangs": (lambda method, _: "hang" if method == "PUT" else None, None),
}


async def _call(client: AsyncClient, name: str, until: float, turns: Latency) -> None:
    """Begin and commit turns of one session until then."""
    while time.monotonic() < until:
        began = time.perf_counter()
        grant = (await client.begin_turn(name, open=True, wait=10)).grant
        await client.commit_turn(name, grant.lease, record_input(PAYLOAD))
        turns.record(time.perf_counter() - began)
        await asyncio.sleep(PAUSE)


async def _close(client: AsyncClient, prefix: str, until: float) -> int:
    """Make sessions with a turn each, and close them; how many."""
    made = 0
    while time.monotonic() < until:
        name = f"{prefix}-{made}"
        grant = (await client.begin_turn(name, open=True, wait=10)).grant
        await client.commit_turn(name, grant.lease, record_input(PAYLOAD))
        await client.close_session(name)
        made += 1
        await asyncio.sleep(PAUSE)
    return made


async def _run(directory: Path, arguments: list[str], seconds: float) -> dict[str, float]:
    """One server under the load: loop delay and turn latency in ms, sessions closed and dumped."""
    server = LocalServer(directory, arguments)
    server.start()
    try:
        await server.ready()
        turns = Latency()
        async with AsyncClient(server.target, api_key="") as client:
            until = time.monotonic() + seconds
            closers = [_close(client, f"closed-{n}", until) for n in range(CLOSERS)]
            callers = [_call(client, f"caller-{n}", until, turns) for n in range(CALLERS)]
            done = await asyncio.gather(*closers, *callers)
            stats = await client.get_stats()
        return {
            "loop_p50_ms": stats.gauges["loop_delay_p50_us"] / 1e3,
            "loop_p99_ms": stats.gauges["loop_delay_p99_us"] / 1e3,
            "loop_max_ms": stats.gauges["loop_delay_max_us"] / 1e3,
            "turn_p99_ms": round(turns.percentile(99), 2),
            "closed": sum(made or 0 for made in done[:CLOSERS]),
            "dumped": stats.counters["sessions_dumped"],
            "failed": stats.counters["cleanup_failures"],
        }
    finally:
        server.kill()


def measure(directory: Path, seconds: float) -> dict[str, Any]:
    """Every condition, one after the other."""
    found: dict[str, dict[str, float]] = {}
    with s3_server.running() as s3:
        options = s3.options
        os.environ.update(
            AWS_ENDPOINT_URL=options["endpoint"],
            AWS_ALLOW_HTTP="true",
            AWS_REGION=options["region"],
            AWS_ACCESS_KEY_ID=options["access_key_id"],
            AWS_SECRET_ACCESS_KEY=options["secret_access_key"],
        )
        for place, (name, (trouble, before)) in enumerate(CONDITIONS.items()):
            target = ["--dump-target", f"s3://bucket/{place}", "--set", "dump_timeout_ms=3s"] if place else []
            s3.trouble = trouble or (lambda _method, _path: None)
            s3.before = before or (lambda _method, _path: None)
            found[name] = uvloop.run(_run(directory / str(place), target, seconds))
        s3.trouble = lambda _method, _path: None
    worst = max(numbers["loop_p99_ms"] for numbers in found.values())
    return {"seconds": seconds, "conditions": found, "bar_ms": BAR_MS, "reached": worst < BAR_MS}


def main() -> int:
    """Run and print; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five seconds each")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each server is under load")
    parser.add_argument("--dir", help="where to make the stores (default: the system's temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roost-bench-", dir=arguments.dir) as directory:
        result = measure(Path(directory), 5.0 if arguments.quick else arguments.seconds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0 if result["reached"] else 1
    print(f"{CALLERS} callers and {CLOSERS} who close sessions, {result['seconds']:g} s each; milliseconds")
    heads = f"{'loop p50':>9} {'p99':>7} {'max':>7} {'turn p99':>9} {'closed':>7} {'dumped':>7} {'failed':>7}"
    print(f"  {'target':12} {heads}")
    for name, n in result["conditions"].items():
        print(
            f"  {name:12} {n['loop_p50_ms']:9.2f} {n['loop_p99_ms']:7.2f} {n['loop_max_ms']:7.2f} "
            f"{n['turn_p99_ms']:9.2f} {n['closed']:7} {n['dumped']:7} {n['failed']:7}"
        )
    verdict = "reached" if result["reached"] else "MISSED"
    print(f"  event-loop delay p99 under {BAR_MS:g} ms whatever the target does: {verdict}")
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
