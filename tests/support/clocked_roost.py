"""`roost` with a clock that a test moves: leases run out and delays pass without a wait.

Run in place of `-m roost`. CLOCK_SOCKET names a Unix socket on which a test says how many
milliseconds to skip; the answer comes when the server has done what became due by then.
CLOCK_SKIPPED is how far an earlier server's clock was ahead.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from roost._core import Engine
from roost.cli.main import main
from roost.server import app


class Clocked(app.Process):
    """A server process that listens for how far to move its clock."""

    async def serve(self) -> int:
        control = await asyncio.start_unix_server(self._control, os.environ["CLOCK_SOCKET"])
        async with control:
            return await super().serve()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self._engine.skip_time(int(line))
            self._engine.tick()
            self._transport.drain()
            writer.write(b"done\n")
            await writer.drain()
        writer.close()


def engine(limits: Any, last_seq: int, served_ms: int, *keys: Any, **more: Any) -> Engine:
    """An engine whose wall clock stands where the last one's did; its service clock, which the store keeps, goes on."""
    skipped = int(os.environ.get("CLOCK_SKIPPED", "0"))
    made = Engine(limits, last_seq, max(0, served_ms - skipped), *keys, **more)
    made.skip_time(skipped)
    return made


if __name__ == "__main__":
    app.Engine, app.Process = engine, Clocked  # type: ignore[assignment,misc]
    main()
