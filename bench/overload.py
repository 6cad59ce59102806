"""What is left of a server's goodput when ten times as much comes as it can do, and how soon it is itself again.

Two servers, one after the other, each limited by something else:

    slots    200 turns may run at once, and a turn holds its slot for a second: calls wait, and are refused
    door     turns take no time, and the server's own CPU is the limit: what it cannot take in is shed at its door

    peak     turns committed a second, callers back to back: the measured maximum
    x1 .. x10  turns arrive at so many times that, whatever becomes of those before (open loop). Goodput: turns a second
             that were committed within the deadline of their arrival. Target at x10: at least 0.9 of the peak.
    after    arrivals at 0.8 of the peak. Target: from 5 s on at the latest, as many are committed in each second as
             arrive, less what chance does (0.8 of them).

Beside them: how the rest ended, what renewals, health checks and closes of a bystander came to and the longest of each,
and the memory of the server.

    python bench/overload.py [--quick] [--json] [--only slots|door]

The generator and the server share the machine's cores, and on two of them neither has what it wants: gRPC's threads
take in ten times as much, too. There `door` says more of the machine than of the server. See bench/_open_loop.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from _open_loop import OpenLoop, Work
from grpc_health.v1 import health_pb2, health_pb2_grpc

from roost.client import NO_RETRY, AsyncClient
from roost.errors import RoostError
from roost.v1 import turn_service_pb2
from roost.workload.local_server import LocalServer

GOODPUT_TARGET = 0.9
RECOVERY_TARGET = 5  # seconds
MULTIPLES = (1, 2, 5, 10)
PAIRS = 8  # of connections
DEADLINE = 10.0  # seconds that a turn may take from its arrival


@dataclass(frozen=True)
class Kind:
    """A server, what is asked of it, and how many callers keep it busy."""

    arguments: tuple[str, ...]
    work: Work
    callers: int


KINDS = {
    "slots": Kind(("--max-turns-per-tenant", "200"), Work(wait=1.0, hold=1.0), 240),
    "door": Kind((), Work(), 256),
}


def peak(socket: str, seconds: float, kind: Kind) -> float:
    """Turns committed a second, as many callers as keep the server busy."""
    load = OpenLoop(socket, PAIRS, DEADLINE, "peak", kind.work)
    load.run(2.0, closed=kind.callers)
    tally, began = load.measure(seconds, closed=kind.callers)
    rate = len(tally.committed) / (time.monotonic() - began)
    load.settle(DEADLINE)
    return rate


def over(socket: str, rate: float, after: float, seconds: float, kind: Kind, name: str) -> dict[str, Any]:
    """Turns arrive at `rate` for a time, then at `after` for ten seconds."""
    os.nice(19)  # it would be on other machines: it must not take the server's time
    load = OpenLoop(socket, PAIRS, DEADLINE, name, kind.work)
    load.run(DEADLINE / 2, rate=rate)  # queues have filled by then
    tally, began = load.measure(seconds, rate=rate)
    result: dict[str, Any] = {
        "arrivals_per_second": round(rate),
        "goodput": round(len(tally.committed) / (time.monotonic() - began), 1),
        "begins": dict(tally.begins.most_common()),
        "commits": dict(tally.commits.most_common()),
        "waits": tally.waits.summary(),
        "late_arrivals": load.late,
    }
    if after:
        load.drop()
        tally, began = load.measure(10.0, rate=after)
        by_second = Counter(int(at - began) for at in tally.committed)
        good = [by_second[number] >= after * 0.8 for number in range(10)]
        result["after"] = {
            "arrivals_per_second": round(after),
            "committed": [by_second[number] for number in range(10)],
            "recovered_s": next((n for n in range(10) if all(good[n:])), None),
        }
    load.settle(DEADLINE)
    return result


async def bystander(target: str, there: asyncio.Event, stop: asyncio.Event) -> dict[str, Any]:
    """Renews a turn, asks for health and closes sessions while the others do what they do; the longest of each."""
    longest: dict[str, float] = {"renew": 0.0, "health": 0.0, "close": 0.0}
    failed: Counter[str] = Counter()
    number = 0
    async with AsyncClient(target, retry=NO_RETRY, timeout=30) as client, grpc.aio.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        begun = await client.begin_turn("bystander", open=True)
        renewal = turn_service_pb2.Renewal(session_id="bystander", lease=begun.grant.lease)
        victims = [f"victim-{n}" for n in range(400)]
        for name in victims:
            await client.open_session(name)
        there.set()

        async def timed(what: str, call: Any) -> None:
            began = time.perf_counter()
            try:
                await call
            except (RoostError, grpc.aio.AioRpcError) as error:
                failed[f"{what}: {type(error).__name__}"] += 1
            longest[what] = max(longest[what], time.perf_counter() - began)

        while not stop.is_set():
            await timed("renew", client.renew_turns([renewal]))
            await timed("health", health.Check(health_pb2.HealthCheckRequest(service="ready")))
            if number < len(victims):
                await timed("close", client.close_session(victims[number]))
                number += 1
            await asyncio.sleep(0.1)
    return {**{f"{what}_longest_s": round(value, 3) for what, value in longest.items()}, "failed": dict(failed)}


def memory(pid: int) -> int:
    """Resident memory of a process in MiB."""
    return int(psutil.Process(pid).memory_info().rss) >> 20


async def measure(directory: Path, kind: Kind, quick: bool) -> dict[str, Any]:
    """All of it, against one server. The generator is a process of its own."""
    server = LocalServer(directory, ["--introspection", "off", "--log-level", "warning", *kind.arguments])
    server.start()
    await server.ready()
    socket = server.target.removeprefix("unix:")
    pool = multiprocessing.get_context("spawn").Pool(1)

    async def apart(work: Any, *arguments: Any) -> Any:
        return await asyncio.to_thread(pool.apply, work, arguments)

    there, stop = asyncio.Event(), asyncio.Event()
    try:
        top = await apart(peak, socket, 5.0 if quick else 10.0, kind)
        result: dict[str, Any] = {"peak": round(top, 1), "memory_mib": {"peak": memory(server.pid)}}
        standing = asyncio.create_task(bystander(server.target, there, stop))
        await there.wait()
        for times in (10,) if quick else MULTIPLES:
            one = await apart(over, socket, top * times, top * 0.8 if times == 10 else 0.0, 10.0, kind, f"x{times}")
            one["ratio"] = round(one["goodput"] / top, 3)
            result[f"x{times}"] = one
            result["memory_mib"][f"x{times}"] = memory(server.pid)
        stop.set()
        result["bystander"] = await standing
    finally:
        pool.terminate()
        server.stop()
    last = result["x10"]
    recovered = last["after"]["recovered_s"]
    result["reached"] = last["ratio"] >= GOODPUT_TARGET and recovered is not None and recovered <= RECOVERY_TARGET
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the peak and ten times that alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", choices=list(KINDS), help="one of the two servers")
    arguments = parser.parse_args()
    results = {}
    for name, kind in KINDS.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory:
                results[name] = asyncio.run(measure(Path(directory), kind, arguments.quick))
            if not arguments.json:
                show(name, results[name])
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0 if all(result["reached"] for result in results.values()) else 1


def show(name: str, result: dict[str, Any]) -> None:
    """What came out, a line each."""
    print(f"{name}: peak {result['peak']:.0f} turns/s, {'reached' if result['reached'] else 'NOT reached'}")
    for times in MULTIPLES:
        if (one := result.get(f"x{times}")) is not None:
            ends = ", ".join(f"{what} {count}" for what, count in one["begins"].items())
            waits = ", ".join(f"p{p} {one['waits'].get(f'p{p}_ms', 0) / 1e3:.2f} s" for p in (50, 99))
            print(f"  x{times:<3} goodput x{one['ratio']:.2f}  {waits}  begins: {ends}")
    after = result["x10"]["after"]
    print(f"  after x10: recovered after {after['recovered_s']} s; a second each: {after['committed']}")
    print(f"  bystander: {result['bystander']}")
    print(f"  memory, MiB: {result['memory_mib']}")


if __name__ == "__main__":
    sys.exit(main())
