"""The pool of sessions and the payloads of a load run."""

from __future__ import annotations

import pytest

from roost.load.sessions import LoadSession, Payload, Pool


def test_a_session_is_never_handed_out_twice() -> None:
    pool = Pool([LoadSession(str(n)) for n in range(100)], seed=1)
    taken = [pool.take() for _ in range(100)]
    assert len({session.session_id for session in taken}) == 100
    assert not pool
    with pytest.raises(IndexError, match="idle"):
        pool.take()
    pool.give(taken[0])
    assert pool.take() is taken[0]


def test_payloads_have_their_size_and_come_from_the_seed() -> None:
    one, two = Payload(5), Payload(5)
    sizes = (0, 1, 1000, 1 << 20)
    assert [one.take(n) for n in sizes] == [two.take(n) for n in sizes]
    assert len(Payload(6).take(1234)) == 1234
    with pytest.raises(ValueError, match="at most"):
        one.take(1 << 23)
