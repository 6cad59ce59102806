"""Fixtures: a server that the tests of a module share, and a maker of servers for tests that stop or limit theirs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from resources_api import Agents, Sandboxes
from roost_server import Api, ClockedServer, Server

Start = Callable[..., Server]

# A shell has what it runs in the background ignore Ctrl-C, and all that this starts: programs under test heed it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# For scripts/mutants.py: that there is a difference is enough.
settings.register_profile("first-difference", phases=[Phase.generate], report_multiple_bugs=False)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running server; tests use fresh session ids and leave it running."""
    # Turns that tests leave behind must not expire while another test compares counters.
    server = Server(tmp_path_factory.mktemp("shared") / "data", ROOST_DEFAULT_LEASE_MS="3600000").start()
    yield server
    server.end()


@pytest.fixture
def api(shared: Server) -> Iterator[Api]:
    """Stubs of the shared server."""
    with shared.api() as stubs:
        yield stubs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers of one's own: `start(*flags)`; the same data directory each time unless `data_dir` is given."""
    servers: list[Server] = []

    def make(
        *flags: str, data_dir: Path | None = None, listen: str = "127.0.0.1:0", clocked: bool = False, **env: str
    ) -> Server:
        where = data_dir or tmp_path / "data"
        server = ClockedServer(where, *flags, **env) if clocked else Server(where, *flags, listen=listen, **env)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.end()


@pytest.fixture
def agents() -> Iterator[Agents]:
    """Agent processes that end with the test."""
    made = Agents()
    yield made
    made.end()


@pytest.fixture
def sandboxes() -> Iterator[Sandboxes]:
    """A service that keeps sandboxes."""
    made = Sandboxes()
    yield made
    made.end()
