"""Requests that end resources: only where the configuration says, whatever a client calls itself, and in time (I17)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.drivers import DriverError, Marker, Resource
from roost.drivers.http import HttpDriver

NAME = str(Marker("roost", "deadbeef", 1, bytes(range(16)), 1))
UID = bytes(range(16)).hex()
SECRET = "key-8c1f"

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """A server over a real socket that keeps the head of each request and answers as its replies say, one each."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.replies: list[Reply] = []
        self.port = 0
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                self.asked.set()
                await self.replies[min(len(self.heads), len(self.replies)) - 1](reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()

    @property
    def targets(self) -> list[str]:
        return [head.partition("\r\n")[0].removesuffix(" HTTP/1.1") for head in self.heads]

    def driver(self, path: str = "/boxes/{name}", **options: object) -> HttpDriver:
        base = f"http://127.0.0.1:{self.port}"
        return HttpDriver(base + path, hosts=[base], **options)  # type: ignore[arg-type]


def status(code: int, *headers: str, body: bytes = b"") -> Reply:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Said", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return reply


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


@asynccontextmanager
async def serving(*replies: Reply) -> AsyncIterator[Service]:
    service = Service()
    service.replies = list(replies) or [status(204)]
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()


@asynccontextmanager
async def using(driver: HttpDriver) -> AsyncIterator[HttpDriver]:
    try:
        yield driver
    finally:
        await driver.close()


def of(session_id: str = "task-17") -> Resource:
    return Resource(NAME, session_id)


async def refused(driver: HttpDriver, resource: Resource | None = None) -> DriverError:
    with pytest.raises(DriverError) as error:
        await driver.release(resource or of())
    assert SECRET not in str(error.value)
    return error.value


@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT", "GET"])
async def test_the_fields_are_put_in_and_the_request_is_sent(method: str) -> None:
    template = "/{session_id}/boxes/{name}?uid={uid}&s={session_id}"
    async with serving() as service, using(service.driver(template, method=method)) as driver:
        await driver.release(of("a:b"))
        await driver.release(of("a:b"))
    assert service.targets == [f"{method} /a%3Ab/boxes/{NAME}?uid={UID}&s=a%3Ab"] * 2


@pytest.mark.parametrize("code", [200, 202, 204, 404, 410])
async def test_what_is_gone_is_a_success(code: int) -> None:
    async with serving(status(code)) as service, using(service.driver()) as driver:
        await driver.release(of())
        await driver.release(of())


@pytest.mark.parametrize(
    ("code", "retryable"),
    [(500, True), (503, True), (429, True), (408, True), (400, False), (401, False), (403, False), (405, False)],
)
async def test_other_answers_are_errors_that_say_whether_to_try_again(code: int, retryable: bool) -> None:
    async with serving(status(code)) as service, using(service.driver()) as driver:
        error = await refused(driver)
    assert error.retryable is retryable
    assert f"127.0.0.1:{service.port} answered {code} to DELETE for {NAME}" in str(error)


async def test_expected_statuses_take_the_place_of_2xx() -> None:
    replies = [status(409), status(200), status(404)]
    async with serving(*replies) as service, using(service.driver(expected=[409])) as driver:
        await driver.release(of())
        assert not (await refused(driver)).retryable
        await driver.release(of())


async def test_an_error_and_then_a_success() -> None:
    async with serving(status(500), reset, status(200)) as service, using(service.driver(method="POST")) as driver:
        assert (await refused(driver)).retryable
        assert (await refused(driver)).retryable
        await driver.release(of())
    assert len(service.heads) == 3


async def test_a_connection_that_breaks_can_be_tried_again() -> None:
    async with serving(reset) as service, using(service.driver(headers={"Authorization": SECRET})) as driver:
        error = await refused(driver)
        assert error.retryable
        assert "gave no answer" in str(error)
        port = service.port
    async with using(HttpDriver(f"http://127.0.0.1:{port}/{{name}}", hosts=[f"http://127.0.0.1:{port}"])) as driver:
        error = await refused(driver)  # nobody listens any more
        assert error.retryable
        assert "it cannot be connected to" in str(error)


async def test_a_service_that_hangs_is_given_up_in_time() -> None:
    async with serving(hang) as service, using(service.driver(limit=0.2)) as driver:
        error = await refused(driver)
        assert error.retryable
        assert "took longer than 0.2 s" in str(error)
        await service.closed.wait()


async def test_a_caller_that_gives_up_leaves_no_connection() -> None:
    async with serving(hang) as service, using(service.driver(limit=60)) as driver:
        task = asyncio.create_task(driver.release(of()))
        await service.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.closed.wait()


async def test_a_host_that_hangs_holds_up_no_other() -> None:
    async with serving(hang) as bad, serving() as good:
        base = f"http://127.0.0.1:{good.port}"
        async with using(bad.driver(limit=60)) as stuck, using(HttpDriver(base + "/{name}", hosts=[base])) as driver:
            waiting = [asyncio.create_task(stuck.release(of())) for _ in range(200)]
            await bad.asked.wait()
            await driver.release(of())
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert len(bad.heads) <= 16


async def test_a_redirect_is_not_followed() -> None:
    async with serving() as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere.port}/other"
        for code in (301, 302, 303, 307, 308):
            async with serving(status(code, location)) as service, using(service.driver()) as driver:
                error = await refused(driver)
                assert "a redirect: give the URL that it leads to" in str(error)
                assert not error.retryable
                assert len(service.heads) == 1
    assert elsewhere.heads == []


async def test_a_body_without_end_is_not_read() -> None:
    """The status is the answer. What a service writes beyond it fills buffers, and no memory of ours."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            service.sent += 0x10000
            await writer.drain()

    async with serving(flood) as service, using(service.driver(limit=60)) as driver:
        await driver.release(of())
        await service.closed.wait()
    assert service.sent < 64 << 20


async def test_what_is_no_http_is_an_error() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(bytes(0x10000).replace(b"\0", b"x"))
            await writer.drain()

    for reply in (garbage, endless):
        async with serving(reply) as service, using(service.driver(limit=60)) as driver:
            error = await refused(driver)
            assert error.retryable
            assert "it does not speak HTTP as it should" in str(error)


async def test_https_is_not_spoken_in_plaintext() -> None:
    first: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.append(await reader.readexactly(1))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with using(HttpDriver(f"https://{host}/{{name}}", hosts=[host], headers={"A": SECRET})) as driver:
        error = await refused(driver)
    server.close()
    assert first == [b"\x16"]  # a TLS handshake
    assert error.retryable
    assert "TLS failed" in str(error)


async def test_neither_proxies_of_the_environment_nor_cookies_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy, serving(status(200, "Set-Cookie: a=b")) as service:
        for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        base = f"http://localhost:{service.port}"  # a name: nobody keeps cookies of an address
        async with using(HttpDriver(base + "/{name}", hosts=[base])) as driver:
            await driver.release(of())
            await driver.release(of())
    assert proxy.heads == []
    assert len(service.heads) == 2
    assert not any("cookie" in head.lower() for head in service.heads)


async def test_headers_are_sent_and_shown_nowhere() -> None:
    async with serving(status(401)) as service, using(service.driver(headers={"Authorization": SECRET})) as driver:
        await refused(driver)
        assert SECRET not in repr(driver)
    assert f"Authorization: {SECRET}\r\n" in service.heads[0]


# ---- where requests may go ------------------------------------------------------------------------------------------

LISTED = ["boxes.example", "boxes.example:8443", "http://127.0.0.1:8080", "[::1]:9000"]


@pytest.mark.parametrize(
    "url",
    [
        "https://boxes.example/{name}",
        "https://BOXES.example:443/{name}",
        "https://boxes.example:8443/a/{session_id}?x={uid}",
        "http://127.0.0.1:8080/{name}",
        "https://[::1]:9000/{name}",
    ],
)
def test_listed_hosts_are_taken(url: str) -> None:
    HttpDriver(url, hosts=LISTED)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://other.example/{name}", "not in the list"),
        ("https://boxes.example.evil.example/{name}", "not in the list"),
        ("https://evil.example/boxes.example/{name}", "not in the list"),
        ("https://boxes.example:444/{name}", "not in the list"),
        ("https://boxes.example./{name}", "not in the list"),
        ("http://boxes.example/{name}", "not in the list"),
        ("https://127.0.0.1:8080/{name}", "not in the list"),
        ("http://127.1:8080/{name}", "not in the list"),
        ("http://2130706433:8080/{name}", "not in the list"),
        ("http://[::ffff:127.0.0.1]:8080/{name}", "not in the list"),
        ("http://169.254.169.254/latest/{name}", "not in the list"),
        ("file:///etc/passwd{name}", "not in the list"),
        ("//boxes.example/{name}", "not in the list"),
        ("boxes.example/{name}", "not in the list"),
        ("https://user@boxes.example/{name}", "user or a password"),
        ("https://user:secret@boxes.example/{name}", "user or a password"),
        ("https://:secret@boxes.example/{name}", "user or a password"),
        ("https://boxes.example@evil.example/{name}", "user or a password"),
        ("https://boxes.example\\@evil.example/{name}", "not well-formed"),
        ("https://boxes.example:99999/{name}", "not well-formed"),
        ("https://boxes.example/a/../{name}", r'"\." or "\.\."'),
        ("https://boxes.example/a/%2E%2e/{name}", r'"\." or "\.\."'),
        ("https://boxes.example/a b/{name}", "printable ASCII"),
        ("https://boxes.example/é/{name}", "printable ASCII"),
        ("https://boxes.example/{name}#x", "no fragment"),
        ("https://{name}.example/", "not in the list"),
        ("https://boxes.example{session_id}/", "not in the list"),
        ("https://boxes.example/{title}", "may hold {name}"),
        ("https://boxes.example/{name", "no other braces"),
        ("https://boxes.example/{{name}}", "no other braces"),
    ],
)
def test_a_url_that_leads_elsewhere_is_refused_at_the_start(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        HttpDriver(url, hosts=LISTED)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.example",
        "https://",
        "boxes.example/",
        "http://a/b",
        "a@b",
        "ftp://a",
        "a:0",
        "a:x",
        "a b",
        "::1",
        "é",
    ],
)
def test_an_entry_of_the_list_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="in the list of hosts is neither"):
        HttpDriver("https://boxes.example/{name}", hosts=["boxes.example", entry])


def test_a_field_in_the_host_is_refused_even_if_its_hosts_are_listed() -> None:
    with pytest.raises(ValueError, match="in its path and its query only"):
        HttpDriver("https://{name}.example/", hosts=["a.example", "b.example"])


def test_other_settings_are_checked() -> None:
    for wrong in ({"method": "PATCH"}, {"method": "delete"}, {"expected": [99]}, {"headers": {"A": "b\r\nC: d"}}):
        with pytest.raises(ValueError):
            HttpDriver("https://boxes.example/", hosts=LISTED, **wrong)  # type: ignore[arg-type]


TEMPLATE = HttpDriver("https://boxes.example/v1/{session_id}/end?of={session_id}", hosts=LISTED)


def encodable(text: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


@given(st.one_of(st.text(), st.text("./\\%?#@:&=;{}~ \r\n\t", max_size=6)))
def test_whatever_a_session_is_called_it_stays_in_its_place(session_id: str) -> None:
    """I17: no id reaches another path, another host or another parameter of the service."""
    if any(part in (".", "..") for part in re.split(r"[/\\]", session_id)) or not encodable(session_id):
        with pytest.raises(DriverError):
            TEMPLATE._url(of(session_id))
        return
    url = TEMPLATE._url(of(session_id))
    text = str(url)
    assert text.startswith("https://boxes.example/v1/")
    path, _, query = text.removeprefix("https://boxes.example/v1/").partition("?")
    assert path.endswith("/end")
    assert "/" not in path.removesuffix("/end")
    assert unquote(path.removesuffix("/end"), errors="strict") == session_id
    assert query.startswith("of=")
    assert not set(query.removeprefix("of=")) & set("&=;#?/")
    assert url.host == "boxes.example"


@pytest.mark.parametrize("session_id", [".", "..", "../other", "..\\other", "a/../b", "\ud800"])
async def test_an_id_that_would_lead_to_another_path_sends_nothing(session_id: str) -> None:
    async with serving() as service, using(service.driver("/v1/{session_id}")) as driver:
        error = await refused(driver, of(session_id))
        assert not error.retryable
        assert f"no request can be made for {NAME}" in str(error)
        with pytest.raises(DriverError, match="is not a name of Roost's"):
            await driver.release(Resource("../other", "task-17"))
    assert service.heads == []
