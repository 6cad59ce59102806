"""HTTP: a resource that another service keeps, ended by a request to it (a sandbox, an engine-side session, a shard).

Where requests go is the configuration's alone: a URL template with a fixed host that its list of hosts names, and
fields in path and query only, each percent-encoded. What is requested is checked again after the fields are in. No
redirect is followed, no proxy of the environment used, no cookie kept, and no body read: the status is the answer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from .base import BadOption, DriverError, Resource, within
from .marker import Marker

METHODS: Final = frozenset({"DELETE", "POST", "PUT", "GET"})
GONE: Final = frozenset({404, 410})  # the service does not know it: it is gone
PER_HOST: Final = 16  # connections; the others wait their turn, so that a host that hangs holds up itself alone

# Names and IPv4 addresses, IPv6 ones in brackets, and a port. No pattern: a host is on the list or it is not.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_FIELDS: Final[Mapping[str, Callable[[Resource, Marker], str]]] = {
    "name": lambda resource, _: resource.name,
    "uid": lambda _, marker: marker.uid.hex(),
    "session_id": lambda resource, _: resource.session_id,
}
# Not final though no success: the service is busy, or not there for the moment.
_LATER: Final = frozenset({408, 423, 425, 429})


class HttpDriver:
    """Ends a resource by one request.

    `url`: a template with the fields {name}, {uid} (32 hex) and {session_id}. `hosts`: where requests may go: `host`
    or `host:port` for https, `http://host:port` where plaintext is meant. `expected`: statuses that mean that it is
    gone, instead of 2xx; 404 and 410 always do. `headers`: sent as they are; they may hold a key and appear nowhere
    else. `limit`: seconds that one call may take. BadOption says what is wrong with any of them.
    """

    def __init__(
        self,
        url: str,
        *,
        hosts: Iterable[str],
        method: str = "DELETE",
        expected: Collection[int] = (),
        headers: Mapping[str, str] | None = None,
        limit: float = 10.0,
    ) -> None:
        if method not in METHODS:
            raise BadOption("method", f"the method {method!r} must be one of {', '.join(sorted(METHODS))}")
        if any(not 100 <= status <= 599 for status in expected):
            raise BadOption("expected", "an expected status is a number from 100 to 599")
        if any(not 32 <= ord(c) < 127 for header in (headers or {}).items() for c in "".join(header)):
            raise BadOption("headers", "a header holds printable ASCII characters only")
        unknown = {field for field in _FIELD.findall(url) if field not in _FIELDS}
        rest = _FIELD.sub("", url)
        if unknown or "{" in rest or "}" in rest:
            names = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise BadOption("url", f"the URL template may hold {names} and no other braces")
        self._hosts = frozenset(_host(entry) for entry in hosts)
        self._method = method
        self._template = url
        self._expected = frozenset(expected)
        self._headers = dict(headers or {})
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None
        # With a field in its host the template would lead wherever a client says.
        try:
            before = [_checked(_FIELD.sub(letter, url), self._hosts).origin() for letter in "ab"]
        except ValueError as error:
            raise BadOption("url", str(error)) from None
        if before[0] != before[1]:
            raise BadOption("url", "the URL template may hold fields in its path and its query only")
        self._host = before[0].authority

    async def release(self, resource: Resource) -> None:
        """Send the request. Success: an expected status, or that the service does not know the resource."""
        url = self._url(resource)
        status = await within(self._limit, f"the request to {self._host} for {resource.name}", self._send(url))
        if status in GONE or (status in self._expected if self._expected else 200 <= status < 300):
            return
        said = f"{self._host} answered {status} to {self._method} for {resource.name}"
        if 300 <= status < 400:
            raise DriverError(f"{said}, a redirect: give the URL that it leads to", retryable=False)
        if status in _LATER or status >= 500:
            raise DriverError(said, retryable=True)
        raise DriverError(f"{said}: set the method, the URL or the headers of this driver right", retryable=False)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _url(self, resource: Resource) -> URL:
        marker = Marker.parse(resource.name)
        if marker is None:
            raise DriverError(f"{resource.name!r} is not a name of Roost's", retryable=False)
        try:
            # Nothing stays as it is but letters, digits and _.-~: no value can end its place in the URL.
            values = {field: quote(value(resource, marker), safe="") for field, value in _FIELDS.items()}
            return _checked(_FIELD.sub(lambda match: values[match[1]], self._template), self._hosts)
        except ValueError as error:  # UnicodeError too
            why = error if type(error) is ValueError else "its session id cannot be encoded"
            raise DriverError(f"no request can be made for {resource.name}: {why}", retryable=False) from None

    async def _send(self, url: URL) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=PER_HOST),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None),  # the driver's own limit holds
                trust_env=False,  # neither proxies nor .netrc
                auto_decompress=False,
            )
        try:
            async with self._session.request(self._method, url, allow_redirects=False) as response:
                # Leaving the block without reading closes the connection if there is more of a body than came along.
                return response.status
        except (aiohttp.ClientError, OSError) as error:
            raise DriverError(f"{self._host} gave no answer ({_why(error)})", retryable=True) from None


def _host(entry: str) -> tuple[str, str, int]:
    """Scheme, host and port of an entry of the list of hosts."""
    text = entry if "://" in entry else f"https://{entry}"
    with contextlib.suppress(ValueError):
        url = URL(text, encoded=True)
        if url.scheme in ("http", "https") and url.host and url.port and re.fullmatch(_HOST, text.partition("://")[2]):
            return _where(url)
    raise BadOption("hosts", f"{entry!r} in the list of hosts is neither host, host:port nor http://host:port")


def _where(url: URL) -> tuple[str, str, int]:
    return url.scheme, (url.host or "").lower(), url.port or 0


def _checked(text: str, hosts: Collection[tuple[str, str, int]]) -> URL:
    """The URL, as it is requested. ValueError if it is none, or leads where nothing may be sent."""
    try:
        url = URL(text, encoded=True)
        scheme, host, port = _where(url)
    except ValueError:
        raise ValueError("the URL is not well-formed") from None
    if not text.isascii() or any(ord(c) <= 32 for c in text) or url.raw_fragment:
        raise ValueError("a URL holds printable ASCII characters and no fragment")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("a URL may not hold a user or a password: give a header")
    if (scheme, host, port) not in hosts:
        raise ValueError(f"{scheme}://{host}:{port} is not in the list of hosts")
    # Servers resolve these, many of them encoded ones too: a session may be called "..".
    if any(segment in (".", "..") for segment in re.split(r"[/\\]", unquote(url.raw_path))):
        raise ValueError('a segment of its path is "." or ".."')
    return url


def _why(error: Exception) -> str:
    """What went wrong, without addresses or URLs: those may hold what is nobody's business."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not valid for it"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror
    if isinstance(error, aiohttp.ClientConnectorError):
        return "it cannot be connected to"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    return "it does not speak HTTP as it should"
