"""The dump of a session that has ended, as clean-up wants it: written, read back, or said why not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from roost.handlers.cleanup import DumpFailed
from roost.handlers.dump.errors import DumpError
from roost.handlers.dump.target import Target
from roost.handlers.dump.writer import write_dump
from roost.store.base import SessionRow, Store


class Dumper:
    """Dumps sessions to one target. `read` runs a job on the reader thread, and answers a Refusal where it fails."""

    def __init__(self, store: Store, target: Target, read: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._store = store
        self._target = target
        self._reader = read

    async def __call__(self, row: SessionRow, name: str) -> tuple[int, bytes]:
        """See cleanup.Dump."""
        try:
            made = await write_dump(self._store, self._target, row.uid, self._read)
        except DumpError as error:
            raise DumpFailed(f"{error.why}: {error}") from error
        if made.name != name:
            raise DumpFailed(f"conflict: the session was closed again; its dump is {made.name}")
        return made.bytes, bytes.fromhex(made.sha256)

    async def _read(self, step: Callable[[], Any]) -> Any:
        """One read; what goes wrong there is raised here."""
        failed: list[Exception] = []

        def job() -> list[Any]:
            try:
                return [step()]
            except DumpError as error:
                failed.append(error)
                return []

        answer = await self._reader(job)
        if failed:
            raise failed[0]
        if type(answer) is not list:
            raise DumpFailed("server-error: the store could not be read; see the server's log")
        return answer[0]
