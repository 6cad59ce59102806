"""A Roost server as a child process: what the demo, the benchmarks and the crash tests start, kill and start again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from roost.client import NO_RETRY, AsyncClient
from roost.errors import RoostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ServerFailed(Exception):
    """The server process ended before it served. The message holds the end of its log."""


class LocalServer:
    """A server on a data directory of its own, listening on a Unix socket in `directory`.

    `arguments`: more arguments of `roost serve`. `lives`: how often it was started. The log of all lives is
    `directory/server.log`. The path of the socket must be shorter than 100 bytes, as all are.
    """

    def __init__(self, directory: Path, arguments: Sequence[str] = ()) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.target = f"unix:{directory / 'roost.sock'}"
        self.log = directory / "server.log"
        self.lives = 0
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. RuntimeError if it does not run."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the process. It is not serving yet: see `ready`."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        command = [sys.executable, "-m", "roost", "serve", "--listen", self.target, "--data-dir", str(self.data_dir)]
        self.directory.mkdir(parents=True, exist_ok=True)
        # What configures the caller's own commands must not configure this server.
        keep = {key: value for key, value in os.environ.items() if not key.startswith("ROOST_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command + self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=keep
            )
        self.lives += 1

    async def ready(self, timeout: float = 30.0) -> None:
        """Wait until it answers. ServerFailed if it ends instead, or does not answer in `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        async with AsyncClient(self.target, retry=NO_RETRY, api_key="", tls=False) as client:
            while True:
                if self._process is None or self._process.poll() is not None:
                    raise ServerFailed(f"the server ended before it served: {self.tail()}")
                try:
                    await client.get_stats(timeout=2)
                    return
                except RoostError as error:
                    if asyncio.get_running_loop().time() > deadline:
                        raise ServerFailed(f"the server does not answer ({error}): {self.tail()}") from None
                    await asyncio.sleep(0.02)  # a poll of something outside: nothing to be told by

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to finish anything."""
        self._end(signal.SIGKILL)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, then wait; returns the exit code. A server that does not end is killed."""
        return self._end(signal.SIGTERM, timeout)

    def _end(self, how: signal.Signals, timeout: float = 20.0) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def tail(self, size: int = 600) -> str:
        """The end of the log."""
        try:
            return self.log.read_bytes()[-size:].decode(errors="replace").strip() or "its log is empty"
        except OSError as error:
            return str(error)
