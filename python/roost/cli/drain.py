"""`roost drain`: have the server of a data directory finish and end, as SIGTERM does.

It is a signal and no RPC: whoever may end the process may drain it, and nobody else; no key is needed, and a server
that no client reaches any more can still be told. SIGUSR1 rather than SIGTERM, because that may come twice.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from roost.cli.output import BAD_CONFIG, CANNOT_REACH, UNUSABLE, Failure
from roost.cli.serve import ConfigFile, DataDir

if TYPE_CHECKING:
    import psutil

EPILOG = """
Readiness goes off, calls that wait end with UNAVAILABLE, calls that run finish (for drain_timeout_ms at most), the
journal is written, and the process ends. Turns that run keep their leases, and go on with the server's next start.
It runs on the server's machine, as its user. A server that drains already goes on with it.

Examples:
$ roost drain --data-dir /var/lib/roost
$ kubectl exec roost-0 -- roost drain --config /etc/roost/config/roost.toml
"""
_MOST_DIGITS: Final = 20
_POLL_SECONDS: Final = 0.05  # of a process that is not ours there is nothing to wait for


def drain(
    data_dir: DataDir = None,
    config: ConfigFile = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.0, help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """Have the server of a data directory finish what runs, and end; returns when it has ended."""
    import psutil

    from roost.server.config import ConfigError, load

    try:
        directory = load({} if data_dir is None else {"data_dir": data_dir}, config).settings.data_dir
    except ConfigError as error:
        raise Failure(str(error), BAD_CONFIG) from error
    try:
        server = server_of(Path(directory))
        if server is None:
            raise Failure(f"no server on this machine uses {directory}", CANNOT_REACH)
        server.send_signal(signal.SIGUSR1)
        until = time.monotonic() + timeout
        # One that nobody has collected yet has ended as well: its files are closed.
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                raise Failure(f"the server has not ended within {timeout:g} s; it goes on draining", CANNOT_REACH)
            time.sleep(_POLL_SECONDS)
    except psutil.NoSuchProcess:
        pass  # it ended by itself meanwhile
    except (psutil.AccessDenied, PermissionError):
        raise Failure(f"the server of {directory} belongs to another user", UNUSABLE) from None
    typer.echo("drained")


def server_of(directory: Path) -> psutil.Process | None:
    """The process that has claimed a data directory. The number in its lock file may be that of a server long gone,
    and belong to any other process by now: it is the one only if it has that file open."""
    import psutil

    from roost.store.claim import LOCK_FILE

    lock = directory / LOCK_FILE
    try:
        number = lock.read_text("ascii", errors="replace")[:_MOST_DIGITS].strip()
    except FileNotFoundError:
        return None
    if not number.isdecimal() or int(number) >= 1 << 31:
        return None
    try:
        process = psutil.Process(int(number))
        opened = {Path(file.path) for file in process.open_files()}
    except psutil.NoSuchProcess:
        return None
    return process if lock.resolve() in opened else None
