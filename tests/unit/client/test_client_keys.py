"""The client's API key: where it comes from, that it is sent, and that nothing shows it (I25)."""

from __future__ import annotations

import logging

import pytest

from roost.client import AsyncClient, Client
from roost.client._keys import metadata

KEY = "roost_tenant_" + "0" * 32 + "_" + "5ec2e7" * 10 + "abcd"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOST_API_KEY", raising=False)


def test_a_key_is_sent_as_a_bearer() -> None:
    assert metadata("unix:/s", KEY, "", False) == [("authorization", f"Bearer {KEY}")]
    assert metadata("unix:/s", f" {KEY}\n", "acme", False)[1] == ("x-roost-tenant", "acme")
    assert metadata("unix:/s", None, "", False) == []


def test_the_environments_key_is_the_default_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_API_KEY", KEY)
    assert metadata("unix:/s", None, "", False) == [("authorization", f"Bearer {KEY}")]
    assert metadata("unix:/s", "", "", False) == []
    assert metadata("unix:/s", "roost_admin_1", "", False) == [("authorization", "Bearer roost_admin_1")]


@pytest.mark.parametrize("bad", ["two words", "line\nbreak", "ümlaut", "Bearer roost_x"])
def test_i25_what_is_no_key_is_refused_and_not_shown(bad: str) -> None:
    with pytest.raises(ValueError, match="is not an API key") as refused:
        metadata("unix:/s", bad, "", False)
    assert bad not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "encrypted", "warned"),
    [
        ("unix:/run/roost.sock", False, False),
        ("127.0.0.1:7117", False, False),
        ("[::1]:7117", False, False),
        ("localhost:7117", False, False),
        ("roost.example:7117", True, False),
        ("roost.example:7117", False, True),
        ("10.0.0.1:7117", False, True),
    ],
)
def test_a_key_that_leaves_the_machine_in_plaintext_is_warned_of(
    target: str, encrypted: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "roost.client"):
        metadata(target, KEY, "", encrypted)
    assert ("in plaintext" in caplog.text) is warned
    assert KEY not in caplog.text


def test_i25_a_client_does_not_show_its_key() -> None:
    client = AsyncClient("unix:/s", api_key=KEY)
    assert KEY not in repr(client) + repr(client._transport)
    with Client("unix:/s", api_key=KEY) as blocking:
        assert KEY not in repr(blocking)
