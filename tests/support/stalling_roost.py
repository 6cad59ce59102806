"""`roost` in which the load of one session can be held up, as by a disk that does not answer.

Run in place of `-m roost`. STALL_SOCKET names a Unix socket: "hold UID" (hex) keeps back every load of that session's
state, "release" lets them go on. The answer "done" comes at once.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from roost.cli.main import main
from roost.handlers.reload import StoreReader
from roost.server import app

held: set[bytes] = set()


class Stalling(StoreReader):
    """Serves all reads but those that are held up."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._kept: list[tuple[str, int, tuple[Any, ...]]] = []

    def _load(self, kind: str, number: int, arguments: tuple[Any, ...]) -> bool:
        if kind == "session" and arguments[0] in held:
            self._kept.append((kind, number, arguments))
            return False
        return super()._load(kind, number, arguments)

    def _serve(self, timeout_ms: int) -> bool:
        completed = False
        if self._kept and not held:
            kept, self._kept = self._kept, []
            for read in kept:
                completed |= super()._load(*read)
        return super()._serve(0 if completed else timeout_ms) or completed


class Process(app.Process):
    """A server process that listens for what to hold up."""

    async def serve(self) -> int:
        control = await asyncio.start_unix_server(self._control, os.environ["STALL_SOCKET"])
        async with control:
            return await super().serve()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            word, _, uid = line.decode().strip().partition(" ")
            if word == "hold":
                held.add(bytes.fromhex(uid))
            else:
                held.clear()
                self._engine.wake_reader()
            writer.write(b"done\n")
            await writer.drain()
        writer.close()


if __name__ == "__main__":
    app.StoreReader, app.Process = Stalling, Process  # type: ignore[misc]
    main()
