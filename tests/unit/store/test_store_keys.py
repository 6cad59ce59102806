"""Keys of tenants and limits as rows, and the secret beside the store."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_rows import FakeBatch, uid_of

from roost.store import Outcome, SqliteStore, StoreError
from roost.store.base import ApiKeyRow
from roost.store.secret import read_or_make

Put = Callable[[FakeBatch], Outcome]
Open = Callable[..., SqliteStore]
HASH = b"h" * 32


def key(n: int, **more: Any) -> ApiKeyRow:
    return ApiKeyRow(uid_of(n), "acme", HASH, 1_000 + n, 0, None)._replace(**more)


def batch(seq: int, keys: list[ApiKeyRow], revoked: list[tuple[bytes, int]] | None = None) -> FakeBatch:
    """A batch of one entry about keys."""
    rows = [tuple(row) for row in keys]
    return FakeBatch(seq, seq, [], [], [], [], [bytes(16)], key_rows=rows, revoked_key_rows=revoked or [])


def test_keys_are_stored_revoked_and_read_in_order_of_their_ids(open_store: Open, put: Put, store: SqliteStore) -> None:
    first, second = key(1, request=b"mark"), key(2, tenant="u")
    assert put(batch(1, [second, first])) is Outcome.STORED
    assert store.api_keys() == [first, second]
    assert put(batch(2, [], [(first.key_id, 2_000)])) is Outcome.STORED
    # Made and revoked in one batch.
    third = key(3)
    assert put(batch(3, [third], [(third.key_id, 3_000)])) is Outcome.STORED
    expected = [first._replace(revoke_ms=2_000), second, third._replace(revoke_ms=3_000)]
    assert store.api_keys() == expected
    secret = store.secret
    store.close()
    again = open_store()
    assert (again.api_keys(), again.secret) == (expected, secret)


@pytest.mark.parametrize(
    "bad",
    [
        batch(2, [key(1)]),  # the id is taken
        batch(2, [], [(uid_of(9), 2_000)]),  # nobody has it
        batch(2, [], [(uid_of(2), 2_000)]),  # it was revoked before
        batch(2, [key(3, hash=b"short")]),
        batch(2, [key(3, key_id=b"short")]),
        batch(2, [key(3, tenant="")]),
    ],
)
def test_rows_that_break_a_rule_are_refused_whole(store: SqliteStore, put: Put, bad: FakeBatch) -> None:
    assert put(batch(1, [key(1), key(2, revoke_ms=1_500)])) is Outcome.STORED
    before = store.api_keys()
    assert put(bad) is Outcome.REFUSED_CONSTRAINT
    assert store.api_keys() == before


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = read_or_make(tmp_path)
    finally:
        os.umask(old)
    path = tmp_path / "roost.secret"
    assert (len(made), path.read_bytes()) == (32, made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make(tmp_path) == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["roost.secret"]
    other = tmp_path / "other"
    other.mkdir()
    assert read_or_make(other) != made


def _file(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _link(path: Path) -> None:
    _file(path.with_name("elsewhere"), b"x" * 32)
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_link, "cannot be read"),
        (Path.mkdir, "is not a file"),
        (lambda path: _file(path, b"x" * 32, 0o644), "can be read by other users"),
        (lambda path: _file(path, b"x" * 31), "is damaged"),
        (lambda path: _file(path, b"x" * 33), "is damaged"),
    ],
    ids=["a link", "a directory", "others can read it", "short", "long"],
)
def test_a_secret_that_cannot_be_trusted_is_refused(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    make(tmp_path / "roost.secret")
    with pytest.raises(StoreError, match=why) as refused:
        read_or_make(tmp_path)
    assert refused.value.reason == "BAD_SECRET"


# -- limits


def limits(seq: int, *rows: tuple[str, int | None]) -> FakeBatch:
    """A batch of one entry about limits."""
    return FakeBatch(seq, seq, roots=[bytes(16)], limit_rows=list(rows))


def test_limits_are_set_replaced_and_reset(open_store: Open, put: Put, store: SqliteStore) -> None:
    assert store.limits() == []
    assert put(limits(1, ("max_depth", 3), ("max_turns_per_tree", 1 << 50))) is Outcome.STORED
    assert put(limits(2, ("max_depth", 0), ("max_waiters", None))) is Outcome.STORED
    assert store.limits() == [("max_depth", 0), ("max_turns_per_tree", 1 << 50)]
    assert put(limits(3, ("max_turns_per_tree", None))) is Outcome.STORED
    store.close()
    assert open_store().limits() == [("max_depth", 0)]


def test_a_limit_that_breaks_a_rule_is_refused_with_the_others(store: SqliteStore, put: Put) -> None:
    for bad in (("max_depth", -1), ("", 1)):
        assert put(limits(1, ("max_waiters", 5), bad)) is Outcome.REFUSED_CONSTRAINT
    assert store.limits() == []
