"""`roost keys` and the options that say which key to call with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_keys import ADMIN
from roost_server import Server, fresh, roost


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("cli-keys") / "data", ROOST_ADMIN_KEY=ADMIN).start()
    yield made
    made.end()


@pytest.fixture
def admin_file(tmp_path: Path) -> str:
    path = tmp_path / "admin.key"
    path.write_text(ADMIN + "\n")
    return str(path)


def test_create_list_and_revoke(server: Server, admin_file: str, tmp_path: Path) -> None:
    tenant, target = fresh("t"), ("--target", server.address)
    first = roost("--api-key-file", admin_file, "keys", "create", tenant, *target)
    assert first.returncode == 0, first.stderr
    key = first.stdout.strip()
    assert key.startswith("roost_tenant_")
    assert first.stdout == key + "\n"
    assert key not in first.stderr
    named = ("keys", "create", tenant, "--request-id", fresh(), "-o", "json", *target)
    second = json.loads(roost(*named, ROOST_API_KEY=ADMIN).stdout)
    assert second["api_key"]["tenant"] == tenant
    again = json.loads(roost(*named, ROOST_API_KEY=ADMIN).stdout)
    assert (again["key"], again["repeated"]) == (second["key"], True)
    third = roost("keys", "create", tenant, *target, ROOST_API_KEY=ADMIN)
    assert (third.returncode, third.stdout) == (1, "")
    assert "2 active keys of 2" in third.stderr

    (tmp_path / "tenant.key").write_text(key)
    ours = ("--api-key-file", str(tmp_path / "tenant.key"))
    opened = roost(*ours, "sessions", "list", "-o", "json", *target)
    assert (opened.returncode, json.loads(opened.stdout)) == (0, [])
    denied = roost(*ours, "stats", *target)
    assert denied.returncode == 1
    assert "a tenant key may not" in denied.stderr

    listed = roost("keys", "list", "--tenant", tenant, "-o", "json", *target, ROOST_API_KEY_FILE=admin_file)
    found = json.loads(listed.stdout)
    assert [k["key_id"] for k in found] == [key.split("_")[2], second["api_key"]["key_id"]]
    assert key.rpartition("_")[2] not in listed.stdout
    revoked = roost("keys", "revoke", found[0]["key_id"], *target, ROOST_API_KEY=ADMIN)
    assert revoked.returncode == 0
    assert found[0]["key_id"] in revoked.stdout
    refused = roost(*ours, "sessions", "list", *target)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no valid API key" in refused.stderr
    table = roost("keys", "list", "--tenant", tenant, *target, ROOST_API_KEY=ADMIN).stdout.splitlines()
    assert len([line for line in table if tenant in line]) == 2


def test_an_admin_acts_for_a_tenant(server: Server) -> None:
    tenant, session_id = fresh("t"), fresh()
    from roost.client import Client

    with Client(server.address, api_key=ADMIN, tenant=tenant) as client:
        client.open_session(session_id)
    asked = ("sessions", "get", session_id, "-o", "json", "--target", server.address)
    assert roost("--tenant", tenant, *asked, ROOST_API_KEY=ADMIN).returncode == 0
    assert roost(*asked, ROOST_API_KEY=ADMIN, ROOST_TENANT=tenant).returncode == 0
    assert roost(*asked, ROOST_API_KEY=ADMIN).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--api-key-file", "/nothing/there", "stats"), 69, "cannot read the API key file"),
        (("--api-key-file", "/dev/null", "stats"), 69, "is empty"),
        (("keys", "revoke", "xyz"), 1, "32 lower-case hex digits"),
        (("keys", "revoke", "f" * 32), 1, "no API key"),
        (("keys", "create", "no/tenant"), 1, "must be 1 to 64 characters"),
        (("keys", "create"), 2, "TENANT"),
    ],
)
def test_errors_are_one_sentence(server: Server, arguments: tuple[str, ...], code: int, why: str) -> None:
    ended = roost(*arguments, "--target", server.address, ROOST_API_KEY=ADMIN)
    assert ended.returncode == code
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_key_that_is_none_is_not_shown(server: Server) -> None:
    ended = roost("stats", "--target", server.address, ROOST_API_KEY="not a key: hunter2")
    assert ended.returncode == 2
    assert "ROOST_API_KEY is not an API key" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_load_runs_with_a_tenants_key(server: Server) -> None:
    key = json.loads(
        roost("keys", "create", fresh("t"), "-o", "json", "--target", server.address, ROOST_API_KEY=ADMIN).stdout
    )
    ended = roost("load", "--target", server.address, "--clients", "2", "--duration", "1", ROOST_API_KEY=key["key"])
    assert ended.returncode == 0, ended.stderr
