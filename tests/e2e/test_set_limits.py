"""SetLimits: limits that change while the server runs, over restarts, and on the command line."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed, opened
from conftest import Start
from roost_server import DEADLINE, Api, Server, fresh, refused, roost, until
from test_limits import begin_waiting

from roost._core import LIMIT_CHANGES, LIMITS
from roost.v1 import admin_service_pb2, types_pb2

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def change(api: Api, *reset: str, **limits: int) -> dict[str, tuple[int, str]]:
    """SetLimits; value and source of all limits."""
    request = admin_service_pb2.SetLimitsRequest(limits=limits, reset=reset)
    told = api.admin.SetLimits(request, timeout=DEADLINE).limits
    return {limit.name: (limit.value, limit.source) for limit in told}


def in_force(api: Api) -> dict[str, tuple[int, str]]:
    return {limit.name: (limit.value, limit.source) for limit in api.stats().limits}


def test_what_is_set_is_kept_over_restarts_until_it_is_reset(start: Start) -> None:
    server = start("--max-turns-per-tree", "4", ROOST_MAX_DEPTH="3")
    with server.api() as api:
        told = change(api, max_turns_per_tree=2, max_turns_per_tenant=1)
        assert told == in_force(api)
        assert [name for name, (_, source) in told.items() if source == "set"] == [
            "max_turns_per_tree",
            "max_turns_per_tenant",
        ]
        assert told["max_depth"] == (3, "environment")
        assert list(told) == [name for name, *_ in LIMITS]
    server.kill()
    server.start()
    with server.api() as api:
        assert in_force(api) == told
        root = api.open().session.session_id
        lease = api.begin(root).grant.lease
        with refused(EXHAUSTED, "TENANT_TURNS") as why:
            api.begin(api.open().session.session_id)
        assert why.metadata["limit"] == "1"
        api.commit(root, lease)
        told = change(api, "max_turns_per_tree", "max_depth", max_turns_per_tenant=5)
        # A limit that was not set is as the configuration says anyhow.
        assert told["max_turns_per_tree"] == (4, "flag")
        assert told["max_turns_per_tenant"] == (5, "set")
        assert told["max_depth"] == (3, "environment")
    assert server.terminate() == 0
    server.start()
    with server.api() as api:
        assert in_force(api) == told


def test_i2_a_lowered_cap_ends_nothing_and_a_raised_one_wakes_who_waits(start: Start) -> None:
    with start().api() as api:
        names = [api.open().session.session_id for _ in range(4)]
        leases = [api.begin(name).grant.lease for name in names[:2]]
        change(api, max_turns_per_tenant=0)
        assert [api.get(name).activity for name in names[:2]] == [types_pb2.ACTIVITY_RUNNING] * 2
        waits = [begin_waiting(api, name) for name in names[2:]]
        api.commit(names[0], leases[0])
        with refused(EXHAUSTED, "TENANT_TURNS"):
            api.begin(names[0])
        assert not any(wait.done() for wait in waits)
        change(api, max_turns_per_tenant=2)
        api.commit(names[2], waits[0].result(DEADLINE).grant.lease)
        api.commit(names[3], waits[1].result(DEADLINE).grant.lease)
        api.commit(names[1], leases[1])


@pytest.mark.parametrize(
    ("limits", "reset", "said"),
    [
        ({"max_depth": 1, "max_turns": 1}, [], "limits: there is no limit called"),
        ({"max_depth": 1}, ["max_turns"], "reset: there is no limit called"),
        ({"max_depth": 1, "max_waiters": -1}, [], "max_waiters must be between 0 and 1000000, not -1"),
        ({"max_depth": 65}, [], "max_depth must be between 0 and 64, not 65"),
        ({"max_depth": 1}, ["max_depth"], "reset: max_depth is given a value as well"),
        ({"max_depth": 1, "release_timeout_ms": 5_000}, [], "cannot be changed while the server runs"),
        ({"max_depth": 1, "max_resident_sessions": 50_001}, [], "at most 50000 while the server runs, not 50001"),
        ({"max_depth": 1, "max_turn_bytes": (4 << 20) + 1}, [], "the configuration allows no more"),
        ({}, [], "name a limit to set or to reset"),
    ],
)
def test_i22_what_is_wrong_changes_nothing(api: Api, limits: dict[str, int], reset: list[str], said: str) -> None:
    before = in_force(api)
    with refused(INVALID, "INVALID_FIELD") as why:
        change(api, *reset, **limits)
    assert said in why.message
    assert in_force(api) == before


def test_every_limit_can_be_set_that_may_be(start: Start) -> None:
    """And the table says which; nothing of the server ends for it."""
    with start().api() as api:
        before = in_force(api)
        for name, default, least, greatest in LIMITS:
            if LIMIT_CHANGES[name] == "fixed":
                with refused(INVALID, "INVALID_FIELD"):
                    change(api, **{name: default})
                continue
            assert change(api, **{name: least})[name] == (least, "set")
            most = {"laid out": default, "free": greatest}[LIMIT_CHANGES[name]]
            most = min(most, 4 << 20) if name == "max_turn_bytes" else most
            assert change(api, **{name: most})[name] == (most, "set")
            change(api, name)
        assert in_force(api) == before
        name = api.open().session.session_id
        api.turn(name)


def test_a_limit_of_another_configuration_is_left_aside(start: Start) -> None:
    server = start()
    with server.api() as api:
        change(api, max_turn_bytes=4 << 20)
    assert server.terminate() == 0
    server.flags = ("--set", "max_request_bytes=2MiB")
    server.start()
    with server.api() as api:
        assert in_force(api)["max_turn_bytes"] == (1 << 20, "default")
    assert server.terminate() == 0
    assert '"limit_left_aside"' in server.logged
    assert '"max_turn_bytes"' in server.logged


def test_purges_without_dump_begin_and_end_with_the_limit(start: Start) -> None:
    """What was kept for want of a dump goes once it may."""
    with start("--set", "retention_ms=0").api() as api:
        name = api.open().session.session_id
        api.turn(name)
        api.close(name)
        until(lambda: not api.get(name).cleanup.HasField("due_time"))
        assert not api.get(name).cleanup.HasField("purged_time")
        change(api, purge_without_dump=1)
        until(lambda: api.get(name).cleanup.HasField("purged_time"))
        change(api, "purge_without_dump")
        later = api.open().session.session_id
        api.turn(later)
        api.close(later)
        until(lambda: not api.get(later).cleanup.HasField("due_time"))
        assert not api.get(later).cleanup.HasField("purged_time")


def test_only_the_admin_key_may(start: Start) -> None:
    server = start(ROOST_ADMIN_KEY=ADMIN)
    tenant_key = create(server, fresh("t")).key
    with keyed(server, tenant_key) as api:
        session_key = opened(api, fresh())
    for key in (tenant_key, session_key):
        with keyed(server, key) as api, refused(grpc.StatusCode.PERMISSION_DENIED, "KEY_SCOPE"):
            change(api, max_depth=1)
    with keyed(server, ADMIN) as api:
        assert in_force(api)["max_depth"] == (8, "default")
        assert change(api, max_depth=1)["max_depth"] == (1, "set")


# -- the command line


def limits(server: Server, *arguments: str) -> Any:
    done = roost("limits", *arguments, "--target", server.address, "-o", "json")
    assert done.returncode == 0, done.stderr
    return {limit["name"]: (limit["value"], limit["source"]) for limit in json.loads(done.stdout)}


def test_roost_limits(start: Start) -> None:
    server = start()
    listed = limits(server, "list")
    assert listed["max_wait_ms"] == (300_000, "default")
    assert list(listed) == [name for name, *_ in LIMITS]
    named = ("max_wait_ms=60s", "max_message_bytes=64KiB", "purge_without_dump=true", "max_depth=2")
    expected = {"max_wait_ms": 60_000, "max_message_bytes": 65_536, "purge_without_dump": 1, "max_depth": 2}
    assert limits(server, "set", *named) == {name: (value, "set") for name, value in expected.items()}
    table = roost("limits", "list", "--target", server.address)
    assert [line.split() for line in table.stdout.splitlines() if "max_depth" in line] == [["max_depth", "2", "set"]]
    assert limits(server, "reset", *expected) == {name: listed[name] for name in expected}
    assert limits(server, "list") == listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["max_depth"], "'max_depth' is not NAME=VALUE"),
        (["max_depth=1", "max_depth=2"], "max_depth is given twice"),
        (["max_depth=two"], "max_depth = 'two': must be a whole number"),
        (["max_depth=1KiB"], "max_depth = '1KiB': must be a whole number"),
    ],
)
def test_roost_limits_set_is_told_what_is_wrong(arguments: list[str], said: str) -> None:
    done = roost("limits", "set", *arguments, "--target", "127.0.0.1:1")
    assert done.returncode == 2
    assert said in done.stderr


def test_roost_limits_says_what_the_server_refused(shared: Server) -> None:
    done = roost("limits", "set", "max_dept=1", "--target", shared.address)
    assert done.returncode == 1
    assert 'there is no limit called "max_dept"' in done.stderr
