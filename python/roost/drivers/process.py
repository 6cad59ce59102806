"""Processes: a program that a host started for a session, on the machine and under the user that the server has.

A process is known by its number *and* its start: numbers are used again. A host names it by the handle that `identify`
makes, and starts it with its resource's name in the environment (ROOST_RESOURCE), so that it is found by name where
nobody could say its number any more. What it starts inherits the name, belongs to it and ends with it.

Ending is SIGTERM, a grace, SIGKILL; for the whole process group if the process leads one. Signals go through a pidfd
where there are such things (Linux), which cannot hit another process; elsewhere the start is compared right before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from .base import BadOption, DriverError, Item, Resource, within
from .marker import Marker

VARIABLE: Final = "ROOST_RESOURCE"  # of the environment: bears the resource's name
KILL_WAIT: Final = 5.0  # seconds that SIGKILL gets to work: longer only for a process that hangs in the kernel
_POLL: Final = 0.02  # seconds, of the first look at what cannot be waited for; doubles
_POLL_MAX: Final = 0.5
_EXEC: Final = 0.02  # seconds after which exec() has most likely put the environment in its place
_LINUX: Final = sys.platform == "linux"
_GROUP: Final = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, from Linux 6.9 on

# Linux: id of the boot, and clock ticks between it and the start. Elsewhere: seconds of the epoch.
_HANDLE: Final = re.compile(r"([1-9][0-9]{0,9})@([0-9a-f-]{36}:[0-9]{1,20}|[0-9]{1,12}\.[0-9]{6})")


class Process(NamedTuple):
    """One process, now or in the past."""

    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.pid}@{self.started}"

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """What `str()` made; None for anything else."""
        match = _HANDLE.fullmatch(text)
        return cls(int(match[1]), match[2]) if match else None


def identify(pid: int) -> str:
    """The handle of a running process, for AttachResource: its number and its start. ProcessLookupError if there is
    none."""
    seen = look(pid)
    if seen is None or seen.dead:
        raise ProcessLookupError(f"there is no process {pid}")
    return str(Process(pid, seen.started))


def bears(process: Process, name: str) -> bool | None:
    """True if it was started with this name and shows it, None if it has ended. Blocks for up to a second."""
    shown = _settled_name(process.pid)
    with _opened(process) as target:
        # Opened after the name was read: what was read is of this process.
        seen = target.same() if target is not None else None
        return None if seen is None or seen.dead else shown == name


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be known of a process at one instant."""

    started: str
    group: int
    dead: bool  # a zombie: it has ended, and only its parent has not looked


def look(pid: int) -> Seen | None:
    """What process `pid` is now; None if there is none. DriverError if that cannot be told."""
    boot = _boot_id() if _LINUX else ""
    try:
        if _LINUX:
            # psutil gives the start as a time of day, which moves when the clock is set. The name may hold anything.
            stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
            return Seen(f"{boot}:{int(stat[19])}", int(stat[2]), stat[0] in (b"Z", b"X", b"x"))
        process = psutil.Process(pid)
        with process.oneshot():
            dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            return Seen(f"{process.create_time():.6f}", os.getpgid(pid), dead)
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None
    except (OSError, psutil.Error, IndexError) as error:
        raise DriverError(f"cannot look at process {pid} ({_why(error)})", retryable=True) from None


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Taken for "no such process", this would leave every process alone and call it ended.
        raise DriverError(
            "this system does not tell the id of its boot: processes cannot be told apart", retryable=False
        ) from None


def _why(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


class ProcessDriver:
    """Ends processes, and lists those that bear a name.

    `grace`: seconds between SIGTERM and SIGKILL. `limit`: seconds that one call may take. A handle is what a caller
    said, so by default it must be that of a process that shows the resource's name: nobody may have anybody's process
    ended. Some programs write over their environment when they set their title; where handles are checked with
    `bears` when they come, `trust_handles` takes them as they are.
    """

    def __init__(self, *, grace: float = 10.0, limit: float = 30.0, trust_handles: bool = False) -> None:
        if not 0 <= grace <= limit - KILL_WAIT:
            raise BadOption("limit", f"the time limit must be at least the grace and {KILL_WAIT:g} s")
        self._grace = grace
        self._limit = limit
        self._trust_handles = trust_handles

    async def release(self, resource: Resource) -> None:
        """End the process that the handle names, and whatever bears the resource's name: without a handle (its host
        never said), or beside it (what left its group)."""
        process = Process.parse(resource.handle)
        if resource.handle and process is None:
            raise DriverError(
                f"the handle of {resource.name} is not one of a process: attach with what identify() gives",
                retryable=False,
            )
        await within(self._limit, f"ending {resource.name}", self._release(resource.name, process))

    async def _release(self, name: str, process: Process | None) -> None:
        if process is not None:
            shows = True if self._trust_handles else await asyncio.to_thread(bears, process, name)
            if shows is False:
                raise DriverError(
                    f"the handle of {name} is process {process.pid}, which does not show that name: start it with "
                    f"{VARIABLE}={name} in its environment",
                    retryable=False,
                )
            if shows:
                await end(process, self._grace, name=name)
        # Until none is found: one that was just being started may have been missed.
        while bearers := await asyncio.to_thread(_marked, name):
            work = (end(bearer, self._grace, name=name) for _, bearer in bearers)
            for outcome in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def inventory(self) -> list[Item]:
        """Every process of this user that was started with a name of Roost's, whichever store's."""
        marked = await within(self._limit, "listing processes", asyncio.to_thread(_marked))
        return [Item(name, str(process)) for name, process in marked]

    async def end(self, item: Item) -> None:
        """End exactly this process, with its group if it leads one."""
        process = Process.parse(item.instance)
        if process is None:
            raise DriverError(f"{item.name} does not come from a list of processes", retryable=False)
        await within(self._limit, f"ending {item.name}", end(process, self._grace, name=item.name))

    async def close(self) -> None:
        """Nothing is held open."""


async def end(
    process: Process, grace: float, *, name: str, first: tuple[signal.Signals, ...] = (signal.SIGTERM,)
) -> None:
    """End one process, and its group if it leads one that holds nothing of another name.

    A number that is another process's now is as good as gone. `first`: the signals before the grace. DriverError if
    the process is not this user's, is this one or an ancestor of it, or outlives SIGKILL.
    """
    with _opened(process) as target:
        if target is None:
            return
        await asyncio.to_thread(target.aim, name)
        for sig in first:
            target.send(sig)
        if await target.over(grace):
            return
        target.send(signal.SIGKILL)
        if not await target.over(KILL_WAIT):
            raise DriverError(
                f"{name} is process {process.pid}, which did not end within {KILL_WAIT:g} s of SIGKILL", retryable=True
            )


class _Target:
    """A process that is about to be ended, held by a pidfd where there is one."""

    def __init__(self, process: Process, fd: int | None) -> None:
        self._process = process
        self._fd = fd
        self._whole = False

    def same(self) -> Seen | None:
        """What it is now; None if it is gone, or the number is another's. A zombie is still the same."""
        seen = look(self._process.pid)
        return seen if seen is not None and seen.started == self._process.started else None

    def ours(self) -> bool:
        """True if it is this user's, or gone meanwhile."""
        try:
            uids = psutil.Process(self._process.pid).uids()
        except psutil.NoSuchProcess:
            return True
        # Asked last: a number that is another's by now says nothing of this one.
        return {uids.real, uids.effective} == {os.geteuid()} or self.same() is None

    def aim(self, name: str) -> None:
        """See that it may be ended, else DriverError, and decide whether its group goes with it: if it leads one,
        which this server is not in, and in which nothing bears another name. What does is another session's, and may
        not end with this one (I20)."""
        pid = self._process.pid
        if pid in _selves():
            raise DriverError(f"{name} is process {pid}, which this server runs in", retryable=False)
        if not self.ours():
            raise DriverError(f"{name} is process {pid}, which is another user's", retryable=False)
        seen = self.same()
        if seen is not None and seen.group == pid != os.getpgrp():
            self._whole = all(_settled_name(member) in (None, name) for member in _members(pid))

    def send(self, sig: signal.Signals) -> None:
        """Signal it, or its group. Nothing happens to what is gone, or is another process by now."""
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            try:
                if self._whole:
                    self._send_group(sig)
                elif self._fd is not None:
                    signal.pidfd_send_signal(self._fd, sig)
                elif self.same() is not None:
                    os.kill(pid, sig)
            except PermissionError:
                raise DriverError(f"process {pid} may not be signalled by this user", retryable=False) from None

    def _send_group(self, sig: signal.Signals) -> None:
        if self._fd is not None:
            try:
                signal.pidfd_send_signal(self._fd, sig, None, _GROUP)
                return
            except OSError as error:
                if isinstance(error, (PermissionError, ProcessLookupError)):
                    raise
        # An older kernel. A group's number is not given out again while it has a member; if it has a leader that is
        # not ours, the group is another's.
        if look(self._process.pid) is None or self.same() is not None:
            os.killpg(self._process.pid, sig)

    async def over(self, seconds: float) -> bool:
        """Wait until it has ended, and with it its group. False if it has not within `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._fd is not None:
                    await _readable(self._fd)
                else:
                    await _until(lambda: (seen := self.same()) is None or seen.dead)
                if self._whole:
                    await _until(self._empty)
                return True
        return False

    def _empty(self) -> bool:
        pid = self._process.pid
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # somebody is there
        seen = look(pid)
        if seen is not None and seen.started != self._process.started:
            return True  # the number, and so the group, is another's
        return not _members(pid)


@contextlib.contextmanager
def _opened(process: Process) -> Iterator[_Target | None]:
    """Hold on to the process, if it still is there.

    The pidfd is opened first and the start read afterwards: who has the number and that start now had it all along.
    """
    try:
        fd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        yield None
        return
    except OSError:  # an old kernel, or a sandbox that does not know the call
        fd = None
    try:
        target = _Target(process, fd)
        yield target if target.same() is not None else None
    finally:
        if fd is not None:
            os.close(fd)


async def _readable(fd: int) -> None:
    """Wait until the process of a pidfd has ended. A zombie has."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)


async def _until(done: Callable[[], bool]) -> None:
    """Look again and again, ever less often: for what nothing tells of by itself."""
    pause = _POLL
    while not await asyncio.to_thread(done):
        await asyncio.sleep(pause)
        pause = min(_POLL_MAX, pause * 2)


def _selves() -> set[int]:
    """This process and those it runs in: a server may have been started by something that bears a name."""
    return {os.getpid(), *(process.pid for process in psutil.Process().parents())}


def _members(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    return [pid for pid in psutil.pids() if (seen := look(pid)) is not None and seen.group == group and not seen.dead]


def _marked(only: str | None = None) -> list[tuple[str, Process]]:
    """The living processes of this user that bear a name (`only` this one), except those this server runs in."""
    found = []
    names = {pid: _name_of(pid) for pid in psutil.pids()}
    if unknown := [pid for pid, name in names.items() if name == ""]:
        time.sleep(_EXEC)
        names |= {pid: _name_of(pid) for pid in unknown}
    candidates = [(pid, name) for pid, name in names.items() if name and only in (None, name)]
    selves = _selves() if candidates else set()
    for pid, name in candidates:
        seen = look(pid)
        if seen is not None and pid not in selves:
            process = Process(pid, seen.started)
            with _opened(process) as target:
                if target is not None and target.ours() and bears(process, name):
                    found.append((name, process))
    return found


def _settled_name(pid: int) -> str | None:
    """As `_name_of`, for one that matters: what starts a program just now is given a second. None if it shows none."""
    for _ in range(int(1 / _EXEC)):
        if name := _name_of(pid):
            return name
        if name is None:
            return None
        time.sleep(_EXEC)
    return None


def _name_of(pid: int) -> str | None:
    """The name that a process was started with; None if it bears none, is gone, or does not show it to this user; ""
    if it shows no environment at all, as for an instant in the middle of exec()."""
    try:
        if _LINUX:
            # Read for every process of the machine, so without making a dict of each.
            raw, start = Path(f"/proc/{pid}/environ").read_bytes(), f"{VARIABLE}=".encode()
            if not raw:
                return ""
            values = (
                (entry[len(start) :] for entry in raw.split(b"\0") if entry.startswith(start)) if start in raw else ()
            )
            value = next(iter(values), b"").decode("ascii", "replace")
        else:
            value = psutil.Process(pid).environ().get(VARIABLE, "")
    except (OSError, psutil.Error):
        return None
    return value if Marker.parse(value) else None
