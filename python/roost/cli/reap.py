"""`roost reap`: a node agent. It lists what this machine has, asks the server what of it are orphans, and ends those.

The server judges, and this ends nothing but what the server named and the list held. An orphan is ended once each
inventory of its node over a whole lease has found it: hence two looks, and the wait between them.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    DIFFERENT,
    UNUSABLE,
    Failure,
    Format,
    Output,
    Target,
    Timeout,
    print_json,
    print_table,
)
from roost.drivers import DriverError, Item, Lister, Marker

if TYPE_CHECKING:
    from roost.client import AsyncClient

MOST_ITEMS: Final = 10_000  # of one inventory
_MARGIN: Final = 0.05  # seconds beyond what the server named: coming too early would cost another round
_PAUSE: Final = 10.0  # seconds until the next look, with --watch, where the server named none
_TERMINATED: Final = 143

EPILOG = """
An orphan bears a name that this server gave out, and no open or sealed
session owns it: what a crash left behind. It is ended once every look over a
whole lease has found it. So this looks, waits as long as the server says (a
minute, unless default_lease_ms is another), looks again, and ends. Where the
list cannot be made, nothing is ended.

The server keeps count for each --node: one name for all looks at one place
(machine, user, socket), and another for each other place.

State: due, waits (--dry-run: it would be ended now; later), ended, failed, or
gone by itself.

Exit codes:
 - 4 if an orphan could not be ended, or is not due yet
 - 69 if no list can be made: no tmux, no rights

Examples:
$ roost reap --driver tmux --dry-run
$ roost reap --driver tmux --tmux-socket /run/agents/tmux
$ roost reap --driver process --once -o json
$ roost --api-key-file acme.key reap --driver process --watch
"""


class Kind(enum.StrEnum):
    """Drivers that can list."""

    TMUX = "tmux"
    PROCESS = "process"


class State(enum.StrEnum):
    """What became of an orphan."""

    DUE = "due"
    WAITS = "waits"
    ENDED = "ended"
    FAILED = "failed"
    GONE = "gone"


_LEFT: Final = frozenset({State.DUE, State.WAITS, State.FAILED})


@dataclass(frozen=True, slots=True)
class Orphan:
    """One that was found, and what is known of it since the latest look."""

    name: str
    instance: str
    state: State
    error: str = ""


def reap(
    driver: Annotated[Kind, typer.Option(help="What to list and to end.")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    tmux_socket: Annotated[
        str, typer.Option(help="The tmux server's socket, a path or a name; default: this user's.", metavar="PATH")
    ] = "",
    node: Annotated[
        str, typer.Option(help="Names what is listed; default: host name, driver and socket or user.", metavar="NAME")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look once, print the orphans, end nothing.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Look once and end what is due by now; for a timer that comes again.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until a signal; print what is ended, by line.")] = False,
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds between looks, with --watch; default: as the server says.")
    ] = None,
    timeout: Timeout = 30.0,
) -> None:
    """End what sessions left on this machine and nobody owns any more; prints it."""
    if dry_run + once + watch > 1:
        raise typer.BadParameter("choose one of --dry-run, --once and --watch")
    if every is not None and not watch:
        raise typer.BadParameter("--every belongs to --watch")
    if tmux_socket and driver is not Kind.TMUX:
        raise typer.BadParameter("--tmux-socket belongs to --driver tmux")
    if "/" in tmux_socket:
        tmux_socket = str(Path(tmux_socket).absolute())
    from roost.client import AsyncClient

    lister = _lister(driver, tmux_socket)
    found: dict[Item, Orphan] = {}
    node = node or f"{socket.gethostname()}:{driver}:{tmux_socket or os.getuid()}"

    async def work() -> None:
        tenant = os.environ.get("ROOST_TENANT", "")
        async with AsyncClient(target, timeout=timeout, owner="roost-cli", tenant=tenant) as client:
            agent = _Agent(client, lister, node, found)
            if watch:
                await agent.watch(every, output)
            again = await agent.look(dry_run=dry_run)
            if not dry_run and not once and _left(found):
                await _wait(again + _MARGIN, f"looking again in {again:.0f} s; orphans: {len(_left(found))}")
                await agent.look()

    whole = False
    try:
        _run(work())
        whole = True
    except DriverError as error:
        raise Failure(f"no inventory, so nothing is ended: {error}", UNUSABLE) from error
    finally:
        if not watch and (whole or found):  # what was ended is told, whatever came then
            _print(found.values(), output)
    failed = [one for one in found.values() if one.state is State.FAILED]
    if failed:
        raise Failure(f"{len(failed)} of {len(found)} orphans could not be ended: {failed[0].error}", DIFFERENT)
    if not dry_run and not once and (left := _left(found)):
        raise Failure(f"{len(left)} of {len(found)} orphans are not due yet: run this again", DIFFERENT)


class _Agent:
    """Looks, and ends. `found` holds each orphan of this run."""

    def __init__(self, client: AsyncClient, driver: Lister, node: str, found: dict[Item, Orphan]) -> None:
        self._client = client
        self._driver = driver
        self._node = node
        self._found = found

    async def look(self, *, dry_run: bool = False) -> float:
        """One inventory, and the end of what is due; seconds until the next. DriverError if nothing was listed."""
        from roost.v1.resource_service_pb2 import InventoryItem

        clock = asyncio.get_running_loop().time
        began = clock()
        # What bears no name of Roost's is no orphan, and its name nobody's business.
        items = dict.fromkeys(item for item in await self._driver.inventory() if Marker.parse(item.name))
        if len(items) > MOST_ITEMS:
            raise DriverError(f"{len(items)} things with names are more than {MOST_ITEMS}", retryable=False)
        answer = await self._client.reconcile_inventory(
            self._node,
            [InventoryItem(name=item.name, instance=item.instance) for item in items],
            listing_time=clock() - began,
            dry_run=dry_run,
        )
        judged = {Item(orphan.item.name, orphan.item.instance): orphan.end for orphan in answer.orphans}
        for item, known in self._found.items():
            if known.state in _LEFT and item not in judged:
                self._note(item, State.GONE)
        due = []
        for item, end in judged.items():
            if item in items:  # nothing else is ended, whatever the answer says
                self._note(item, State.DUE if end else State.WAITS)
                due += [item] if end else []
        if not dry_run:
            await self._end(due)
        return answer.next.ToMilliseconds() / 1000

    async def watch(self, every: float | None, output: Format) -> None:
        """Look again and again. What may be different the next time is told and does not end it."""
        import grpc

        from roost.errors import CallTimeout, RoostError

        while True:
            self._found.clear()
            try:
                again = await self.look()
            except DriverError as error:
                if not error.retryable:
                    raise
                again = _PAUSE
                typer.echo(f"no inventory, so nothing is ended: {error}", err=True)
            except RoostError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE and not isinstance(error, CallTimeout):
                    raise
                again = _PAUSE
                typer.echo(f"the server gave no answer: {error.message}", err=True)
            finally:  # a signal may come while the last of them ends
                for one in self._found.values():
                    _print_line(one, output)
            await asyncio.sleep(every or (again or _PAUSE) + _MARGIN)

    async def _end(self, due: list[Item]) -> None:
        from roost.drivers.reap import end_all

        for item, error in await end_all(self._driver, due):
            self._note(item, State.ENDED if error is None else State.FAILED, str(error or ""))

    def _note(self, item: Item, state: State, error: str = "") -> None:
        self._found[item] = Orphan(item.name, item.instance, state, error)


def _lister(kind: Kind, tmux_socket: str) -> Lister:
    try:
        if kind is Kind.PROCESS:
            from roost.drivers.process import ProcessDriver

            return ProcessDriver()
        from roost.drivers.tmux import TmuxDriver

        if "/" in tmux_socket:
            return TmuxDriver(socket_path=tmux_socket)
        return TmuxDriver(socket_name=tmux_socket or None)
    except ImportError as error:
        raise Failure(f"this needs the package {error.name}: install roost[cli]", UNUSABLE) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run it; SIGTERM ends it as Ctrl-C does, with what was begun cancelled in order."""
    told = False

    async def until_told() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def tell() -> None:
            nonlocal told
            told = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, tell)
        try:
            await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    try:
        asyncio.run(until_told())
    except asyncio.CancelledError:
        if not told:
            raise
        sys.exit(_TERMINATED)


async def _wait(seconds: float, said: str) -> None:
    """Sleep, with a bar on stderr while that is a terminal, else with a line on it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        typer.echo(said, err=True)
        await asyncio.sleep(seconds)
        return
    clock = asyncio.get_running_loop().time
    began = clock()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(said, total=seconds)
        while (passed := clock() - began) < seconds:
            bar.update(task, completed=passed)
            await asyncio.sleep(min(0.2, seconds - passed))


def _left(found: dict[Item, Orphan]) -> list[Orphan]:
    return [one for one in found.values() if one.state in _LEFT]


def _print(found: Iterable[Orphan], output: Format) -> None:
    orphans = sorted(found, key=lambda one: (one.name, one.instance))
    if output is Format.JSON:
        print_json([asdict(one) for one in orphans])
        return
    rows = [(one.name, one.instance, one.state, one.error) for one in orphans]
    print_table(("orphan", "instance", "state", "error"), rows, "no orphans")


def _print_line(one: Orphan, output: Format) -> None:
    """With --watch: what was ended or could not be."""
    if one.state not in (State.ENDED, State.FAILED):
        return
    if output is Format.JSON:
        typer.echo(json.dumps(asdict(one)))
    else:
        typer.echo(f"{one.state} {one.name} ({one.instance})" + (f": {one.error}" if one.error else ""))
