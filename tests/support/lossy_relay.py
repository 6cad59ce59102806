"""A relay before a server that loses answers: each method is done, and the first answer of it is UNAVAILABLE.

What a client gets from a connection that breaks, or from a proxy, once the server has done its work.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

DEADLINE = 30.0


class LossyRelay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes unary calls on, bytes to bytes. `calls`: how many came, by method."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.calls: Counter[str] = Counter()
        self._channel = channel
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        method: str = details.method

        def call(request: bytes, context: Any) -> bytes:
            with self._lock:
                self.calls[method.rpartition("/")[2]] += 1
                first = self.calls[method.rpartition("/")[2]] == 1
            try:
                answer: bytes = self._channel.unary_unary(method)(request, timeout=DEADLINE)
            except grpc.RpcError as refused:
                context.set_trailing_metadata(refused.trailing_metadata())
                context.abort(refused.code(), refused.details())
            if first:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
            return answer

        return grpc.unary_unary_rpc_method_handler(call)


@contextlib.contextmanager
def lossy_relay(target: str, address: str = "127.0.0.1:0") -> Iterator[tuple[str, LossyRelay]]:
    """Its address, and the relay."""
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(4) as threads:
        relay = LossyRelay(channel)
        server = grpc.server(threads, handlers=[relay])
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield f"127.0.0.1:{port}", relay
        finally:
            server.stop(None).wait()
