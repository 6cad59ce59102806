"""The admin port: `/metrics`, `/healthz` and `/readyz` over plain HTTP, for who watches the server and for nobody else.

h11 reads HTTP, the event loop serves it, and a thread renders metrics, once for all who wait for them and with a rest
after each time. So a client that says too much, too little, nothing, or the same again and again costs a bounded piece
of memory and of a core, and holds up no call. Answers are counts and words of ours: no id and no content (I25).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Final

import h11
import structlog

from roost.server import address
from roost.server.metrics import wants_openmetrics

CONNECTIONS: Final = 64  # at once; one more takes the place of the one in which nothing has happened for longest
HEAD_BYTES: Final = 8_192  # a request's line and headers
HEAD_SECONDS: Final = 5.0  # for them to arrive in, from their first byte or the connection's begin
IDLE_SECONDS: Final = 120.0  # between two requests: longer than between two scrapes
WRITE_SECONDS: Final = 10.0  # for an answer to be taken in
_LINGER_SECONDS: Final = 1.0  # what still comes after the last answer is read for so long, or the answer may be lost
_READ: Final = 4_096
_REST: Final = 4  # times as long as metrics took it is rested: they use a fifth of a core at most
_BACKLOG: Final = 64
_TEXT: Final = "text/plain; charset=utf-8"

# A state that the server is in, and whether calls are taken in it.
STARTING, READY, DRAINING, FAILING = "starting", "ready", "draining", "failing"

# Renders the metrics, on a thread, in one of their two formats, OpenMetrics or the older text: (content type, text).
Page = tuple[str, bytes]
Render = Callable[[bool], Page]

log = structlog.get_logger("roost.admin")


class AdminPort:
    """Serves the admin port. `state` is one of the states above, and is told by whoever knows."""

    def __init__(self, where: address.Address, render: Render) -> None:
        self.state = STARTING
        self._where = where
        self._render = render
        self._thread = ThreadPoolExecutor(1, "roost-metrics")
        self._turn = asyncio.Lock()
        self._rested = 0.0  # when the next rendering may begin
        self._next: dict[bool, asyncio.Task[Page]] = {}  # renderings that have not begun, by format
        self._server: asyncio.Server | None = None
        self._active: dict[asyncio.Task[None], float] = {}  # the connections, and when something last happened in each

    @property
    def ready(self) -> bool:
        """Whether the server takes calls."""
        return self.state == READY

    async def start(self) -> str:
        """Listen; where. AddressError if that cannot be."""
        try:
            if self._where.path:
                self._server = await asyncio.start_unix_server(
                    self._connected, self._where.path, limit=_READ, backlog=_BACKLOG
                )
            else:
                self._server = await asyncio.start_server(
                    self._connected, self._where.host, self._where.port, limit=_READ, backlog=_BACKLOG
                )
        except OSError as error:
            raise address.unusable(self._where.target, error) from error
        address.bound(self._where)
        return self._where.named(0 if self._where.path else self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more, and end the connections; a rendering that is under way ends first."""
        if self._server is None:
            return
        self._server.close()
        tasks = [*self._active, *self._next.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown()
        address.released(self._where)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its begin to its end."""
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._active) >= CONNECTIONS:
                oldest = min(self._active, key=self._active.__getitem__)
                del self._active[oldest]
                oldest.cancel()
            self._active[task] = time.monotonic()
            writer.transport.set_write_buffer_limits(high=0)  # `drain` waits until all is sent
            await self._serve(reader, writer, task)
            await self._linger(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError, h11.LocalProtocolError):
            pass  # it is gone, too slow, or in the way
        except Exception:
            log.exception("admin_failed")
        finally:
            self._active.pop(task, None)
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        seconds = HEAD_SECONDS
        while True:
            try:
                request = await self._request(http, reader, seconds)
            except h11.RemoteProtocolError as error:
                if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    answer = error.error_status_hint, _TEXT, b"this is not a request that is taken here\n"
                    await self._answer(http, writer, None, *answer)
                return
            if request is None:
                return
            self._active[task] = time.monotonic()
            await self._answer(http, writer, request, *await self._reply(http, request))
            self._active[task] = time.monotonic()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()
            seconds = HEAD_SECONDS if http.trailing_data[0] else IDLE_SECONDS  # it may have begun

    async def _linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        async with asyncio.timeout(_LINGER_SECONDS):
            while await reader.read(_READ):
                pass

    async def _request(self, http: h11.Connection, reader: asyncio.StreamReader, seconds: float) -> h11.Request | None:
        """The next request; None at the connection's end. `seconds`: that its first byte may take."""
        async with asyncio.timeout(seconds) as limit:
            while (event := http.next_event()) is h11.NEED_DATA:
                data = await reader.read(_READ)
                if data and seconds != HEAD_SECONDS:
                    seconds = HEAD_SECONDS
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                http.receive_data(data)
        return event if isinstance(event, h11.Request) else None

    async def _reply(self, http: h11.Connection, request: h11.Request) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if not isinstance(http.next_event(), h11.EndOfMessage):
            return 413, _TEXT, b"a request has no body here\n"
        path = request.target.partition(b"?")[0]
        if path not in (b"/metrics", b"/healthz", b"/readyz"):
            return 404, _TEXT, b"there are /metrics, /healthz and /readyz\n"
        if request.method not in (b"GET", b"HEAD"):
            return 405, _TEXT, b"only GET and HEAD\n"
        if path == b"/healthz":
            # That this is said shows that the loop turns.
            return (503 if self.state == FAILING else 200), _TEXT, b"failing\n" if self.state == FAILING else b"ok\n"
        if path == b"/readyz":
            return (200 if self.ready else 503), _TEXT, f"{self.state}\n".encode()
        accept = ",".join(value.decode("latin-1") for name, value in request.headers if name == b"accept")
        try:
            return 200, *await self._page(wants_openmetrics(accept))
        except Exception:
            log.exception("scrape_failed")
            return 500, _TEXT, b"the metrics cannot be told; see the log\n"

    async def _page(self, openmetrics: bool) -> Page:
        """The metrics as they are from now on. Whoever asks before their rendering has begun shares it."""
        page = self._next.get(openmetrics)
        if page is None:
            page = self._next[openmetrics] = asyncio.create_task(self._rendered(openmetrics))
        return await asyncio.shield(page)

    async def _rendered(self, openmetrics: bool) -> Page:
        try:
            async with self._turn:
                await asyncio.sleep(max(0.0, self._rested - time.monotonic()))
                del self._next[openmetrics]
                began = time.monotonic()
                try:
                    return await asyncio.get_running_loop().run_in_executor(self._thread, self._render, openmetrics)
                finally:
                    ended = time.monotonic()
                    self._rested = ended + _REST * (ended - began)
        except asyncio.CancelledError:
            self._next.pop(openmetrics, None)
            raise

    async def _answer(
        self,
        http: h11.Connection,
        writer: asyncio.StreamWriter,
        request: h11.Request | None,
        status: int,
        kind: str,
        body: bytes,
    ) -> None:
        headers = [
            ("content-type", kind),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
        ]
        if status == 405:
            headers.append(("allow", "GET, HEAD"))
        if request is None or status == 413:
            headers.append(("connection", "close"))
        parts = [http.send(h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=headers))]
        if request is None or request.method != b"HEAD":
            parts.append(http.send(h11.Data(data=body)))
        parts.append(http.send(h11.EndOfMessage()))
        async with asyncio.timeout(WRITE_SECONDS):
            writer.write(b"".join(filter(None, parts)))
            await writer.drain()
