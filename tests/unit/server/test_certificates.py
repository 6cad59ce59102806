"""The certificates in force: looked after without connections, read whole, and warned of once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from structlog.testing import capture_logs

from roost.server import tls
from roost.server.tls import Certificates, Files, Material, TlsError


def pair(authority: Authority, name: str, **more: Any) -> tuple[Path, Path]:
    return authority.issue("localhost", file=name, **more)


def files(cert: Path, key: Path) -> Files:
    return Files(str(cert), str(key), "")


async def test_they_are_looked_at_though_nobody_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_LOOK_SECONDS", 0.001)
    authority = Authority(tmp_path)
    cert, key = pair(authority, "server")
    certificates = Certificates(files(cert, key))
    _, other = pair(authority, "other")
    with capture_logs() as logged:
        looking = asyncio.create_task(certificates.run())
        other.replace(key)
        while not logged:
            await asyncio.sleep(0)
        assert [(line["event"], line["log_level"]) for line in logged] == [("certificate_refused", "warning")]
        pair(authority, "server")
        while logged[-1]["event"] == "certificate_refused":
            await asyncio.sleep(0)
        looking.cancel()
    assert logged[-1]["event"] == "certificate_reloaded"
    assert certificates.look().cert == cert.read_bytes()


def test_one_that_runs_out_meanwhile_is_warned_of_once(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority(tmp_path)
    certificates = Certificates(files(*pair(authority, "server", days=1)), lambda: now)
    with capture_logs() as logged:
        certificates.look()
        assert not logged
        now += timedelta(days=2)
        certificates.look()
        certificates.look()
        assert [line["event"] for line in logged] == ["certificate_expired"]
        pair(authority, "server", days=1)
        certificates.look()
    assert [line["event"] for line in logged[1:]] == ["certificate_reloaded", "certificate_expired"]


def test_one_that_is_not_valid_yet_is_warned_of(tmp_path: Path) -> None:
    early = datetime.now(UTC) - timedelta(days=100)
    with capture_logs() as logged:
        Certificates(files(*pair(Authority(tmp_path), "server")), lambda: early)
    assert [line["event"] for line in logged] == ["certificate_not_yet_valid"]


def test_half_of_the_old_and_half_of_the_new_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are turned to new ones between the reading of the one and of the other."""
    authority = Authority(tmp_path)
    cert, key = pair(authority, "server")
    certificates = Certificates(files(cert, key))
    real, times = tls.read, 0

    def read(of: Files) -> Material:
        nonlocal times
        times += 1
        if times == 1:
            pair(authority, "server")
            raise TlsError("they do not match")
        return real(of)

    monkeypatch.setattr(tls, "read", read)
    pair(authority, "server")
    with capture_logs() as logged:
        assert certificates.look().cert == cert.read_bytes()
    assert [line["event"] for line in logged] == ["certificate_reloaded"]
    assert times == 2


def test_what_stays_wrong_is_said_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = pair(authority, "server")
    certificates = Certificates(files(cert, key))
    before = certificates.look()
    key.unlink()
    with capture_logs() as logged:
        for _ in range(3):
            assert certificates.look() is before
    assert len(logged) == 1
    assert "PRIVATE KEY" not in repr(before)
