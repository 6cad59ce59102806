"""What sessions have outside, as rows: owned from before it is made until it is released (I12, I20)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import CLOSED, SEALED, FakeBatch, Maker, dump, make_older, sessions, take, uid_of

from roost.store import SqliteStore, StoreError, schema
from roost.store.base import DueResource, ListedResource, Outcome, OwnerRelease, ResourceFilter, ResourceInsert

Put = Callable[[FakeBatch], Outcome]
Open = Callable[..., SqliteStore]
CLIENT, HTTP, PROCESS, TMUX = 1, 2, 3, 4
PLANNED, LIVE, RELEASING = 1, 2, 3
ALL = 1 << 20


def name(n: int) -> str:
    return f"roost-1f0c77ab-1-{uid_of(n).hex()}-{n}"


def resource(n: int, session: int = 1, root: int = 1, **more: Any) -> ResourceInsert:
    made = ResourceInsert(
        name=name(n),
        session=uid_of(session),
        root=uid_of(root),
        tenant="t",
        kind=HTTP,
        state=PLANNED,
        owner="host",
        handle=f"handle-{n}",
        pool="",
        pool_key="",
        idle_ttl_ms=0,
        create_ms=1_000 + n,
        due=0,
        attempts=0,
        error="",
        request=None,
    )
    return made._replace(**more)


class Batches:
    """Appends batches of resource rows, each with the next sequence."""

    def __init__(self, put: Put, maker: Maker) -> None:
        self._put = put
        self._maker = maker

    def __call__(self, *made: ResourceInsert, **rows: Any) -> Outcome:
        seq = self._maker._seq()
        self._maker.first = self._maker.next_seq
        batch = FakeBatch(seq, seq, roots=[uid_of(1)], resource_rows=[tuple(row) for row in made])
        for key, value in rows.items():
            setattr(batch, key, value)
        return self._put(batch)


@pytest.fixture
def maker(put: Put) -> Maker:
    """1 is a root with a child 2; 3 is another root, and 4 one of tenant u."""
    made = Maker()
    made.open(1)
    made.open(2, parent=1, path="/root/a")
    made.open(3)
    made.open(4, tenant="u")
    take(put, made)
    return made


@pytest.fixture
def append(put: Put, maker: Maker) -> Batches:
    return Batches(put, maker)


def names(store: SqliteStore) -> list[str]:
    return [row.name for row in store.resources()]


def listed(store: SqliteStore, **where: Any) -> list[ListedResource]:
    rows, following = store.list_resources(ResourceFilter(where.pop("tenant", "t"), **where), "", 100, ALL)
    assert following is None
    return rows


def test_rows_come_back_as_they_were_given_over_a_restart(
    open_store: Open, store: SqliteStore, append: Batches
) -> None:
    first = resource(1, pool="agents", pool_key="anna", idle_ttl_ms=600_000, request=b"mark", state=LIVE)
    second = resource(2, session=2, handle="", kind=CLIENT)
    assert append(second, first) is Outcome.STORED
    store.close()
    again = open_store()
    one, two = again.resources()
    assert one._asdict() == {name: getattr(first, name) for name in one._fields if name != "session_id"} | {
        "session_id": "s1"
    }
    assert (two.name, two.session_id, two.request) == (second.name, "s2", None)
    found = listed(again)
    assert [row._replace(session_id="", parent=b"") for row in found] == [
        ListedResource(*row[:-1], "", b"") for row in (first, second)
    ]
    assert [(row.session_id, row.parent) for row in found] == [("s1", b""), ("s2", uid_of(1))]


def test_an_update_keeps_the_handle_unless_it_gives_one(store: SqliteStore, append: Batches) -> None:
    assert append(resource(1), resource(2)) is Outcome.STORED
    updates = [(name(1), LIVE, "new", 0, 0, ""), (name(2), RELEASING, None, 500, 3, "it hangs")]
    assert append(resource_update_rows=updates) is Outcome.STORED
    one, two = listed(store)
    assert (one.state, one.handle, one.due) == (LIVE, "new", 0)
    assert (two.state, two.handle, two.due, two.attempts, two.error) == (RELEASING, "handle-2", 500, 3, "it hangs")
    # Taken back by the engine: an empty handle is one too.
    assert append(resource_update_rows=[(name(1), LIVE, "", 0, 0, "")]) is Outcome.STORED
    assert listed(store)[0].handle == ""


@pytest.mark.parametrize(
    "rows",
    [
        {"resource_rows": [tuple(resource(1))]},  # the name is taken
        {"resource_rows": [tuple(resource(9, name=""))]},
        {"resource_rows": [tuple(resource(9, name="n" * 64))]},
        {"resource_rows": [tuple(resource(9, kind=0))]},
        {"resource_rows": [tuple(resource(9, kind=5))]},
        {"resource_rows": [tuple(resource(9, state=4))]},
        {"resource_rows": [tuple(resource(9, due=1))]},  # not to be released, and due
        {"resource_rows": [tuple(resource(9, session=1)._replace(session=b"short"))]},
        {"resource_rows": [tuple(resource(9, tenant=""))]},
        {"resource_rows": [tuple(resource(9))[:-1]]},
        {"resource_update_rows": [(name(7), LIVE, None, 0, 0, "")]},  # nobody has it
        {"resource_update_rows": [(name(1), LIVE, None, 0, 0, ""), (name(1), LIVE, None, 0, 0, "")]},
        {"resource_update_rows": [(name(1), LIVE, None, 1, 0, "")]},
        {"resource_update_rows": [(name(1), LIVE, None, 0, -1, "")]},
        {"released": [name(7)]},
        {"released": [name(1), name(7)]},
    ],
)
def test_i22_rows_that_break_a_rule_are_refused_whole(
    store: SqliteStore, append: Batches, rows: dict[str, list[Any]]
) -> None:
    assert append(resource(1), resource(2)) is Outcome.STORED
    before = dump(store._path)
    good: dict[str, list[Any]] = {"resource_rows": [tuple(resource(8))]}
    together = {key: [*good.get(key, []), *rows.get(key, [])] for key in {**good, **rows}}
    assert append(**together) is Outcome.REFUSED_CONSTRAINT
    assert dump(store._path) == before


def test_a_released_resource_is_owned_no_more(store: SqliteStore, append: Batches) -> None:
    made = [resource(n) for n in range(1, 131)]
    assert append(*made) is Outcome.STORED
    asked = [row.name for row in made] + ["roost-1f0c77ab-1-unknown", "", name(1) + "0"]
    assert store.known_resources(asked) == {row.name for row in made}
    assert store.known_resources([]) == set()
    assert append(released=[row.name for row in made[:100]]) is Outcome.STORED
    assert store.known_resources(asked) == {row.name for row in made[100:]} == set(names(store))
    # Attached and gone in one batch: it has never been.
    assert append(resource(200), released=[name(200)]) is Outcome.STORED
    assert store.known_resources([name(200)]) == set()


def test_i12_a_close_makes_all_of_its_sessions_due_and_nobody_elses(store: SqliteStore, append: Batches) -> None:
    rows = [resource(1), resource(2, kind=CLIENT, state=LIVE), resource(3, session=2), resource(4, session=3, root=3)]
    assert append(*rows) is Outcome.STORED
    # What the same batch attaches and then closes is due with the rest; a session without resources is no error.
    due = [(uid_of(1), 700), (uid_of(4), 700)]
    assert append(resource(5), resource_due_rows=due) is Outcome.STORED
    assert [(row.name, row.state, row.due) for row in listed(store)] == [
        (name(1), RELEASING, 700),
        (name(2), RELEASING, 700),
        (name(3), PLANNED, 0),
        (name(4), PLANNED, 0),
        (name(5), RELEASING, 700),
    ]


def test_what_drivers_are_to_release_comes_by_time_and_name(store: SqliteStore, append: Batches) -> None:
    def of(n: int, due: int, **more: Any) -> ResourceInsert:
        return resource(n, state=RELEASING, due=due, **more)

    rows = [of(1, 300), of(2, 100, kind=PROCESS), of(3, 200, kind=CLIENT), of(4, 100, kind=TMUX, attempts=2)]
    assert append(*rows, resource(5), of(6, 400, session=2)) is Outcome.STORED

    def pages(until: int, limit: int) -> list[str]:
        found: list[DueResource] = []
        after = None
        while page := store.due_resources(until, after, limit):
            found += page
            after = page[-1].due, page[-1].name
        return [row.name for row in found]

    for limit in (1, 2, 100):
        assert pages(400, limit) == [name(2), name(4), name(1), name(6)]
        assert pages(399, limit) == [name(2), name(4), name(1)]
        assert pages(99, limit) == []
    assert store.due_resources(100, (100, name(2)), 10) == [
        DueResource(name(4), uid_of(1), uid_of(1), "t", "s1", TMUX, "handle-4", 2, 100)
    ]


def test_what_a_host_is_to_release_is_its_own_tenants(store: SqliteStore, append: Batches) -> None:
    def of(n: int, **more: Any) -> ResourceInsert:
        return resource(n, **{"kind": CLIENT, "state": RELEASING, "due": 1, **more})

    rows = [of(1), of(2, owner="other"), of(3, kind=HTTP), of(4, state=LIVE, due=0), of(5, session=2)]
    # RELEASING and not due: the dump of its session comes first.
    rows += [of(6, due=0), of(7, session=4, root=4, tenant="u")]
    assert append(*rows) is Outcome.STORED
    mine = [OwnerRelease(name(1), "s1", "handle-1"), OwnerRelease(name(5), "s2", "handle-5")]
    assert store.owner_releases("t", "host", "", 100) == mine
    assert store.owner_releases("t", "host", name(1), 100) == mine[1:]
    assert store.owner_releases("t", "host", "", 1) == mine[:1]
    assert store.owner_releases("t", "nobody", "", 100) == []
    assert [row.name for row in store.owner_releases("u", "host", "", 100)] == [name(7)]


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3, 4, 5]),
    ({"tenant": "u"}, [6]),
    ({"session": uid_of(1)}, [1, 2, 3]),
    ({"root": uid_of(1)}, [1, 2, 3, 4]),
    ({"root": uid_of(1), "session": uid_of(2)}, [4]),
    ({"root": uid_of(3), "session": uid_of(1)}, []),
    ({"tenant": "u", "session": uid_of(1)}, []),
    ({"owner": "other"}, [2, 4]),
    ({"state": RELEASING}, [3]),
    ({"state": PLANNED, "root": uid_of(1)}, [1, 4]),
    ({"pool": "agents"}, [2, 5]),
    ({"pool": "agents", "owner": "other", "state": LIVE}, [2]),
    ({"owner": ""}, []),
]


@pytest.mark.parametrize(("where", "expected"), FILTERS)
@pytest.mark.parametrize(("limit", "examine"), [(1, 1), (2, 3), (3, 2), (100, 5), (5, 100)])
def test_lists_page_in_order_of_name(
    store: SqliteStore, append: Batches, where: dict[str, Any], expected: list[int], limit: int, examine: int
) -> None:
    rows = [
        resource(1),
        resource(2, owner="other", state=LIVE, pool="agents", pool_key="anna"),
        resource(3, state=RELEASING, due=5),
        resource(4, session=2, owner="other"),
        resource(5, session=3, root=3, pool="agents"),
        resource(6, session=4, root=4, tenant="u"),
    ]
    assert append(*rows) is Outcome.STORED
    filters = ResourceFilter(**{"tenant": "t", **where})
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page, following = store.list_resources(filters, after, limit, examine)
        assert len(page) <= limit
        assert following is None or following > after
        found += [row.name for row in page]
        after = following
    assert found == [name(n) for n in expected]


def test_the_last_release_has_its_session_looked_at_again_if_it_is_sealed(
    store: SqliteStore, put: Put, maker: Maker, append: Batches
) -> None:
    assert append(resource(1), resource(2, session=2), resource(3, session=3, root=3)) is Outcome.STORED
    take(put, maker, maker.close(3, state=SEALED, cleanup_due=100), maker.close(2, state=CLOSED, cleanup_due=200))
    # In one batch: the dump is made, so that the session waits; its last resource is released.
    step = maker.step(3, SEALED, due=0)
    step.resource_due_rows = [(uid_of(3), 900)]
    step.released = [name(3)]
    step.cleanup_due_rows = [(uid_of(3), 901), (uid_of(2), 901), (uid_of(1), 901)]
    maker.first = maker.next_seq
    assert put(step) is Outcome.STORED
    found = {n: store.session_by_uid(uid_of(n)) for n in (1, 2, 3)}
    assert {n: row and row.cleanup_due for n, row in found.items()} == {1: 0, 2: 200, 3: 901}
    sealed = found[3]
    assert sealed is not None
    assert sealed.seq == maker.rows[uid_of(3)].seq  # it is the row that the next step is decided by
    assert store.cleanups(SEALED, 901, None, 10) == [(901, uid_of(3))]


def test_a_resource_without_its_session_is_a_damaged_store(store: SqliteStore, append: Batches) -> None:
    assert append(resource(1), resource(2, session=77)) is Outcome.STORED
    with pytest.raises(StoreError, match=name(2)) as error:
        store.resources()
    assert error.value.reason == "CORRUPT"


@pytest.mark.parametrize("version", [3, 4])
def test_a_store_from_before_resources_keeps_every_row(
    open_store: Open, store: SqliteStore, put: Put, maker: Maker, tmp_path: Path, version: int
) -> None:
    maker.begin(1)
    maker.commit(1, state=b"state")
    maker.reward(1, maker.rows[uid_of(1)].last, 0.5)
    maker.finish(1)
    maker.begin(2)
    take(put, maker)
    take(put, maker, maker.close(3, state=SEALED))
    store.close()
    tables = ("meta", "shard", "session", "record", "reward", "trajectory", *(["api_key"] if version > 3 else []))

    old = tmp_path / "old"
    columns = make_older(store._path, old, version, tables)
    now, then = dump(store._path), open_store(old)
    assert (then.epoch, then.store_id, then.resources()) == (2, store.store_id, [])
    append = Batches(lambda batch: then.append(0, then.epoch, batch.first_seq, batch), maker)
    assert append(resource(1)) is Outcome.STORED
    assert names(then) == [name(1)]
    then.close()
    with contextlib.closing(apsw.Connection(str(old / "roost.db"))) as conn:
        assert conn.pragma("user_version") == schema.newest_version()
    after = dump(old / "roost.db")
    kept = [table for table in tables if table not in ("shard", "api_key", "session")]
    assert {table: after[table] for table in kept} == {table: now[table] for table in kept}
    assert sessions(old / "roost.db", columns) == sessions(store._path, columns)
