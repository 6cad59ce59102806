"""What `roost doctor` sees in a configuration: whether it parses, what it names is there, its limits make sense."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from roost.store.checkup import Check, Status

if TYPE_CHECKING:
    from roost.server.config import Configuration, Settings

_SECONDS = 10.0  # for the place of dumps
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def _check(name: str, status: Status, message: str, advice: str = "") -> Check:
    return Check("config", name, status, message, advice)


def look(flags: Mapping[str, Any], file: str | None) -> Iterator[Check]:
    """Look at what `roost serve` would use here."""
    from roost.server.config import ConfigError, load

    try:
        configuration = load(flags, file)
    except ConfigError as error:
        yield _check("settings", "fail", str(error), "correct it; `roost config show` prints all settings")
        return
    given = sum(source != "default" for source in configuration.sources.values())
    yield _check("settings", "ok", f"{given} are given, the others have their defaults")
    settings = configuration.settings
    yield from _files(settings)
    yield from _address(configuration)
    yield from _drivers(settings)
    yield from _dumps(settings)
    yield from _limits(settings)


def _files(settings: Settings) -> Iterator[Check]:
    for key in type(settings).model_fields:
        path = getattr(settings, key)
        if not key.endswith("_file") or not path:
            continue
        try:
            Path(path).read_bytes()
        except OSError as error:
            yield _check(key, "fail", f"{path}: {error.strerror or error}", "make it readable for the server's user")
        else:
            yield _check(key, "ok", f"{path} can be read")


def _address(configuration: Configuration) -> Iterator[Check]:
    from roost.server.address import AddressError, parse

    settings = configuration.settings
    given = {key for key in type(settings).model_fields if getattr(settings, key)}
    for key in ("listen", "admin_listen"):
        value = getattr(settings, key)
        if not value:
            continue
        try:
            address = parse(value, True, key)
        except AddressError as error:
            yield _check(key, "fail", str(error), "give host:port or unix:PATH")
            continue
        if key == "admin_listen" or address.local:
            yield _check(key, "ok", value)
            continue
        if not (settings.insecure or "tls_cert_file" in given):
            advice = "give a certificate, or listen on 127.0.0.1 or unix:PATH, or say --insecure"
            yield _check(key, "fail", f"{value} can be reached from other machines, in plaintext", advice)
        elif configuration.admin_key is None:
            advice = "give an admin key, unless the network lets only the right ones in"
            yield _check(key, "warn", f"whoever reaches {value} may do everything: there is no admin key", advice)
        else:
            yield _check(key, "ok", value)


def _drivers(settings: Settings) -> Iterator[Check]:
    from roost.server.config import ConfigError
    from roost.server.outside import outside

    try:
        drivers = outside(settings)
    except ConfigError as error:
        yield _check("drivers", "fail", str(error), "correct the setting")
        return
    yield _check("drivers", "ok", f"{len(drivers.drivers)} are configured")


def _dumps(settings: Settings) -> Iterator[Check]:
    from roost.handlers.dump.errors import DumpError
    from roost.handlers.dump.reader import list_dumps
    from roost.handlers.dump.target import open_target

    if not settings.dump_target:
        if not settings.purge_without_dump:
            advice = "set dump_target, or see that all trajectories are acknowledged, or say purge_without_dump"
            message = "there is none: ended sessions are kept until their trajectories are acknowledged"
            yield _check("dump_target", "warn", message, advice)
        return
    try:
        target = open_target(settings.dump_target, operation_seconds=_SECONDS)
        asyncio.run(list_dumps(target, limit=1))
    except DumpError as error:
        yield _check("dump_target", "fail", str(error), f"see docs/OPERATIONS.md, Dumps: {error.why.value}")
        return
    yield _check("dump_target", "ok", f"{target.url} can be listed")


def _limits(settings: Settings) -> Iterator[Check]:
    memory = _memory()
    if settings.max_resident_bytes > memory * 3 // 4:
        message = f"max_resident_bytes is {settings.max_resident_bytes >> 20} MiB of {memory >> 20} MiB of memory"
        yield _check("memory", "warn", message, "leave a quarter for everything else: lower it, or give more memory")
    else:
        yield _check("memory", "ok", f"{settings.max_resident_bytes >> 20} MiB for sessions, {memory >> 20} MiB in all")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and settings.max_connections + 256 > files:
        message = f"this user may open {files} files, and max_connections is {settings.max_connections}"
        yield _check(
            "open files", "warn", message, "raise the limit (LimitNOFILE, ulimit -n), or lower max_connections"
        )
    else:
        yield _check("open files", "ok", f"{settings.max_connections} connections fit")
    if settings.connection_age_grace_ms < settings.max_wait_ms:
        message = "connection_age_grace_ms is below max_wait_ms: calls that wait may be cut off"
        yield _check("waits", "warn", message, "make the grace longer than the longest wait")
    yield from _disk(settings)


def _disk(settings: Settings) -> Iterator[Check]:
    place = Path(settings.data_dir).absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield _check("data_dir", "fail", f"{place} cannot be written", "make it writable for the server's user")
        return
    disk = psutil.disk_usage(str(place))
    if settings.max_store_bytes == 0:
        message = f"max_store_bytes is not set: a full disk is the limit ({disk.free >> 20} MiB are free)"
        yield _check("data_dir", "warn", message, "set it to what the disk can give up (docs/OPERATIONS.md, Sizing)")
    elif settings.max_store_bytes > disk.total * 9 // 10:
        message = f"max_store_bytes is {settings.max_store_bytes >> 20} MiB on a disk of {disk.total >> 20} MiB"
        yield _check("data_dir", "warn", message, "leave room for the log, migrations and their backups")
    else:
        yield _check("data_dir", "ok", f"{disk.free >> 20} MiB are free at {place}")


def _memory() -> int:
    """What this machine, or this container, has."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # "max"
        return total
