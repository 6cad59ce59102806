"""A collector of traces for tests: takes OTLP over gRPC and keeps the spans."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass
class Span:
    """What a span says."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    error: bool
    began: int
    ended: int
    attributes: dict[str, Any]
    raw: bytes = field(repr=False)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a free port of this machine until `stop`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.everything = b""
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the name in the protocol
        """One batch of spans."""
        with self._changed:
            self.everything += request.SerializeToString()
            for resource in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
                for scope in resource.scope_spans:
                    self.spans += [_span(span) for span in scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, count: int) -> list[Span]:
        """The spans, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.spans) >= count, 30), [span.name for span in self.spans]
            return list(self.spans)

    def stop(self) -> None:
        """Listen no more."""
        self._server.stop(None).wait()


def _span(span: Any) -> Span:
    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.code == 2,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        values,
        span.SerializeToString(),
    )
