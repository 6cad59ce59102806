"""`roost doctor`: looks at a store, a configuration and a server, and says what is wrong and what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli.backup import bar
from roost.cli.output import REFUSED, WRONG_USAGE, Failure, Format, Output, Timeout, connect, print_json
from roost.cli.serve import ConfigFile, DataDir, More, flags

if TYPE_CHECKING:
    from roost.client import Client
    from roost.store.backup import Progress
    from roost.store.base import RecordLine, SessionRow
    from roost.store.checkup import Check

EPILOG = """
Without options it looks at the configuration that `roost serve` would use here, and at its store if there is one. With
--target it looks at that server too; with --data-dir or --target alone, at that alone. Nothing is changed, and servers
may run meanwhile.

--quick leaves out what reads the whole store: its pages and the hash chains of its histories.

Exit codes: 1 if a check failed; warnings are none.

Examples:
$ roost doctor --config /etc/roost.toml
$ roost doctor --data-dir /var/lib/roost
$ roost doctor --target unix:/run/roost/roost.sock --json
"""

_SLOW = 0.25  # seconds
_SKEW = 5.0  # seconds

Server = Annotated[
    str | None, typer.Option("--target", help="A server to look at: host:port or unix:PATH.", metavar="ADDR")
]
Quick = Annotated[bool, typer.Option("--quick", help="Leave out what reads the whole store.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; as -o json.")]


def doctor(
    data_dir: DataDir = None,
    target: Server = None,
    quick: Quick = False,
    as_json: Json = False,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
    config: ConfigFile = None,
    more: More = None,
) -> None:
    """Look at a store, a configuration and a server; one line a check, and what to do."""
    if config is not None and not Path(config).is_file():
        raise Failure(f"there is no configuration file {config}", WRONG_USAGE)
    checks: list[Check] = []
    stored = data_dir
    if config or more or not (data_dir or target):
        from roost.cli.doctor_config import look

        checks += look(flags(more), config)
        stored = stored or _data_dir(more, config)
    if stored:
        with bar() as progress:
            checks += _store(Path(stored), quick, progress)
    if target:
        checks += _server(target, timeout)
    if as_json or output is Format.JSON:
        print_json([vars(check) for check in checks])
    else:
        for check in checks:
            typer.echo(f"{check.status:<4}  {check.subject:<6}  {check.name}: {check.message}")
            if check.status != "ok":
                typer.echo(f"      -> {check.advice}")
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(REFUSED)


def _data_dir(more: list[str] | None, config: str | None) -> str | None:
    """The configured data directory, if it is there: a server that was never started has none."""
    from roost.server.config import ConfigError, load

    try:
        where = load(flags(more), config).settings.data_dir
    except ConfigError:
        return None  # the configuration's own check has said so
    return where if Path(where).exists() else None


def _store(data_dir: Path, quick: bool, progress: Progress) -> Iterator[Check]:
    from roost.store.checkup import look

    yield from look(data_dir, None if quick else _verifier(), progress)


def _verifier() -> Callable[[SessionRow, list[RecordLine]], None]:
    """Has an engine that serves nobody verify histories."""
    from roost._core import Engine
    from roost.handlers.cold import is_purging
    from roost.server.config import load

    engine = Engine(load(environment={}).limits(), 0)

    def verify(row: SessionRow, lines: list[RecordLine]) -> None:
        if not is_purging(row.cleanup):
            engine.verify_chain(lines, row.facts)

    return verify


def _server(target: str, timeout: float) -> Iterator[Check]:
    """Health first: it asks for no key."""
    from roost.errors import CallTimeout, ConnectionFailed, RoostError
    from roost.store.checkup import Check

    try:
        with connect(target, timeout) as client:
            ready = client.check_health()
            yield Check("server", "reach", "ok", f"{target} answers")
            if ready:
                yield Check("server", "health", "ok", "it takes calls")
            else:
                yield Check("server", "health", "fail", "it takes no calls", "it starts, drains or fails: see its log")
            yield from _asked(client)
    except (CallTimeout, ConnectionFailed) as error:
        advice = "see that it runs, that the address is right, and whether it wants TLS"
        yield Check("server", "reach", "fail", f"{target} cannot be reached: {error.message}", advice)
    except RoostError as error:
        yield Check("server", "health", "fail", str(error), error.ADVICE or "see its log")


def _asked(client: Client) -> Iterator[Check]:
    from roost._core import VERSION
    from roost.errors import RoostError
    from roost.store.checkup import Check

    try:
        _call(client)
        yield Check(
            "server", "key", "ok", "calls are accepted" if os.environ.get("ROOST_API_KEY") else "it asks for none"
        )
    except RoostError as error:
        advice = error.ADVICE or "give a key of this server with --api-key-file"
        yield Check("server", "key", "fail", str(error), advice)
        return
    try:
        stats = client.get_stats()
    except RoostError:
        yield Check("server", "version", "warn", "only the admin key may ask for it", "give the admin key")
    else:
        about = f"{stats.version}, store {stats.store_id}, epoch {stats.epoch}, up {stats.uptime.seconds} s"
        if stats.version == VERSION:
            yield Check("server", "version", "ok", about)
        else:
            yield Check(
                "server", "version", "warn", f"{about}; this is {VERSION}", "use the command of the same version"
            )
        gauges = stats.gauges
        if gauges["store_low"]:
            yield Check("server", "room", "fail", "its disk is full: new work is refused", "make room on its disk")
        if gauges["quarantined_trees"]:
            many = gauges["quarantined_trees"]
            advice = "see docs/OPERATIONS.md, RoostTreesQuarantined"
            yield Check("server", "trees", "fail", f"{many} trees are set aside", advice)
    yield from _clock(client)
    began = time.monotonic()
    _call(client)
    took = time.monotonic() - began
    if took > _SLOW:
        yield Check(
            "server", "latency", "warn", f"{took * 1_000:.1f} ms a call", "see docs/OPERATIONS.md, When calls are slow"
        )
    else:
        yield Check("server", "latency", "ok", f"{took * 1_000:.1f} ms a call")


def _call(client: Client) -> None:
    """The smallest call that every key may make."""
    next(iter(client.list_sessions(page_size=1)), None)


def _clock(client: Client) -> Iterator[Check]:
    """Where the server's clock stands, by an OpenSession that makes nothing."""
    import uuid

    from roost.errors import RoostError
    from roost.store.checkup import Check

    before = time.time()
    try:
        session = client.open_session(f"roost-doctor-{uuid.uuid4().hex}", validate_only=True).session
    except RoostError as error:
        yield Check(
            "server", "clock", "warn", f"a session would be refused now: {error}", error.ADVICE or "see its limits"
        )
        return
    after = time.time()
    skew = session.create_time.ToMicroseconds() / 1e6 - (before + after) / 2
    if abs(skew) > _SKEW + (after - before):
        advice = "set both clocks (NTP): times in records and lists are the server's"
        yield Check("server", "clock", "warn", f"it is {skew:+.1f} s from this machine's", advice)
    else:
        yield Check("server", "clock", "ok", f"it is {skew:+.1f} s from this machine's")
