"""A scripted gRPC server: answers what a test tells it, remembers what it was asked. For the client's own tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from roost.v1 import (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
)

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


END = object()  # a stream ends here


class Refuse(Exception):
    """Raised by a script: the call fails with this status."""

    def __init__(self, code: grpc.StatusCode, reason: str = "", message: str = "no", retry_ms: int = 0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_ms = code, reason, message, retry_ms


class FakeServer:
    """`script[method]` holds what the next calls of a method do (an exception to raise, a message to answer, an
    event to wait for first); then `default` answers. Of a stream all messages up to an END or an exception are one
    call's. `calls` are (method, request, peer)."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Any]] = defaultdict(deque)
        self.calls: list[tuple[str, Any, str]] = []
        self.arrived: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.cancelled: dict[str, asyncio.Event] = defaultdict(asyncio.Event)  # streams only
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

    async def answers(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        """What the script says until an END or an exception."""
        copy = type(request)()
        copy.CopyFrom(request)
        self.calls.append((method, copy, context.peer()))
        name = method.rsplit("/", 1)[-1]
        self.arrived[name].set()
        steps = self.script[name]
        while steps:
            step = steps.popleft()
            if step is END:
                return
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Refuse):
                trailers = ()
                if step.reason:
                    encoded = details(step.reason, step.code.value[0], step.message, step.retry_ms)
                    trailers = (("grpc-status-details-bin", encoded),)
                await context.abort(step.code, step.message, trailers)
            else:
                yield step

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        """The next step that is an answer."""
        async for step in self.answers(method, request, context):
            return step
        return default(method.rsplit("/", 1)[-1], request)


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
    return message_class(METHODS[name].output_type)()


MODULES = (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
)
METHODS = {
    method.name: method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def message_class(descriptor: Any) -> Any:
    """The class of a request or response."""
    return next(getattr(module, descriptor.name) for module in MODULES if hasattr(module, descriptor.name))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        method = METHODS[details.method.rsplit("/", 1)[-1]]

        async def unary(request: Any, context: Any) -> Any:
            return await self._server.answer(details.method, request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for step in self._server.answers(details.method, request, context):
                    yield step
            except asyncio.CancelledError:
                self._server.cancelled[method.name].set()
                raise

        kind, behaviour = (
            (grpc.unary_stream_rpc_method_handler, stream)
            if method.server_streaming
            else (grpc.unary_unary_rpc_method_handler, unary)
        )
        return kind(
            behaviour,
            request_deserializer=message_class(method.input_type).FromString,
            response_serializer=message_class(method.output_type).SerializeToString,
        )
