"""TurnService over a real socket: grants, leases, commits, aborts, waiting and cancelling."""

from __future__ import annotations

import grpc
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.v1 import turn_service_pb2, types_pb2

COMMITTED = types_pb2.RECORD_STATUS_COMMITTED
PROVISIONAL = types_pb2.RECORD_STATUS_PROVISIONAL


def test_i4_i7_turns_are_numbered_and_the_checkpoint_grows(api: Api) -> None:
    name = fresh()
    begun = api.begin(name, open=types_pb2.OpenOptions())
    assert begun.created
    assert (begun.grant.turn, begun.grant.attempt, begun.grant.head_version) == (1, 1, 0)
    assert api.get(name).activity == types_pb2.ACTIVITY_RUNNING
    first = api.commit(name, begun.grant.lease, record=record_input(b"one", tokens=3), state=b"st")
    assert (first.turn, first.head_version) == (1, 1)
    second = api.begin(name).grant
    assert (second.turn, second.checkpoint.length, second.checkpoint.state) == (2, 3, b"st")
    assert second.checkpoint.token_ids == b"".join(i.to_bytes(4, "little") for i in range(3))
    assert second.fence > begun.grant.fence
    api.commit(name, second.lease, record=record_input(b"two", tokens=2, offset=3))
    session = api.get(name)
    assert (session.turn_count, session.head_version, session.checkpoint_tokens) == (2, 2, 5)
    assert session.last_outcome == types_pb2.TURN_OUTCOME_COMMITTED
    assert [(r.turn, r.status, r.record.content) for r in api.history(name)] == [
        (1, COMMITTED, b"one"),
        (2, COMMITTED, b"two"),
    ]


def test_i3_one_turn_at_a_time(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_IN_PROGRESS"):
        api.begin(name)
    api.commit(name, lease)
    api.commit(name, api.begin(name).grant.lease)


def test_i8_an_abort_leaves_one_provisional(api: Api) -> None:
    name = api.open().session.session_id
    answer = api.abort(name, api.begin(name).grant.lease, b"half")
    assert (answer.turn, answer.attempt, answer.status) == (1, 1, PROVISIONAL)
    again = api.begin(name).grant
    assert (again.turn, again.attempt) == (1, 2)
    assert api.get(name).provisional_turn == 1
    api.abort(name, again.lease, b"more")
    assert [r.status for r in api.history(name)] == [types_pb2.RECORD_STATUS_SUPERSEDED, PROVISIONAL]
    api.turn(name, b"whole")
    records = api.history(name)
    assert [r.status for r in records] == [types_pb2.RECORD_STATUS_SUPERSEDED] * 2 + [COMMITTED]
    assert [r.record.content for r in api.history(name, statuses=[COMMITTED])] == [b"whole"]
    assert api.get(name).provisional_turn == 0


def test_commit_and_abort_are_idempotent_by_lease(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    first = api.commit(name, lease, b"x")
    again = api.commit(name, lease, b"x")
    assert (again.turn, again.head_version, again.repeated) == (first.turn, first.head_version, True)
    lease = api.begin(name).grant.lease
    api.abort(name, lease, b"y")
    assert api.abort(name, lease, b"y").repeated
    assert len(api.history(name)) == 2


def test_i22_foreign_old_and_forged_leases_write_nothing(api: Api) -> None:
    one, other = api.open().session.session_id, api.open().session.session_id
    old = api.begin(one).grant.lease
    api.abort(one, old, b"")
    lease = api.begin(one).grant.lease
    foreign = api.begin(other).grant.lease
    forged = lease[:-1] + bytes([lease[-1] ^ 1])
    for bad in (foreign, forged):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST"):
            api.commit(one, bad, b"stolen")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST"):
            api.abort(one, bad, b"stolen")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST"):
        api.commit(one, old, b"late")
    for malformed in (b"", b"short", lease + b"\0"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "LEASE_MALFORMED"):
            api.commit(one, malformed)
    assert api.get(one).activity == types_pb2.ACTIVITY_RUNNING
    assert api.get(one).turn_count == 0
    assert api.commit(one, lease, b"mine").turn == 1
    assert [r.record.content for r in api.history(one, statuses=[COMMITTED])] == [b"mine"]


def test_wrong_expectations_are_refused_with_both_numbers(api: Api) -> None:
    name = api.open().session.session_id
    api.turn(name)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_MISMATCH") as why:
        api.begin(name, expected_turn=7)
    assert {"7", "2"} <= set(why.metadata.values())
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_MISMATCH") as why:
        api.begin(name, expected_head_version=5)
    assert {"5", "1"} <= set(why.metadata.values())
    api.commit(name, api.begin(name, expected_turn=2, expected_head_version=1).grant.lease)


def test_i21_a_repeated_begin_returns_the_same_lease_and_then_turn_ended(api: Api) -> None:
    name = api.open().session.session_id
    request_id = fresh("r")
    first = api.begin(name, request_id=request_id).grant
    assert api.begin(name, request_id=request_id).grant.lease == first.lease
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISMATCH"):
        api.begin(name, request_id=request_id, owner="another")
    api.commit(name, first.lease)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "TURN_ENDED"):
        api.begin(name, request_id=request_id)


def test_known_head_version_shortens_the_checkpoint(api: Api) -> None:
    name = api.open().session.session_id
    api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=4))
    api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=2, offset=4))
    grant = api.begin(name, known_head_version=1).grant
    assert (grant.checkpoint.offset, grant.checkpoint.length) == (4, 6)
    assert len(grant.checkpoint.token_ids) == 8


def test_token_spans_must_continue_the_checkpoint(api: Api) -> None:
    name = api.open().session.session_id
    api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=4))
    lease = api.begin(name).grant.lease
    for offset in (5, 2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_PREFIX_MISMATCH"):
            api.commit(name, lease, record=record_input(tokens=1, offset=offset))
    api.commit(name, lease, record=record_input(tokens=1, offset=2), max_trim=2)
    assert api.get(name).checkpoint_tokens == 3


def test_then_continue_keeps_the_slot_and_then_close_ends_the_session(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    answer = api.commit(name, lease, b"1", then=turn_service_pb2.THEN_CONTINUE)
    assert (answer.next.turn, answer.HasField("next_refused")) == (2, False)
    assert api.get(name).activity == types_pb2.ACTIVITY_RUNNING
    final = api.commit(name, answer.next.lease, b"2", then=turn_service_pb2.THEN_CLOSE, completed=True)
    assert final.receipt.turn_count == 2
    session = api.get(name)
    assert session.state == types_pb2.SESSION_STATE_CLOSED
    assert session.last_outcome == types_pb2.TURN_OUTCOME_COMPLETED


def test_renewals_are_answered_one_by_one(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name, lease=3600).grant.lease
    request = turn_service_pb2.RenewTurnsRequest(
        renewals=[
            turn_service_pb2.Renewal(session_id=name, lease=lease, tokens=5),
            turn_service_pb2.Renewal(session_id=fresh("unknown"), lease=lease),
            turn_service_pb2.Renewal(session_id=name, lease=lease[:-1] + bytes([lease[-1] ^ 1])),
        ]
    )
    results = api.turns.RenewTurns(request, timeout=DEADLINE).results
    assert [r.refusal.reason for r in results] == ["", "SESSION_NOT_FOUND", "LEASE_LOST"]
    assert results[0].expire_time.seconds > 0


def test_validate_only_takes_nothing(api: Api) -> None:
    name = fresh()
    answer = api.begin(name, open=types_pb2.OpenOptions(), validate_only=True)
    assert (answer.grant.turn, answer.grant.lease) == (1, b"")
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        api.get(name)
