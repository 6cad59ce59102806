"""SessionService over a real socket: open, get, update, close, each with its refusals."""

from __future__ import annotations

import uuid

import grpc
import pytest
from roost_server import DEADLINE, Api, fresh, refused

from roost.v1 import session_service_pb2, types_pb2


def test_open_get_close(api: Api) -> None:
    opened = api.open("plain", labels={"team": "red"})
    assert opened.created
    session = opened.session
    assert (session.path, session.root_session_id, session.parent_session_id) == ("/root", "plain", "")
    assert uuid.UUID(session.uid).version == 7
    got = api.get("plain")
    assert got.uid == session.uid
    assert dict(got.labels) == {"team": "red"}
    assert (got.state, got.activity) == (types_pb2.SESSION_STATE_OPEN, types_pb2.ACTIVITY_IDLE)
    assert got.last_outcome == types_pb2.TURN_OUTCOME_NONE
    assert got.stale_timeout.seconds == 3600
    closed = api.close("plain")
    assert closed.closed
    assert closed.receipt.reason == types_pb2.CLOSE_REASON_QUIT
    assert api.get("plain").state == types_pb2.SESSION_STATE_CLOSED


def test_i12_closing_again_returns_the_same_receipt(api: Api) -> None:
    name = api.open().session.session_id
    first = api.close(name, reason=types_pb2.CLOSE_REASON_ADMIN)
    assert api.close(name, reason=types_pb2.CLOSE_REASON_QUIT).receipt == first.receipt
    assert first.receipt.close_number == 1


def test_i13_a_closed_id_never_comes_back(api: Api) -> None:
    name = api.open().session.session_id
    api.close(name)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
        api.open(name)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
        api.begin(name, open=types_pb2.OpenOptions())


@pytest.mark.parametrize("reason", ["RELOAD", "FORK", "NEW", "RESUME"])
def test_reasons_of_a_client_that_goes_on_change_nothing(api: Api, reason: str) -> None:
    name = api.open().session.session_id
    answer = api.close(name, reason=types_pb2.CloseReason.Value(f"CLOSE_REASON_{reason}"))
    assert not answer.closed
    assert not answer.HasField("receipt")
    assert api.get(name).state == types_pb2.SESSION_STATE_OPEN


def test_children_have_paths_and_close_with_their_parent(api: Api) -> None:
    root = api.open().session.session_id
    child = api.open(parent_session_id=root, name="scout").session
    grandchild = api.open(parent_session_id=child.session_id, name="eye").session
    assert child.path == "/root/scout"
    assert grandchild.path == "/root/scout/eye"
    assert grandchild.root_session_id == root
    turn = api.begin(grandchild.session_id)
    receipt = api.close(root).receipt
    assert (receipt.children_closed, receipt.slots_released) == (2, 1)
    ended = api.get(grandchild.session_id)
    assert ended.state == types_pb2.SESSION_STATE_CLOSED
    assert ended.receipt.reason == types_pb2.CLOSE_REASON_PARENT_CLOSED
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
        api.commit(grandchild.session_id, turn.grant.lease)


def test_i16_names_are_unique_among_open_siblings(api: Api) -> None:
    root = api.open().session.session_id
    first = api.open(parent_session_id=root, name="scout").session.session_id
    with refused(grpc.StatusCode.ALREADY_EXISTS, "PATH_COLLISION"):
        api.open(parent_session_id=root, name="scout")
    api.close(first)
    assert api.open(parent_session_id=root, name="scout").session.path == "/root/scout"


def test_an_open_id_is_refused_or_returned(api: Api) -> None:
    name = api.open().session.session_id
    with refused(grpc.StatusCode.ALREADY_EXISTS, "SESSION_EXISTS"):
        api.open(name)
    request = session_service_pb2.OpenSessionRequest(session_id=name, if_exists=session_service_pb2.IF_EXISTS_RETURN)
    answer = api.sessions.OpenSession(request, timeout=DEADLINE)
    assert not answer.created
    assert answer.session.session_id == name


def test_i21_a_repeat_of_open_has_one_effect(api: Api) -> None:
    request_id = fresh("r")
    first = api.open("", request_id=request_id, labels={"a": "1"})
    name = first.session.session_id
    again = api.open(name, request_id=request_id, labels={"a": "1"})
    assert again.session.uid == first.session.uid
    assert not again.created
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISMATCH"):
        api.open(name, request_id=request_id, labels={"a": "2"})


def test_an_id_is_derived_from_the_request_id(api: Api) -> None:
    request = session_service_pb2.OpenSessionRequest(request_id=fresh("r"))
    first = api.sessions.OpenSession(request, timeout=DEADLINE)
    again = api.sessions.OpenSession(request, timeout=DEADLINE)
    assert first.session.session_id
    assert (again.session.session_id, again.session.uid) == (first.session.session_id, first.session.uid)
    assert (first.created, again.created) == (True, False)


def test_i22_validate_only_makes_nothing(api: Api) -> None:
    name = fresh()
    request = session_service_pb2.OpenSessionRequest(session_id=name, validate_only=True)
    answer = api.sessions.OpenSession(request, timeout=DEADLINE)
    assert (answer.created, answer.session.uid) == (False, "")
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        api.get(name)


def test_update_sets_and_removes_labels(api: Api) -> None:
    name = api.open(labels={"a": "1", "b": "2"}).session.session_id
    request = session_service_pb2.UpdateSessionRequest(session_id=name, labels={"a": "", "c": "3"})
    request.stale_timeout.FromSeconds(0)
    updated = api.sessions.UpdateSession(request, timeout=DEADLINE).session
    assert dict(updated.labels) == {"b": "2", "c": "3"}
    assert updated.stale_timeout.seconds == 0
    assert dict(api.get(name).labels) == {"b": "2", "c": "3"}
    sign_of_life = session_service_pb2.UpdateSessionRequest(session_id=name)
    assert api.sessions.UpdateSession(sign_of_life, timeout=DEADLINE).session == api.get(name)
    api.close(name)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
        api.sessions.UpdateSession(request, timeout=DEADLINE)
