"""What a client takes for TLS: arguments, the environment, and files that are of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
from authority import Authority

from roost.client import Client, Tls
from roost.client._tls import chosen


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "_CA", "_CERT", "_KEY", "_SERVER_NAME"):
        monkeypatch.delenv(f"ROOST_TLS{name}", raising=False)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(None) is None
    assert chosen(True) == Tls()
    monkeypatch.setenv("ROOST_TLS_CA", "/ca.pem")
    assert chosen(None) == Tls(ca="/ca.pem")
    assert chosen(False) is None
    assert chosen(Tls(server_name="a")) == Tls(server_name="a")
    monkeypatch.setenv("ROOST_TLS", "no")
    assert chosen(None) is None
    monkeypatch.setenv("ROOST_TLS", "1")
    monkeypatch.setenv("ROOST_TLS_SERVER_NAME", "b")
    assert chosen(None) == Tls(ca="/ca.pem", server_name="b")
    monkeypatch.setenv("ROOST_TLS", "perhaps")
    with pytest.raises(ValueError, match="neither true nor false"):
        chosen(None)


def test_files_of_no_use_are_said_when_the_client_is_made(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("agent", file="agent", client=True)
    _, other = authority.issue("agent", file="other", client=True)
    for tls, says in (
        (Tls(cert=str(cert)), "go together"),
        (Tls(cert=str(cert), key=str(other)), "not a pair"),
        (Tls(ca=str(key)), "holds no certificate"),
    ):
        with pytest.raises(ValueError, match=says):
            Client("localhost:1", tls=tls)
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=Tls(ca=str(tmp_path / "nothing")))


def test_tls_and_credentials_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="not both"):
        Client("localhost:1", tls=True, credentials=Tls().credentials())


def test_a_key_is_not_warned_of_with_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    with Client("roost.example:1", tls=Tls(ca=str(authority.ca)), api_key="roost_tenant_a_b"):
        assert "plaintext" not in caplog.text
    with Client("roost.example:1", tls=False, api_key="roost_tenant_a_b"):
        assert "plaintext" in caplog.text
