"""Bad input on every RPC: its own clear error, exactly one ErrorInfo, and nothing changed (I22)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from conftest import Start
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.v1 import (
    admin_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MODULES = (session_service_pb2, turn_service_pb2, trajectory_service_pb2, resource_service_pb2, admin_service_pb2)
METHODS: list[MethodDescriptor] = [
    method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
BAD_TEXT = b"\x0a\x02\xff\xfe"  # field 1 as text that is not UTF-8, or as a message that is none
BAD_IDS = ("", "a" * 257, "white space", "slash/id", "nul\0", "ünï", "new\nline", "../x", "%2e")


def call(api: Api, method: MethodDescriptor, data: bytes) -> Any:
    """Send raw bytes to a method; the reply, or all of them."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        return list(api.channel.unary_stream(path)(data, timeout=DEADLINE))
    return api.channel.unary_unary(path)(data, timeout=DEADLINE)


def counters(api: Api) -> dict[str, int]:
    """What must not move when a call is refused."""
    stats = api.stats()
    kept = {name: value for name, value in stats.counters.items() if name.startswith(("turns_", "sessions_", "entr"))}
    return kept | {name: stats.gauges[name] for name in ("slots_held", "waiting", "journal_entries")}


@pytest.fixture
def unchanged(api: Api) -> Any:
    """Checks after a test that nothing was begun, ended, opened, closed or stored during it."""
    before = counters(api)
    yield
    assert counters(api) == before


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", BAD_TEXT, b"\x07" * 64], ids=range(4))
@pytest.mark.usefixtures("unchanged")
def test_malformed_bytes(api: Api, method: MethodDescriptor, data: bytes) -> None:
    first = method.input_type.fields_by_number.get(1)
    if data == BAD_TEXT and (first is None or (first.message_type is None and first.type != first.TYPE_STRING)):
        pytest.skip("field 1 is no text here: these bytes are an unknown field, which may hold anything")
    with refused(INVALID, "MALFORMED_REQUEST"):
        call(api, method, data)


def has_session_id(method: MethodDescriptor) -> bool:
    return "session_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", list(filter(has_session_id, METHODS)), ids=lambda method: method.name)
@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.usefixtures("unchanged")
def test_ids_that_break_the_rules(api: Api, method: MethodDescriptor, bad: str) -> None:
    if method.name == "ListResources" and not bad:
        pytest.skip("without an id it lists those of every session")
    request = GetMessageClass(method.input_type)(session_id=bad)
    with refused(INVALID, "INVALID_FIELD") as why:
        call(api, method, request.SerializeToString())
    assert why.metadata["field"] == "session_id"
    assert bad not in why.message or len(bad) < 2  # I25: what a caller sends is not echoed unchecked


@pytest.mark.parametrize("method", list(filter(has_session_id, METHODS)), ids=lambda method: method.name)
@pytest.mark.usefixtures("unchanged")
def test_unknown_sessions(api: Api, method: MethodDescriptor) -> None:
    request = GetMessageClass(method.input_type)(session_id=fresh("unknown"))
    if method.name == "OpenSession":
        request.options.parent_session_id = fresh("unknown")
        with refused(grpc.StatusCode.NOT_FOUND, "PARENT_NOT_FOUND"):
            call(api, method, request.SerializeToString())
        return
    if "lease" in method.input_type.fields_by_name:
        request.lease = bytes(40)
    if method.name == "AttachResource":
        request.kind, request.owner = resource_service_pb2.RESOURCE_KIND_CLIENT, "host"
    if method.name == "DetachResource":
        request.name = "roost-1"
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND") as why:
        call(api, method, request.SerializeToString())
    assert why.metadata["session_id"] == request.session_id


@pytest.mark.usefixtures("unchanged")
def test_unknown_methods_and_services(api: Api) -> None:
    for path in ("/roost.v1.TurnService/StealTurn", "/roost.v1.NoService/Nothing"):
        with pytest.raises(grpc.RpcError) as error:
            api.channel.unary_unary(path)(b"", timeout=DEADLINE)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_turn_on_a_closed_session(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    api.close(name)
    before = counters(api)
    for attempt in (
        lambda: api.begin(name),
        lambda: api.commit(name, lease, b"late"),
        lambda: api.abort(name, lease, b"late"),
        lambda: api.open(parent_session_id=name),
    ):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
            attempt()
    renewals = [turn_service_pb2.Renewal(session_id=name, lease=lease)]
    answer = api.turns.RenewTurns(turn_service_pb2.RenewTurnsRequest(renewals=renewals), timeout=DEADLINE)
    assert answer.results[0].refusal.reason == "SESSION_CLOSED"
    assert counters(api) == before
    assert api.history(name) == []


FIELDS: dict[str, tuple[str, Callable[[Api, str, bytes], Any]]] = {
    "negative wait": ("wait", lambda api, name, _: api.begin(name, wait=-1)),
    "lease too short": ("lease_duration", lambda api, name, _: api.begin(name, lease=1)),
    "lease too long": ("lease_duration", lambda api, name, _: api.begin(name, lease=3601)),
    "negative lease": ("lease_duration", lambda api, name, _: api.begin(name, lease=-5)),
    "priority too high": ("priority", lambda api, name, _: api.begin(name, priority=1001)),
    "priority too low": ("priority", lambda api, name, _: api.begin(name, priority=-(2**31))),
    "request_id with spaces": ("request_id", lambda api, name, _: api.begin(name, request_id="a b")),
    "request_id too long": ("request_id", lambda api, name, _: api.begin(name, request_id="r" * 129)),
    "token ids not of 4 bytes": (
        "record.tokens.token_ids",
        lambda api, name, lease: api.commit(
            name, lease, record=types_pb2.RecordInput(tokens=types_pb2.TokenSpan(token_ids=b"abc"))
        ),
    ),
    "logprobs of another length": (
        "record.tokens.logprobs",
        lambda api, name, lease: api.commit(
            name, lease, record=types_pb2.RecordInput(tokens=types_pb2.TokenSpan(token_ids=b"abcd", logprobs=b"1"))
        ),
    ),
    "loss mask of another length": (
        "record.tokens.loss_mask",
        lambda api, name, lease: api.commit(
            name, lease, record=types_pb2.RecordInput(tokens=types_pb2.TokenSpan(token_ids=b"abcd", loss_mask=b"12"))
        ),
    ),
    "weight versions that do not sum up": (
        "record.tokens.weight_versions",
        lambda api, name, lease: api.commit(
            name,
            lease,
            record=types_pb2.RecordInput(
                tokens=types_pb2.TokenSpan(
                    token_ids=b"abcd", weight_versions=[types_pb2.WeightVersionRun(version=1, count=2)]
                )
            ),
        ),
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_break_their_rules(api: Api, case: str) -> None:
    field, attempt = FIELDS[case]
    running, idle = api.open().session.session_id, api.open().session.session_id
    lease = api.begin(running).grant.lease
    before = counters(api)
    with refused(INVALID, "INVALID_FIELD") as why:
        attempt(api, running if field.startswith("record") else idle, lease)
    assert why.metadata["field"].startswith(field.rpartition(".")[0] or field), why
    assert counters(api) == before
    assert api.commit(running, lease).turn == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("options.name", {"parent_session_id": "PARENT", "name": "Upper"}),
        ("options.name", {"parent_session_id": "PARENT", "name": "root"}),
        ("options.name", {"parent_session_id": "PARENT", "name": "a/b"}),
        ("options.name", {"parent_session_id": "PARENT", "name": "n" * 64}),
        ("options.name", {"name": "of-a-root"}),
        ("options.parent_session_id", {"parent_session_id": "bad id"}),
        ("options.labels", {"labels": {f"k{i}": "v" for i in range(65)}}),
        ("options.labels", {"labels": {"k" * 64: "v"}}),
        ("options.labels", {"labels": {"k": "v" * 257}}),
    ],
)
def test_open_options_that_break_their_rules(api: Api, field: str, fields: dict[str, Any]) -> None:
    if fields.get("parent_session_id") == "PARENT":
        fields = {**fields, "parent_session_id": api.open().session.session_id}
    name, before = fresh(), counters(api)
    with refused(INVALID, "INVALID_FIELD") as why:
        api.open(name, **fields)
    assert why.metadata["field"].startswith(field), why
    assert counters(api) == before
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        api.get(name)


@pytest.mark.parametrize("reason", [types_pb2.CLOSE_REASON_PARENT_CLOSED, types_pb2.CLOSE_REASON_STALE, 99])
def test_close_reasons_that_no_caller_may_give(api: Api, reason: int) -> None:
    name = api.open().session.session_id
    with refused(INVALID, "INVALID_FIELD"):
        api.close(name, reason=reason)
    assert api.get(name).state == types_pb2.SESSION_STATE_OPEN


def test_too_many_renewals(api: Api) -> None:
    one = turn_service_pb2.Renewal(session_id="x", lease=bytes(40))
    with refused(INVALID, "INVALID_FIELD"):
        api.turns.RenewTurns(turn_service_pb2.RenewTurnsRequest(renewals=[one] * 1001), timeout=DEADLINE)


def test_a_turn_over_the_size_limit_leaves_its_lease_alive(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    with refused(INVALID, "TOO_LARGE") as why:
        api.commit(name, lease, bytes((1 << 20) + 1))
    assert {str((1 << 20) + 1), str(1 << 20)} <= set(why.metadata.values())
    with refused(INVALID, "TOO_LARGE"):
        api.commit(name, lease, state=bytes(65_537))
    assert api.commit(name, lease, bytes(1 << 20)).turn == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.usefixtures("unchanged")
def test_a_message_over_the_size_limit(api: Api, method: MethodDescriptor) -> None:
    """Unknown fields may fill a message of any kind."""
    size = (4 << 20) + 1
    data = b"\xfa\x7f" + _varint(size - 6) + bytes(size - 6)
    with refused(INVALID, "TOO_LARGE") as why:
        call(api, method, data)
    assert why.metadata["limit"] == str(4 << 20)
    with pytest.raises(grpc.RpcError) as error:  # gRPC's own limit: not even read
        call(api, method, bytes((8 << 20) + 1))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _varint(value: int) -> bytes:
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def test_metadata_over_its_limit(api: Api) -> None:
    request = admin_service_pb2.GetStatsRequest()
    with pytest.raises(grpc.RpcError) as error:
        api.admin.GetStats(request, metadata=[("x-big", "x" * 9000)], timeout=DEADLINE)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    api.admin.GetStats(request, metadata=[("x-big", "x" * 7000)], timeout=DEADLINE)


def test_a_deadline_already_past_changes_nothing(api: Api) -> None:
    name, new = api.open().session.session_id, fresh()
    before = counters(api)
    for attempt in (
        lambda: api.turns.BeginTurn(turn_service_pb2.BeginTurnRequest(session_id=name), timeout=-1),
        lambda: api.sessions.OpenSession(session_service_pb2.OpenSessionRequest(session_id=new), timeout=-1),
    ):
        with pytest.raises(grpc.RpcError) as error:
            attempt()
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert counters(api) == before
    api.commit(name, api.begin(name).grant.lease)


def test_i25_what_callers_send_is_not_logged(start: Start) -> None:
    server, canary = start("--log-level", "debug"), "canary-7f3a"
    with server.api() as api:
        name = api.open(labels={"k": canary}).session.session_id
        lease = api.begin(name, owner="host-1").grant.lease
        attachment = types_pb2.Attachment(name="a", uri=f"s3://{canary}")
        record = record_input(canary.encode(), labels={"k": canary}, attachments=[attachment], finish_reason=canary)
        api.commit(name, lease, record=record, state=canary.encode())
        api.abort(name, api.begin(name).grant.lease, canary.encode(), final=True)
        with refused(INVALID, "INVALID_FIELD"):
            api.open(f"{canary} with spaces")
        for method in METHODS:
            with pytest.raises(grpc.RpcError):
                call(api, method, b"\xff" + canary.encode())
        assert api.history(name)[0].record.content == canary.encode()
    assert server.terminate() == 0
    assert canary not in server.logged
    assert lease.hex() not in server.logged
    assert '"owner": "host-1"' in server.logged  # turns are logged, by the names that hosts give themselves
