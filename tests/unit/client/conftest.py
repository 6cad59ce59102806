"""Fixtures of the client's unit tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_server import FakeServer

from roost.client import AsyncClient, RetryPolicy


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = await FakeServer().start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, retry=RetryPolicy(initial=0.001, maximum=0.01)) as made:
        yield made
