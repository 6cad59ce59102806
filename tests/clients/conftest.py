"""Starts servers for these tests, as the end-to-end tests do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start servers of one's own: `start(*flags, **environment)`; the same data directory each time."""
    from roost_server import Server

    servers: list[Server] = []

    def make(*flags: str, **env: str) -> Server:
        servers.append(Server(tmp_path / "data", *flags, **env))
        return servers[-1].start()

    yield make
    for server in servers:
        server.end()
