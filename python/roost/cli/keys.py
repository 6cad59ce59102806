"""`roost keys create|list|revoke|new-admin-key`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    UNUSABLE,
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
    from roost.v1.admin_service_pb2 import ApiKey

app = typer.Typer(help="Make, list and revoke the API keys of tenants; for the admin key.", no_args_is_help=True)

_CREATE_EPILOG = """
The key is printed on stdout, alone, and is shown here only. With the same --request-id the same key is printed again.
A tenant has at most two active keys: to rotate, make the second, bring it to whoever uses the first, revoke the first.

Examples:
$ roost --api-key-file admin.key keys create acme > acme.key
$ roost --api-key-file admin.key keys create acme --request-id acme-2026-07 -o json
"""


@app.command("create", epilog=_CREATE_EPILOG)
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant.", metavar="TENANT")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    request_id: Annotated[str | None, typer.Option(help="Names this request, for a repeat.", metavar="ID")] = None,
    timeout: Timeout = 10.0,
) -> None:
    """Make a key of a tenant and print it."""
    with connect(target, timeout) as client:
        answer = client.create_api_key(tenant, request_id=request_id)
    if output is Format.JSON:
        print_json(as_dict(answer))
        return
    if answer.api_key.HasField("revoke_time"):
        typer.echo(f"key {answer.api_key.key_id} has been revoked since it was made", err=True)
    typer.echo(f"key {answer.api_key.key_id} of tenant {answer.api_key.tenant}", err=True)
    typer.echo(answer.key)


_LIST_EPILOG = """
Examples:
$ roost --api-key-file admin.key keys list
$ roost --api-key-file admin.key keys list --tenant acme -o json
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    tenant: Annotated[str, typer.Option(help="Only those of this tenant.", metavar="TENANT")] = "",
    timeout: Timeout = 10.0,
) -> None:
    """List keys in order of creation, revoked ones too; never the keys themselves."""
    with connect(target, timeout) as client:
        found = list(client.list_api_keys(tenant=tenant))
    if output is Format.JSON:
        print_json([as_dict(key) for key in found])
        return
    print_table(("key id", "tenant", "created", "revoked"), [_row(key) for key in found], "no keys")


_REVOKE_EPILOG = """
From the answer on no call with the key is accepted. Turns that run keep their leases. Revoking again does no harm.

Example:
$ roost --api-key-file admin.key keys revoke 0197f3c2a1b47c3d9e5f60718293a4b5
"""


@app.command("revoke", epilog=_REVOKE_EPILOG)
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `list` prints it.", metavar="KEY_ID")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Revoke a key."""
    with connect(target, timeout) as client:
        answer = client.revoke_api_key(key_id)
    if output is Format.JSON:
        print_json(as_dict(answer))
        return
    print_table(("key id", "tenant", "created", "revoked"), [_row(answer.api_key)], "no keys")


_NEW_EPILOG = """
Needs no server. Start one with the file: from then on every call needs a key.

Example:
$ roost keys new-admin-key admin.key
$ roost serve --admin-key-file admin.key
"""


@app.command("new-admin-key", epilog=_NEW_EPILOG)
def new_admin_key(file: Annotated[str, typer.Argument(help="The file to make.", metavar="FILE")]) -> None:
    """Make an admin key in a new file that only you can read."""
    from roost._core import new_admin_key as make

    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Failure(f"{file} exists; an admin key is made in a new file", UNUSABLE) from error
    with os.fdopen(fd, "w", encoding="ascii") as made:
        made.write(make() + "\n")
        made.flush()
        os.fsync(made.fileno())
    typer.echo(f"made {file}: start the server with --admin-key-file {file}", err=True)


def _row(key: ApiKey) -> tuple[object, ...]:
    def when(field: str) -> str:
        time = getattr(key, field)
        return time.ToDatetime().isoformat(timespec="seconds") if key.HasField(field) else ""

    return key.key_id, key.tenant, when("create_time"), when("revoke_time")
