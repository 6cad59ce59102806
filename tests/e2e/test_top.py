"""`roost top`: in a terminal, over a restart of the server, and for scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from roost_server import DEADLINE, Server, environment, roost

Start = Callable[..., Server]


class Terminal:
    """`roost ARGUMENTS` in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (24, 80))
        self.before = termios.tcgetattr(self._slave)
        env = environment(TERM="xterm-256color", COLUMNS="80", LINES="24")
        command = [sys.executable, "-m", "roost", *arguments]
        ends = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **ends)
        self._shown = ""

    def until(self, words: str) -> None:
        """Read what is shown until the words are; what was shown before does not count."""
        end = time.monotonic() + DEADLINE
        while words not in self._shown:
            assert time.monotonic() < end, self._shown
            if select.select([self.master], [], [], 0.1)[0]:
                data = os.read(self.master, 65_536).decode(errors="replace")
                self._shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)
        self._shown = self._shown.partition(words)[2]

    def ended(self) -> int:
        """The exit code; the terminal must be as it was."""
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.1)[0]:
                os.read(self.master, 65_536)  # or it waits to be read
        assert termios.tcgetattr(self._slave) == self.before
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*arguments: str) -> Terminal:
        made.append(Terminal(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_goes_on_over_a_restart_and_ends_with_q(
    start: Start, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/s"
    server = start(listen=address)
    with server.api() as api:
        api.open("s")
        api.begin("s")
    shown = terminal("top", "--target", address, "--interval", "0.2", "--timeout", "0.5")
    shown.until("epoch 1")
    shown.until("running")
    shown.until("1,000")
    server.kill()
    shown.until("no answer for")
    start(listen=address)
    shown.until("epoch 2")
    shown.until("loop delay")
    os.write(shown.master, b"xq")
    assert shown.ended() == 0
    again = terminal("top", "--target", address, "--interval", "60")
    again.until("epoch 2")
    again.process.send_signal(signal.SIGINT)
    assert again.ended() == 0


def test_for_scripts(start: Start) -> None:
    server = start()
    command = [sys.executable, "-m", "roost", "top", "--json", "--interval", "0.2", "--target", server.address]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        with server.api() as api:
            for _ in range(5):
                api.turn(api.open().session.session_id)
        seen = first
        while seen["counters"]["turns_committed"] < 5 or not seen["rates"].get("turns_committed"):
            before, seen = seen, json.loads(process.stdout.readline())
            committed = seen["counters"]["turns_committed"] - before["counters"]["turns_committed"]
            if committed:
                assert seen["rates"]["turns_committed"] == pytest.approx(
                    committed / (seen["time"] - before["time"]), rel=0.5
                )
        process.terminate()
        process.stdout.read()
    assert first["rates"] == {}
    assert first["limits"]["max_turns_per_tenant"] == 1_000
    once = roost("top", "--once", "--target", server.address)
    assert once.returncode == 0, once.stderr
    assert re.search(r"committed +5", once.stdout), once.stdout
    assert re.search(r"sessions +5 +50,000", once.stdout)
    assert not once.stdout.count("\x1b")


def test_what_cannot_be(tmp_path: Path) -> None:
    gone = roost("top", "--once", "--target", f"unix:{tmp_path}/none", "--timeout", "0.3")
    assert (gone.returncode, gone.stdout) == (3, "")
    pipe = roost("top", "--target", f"unix:{tmp_path}/none")
    assert (pipe.returncode, pipe.stderr) == (2, "roost: this is no terminal: say --once or --json\n")
