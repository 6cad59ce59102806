"""The store's part of endings: what is stale, what is due, steps, purges, tombstones, the service clock (I14, I16)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from store_rows import CLOSED, OPEN, SEALED, FakeBatch, Maker, take, uid_of

from roost.store import SqliteStore
from roost.store.base import Outcome

Put = Callable[[FakeBatch], Outcome]


@pytest.fixture
def maker(put: Put) -> Maker:
    """1 is a root with a child 2 and its child 3; 4 is a root of its own. Each has two turns."""
    made = Maker()
    made.open(1)
    made.open(2, parent=1, path="/root/a")
    made.open(3, parent=2, path="/root/a/b")
    made.open(4, tenant="u")
    for n in (1, 2, 3, 4):
        for _ in range(2):
            made.begin(n)
            made.commit(n)
    take(put, made)
    return made


def stepped(put: Put, maker: Maker, batch: FakeBatch) -> Outcome:
    maker.first = maker.next_seq
    return put(batch)


def test_trees_that_may_be_stale_come_in_order_and_move(store: SqliteStore, put: Put, maker: Maker) -> None:
    def ids(until: int, after: tuple[int, bytes] | None = None) -> tuple[list[str], int | None]:
        rows, following = store.stale(until, after, 10)
        return [row.session_id for row in rows], following

    assert ids(5_000) == ([], 5_001)
    assert ids(5_001) == (["s1"], 5_004)
    assert ids(9_000) == (["s1", "s4"], None)
    assert ids(9_000, (5_001, uid_of(1))) == (["s4"], None)
    assert store.stale(9_000, None, 1)[1] == 5_004
    seq = maker._seq()
    batch = FakeBatch(seq, seq, roots=[uid_of(1)], stale_rows=[(uid_of(1), 0, 0), (uid_of(4), 500, 9_999)])
    assert stepped(put, maker, batch) is Outcome.STORED
    assert ids(99_999) == (["s4"], None)
    # One that has ended is stale no more, and its time may not be moved.
    take(put, maker, maker.close(4))
    assert ids(99_999) == ([], None)
    seq = maker._seq()
    assert put(FakeBatch(seq, seq, stale_rows=[(uid_of(4), 1, 1)])) is Outcome.REFUSED_CONSTRAINT


def test_a_family_is_what_one_close_took_down(store: SqliteStore, put: Put, maker: Maker) -> None:
    assert [row.session_id for row in store.family(uid_of(1))] == ["s1"]
    take(put, maker, maker.close(3))
    assert [row.session_id for row in store.family(uid_of(3))] == ["s3"]
    maker.open(5, parent=1, path="/root/ab")  # not below /root/a
    maker.open(6, parent=2, path="/root/a/c")
    take(put, maker)
    first = maker.close(2)
    others = [maker.close(n)._replace(seq=first.seq) for n in (5, 6)]
    take(put, maker, first, *others)
    assert [(row.session_id, row.closes) for row in store.family(uid_of(2))] == [("s2", 1), ("s6", 1)]
    assert store.family(uid_of(9)) == []
    assert store.has_children(uid_of(1), uid_of(2))
    assert not store.has_children(uid_of(1), uid_of(3))


def test_steps_move_an_ended_session_on_and_never_back(store: SqliteStore, put: Put, maker: Maker) -> None:
    take(put, maker, maker.close(4, state=SEALED, cleanup_due=100))
    assert [tuple(row) for row in store.cleanups(SEALED, 100, None, 10)] == [(100, uid_of(4))]
    assert store.cleanups(SEALED, 99, None, 10) == store.cleanups(CLOSED, 100, None, 10) == []
    assert stepped(put, maker, maker.step(4, SEALED, due=200)) is Outcome.STORED
    assert stepped(put, maker, maker.step(4, CLOSED, due=300)) is Outcome.STORED
    row = store.session_by_uid(uid_of(4))
    assert row is not None
    assert (row.state, row.cleanup_due, row.closes) == (CLOSED, 300, 1)
    assert row.cleanup is not None
    assert store.cleanups(CLOSED, 300, (300, uid_of(4)), 10) == []
    # By the row of before, or of an open session: refused, and nothing is changed.
    old = maker.step(4)
    old.step_rows[0] = (*old.step_rows[0][:1], 1, *old.step_rows[0][2:])
    assert put(old) is Outcome.REFUSED_CONSTRAINT
    assert store.session_by_uid(uid_of(4)) == row
    assert put(maker.step(1)) is Outcome.REFUSED_CONSTRAINT


def test_i14_what_is_kept_is_looked_at_again_once_it_is_acknowledged(
    store: SqliteStore, put: Put, maker: Maker
) -> None:
    made = maker.finish(4)
    take(put, maker, maker.close(4))
    assert stepped(put, maker, maker.step(4, due=-1)) is Outcome.STORED
    assert (store.kept(b"", 10), store.cleanups(CLOSED, 10**15, None, 10)) == ([uid_of(4)], [])
    assert store.counts()["sessions_kept"] == 1
    maker.acknowledge(made, ack_ms=9_000)
    take(put, maker)
    assert (store.kept(b"", 10), store.counts()["sessions_kept"]) == ([], 0)
    assert [row.cleanup_due for row in store.cleanups(CLOSED, 10**15, None, 10)] == [9_000]


def test_a_purge_takes_the_records_and_at_its_end_the_rest(store: SqliteStore, put: Put, maker: Maker) -> None:
    maker.reward(4, maker.rows[uid_of(4)].last, 1.0)
    maker.finish(4)
    take(put, maker, maker.close(4))
    found = store.record_lines(uid_of(4), 10)
    assert found is not None
    newest, *others = found[1]
    assert stepped(put, maker, maker.step(4, purge=(newest.seq,), last=newest.prev)) is Outcome.STORED
    found = store.record_lines(uid_of(4), 10)
    assert found is not None
    assert [line.seq for line in found[1]] == [line.seq for line in others]
    assert len(store.session_trajectories(uid_of(4))) == len(store.read_rewards(uid_of(4))) == 1
    gone = tuple(line.seq for line in others)
    assert stepped(put, maker, maker.step(4, purge=gone, last=0, whole=True)) is Outcome.STORED
    assert store.record_lines(uid_of(4), 10) == (store.session_by_uid(uid_of(4)), [])
    assert store.session_trajectories(uid_of(4)) == []
    assert store.read_rewards(uid_of(4)) == {}
    # Records that are not there are a bug of whoever asks.
    assert put(maker.step(4, purge=gone)) is Outcome.REFUSED_CONSTRAINT


def test_a_forgotten_session_frees_its_id(store: SqliteStore, put: Put, maker: Maker) -> None:
    take(put, maker, maker.close(4))
    row = store.session_by_uid(uid_of(4))
    assert row is not None
    seq = maker._seq()
    assert put(FakeBatch(seq, seq, forget_rows=[(uid_of(4), row.seq + 1)])) is Outcome.REFUSED_CONSTRAINT
    assert put(FakeBatch(seq, seq, forget_rows=[(uid_of(1), maker.rows[uid_of(1)].seq)])) is Outcome.REFUSED_CONSTRAINT
    assert put(FakeBatch(seq, seq, forget_rows=[(uid_of(4), row.seq)])) is Outcome.STORED
    assert store.session_by_uid(uid_of(4)) is None
    other = Maker(maker.next_seq)
    other.open(6, tenant="u", session_id="s4")
    assert put(other.batch()) is Outcome.STORED
    assert store.find("u", "s4") is not None


def test_a_reopened_session_is_counted_by_the_sweep_again(store: SqliteStore, put: Put, maker: Maker) -> None:
    take(put, maker, maker.close(4))
    assert stepped(put, maker, maker.reopen(4)) is Outcome.STORED
    (line,) = store.load_header(uid_of(4))[1]
    assert (line.closes, line.stale_due, line.active_ms) == (1, 6_000, 77)
    assert [row.session_id for row in store.stale(9_000, None, 10)[0]] == ["s1", "s4"]
    row = store.session_by_uid(uid_of(4))
    assert row is not None
    assert (row.state, row.cleanup_due, row.cleanup, row.receipt) == (OPEN, 0, None, None)


def test_the_service_clock_goes_on_from_where_the_store_last_heard_of_it(
    open_store: Callable[..., SqliteStore],
) -> None:
    store = open_store()
    assert store.service_ms == 0
    made = Maker()
    made.open(1)
    batch = made.batch()
    assert store.append(0, store.epoch, batch.first_seq, batch, 1_000) is Outcome.STORED
    store.keep_time(5_000)
    store.keep_time(3_000)  # never back
    store.close()
    assert open_store().service_ms == 5_000


def test_what_is_in_use_shrinks_when_records_go(store: SqliteStore, put: Put, maker: Maker) -> None:
    maker.open(5)
    for _ in range(20):
        maker.begin(5)
        maker.commit(5, size=50_000)
    take(put, maker)
    before = store.used_bytes()
    take(put, maker, maker.close(5))
    found = store.record_lines(uid_of(5), 100)
    assert found is not None
    gone = tuple(line.seq for line in found[1])
    assert stepped(put, maker, maker.step(5, purge=gone, last=0, whole=True)) is Outcome.STORED
    assert store.used_bytes() < before - 900_000


def test_an_acknowledgement_that_comes_after_the_purge_is_no_bug(store: SqliteStore, put: Put, maker: Maker) -> None:
    made = maker.finish(4)
    take(put, maker, maker.close(4))
    found = store.record_lines(uid_of(4), 10)
    assert found is not None
    gone = tuple(line.seq for line in found[1])
    assert stepped(put, maker, maker.step(4, purge=gone, last=0, whole=True)) is Outcome.STORED
    maker.acknowledge(made)
    maker.begin(1)  # of the same batch, and stored with it
    take(put, maker)
    row = store.session_by_uid(uid_of(1))
    assert row is not None
    assert row.running == 1
