"""What an append stores, and that what it refuses changes nothing (I4, I8, I16, I22)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import (
    ABORTED,
    CLOSED,
    COMMITTED,
    OPEN,
    PROVISIONAL,
    SEALED,
    SUPERSEDED,
    FakeBatch,
    Maker,
    content_of,
    dump,
    facts_with,
    take,
    uid_of,
)

from roost.store import Outcome, SqliteStore, StoreFailed
from roost.store.base import SessionUpsert
from roost.store.statements import MAX_ROWS, chunks, sql

Put = Callable[[FakeBatch], Outcome]


def content(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    return dump(directory / "roost.db")


@pytest.fixture
def maker(put: Put) -> Maker:
    """Session 1 with child 2, each with one COMMITTED turn; session 3 apart, with a provisional."""
    made = Maker()
    made.open(1)
    made.open(2, parent=1, path="/root/a")
    made.open(3)
    for n in (1, 2, 3):
        made.begin(n)
    take(put, made)
    made.commit(1, state=b"S1")
    made.commit(2)
    made.abort(3)
    take(put, made)
    return made


def test_rows_come_back_as_they_were_given(store: SqliteStore, maker: Maker) -> None:
    for row in maker.rows.values():
        found = store.read_session(row.tenant, row.session_id)
        assert found is not None
        given = row._asdict() | {"prev": None}
        in_header = {"stale_due", "stale_ms", "active_ms", "outcome", "wakes"}
        for name in set(SessionUpsert._fields) - {"prev"} - in_header:
            assert getattr(found, name) == given[name], name
        (line,) = (line for line in store.load_header(row.root)[1] if line.uid == row.uid)
        assert {name: getattr(line, name) for name in in_header} == {name: given[name] for name in in_header}
        assert found.receipt is None
    lines = store.record_lines(uid_of(1), 10)
    assert lines is not None
    (record,) = store.read_records([lines[1][0].seq])
    assert (record.prev, record.status, record.turn) == (0, COMMITTED, 1)
    assert (record.tokens, record.state, record.arrays) == (b"tok", b"S1", b"arr")
    assert record.content == content_of(record.seq)


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 127, 200])
def test_a_batch_of_any_size_is_stored_whole(store: SqliteStore, put: Put, count: int) -> None:
    maker = Maker()
    for n in range(1, count + 1):
        maker.open(n)
    take(put, maker)
    for n in range(1, count + 1):
        maker.begin(n)
        maker.commit(n)
    take(put, maker)
    for n in range(1, count + 1):
        loaded = store.load_session(uid_of(n), with_tokens=False)
        assert loaded is not None
        assert loaded.row.head == 1
        assert [line.turn for line in loaded.records] == [1]


def test_statements_are_few_and_of_sizes_that_are_powers_of_two() -> None:
    rows = [(n, 1) for n in range(200)]
    made = list(chunks("set_status", rows))
    assert [size for _, _, size in made] == [64, 64, 64, 8]
    assert list(itertools.chain.from_iterable(flat for _, flat, _ in made)) == list(itertools.chain.from_iterable(rows))
    assert sql("set_status", 8) is sql("set_status", 8)  # the same text: prepared once
    assert max(size for _, _, size in made) == MAX_ROWS


def test_i8_a_new_record_supersedes_the_provisional(store: SqliteStore, put: Put, maker: Maker) -> None:
    provisional = maker.rows[uid_of(3)].provisional
    maker.begin(3)
    maker.commit(3)
    take(put, maker)
    lines = store.record_lines(uid_of(3), 10)
    assert lines is not None
    assert [(line.seq == provisional, line.status) for line in lines[1]] == [(False, COMMITTED), (True, SUPERSEDED)]
    assert lines[0].provisional == 0


# Each spoils a good batch in one way. The good part of the batch must not be stored either.
def _stale(batch: FakeBatch) -> None:
    batch.session_rows[0] = (*batch.session_rows[0][:-1], batch.session_rows[0][-1] - 1)


def _update_of_nothing(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[0])
    batch.session_rows[0] = tuple(row._replace(uid=uid_of(77), root=uid_of(77), session_id="s77"))


def _insert_of_known(batch: FakeBatch) -> None:
    batch.session_rows[0] = (*batch.session_rows[0][:-1], 0)


def _twice(batch: FakeBatch) -> None:
    batch.session_rows.append(batch.session_rows[0])


def _same_id(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[-1])
    batch.session_rows[-1] = tuple(row._replace(session_id="s1"))


def _path_taken(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[-1])
    batch.session_rows[-1] = tuple(row._replace(path="/root/a"))


def _record_again(batch: FakeBatch) -> None:
    batch.record_rows[0] = (1, *batch.record_rows[0][1:])
    batch.record_rows.append(batch.record_rows[0])


def _status_of_nothing(batch: FakeBatch) -> None:
    batch.status_rows.append((999, ABORTED))


def _close_of_nothing(batch: FakeBatch) -> None:
    batch.close_rows.append((uid_of(88), 1, batch.last_seq, CLOSED, b"r"))


def _stale_close(batch: FakeBatch) -> None:
    batch.close_rows.append((uid_of(3), 1, batch.last_seq, CLOSED, b"r"))


def _close_before_its_row(batch: FakeBatch) -> None:
    batch.close_rows.append((batch.session_rows[0][0], 1, batch.last_seq, CLOSED, b"r"))


def _running_without_grant(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[0])
    batch.session_rows[0] = tuple(row._replace(running=1, lease=None))


def _wrong_type(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[0])
    batch.session_rows[0] = tuple(row._replace(head="one"))  # type: ignore[arg-type]


def _not_bindable(batch: FakeBatch) -> None:
    row = SessionUpsert._make(batch.session_rows[0])
    batch.session_rows[0] = tuple(row._replace(fence=1 << 63))


def _short_row(batch: FakeBatch) -> None:
    batch.session_rows[0] = batch.session_rows[0][:-1]


def _old_sequence(batch: FakeBatch) -> None:
    batch.last_seq = batch.first_seq - 1


@pytest.mark.parametrize(
    "spoil",
    [
        _stale,
        _update_of_nothing,
        _insert_of_known,
        _twice,
        _same_id,
        _path_taken,
        _record_again,
        _status_of_nothing,
        _close_of_nothing,
        _stale_close,
        _close_before_its_row,
        _running_without_grant,
        _wrong_type,
        _not_bindable,
        _short_row,
        _old_sequence,
    ],
)
def test_i22_i4_i8_i16_a_batch_that_breaks_a_rule_changes_nothing(
    put: Put, maker: Maker, directory: Path, spoil: Callable[[FakeBatch], None]
) -> None:
    before = content(directory)
    maker.begin(1)
    maker.commit(1)
    maker.open(4, parent=1, path="/root/b")
    batch = maker.batch()
    spoil(batch)
    assert put(batch) is Outcome.REFUSED_CONSTRAINT
    assert content(directory) == before
    # The same batch unspoilt: it was the spoiling that was refused, and a refusal leaves no trace.
    take(put, maker)


def test_i16_a_path_is_free_once_its_session_is_closed(store: SqliteStore, put: Put, maker: Maker) -> None:
    take(put, maker, maker.close(2))
    maker.open(4, parent=1, path="/root/a")
    take(put, maker)
    assert [row.uid for row in store.load_header(uid_of(1))[1]] == [uid_of(1), uid_of(4)]


@pytest.mark.parametrize("how", ["close", "sealed", "row and close"])
def test_i16_a_name_changes_hands_within_one_batch(put: Put, store: SqliteStore, maker: Maker, how: str) -> None:
    maker.open(4, parent=1, path="/root/a")  # before its predecessor in the batch
    if how == "row and close":
        maker.begin(2)
        maker.commit(2)
    take(put, maker, maker.close(2, state=SEALED if how == "sealed" else CLOSED))
    assert [row.uid for row in store.load_header(uid_of(1))[1]] == [uid_of(1), uid_of(4)]


def test_i16_opened_and_closed_and_opened_again_in_one_batch(put: Put, store: SqliteStore, maker: Maker) -> None:
    maker.open(4, parent=1, path="/root/b")
    close = maker.close(4, receipt=b"r4")
    maker.open(5, parent=1, path="/root/b")
    take(put, maker, close)
    closed = store.read_session("t", "s4")
    assert closed is not None
    assert (closed.state, closed.receipt, closed.seq) == (CLOSED, b"r4", close.seq)


def test_i16_reopening_takes_the_path_back_or_is_refused(put: Put, store: SqliteStore, maker: Maker) -> None:
    take(put, maker, maker.close(2, receipt=b"first"))
    assert put(maker.reopen(2, b"other facts")) is Outcome.STORED
    again = store.read_session("t", "s2")
    assert again is not None
    assert (again.state, again.receipt, again.cleanup, again.cleanup_due) == (OPEN, None, None, 0)
    assert (again.facts, again.closes) == (b"other facts", 1)
    assert uid_of(2) in [row.uid for row in store.load_header(uid_of(1))[1]]
    maker.first = maker.next_seq
    take(put, maker, maker.close(2))
    maker.open(4, parent=1, path="/root/a")
    take(put, maker)
    assert put(maker.reopen(2)) is Outcome.REFUSED_CONSTRAINT


def test_a_close_clears_what_only_an_open_session_has(put: Put, store: SqliteStore, maker: Maker) -> None:
    maker.begin(3)
    take(put, maker)
    take(put, maker, maker.close(3, receipt=b"r"))
    row = store.read_session("t", "s3")
    assert row is not None
    assert (row.state, row.running, row.lease, row.provisional, row.receipt) == (CLOSED, 0, None, 0, b"r")
    assert row.last > 0
    assert row.facts == facts_with(0)


def test_another_owner_is_fenced(store: SqliteStore, directory: Path, maker: Maker) -> None:
    before = content(directory)
    maker.begin(1)
    batch = maker.batch()
    for shard, epoch in ((0, store.epoch - 1), (0, store.epoch + 1), (1, store.epoch)):
        assert store.append(shard, epoch, batch.first_seq, batch) is Outcome.REFUSED_FENCED
    assert content(directory) == before


def test_a_sequence_from_before_this_start_is_refused(open_store: Callable[..., SqliteStore], directory: Path) -> None:
    maker = Maker()
    maker.open(1)
    first = open_store()
    batch = maker.batch()
    assert first.append(0, first.epoch, batch.first_seq, batch) is Outcome.STORED
    first.close()
    second = open_store()
    assert second.last_seq == batch.last_seq
    other = Maker()
    other.open(2)
    late = other.batch()
    assert second.append(0, second.epoch, late.first_seq, late) is Outcome.REFUSED_CONSTRAINT
    assert second.read_session("t", "s2") is None


def test_batches_of_a_split_may_overlap_in_their_sequences(store: SqliteStore, put: Put) -> None:
    """Tree by tree, as the journal handler retries: entries 1 and 3 are of one tree, 2 of another."""
    one, two = Maker(1), Maker(2)
    one.open(1)
    one.next_seq = 3
    one.begin(1)
    two.open(2)
    assert put(one.batch()) is Outcome.STORED
    assert put(two.batch()) is Outcome.STORED
    store.close()
    assert dump(store._path)["shard"][0][2] == 3


def test_an_unknown_error_is_the_end(store: SqliteStore, maker: Maker, directory: Path) -> None:
    before = content(directory)
    store._conn.execute("DROP INDEX session_running")  # outside a transaction of ours; any unexpected error will do
    store._conn.authorizer = lambda *_: apsw.SQLITE_DENY
    maker.begin(1)
    batch = maker.batch()
    with pytest.raises(StoreFailed):
        store.append(0, store.epoch, batch.first_seq, batch)
    store._conn.authorizer = None
    with pytest.raises(StoreFailed):  # and stays the end, though SQLite would work again
        store.append(0, store.epoch, batch.first_seq, batch)
    assert content(directory) == before


def test_seven_statuses_of_records(put: Put, store: SqliteStore, maker: Maker) -> None:
    """A rewind: many records change status at once."""
    seqs = []
    for _ in range(7):
        maker.begin(1)
        seqs.append(maker.commit(1, size=20_000))
        take(put, maker)
    maker.statuses.extend((seq, SUPERSEDED) for seq in seqs)  # type: ignore[misc]
    maker.begin(1)
    take(put, maker)
    assert {record.status for record in store.read_records(seqs)} == {SUPERSEDED}
    assert [record.content for record in store.read_records(seqs)] == [content_of(seq, 20_000) for seq in seqs]
    assert PROVISIONAL not in {record.status for record in store.read_records(seqs)}
