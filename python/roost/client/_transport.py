"""Two gRPC connections to one server, deadlines on every call, repeats where they are safe.

Calls that may wait for a slot go over a connection of their own: a server lets only half of a connection's streams
wait, and a queue of waiting calls must never stand before a commit or a renewal.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from roost.errors import from_rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from roost.client._retry import RetryPolicy

Response = TypeVar("Response", bound=Message)
Option = tuple[str, Any]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # answers of pages and exports; requests are bounded by the server (4 MiB)

DEFAULT_OPTIONS: tuple[Option, ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 80 s; not below a minute, servers answer faster pings with GOAWAY.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # grpc's own reconnect pause grows to two minutes: far longer than a restart of the server takes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Retries are ours (they know what is safe); grpc's transparent ones must not multiply them.
    ("grpc.enable_retries", 0),
    # Channels of one process share connections by default; ours must be two.
    ("grpc.use_local_subchannel_pool", 1),
)


class Transport:
    """The connections of one client. Made outside a loop, connected by the first call inside one."""

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        options: Sequence[Option],
        metadata: Sequence[tuple[str, str | bytes]],
        retry: RetryPolicy,
    ) -> None:
        self.target = target
        self.retry = retry
        self.retries = 0
        self._credentials = credentials
        self._options = [*DEFAULT_OPTIONS, *options]
        self._metadata = tuple(metadata) or None
        self._channels: dict[bool, grpc.aio.Channel] = {}
        self._methods: dict[tuple[str, bool], Any] = {}
        self._closed = False

    def _channel(self, waiting: bool) -> grpc.aio.Channel:
        channel = self._channels.get(waiting)
        if channel is None:
            if self._closed:
                raise RuntimeError("the Roost client is closed")
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(self.target, options=self._options)
            else:
                channel = grpc.aio.secure_channel(self.target, self._credentials, options=self._options)
            self._channels[waiting] = channel
        return channel

    async def call(
        self,
        method: str,
        request: Message,
        response: type[Response],
        *,
        timeout: float,
        safe: bool,
        waiting: bool = False,
    ) -> Response:
        """One unary call. `timeout` (seconds) bounds it with all its repeats; without `safe` there are none."""
        invoke = self._methods.get((method, waiting))
        if invoke is None:
            invoke = self._channel(waiting).unary_unary(
                method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
            )
            self._methods[method, waiting] = invoke
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        attempt = 0
        remaining = timeout
        while True:
            limit = remaining if waiting else min(remaining, self.retry.attempt_timeout)
            try:
                return cast("Response", await invoke(request, timeout=limit, metadata=self._metadata))
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, method)
            remaining = deadline - clock()
            delay = self.retry.delay(failed, attempt, remaining) if safe else None
            if delay is None:
                if attempt:
                    failed.add_note(f"after {attempt + 1} attempts within {timeout:g} s")
                raise failed
            attempt += 1
            self.retries += 1
            await asyncio.sleep(delay)
            remaining = deadline - clock()

    async def stream(
        self, method: str, request: Message, response: type[Response], *, timeout: float
    ) -> AsyncIterator[Response]:
        """One server-streaming read. Repeated only until its first message came: after that the caller knows better
        from where to go on."""
        invoke = self._channel(False).unary_stream(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        attempt = 0
        while True:
            started = False
            call = invoke(request, timeout=max(deadline - clock(), 0.001), metadata=self._metadata)
            try:
                async for message in call:
                    started = True
                    yield cast("Response", message)
                return
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, method)
            finally:
                call.cancel()  # no effect on one that ended; frees the server's work when the reader leaves early
            delay = None if started else self.retry.delay(failed, attempt, deadline - clock())
            if delay is None:
                raise failed
            attempt += 1
            self.retries += 1
            await asyncio.sleep(delay)

    async def close(self) -> None:
        """Close both connections; calls in flight are cancelled."""
        self._closed = True
        channels, self._channels = list(self._channels.values()), {}
        self._methods.clear()
        for channel in channels:
            await channel.close(None)
