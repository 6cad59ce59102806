"""Processes are ended by number and start, never by number alone, and never what another session owns (I20)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest
import uvloop

from roost.drivers import DriverError, Item, Marker, Resource
from roost.drivers import process as module
from roost.drivers.process import VARIABLE, Process, ProcessDriver, bears, identify, look
from roost.drivers.reap import Ours, Sweeps, sweep

# A store of this test process alone: other tests may run beside it, and their processes are found as well.
STORE = f"{os.getpid():08x}"


def name(n: int = 1, store: str = STORE) -> str:
    return str(Marker("roost", store, 1, bytes(16), n))


# A child of the shell that says its number, and one that ignores SIGTERM beside that.
CHILD = "sh -c 'echo $$; exec sleep 1000' &"
DEAF_CHILD = "sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' &"


class Agent:
    """A shell that runs `script` and then `cat`: a line that is sent comes back from one who lives.

    `children`: numbers of processes that the script says on lines of their own.
    """

    def __init__(self, script: str, mark: str | None, leader: bool, user: int | None) -> None:
        self.popen = subprocess.Popen(
            ["/bin/sh", "-c", f"{script}\necho ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **({VARIABLE: mark} if mark is not None else {})},
            start_new_session=leader,
            user=user,
            text=True,
        )
        said = {self._out.readline().strip() for _ in range(1 + script.count("echo $$"))}
        self.children = [int(line) for line in said - {"ready"}]
        self.pid = self.popen.pid
        self.handle = identify(self.pid)

    @property
    def _out(self) -> IO[str]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def lives(self) -> bool:
        """True if it answers: a signal that it was sent before would have ended it before it could."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write("there?\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            return False
        return self._out.readline() == "there?\n"

    def status(self) -> int:
        return self.popen.wait()

    def put_away(self) -> None:
        for pid in [self.pid, *self.children]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.communicate()


Start = Callable[..., Agent]


@pytest.fixture
def start() -> Iterator[Start]:
    agents: list[Agent] = []

    def begin(script: str = "", mark: str | None = None, *, leader: bool = True, user: int | None = None) -> Agent:
        agents.append(Agent(script, mark, leader, user))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.put_away()


@pytest.fixture(params=["pidfd", "before Linux 6.9", "without pidfd"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to signal: this kernel's, without groups by pidfd, and without pidfd."""
    if request.param == "before Linux 6.9":
        real = signal.pidfd_send_signal

        def old(fd: int, sig: int, info: None = None, flags: int = 0) -> None:
            if flags:
                raise OSError(errno.EINVAL, "Invalid argument")
            real(fd, sig, info, flags)

        monkeypatch.setattr(signal, "pidfd_send_signal", old)
    elif request.param == "without pidfd":

        def missing(pid: int, flags: int = 0) -> int:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", missing)
    return str(request.param)


def gone(pid: int) -> bool:
    seen = look(pid)
    return seen is None or seen.dead


def pidfds() -> int:
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            found += "pidfd" in str(fd.readlink())
    return found


def resource(agent: Agent | None, n: int = 1) -> Resource:
    return Resource(name(n), "session-1", agent.handle if agent else "")


EAGER = ProcessDriver(grace=0.05)  # for what must come to SIGKILL
PATIENT = ProcessDriver(grace=20)  # for what must not


async def test_a_process_gets_sigterm_and_the_time_to_end(start: Start, system: str) -> None:
    agent = start("trap 'echo bye; exit 7' TERM; echo ready; while :; do read line; done", name())
    await PATIENT.release(resource(agent))
    assert agent.status() == 7
    assert agent._out.read() == "bye\n"


async def test_one_that_ignores_sigterm_is_killed(start: Start, system: str) -> None:
    agent = start("trap '' TERM", name())
    await EAGER.release(resource(agent))
    assert agent.status() == -signal.SIGKILL


async def test_a_stopped_process_is_ended(start: Start, system: str) -> None:
    agent = start("", name())
    os.kill(agent.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, agent.pid, os.WSTOPPED | os.WNOWAIT)
    await EAGER.release(resource(agent))
    assert agent.status() == -signal.SIGKILL


async def test_the_group_of_a_leader_goes_with_it_also_what_outlives_the_leader(start: Start, system: str) -> None:
    agent = start(DEAF_CHILD + CHILD, name())
    assert [os.getpgid(child) for child in agent.children] == [agent.pid] * 2
    await EAGER.release(resource(agent))
    assert agent.status() == -signal.SIGTERM
    assert all(gone(child) for child in agent.children)


async def test_one_that_leads_no_group_ends_alone(start: Start, system: str) -> None:
    agent, beside = start("", name(), leader=False), start("", name(2), leader=False)
    assert os.getpgid(agent.pid) == os.getpgid(beside.pid) == os.getpgrp()
    await PATIENT.release(resource(agent))
    assert agent.status() == -signal.SIGTERM
    assert beside.lives()


async def test_a_group_that_holds_what_is_anothers_is_spared(start: Start, system: str) -> None:
    """I20: an orphan that leads a group ends, and the process of an open session in that group lives."""
    other = f"{VARIABLE}={name(2)} {CHILD}"
    agent = start(other + CHILD, name(1))
    theirs, mine = sorted(agent.children, key=lambda child: bears(Process.parse(identify(child)), name(1)) or False)
    assert os.getpgid(theirs) == os.getpgid(mine) == agent.pid
    await PATIENT.release(resource(agent))
    assert agent.status() == -signal.SIGTERM
    assert gone(mine)
    assert not gone(theirs)
    assert bears(Process.parse(identify(theirs)), name(2))


async def test_what_left_the_group_is_found_by_name(start: Start, system: str) -> None:
    agent = start(f"setsid {CHILD}", name())
    assert os.getpgid(agent.children[0]) != agent.pid
    await PATIENT.release(resource(agent))
    assert gone(agent.pid)
    assert gone(agent.children[0])


async def test_one_whose_host_never_said_its_number_is_found_by_name(start: Start, system: str) -> None:
    """PLANNED: the host was gone between making it and saying so."""
    agent, other = start("", name(1)), start("", name(2))
    await PATIENT.release(resource(None))
    assert agent.status() == -signal.SIGTERM
    assert other.lives()


async def test_releasing_again_is_a_success(start: Start, system: str) -> None:
    agent = start("", name())
    for _ in range(3):
        await PATIENT.release(resource(agent))
    assert agent.status() == -signal.SIGTERM
    await PATIENT.release(resource(agent))


async def test_a_zombie_is_gone(start: Start, system: str) -> None:
    agent = start("", name())
    os.kill(agent.pid, signal.SIGKILL)
    os.waitid(os.P_PID, agent.pid, os.WEXITED | os.WNOWAIT)
    assert look(agent.pid).dead
    await PATIENT.release(resource(agent))
    assert [item for item in await PATIENT.inventory() if item.name == name()] == []
    with pytest.raises(ProcessLookupError):
        identify(agent.pid)


async def test_what_a_dead_leader_left_in_its_group_ends_too(start: Start, system: str) -> None:
    agent = start(f"env -u {VARIABLE} {DEAF_CHILD}", name())
    os.kill(agent.pid, signal.SIGKILL)
    os.waitid(os.P_PID, agent.pid, os.WEXITED | os.WNOWAIT)
    await ProcessDriver(grace=0.05, trust_handles=True).release(resource(agent))
    assert gone(agent.children[0])


async def test_a_number_that_is_another_process_now_is_gone_and_not_touched(start: Start, system: str) -> None:
    agent = start("", name(2))
    boot, ticks = agent.handle.partition("@")[2].split(":")
    zeros = "-".join("0" * n for n in (8, 4, 4, 4, 12))
    for started in (f"{boot}:{int(ticks) - 1}", f"{boot}:{int(ticks) + 1}", f"{zeros}:{ticks}"):
        handle = str(Process(agent.pid, started))
        for driver in (PATIENT, ProcessDriver(trust_handles=True)):
            await driver.release(Resource(name(1), "session-1", handle))
            await driver.end(Item(name(2), handle))
    assert agent.lives()


@pytest.mark.parametrize("leader", [True, False])
async def test_a_number_that_changes_hands_at_the_last_moment_is_not_signalled(
    start: Start, system: str, leader: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, is waited for, and another has its number, after the driver looked and before it signals."""
    agent, successor = start("", name(), leader=leader), start("", name(2), leader=leader)
    real = module._Target.aim

    def aim(target: module._Target, of: str) -> None:
        real(target, of)
        agent.popen.kill()
        agent.popen.wait()
        if system == "without pidfd":  # with one, the number plays no part any more
            boot, ticks = target._process.started.split(":")
            target._process = Process(successor.pid, f"{boot}:{int(ticks) - 1}")

    monkeypatch.setattr(module._Target, "aim", aim)
    await ProcessDriver(grace=1, trust_handles=True).release(resource(agent))
    assert successor.lives()


async def test_a_handle_that_does_not_show_the_name_ends_nothing(start: Start) -> None:
    """Whoever may attach a resource may not have any process of the server's user ended."""
    unmarked, other = start(), start("", name(2))
    for agent in (unmarked, other):
        with pytest.raises(DriverError, match="does not show that name: start it with ROOST_RESOURCE=") as refused:
            await PATIENT.release(resource(agent))
        assert not refused.value.retryable
        assert agent.lives()
    await ProcessDriver(trust_handles=True).release(resource(unmarked))
    assert unmarked.status() == -signal.SIGTERM


@pytest.mark.parametrize("handle", ["1", "-1@x", "0@", "4242", "4242@12", "x@1.000000", "12@../../1", " ", "1@1.0"])
async def test_a_handle_that_is_none_is_refused(handle: str) -> None:
    with pytest.raises(DriverError, match="is not one of a process") as refused:
        await PATIENT.release(Resource(name(), "session-1", handle))
    assert not refused.value.retryable


async def test_the_server_and_what_it_runs_in_are_never_ended() -> None:
    trusting = ProcessDriver(trust_handles=True)
    for pid in (os.getpid(), os.getppid()):
        with pytest.raises(DriverError, match="which this server runs in"):
            await trusting.release(Resource(name(), "session-1", identify(pid)))


def test_a_server_that_bears_a_name_itself_does_not_end_by_it() -> None:
    """It was started by an agent: it inherits the name, and so do the programs that it runs in."""
    script = f"""
import asyncio
from roost.drivers import Resource
from roost.drivers.process import ProcessDriver
print(asyncio.run(ProcessDriver().inventory()))
asyncio.run(ProcessDriver().release(Resource({name()!r}, "s")))
print("lives")
"""
    env = {**os.environ, VARIABLE: name()}
    ran = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, script],
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "[]\nlives\n"), ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
async def test_a_process_of_another_user_is_neither_listed_nor_touched(start: Start) -> None:
    agent = start("", name(), user=65534)
    assert [item for item in await PATIENT.inventory() if item.name == name()] == []
    with pytest.raises(DriverError, match="another user's"):
        await ProcessDriver(trust_handles=True).release(resource(agent))
    with pytest.raises(DriverError, match="another user's"):
        await PATIENT.end(Item(name(), agent.handle))
    assert agent.lives()


async def test_the_inventory_shows_whole_names_only(start: Start) -> None:
    ours, theirs = name(1), name(1, store="0badcafe")
    wanted = {Item(mark, start("", mark).handle) for mark in (ours, theirs)}
    strangers = [start("", mark) for mark in (None, "", "x" + ours + "x", f"{ours} ", f"bak-{ours}", ours[:-1])]
    strangers.append(start(f"export X{VARIABLE}={ours} NOTE={VARIABLE}={ours}"))
    found = set(await PATIENT.inventory())
    assert wanted <= found
    pids = {stranger.pid for stranger in strangers}
    assert [item for item in found if Process.parse(item.instance).pid in pids] == []


async def test_one_that_starts_a_program_just_now_is_not_missed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of exec() a process shows no environment at all."""
    agent, calls = start("", name()), []
    real = module._name_of

    def name_of(pid: int) -> str | None:
        if pid != agent.pid:
            return real(pid)
        calls.append(pid)
        return "" if len(calls) == 1 else real(pid)

    monkeypatch.setattr(module, "_name_of", name_of)
    assert bears(Process.parse(agent.handle), name())
    calls.clear()
    assert Item(name(), agent.handle) in await PATIENT.inventory()
    calls.clear()
    await PATIENT.release(resource(None))
    assert agent.status() == -signal.SIGTERM


async def test_sweeps_end_exactly_the_orphans(start: Start) -> None:
    """I20, with real processes: two sweeps, and only what nobody owns is gone."""
    owned, lost = [start("", name(n)) for n in (1, 2)], [start("", name(n)) for n in (3, 4, 5)]
    other = start("", name(3, store="0badcafe"))
    sweeps, now = Sweeps(), [0.0]

    async def owners(_names: Sequence[str]) -> set[str]:
        return {name(1), name(2)}

    for now[0] in (0.0, 60.0):
        swept = await sweep(PATIENT, Ours("roost", STORE, 1), owners, sweeps, lease=60, clock=lambda: now[0])
        sweeps = swept.sweeps
    assert {item.name for item in swept.ended} == {name(3), name(4), name(5)}
    assert [agent.status() for agent in lost] == [-signal.SIGTERM] * 3
    assert all(agent.lives() for agent in [*owned, other])


async def test_an_end_that_takes_too_long_says_so_and_holds_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit, in the middle of the grace; and what a caller that gives up leaves behind: nothing."""
    agent = start("trap '' TERM", name())
    patient = ProcessDriver(grace=20)
    monkeypatch.setattr(patient, "_limit", 0.2)
    with pytest.raises(DriverError, match="took longer than") as slow:
        await patient.release(resource(agent))
    assert slow.value.retryable
    waiting, real = asyncio.Event(), module._readable

    async def readable(fd: int) -> None:
        waiting.set()
        await real(fd)

    monkeypatch.setattr(module, "_readable", readable)
    task = asyncio.create_task(PATIENT.release(resource(agent)))
    await waiting.wait()
    assert pidfds() == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pidfds() == 0
    assert agent.lives()


def test_it_works_on_the_loop_of_the_server(start: Start) -> None:
    agent = start(DEAF_CHILD, name())
    uvloop.run(EAGER.release(resource(agent)))
    assert agent.status() == -signal.SIGTERM
    assert gone(agent.children[0])


def test_a_grace_that_the_time_limit_cuts_is_refused() -> None:
    with pytest.raises(ValueError, match="the time limit must be at least"):
        ProcessDriver(grace=10, limit=12)
