"""One session from its opening to its close, with a refusal on the way: see ../README.md.

By the plain stubs, as a program in any language does it; `roost.client` is what Python programs rather use.
"""

from __future__ import annotations

import os
import sys
import uuid
from importlib.resources import files

import grpc
from google.rpc import error_details_pb2, status_pb2

from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types
from roost.v1.session_service_pb2_grpc import SessionServiceStub
from roost.v1.turn_service_pb2_grpc import TurnServiceStub


def main(target: str) -> int:
    key = os.environ.get("ROOST_API_KEY")
    metadata = [("authorization", f"Bearer {key}")] if key else []
    options = [
        # Deadlines, waiting for a server that starts again, and repeats; not what DNS may say instead.
        ("grpc.service_config", files("roost.v1").joinpath("service_config.json").read_text()),
        ("grpc.service_config_disable_resolution", 1),
    ]
    with grpc.insecure_channel(target, options) as channel:
        try:
            run(SessionServiceStub(channel), TurnServiceStub(channel), metadata)
        except grpc.RpcError as refused:
            explain(refused)
            return 1
    return 0


def run(session_stub: SessionServiceStub, turn_stub: TurnServiceStub, metadata: list[tuple[str, str]]) -> None:
    # Every mutation bears a request_id: with it a repeat, by gRPC or by us, has one effect.
    opened = session_stub.OpenSession(sessions.OpenSessionRequest(request_id=fresh()), metadata=metadata)
    session_id = opened.session.session_id
    print(f"opened {session_id}")

    begin = turns.BeginTurnRequest(session_id=session_id, request_id=fresh(), owner="example")
    grant = turn_stub.BeginTurn(begin, metadata=metadata).grant
    print(f"began turn {grant.turn}, attempt {grant.attempt}")

    # A second session, made by its first turn. Where the cap is full it is refused, and nothing was made.
    second_id = f"{session_id}.second"
    begin = turns.BeginTurnRequest(session_id=second_id, request_id=fresh(), owner="example", open=types.OpenOptions())
    try:
        second = turn_stub.BeginTurn(begin, metadata=metadata)
    except grpc.RpcError as refused:
        explain(refused)
    else:
        print("the server has room for a second turn")
        commit = turns.CommitTurnRequest(
            session_id=second_id, request_id=fresh(), lease=second.grant.lease, then=turns.THEN_CLOSE
        )
        turn_stub.CommitTurn(commit, metadata=metadata)

    commit = turns.CommitTurnRequest(
        session_id=session_id,
        request_id=fresh(),
        lease=grant.lease,
        record=types.RecordInput(content=b"hello", content_type="text/plain"),
    )
    committed = turn_stub.CommitTurn(commit, metadata=metadata)
    print(f"committed turn {committed.turn}, head version {committed.head_version}")

    close = sessions.CloseSessionRequest(session_id=session_id, request_id=fresh(), reason=types.CLOSE_REASON_QUIT)
    closed = session_stub.CloseSession(close, metadata=metadata)
    print(f"closed after turn {closed.receipt.turn_count}")


def explain(refused: grpc.RpcError) -> None:
    """Print what a refusal says. Programs branch on the reason, never on the text."""
    print(f"refused: {refused.code().name}: {refused.details()}")
    trailers = dict(refused.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
        info, retry, quota = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.QuotaFailure(),
        )
        if detail.Unpack(info):
            print(f"  reason: {info.reason}")
            for name, value in sorted(info.metadata.items()):
                print(f"  {name}: {value}")
        elif detail.Unpack(retry):
            print(f"  retry after: {retry.retry_delay.ToMilliseconds()} ms")
        elif detail.Unpack(quota):
            for violation in quota.violations:
                print(f"  quota: {violation.subject}: {violation.description}")


def fresh() -> str:
    return str(uuid.uuid4())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: client ADDRESS")
    sys.exit(main(sys.argv[1]))
