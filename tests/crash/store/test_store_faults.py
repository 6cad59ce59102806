"""The Nth write, sync, truncate or delete fails: a clean refusal or a stop, and the next start finds exactly
what was acknowledged (I5), whole (I22)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_vfs import FaultyVfs
from store_rows import FakeBatch, Maker, dump, integrity, uid_of

from roost.store import Outcome, SqliteStore, StoreError, StoreFailed

BATCHES = 4


def batch_of(k: int) -> FakeBatch:
    """Two sessions that no other batch knows, with a record each. Any of them can be missing."""
    maker = Maker(next_seq=k * 100)
    for n in (2 * k, 2 * k + 1):
        maker.open(n)
        maker.begin(n)
        maker.commit(n, size=9000)
    return maker.batch()


def open_with(directory: Path, vfs: FaultyVfs | None = None) -> SqliteStore:
    return SqliteStore(
        directory,
        reserve_bytes=4096,
        reserve_margin=0,
        vfs=vfs.vfs_name if vfs else None,
        background_checkpoint=False,
    )


def work(directory: Path, vfs: FaultyVfs) -> tuple[set[int], set[int], str]:
    """Append the batches over a faulty disk: those acknowledged, those whose outcome is unknown, how it ended."""
    acked: set[int] = set()
    try:
        store = open_with(directory, vfs)
    except StoreError as error:
        return acked, set(), error.reason
    try:
        for k in range(1, BATCHES + 1):
            batch = batch_of(k)
            try:
                outcome = store.append(0, store.epoch, batch.first_seq, batch)
            except StoreFailed:
                with pytest.raises(StoreFailed):  # it never serves again
                    store.append(0, store.epoch, batch.first_seq, batch)
                return acked, {k}, "failed"
            if outcome is Outcome.STORED:
                acked.add(k)
            else:
                assert outcome is Outcome.REFUSED_FULL
                assert vfs.full
            if k == BATCHES // 2:
                try:
                    store.idle()
                except StoreFailed:
                    return acked, set(), "failed"
    finally:
        try:
            store.close()
        except StoreFailed:
            assert not vfs.full
    return acked, set(), "served"


def check(directory: Path, acked: set[int], unknown: set[int]) -> None:
    """The next start is clean and holds the acknowledged batches, whole, and none of the refused."""
    store = open_with(directory)
    store.close()
    path = directory / "roost.db"
    assert integrity(path) == "ok"
    stored = dump(path)
    found = {int.from_bytes(row[0], "big") // 2 for row in stored["session"]}
    assert acked <= found <= acked | unknown
    batches = [batch_of(k) for k in found]
    assert sorted(row[0] for row in stored["session"]) == sorted(uid_of(n) for k in found for n in (2 * k, 2 * k + 1))
    expected = {row[0]: row for batch in batches for row in batch.record_rows}
    assert {row[0]: (row[1], row[10]) for row in stored["record"]} == {
        seq: (row[1], row[10]) for seq, row in expected.items()
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made once."""
    directory = tmp_path_factory.mktemp("template") / "data"
    open_with(directory).close()
    return directory


@pytest.fixture
def vfs() -> Iterator[Any]:
    made: list[FaultyVfs] = []

    def make(*args: Any, **kwargs: Any) -> FaultyVfs:
        made.append(FaultyVfs(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.unregister()


FAULTS: dict[str, dict[str, bool]] = {
    "once": {},
    "torn": {"torn": True},
    "lasting": {"lasting": True},
    "full once": {"full": True},
    "full torn": {"full": True, "torn": True},
    "full lasting": {"full": True, "lasting": True},
}
# There are hundreds of operations: where time is short, each of them meets every eighth or twelfth kind of fault.
STORES = [
    pytest.param(False, 8, id="existing store"),
    pytest.param(True, 12, id="new store"),
    pytest.param(False, 1, id="existing store, each", marks=pytest.mark.long),
    pytest.param(True, 1, id="new store, each", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("new", "every"), STORES)
@pytest.mark.parametrize("kind", FAULTS)
def test_i5_i22_an_error_at_every_operation(
    template: Path, tmp_path: Path, vfs: Any, kind: str, new: bool, every: int
) -> None:
    fault = FAULTS[kind]
    directory = tmp_path / "data"

    def fresh() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        if not new:
            shutil.copytree(template, directory)

    fresh()
    healthy = vfs(0, **fault)
    acked, _, ended = work(directory, healthy)
    assert (len(acked), ended) == (BATCHES, "served")
    assert healthy.count > 20
    kinds: set[str] = set()
    ends: set[str] = set()
    for n in range(1 + list(FAULTS).index(kind) % every, healthy.count + 1, every):
        fresh()
        faulty = vfs(n, **fault)
        acked, unknown, ended = work(directory, faulty)
        assert faulty.hit, n
        kinds.add(faulty.hit)
        ends.add(ended)
        check(directory, acked, unknown)
        faulty.unregister()
    if fault.get("full"):
        assert kinds == {"write"}
        assert "failed" not in ends  # a full disk is no reason to stop
        assert "served" in ends
    else:
        assert {"write", "sync"} <= kinds
        assert "failed" in ends
        assert {"IO_ERROR"} <= ends
