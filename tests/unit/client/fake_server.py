"""A scripted gRPC server: answers what a test tells it, remembers what it was asked. For the client's own tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from roost.v1 import admin_service_pb2, session_service_pb2, trajectory_service_pb2, turn_service_pb2

TURN = "/roost.v1.TurnService/"
SESSION = "/roost.v1.SessionService/"


def details(reason: str, code: int, message: str = "no", retry_ms: int = 0, **metadata: str) -> bytes:
    """The bytes of grpc-status-details-bin, as the server writes them."""
    parts: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="roost", metadata=metadata)]
    if retry_ms:
        delay = duration_pb2.Duration(nanos=retry_ms * 1_000_000)
        parts.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code, message=message)
    for part in parts:
        packed = any_pb2.Any()
        packed.Pack(part)
        status.details.append(packed)
    return status.SerializeToString()


class Refuse(Exception):
    """Raised by a script: the call fails with this status."""

    def __init__(self, code: grpc.StatusCode, reason: str = "", message: str = "no", retry_ms: int = 0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_ms = code, reason, message, retry_ms


class FakeServer:
    """`script[method]` holds what the next calls of a method do (an exception to raise, a message to answer, an
    event to wait for first); then `default` answers. `calls` are (method, request, peer)."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Any]] = defaultdict(deque)
        self.calls: list[tuple[str, Any, str]] = []
        self.arrived: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.target = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> FakeServer:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Handler(self),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.target = f"127.0.0.1:{port}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def requests(self, name: str) -> list[Any]:
        return [request for method, request, _ in self.calls if method.endswith("/" + name)]

    def peers(self, name: str) -> set[str]:
        return {peer for method, _, peer in self.calls if method.endswith("/" + name)}

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        self.calls.append((method, request, context.peer()))
        name = method.rsplit("/", 1)[-1]
        self.arrived[name].set()
        steps = self.script[name]
        while steps:
            step = steps.popleft()
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            if isinstance(step, Refuse):
                trailers = ()
                if step.reason:
                    encoded = details(step.reason, step.code.value[0], step.message, step.retry_ms)
                    trailers = (("grpc-status-details-bin", encoded),)
                await context.abort(step.code, step.message, trailers)
            return step
        return default(name, request)


def default(name: str, request: Any) -> Any:
    """What a healthy server would say, near enough."""
    if name == "BeginTurn":
        lease = request.lease_duration or duration_pb2.Duration(seconds=60)
        grant = turn_service_pb2.Grant(
            lease=f"lease-{request.session_id}".encode(), turn=1, attempt=1, fence=7, lease_duration=lease
        )
        if not request.HasField("lease_duration"):
            grant.lease_duration.seconds = 60
        return turn_service_pb2.BeginTurnResponse(grant=grant, uid="u", created=True)
    if name == "RenewTurns":
        return turn_service_pb2.RenewTurnsResponse(results=[turn_service_pb2.RenewalResult() for _ in request.renewals])
    return RESPONSES[name]()


RESPONSES: dict[str, Any] = {
    "BeginTurn": turn_service_pb2.BeginTurnResponse,
    "RenewTurns": turn_service_pb2.RenewTurnsResponse,
    "CommitTurn": turn_service_pb2.CommitTurnResponse,
    "AbortTurn": turn_service_pb2.AbortTurnResponse,
    "OpenSession": session_service_pb2.OpenSessionResponse,
    "GetSession": session_service_pb2.GetSessionResponse,
    "ListSessions": session_service_pb2.ListSessionsResponse,
    "CloseSession": session_service_pb2.CloseSessionResponse,
    "GetStats": admin_service_pb2.GetStatsResponse,
    "ExportTrajectories": trajectory_service_pb2.ExportTrajectoriesResponse,
}
REQUESTS: dict[str, Any] = {
    "BeginTurn": turn_service_pb2.BeginTurnRequest,
    "RenewTurns": turn_service_pb2.RenewTurnsRequest,
    "CommitTurn": turn_service_pb2.CommitTurnRequest,
    "AbortTurn": turn_service_pb2.AbortTurnRequest,
    "OpenSession": session_service_pb2.OpenSessionRequest,
    "GetSession": session_service_pb2.GetSessionRequest,
    "ListSessions": session_service_pb2.ListSessionsRequest,
    "CloseSession": session_service_pb2.CloseSessionRequest,
    "GetStats": admin_service_pb2.GetStatsRequest,
    "ExportTrajectories": trajectory_service_pb2.ExportTrajectoriesRequest,
}


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        name = details.method.rsplit("/", 1)[-1]

        async def unary(request: Any, context: Any) -> Any:
            return await self._server.answer(details.method, request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary,
            request_deserializer=REQUESTS[name].FromString,
            response_serializer=RESPONSES[name].SerializeToString,
        )
