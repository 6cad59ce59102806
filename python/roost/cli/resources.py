"""`roost resources list|detach`: what sessions have outside, and its end."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    Format,
    Output,
    Target,
    Timeout,
    as_dict,
    connect,
    enum_word,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from roost.v1.resource_service_pb2 import Resource

app = typer.Typer(help="Look at what sessions have outside, and have it ended.", no_args_is_help=True)


class State(enum.StrEnum):
    """Filter of `list`."""

    PLANNED = "planned"
    LIVE = "live"
    RELEASING = "releasing"


_LIST_EPILOG = """
A resource is planned (it has its name, and perhaps exists), live (its host
said that it is there) or releasing (it is to end, and stays here until it
has). "tries" counts the failed attempts to end it, "error" is why the last one
failed, "next try" when the server tries again. One of kind client is ended by
its owner.

Examples:
$ roost resources list
$ roost resources list --session task-17
$ roost resources list --state releasing -o json
$ roost resources list --owner agents-3 --pool sandboxes
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    session: Annotated[str, typer.Option(help="Only those of this session.", metavar="ID")] = "",
    root: Annotated[str, typer.Option(help="Only those of the tree of this root session.", metavar="ID")] = "",
    owner: Annotated[str, typer.Option(help="Only those that this host made.", metavar="NAME")] = "",
    state: Annotated[State | None, typer.Option(help="Only this state.")] = None,
    pool: Annotated[str, typer.Option(help="Only those of this pool.", metavar="NAME")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 1_000,
    timeout: Timeout = 10.0,
) -> None:
    """List resources in the order of their names."""
    found: list[Resource] = []
    more = False
    with connect(target, timeout) as client:
        for resource in client.list_resources(
            session_id=session,
            root=root,
            owner=owner,
            state=state.value if state else None,
            pool=pool,
            page_size=min(limit, 1_000),
        ):
            if len(found) == limit:
                more = True
                break
            found.append(resource)
    if output is Format.JSON:
        print_json([as_dict(resource) for resource in found])
    else:
        columns = ("resource", "session", "kind", "state", "owner", "pool", "tries", "error", "next try")
        print_table(columns, [_row(resource) for resource in found], "no resources")
    if more:
        typer.echo(f"there are more than {limit}; raise --limit to see them", err=True)


_DETACH_EPILOG = """
Of a resource of kind client this says that it has ended: it is known no more,
and nobody is told to end it. One of another kind the server ends now; where it
could not so far, it tries again at once instead of after its back-off.
Detaching again does no harm.

Examples:
$ roost resources detach task-17 roost-1f0c77ab-12-0198c5f0a1b27c3d8e4f5a6b7c8d9e0f-1
$ roost resources list --session task-17
"""


@app.command("detach", epilog=_DETACH_EPILOG)
def detach(
    session_id: Annotated[str, typer.Argument(help="The session that it belongs to.", metavar="SESSION_ID")],
    name: Annotated[str, typer.Argument(help="Its name, as `list` prints it.", metavar="NAME")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Take a resource from its session: have the server end it now (or try again at once), or forget it."""
    with connect(target, timeout) as client:
        answer = client.detach_resource(session_id, name)
    if output is Format.JSON:
        print_json(as_dict(answer))
    elif answer.released:
        typer.echo(f"{name} is known no more")
    else:
        typer.echo(f"the server ends {name} now")


def _row(resource: Resource) -> tuple[object, ...]:
    from roost.v1 import resource_service_pb2 as r

    pool = resource.pool
    retry = resource.retry_time.ToDatetime().isoformat(timespec="seconds") if resource.HasField("retry_time") else ""
    return (
        resource.name,
        resource.session_id,
        enum_word(r.ResourceKind.Name(resource.kind), "RESOURCE_KIND_"),
        enum_word(r.ResourceState.Name(resource.state), "RESOURCE_STATE_"),
        resource.owner,
        f"{pool.name}/{pool.key}" if pool.key else pool.name,
        resource.attempts or "",
        resource.error,
        retry,
    )
