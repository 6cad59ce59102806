"""Real tmux sessions on a socket of their own: exactly the orphans end, and no successor or look-alike (I20)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from roost.drivers import DriverError, Item, Marker, Resource, process
from roost.drivers.process import look
from roost.drivers.reap import Ours, Sweeps, sweep
from roost.drivers.tmux import TmuxDriver

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed (.ci/run installs it)")

STORE, OTHER = "deadbeef", "0badcafe"


def name(n: int = 1, store: str = STORE) -> str:
    return str(Marker("roost", store, 1, bytes(16), n))


class Tmux:
    """A tmux server that only this test knows."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "socket"

    def run(self, *command: str) -> str:
        asked = ["tmux", "-S", str(self.socket), "-f", "/dev/null", *command]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout

    def new(self, session: str, program: str = "exec cat") -> None:
        for tries_left in reversed(range(100)):
            try:
                self.run("new-session", "-d", "-s", session.replace("#", "##"), program)
                return
            except subprocess.CalledProcessError as error:  # an earlier server is still on its way out
                if "server exited" not in error.stderr or not tries_left:
                    raise

    def names(self) -> set[str]:
        try:
            return set(self.run("list-sessions", "-F", "#{session_name}").split("\n")[:-1])
        except subprocess.CalledProcessError:
            return set()

    def pid(self, session: str) -> int:
        """Of the program in the session's first pane."""
        return int(self.run("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}").split()[0])

    def server(self) -> int:
        return int(self.run("display-message", "-p", "#{pid}"))

    def driver(self, grace: float = 20.0) -> TmuxDriver:
        return TmuxDriver(socket_path=str(self.socket), grace=grace)


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    with tempfile.TemporaryDirectory(prefix="roost-tmux-") as directory:
        server = Tmux(Path(directory))
        yield server
        subprocess.run(["tmux", "-S", str(server.socket), "kill-server"], check=False, capture_output=True)


def gone(pid: int) -> bool:
    seen = look(pid)
    return seen is None or seen.dead


def of(session: str) -> Resource:
    return Resource(session, "session-1")


async def test_of_forty_sessions_exactly_the_orphans_end(tmux: Tmux) -> None:
    owned = {name(n) for n in range(1, 11)}
    lost = {name(n) for n in range(11, 22)}
    replaced = name(22)
    theirs = {name(n, OTHER) for n in range(1, 9)}
    similar = {
        f"x{name(11)}",
        f"bak-{name(11)}",
        f"{name(11)}x",
        f"{name(11)}-1",  # as tmux names a second view of it
        name(11)[1:],
        name(11).upper(),
        f"{name(11)} ",
        f"notes on {name(11)}",
        f"{name(11)}\u2028{name(12)}",
        "#{session_id} #{pid}",
    }
    for session in owned | lost | {replaced} | theirs | similar:
        tmux.new(session)
    before = tmux.names()  # as tmux writes them
    assert len(before) == 40
    sweeps, now = Sweeps(), [0.0]

    async def owners(_names: Sequence[str]) -> set[str]:
        return owned

    async def once() -> None:
        nonlocal sweeps
        swept = await sweep(tmux.driver(), Ours("roost", STORE, 1), owners, sweeps, lease=60, clock=lambda: now[0])
        assert (swept.error, swept.failed) == (None, [])
        sweeps = swept.sweeps

    await once()
    assert tmux.names() == before
    tmux.run("kill-session", "-t", f"={replaced}")
    tmux.new(replaced)
    now[0] = 60
    await once()
    assert tmux.names() == before - lost
    now[0] = 120
    await once()
    assert tmux.names() == before - lost - {replaced}


async def test_a_session_is_released_by_its_exact_name(tmux: Tmux) -> None:
    """tmux itself would take a name for the beginning of another."""
    for session in (name(1), name(10), f"{name(1)} "):
        tmux.new(session)
    await tmux.driver().release(of(name(1)))
    assert tmux.names() == {name(10), f"{name(1)} "}
    await tmux.driver().release(of(name(1)))
    await tmux.driver().release(of(name(1)[:-1] + "2"))
    assert tmux.names() == {name(10), f"{name(1)} "}


async def test_a_successor_of_the_same_name_lives(tmux: Tmux) -> None:
    driver = tmux.driver()
    tmux.new("other")
    tmux.new(name())
    (old,) = [item for item in await driver.inventory() if item.name == name()]
    tmux.run("kill-session", "-t", f"={name()}")
    tmux.new(name())
    await driver.end(old)
    assert tmux.names() == {"other", name()}


async def test_a_session_of_a_later_server_with_the_same_id_and_name_lives(tmux: Tmux) -> None:
    driver = tmux.driver()
    tmux.new(name())
    (old,) = await driver.inventory()
    first = tmux.server()
    os.kill(first, signal.SIGKILL)
    while not gone(first):
        await asyncio.sleep(0)
    tmux.new(name())
    (new,) = await driver.inventory()
    assert new.instance.split()[0] == old.instance.split()[0]
    await driver.end(old)
    assert await driver.inventory() == [new]


async def test_a_session_that_was_renamed_is_not_ended(tmux: Tmux) -> None:
    """A person took it over: the name is what says whose it is."""
    tmux.new(name())
    (item,) = await tmux.driver().inventory()
    kept = f"{name()} 0 1 1"
    tmux.run("rename-session", "-t", f"={name()}", kept)
    pid = tmux.pid(kept)
    await tmux.driver().end(item)
    assert tmux.names() == {kept}
    assert not gone(pid)


async def test_no_server_is_an_empty_inventory(tmux: Tmux) -> None:
    assert await tmux.driver().inventory() == []
    await tmux.driver().release(of(name()))
    tmux.socket.touch()  # what a server that was killed leaves behind refuses connections as well
    assert await tmux.driver().inventory() == []
    tmux.socket.unlink()
    tmux.new(name())
    os.kill(server := tmux.server(), signal.SIGKILL)
    while not gone(server):
        await asyncio.sleep(0)
    assert await tmux.driver().inventory() == []


@pytest.mark.parametrize("again", range(10))
async def test_the_last_session_takes_the_server_with_it(tmux: Tmux, again: int) -> None:
    tmux.new(name())
    await tmux.driver().release(of(name()))
    assert await tmux.driver().inventory() == []


async def test_without_tmux_the_error_says_what_to_do(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmux.socket.parent))
    with pytest.raises(DriverError, match="tmux is not installed: install it, or") as missing:
        await tmux.driver().inventory()
    assert not missing.value.retryable


async def test_what_tmux_cannot_tell_is_an_error_and_not_an_empty_list(tmux: Tmux) -> None:
    driver = TmuxDriver(socket_path=str(tmux.socket) + "x" * 200)
    with pytest.raises(DriverError, match=r"tmux list-sessions failed: .*too long"):
        await driver.inventory()


async def test_a_server_that_hangs_is_an_error_in_time(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    tmux.new(name())
    server, driver = tmux.server(), tmux.driver()
    monkeypatch.setattr(driver, "_limit", 0.2)
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(DriverError, match="took longer than") as slow:
            await driver.inventory()
        with pytest.raises(DriverError, match="took longer than"):
            await driver.release(of(name()))
    finally:
        os.kill(server, signal.SIGCONT)
    assert slow.value.retryable
    assert tmux.names() == {name()}


def ready(tmux: Tmux, word: str) -> Path:
    """A fifo that a program in a session opens to say that it is ready; reading it waits for that."""
    fifo = tmux.socket.parent / word
    os.mkfifo(fifo)
    return fifo


async def test_a_program_that_ignores_the_hang_up_is_ended_too(tmux: Tmux) -> None:
    fifo = ready(tmux, "deaf")
    tmux.new(name(), f"trap '' HUP TERM; echo ready > {fifo}; exec sleep 1000")
    assert fifo.read_text() == "ready\n"
    pid = tmux.pid(name())
    await tmux.driver(grace=0.05).release(of(name()))
    assert tmux.names() == set()
    assert gone(pid)


async def test_a_program_gets_the_time_to_end(tmux: Tmux) -> None:
    fifo, last = ready(tmux, "tidy"), tmux.socket.parent / "last words"
    tmux.new(
        name(),
        f"trap '' HUP; trap 'echo bye > \"{last}\"; exit' TERM; echo ready > {fifo}; while :; do sleep 0.01; done",
    )
    assert fifo.read_text() == "ready\n"
    await tmux.driver().release(of(name()))
    assert last.read_text() == "bye\n"


async def test_an_interactive_shell_is_hung_up_on(tmux: Tmux) -> None:
    """It ignores SIGTERM: with that alone it would cost the whole grace."""
    tmux.new(name(), "exec bash --norc -i")
    pid = tmux.pid(name())
    await tmux.driver(grace=24).release(of(name()))
    assert tmux.names() == set()
    assert gone(pid)


async def test_a_dead_pane_is_taken_away_and_its_number_left_alone(tmux: Tmux) -> None:
    tmux.new("other")
    tmux.run("set-option", "-g", "remain-on-exit", "on")
    tmux.new(name(), "exec true")
    while tmux.run("list-panes", "-t", f"={name()}:", "-F", "#{pane_dead}") != "1\n":
        await asyncio.sleep(0)
    driver = tmux.driver()
    (session,) = [session for session in await driver._sessions() if session.name == name()]
    assert await driver._panes(session) == set()
    await driver.release(of(name()))
    assert tmux.names() == {"other"}


async def test_a_window_that_is_in_another_session_too_is_left_to_it(tmux: Tmux) -> None:
    """I20: somebody looks on, or took the window over; only our session goes."""
    tmux.new(name())
    pid = tmux.pid(name())
    tmux.run("new-session", "-d", "-s", "view", "-t", name())
    await tmux.driver().release(of(name()))
    assert tmux.names() == {"view"}
    assert tmux.pid("view") == pid
    assert not gone(pid)


async def test_a_program_that_cannot_be_ended_keeps_its_session(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: the server runs in it. The next try must find what is in the session."""
    tmux.new(name())
    pid = tmux.pid(name())
    monkeypatch.setattr(process, "_selves", lambda: {pid})
    with pytest.raises(DriverError, match="which this server runs in"):
        await tmux.driver().release(of(name()))
    assert tmux.names() == {name()}
    assert not gone(pid)


async def test_a_session_that_tmux_does_not_end_is_an_error(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    tmux.run("new-session", "-d", "-s", name(), "exec cat")
    tmux.run("set-option", "-g", "remain-on-exit", "on")
    driver, real = tmux.driver(), TmuxDriver._run

    async def run(of: TmuxDriver, *command: str) -> tuple[int | None, str, str]:
        return (0, "", "") if command[0] == "if-shell" else await real(of, *command)

    monkeypatch.setattr(TmuxDriver, "_run", run)
    with pytest.raises(DriverError, match="is still there") as stuck:
        await driver.release(of(name()))
    assert stuck.value.retryable


async def test_only_names_of_roost_are_asked_of_tmux(tmux: Tmux) -> None:
    """Nothing that tmux would read as a target, a format or a command of its own."""
    for session in ("main", "x'; kill-server; '"):
        tmux.new(session)
    for wrong in ("main", "", "*", "$0", "=main", "x'; kill-server; '", "#(touch x)"):
        with pytest.raises(DriverError, match="is not a name of Roost's") as refused:
            await tmux.driver().release(of(wrong))
        assert not refused.value.retryable
    for instance in ("", "$0", "$0 1 2 3' ; kill-server", "$0 1 2 3\n"):
        with pytest.raises(DriverError, match="does not come from a list"):
            await tmux.driver().end(Item(name(), instance))
    assert tmux.names() == {"main", "x'; kill-server; '"}


async def test_a_socket_can_be_named(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX_TMPDIR", str(tmux.socket.parent))
    # The fixture ends the server that is found at its path.
    named = tmux.socket.parent / f"tmux-{os.getuid()}" / "named"
    driver, tmux.socket = TmuxDriver(socket_name="named"), named
    assert await driver.inventory() == []
    subprocess.run(
        ["tmux", "-L", "named", "-f", "/dev/null", "new-session", "-d", "-s", name(), "exec cat"], check=True
    )
    assert [item.name for item in await driver.inventory()] == [name()]
    default = TmuxDriver()
    # As in a server that was started inside tmux: the user's default socket is meant all the same.
    monkeypatch.setenv("TMUX", f"{named},1,0")
    assert await default.inventory() == []
    await driver.release(of(name()))
    assert await driver.inventory() == []
    with pytest.raises(ValueError, match="not both"):
        TmuxDriver(socket_name="a", socket_path="b")
