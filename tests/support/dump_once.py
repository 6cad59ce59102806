"""A process that dumps one session and says how: `dump_once.py DATA_DIR SESSION_ID TARGET OPTIONS PART_BYTES`."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ended_sessions import read_now

from roost.handlers.dump.errors import DumpError
from roost.handlers.dump.target import open_target
from roost.handlers.dump.writer import write_dump
from roost.store import SqliteStore


def rss(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(what))


async def main(data_dir: str, session_id: str, where: str, options: str, part_bytes: str) -> None:
    store = SqliteStore(Path(data_dir), reserve_bytes=1 << 20, reserve_margin=0, background_checkpoint=False)
    row = store.read_session("default", session_id)
    assert row is not None
    before = rss("VmRSS")
    try:
        target = open_target(where, json.loads(options))
        result = await write_dump(store, target, row.uid, read_now, part_bytes=int(part_bytes))
        print(json.dumps(asdict(result) | {"extra_rss": rss("VmHWM") - before}))
    except DumpError as error:
        print(json.dumps({"why": error.why}))
    finally:
        store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
