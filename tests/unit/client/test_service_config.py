"""The service config says of each method what is sound: the API's rules, and what `roost.client` itself repeats."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from roost.client import _aio
from roost.v1 import (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
)

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = Path(session_service_pb2.__file__).with_name("service_config.json")
CONFIG = json.loads(SHIPPED.read_text())
FILES = (
    session_service_pb2,
    turn_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    trajectory_service_pb2,
    admin_service_pb2,
)
METHODS = {
    (service.full_name, method.name): method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
LONGEST_WAIT = 300  # seconds; what the protos say of each `wait`


def entries() -> dict[tuple[str, str], Any]:
    """What holds for each name; of a service under an empty method."""
    named = [((name["service"], name.get("method", "")), one) for one in CONFIG["methodConfig"] for name in one["name"]]
    assert len(named) == len(dict(named)), "a name twice: gRPC refuses the whole config"
    return dict(named)


def config(service: str, method: str) -> Any:
    """As gRPC chooses: the method's own entry, else that of its service."""
    return entries().get((service, method)) or entries()[service, ""]


def test_the_package_ships_the_one_of_the_protos() -> None:
    assert SHIPPED.read_text() == (ROOT / "proto/roost/v1/service_config.json").read_text()


def test_every_name_is_one_of_the_api() -> None:
    services = {service for service, _ in METHODS}
    assert {name for name in entries() if name[1]} <= set(METHODS)
    assert {service for service, method in entries() if not method} == services


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_what_may_be_repeated_is_and_nothing_else(service: str, method: str) -> None:
    """I21: only what says nothing about the request; only calls that the client repeats as well. UNAVAILABLE;
    CANCELLED, which a server says that has too many at its door; RESOURCE_EXHAUSTED, where the server says when to come
    again: with a cap that is full it says not to."""
    unsafe = re.findall(r'call\(\w+ \+ "(\w+)"[^)]*safe=False', inspect.getsource(_aio))
    assert unsafe == ["ReconcileInventory"]
    one = config(service, method)
    if method in unsafe:
        assert "retryPolicy" not in one
        assert not one.get("waitForReady")
    else:
        assert one["waitForReady"]
        assert one["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"]
        assert 2 <= one["retryPolicy"]["maxAttempts"] <= 5


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_no_timeout_ends_a_call_that_may_go_on(service: str, method: str) -> None:
    descriptor = METHODS[service, method]
    timeout = config(service, method).get("timeout")
    seconds = float(timeout.removesuffix("s")) if timeout else None
    if "wait" in descriptor.input_type.fields_by_name:
        assert seconds is not None
        assert seconds >= LONGEST_WAIT + _aio.WAIT_MARGIN
    elif not descriptor.server_streaming and method != "RestoreSessions":
        assert seconds is not None, "waits for ever for a server that is not there"
    if method.startswith("Watch") or "follow" in descriptor.input_type.fields_by_name:
        assert seconds is None
