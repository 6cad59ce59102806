"""`roost stats`: counters, gauges and limits of a running server."""

from __future__ import annotations

import typer

from roost.cli.output import DEFAULT_TARGET, Format, Output, Target, Timeout, as_dict, connect, print_json, print_table

EPILOG = """
Examples:
$ roost stats
$ roost stats --target unix:/run/roost/roost.sock -o json
"""


def stats(target: Target = DEFAULT_TARGET, output: Output = Format.TABLE, timeout: Timeout = 10.0) -> None:
    """Print what a server counts, holds and allows."""
    with connect(target, timeout) as client:
        answer = client.get_stats()
    if output is Format.JSON:
        print_json(as_dict(answer))
        return
    typer.echo(f"roost {answer.version}, store {answer.store_id}, epoch {answer.epoch}, up {answer.uptime.seconds} s")
    numbers = [*sorted(answer.gauges.items()), *sorted(answer.counters.items())]
    print_table(("name", "value"), numbers, "no numbers")
    limits = [(limit.name, limit.value, "" if limit.used < 0 else limit.used, limit.source) for limit in answer.limits]
    print_table(("limit", "value", "used", "source"), limits, "no limits")
