"""Stores for tests: small reserve, checkpoints only when a test asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_rows import FakeBatch

from roost.store import Outcome, SqliteStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_store(directory: Path) -> Iterator[Callable[..., SqliteStore]]:
    """Opens stores and closes what a test left open."""
    opened: list[SqliteStore] = []

    def open_one(path: Path | None = None, **options: Any) -> SqliteStore:
        settings = {"reserve_bytes": 1 << 20, "reserve_margin": 0, "background_checkpoint": False} | options
        store = SqliteStore(path or directory, **settings)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., SqliteStore]) -> SqliteStore:
    return open_store()


@pytest.fixture
def put(store: SqliteStore) -> Callable[[FakeBatch], Outcome]:
    """Append to `store` as its owner."""
    return lambda batch: store.append(0, store.epoch, batch.first_seq, batch)
