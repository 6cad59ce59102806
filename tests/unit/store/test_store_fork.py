"""Copies of records, which a fork begins with: made by the store, whole or not at all (I4, I5, I22)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_rows import CLOSED, COMMITTED, SUPERSEDED, FakeBatch, Maker, content_of, dump, take, uid_of

from roost.store import Outcome, SqliteStore
from roost.store.base import RecordCopy, SessionUpsert
from roost.store.statements import MAX_ROWS

Put = Callable[[FakeBatch], Outcome]


def fork(maker: Maker, n: int, sources: list[int]) -> FakeBatch:
    """A batch of its own in which session `n` is opened with copies of these records."""
    first = maker.next_seq
    uid = maker.open(n)
    copies = []
    for turn, source in enumerate(sources, 1):
        seq = first + turn - 1
        meta = b"copy%d" % seq
        before = seq - 1 if turn > 1 else 0
        chain = hashlib.sha256(meta).digest()
        copies.append(RecordCopy(seq, uid, before, COMMITTED, turn, meta, chain, source))
    head = len(sources)
    last = first + max(head, 1) - 1
    row = maker.rows[uid]._replace(head=head, head_version=head, fence=head, last=last if head else 0, seq=last)
    maker.rows[uid] = row
    maker.next_seq = last + 1
    maker.changed.clear()
    maker.stored[uid] = row.seq
    maker.first = maker.next_seq
    return FakeBatch(first, last, [tuple(row)], roots=[uid], copy_rows=[tuple(copy) for copy in copies])


@pytest.fixture
def maker(put: Put) -> Maker:
    """Session 1 with three turns, of which one was tried twice."""
    made = Maker()
    made.open(1)
    for turn in (1, 2, 3):
        if turn == 2:
            made.begin(1)
            made.abort(1, size=77)
        made.begin(1)
        made.commit(1, size=100 * turn, state=b"S%d" % turn if turn < 3 else None, tokens=b"t" * turn)
    take(put, made)
    return made


def live(store: SqliteStore, n: int) -> list[int]:
    """The COMMITTED records of a session, oldest first."""
    loaded = store.load_session(uid_of(n), with_tokens=False)
    assert loaded is not None
    return [line.seq for line in reversed(loaded.records) if line.status == COMMITTED]


def test_a_copy_has_the_payload_of_its_source_and_a_line_of_its_own(store: SqliteStore, put: Put, maker: Maker) -> None:
    sources = live(store, 1)
    batch = fork(maker, 2, sources)
    assert put(batch) is Outcome.STORED
    loaded = store.load_session(uid_of(2), with_tokens=True)
    assert loaded is not None
    assert [line.turn for line in loaded.records] == [3, 2, 1]
    copies = store.read_records([line.seq for line in reversed(loaded.records)])
    for copy, row, source in zip(copies, batch.copy_rows, store.read_records(sources), strict=True):
        assert (copy.seq, copy.prev, copy.status, copy.turn, copy.meta, copy.chain) == (row[0], *row[2:7])
        assert (copy.tokens, copy.state, copy.arrays, copy.content) == (
            source.tokens, source.state, source.arrays, source.content,
        )  # fmt: skip
        assert copy.meta != source.meta


def test_nothing_is_shared_afterwards(store: SqliteStore, put: Put, maker: Maker) -> None:
    sources = live(store, 1)
    assert put(fork(maker, 2, sources[:2])) is Outcome.STORED
    copies = live(store, 2)
    before = store.read_records(copies)
    maker.begin(2)
    maker.commit(2)
    take(put, maker)
    assert live(store, 1) == sources
    take(put, maker, maker.close(1))
    loaded = store.load_session(uid_of(1), with_tokens=False)
    assert loaded is not None
    all_of_it = tuple(line.seq for line in loaded.records)
    assert put(maker.step(1, purge=all_of_it, last=0, whole=True)) is Outcome.STORED
    assert store.read_records(sources) == []
    assert store.read_records(copies) == before
    assert before[0].content == content_of(sources[0], 100)


@pytest.mark.parametrize("count", [0, 1, MAX_ROWS, MAX_ROWS + 1, 3 * MAX_ROWS])
def test_a_fork_of_any_length_is_stored_whole(store: SqliteStore, put: Put, count: int) -> None:
    maker = Maker()
    maker.open(1)
    for _ in range(count):
        maker.begin(1)
        maker.commit(1, size=10)
    take(put, maker)
    assert put(fork(maker, 2, live(store, 1))) is Outcome.STORED
    assert len(live(store, 2)) == count


def test_the_batch_may_go_on_with_what_it_copies(store: SqliteStore, put: Put, maker: Maker) -> None:
    """A copy is SUPERSEDED by a rewind of the same batch, as any turn may be."""
    batch = fork(maker, 2, live(store, 1))
    first, second, third = (row[0] for row in batch.copy_rows)
    batch.status_rows += [(third, SUPERSEDED)]
    assert put(batch) is Outcome.STORED
    assert live(store, 2) == [first, second]


def _of_nothing(rows: list[tuple[Any, ...]]) -> None:
    rows[1] = (*rows[1][:7], 999)


def _twice(rows: list[tuple[Any, ...]]) -> None:
    rows[1] = (rows[0][0], *rows[1][1:])


def _before_itself(rows: list[tuple[Any, ...]]) -> None:
    rows[0] = (*rows[0][:2], rows[0][0], *rows[0][3:])


def _too_short(rows: list[tuple[Any, ...]]) -> None:
    rows[1] = rows[1][:7]


@pytest.mark.parametrize("spoil", [_of_nothing, _twice, _before_itself, _too_short])
def test_i22_a_copy_that_cannot_be_made_changes_nothing(
    directory: Path, store: SqliteStore, put: Put, maker: Maker, spoil: Callable[[list[tuple[Any, ...]]], None]
) -> None:
    before = dump(directory / "roost.db")
    batch = fork(maker, 2, live(store, 1))
    spoil(batch.copy_rows)
    assert put(batch) is Outcome.REFUSED_CONSTRAINT
    assert dump(directory / "roost.db") == before


def test_the_size_is_that_of_the_live_line_up_to_the_turn(store: SqliteStore, put: Put, maker: Maker) -> None:
    uid = uid_of(1)

    def size(turn: int | None) -> int:
        loaded = store.load_session(uid, True, state_turn=turn, with_size=True)
        assert loaded is not None
        return loaded.size

    records = store.read_records(live(store, 1))
    sizes = [
        sum(len(part or b"") for part in (r.meta, r.tokens, r.state, r.arrays, r.content)) for r in records
    ]  # fmt: skip
    assert [size(turn) for turn in (0, 1, 2, 3, 4)] == [0, sizes[0], sum(sizes[:2]), sum(sizes), sum(sizes)]
    assert size(None) == size(2**32 - 1) == sum(sizes)
    unasked = store.load_session(uid, True)
    assert unasked is not None
    assert unasked.size == 0
    take(put, maker, maker.close(1))
    row = store.session_by_uid(uid)
    assert row is not None
    assert (row.state, size(None)) == (CLOSED, sum(sizes))


def test_a_fork_is_opened_as_any_session_is(store: SqliteStore, put: Put, maker: Maker) -> None:
    batch = fork(maker, 2, live(store, 1))
    row = SessionUpsert._make(batch.session_rows[0])
    taken = tuple(row._replace(session_id="s1"))
    batch.session_rows[0] = taken
    assert put(batch) is Outcome.REFUSED_CONSTRAINT  # I13: the id is in use
    assert store.load_session(uid_of(2), with_tokens=False) is None
    assert store.read_records([row[0] for row in batch.copy_rows]) == []
