"""Traces, where the environment asks for them (OTEL_*) and roost[otel] is installed: a span for each call, below the
one that the caller names by W3C trace context, and below it one for each read of the store that the call waited for and
one for each dump that its close led to.

Made by the OpenTelemetry API itself. Its instrumentation of grpc.aio would write peers' addresses and the messages of
refusals, which name sessions, into spans: whoever runs the collector would learn ids. Here a span has the attributes
that the conventions have for RPCs (system, service, method, status code) and nothing else of the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

import structlog

from roost._core import VERSION
from roost.handlers.measures import Context, Spans, Stream, Unary
from roost.server.calls import code_of
from roost.v1 import session_service_pb2, turn_service_pb2

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

# Calls whose answer may tell of a close, and what they answer with; such an answer is short.
_CLOSING: Final[dict[str, Any]] = {
    "/roost.v1.SessionService/CloseSession": session_service_pb2.CloseSessionResponse,
    "/roost.v1.TurnService/CommitTurn": turn_service_pb2.CommitTurnResponse,
    "/roost.v1.TurnService/BeginTurn": turn_service_pb2.BeginTurnResponse,
}
_SHORT: Final = 1_024
_REMEMBERED: Final = 4_096  # closes whose dumps are still to come
_READS: Final = 65_536  # reads not yet written down
# Codes of servers at fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})
_STOP_SECONDS: Final = 5.0  # for the last spans to leave
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}

log = structlog.get_logger("roost.traces")

_current: ContextVar[Span | None] = ContextVar("roost_span", default=None)


def asked_for(environment: Mapping[str, str]) -> list[str]:
    """The exporters of traces that the environment asks for; none: no traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    given = environment.get("OTEL_TRACES_EXPORTER", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names and any(environment.get(name) for name in _ENDPOINTS):
        names = ["otlp"]
    return [name for name in names if name != "none"]


def start(environment: Mapping[str, str]) -> Traces | None:
    """Traces as the environment has them. What is wrong with it is a warning in the log: its variables are others' too,
    and no reason not to serve."""
    names = asked_for(environment)
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces_off", reason="OTEL_* variables ask for traces, and roost[otel] is not installed")
        return None
    resource = Resource.create({"service.version": VERSION})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "roost"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in names:
        try:
            exporter = _exporter(name, environment)
        except Exception as error:  # noqa: BLE001 - others' code, which knows its own exceptions
            # Its text is about its configuration, and may have a header with a secret in it.
            log.warning("traces_off", exporter=name, reason=f"the exporter cannot be made: {type(error).__name__}")
            return None
        if exporter is None:
            log.warning("traces_off", exporter=name, reason="no exporter of this name or protocol is installed")
            return None
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider)


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    """The exporter of a name as OTEL_TRACES_EXPORTER has it, made; None if there is none."""
    if name == "otlp":
        chosen = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = _PROTOCOLS.get((chosen or "grpc").strip(), "")
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()()
    return None


class Traces(Spans):
    """Makes the spans. Wraps the handlers of calls as `Calls` does; all but `read` runs on the event loop."""

    on = True

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("roost", VERSION)
        self._remote = TraceContextTextMapPropagator()
        self._waiting: dict[int, Span] = {}  # by ticket
        self._read: deque[tuple[int, str, int, int]] = deque(maxlen=_READS)
        self._closes: OrderedDict[str, SpanContext] = OrderedDict()  # by the name of the dump

    # -- calls

    def unary(self, path: str, handler: Unary) -> Unary:
        """The handler, with a span around each call."""
        closing = _CLOSING.get(path)

        async def handle(request: bytes, context: Context) -> bytes:
            span = self._begin(path, context)
            code = 0
            try:
                reply = await handler(request, context)
                if closing is not None and len(reply) <= _SHORT and span.is_recording():
                    self._remember(closing.FromString(reply).receipt.dump_name, span)
                return reply
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                self._end(span, code)

        return handle

    def stream(self, path: str, handler: Stream) -> Stream:
        """As `unary`, for a call that answers with a stream."""

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes]:
            span = self._begin(path, context)
            code = 0
            try:
                async with aclosing(handler(request, context)) as replies:
                    async for reply in replies:
                        yield reply
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                self._end(span, code)

        return handle

    def _begin(self, path: str, context: Context) -> Span:
        """A span for a call. Each runs in a task of its own, whose context variables end with it."""
        given = dict(context.invocation_metadata() or ())
        carrier = {name: str(given[name]) for name in ("traceparent", "tracestate") if name in given}
        service, _, method = path.lstrip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=self._remote.extract(carrier, self._nothing()),
            kind=self._api.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        _current.set(span)
        return span

    def _end(self, span: Span, code: int) -> None:
        span.set_attribute("rpc.grpc.status_code", code)
        if code in _FAULTS:
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    def _nothing(self) -> Any:
        return self._api.set_span_in_context(self._api.INVALID_SPAN)

    # -- what calls wait for

    def waits(self, ticket: int) -> None:
        """See Spans."""
        span = _current.get()
        if span is not None and span.is_recording():
            self._waiting[ticket] = span

    def left(self, ticket: int) -> None:
        """See Spans."""
        self._waiting.pop(ticket, None)

    def read(self, ticket: int | None, kind: str, began_ns: int, ended_ns: int) -> None:
        """See Spans. Only noted: by now the call may not have come to wait."""
        if ticket is not None:
            self._read.append((ticket, kind, began_ns, ended_ns))

    def settle(self) -> None:
        """See Spans."""
        with suppress(IndexError):
            while True:
                ticket, kind, began_ns, ended_ns = self._read.popleft()
                span = self._waiting.get(ticket)
                if span is not None:
                    self._child(f"reload {kind}", self._api.set_span_in_context(span), began_ns, ended_ns, True)

    # -- what calls lead to

    def _remember(self, name: str, span: Span) -> None:
        """A close that this span is of has sealed a session that will be dumped under this name."""
        if name:
            self._closes[name] = span.get_span_context()
            while len(self._closes) > _REMEMBERED:
                self._closes.popitem(last=False)

    def dump(self, names: Sequence[str], began_ns: int, ended_ns: int, done: bool) -> None:
        """See Spans. A dump whose close nobody traced is a trace of its own."""
        for name in names:
            close = self._closes.get(name)
            if close is not None:
                parent = self._api.set_span_in_context(self._api.NonRecordingSpan(close))
                break
        else:
            parent = self._nothing()
        self._child("dump", parent, began_ns, ended_ns, done)

    def _child(self, name: str, parent: Any, began_ns: int, ended_ns: int, done: bool) -> None:
        span = self._tracer.start_span(name, context=parent, start_time=began_ns)
        if not done:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(ended_ns)

    # -- the end

    async def stop(self) -> None:
        """Send what there is, for a while. A collector that does not answer holds up nobody."""
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()

        def over() -> None:
            if not sent.done():
                sent.set_result(None)

        def end() -> None:
            with suppress(Exception):
                self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: it was given up
                loop.call_soon_threadsafe(over)

        threading.Thread(target=end, name="roost-traces", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await sent
