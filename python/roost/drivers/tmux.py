"""tmux sessions: agents that a host runs in a terminal of their own, named after their resource.

Whatever is asked of tmux goes through its command line, on the socket that the configuration names. A session is ended
by its id, in one command that the tmux server carries out only if the id still has that name and the server is the one
that was listed: ids are unique in the life of one tmux server, so that a successor of the same name is not hit. The
programs in it are ended first, as the process driver does it: tmux itself only hangs up on them, which a program may
ignore. A window that is in another session too, as where somebody looks on with `new-session -t`, is that one's as
well, and its programs stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from typing import Final, NamedTuple

from . import process
from .base import BadOption, DriverError, Item, Resource, within
from .marker import Marker
from .process import Process

# Which session of which tmux server.
_INSTANCE: Final = "#{session_id} #{session_created} #{pid} #{start_time}"
_INSTANCE_SAID: Final = re.compile(r"\$[0-9]+ [0-9]+ [0-9]+ [0-9]+")
# A name may hold anything but a line end, which tmux writes as an escape.
_SESSION_SAID: Final = re.compile(rf"({_INSTANCE_SAID.pattern}) (.*)", re.DOTALL)
_PANE: Final = "#{pane_dead} #{window_linked_sessions} #{pane_pid}"
_PANE_SAID: Final = re.compile(rf"({_INSTANCE_SAID.pattern}) ([01]?) ([0-9]*) ([0-9]+) (.*)", re.DOTALL)

# What tmux says when there is no server on its socket: nothing has ever run there, or its last session ended.
_NO_SERVER: Final = re.compile(r"no server running on .*|error connecting to .* \(No such file or directory\)")
_NO_SESSION: Final = re.compile(r"can't find session: .*")
# What it says when the server goes while it is asked: the next time there is none, or another.
_GOING: Final = re.compile(r"server exited unexpectedly|server exited|lost server")
_TRIES: Final = 5
_PAUSE: Final = 0.02  # seconds


class _Session(NamedTuple):
    instance: str
    name: str

    @property
    def id(self) -> str:
        return self.instance.partition(" ")[0]


class TmuxDriver:
    """Ends tmux sessions by exact name, and lists them.

    `socket_name` or `socket_path`: as tmux takes them with -L and -S; without either, the user's default socket.
    `grace`: seconds between hanging up on the programs in a session and SIGKILL. `limit`: seconds that one call may
    take.
    """

    def __init__(
        self,
        *,
        socket_name: str | None = None,
        socket_path: str | None = None,
        grace: float = 10.0,
        limit: float = 30.0,
    ) -> None:
        if socket_name is not None and socket_path is not None:
            raise BadOption("socket_path", "give tmux the name of a socket or its path, not both")
        if not 0 <= grace <= limit - process.KILL_WAIT:
            raise BadOption("limit", f"the time limit must be at least the grace and {process.KILL_WAIT:g} s")
        self._socket = ["-L", socket_name] if socket_name else ["-S", socket_path] if socket_path else []
        self._grace = grace
        self._limit = limit

    async def release(self, resource: Resource) -> None:
        """End the session that has exactly the resource's name."""
        if Marker.parse(resource.name) is None:
            raise DriverError(f"{resource.name!r} is not a name of Roost's", retryable=False)
        await within(self._limit, f"ending tmux session {resource.name}", self._release(resource.name))

    async def _release(self, name: str) -> None:
        for session in await self._sessions():
            if session.name == name:  # tmux has one of a name
                await self._end(session)

    async def inventory(self) -> list[Item]:
        """Every session of this tmux server, whoever made it; none if no server runs."""
        sessions = await within(self._limit, "listing tmux sessions", self._sessions())
        return [Item(session.name, session.instance) for session in sessions]

    async def end(self, item: Item) -> None:
        """End exactly this session."""
        if not _INSTANCE_SAID.fullmatch(item.instance) or Marker.parse(item.name) is None:
            raise DriverError(f"{item.name!r} does not come from a list of tmux sessions", retryable=False)
        session = _Session(item.instance, item.name)
        await within(self._limit, f"ending tmux session {item.name}", self._end(session))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _end(self, session: _Session) -> None:
        work = (
            # A shell hands SIGHUP on to its jobs and ignores SIGTERM; other programs do it the other way round.
            process.end(program, self._grace, name=session.name, first=(signal.SIGHUP, signal.SIGTERM))
            for program in await self._programs(session)
        )
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome  # and the session stays, so that the next try knows what is in it
        same = f"#{{==:{_INSTANCE} #{{session_name}},{session.instance} {session.name}}}"
        await self._ask("if-shell", "-F", "-t", session.id, same, f"kill-session -t '{session.id}'")
        if session in await self._sessions():
            raise DriverError(f"tmux session {session.name} is still there after kill-session", retryable=True)

    async def _programs(self, session: _Session) -> list[Process]:
        """The first program of each pane of the session, told apart from all others by its start.

        tmux tells numbers only. A pane that still has its number after the start was read had it all along: the
        tmux server is the parent, and until it has noticed the end the number is not given out again.
        """
        seen = {pid: process.look(pid) for pid in await self._panes(session)}
        still = await self._panes(session) if seen else set()
        return [Process(pid, look.started) for pid, look in seen.items() if look is not None and pid in still]

    async def _panes(self, session: _Session) -> set[int]:
        """Numbers of the programs that run in the panes of this very session and of no other."""
        pids = set()
        form = f"{_INSTANCE} {_PANE} #{{session_name}}"
        for line in await self._ask("list-panes", "-s", "-t", session.id, "-F", form):
            match = _PANE_SAID.fullmatch(line)
            if match is None:
                raise DriverError("tmux lists panes in a form that Roost does not know", retryable=False)
            instance, dead, linked, pid, name = match.groups()
            # Of a program that has ended tmux goes on telling the number, which is not its any more.
            if (instance, name) == session and dead != "1" and linked in ("", "1"):
                pids.add(int(pid))
        return pids

    async def _sessions(self) -> list[_Session]:
        found = []
        for line in await self._ask("list-sessions", "-F", f"{_INSTANCE} #{{session_name}}"):
            match = _SESSION_SAID.fullmatch(line)
            if match is None:
                raise DriverError("tmux lists sessions in a form that Roost does not know", retryable=False)
            found.append(_Session(match[1], match[2]))
        return found

    async def _ask(self, *command: str) -> list[str]:
        """The lines that tmux answers; none if no server runs, or no such session. DriverError for all else."""
        tries = 1
        code, out, said = await self._run(*command)
        while code != 0 and _GOING.fullmatch(said) and tries < _TRIES:
            await asyncio.sleep(_PAUSE)
            tries += 1
            code, out, said = await self._run(*command)
        if code == 0:
            return out.split("\n")[:-1]  # splitlines() knows ends of line that tmux does not
        if _NO_SERVER.fullmatch(said) or _NO_SESSION.fullmatch(said):
            return []
        raise DriverError(f"tmux {command[0]} failed: {said or f'exit code {code}'}", retryable=True)

    async def _run(self, *command: str) -> tuple[int | None, str, str]:
        """Exit code, what tmux answers, what it complains of."""
        program = shutil.which("tmux")
        if program is None:
            raise DriverError(
                "tmux is not installed: install it, or take its driver out of the configuration", retryable=False
            )
        # A server that runs inside tmux must not be taken for a client of that one.
        env = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
        try:
            transport, answer = await asyncio.get_running_loop().subprocess_exec(
                _Answer,
                program,
                *self._socket,
                *command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
            )
        except OSError as error:
            raise DriverError(f"tmux cannot be started ({error.strerror})", retryable=True) from None
        try:
            await answer.complete.wait()
        finally:
            if not answer.exited.is_set():
                with contextlib.suppress(ProcessLookupError):
                    transport.kill()
                await answer.exited.wait()
            # The tmux server was given the ends of the pipes, and holds them open where it hangs.
            transport.close()
        out, err = (bytes(answer.said[fd]).decode("utf-8", "replace") for fd in (1, 2))
        return transport.get_returncode(), out, err.strip()


class _Answer(asyncio.SubprocessProtocol):
    """What one call of tmux says. `complete`: it has exited, and everything is read."""

    def __init__(self) -> None:
        self.said = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.complete = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said[fd] += data

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.complete.set()
