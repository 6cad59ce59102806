"""The names of outside resources: made and read by whole field, never by substring (I20)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roost.drivers import Marker
from roost.drivers.marker import MAX_LENGTH, check_prefix

prefixes = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
store_ids = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
markers = st.builds(
    Marker,
    prefix=prefixes,
    store_id=store_ids,
    epoch=st.integers(0, 999_999),
    uid=st.binary(min_size=16, max_size=16),
    n=st.integers(1, 99_999),
)
OURS = Marker("roost", "deadbeef", 7, bytes(range(16)), 3)


def test_a_name_is_what_the_design_says() -> None:
    assert str(OURS) == "roost-deadbeef-7-000102030405060708090a0b0c0d0e0f-3"


@given(markers)
@example(Marker("p-q-r-s8", "00000000", 0, bytes(16), 1))
def test_what_is_made_is_read_back_and_keeps_the_rules(marker: Marker) -> None:
    name = str(marker)
    assert Marker.parse(name) == marker
    assert re.fullmatch(r"[a-z0-9-]{1,63}", name)


@given(st.one_of(st.text(), st.text("roost-0123456789abcdef", max_size=70), markers.map(str)), st.data())
def test_a_name_is_read_only_if_it_is_made(text: str, data: st.DataObject) -> None:
    """One name a Marker: whatever is read is made again, character for character."""
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.sampled_from(["", "0", "-", "a", "\n", "٣", "A", "_"])) + text[at:]
    found = Marker.parse(text)
    assert found is None or str(found) == text


@given(markers, markers)
def test_two_markers_never_share_a_name(one: Marker, other: Marker) -> None:
    assert (str(one) == str(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "roost",
        f"9{OURS}",
        f"-{OURS}",
        f"bak-{OURS}",  # a prefix longer than any
        f"{OURS}x",
        f"{OURS}-1",
        f"{OURS}\n",
        f" {OURS}",
        str(OURS).upper(),
        str(OURS).replace("-7-", "-07-"),
        str(OURS).replace("-7-", "-+7-"),
        str(OURS).replace("-7-", "-٧-"),
        str(OURS).replace("-3", "-03"),
        str(OURS).replace("-3", "-0"),
        str(OURS).replace("deadbeef", "deadbee"),
        str(OURS).replace("deadbeef", "deadbeeg"),
        str(OURS).replace("000102", "0001"),
        f"roost-deadbeef-{'9' * 15}-{'0' * 32}-1",  # 64 characters
    ],
)
def test_what_is_not_a_name_is_not_read(name: str) -> None:
    assert name != str(OURS)
    assert Marker.parse(name) is None


@pytest.mark.parametrize("prefix", ["", "-a", "a-", "9a", "Roost", "a_b", "a.b", "a b", "é", "a" * 9, "a\n"])
def test_a_prefix_that_makes_no_name_is_refused_in_one_sentence(prefix: str) -> None:
    with pytest.raises(ValueError, match="must have 1 to 8 characters"):
        check_prefix(prefix)
    with pytest.raises(ValueError):
        Marker(prefix, "deadbeef", 1, bytes(16), 1)


def test_fields_that_make_no_name_are_refused() -> None:
    longest = Marker("roost", "deadbeef", 10**12, bytes(16), 1)
    assert len(str(longest)) == MAX_LENGTH
    for prefix, store_id, epoch, uid, n in [
        ("roost", "deadbeef", 10**13, bytes(16), 1),
        ("roost", "DEADBEEF", 1, bytes(16), 1),
        ("roost", "dead", 1, bytes(16), 1),
        ("roost", "deadbeef", -1, bytes(16), 1),
        ("roost", "deadbeef", 1, bytes(15), 1),
        ("roost", "deadbeef", 1, bytes(16), 0),
    ]:
        with pytest.raises(ValueError):
            Marker(prefix, store_id, epoch, uid, n)
