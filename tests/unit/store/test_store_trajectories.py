"""Rewards, finished trajectories and finishes that are due: stored beside the records, read in order, over an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_rows import CLOSED, COMMITTED, SEALED, FakeBatch, Maker, dump, take, uid_of

from roost.store import Outcome, SqliteStore
from roost.store.base import FINISHED, ReadyFilter, RewardUpsert, TrajectoryInsert

Put = Callable[[FakeBatch], Outcome]


def turn(maker: Maker, n: int, **values: Any) -> int:
    maker.begin(n)
    return maker.commit(n, **values)


@pytest.fixture
def maker(put: Put) -> Maker:
    """Tree 1 with child 2, tree 3, and tree 4 of tenant u; each session has two turns."""
    made = Maker()
    made.open(1)
    made.open(2, parent=1, path="/root/a")
    made.open(3)
    made.open(4, tenant="u")
    for n in (1, 2, 3, 4) * 2:
        turn(made, n)
    take(put, made)
    return made


def ready(store: SqliteStore, where: ReadyFilter, limit: int = 100) -> list[tuple[int, int]]:
    """Session and number of what a list gives, page by page."""
    found: list[tuple[int, int]] = []
    after = 0
    while page := store.ready_trajectories(where, after, limit):
        assert len(page) <= limit
        assert all(row.ready_seq > after and row.ack_ms == 0 for row in page)
        found.extend((int.from_bytes(row.session, "big"), row.number) for row in page)
        after = page[-1].ready_seq
    return found


def test_a_reward_stands_beside_its_record_and_the_last_one_counts(
    store: SqliteStore, put: Put, maker: Maker, directory: Path
) -> None:
    first = maker.rows[uid_of(1)].last
    records = dump(directory / "roost.db")["record"]
    maker.reward(1, first, 0.5)
    maker.reward(3, maker.rows[uid_of(3)].last, -1.0)
    take(put, maker)
    assert store.read_rewards(uid_of(1)) == {first: 0.5}
    maker.reward(1, first, 2.0)
    take(put, maker)
    assert store.read_rewards(uid_of(1)) == {first: 2.0}
    assert store.read_rewards(uid_of(2)) == {}
    assert store.read_rewards(uid_of(99)) == {}
    assert dump(directory / "roost.db")["record"] == records


def test_many_rewards_of_one_batch(store: SqliteStore, put: Put, maker: Maker) -> None:
    seqs = [turn(maker, 1) for _ in range(150)]
    for seq in seqs:
        maker.reward(1, seq, seq / 8)
    take(put, maker)
    assert store.read_rewards(uid_of(1)) == {seq: seq / 8 for seq in seqs}


def test_a_finish_stands_on_the_line_of_its_session(store: SqliteStore, put: Put, maker: Maker) -> None:
    first = maker.finish(1)
    after = turn(maker, 1)
    second = maker.finish(1)
    take(put, maker)
    loaded = store.load_session(uid_of(1), with_tokens=False)
    assert loaded is not None
    kinds = [(line.seq, line.status, line.turn) for line in loaded.records]
    assert kinds[:3] == [(second.ready_seq, FINISHED, 3), (after, COMMITTED, 3), (first.ready_seq, FINISHED, 2)]
    assert [line.prev for line in loaded.records] == [line.seq for line in loaded.records[1:]] + [0]
    rows = store.session_trajectories(uid_of(1))
    assert [row[:9] for row in rows] == [tuple(first), tuple(second)]
    assert [(row.ack_ms, row.root_session_id) for row in rows] == [(0, "s1")] * 2
    assert [(row.first_turn, row.turn_count, row.after_seq) for row in rows] == [(1, 2, 0), (3, 1, first.ready_seq)]
    assert store.session_trajectories(uid_of(2)) == []


def test_trajectories_are_read_by_number_in_the_order_asked_for(store: SqliteStore, put: Put, maker: Maker) -> None:
    made = [maker.finish(n) for n in (1, 2)]
    take(put, maker)
    asked = [(uid_of(2), 1), (uid_of(2), 2), (uid_of(1), 1), (uid_of(99), 1), (uid_of(2), 1)]
    found = store.read_trajectories(asked)
    assert [row and row.ready_seq for row in found] == [
        made[1].ready_seq,
        None,
        made[0].ready_seq,
        None,
        made[1].ready_seq,
    ]
    assert [row and row.root_session_id for row in found] == ["s1", None, "s1", None, "s1"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_ready_ones_are_listed_in_the_order_in_which_they_became_so(
    store: SqliteStore, put: Put, maker: Maker, limit: int
) -> None:
    for n in (3, 1, 4, 2, 3, 1):
        turn(maker, n)
        maker.finish(n)
    take(put, maker)
    assert ready(store, ReadyFilter("t"), limit) == [(3, 1), (1, 1), (2, 1), (3, 2), (1, 2)]
    assert ready(store, ReadyFilter("u"), limit) == [(4, 1)]
    assert ready(store, ReadyFilter("none"), limit) == []
    assert ready(store, ReadyFilter("t", root=uid_of(1)), limit) == [(1, 1), (2, 1), (1, 2)]
    assert ready(store, ReadyFilter("u", root=uid_of(1)), limit) == []
    assert ready(store, ReadyFilter("t", sessions=(uid_of(1), uid_of(3), uid_of(4))), limit) == [
        (3, 1),
        (1, 1),
        (3, 2),
        (1, 2),
    ]
    assert ready(store, ReadyFilter("t", sessions=()), limit) == []
    assert store.last_ready("t") == maker.done[uid_of(1)][1].ready_seq
    assert store.last_ready("none") == 0


def test_what_is_acknowledged_leaves_the_list_and_keeps_its_first_time(
    store: SqliteStore, put: Put, maker: Maker
) -> None:
    one, two, three = (maker.finish(n) for n in (1, 2, 3))
    take(put, maker)
    maker.acknowledge(two, 7000)
    maker.acknowledge(three, 7000)
    take(put, maker)
    maker.acknowledge(three, 8000)
    maker.acknowledge(one, 8000)
    take(put, maker)
    assert ready(store, ReadyFilter("t")) == []
    assert store.last_ready("t") == 0
    ids = [(made.session, made.number) for made in (one, two, three)]
    assert [row and row.ack_ms for row in store.read_trajectories(ids)] == [8000, 7000, 7000]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_due_finishes_come_in_order_of_time(store: SqliteStore, put: Put, maker: Maker, limit: int) -> None:
    for n, due in ((1, 300), (2, 100), (3, 100), (4, 200)):
        maker.reward(n, maker.rows[uid_of(n)].last, 1.0, due)
    take(put, maker)

    def all_until(until: int) -> tuple[list[int], int | None]:
        found: list[int] = []
        after = None
        while True:
            rows, following = store.due(until, after, limit)
            found.extend(int.from_bytes(row.uid, "big") for row in rows)
            if not rows or len(rows) < limit:
                return found, following
            after = (rows[-1].finish_due, rows[-1].uid)

    assert all_until(99) == ([], 100)
    assert all_until(100) == ([2, 3], 200)
    assert all_until(299) == ([2, 3, 4], 300)
    assert all_until(300) == ([2, 3, 4, 1], None)
    rows, _ = store.due(200, None, 10)
    assert [(row.tenant, row.session_id) for row in rows] == [("t", "s2"), ("t", "s3"), ("u", "s4")]
    # One that was finished, and one that has left OPEN, are due no more.
    maker.finish(2)
    take(put, maker, maker.close(3, state=SEALED), maker.close(4))
    assert all_until(1000) == ([1], None)
    closed = store.read_session("u", "s4")
    assert closed is not None
    assert (closed.state, closed.finish_due) == (CLOSED, 0)


@pytest.mark.parametrize(("turn_number", "state"), [(0, None), (1, None), (2, b"two"), (3, b"two"), (4, b"four")])
def test_i7_the_state_after_a_turn_is_that_of_the_live_line(
    store: SqliteStore, put: Put, turn_number: int, state: bytes | None
) -> None:
    maker = Maker()
    maker.open(1)
    places = {n: turn(maker, 1, state=kept) for n, kept in ((1, None), (2, b"two"), (3, None), (4, b"four"))}
    take(put, maker)
    loaded = store.load_session(uid_of(1), with_tokens=False, state_turn=turn_number)
    assert loaded is not None
    assert loaded.state == state
    assert loaded.state_seq == (places[{b"two": 2, b"four": 4}[state]] if state else 0)


def test_tokens_are_read_without_the_rest(store: SqliteStore, put: Put) -> None:
    maker = Maker()
    maker.open(1)
    seqs = [turn(maker, 1, tokens=b"t%d" % n if n % 3 else None) for n in range(150)]
    take(put, maker)
    expected = {seq: b"t%d" % n if n % 3 else None for n, seq in enumerate(seqs)}
    asked = [*seqs[::-1], 999_999, seqs[3]]
    assert store.read_tokens(asked) == [(seq, expected[seq]) for seq in [*seqs[::-1], seqs[3]]]


def _number_again(batch: FakeBatch) -> None:
    batch.finished_rows.append(batch.finished_rows[0])


def _no_records(batch: FakeBatch) -> None:
    made = TrajectoryInsert._make(batch.finished_rows[0])
    batch.finished_rows[0] = tuple(made._replace(after_seq=made.ready_seq))


def _bad_reward(batch: FakeBatch) -> None:
    batch.reward_rows.append(tuple(RewardUpsert(b"short", 1, 1.0)))


def _turn_zero_record(batch: FakeBatch) -> None:
    row = list(batch.record_rows[0])
    row[3], row[4] = COMMITTED, 0
    batch.record_rows[0] = tuple(row)


def _short(batch: FakeBatch) -> None:
    batch.finished_rows[0] = batch.finished_rows[0][:-1]


@pytest.mark.parametrize("spoil", [_number_again, _no_records, _bad_reward, _turn_zero_record, _short])
def test_i22_a_batch_that_breaks_a_rule_changes_nothing(
    put: Put, maker: Maker, directory: Path, spoil: Callable[[FakeBatch], None]
) -> None:
    before = dump(directory / "roost.db")
    maker.finish(1)
    maker.reward(3, maker.rows[uid_of(3)].last, 1.0, 77)
    batch = maker.batch()
    spoil(batch)
    assert put(batch) is Outcome.REFUSED_CONSTRAINT
    assert dump(directory / "roost.db") == before
    take(put, maker)
