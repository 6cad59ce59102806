"""The drivers that the settings ask for. What a driver refuses is said with the key of the setting that it came from.

A driver's libraries are loaded only where it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from roost.drivers import BadOption, Driver, Lister
from roost.drivers.marker import check_prefix
from roost.server import secret_file
from roost.server.config import ConfigError, Settings
from roost.v1.resource_service_pb2 import ResourceKind

CLIENT: Final = ResourceKind.RESOURCE_KIND_CLIENT
HTTP: Final = ResourceKind.RESOURCE_KIND_HTTP
PROCESS: Final = ResourceKind.RESOURCE_KIND_PROCESS
TMUX: Final = ResourceKind.RESOURCE_KIND_TMUX
_GRACE: Final = 10.0  # seconds that a program has to end by itself
_KILL: Final = 5.0  # seconds of the time limit that are left for ending it then
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
# Which setting an argument of a driver comes from.
_KEYS: Final = {
    "url": "http_release_url",
    "hosts": "http_release_hosts",
    "method": "http_release_method",
    "expected": "http_release_expected",
    "headers": "http_release_headers_file",
    "limit": "release_timeout_ms",
}


@dataclass(frozen=True)
class Outside:
    """What the server may end outside."""

    drivers: Mapping[int, Driver] = field(default_factory=dict)  # by roost.v1.ResourceKind
    reaped: Mapping[str, Lister] = field(default_factory=dict)  # those whose orphans are ended, by name

    def kinds(self) -> list[int]:
        """The kinds of resources that may be attached; that of their hosts always."""
        return [CLIENT, *self.drivers]

    async def close(self) -> None:
        """Give back what the drivers hold open."""
        for driver in self.drivers.values():
            await driver.close()


def outside(settings: Settings) -> Outside:
    """Make the drivers; ConfigError names the key that is wrong."""
    try:
        check_prefix(settings.resource_prefix)
    except ValueError as error:
        raise ConfigError(f"resource_prefix: {error}") from None
    try:
        listers = _listers(settings)
        drivers: dict[int, Driver] = _http(settings)
    except BadOption as error:
        raise ConfigError(f"{_KEYS[error.option]}: {error}") from None
    kinds = {"process": PROCESS, "tmux": TMUX}
    drivers |= {kinds[name]: driver for name, driver in listers.items()}
    return Outside(drivers, _reaped(settings, listers))


def _listers(settings: Settings) -> dict[str, Lister]:
    """The drivers of what runs on this machine, by name."""
    limit = settings.release_timeout_ms / 1_000
    grace = min(_GRACE, limit - _KILL)  # what is too little the driver refuses
    found: dict[str, Lister] = {}
    if settings.process_driver:
        from roost.drivers.process import ProcessDriver

        found["process"] = ProcessDriver(grace=grace, limit=limit)
    if settings.tmux_driver:
        from roost.drivers.tmux import TmuxDriver

        socket = settings.tmux_socket
        name, path = (None, socket) if "/" in socket else (socket or None, None)
        found["tmux"] = TmuxDriver(socket_name=name, socket_path=path, grace=grace, limit=limit)
    elif settings.tmux_socket:
        raise ConfigError("tmux_socket: set tmux_driver as well")
    return found


def _http(settings: Settings) -> dict[int, Driver]:
    """The driver of what another service keeps, if there is one."""
    hosts = _listed(settings.http_release_hosts)
    if not settings.http_release_url:
        for key in ("http_release_hosts", "http_release_expected", "http_release_headers_file"):
            if getattr(settings, key):
                raise ConfigError(f"{key}: set http_release_url as well")
        return {}
    if not hosts:
        raise ConfigError("http_release_url: set http_release_hosts, the hosts that requests may go to, as well")
    from roost.drivers.http import HttpDriver

    driver = HttpDriver(
        settings.http_release_url,
        hosts=hosts,
        method=settings.http_release_method,
        expected=_statuses(settings.http_release_expected),
        headers=_headers(settings.http_release_headers_file),
        limit=settings.release_timeout_ms / 1_000,
    )
    return {HTTP: driver}


def _listed(text: str) -> list[str]:
    """The items of a comma-separated list."""
    return [item.strip() for item in text.split(",")] if text.strip() else []


def _statuses(text: str) -> list[int]:
    items = _listed(text)
    for item in items:
        if not re.fullmatch(r"[0-9]{3}", item):
            raise ConfigError(f"http_release_expected: {item!r} is not a status: give numbers such as 200, 202")
    return [int(item) for item in items]


def _headers(file: str) -> dict[str, str]:
    """The headers that a file holds, a line each. They may be keys: no message quotes them."""
    if not file:
        return {}
    try:
        lines = secret_file.read(file, "headers file").splitlines()
    except secret_file.SecretFileError as error:
        raise ConfigError(f"http_release_headers_file: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _HEADER.fullmatch(line)
        if match is None or not match[2]:
            raise ConfigError(f'http_release_headers_file: line {number} of {file} is not "Name: value"')
        if match[1].lower() in {name.lower() for name in found}:
            raise ConfigError(f"http_release_headers_file: line {number} of {file} gives a header again")
        found[match[1]] = match[2]
    return found


def _reaped(settings: Settings, listers: Mapping[str, Lister]) -> dict[str, Lister]:
    """The drivers whose orphans are ended."""
    names = _listed(settings.reap)
    for name in names:
        if name not in ("process", "tmux"):
            raise ConfigError(f"reap: {name!r} is neither process nor tmux")
        if name not in listers:
            raise ConfigError(f"reap: {name} is off: set {name}_driver as well")
    return {name: listers[name] for name in names}
