"""`roost sweep`: the trees that are stale, and their end."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli.output import DEFAULT_TARGET, Format, Output, Target, Timeout, as_dict, connect, print_json, print_table

EPILOG = """
A tree is stale when nothing has happened in any of its sessions for the stale_timeout of its root, and no turn of it
runs or waits. The server closes stale trees by itself (sweep_interval_ms); this does it now.

Examples:
$ roost sweep --dry-run
$ roost sweep -o json
"""


def sweep(
    target: Target = DEFAULT_TARGET,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go; close nothing.")] = False,
    output: Output = Format.TABLE,
    timeout: Timeout = 30.0,
) -> None:
    """Close the trees in which nothing has happened for too long; prints them."""
    with connect(target, timeout) as client:
        answer = client.sweep(dry_run=dry_run)
    if output is Format.JSON:
        print_json([as_dict(tree) for tree in answer.trees])
        return
    rows = [
        (tree.root_session_id, tree.open_sessions, f"{tree.idle.ToSeconds()} s", f"{tree.stale_timeout.ToSeconds()} s")
        for tree in answer.trees
    ]
    print_table(("root", "sessions", "idle", "allowed"), rows, "no stale tree")
    if answer.more:
        typer.echo("There are more.")
    if rows and not dry_run:
        typer.echo("The server closes them now.")
