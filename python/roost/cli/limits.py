"""`roost limits list|set|reset`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    WRONG_USAGE,
    Failure,
    Format,
    Output,
    Target,
    Timeout,
    as_dict,
    connect,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from roost.v1.admin_service_pb2 import Limit

app = typer.Typer(help="See and change a server's limits while it runs; for the admin key.", no_args_is_help=True)

_LIST_EPILOG = """
Examples:
$ roost limits list
$ roost limits list -o json
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(target: Target = DEFAULT_TARGET, output: Output = Format.TABLE, timeout: Timeout = 10.0) -> None:
    """Print the limits in force, how much of each is in use, and where it comes from ("set": by this command)."""
    with connect(target, timeout) as client:
        found = client.get_stats().limits
    _print(found, output)


_SET_EPILOG = """
All of them are changed, or none. Sizes take KiB, MiB, GiB, times ms, s, m, h, d; without a unit they are bytes and
milliseconds. What is set is kept over restarts and wins over the configuration, until it is reset. Lowering a cap ends
nothing that runs.

Examples:
$ roost limits set max_turns_per_tenant=0
$ roost limits set max_turns_per_tree=16 max_wait_ms=60s
"""


@app.command("set", epilog=_SET_EPILOG)
def set_(
    changes: Annotated[list[str], typer.Argument(help="The limits and their new values.", metavar="NAME=VALUE...")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Change limits; prints those that were named, as they are now."""
    from roost.server.config import ConfigError, amount

    values: dict[str, int] = {}
    for change in changes:
        name, found, text = change.partition("=")
        if not found or not name:
            raise Failure(f"{change!r} is not NAME=VALUE", WRONG_USAGE)
        if name in values:
            raise Failure(f"{name} is given twice", WRONG_USAGE)
        try:
            values[name] = amount(name, text)
        except ConfigError as error:
            raise Failure(str(error), WRONG_USAGE) from error
    with connect(target, timeout) as client:
        limits = client.set_limits(values).limits
    _print([limit for limit in limits if limit.name in values], output)


_RESET_EPILOG = """
Example:
$ roost limits reset max_turns_per_tenant
"""


@app.command("reset", epilog=_RESET_EPILOG)
def reset(
    names: Annotated[list[str], typer.Argument(help="The limits.", metavar="NAME...")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Have the configuration say limits again; prints them as they are now."""
    with connect(target, timeout) as client:
        limits = client.set_limits(reset=names).limits
    _print([limit for limit in limits if limit.name in names], output)


def _print(limits: Iterable[Limit], output: Format) -> None:
    if output is Format.JSON:
        print_json([as_dict(limit) for limit in limits])
        return
    rows = [(limit.name, limit.value, "" if limit.used < 0 else limit.used, limit.source) for limit in limits]
    print_table(("limit", "value", "used", "source"), rows, "no limits")
