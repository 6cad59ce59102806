"""The waits between tries at a release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.drivers.backoff import Backoff


def test_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(initial=1, multiplier=2, maximum=10, jitter=0.5)
    assert [backoff.delay(n, lambda: 0.0) for n in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.delay(2, lambda: 0.5) == 3.0
    assert backoff.delay(10**6, lambda: 0.0) == 10  # no overflow


@given(
    st.floats(0.001, 10),
    st.floats(1, 10),
    st.floats(10, 1000),
    st.floats(0, 0.99),
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_lies_between_its_jitter_and_the_cap(
    initial: float, multiplier: float, maximum: float, jitter: float, repeat: int, drawn: float
) -> None:
    backoff = Backoff(initial, multiplier, maximum, jitter)
    full, wait = backoff.delay(repeat, lambda: 0.0), backoff.delay(repeat, lambda: drawn)
    assert full * (1 - jitter) <= wait <= full <= maximum
    assert backoff.delay(repeat + 1, lambda: 0.0) >= full


@pytest.mark.parametrize(
    "wrong", [{"initial": 0}, {"initial": 9, "maximum": 8}, {"multiplier": 0.5}, {"jitter": 1.0}, {"jitter": -0.1}]
)
def test_a_backoff_that_would_not_wait_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Backoff(**wrong)
