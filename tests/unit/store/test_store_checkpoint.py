"""The log is copied away from the commits, stays bounded under load, and a failed copy stops the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import Maker, dump

from roost.store import Outcome, SqliteStore, StoreFailed, checkpoint

Open = Callable[..., SqliteStore]


def turns(store: SqliteStore, count: int, size: int = 20_000) -> Maker:
    maker = Maker()
    maker.open(1)
    for _ in range(count):
        maker.begin(1)
        maker.commit(1, size=size)
        batch = maker.batch()
        assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
        maker.taken()
    return maker


def test_under_load_the_log_is_restarted_at_its_limit(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "COPY_FRAMES", 16)
    monkeypatch.setattr(checkpoint, "LIMIT_FRAMES", 64)
    store = open_store()
    turns(store, 100)
    assert store.sizes()["wal_bytes"] < 100 * 4200
    assert store.sizes()["store_bytes"] > 100 * 20_000 // 2


def test_idle_empties_the_log(open_store: Open) -> None:
    store = open_store()
    turns(store, 3)
    assert store.sizes()["wal_bytes"] > 0
    store.idle()
    assert store.sizes()["wal_bytes"] == 0
    store.idle()


def test_a_reader_in_the_way_is_no_error(open_store: Open) -> None:
    store = open_store()
    turns(store, 1)
    store.running_roots()
    reader = store._reader._conn
    assert reader is not None
    reader.execute("BEGIN; SELECT * FROM shard")
    store._conn.set_busy_timeout(0)
    store.idle()
    assert store.sizes()["wal_bytes"] > 0
    reader.execute("ROLLBACK")
    store.idle()
    assert store.sizes()["wal_bytes"] == 0


def test_the_thread_copies_while_the_writer_goes_on(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "COPY_FRAMES", 8)
    copied = threading.Event()
    real = checkpoint.Checkpointer._checkpoint

    def watched(self: checkpoint.Checkpointer, conn: apsw.Connection, mode: int) -> bool:
        done = real(self, conn, mode)
        if threading.current_thread().name == "roost-checkpoint":
            copied.set()
        return done

    monkeypatch.setattr(checkpoint.Checkpointer, "_checkpoint", watched)
    store = open_store(background_checkpoint=True)
    before = store.sizes()["store_bytes"]
    turns(store, 5)
    assert copied.wait(30)
    assert store.sizes()["store_bytes"] > before
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "roost-checkpoint"]


def test_i5_a_failed_copy_stops_the_store_and_loses_nothing(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(checkpoint, "COPY_FRAMES", 8)
    failed = threading.Event()

    def failing(*_: Any) -> bool:
        failed.set()
        raise apsw.IOError("injected")

    monkeypatch.setattr(checkpoint.Checkpointer, "_checkpoint", failing)
    store = open_store(background_checkpoint=True)
    maker = turns(store, 1, size=100_000)
    assert failed.wait(30)
    thread = store._checkpointer._thread
    assert thread is not None
    thread.join()
    maker.begin(1)
    batch = maker.batch()
    with pytest.raises(StoreFailed):
        store.append(0, store.epoch, batch.first_seq, batch)
    with pytest.raises(StoreFailed):
        store.probe_space()
    store.close()
    assert (directory / "roost.db-wal").stat().st_size > 0  # nothing was copied by this process any more
    monkeypatch.undo()
    assert open_store().last_seq == batch.first_seq - 1
    assert len(dump(directory / "roost.db")["record"]) == 1
