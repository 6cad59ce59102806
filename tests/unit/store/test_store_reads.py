"""What is read is what was stored, in one snapshot, over an index."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_rows import CLOSED, OPEN, SEALED, FakeBatch, Maker, facts_with, uid_of

from roost.store import Outcome, SqliteStore, StoreFailed
from roost.store import reader as reader_module
from roost.store import statements as statements_module
from roost.store.base import MailFilter, ReadyFilter, ResourceFilter, SessionFilter
from roost.store.facts import state_seq
from roost.store.statements import _KINDS, sql

Put = Callable[[FakeBatch], Outcome]


@pytest.fixture
def tree(put: Put) -> Maker:
    """Tree 10 (children 1, 2 and grandchild 3: made later, though their uids are smaller), tree 20, tenant u's 30."""
    maker = Maker()
    maker.open(10)
    maker.open(2, parent=10, path="/root/b")
    maker.open(1, parent=10, path="/root/b0")  # sorts right after "/root/b/..."
    maker.open(3, parent=2, path="/root/b/c")
    maker.open(4, parent=10, path="/root/b-2")
    maker.open(20)
    maker.open(30, tenant="u", session_id="s10")
    for n in (3, 20):
        maker.begin(n)
    assert put(maker.batch()) is Outcome.STORED
    maker.taken()
    assert put(maker.batch(maker.close(4))) is Outcome.STORED
    return maker


def test_find_leads_to_the_header_parents_first(store: SqliteStore, tree: Maker) -> None:
    found = store.find("t", "s3")
    assert found is not None
    assert (found.uid, found.root, found.state) == (uid_of(3), uid_of(10), OPEN)
    assert [row.uid for row in found.rows] == [uid_of(n) for n in (10, 2, 1, 3)]
    row = found.rows[3]
    assert (row.session_id, row.parent, row.path, row.depth) == ("s3", uid_of(2), "/root/b/c", 2)
    assert (row.running, row.fence, row.lease) == (1, 1, b"grant1")
    assert row.seq == tree.rows[uid_of(3)].seq
    assert store.load_header(uid_of(10)) == ("t", found.rows)


def test_find_of_a_closed_or_unknown_id_or_another_tenants(store: SqliteStore, tree: Maker) -> None:
    found = store.find("t", "s4")
    assert found is not None
    assert (found.state, found.rows) == (CLOSED, [])
    assert store.find("t", "s30") is None
    other = store.find("u", "s10")
    assert other is not None
    assert other.uid == uid_of(30)
    assert store.load_header(uid_of(99)) == ("", [])
    assert store.read_session("u", "s20") is None
    assert store.load_session(uid_of(99), with_tokens=True) is None
    assert store.record_lines(uid_of(99), 10) is None


def test_running_roots_are_the_trees_with_a_turn(store: SqliteStore, put: Put, tree: Maker) -> None:
    assert sorted(store.running_roots()) == [uid_of(10), uid_of(20)]
    tree.commit(3)
    assert put(tree.batch()) is Outcome.STORED
    assert store.running_roots() == [uid_of(20)]


def test_a_session_row_names_its_parent_and_root(store: SqliteStore, tree: Maker) -> None:
    row = store.read_session("t", "s3")
    assert row is not None
    assert (row.parent_session_id, row.root_session_id) == ("s2", "s10")
    root = store.read_session("t", "s10")
    assert root is not None
    assert (root.parent_session_id, root.root_session_id) == ("", "s10")


def test_load_session_walks_the_whole_line(store: SqliteStore, put: Put) -> None:
    maker = Maker()
    maker.open(1)
    maker.open(2)
    seqs = []
    for turn in range(300):
        for n in (1, 2):
            maker.begin(n)
            seq = maker.commit(n, state=b"state%d" % turn if turn == 7 else None, tokens=b"t%d" % turn)
            if n == 1:
                seqs.append(seq)
        if turn % 50 == 0:
            assert put(maker.batch()) is Outcome.STORED
            maker.taken()
    assert put(maker.batch()) is Outcome.STORED
    loaded = store.load_session(uid_of(1), with_tokens=True)
    assert loaded is not None
    assert [line.seq for line in loaded.records] == seqs[::-1]
    assert [line.prev for line in loaded.records] == [*seqs[-2::-1], 0]
    assert [line.tokens for line in loaded.records] == [b"t%d" % turn for turn in reversed(range(300))]
    assert [line.meta for line in loaded.records] == [b"meta%d" % seq for seq in reversed(seqs)]
    assert loaded.state == b"state7"
    light = store.load_session(uid_of(1), with_tokens=False)
    assert light is not None
    assert {line.tokens for line in light.records} == {None}
    assert store.record_lines(uid_of(1), 1_000) == (light.row, light.records)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
def test_the_list_of_records_is_read_in_pages(store: SqliteStore, put: Put, limit: int) -> None:
    """Pages join to what one statement reads, also when records are appended meanwhile."""
    maker = Maker()
    maker.open(1)
    maker.open(2)
    for _ in range(7):
        for n in (1, 2):
            maker.begin(n)
            maker.commit(n)
    assert put(maker.batch()) is Outcome.STORED
    maker.taken()
    whole = store.record_lines(uid_of(1), 1_000)
    assert whole is not None
    assert len(whole[1]) == 7
    first = store.record_lines(uid_of(1), limit)
    assert first is not None
    row, page = first
    lines = list(page)
    while len(page) == limit:
        maker.begin(1)
        maker.commit(1)
        assert put(maker.batch()) is Outcome.STORED
        maker.taken()
        page = store.older_lines(uid_of(1), lines[-1], limit)
        assert len(page) <= limit
        lines += page
    assert (row, lines) == whole


def test_a_new_session_has_no_records_and_no_state(store: SqliteStore, tree: Maker) -> None:
    loaded = store.load_session(uid_of(1), with_tokens=True)
    assert loaded is not None
    assert (loaded.records, loaded.state) == ([], None)


def test_a_damaged_pointer_ends_the_walk(store: SqliteStore, put: Put) -> None:
    """A cycle, and a pointer into another session: the reload sees a short line, and that it does not verify."""
    maker = Maker()
    maker.open(1)
    maker.open(2)
    for _ in range(3):
        for n in (1, 2):
            maker.begin(n)
            maker.commit(n)
    assert put(maker.batch()) is Outcome.STORED
    lines = store.record_lines(uid_of(1), 10)
    assert lines is not None
    newest, middle, _ = (line.seq for line in lines[1])
    store._conn.pragma("ignore_check_constraints", 1)
    for wrong in (newest, middle - 2):
        store._conn.execute("UPDATE record SET prev = ? WHERE seq = ?", (wrong, middle))
        found = store.record_lines(uid_of(1), 10)
        assert found is not None
        assert [line.seq for line in found[1]] == [newest, middle]
        assert store.older_lines(uid_of(1), found[1][1], 10) == []


def test_read_records_keeps_the_order_asked_for(store: SqliteStore, put: Put) -> None:
    maker = Maker()
    maker.open(1)
    seqs = []
    for _ in range(150):
        maker.begin(1)
        seqs.append(maker.commit(1))
    assert put(maker.batch()) is Outcome.STORED
    asked = [*seqs[::-1], 999_999, seqs[3]]
    assert [record.seq for record in store.read_records(asked)] == [*seqs[::-1], seqs[3]]
    assert store.read_records([]) == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (SessionFilter("t"), [1, 2, 3, 4, 10, 20]),
        (SessionFilter("u"), [30]),
        (SessionFilter("none"), []),
        (SessionFilter("t", state=OPEN), [1, 2, 3, 10, 20]),
        (SessionFilter("t", state=CLOSED), [4]),
        (SessionFilter("t", state=SEALED), []),
        (SessionFilter("t", root=uid_of(10)), [1, 2, 3, 4, 10]),
        (SessionFilter("u", root=uid_of(10)), []),
        (SessionFilter("t", root=uid_of(10), state=CLOSED), [4]),
        (SessionFilter("t", root=uid_of(10), path_prefix="/root/b"), [2, 3]),
        (SessionFilter("t", root=uid_of(10), path_prefix="/root/b/"), [3]),
        (SessionFilter("t", root=uid_of(10), path_prefix="/root"), [1, 2, 3, 4, 10]),
        (SessionFilter("t", path_prefix="/root/b"), [2, 3]),
        (SessionFilter("t", path_prefix="/root/%"), []),
        (SessionFilter("t", running=True), [3, 20]),
        (SessionFilter("t", running=True, root=uid_of(10)), [3]),
        (SessionFilter("t", running=True, root=uid_of(10), path_prefix="/root/a"), []),
        (SessionFilter("t", running=True, state=CLOSED), []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_lists_page_in_order_of_uid(
    store: SqliteStore, tree: Maker, where: SessionFilter, expected: list[int], limit: int
) -> None:
    found: list[bytes] = []
    after = b""
    while page := store.list_sessions(where, after, limit):
        assert len(page) <= limit
        found.extend(row.uid for row in page)
        after = page[-1].uid
    assert found == [uid_of(n) for n in expected]


def test_a_path_is_that_of_the_open_session_that_has_it(store: SqliteStore, put: Put, tree: Maker) -> None:
    def whose(path: str, root: int = 10) -> str | None:
        row = store.read_path(uid_of(root), path)
        return None if row is None else row.session_id

    paths = ("/root", "/root/b", "/root/b0", "/root/b/c", "/root/b-2", "/root/b/", "/root/%", "root/b")
    assert [whose(path) for path in paths] == ["s10", "s2", "s1", "s3", None, None, None, None]
    assert [whose("/root", root) for root in (20, 30, 2)] == ["s20", "s10", None]
    tree.taken()
    tree.open(5, parent=10, path="/root/b-2")
    assert put(tree.batch()) is Outcome.STORED
    assert whose("/root/b-2") == "s5"
    row = store.read_path(uid_of(10), "/root/b/c")
    assert row == store.session_by_uid(uid_of(3))


def _plan(store: SqliteStore, statement: str, bindings: Any = None) -> list[str]:
    return [str(row[3]) for row in store._conn.execute("EXPLAIN QUERY PLAN " + statement, bindings)]


def _filters() -> list[SessionFilter]:
    return [
        SessionFilter("t", root=root, path_prefix=path, state=state, running=running)
        for root, path, state, running in itertools.product((None, b"r"), (None, "/root"), (None, 1), (False, True))
    ]


def _resource_filters() -> list[ResourceFilter]:
    kinds: list[tuple[Any, ...]] = [(None, b"s"), (None, b"r"), (None, "o"), (None, 3), (None, "p")]
    return [ResourceFilter("t", *given) for given in itertools.product(*kinds)]


READY_FILTERS = (ReadyFilter("t"), ReadyFilter("t", root=b"r"), ReadyFilter("t", sessions=(b"a", b"b")))


MAIL_FILTERS = (MailFilter(recipient=b"r"), MailFilter(sender=b"s", states=2))


def test_no_statement_scans_a_table(store: SqliteStore) -> None:
    """The cost of an operation does not grow with the sessions in the store; start-up with a million is quick."""
    statements = [
        reader_module._HEADER,
        reader_module._SESSION_BY_UID,
        reader_module._SESSION_BY_ID,
        reader_module._LINE_TOKENS,
        reader_module._RECORD.format("?,?"),
        *(reader_module.list_sql(where) for where in _filters()),
        reader_module._TRAJECTORY_BY_NUMBER,
        reader_module._TRAJECTORIES_OF_SESSION,
        reader_module._LAST_READY,
        reader_module._REWARDS,
        reader_module._DUE,
        reader_module._STALE,
        reader_module._CLEANUPS,
        reader_module._KEPT,
        reader_module._FAMILY,
        reader_module._CLOSE_SEQ,
        reader_module._CHILDREN,
        reader_module._DUE_RESOURCES,
        reader_module._OWNER_RELEASES,
        reader_module._KNOWN.format("?,?"),
        *itertools.chain.from_iterable(reader_module.resources_sql(where) for where in _resource_filters()),
        *(reader_module.ready_sql(where)[0] for where in READY_FILTERS),
        reader_module._MAILBOXES,
        reader_module._MAIL.format("?,?"),
        reader_module._SENT,
        reader_module._RUNNABLE,
        reader_module._UNREAD,
        reader_module._COUNT_UNREAD,
        *itertools.chain.from_iterable(reader_module.mail_sql(where) for where in MAIL_FILTERS),
        statements_module._PURGE_MAIL,
        statements_module._RESOURCES_DUE,
        statements_module._CLEANUP_DUE,
        *(sql(kind, 8) for kind in _KINDS),
        "SELECT max(seq) FROM record",
        "SELECT max(seq) FROM message",
    ]
    for statement in statements:
        for step in _plan(store, statement, _nulls(statement)):
            if step.startswith("SCAN") and "running" not in step:
                # Only our own lists of values and of one page, never a table.
                assert step in (
                    "SCAN line",
                    "SCAN page",
                    "SCAN v",
                    "SCAN 8-ROW VALUES CLAUSE",
                    "SCAN 8 CONSTANT ROWS",
                ), (
                    step,
                    statement,
                )
    (step,) = _plan(store, "SELECT DISTINCT root FROM session WHERE running = 1")
    assert step == "SCAN session USING COVERING INDEX session_running"


def _nulls(statement: str) -> Any:
    names = dict.fromkeys(("tenant", "after", "limit", "root", "state", "path", "below", "past", "s0", "s1", "close"))
    names |= dict.fromkeys(("session", "owner", "pool", "examine"))
    names |= dict.fromkeys(("recipient", "sender", "states", "now_ms", "content"))
    if ":after" in statement or ":tenant" in statement or ":root" in statement or ":session" in statement:
        return names
    numbered = max((n for n in range(1, 6) if f"?{n}" in statement), default=0)
    return (None,) * (numbered or statement.count("?"))


def test_lists_sort_nothing_but_the_running_ones(store: SqliteStore) -> None:
    for where in _filters():
        statement = reader_module.list_sql(where)
        plan = list(store._conn.execute("EXPLAIN QUERY PLAN " + statement, _nulls(statement)))
        # Steps with a parent make the page: it must come out of an index in order. The page itself may be sorted.
        sorts = [step for _, parent, _, step in plan if parent != 0 and "TEMP B-TREE" in str(step)]
        assert bool(sorts) == (where.running and where.root is None), plan
    for ready in READY_FILTERS[:2]:
        plan = _plan(store, reader_module.ready_sql(ready)[0], _nulls(":tenant"))
        assert not any("TEMP B-TREE" in step for step in plan), plan
    of_mail = [reader_module.mail_sql(where)[0] for where in MAIL_FILTERS]
    of_mail += [reader_module._MAILBOXES, reader_module._RUNNABLE, reader_module._UNREAD]
    for statement in (reader_module._DUE, reader_module._DUE_RESOURCES, reader_module._OWNER_RELEASES, *of_mail):
        plan = _plan(store, statement, _nulls(statement))
        assert not any("TEMP B-TREE" in step for step in plan), plan


def test_the_reader_cannot_write(store: SqliteStore, tree: Maker) -> None:
    store.running_roots()
    assert store._reader._conn is not None
    with pytest.raises(apsw.ReadOnlyError):
        store._reader._conn.execute("DELETE FROM session")


def test_a_read_that_fails_says_so_and_the_next_one_works(store: SqliteStore, tree: Maker) -> None:
    store.running_roots()
    assert store._reader._conn is not None
    store._reader._conn.authorizer = lambda *_: apsw.SQLITE_DENY
    with pytest.raises(StoreFailed):
        store.find("t", "s10")
    store._reader._conn.authorizer = None
    assert store.find("t", "s10") is not None


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_state_seq_is_read_out_of_the_facts(seq: int) -> None:
    assert state_seq(facts_with(seq)) == seq


@given(st.binary(max_size=40))
def test_any_bytes_as_facts_end_in_a_rowid(data: bytes) -> None:
    """Damaged facts are one session's trouble: the engine finds them, the store goes on."""
    assert 0 <= state_seq(data) < 1 << 63
