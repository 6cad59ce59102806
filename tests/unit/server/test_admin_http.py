"""The admin port: what it answers, and that a client that is slow, greedy or hostile is in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from roost.server import address, admin_http
from roost.server.admin_http import CONNECTIONS, DRAINING, FAILING, READY, STARTING, AdminPort

PAGE = ("text/plain; version=0.0.4; charset=utf-8", b"roost_x 1\n")
Render = Callable[[bool], tuple[str, bytes]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[AdminPort]]]:
    """Start admin ports on addresses that are free; `at` says where the last one is."""
    made: list[AdminPort] = []

    async def start(render: Render = lambda _: PAGE, listen: str = "127.0.0.1:0") -> AdminPort:
        port = AdminPort(address.parse(listen, True, "admin_listen"), render)
        made.append(port)
        port.at = await port.start()  # type: ignore[attr-defined]
        port.state = READY
        return port

    yield start
    for port in made:
        await port.stop()


async def connect(port: Any) -> Streams:
    if port.at.startswith("unix:"):
        return await asyncio.open_unix_connection(port.at.removeprefix("unix:"))
    host, _, number = port.at.rpartition(":")
    return await asyncio.open_connection(host, int(number))


@asynccontextmanager
async def connected(port: Any) -> AsyncIterator[Streams]:
    reader, writer = await connect(port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(reader: asyncio.StreamReader, head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    raw = await reader.readuntil(b"\r\n\r\n")
    status, *lines = raw.decode().split("\r\n")[:-2]
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b"" if head else await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, body


async def ask(port: Any, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    async with connected(port) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        return await answer(reader, method == "HEAD")


async def sent(port: Any, data: bytes) -> bytes:
    """All that comes back when this is sent, until the server ends the connection."""
    async with connected(port) as (reader, writer):
        writer.write(data)
        return await reader.read()


@pytest.mark.parametrize(
    ("state", "health", "ready"), [(STARTING, 200, 503), (READY, 200, 200), (DRAINING, 200, 503), (FAILING, 503, 503)]
)
async def test_probes_tell_the_state(serve: Any, state: str, health: int, ready: int) -> None:
    port = await serve()
    port.state = state
    assert (await ask(port, "/healthz"))[0] == health
    assert (await ask(port, "/readyz"))[0::2] == (ready, f"{state}\n".encode())
    assert port.ready == (ready == 200)


async def test_metrics_come_as_the_accept_header_wants_them(serve: Any) -> None:
    asked: list[bool] = []

    def render(openmetrics: bool) -> tuple[str, bytes]:
        asked.append(openmetrics)
        return PAGE

    port = await serve(render)
    status, headers, body = await ask(port, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert (status, headers["content-type"], body) == (200, *PAGE)
    assert await ask(port, "/metrics?name=x") == (status, headers, body)
    status, headers, _ = await ask(port, "/metrics", "HEAD")
    assert (status, headers["content-length"]) == (200, str(len(PAGE[1])))
    assert asked == [True, False, False]


async def test_nothing_else_is_served(serve: Any) -> None:
    port = await serve()
    for path in ("/", "/metrics/", "/../etc/passwd", "/healthz%00", "*", "http://x/metrics"):
        assert (await ask(port, path))[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"):
        status, headers, _ = await ask(port, "/metrics", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_a_connection_is_kept_and_requests_may_follow_each_other(serve: Any) -> None:
    port = await serve()
    async with connected(port) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer(reader))[0] == 200
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [(await answer(reader))[2] for _ in range(2)] == [b"ok\n", b"ready\n"]
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await answer(reader))[0] == 200
        assert await reader.read() == b""
    assert (await sent(port, b"GET /healthz HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nok\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5_000, 431),
        (b"GET /" + b"a" * 50_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),  # gRPC
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost : y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n", 413),
    ],
)
async def test_what_is_no_request_is_told_so_and_the_connection_ends(serve: Any, data: bytes, status: int) -> None:
    port = await serve()
    assert (await sent(port, data)).startswith(f"HTTP/1.1 {status} ".encode())
    assert (await ask(port, "/healthz"))[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
async def test_half_a_request_is_not_waited_for_for_ever(
    serve: Any, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(admin_http, "HEAD_SECONDS", 0.05)
    port = await serve()
    assert await sent(port, said) == b""


async def test_a_connection_that_says_nothing_more_ends_too(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_http, "IDLE_SECONDS", 0.05)
    port = await serve()
    assert (await sent(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"ok\n")
    # Half of the next request has the time of a head again, and no more.
    monkeypatch.setattr(admin_http, "IDLE_SECONDS", 100.0)
    monkeypatch.setattr(admin_http, "HEAD_SECONDS", 0.05)
    assert (await sent(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /")).endswith(b"ok\n")


async def test_one_more_connection_takes_the_place_of_the_one_that_has_been_silent_longest(serve: Any) -> None:
    port = await serve()
    first, *others = [await connect(port) for _ in range(CONNECTIONS)]
    for reader, writer in (first, *others):  # each is at the server by now
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await answer(reader)
    assert (await ask(port, "/healthz"))[0] == 200
    assert await first[0].read() == b""
    # Its place is free again: the others still are there.
    for reader, writer in others:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(reader))[0] == 200
        writer.transport.abort()
    first[1].transport.abort()


async def test_clients_that_do_not_read_are_in_nobodys_way(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than fits in a socket's buffers.
    port = await serve(lambda _: ("text/plain", bytes(1 << 20)), f"unix:{tmp_path}/admin")
    deaf = []
    for _ in range(CONNECTIONS):
        reader, writer = await connect(port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        deaf.append(writer)
    assert (await ask(port, "/healthz"))[0] == 200
    monkeypatch.setattr(admin_http, "WRITE_SECONDS", 0.05)
    async with connected(port) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        while not (known := set(port._active)):
            await asyncio.sleep(0)
        while known <= set(port._active):
            await asyncio.sleep(0)  # until one is given up, though nobody needs its place
    for writer in deaf:
        writer.transport.abort()


async def test_a_scrape_holds_up_nobody_and_those_who_wait_share_the_next(serve: Any) -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    rendered: list[bool] = []

    def render(openmetrics: bool) -> tuple[str, bytes]:
        begun.release()
        go_on.acquire()
        rendered.append(openmetrics)
        return "text/plain", b"%d" % len(rendered)

    port = await serve(render)
    first = asyncio.create_task(ask(port, "/metrics"))
    await asyncio.to_thread(begun.acquire)
    # What they ask for is how things are now, and not when the first one asked.
    later = [asyncio.create_task(ask(port, "/metrics")) for _ in range(30)]
    other = asyncio.create_task(ask(port, "/metrics", Accept="application/openmetrics-text"))
    while len(port._active) < 32 or len(port._next) < 2:
        await asyncio.sleep(0)
    assert (await ask(port, "/healthz"))[0] == 200
    # One that is gone takes the rendering from nobody.
    later.pop().cancel()
    for _ in range(3):
        go_on.release()
    assert (await first)[2] == b"1"
    numbers = {(await scrape)[2] for scrape in later} | {(await other)[2]}
    assert numbers == {b"2", b"3"}
    assert sorted(rendered) == [False, False, True]


async def test_scrapes_rest(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: a scrape that took a second is followed by four in which none begins."""
    now = [1_000.0]
    slept: list[float] = []
    sleep = asyncio.sleep

    async def rest(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await sleep(0)

    def render(_openmetrics: bool) -> tuple[str, bytes]:
        now[0] += 1
        return PAGE

    port = await serve(render)
    monkeypatch.setattr(admin_http.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(admin_http.asyncio, "sleep", rest)
    for _ in range(2):
        assert (await ask(port, "/metrics"))[0] == 200
    assert slept == [4.0]


async def test_a_scrape_that_fails_says_so_without_a_word_of_why(serve: Any) -> None:
    fails = [True]

    def render(_openmetrics: bool) -> tuple[str, bytes]:
        if fails.pop():
            raise ValueError("secret")
        return PAGE

    port = await serve(render)
    fails.insert(0, False)
    status, _, body = await ask(port, "/metrics")
    assert (status, b"secret" in body) == (500, False)
    assert (await ask(port, "/metrics"))[0] == 200


async def test_an_end_ends_connections_and_waits_for_a_scrape(serve: Any, tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def render(_openmetrics: bool) -> tuple[str, bytes]:
        begun.set()
        assert over.wait(10)
        return PAGE

    path = tmp_path / "admin.sock"
    port = await serve(render, f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    silent, reader = await connect(port), await connect(port)
    reader[1].write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.to_thread(begun.wait)
    threading.Timer(0.05, over.set).start()
    await port.stop()
    assert over.is_set()
    for client in (silent, reader):
        assert await client[0].read() == b""
        client[1].transport.abort()
    assert not path.exists()


async def test_a_port_in_use_is_an_error_of_one_sentence(serve: Any) -> None:
    port = await serve()
    with pytest.raises(address.AddressError, match=f"cannot listen on {port.at}: the port is in use") as error:
        await serve(listen=port.at)
    assert error.value.exit_code == 69
