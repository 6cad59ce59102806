"""Mail as rows: in order of sending, live until it ends once, gone with its session's content (I15, I21)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_rows import CLOSED, SEALED, FakeBatch, Maker, dump, integrity, make_older, sessions, take, uid_of

from roost.store import SqliteStore, StoreFailed, reader
from roost.store.base import (
    ListedMail,
    MailFilter,
    MailFound,
    MailHead,
    MailInsert,
    Outcome,
    OwnerMail,
    RunnableRow,
    UnreadMail,
)

Put = Callable[[FakeBatch], Outcome]
Open = Callable[..., SqliteStore]
QUEUED, DELIVERED, CONSUMED, EXPIRED, DEAD, ENDED = 1, 2, 3, 4, 5, 6
MESSAGE, COMPLETED, FAILED, TOLD_CLOSED = 1, 2, 3, 4
ALL = 1 << 20


class Post:
    """Appends batches of mail. Each message takes the next sequence."""

    def __init__(self, put: Put, maker: Maker) -> None:
        self._put = put
        self.maker = maker

    def letter(self, to: int = 1, *, tree: int = 1, **more: Any) -> MailInsert:
        seq = self.maker._seq()
        made = MailInsert(
            seq=seq,
            message_id=uid_of(10_000 + seq),
            recipient=uid_of(to),
            root=uid_of(tree),
            tenant="t",
            sender=None,
            kind=MESSAGE,
            state=QUEUED,
            due=-1,
            expire=0,
            deliveries=0,
            fence=0,
            create_ms=1_000 + seq,
            meta=b"meta-%d" % seq,
            content=b"content-%d" % seq,
            request=None,
        )
        return made._replace(**more)

    def __call__(self, *letters: MailInsert, **rows: Any) -> Outcome:
        seq = self.maker._seq()
        self.maker.first = self.maker.next_seq
        first = min([row.seq for row in letters] + [seq])
        batch = FakeBatch(first, seq, roots=[uid_of(1)], mail_rows=[tuple(row) for row in letters])
        for key, value in rows.items():
            setattr(batch, key, value)
        return self._put(batch)

    def sent(self, *letters: MailInsert) -> list[int]:
        assert self(*letters) is Outcome.STORED
        return [row.seq for row in letters]

    def update(self, *updates: tuple[int, int, int, int, int]) -> None:
        assert self(mail_update_rows=list(updates)) is Outcome.STORED

    def end(self, *numbers: int) -> None:
        assert self(mail_ended=[uid_of(n) for n in numbers]) is Outcome.STORED


@pytest.fixture
def maker(put: Put) -> Maker:
    """1 is a root with a child 2 and its child 3; 4 is another root, and 5 one of tenant u."""
    made = Maker()
    made.open(1)
    made.open(2, parent=1, path="/root/a")
    made.open(3, parent=2, path="/root/a/b")
    made.open(4)
    made.open(5, tenant="u")
    take(put, made)
    return made


@pytest.fixture
def post(put: Put, maker: Maker) -> Post:
    return Post(put, maker)


def mailboxes(store: SqliteStore, root: int = 1) -> dict[int, list[MailHead]]:
    """What is live of a tree, by session."""
    return {int.from_bytes(row.uid, "big"): row.mail for row in store.load_header(uid_of(root))[1] if row.mail}


def listed(store: SqliteStore, **where: Any) -> list[ListedMail]:
    rows, following = store.list_mail(MailFilter(**where), 0, 1_000, ALL, 1 << 30)
    assert following is None
    return rows


def state_of(store: SqliteStore, seq: int) -> int:
    (row,) = store._conn.execute("SELECT state FROM message WHERE seq = ?", (seq,)).fetchall()
    return int(row[0])  # type: ignore[arg-type]


def test_i5_rows_come_back_as_they_were_given_over_a_restart(open_store: Open, store: SqliteStore, post: Post) -> None:
    full = post.letter(2, sender=uid_of(1), kind=COMPLETED, due=500, expire=900, request="s1/r", meta=b"m")
    bare = post.letter(2, content=None)
    seqs = post.sent(full, bare)
    store.close()
    again = open_store()
    assert again.last_seq == post.maker.next_seq - 1
    assert mailboxes(again) == {
        2: [
            MailHead(full.seq, QUEUED, 500, 900, 0, 0, len(full.content or b""), 1),
            MailHead(bare.seq, QUEUED, -1, 0, 0, 0, 0, 0),
        ]
    }
    found = [MailFound(**{name: getattr(row, name) for name in MailFound._fields}) for row in (full, bare)]
    assert again.read_mail(seqs) == found
    assert again.sent(uid_of(2), "s1/r") == (full.message_id, b"m")
    assert [(row.session_id, row.seq, row.state) for row in listed(again, recipient=uid_of(2))] == [
        ("s2", full.seq, QUEUED),
        ("s2", bare.seq, QUEUED),
    ]


def test_the_last_sequence_counts_messages_too(open_store: Open, store: SqliteStore, post: Post) -> None:
    (seq,) = post.sent(post.letter(seq=500))
    store._conn.execute("UPDATE shard SET last_seq = 0")
    store.close()
    assert open_store().last_seq == seq


def test_i15_a_header_has_what_is_live_in_order_of_sending(store: SqliteStore, post: Post) -> None:
    """Of each open session of the tree its own, and of the tree alone; what has ended is there no more."""
    letters = [post.letter(n, tree=4 if n == 4 else 1, content=b"x" * n) for n in (2, 1, 3, 2, 4, 2)]
    first, *_ = post.sent(*letters)
    assert {n: [head.seq for head in heads] for n, heads in mailboxes(store).items()} == {
        1: [letters[1].seq],
        2: [letters[0].seq, letters[3].seq, letters[5].seq],
        3: [letters[2].seq],
    }
    assert {n: [head.size for head in heads] for n, heads in mailboxes(store).items()} == {1: [1], 2: [2] * 3, 3: [3]}
    assert {n: [head.seq for head in heads] for n, heads in mailboxes(store, 4).items()} == {4: [letters[4].seq]}
    found = store.find("t", "s2")
    assert found is not None
    assert found.rows == store.load_header(uid_of(1))[1]
    post.update((first, DELIVERED, -1, 1, 7))
    assert mailboxes(store)[2][0] == MailHead(first, DELIVERED, -1, 0, 1, 7, 2, 0)
    post.update((first, CONSUMED, -1, 1, 7))
    assert [head.seq for head in mailboxes(store)[2]] == [letters[3].seq, letters[5].seq]


def test_a_mailbox_does_not_keep_a_closed_session_in_the_header(store: SqliteStore, put: Put, post: Post) -> None:
    """One transaction closes the session and ends its mail, what was sent within the same batch too."""
    (old,) = post.sent(post.letter(2))
    late = post.letter(2, due=5)
    closing = post.maker.close(2)
    batch = post.maker.batch(closing)
    batch.mail_rows = [tuple(late)]
    batch.mail_ended = [uid_of(2)]
    assert put(batch) is Outcome.STORED
    assert mailboxes(store) == {}
    assert [(row.seq, row.state) for row in listed(store, recipient=uid_of(2))] == [(old, ENDED), (late.seq, ENDED)]
    assert store.runnable("t", 1 << 40, None, 10) == ([], None)


@pytest.mark.parametrize("ended", [CONSUMED, EXPIRED, DEAD, ENDED])
def test_i15_what_has_ended_never_changes_again(store: SqliteStore, post: Post, ended: int) -> None:
    (seq,) = post.sent(post.letter(expire=50))
    post.update((seq, DELIVERED, -1, 1, 3))
    post.update((seq, ended, -1, 1, 3))
    before = dump(store._path)["message"]
    for state in (QUEUED, DELIVERED, CONSUMED, EXPIRED, DEAD, ENDED):
        assert post(mail_update_rows=[(seq, state, -1, 2, 4)]) is Outcome.REFUSED_CONSTRAINT
    post.end(1)
    assert dump(store._path)["message"] == before
    assert store.read_mail([seq]) == []


def test_within_one_batch_a_message_may_go_all_the_way(store: SqliteStore, post: Post) -> None:
    sent = [post.letter(2) for _ in range(3)]
    updates = [(sent[0].seq, CONSUMED, -1, 1, 1), (sent[1].seq, DELIVERED, -1, 1, 1)]
    assert post(*sent, mail_update_rows=updates, mail_ended=[uid_of(2)]) is Outcome.STORED
    assert [state_of(store, row.seq) for row in sent] == [CONSUMED, ENDED, ENDED]
    unread = store.unread_mail(uid_of(2), 0, 1 << 20)
    # What a delivery has left stays with what it could not finish.
    assert [(row.seq, row.deliveries, row.fence) for row in unread] == [(sent[1].seq, 1, 1), (sent[2].seq, 0, 0)]


def test_an_end_takes_the_sessions_that_it_names_and_no_others(store: SqliteStore, post: Post) -> None:
    letters = [post.letter(n, tree=4 if n == 4 else 1) for n in (1, 2, 3, 4, 2)]
    post.sent(*letters)
    post.end(2, 4, 2, 99)
    assert [state_of(store, row.seq) for row in letters] == [QUEUED, ENDED, QUEUED, ENDED, ENDED]
    # Any number of them, in one statement or a few.
    more = [post.letter(n) for n in (1, 3) for _ in range(100)]
    post.sent(*more)
    post.end(*[3] * 70)
    assert {(row.recipient, state_of(store, row.seq)) for row in more} == {(uid_of(1), QUEUED), (uid_of(3), ENDED)}


RULES: list[dict[str, Any]] = [
    {"message_id": b"short"},
    {"recipient": b"short"},
    {"root": b""},
    {"tenant": ""},
    {"sender": b""},
    {"kind": 0},
    {"kind": 5},
    {"state": 0},
    {"state": 7},
    {"due": -2},
    {"state": CONSUMED, "fence": 1, "due": 0},
    {"state": DEAD, "deliveries": 5, "due": 9},
    {"state": ENDED, "due": 0},
    {"expire": -1},
    {"state": EXPIRED},
    {"deliveries": -1},
    {"state": DEAD},
    {"fence": -1},
    {"state": DELIVERED},
    {"state": CONSUMED},
    {"meta": None},
    {"content": "text"},
]


@pytest.mark.parametrize("broken", RULES)
def test_i22_a_message_that_breaks_a_rule_is_refused_with_its_batch(
    store: SqliteStore, post: Post, broken: dict[str, Any]
) -> None:
    before = dump(store._path)
    assert post(post.letter(), post.letter(**broken)) is Outcome.REFUSED_CONSTRAINT
    assert dump(store._path) == before


@pytest.mark.parametrize(
    "given",
    [
        {"state": DELIVERED, "fence": 1, "due": 9},
        {"state": CONSUMED, "fence": 1},
        {"state": EXPIRED, "expire": 1},
        {"state": DEAD, "deliveries": 1},
        {"state": ENDED, "due": -1},
        {"due": 0},
        {"content": None},
    ],
)
def test_what_the_rules_allow_is_stored(store: SqliteStore, post: Post, given: dict[str, Any]) -> None:
    """So that each refusal above is of the rule that it is about."""
    (seq,) = post.sent(post.letter(**given))
    assert state_of(store, seq) == given.get("state", QUEUED)


@pytest.mark.parametrize(
    "rows",
    [
        {"mail_update_rows": [(999, DELIVERED, -1, 1, 1)]},  # there is none
        {"mail_update_rows": [(50, DELIVERED, -1, 1, 1)] * 2},
        {"mail_update_rows": [(50, DELIVERED, -1, 1, 0)]},
        {"mail_update_rows": [(50, CONSUMED, 3, 1, 1)]},
        {"mail_update_rows": [(50, EXPIRED, -1, 0, 0)]},
        {"mail_update_rows": [(50, DELIVERED, -1, 1)]},
    ],
)
def test_i22_updates_that_break_a_rule_are_refused_whole(
    store: SqliteStore, post: Post, rows: dict[str, list[Any]]
) -> None:
    post.sent(post.letter(seq=50), post.letter(seq=51))
    before = dump(store._path)
    good = [(51, DELIVERED, -1, 1, 1)]
    assert post(mail_update_rows=[*good, *rows["mail_update_rows"]]) is Outcome.REFUSED_CONSTRAINT
    assert dump(store._path) == before


def test_i21_one_message_of_one_request_to_a_session(store: SqliteStore, post: Post) -> None:
    first, other = post.letter(2, request="a/1"), post.letter(3, request="a/1")
    post.sent(first, other, post.letter(2, request="b/1"), post.letter(2), post.letter(2))
    assert store.sent(uid_of(2), "a/1") == (first.message_id, first.meta)
    assert store.sent(uid_of(3), "a/1") == (other.message_id, other.meta)
    assert store.sent(uid_of(1), "a/1") is None
    assert store.sent(uid_of(2), "a") is None
    before = dump(store._path)
    assert post(post.letter(2, request="a/1")) is Outcome.REFUSED_CONSTRAINT
    assert dump(store._path) == before
    # What became of it does not matter: it is remembered as long as it is there.
    post.update((first.seq, DELIVERED, -1, 1, 1))
    post.update((first.seq, CONSUMED, -1, 1, 1))
    assert store.sent(uid_of(2), "a/1") == (first.message_id, first.meta)


def test_mail_is_read_in_order_while_it_is_live(store: SqliteStore, post: Post) -> None:
    letters = [post.letter(2, expire=5) for _ in range(150)]
    seqs = post.sent(*letters)
    post.update((seqs[3], DELIVERED, -1, 2, 9), (seqs[4], EXPIRED, -1, 0, 0))
    wanted = [seqs[4], *reversed(seqs), 999_999]
    found = store.read_mail(wanted)
    assert [row.seq for row in found] == [seq for seq in seqs if seq != seqs[4]]
    assert found[3] == MailFound(
        seqs[3], letters[3].message_id, MESSAGE, 2, letters[3].create_ms, 5, letters[3].meta, letters[3].content
    )
    assert store.read_mail([]) == []


def test_what_makes_sessions_runnable_comes_by_time_and_sequence(store: SqliteStore, post: Post) -> None:
    plan = [(1, 300), (2, 100), (3, 200), (1, 100), (2, -1), (3, 400), (2, 0)]
    letters = [post.letter(n, due=due) for n, due in plan]
    post.sent(*letters, post.letter(5, tree=5, due=1, tenant="u"), post.letter(4, tree=4, due=250))
    every = sorted((row.due, row.seq, f"s{int.from_bytes(row.recipient, 'big')}") for row in letters if row.due >= 0)
    every = sorted([*every, (250, letters[-1].seq + 2, "s4")])

    def pages(until: int, limit: int) -> tuple[list[RunnableRow], list[int | None]]:
        found: list[RunnableRow] = []
        following: list[int | None] = []
        after = None
        while not following or len(found) % limit == 0:
            page, next_due = store.runnable("t", until, after, limit)
            following.append(next_due)
            if not page:
                break
            found += page
            after = (page[-1].due, page[-1].seq)
        return found, following

    for limit in (1, 2, 3, 100):
        for until in (-1, 0, 99, 100, 250, 300, 400):
            found, following = pages(until, limit)
            due = [row for row in every if row[0] <= until]
            assert [tuple(row) for row in found] == due, (limit, until)
            later = [row[0] for row in every if row[0] > until]
            assert following[-1] == (later[0] if later else None), (limit, until)
    # Where a page is cut off, what comes next is due already.
    assert store.runnable("t", 300, None, 2)[1] == 100
    assert store.runnable("t", 400, (100, 0), 100)[0][0].due == 100
    assert [row.session_id for row in store.runnable("u", 400, None, 10)[0]] == ["s5"]
    assert store.runnable("nobody", 400, None, 10) == ([], None)
    # A turn takes it, and gives it back for later; at last it consumes it.
    last = every[0][1]
    post.update((last, DELIVERED, 0, 1, 1))
    assert store.runnable("t", 99, None, 10) == ([], 100)
    post.update((last, QUEUED, 350, 1, 1))
    assert store.runnable("t", 350, (300, ALL), 10) == ([RunnableRow(350, last, "s2")], 400)
    post.update((last, CONSUMED, -1, 1, 1))
    assert store.runnable("t", 350, (300, ALL), 10) == ([], 400)


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"recipient": uid_of(2)}, [0, 1, 2, 3, 4, 5]),
    ({"recipient": uid_of(3)}, [6]),
    ({"recipient": uid_of(99)}, []),
    ({"sender": uid_of(1)}, [0, 6]),
    ({"sender": uid_of(2)}, [1]),
    ({"sender": uid_of(3)}, []),
    ({"recipient": uid_of(2), "states": 1 << QUEUED}, [0, 4]),
    ({"recipient": uid_of(2), "states": 1 << QUEUED, "now_ms": 500}, [0]),
    ({"recipient": uid_of(2), "states": 1 << EXPIRED}, [5]),
    ({"recipient": uid_of(2), "states": 1 << EXPIRED, "now_ms": 499}, [5]),
    ({"recipient": uid_of(2), "states": 1 << EXPIRED, "now_ms": 500}, [4, 5]),
    ({"recipient": uid_of(2), "states": 1 << DELIVERED | 1 << DEAD, "now_ms": 500}, [1, 3]),
    ({"recipient": uid_of(2), "states": 1 << ENDED}, []),
    ({"recipient": uid_of(2), "states": 1 << 31}, []),
    ({"sender": uid_of(1), "states": 1 << QUEUED}, [0, 6]),
]


@pytest.mark.parametrize(("where", "expected"), FILTERS)
@pytest.mark.parametrize(("limit", "examine", "size"), [(1, 1, 1), (2, 3, 1), (3, 2, ALL), (100, 5, 25), (5, 100, ALL)])
def test_lists_page_in_order_of_sending(
    store: SqliteStore,
    post: Post,
    where: dict[str, Any],
    expected: list[int],
    limit: int,
    examine: int,
    size: int,
) -> None:
    letters = [
        post.letter(2, sender=uid_of(1)),
        post.letter(2, sender=uid_of(2), state=DELIVERED, fence=1, deliveries=1, expire=500),
        post.letter(2, state=CONSUMED, fence=1, deliveries=1),
        post.letter(2, state=DEAD, deliveries=5),
        post.letter(2, expire=500),
        post.letter(2, state=EXPIRED, expire=400),
        post.letter(3, sender=uid_of(1)),
    ]
    seqs = post.sent(*letters)
    filters = MailFilter(**where)
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page, following = store.list_mail(filters, after, limit, examine, size)
        assert len(page) <= limit
        assert following is None or following > after
        assert sum(row.size for row in page[:-1]) < size
        found += [row.seq for row in page]
        after = following
    assert found == [seqs[n] for n in expected]


def test_a_list_says_what_became_of_each_and_may_leave_content_out(store: SqliteStore, post: Post) -> None:
    letter = post.letter(2, sender=uid_of(1), kind=FAILED, expire=500, deliveries=2, fence=3)
    post.sent(letter, post.letter(2, content=None))
    one, two = listed(store, recipient=uid_of(2), now_ms=500)
    size = len(letter.meta) + len(letter.content or b"")
    row = letter
    assert one == ListedMail(
        row.seq, row.message_id, "s2", FAILED, EXPIRED, 2, row.create_ms, 500, row.meta, row.content, size
    )
    assert (two.content, two.size) == (None, len(two.meta))
    bare, _ = listed(store, recipient=uid_of(2), now_ms=0, content=False)
    assert bare == one._replace(state=QUEUED, content=None, size=len(letter.meta))


def test_a_list_reads_no_more_content_than_a_page_has(store: SqliteStore, post: Post) -> None:
    seqs = post.sent(*[post.letter(2, content=b"x" * 1_000) for _ in range(20)])
    page, following = store.list_mail(MailFilter(recipient=uid_of(2)), 0, 100, ALL, 3_500)
    assert ([row.seq for row in page], following) == (seqs[:4], seqs[3])
    # One that is longer than a page is a page.
    page, following = store.list_mail(MailFilter(recipient=uid_of(2)), following or 0, 100, ALL, 1)
    assert ([row.seq for row in page], following) == (seqs[4:5], seqs[4])


def test_a_purge_takes_the_mailbox_and_leaves_what_the_session_sent(store: SqliteStore, put: Put, post: Post) -> None:
    to = [post.letter(2), post.letter(2, state=CONSUMED, fence=1), post.letter(2, request="a/1", sender=uid_of(1))]
    by = post.letter(1, sender=uid_of(2))
    post.sent(*to, by)
    take(put, post.maker, post.maker.close(2))
    assert put(post.maker.step(2, whole=True)) is Outcome.STORED
    post.maker.first = post.maker.next_seq
    assert listed(store, recipient=uid_of(2)) == []
    assert store.sent(uid_of(2), "a/1") is None
    assert [row.seq for row in listed(store, sender=uid_of(2))] == [by.seq]
    assert [row.seq for row in listed(store, recipient=uid_of(1))] == [by.seq]
    assert mailboxes(store) == {1: [MailHead(by.seq, QUEUED, -1, 0, 0, 0, len(by.content or b""), 0)]}


def test_a_forgotten_session_leaves_no_mail_behind(store: SqliteStore, put: Put, post: Post) -> None:
    mine, other = post.letter(4, tree=4), post.letter(2)
    post.sent(mine, other)
    take(put, post.maker, post.maker.close(4, SEALED))
    row = store.session_by_uid(uid_of(4))
    assert row is not None
    assert put(post.maker.step(4, CLOSED)) is Outcome.STORED
    row = store.session_by_uid(uid_of(4))
    assert row is not None
    post.maker.first = post.maker.next_seq
    assert post(forget_rows=[(uid_of(4), row.seq)]) is Outcome.STORED
    assert [row[0] for row in dump(store._path)["message"]] == [other.seq]


def test_what_ended_with_its_session_is_read_for_its_dump_in_bounded_parts(store: SqliteStore, post: Post) -> None:
    letters = [post.letter(2, content=b"x" * 100, request=f"a/{n}", sender=uid_of(1)) for n in range(10)]
    consumed = post.letter(2, state=CONSUMED, fence=1)
    post.sent(*letters, consumed, post.letter(3))
    assert (store.count_unread(uid_of(2)), store.unread_mail(uid_of(2), 0, ALL)) == (0, [])
    post.end(2)
    assert (store.count_unread(uid_of(2)), store.count_unread(uid_of(3))) == (10, 0)
    whole = store.unread_mail(uid_of(2), 0, ALL)
    assert whole == [UnreadMail(*(getattr(row, name) for name in UnreadMail._fields)) for row in letters]
    for size in (1, 250, 1_000):
        parts: list[UnreadMail] = []
        while part := store.unread_mail(uid_of(2), parts[-1].seq if parts else 0, size):
            # It ends with the message that fills it.
            assert sum(len(row.meta) + len(row.content or b"") for row in part[:-1]) < size
            parts += part
        assert parts == whole


def test_i5_a_kill_after_the_append_loses_no_mail(
    open_store: Open, store: SqliteStore, post: Post, tmp_path: Path
) -> None:
    """What the files hold at the moment of the answer is what the next start finds."""
    seqs = post.sent(*[post.letter(2, due=n) for n in range(20)])
    post.update((seqs[0], DELIVERED, -1, 1, 1))
    there = tmp_path / "after"
    there.mkdir(mode=0o700)
    for name in ("roost.db", "roost.db-wal"):
        (there / name).write_bytes((store._path.parent / name).read_bytes())
        (there / name).chmod(0o600)
    again = open_store(there)
    assert mailboxes(again) == mailboxes(store)
    assert len(mailboxes(again)[2]) == 20


def test_a_read_of_mail_that_fails_says_so_and_the_next_one_works(store: SqliteStore, post: Post) -> None:
    (seq,) = post.sent(post.letter(2, due=1, request="a/1"))
    store.running_roots()
    assert store._reader._conn is not None
    reads: list[Callable[[], Any]] = [
        lambda: store.read_mail([seq]),
        lambda: store.sent(uid_of(2), "a/1"),
        lambda: store.runnable("t", 9, None, 9),
        lambda: store.list_mail(MailFilter(recipient=uid_of(2)), 0, 9, ALL, ALL),
        lambda: store.count_unread(uid_of(2)),
        lambda: store.unread_mail(uid_of(2), 0, 9),
        lambda: store.load_header(uid_of(1)),
    ]
    for read in reads:
        before = read()
        store._reader._conn.authorizer = lambda *_: apsw.SQLITE_DENY
        with pytest.raises(StoreFailed):
            read()
        store._reader._conn.authorizer = None
        assert read() == before


def test_a_full_disk_stores_no_mail(store: SqliteStore, post: Post) -> None:
    before = dump(store._path)
    store._conn.pragma("max_page_count", store._conn.pragma("page_count"))
    assert post(post.letter(content=b"x" * 500_000)) is Outcome.REFUSED_FULL
    assert dump(store._path) == before
    store._conn.pragma("max_page_count", 1 << 30)
    post.sent(post.letter(content=b"x" * 500_000))


def test_a_header_costs_one_query_more_and_reads_no_content(store: SqliteStore, post: Post) -> None:
    post.sent(*[post.letter(n, content=b"x" * 200_000) for n in (1, 2, 3)])
    store.running_roots()
    conn = store._reader._conn
    assert conn is not None
    asked: list[str] = []
    conn.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: asked.append(event["sql"]))
    # Pages that SQLite takes from its cache or the file; an overflowing content would be 49 of them.
    pages = [apsw.SQLITE_DBSTATUS_CACHE_HIT, apsw.SQLITE_DBSTATUS_CACHE_MISS]
    before = sum(conn.status(what)[0] for what in pages)
    store.load_header(uid_of(1))
    after = sum(conn.status(what)[0] for what in pages)
    conn.trace_v2(0)
    assert len([sql for sql in asked if "FROM message" in sql]) == 1
    assert after - before < 40


def test_a_store_from_before_mail_keeps_every_row(
    open_store: Open, store: SqliteStore, put: Put, maker: Maker, tmp_path: Path
) -> None:
    for n in (1, 2, 3):
        maker.begin(n)
        maker.commit(n, state=b"state")
    maker.reward(1, maker.rows[uid_of(1)].last, 0.5)
    maker.finish(1)
    maker.begin(2)
    take(put, maker)
    take(put, maker, maker.close(3), maker.close(4, SEALED))
    store.close()
    tables = ("meta", "shard", "session", "record", "reward", "trajectory", "api_key", "resource")
    old = tmp_path / "old"
    columns = make_older(store._path, old, 5, tables)
    assert {"outcome", "wakes", "owner"}.isdisjoint(columns)

    then = open_store(old)
    assert sessions(old / "roost.db", columns) == sessions(store._path, columns)
    (root, child) = then.load_header(uid_of(1))[1]
    # Nobody has written them yet: the facts of a session say its outcome, and nothing said its owner.
    assert (root.outcome, root.wakes, root.owner, root.mail) == (0, 0, "", [])
    assert (child.running, child.owner) == (1, "")
    row = then.read_session("t", "s4")
    assert row is not None
    assert (row.state, row.owner) == (SEALED, "")
    then_post = Post(lambda batch: then.append(0, then.epoch, batch.first_seq, batch), maker)
    (seq,) = then_post.sent(then_post.letter(2))
    maker.commit(2)
    take(lambda batch: then.append(0, then.epoch, batch.first_seq, batch), maker)
    (root, child) = then.load_header(uid_of(1))[1]
    assert (child.outcome, child.owner, [head.seq for head in child.mail]) == (2, "host-2", [seq])
    then.close()
    assert integrity(old / "roost.db") == "ok"
    now = open_store(tmp_path / "today")
    now.close()
    kinds = "SELECT name, type FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY 1"
    files = [apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) for path in (old / "roost.db", now._path)]
    assert len({tuple(itertools.chain.from_iterable(conn.execute(kinds))) for conn in files}) == 1
    for conn in files:
        conn.close()


@pytest.mark.parametrize(("name", "value"), [("wakes", 2), ("outcome", -1), ("owner", None), ("wakes", None)])
def test_i22_new_columns_of_a_session_have_rules(
    store: SqliteStore, put: Put, maker: Maker, name: str, value: Any
) -> None:
    before = dump(store._path)
    maker.begin(1)
    batch = maker.batch()
    row = maker.rows[uid_of(1)]._replace(prev=maker.stored[uid_of(1)], **{name: value})
    batch.session_rows = [tuple(row)]
    assert put(batch) is Outcome.REFUSED_CONSTRAINT
    assert dump(store._path) == before


def test_a_host_finds_the_mail_of_the_sessions_that_it_ran(
    store: SqliteStore, put: Put, maker: Maker, post: Post
) -> None:
    """Sessions 1, 2 and 3 ran a turn of host-1, 4 runs one, 5 is another tenant's."""
    for n in (1, 2, 3, 5):
        maker.begin(n)
        maker.commit(n)
    maker.begin(4)
    take(put, maker)
    letters = [
        post.letter(1, due=0),
        post.letter(1),
        post.letter(1, due=300),
        post.letter(2, due=500),
        post.letter(2, due=0, expire=50),
        post.letter(3),
        post.letter(4, tree=4, due=0),
        post.letter(5, tree=5, tenant="u", due=0),
    ]
    seqs = post.sent(*letters)
    mine = {uid_of(n) for n in (1, 2, 4)}
    for examine in (1, 2, 100):
        found: set[bytes] = set()
        after = None
        for _ in range(10):
            part, after = store.owner_mail("t", "host-1", after, examine)
            found |= part
            if after is None:
                break
        assert (found, after) == (mine, None), examine
    assert store.owner_mail("t", "host-2", None, 100) == (set(), None)
    assert store.owner_mail("u", "host-1", None, 100) == ({uid_of(5)}, None)
    everyone = [uid_of(n) for n in range(1, 6)]

    def boxes(now_ms: int, owner: str = "host-1") -> dict[bytes, OwnerMail]:
        return {row.session: row for row in store.mailboxes(owner, everyone, now_ms)}

    five = OwnerMail(uid_of(5), "s5", 1, seqs[7], seqs[7], 0, 0)
    one = OwnerMail(uid_of(1), "s1", 3, seqs[0], seqs[2], 0, 300)
    assert boxes(10) == {
        uid_of(1): one,
        uid_of(2): OwnerMail(uid_of(2), "s2", 2, seqs[3], seqs[4], 0, 500),
        uid_of(5): five,
    }
    # What has expired is none.
    two = OwnerMail(uid_of(2), "s2", 1, seqs[3], seqs[3], 500, 500)
    assert boxes(60) == {uid_of(1): one, uid_of(2): two, uid_of(5): five}
    assert boxes(10, "host-2") == {}
    assert store.mailboxes("host-1", [], 10) == []
    # A turn has taken the first; what does not make it runnable is counted all the same.
    post.update((seqs[0], DELIVERED, 0, 1, 1), (seqs[2], QUEUED, -1, 0, 0))
    assert set(boxes(60)) == {uid_of(2), uid_of(5)}
    post.update((seqs[1], QUEUED, 7, 0, 0))
    assert boxes(60)[uid_of(1)] == OwnerMail(uid_of(1), "s1", 2, seqs[1], seqs[1], 7, 7)
    # One that ended has none.
    maker.close(2)
    take(put, maker)
    post.end(2)
    assert set(boxes(60)) == {uid_of(1), uid_of(5)}
    assert store.owner_mail("t", "host-1", None, 100)[0] == {uid_of(1), uid_of(4)}


def test_what_a_host_asks_for_reads_indexes(store: SqliteStore) -> None:
    for query, bindings in (
        (reader._OWNER_MAIL, ("t", 0, 0, 10, "host")),
        (reader._MAILBOXES_OF.format("?"), (b"", "host", 0)),
    ):
        plan = [str(row[3]) for row in store._conn.execute("EXPLAIN QUERY PLAN " + query, bindings)]
        assert not any(line.startswith("SCAN") for line in plan), plan
