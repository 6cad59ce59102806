"""A full disk: the reserve is given up, then refusals that change nothing, then writing again by itself (I22)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_disk import mounted
from store_rows import FakeBatch, Maker, dump, integrity, uid_of

from roost.store import Outcome, SqliteStore, StoreError, space
from roost.store.space import Reserve

Put = Callable[[FakeBatch], Outcome]


def filling(n: int, size: int = 100_000) -> FakeBatch:
    maker = Maker(next_seq=n * 10)
    maker.open(n)
    maker.begin(n)
    maker.commit(n, size=size)
    return maker.batch()


def test_full_gives_the_reserve_up_and_then_refuses(store: SqliteStore, put: Put, directory: Path) -> None:
    """A store that may not grow: the reserve cannot help it, so the append is refused though it was given up."""
    assert put(filling(1)) is Outcome.STORED
    before = dump(directory / "roost.db")
    pages = store._conn.pragma("page_count")
    store._conn.pragma("max_page_count", pages)
    assert put(filling(2)) is Outcome.REFUSED_FULL
    assert not (directory / "roost.reserve").exists()
    assert store.sizes()["reserve_bytes"] == 0
    assert put(filling(2)) is Outcome.REFUSED_FULL
    assert dump(directory / "roost.db") == before
    assert store.find("t", "s1") is not None  # reads go on
    store._conn.pragma("max_page_count", pages + 1000)
    assert put(filling(2)) is Outcome.STORED
    assert store.probe_space() == "ok"
    assert (directory / "roost.reserve").stat().st_size == 1 << 20


def test_the_reserve_is_really_allocated_and_private(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 1 << 20, 1 << 16)
    reserve.make()
    found = (tmp_path / "reserve").stat()
    assert found.st_size == 1 << 20
    assert found.st_blocks * 512 >= 1 << 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["reserve"]
    assert reserve.give_up()
    assert not reserve.give_up()
    assert list(tmp_path.iterdir()) == []


def test_probe_tells_low_from_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = [10 << 20]
    real = os.posix_fallocate

    def fallocate(fd: int, offset: int, size: int) -> None:
        if size > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    reserve = Reserve(tmp_path / "reserve", 4 << 20, 1 << 20)
    for room[0], said in ((10 << 20, "ok"), (0, "ok")):
        assert reserve.probe() == said
    reserve.give_up()
    for room[0], said in ((0, "full"), (space.SMALL_BYTES, "low"), (4 << 20, "low"), (5 << 20, "ok")):
        assert reserve.probe() == said
        assert {entry.name for entry in tmp_path.iterdir()} <= {"reserve"}


def test_a_reserve_of_the_wrong_size_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "reserve").write_bytes(b"half")
    reserve = Reserve(tmp_path / "reserve", 1 << 20, 0)
    assert not reserve.held
    reserve.make()
    assert (tmp_path / "reserve").stat().st_size == 1 << 20


def test_a_disk_full_at_creation(
    open_store: Callable[..., SqliteStore], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreError) as caught:
            open_store()
        assert caught.value.reason == "DISK_FULL"
    open_store().close()
    monkeypatch.setattr(os, "posix_fallocate", full)
    (directory / "roost.reserve").unlink()
    store = open_store()  # a store that exists is served: what it holds can be read, and closed
    assert store.probe_space() == "full"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 16 MiB."""
    with mounted(tmp_path, 16 << 20) as mount:
        yield mount


def test_a_real_disk_fills_up_and_is_emptied(small_disk: Path) -> None:
    directory = small_disk / "data"
    store = SqliteStore(directory, reserve_bytes=2 << 20, reserve_margin=1 << 20)
    assert store.probe_space() == "ok"
    stored = 0
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 5 << 20)
    outcomes: list[tuple[Outcome, str]] = []
    for n in range(1, 400):
        batch = filling(n)
        outcome = store.append(0, store.epoch, batch.first_seq, batch)
        outcomes.append((outcome, store.probe_space()))
        if outcome is not Outcome.STORED:
            break
        stored = n
    assert outcomes[-1] == (Outcome.REFUSED_FULL, "full")
    states = [said for _, said in outcomes]
    assert "low" in states  # the reserve kept it going for a while
    assert states == sorted(states, key=["ok", "low", "full"].index)
    # Reads go on, and so does a start; nothing more can be written.
    assert store.find("t", f"s{stored}") is not None
    store.close()
    store = SqliteStore(directory, reserve_bytes=2 << 20, reserve_margin=1 << 20)
    batch = filling(stored + 1, size=4_000_000)
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.REFUSED_FULL
    ballast.unlink()
    assert store.append(0, store.epoch, batch.first_seq, batch) is Outcome.STORED
    store.idle()
    store.close()
    assert integrity(directory / "roost.db") == "ok"
    rows = dump(directory / "roost.db")["session"]
    assert [row[0] for row in rows] == [uid_of(n) for n in range(1, stored + 2)]


def test_a_disk_too_small_for_a_new_store(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 14 << 20)
    with pytest.raises(StoreError) as caught:
        SqliteStore(small_disk / "data", reserve_bytes=4 << 20, reserve_margin=0)
    assert caught.value.reason == "DISK_FULL"
    (small_disk / "ballast").unlink()
    SqliteStore(small_disk / "data", reserve_bytes=4 << 20, reserve_margin=0).close()
