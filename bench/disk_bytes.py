"""What sessions, turns and messages take on disk: the numbers of the disk budget in docs/OPERATIONS.md.

    python bench/disk_bytes.py [--quick] [--json]

A server stores so many of one kind; it is stopped, and the pages of its file that are in use are counted before and
after. Turns are committed with contents and token spans of several sizes; what a turn takes beside them follows. There
is no bar of speed: the figures are bytes, and the same on every machine. What takes more than the manual says fails it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw

from roost.client import AsyncClient, record_input, token_span
from roost.workload.local_server import LocalServer

CALLERS = 32
MANY, FEW = 4_000, 600
CONTENTS = (1_000, 4_000, 20_000)
SPAN = 500  # tokens of a turn that has some
# Of docs/OPERATIONS.md, bytes.
SAID = {"session": 1_000, "turn": 350, "message": 450}
SPARE = 2_200  # of a turn or message with a payload: a page has 4,096 bytes, and what does not fit begins another


def used(data_dir: Path) -> int:
    """Bytes of the file's pages that hold something."""
    conn = apsw.Connection(str(data_dir / "roost.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        pages, free, size = (int(str(conn.pragma(p))) for p in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size
    finally:
        conn.close()


class Disk:
    """A server that is started for each kind of work, and stopped to see what that took."""

    def __init__(self, directory: Path, many: int) -> None:
        self.directory, self.many = directory, many
        self._arguments = ["--set", "turn_log=false", "--set", "heartbeat_ms=0"]

    async def takes(self, work: Callable[[AsyncClient, int], Awaitable[object]]) -> float:
        """Bytes for each time of `work`, done so many times."""
        server = LocalServer(self.directory, self._arguments)
        before = used(server.data_dir) if (server.data_dir / "roost.db").exists() else 0
        server.start()
        await server.ready()
        try:
            async with AsyncClient(server.target, timeout=60) as client:
                left = iter(range(self.many))

                async def caller() -> None:
                    for n in left:
                        await work(client, n)

                await asyncio.gather(*(caller() for _ in range(CALLERS)))
        finally:
            server.stop()
        return (used(server.data_dir) - before) / self.many


def turn(content: int = 0, tokens: int = 0, logprobs: bool = False) -> Callable[[AsyncClient, int], Awaitable[object]]:
    """A turn of session n with so much in it."""
    rng = random.Random(7)
    span = None
    if tokens:
        ids = [rng.randrange(150_000) for _ in range(tokens)]
        span = token_span(ids, logprobs=[-rng.random() for _ in ids] if logprobs else b"")
    record = record_input(rng.randbytes(content), tokens=span)

    async def one(client: AsyncClient, n: int) -> None:
        grant = (await client.begin_turn(f"session-{n}")).grant
        if tokens:
            record.tokens.offset = grant.checkpoint.length
        await client.commit_turn(f"session-{n}", grant.lease, record)

    return one


async def measure(many: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="roost-") as directory:
        disk = Disk(Path(directory), many)
        await disk.takes(turn_of_nothing)  # tables and their first pages
        found = {"session": await disk.takes(lambda client, n: client.open_session(f"session-{n}"))}
        found["session"] += await disk.takes(turn())  # its row grows with its first turn
        found["turn"] = await disk.takes(turn())
        found["session"] -= found["turn"]
        for content in CONTENTS:
            found[f"turn of {content} bytes"] = await disk.takes(turn(content))
        found[f"turn of {SPAN} tokens"] = await disk.takes(turn(tokens=SPAN))
        found[f"turn of {SPAN} tokens with logprobs"] = await disk.takes(turn(tokens=SPAN, logprobs=True))
        found["message"] = await disk.takes(lambda client, n: client.send(f"session-{n}", b"x"))
        found["message of 1000 bytes"] = await disk.takes(lambda client, n: client.send(f"session-{n}", b"x" * 1_000))
        found["close"] = await disk.takes(lambda client, n: client.close_session(f"session-{n}"))
        return found


async def turn_of_nothing(client: AsyncClient, n: int) -> None:
    """Makes a session of another name, so that what is measured meets a store that is not new."""
    await client.open_session(f"first-{n}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = asyncio.run(measure(FEW if arguments.quick else MANY))
    missed = [name for name, most in SAID.items() if found[name] > most]
    payloads = {f"turn of {n} bytes": n for n in CONTENTS} | {
        f"turn of {SPAN} tokens": 4 * SPAN,
        f"turn of {SPAN} tokens with logprobs": 8 * SPAN,
        "message of 1000 bytes": 1_000,
    }
    missed += [name for name, n in payloads.items() if found[name] > SAID[name.split()[0]] + n + SPARE]
    if arguments.json:
        print(json.dumps({"bytes": found, "said": SAID, "missed": missed}))
    else:
        print("bytes on disk, one of each")
        for name, size in found.items():
            said = f"   the manual says at most {SAID[name]:,}" if name in SAID else ""
            print(f"  {name:36} {size:10,.0f}{said}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
