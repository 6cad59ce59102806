"""`roost top`: a live view of a server in the terminal. All of it is from GetStats, which a server always answers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli.output import DEFAULT_TARGET, WRONG_USAGE, Failure, Format, Output, Target, Timeout, connect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from roost.client import Client
    from roost.v1.admin_service_pb2 import GetStatsResponse

EPILOG = """
q or Ctrl-C ends it. It goes on over restarts of the server. On a server with keys it needs the admin key.

With --json it prints an object a line, one each --interval; with --once one and ends. Rates are per second since the
line before; the first has none.

Examples:
$ roost top
$ roost top --once --target unix:/run/roost/roost.sock
$ roost top --json --interval 10 >> roost.jsonl
"""

Interval = Annotated[float, typer.Option("--interval", "-n", min=0.2, max=3_600, help="Seconds between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Print what is now, and end.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line; as -o json.")]

# What is shown: title, and of each line its name, the number, the limit that it is in use of, the counter of its rate;
# without a number that counter itself. In this order two columns of 24 lines hold it.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "turns",
        (
            ("running", "turns_running", "max_turns_per_tenant", "turns_begun"),
            ("slots held", "slots_held", "", ""),
            ("waiting", "waiting", "max_waiters", ""),
            ("committed", "", "", "turns_committed"),
            ("aborted", "", "", "turns_aborted"),
            ("expired", "", "", "turns_expired"),
            ("refusals", "", "", "refusals"),
            ("calls in flight", "calls_in_flight", "", ""),
            ("wait at the door, ms", "door_wait_ms", "", ""),
        ),
    ),
    (
        "journal and store",
        (
            ("lag, ms", "journal_lag_ms", "", ""),
            ("entries", "journal_entries", "", "entries_stored"),
            ("bytes", "journal_bytes", "journal_queue_bytes", ""),
            ("batches", "", "", "batches_stored"),
            ("refused", "", "", "batches_refused"),
            ("store bytes", "store_bytes", "max_store_bytes", ""),
            ("log bytes", "wal_bytes", "", ""),
            ("sealed", "sessions_sealed", "", "sessions_dumped"),
            ("loop delay p99, us", "loop_delay_p99_us", "", ""),
        ),
    ),
    (
        "residents",
        (
            ("sessions", "resident_sessions", "max_resident_sessions", "reloads"),
            ("bytes", "resident_bytes", "max_resident_bytes", ""),
            ("tree headers", "tree_headers", "", "header_loads"),
            ("evicted", "", "", "evictions"),
            ("opened", "", "", "sessions_opened"),
            ("closed", "", "", "sessions_closed"),
        ),
    ),
    (
        "mail",
        (
            ("in mailboxes", "messages_live", "", "messages_sent"),
            ("delivered", "", "", "messages_delivered"),
            ("consumed", "", "", "messages_consumed"),
            ("dead", "", "", "messages_dead"),
        ),
    ),
    (
        "outside",
        (
            ("resources", "resources", "max_resources", "resources_attached"),
            ("releasing", "resources_releasing", "", "resources_released"),
            ("waiting for pools", "pool_waiting", "", "pool_evictions"),
            ("orphans", "orphans_found", "", ""),
        ),
    ),
)


@dataclass(frozen=True)
class Look:
    """What a server told at one instant; `rates` by counter, empty where there is nothing to compare with."""

    at: float
    stats: GetStatsResponse
    rates: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For scripts: everything, under the names of GetStats."""
        stats = self.stats
        return {
            "time": round(time.time(), 3),
            "version": stats.version,
            "store_id": stats.store_id,
            "epoch": stats.epoch,
            "uptime_s": stats.uptime.seconds,
            "gauges": dict(sorted(stats.gauges.items())),
            "counters": dict(sorted(stats.counters.items())),
            "rates": {name: round(value, 3) for name, value in sorted(self.rates.items())},
            "limits": {limit.name: limit.value for limit in stats.limits},
        }


def look(client: Client, before: Look | None) -> Look:
    """Ask the server."""
    stats = client.get_stats()
    at = time.monotonic()
    rates: dict[str, float] = {}
    if before is not None and (before.stats.store_id, before.stats.epoch) == (stats.store_id, stats.epoch):
        seconds = max(at - before.at, 1e-3)
        rates = {name: (value - before.stats.counters[name]) / seconds for name, value in stats.counters.items()}
    return Look(at, stats, rates)


def render(target: str, seen: Look | None, trouble: str) -> RenderableType:
    """What the terminal shows."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(f"roost top  {target}", style="bold")
    parts: list[RenderableType] = [head]
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    if seen is None:
        return Group(*parts)
    stats, limits = seen.stats, {limit.name: limit.value for limit in seen.stats.limits}
    state = "low on disk" if stats.gauges.get("store_low") else "well"
    quarantined = stats.gauges.get("quarantined_trees", 0)
    head.append(
        f"  {stats.version}  store {stats.store_id}  epoch {stats.epoch}  up {_span(stats.uptime.seconds)}  "
        f"{state if not quarantined else f'{quarantined} trees set aside'}"
    )
    tables = []
    for title, lines in _PANELS:
        table = Table(box=None, pad_edge=False)
        for column in (title, "", "of", "/s"):
            table.add_column(column, justify="left" if column == title else "right", no_wrap=True)
        for name, gauge, limit, counter in lines:
            now = _amount(gauge, stats.gauges.get(gauge, 0)) if gauge else f"{stats.counters.get(counter, 0):,}"
            most = _amount(limit, limits[limit]) if limits.get(limit) else ""
            rate = f"{seen.rates[counter]:,.1f}" if counter in seen.rates else ""
            table.add_row(name, now, most, rate)
        tables.append(table)
    parts.append(Columns(tables, padding=(0, 4)))
    return Group(*parts)


def _amount(name: str, value: int) -> str:
    if not name.endswith("_bytes"):
        return f"{value:,}"
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def _span(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    return (f"{days} d " if days else "") + f"{rest // 3_600:02}:{rest % 3_600 // 60:02}:{rest % 60:02}"


def top(
    target: Target = DEFAULT_TARGET,
    interval: Interval = 2.0,
    once: Once = False,
    as_json: Json = False,
    output: Output = Format.TABLE,
    timeout: Timeout = 2.0,
) -> None:
    """Show turns, slots, residents, waiters, mail, resources and the journal of a server, live."""
    as_json = as_json or output is Format.JSON
    with connect(target, timeout) as client:
        if once:
            _once(client, target, as_json)
        elif as_json:
            _lines(client, interval)
        elif sys.stdout.isatty():
            _live(client, target, interval)
        else:
            raise Failure("this is no terminal: say --once or --json", WRONG_USAGE)


def _once(client: Client, target: str, as_json: bool) -> None:
    from rich.console import Console

    seen = look(client, None)
    if as_json:
        typer.echo(json.dumps(seen.as_dict()))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120, no_color=True)
    console.print(render(target, seen, ""))


def _looks(client: Client, wait: Callable[[], bool]) -> Iterator[tuple[Look | None, str]]:
    """The newest look, and what is wrong with the server if anything; ends when `wait` says so."""
    from roost.errors import CallTimeout, ConnectionFailed, ShuttingDown

    seen: Look | None = None
    lost = 0.0
    while True:
        trouble = ""
        try:
            seen = look(client, seen)
            lost = 0.0
        except (CallTimeout, ConnectionFailed, ShuttingDown):
            lost = lost or time.monotonic()
            trouble = f"no answer for {time.monotonic() - lost:.0f} s; it is asked again"
        yield seen, trouble
        if wait():
            return


def _lines(client: Client, interval: float) -> None:
    """While the server cannot be reached nothing is printed but a line on stderr, once."""
    told = False

    def wait() -> bool:
        time.sleep(interval)
        return False

    with contextlib.suppress(KeyboardInterrupt):
        for seen, trouble in _looks(client, wait):
            if trouble and not told:
                typer.echo(f"roost: {trouble}", err=True)
            elif seen is not None and not trouble:
                print(json.dumps(seen.as_dict()), flush=True)
            told = bool(trouble)


def _live(client: Client, target: str, interval: float) -> None:
    from rich.live import Live

    live = Live(screen=True, auto_refresh=False, transient=True)
    with _interrupts() as interrupts, _keys(interrupts) as pressed, live:
        for seen, trouble in _looks(client, lambda: pressed(interval)):
            live.update(render(target, seen, trouble), refresh=True)


@contextlib.contextmanager
def _interrupts() -> Iterator[int]:
    """A file that can be read when Ctrl-C was pressed. An exception would come in the middle of what is drawn, or where
    Python drops it: in a finalizer."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    woken, handled = signal.set_wakeup_fd(writes), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield reads
    finally:
        signal.signal(signal.SIGINT, handled)
        signal.set_wakeup_fd(woken)
        os.close(reads)
        os.close(writes)


@contextlib.contextmanager
def _keys(interrupts: int) -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds and says whether q or Ctrl-C came. The terminal is left as it was."""
    if not sys.stdin.isatty():
        yield lambda seconds: bool(select.select([interrupts], [], [], seconds)[0])
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready = select.select([fd, interrupts], [], [], left)[0]
            if interrupts in ready:
                return True
            if ready:
                typed = os.read(fd, 1_024)  # not through a buffer, which select does not see
                if not typed or b"q" in typed.lower():
                    return True
        return False

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
