"""What a call costs beside the transport, and beside the number of known sessions. Both as ratios within one run.

    echo      BeginTurn + CommitTurn (both durable) through the real server, against an echo of the same message sizes
              on the same grpcio stack; same client code, 64 callers, interleaved rounds. Target: at least 0.8 of the
              echo's pairs a second. What both servers use of CPU a pair is printed beside it.
    sessions  the same pair on servers that know 1,000, 100,000 and 1,000,000 sessions; the operations spread over
              1,000 of them, picked from all. Target: a pair costs at most 1.3 times what it costs at 1,000.

    python bench/rpc_echo.py [--quick] [--json] [--only echo|sessions]

Servers are processes of their own, on Unix sockets; the client and they share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from roost.client import AsyncClient, RetryPolicy, record_input
from roost.errors import RoostError
from roost.v1 import turn_service_pb2 as turns
from roost.workload.latency import Latency
from roost.workload.local_server import LocalServer

CALLERS = 64
PAYLOAD = 1_000  # bytes of content of a turn
ECHO_TARGET = 0.8
SESSIONS_TARGET = 1.3
# Many short rounds: what else the machine does for some seconds spoils few of them, and the median forgets those.
ROUNDS, SECONDS = 10, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 4, 1.0
WORKING_SET = 1_000


# -- the echo: a server that answers at once, with messages as long as the real ones


def serve_echo(socket: str, answers: list[str]) -> None:
    """Serve canned answers (hex) to BeginTurn and CommitTurn. Bytes in, bytes out, as the real server's hot RPCs."""
    begin, commit = (bytes.fromhex(answer) for answer in answers)

    async def echo_begin(_request: bytes, _context: Any) -> bytes:
        return begin

    async def echo_commit(_request: bytes, _context: Any) -> bytes:
        return commit

    async def main() -> None:
        server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 1024), ("grpc.so_reuseport", 0)])
        handlers = {
            "BeginTurn": grpc.unary_unary_rpc_method_handler(echo_begin),
            "CommitTurn": grpc.unary_unary_rpc_method_handler(echo_commit),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("roost.v1.TurnService", handlers),))
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        await server.wait_for_termination()

    uvloop.run(main())


# -- the one client that drives all of them


@dataclass
class Lane:
    """One server under measurement: its rounds' pairs a second, and latencies."""

    name: str
    client: AsyncClient
    sessions: list[str]
    rates: list[float] = field(default_factory=list)
    pair: Latency = field(default_factory=Latency)
    cpu: list[float] = field(default_factory=list)  # share of a core that the client used
    pid: int = 0  # of the server
    server_cpu: list[float] = field(default_factory=list)  # seconds of the server's CPU a pair, all its threads

    async def round(self, seconds: float, record: bool = True) -> None:
        """64 callers, each on sessions of its own, back to back, for a time."""
        mine = [self.sessions[caller::CALLERS] for caller in range(CALLERS)]
        clock = time.perf_counter
        content = record_input(os.urandom(PAYLOAD), content_type="application/octet-stream")
        done = 0
        used, server_used = time.process_time(), cpu_seconds(self.pid)
        start = clock()
        end = start + seconds

        async def caller(names: list[str]) -> None:
            nonlocal done
            at = 0
            while (began := clock()) < end:
                name = names[at % len(names)]
                at += 1
                begun = await self.client.begin_turn(name)
                await self.client.commit_turn(name, begun.grant.lease, content)
                if record:
                    self.pair.record(clock() - began)
                done += 1

        await asyncio.gather(*(caller(names) for names in mine))
        wall = clock() - start
        if record:
            self.rates.append(done / wall)
            self.cpu.append((time.process_time() - used) / wall)
            self.server_cpu.append((cpu_seconds(self.pid) - server_used) / max(done, 1))

    def summary(self) -> dict[str, Any]:
        return {
            "pairs_per_second": round(statistics.median(self.rates), 1),
            "rpcs_per_second": round(2 * statistics.median(self.rates), 1),
            "rounds": [round(rate, 1) for rate in self.rates],
            "pair": self.pair.summary(),
            "client_cpu_share": round(statistics.median(self.cpu), 2),
            "server_cpu_us_per_pair": round(statistics.median(self.server_cpu) * 1e6),
        }


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used so far, in seconds; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def client_of(target: str) -> AsyncClient:
    return AsyncClient(target, timeout=60, retry=RetryPolicy(attempt_timeout=60))


async def interleaved(lanes: list[Lane], quick: bool) -> None:
    """Measure in turns, so that what else the machine does hits all alike; the order changes from round to round."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    for lane in lanes:
        await lane.round(1.0, record=False)
    for number in range(rounds):
        for lane in lanes if number % 2 else lanes[::-1]:
            await lane.round(seconds)


def by_round(some: list[float], others: list[float]) -> list[float]:
    """The ratios of two lanes, round by round: rounds that stand beside each other saw the same machine."""
    return [a / b for a, b in zip(some, others, strict=True) if b]


async def bench_echo(directory: Path, quick: bool) -> dict[str, Any]:
    """The pair through the server against the echo."""
    server = LocalServer(directory / "real")
    server.start()
    socket = str(directory / "echo.sock")
    echo: subprocess.Popen[bytes] | None = None
    try:
        await server.ready()
        async with client_of(server.target) as real, client_of(f"unix:{socket}") as fake:
            begun = await real.begin_turn("sample", open=True)
            committed = await real.commit_turn("sample", begun.grant.lease, record_input(os.urandom(PAYLOAD)))
            answers = [begun.SerializeToString().hex(), committed.SerializeToString().hex()]
            echo = subprocess.Popen(  # noqa: ASYNC220 - starting it is over at once
                [sys.executable, __file__, "--serve-echo", socket, *answers]
            )
            names = [f"bench-{number}" for number in range(CALLERS * 4)]
            for name in names:
                await real.open_session(name)
            await answering(fake)
            lanes = [Lane("roost", real, names, pid=server.pid), Lane("echo", fake, names, pid=echo.pid)]
            await interleaved(lanes, quick)
            stats = await real.get_stats()
    finally:
        server.stop()
        if echo is not None:
            echo.terminate()
            echo.wait()
    real_lane, echo_lane = lanes
    ratios = by_round(real_lane.rates, echo_lane.rates)
    ratio = statistics.median(ratios)
    cpu = by_round(real_lane.server_cpu, echo_lane.server_cpu)
    batches = stats.counters["batches_stored"]
    return {
        "roost": real_lane.summary(),
        "echo": echo_lane.summary(),
        "entries_per_batch": round(stats.counters["entries_stored"] / batches, 1) if batches else 0,
        "ratio": round(ratio, 3),
        "ratios": [round(value, 3) for value in sorted(ratios)],
        "cpu_ratio": round(statistics.median(cpu), 3) if cpu else None,  # None where there is no /proc
        "target": f">= {ECHO_TARGET}",
        "reached": ratio >= ECHO_TARGET,
    }


async def answering(client: AsyncClient) -> None:
    """Wait until the echo answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            await client.begin_turn("x", timeout=2)
            return
        except RoostError:
            if time.monotonic() > deadline:
                raise


# -- cost by number of known sessions


STALE_MS = 3_600_000  # of a session that was opened a moment after the store's first start


def fill(data_dir: Path, count: int) -> None:
    """Put `count` open sessions into a store through its own interface, as an engine would have written them."""
    from roost.store.base import Outcome, SessionUpsert
    from roost.store.sqlite import SqliteStore
    from roost.store.v1 import store_pb2

    @dataclass
    class Filling:
        first_seq: int
        rows: list[tuple[Any, ...]]
        roots: tuple[bytes, ...] = ()

        @property
        def last_seq(self) -> int:
            return self.first_seq + len(self.rows) - 1

        def sessions(self) -> list[tuple[Any, ...]]:
            return self.rows

        def records(self) -> list[tuple[Any, ...]]:
            return []

        statuses = closes = rewards = finished = acks = stales = reopens = restores = steps = forgets = records
        keys = revoked_keys = resources = resource_updates = resources_due = cleanups_due = records
        mail = mail_updates = copies = records

        def purged_records(self) -> list[int]:
            return []

        def purged_sessions(self) -> list[bytes]:
            return []

        def resource_deletes(self) -> list[str]:
            return []

        mail_ends = purged_sessions

        def split(self) -> list[Filling]:
            return [self]

    now = int(time.time() * 1000) - 3_600_000
    facts = store_pb2.SessionFacts(create_ms=now, last_outcome=1).SerializeToString()
    data_dir.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(data_dir)
    rng = random.Random(count)
    seq = store.last_seq + 1
    for start in range(0, count, 20_000):
        rows: list[tuple[Any, ...]] = []
        for number in range(start, min(start + 20_000, count)):
            uid = uuid7(now + number // 1000, number, rng)
            rows.append(
                SessionUpsert(
                    uid, "default", session_name(number), uid, b"", "/root", 0, now, STALE_MS, 1, 0, 0, 0, 0, 0, 0,
                    None, facts, 0, 0, "", 0, STALE_MS, 0, seq + number - start, 0,
                )
            )  # fmt: skip
        outcome = store.append(0, store.epoch, seq, Filling(seq, rows))
        if outcome is not Outcome.STORED:
            raise RuntimeError(f"filling the store: {outcome}")
        seq += len(rows)
    store.close()


def session_name(number: int) -> str:
    # Scattered, as ids of real clients are: neighbours in time are no neighbours in the index.
    return f"s-{(number * 2654435761) % 2**32:08x}-{number:07d}"


def uuid7(ms: int, number: int, rng: random.Random) -> bytes:
    low = (0b10 << 62) | (number << 30) | rng.getrandbits(30)
    return (
        ms.to_bytes(6, "big") + (0x7000 | (number & 0xFFF)).to_bytes(2, "big") + (low & (2**64 - 1)).to_bytes(8, "big")
    )


async def bench_sessions(directory: Path, quick: bool) -> dict[str, Any]:
    """The pair at different numbers of known sessions."""
    counts = [1_000, 100_000] if quick else [1_000, 100_000, 1_000_000]
    servers: list[LocalServer] = []
    clients: list[AsyncClient] = []
    lanes: list[Lane] = []
    first: dict[int, float] = {}
    starts: dict[int, float] = {}
    fills: dict[int, float] = {}
    try:
        for count in counts:
            server = LocalServer(directory / f"n{count}")
            began = time.perf_counter()
            await asyncio.to_thread(fill, server.data_dir, count)
            fills[count] = time.perf_counter() - began
            server.start()
            servers.append(server)
            began = time.perf_counter()
            await server.ready()
            starts[count] = time.perf_counter() - began
            client = client_of(server.target)
            clients.append(client)
            picked = random.Random(1).sample(range(count), WORKING_SET)
            lane = Lane(str(count), client, [session_name(number) for number in picked], pid=server.pid)
            first[count] = await touch(lane)
            lanes.append(lane)
        await interleaved(lanes, quick)
    finally:
        for client in clients:
            await client.close()
        for server in servers:
            await asyncio.to_thread(server.stop)
    base = lanes[0]
    out: dict[str, Any] = {"working_set": WORKING_SET, "target": f"<= {SESSIONS_TARGET}"}
    worst = 0.0
    for count, lane in zip(counts, lanes, strict=True):
        ratio = statistics.median(by_round(base.rates, lane.rates))
        cpu = by_round(lane.server_cpu, base.server_cpu)
        worst = max(worst, ratio)
        out[f"{count} sessions"] = {
            **lane.summary(),
            "cost_ratio": round(ratio, 3),
            "cpu_ratio": round(statistics.median(cpu), 3) if cpu else None,
            "first_pair_ms": round(first[count] * 1e3, 3),
            "first_pair_ratio": round(first[count] / first[counts[0]], 3),
            "seconds_to_serving": round(starts[count], 2),
            "seconds_to_fill": round(fills[count], 1),
        }
    return {**out, "ratio": round(worst, 3), "reached": worst <= SESSIONS_TARGET}


async def touch(lane: Lane) -> float:
    """One pair on each session of the working set: they are loaded from the store. Seconds a pair, 64 at once."""
    queue = iter(lane.sessions)

    async def work() -> None:
        for name in queue:
            begun: turns.BeginTurnResponse = await lane.client.begin_turn(name)
            await lane.client.commit_turn(name, begun.grant.lease)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CALLERS)))
    return (time.perf_counter() - began) / len(lane.sessions)


def times(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"x{ratio:.2f}"


def show(name: str, result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            pair = value["pair"]
            extra = ""
            if "cost_ratio" in value:
                extra = (
                    f", cost x{value['cost_ratio']:.2f}, CPU {times(value['cpu_ratio'])}, "
                    f"first pair x{value['first_pair_ratio']:.2f}, serving after {value['seconds_to_serving']:.1f} s"
                )
            print(
                f"  {key:<18}{value['pairs_per_second']:>8.0f} pairs/s  p50 {pair['p50_ms']:.1f} ms  "
                f"p99 {pair['p99_ms']:.1f} ms  server {value['server_cpu_us_per_pair']} us of CPU a pair, "
                f"client {value['client_cpu_share']:.0%} of a core{extra}"
            )
    if "ratios" in result:
        low, high = result["ratios"][0], result["ratios"][-1]
        print(
            f"  {name}: rounds from {low:.2f} to {high:.2f}; CPU of the server a pair: x{result['cpu_ratio'] or 0:.2f}"
        )
    verdict = "reached" if result["reached"] else "MISSED"
    print(f"  {name}: ratio {result['ratio']:.2f}, target {result['target']}: {verdict}")


def main() -> int:
    """Run and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, no million")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("echo", "sessions"))
    parser.add_argument("--serve-echo", nargs=3, metavar=("SOCKET", "BEGIN", "COMMIT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_echo:
        serve_echo(arguments.serve_echo[0], arguments.serve_echo[1:])
        return 0
    results: dict[str, Any] = {}
    for name, bench in (("echo", bench_echo), ("sessions", bench_sessions)):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory:
                results[name] = uvloop.run(bench(Path(directory), arguments.quick))
            if not arguments.json:
                show(name, results[name])
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0 if all(result["reached"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
