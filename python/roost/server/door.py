"""Makes the grpc.aio server: its bounds, health, reflection and channelz.

The bounds are those that abuse tests of grpcio showed to hold; GRPC's own defaults leave streams, handshakes and
metadata practically unlimited.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async as reflection_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from roost.server.config import Settings
from roost.server.overload import QUEUE
from roost.server.transport import SERVICES

LIVE: Final = "live"
READY: Final = "ready"  # and "", which load balancers ask for
_REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
# Requests up to this many times max_request_bytes are read, to be refused with a reason; longer ones are cut off by
# gRPC itself, with a status that has no details.
_READ_FACTOR: Final = 2


def options(settings: Settings) -> list[tuple[str, int]]:
    """Channel options of the server. Times in ms, sizes in bytes."""
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes * _READ_FACTOR),
        ("grpc.max_send_message_length", -1),  # replies are bounded where they are made
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Equal, because between the soft and the hard limit gRPC refuses at random.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.server_handshake_timeout_ms", settings.handshake_timeout_ms),
        ("grpc.http2.settings_timeout", settings.settings_timeout_ms),
        ("grpc.keepalive_time_ms", settings.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", settings.connection_idle_ms),
        ("grpc.max_connection_age_ms", settings.connection_age_ms),
        ("grpc.max_connection_age_grace_ms", settings.connection_age_grace_ms),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
        ("grpc.server.max_pending_requests", QUEUE[0]),
        ("grpc.server.max_pending_requests_hard_limit", QUEUE[1]),
    ]


class Door:
    """A grpc.aio server with its health service."""

    def __init__(self, settings: Settings, introspection: bool) -> None:
        enabled = [*options(settings), ("grpc.enable_channelz", int(introspection))]
        self.server = grpc.aio.server(options=enabled, maximum_concurrent_rpcs=settings.max_concurrent_rpcs)
        self.health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        if introspection:
            untyped: Any = self.server  # its stub knows the synchronous server only
            channelz.add_channelz_servicer(untyped)
            names = [service.full_name for service in SERVICES]
            self._reflect([*names, health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1])

    def listen(self, target: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen there, in plaintext without credentials; the port. RuntimeError if it cannot be bound."""
        if credentials is None:
            return self.server.add_insecure_port(target)
        return self.server.add_secure_port(target, credentials)

    async def set_health(self, live: bool, ready: bool) -> None:
        """Say whether the process lives and whether it takes calls."""
        status = health_pb2.HealthCheckResponse
        for name, good in ((LIVE, live), (READY, ready), ("", ready)):
            await self.health.set(name, status.SERVING if good else status.NOT_SERVING)

    def _reflect(self, names: list[str]) -> None:
        """Serve reflection as v1alpha, and as v1, whose messages are the same on the wire."""
        servicer: Any = reflection_aio.ReflectionServicer(names)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for name in (reflection.SERVICE_NAME, _REFLECTION_V1):
            one = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            self.server.add_generic_rpc_handlers((one,))
