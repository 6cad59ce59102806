"""`roost dumps list|show|verify`: on the place where dumps lie, without a server; `restore`: by a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from roost.cli.output import (
    CANNOT_REACH,
    DEFAULT_TARGET,
    DIFFERENT,
    REFUSED,
    UNUSABLE,
    WRONG_USAGE,
    Failure,
    Format,
    Output,
    as_dict,
    connect,
    print_json,
    print_table,
)
from roost.cli.output import Target as Server

if TYPE_CHECKING:
    from roost.handlers.dump.errors import DumpError
    from roost.handlers.dump.manifest import Manifest, Part
    from roost.handlers.dump.target import Target
    from roost.v1.trajectory_service_pb2 import RestoreResult

T = TypeVar("T")
_PAGE = 1_000

_AT_ONCE = 10  # dumps that one call restores: progress shows after each

app = typer.Typer(help="Dumps of ended sessions, where they lie; only `restore` needs a server.", no_args_is_help=True)

Where = Annotated[
    str,
    typer.Argument(
        help="A directory, or a URL: file://, s3://, gs://, az://.", metavar="URL", envvar="ROOST_DUMP_TARGET"
    ),
]
Name = Annotated[str, typer.Argument(help="The dump: <tenant uid>/<session uid>-<close number>.", metavar="NAME")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="An option of the object store, as endpoint or region; repeat. Secrets belong into the environment.",
        metavar="KEY=VALUE",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that one read may take.")]

_ACCESS = """
Object stores take their options from --option and from the environment as their own tools do: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_SERVICE_ACCOUNT; AZURE_STORAGE_ACCOUNT_NAME, ..
"""

_LIST_EPILOG = (
    _ACCESS
    + """
Examples:
$ roost dumps list /var/lib/roost-dumps
$ roost dumps list s3://bucket/dumps --option region=eu-central-1 --tenant default -o json
"""
)


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    where: Where,
    output: Output = Format.TABLE,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant, by its name.", metavar="NAME")] = None,
    after: Annotated[str, typer.Option(help="Only what comes behind this dump.", metavar="NAME")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 1_000,
    option: Options = None,
    timeout: Timeout = 60.0,
) -> None:
    """List dumps, in order of name."""
    from roost.handlers.dump.reader import list_dumps

    async def look(target: Target) -> list[str]:
        names: list[str] = []
        while len(names) <= limit:
            wanted = min(_PAGE, limit + 1 - len(names))
            page = await list_dumps(target, tenant=tenant, after=names[-1] if names else after, limit=wanted)
            names += page
            if len(page) < wanted:
                break
        return names

    names = _run(where, option, timeout, look)
    shown = names[:limit]
    if output is Format.JSON:
        print_json(shown)
    else:
        print_table(("dump",), [(name,) for name in shown], "no dumps")
    if len(names) > limit:
        typer.echo(f"there are more than {limit}; go on with --after {shown[-1]}", err=True)


_SHOW_EPILOG = """
Example:
$ roost dumps show /var/lib/roost-dumps bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-1
"""


@app.command("show", epilog=_SHOW_EPILOG)
def show(
    where: Where, name: Name, output: Output = Format.TABLE, option: Options = None, timeout: Timeout = 60.0
) -> None:
    """Print what a dump holds, as its manifest says."""
    from roost.handlers.dump.reader import read_manifest

    manifest = _run(where, option, timeout, lambda target: read_manifest(target, name))
    if output is Format.JSON:
        print_json(asdict(manifest))
        return
    rows = [
        ("session uid", manifest.uid),
        ("close number", manifest.close_number),
        ("written by", f"Roost {manifest.roost}, schema {manifest.schema}"),
        ("records", manifest.counts.records),
        ("trajectories", manifest.counts.trajectories),
        ("unread messages", manifest.counts.mail),
        ("lines", manifest.counts.lines),
        ("bytes", manifest.counts.bytes),
        ("bytes stored", manifest.stored_bytes),
        ("parts", len(manifest.parts)),
        ("sha256 of the lines", manifest.sha256),
    ]
    print_table(("field", "value"), rows, "nothing")


_VERIFY_EPILOG = (
    _ACCESS
    + """
Exit codes: 4 if a dump is damaged.

Examples:
$ roost dumps verify /var/lib/roost-dumps
$ roost dumps verify s3://bucket/dumps bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-1
"""
)


@app.command("verify", epilog=_VERIFY_EPILOG)
def verify(
    where: Where,
    name: Annotated[str | None, typer.Argument(help="Only this dump; without it all.", metavar="NAME")] = None,
    output: Output = Format.TABLE,
    option: Options = None,
    timeout: Timeout = 60.0,
) -> None:
    """Read dumps whole: their parts against the manifest, their payloads against their digests, their histories against
    the hash chain. One that is damaged keeps the others from nothing."""
    from roost.handlers.dump.errors import DumpError, Why
    from roost.handlers.dump.reader import list_dumps, verify_dump

    async def look(target: Target) -> list[dict[str, Any]]:
        found = []
        with _progress() as (begin, advance):
            async for one in _names(target):
                begin(one)
                try:
                    manifest = await verify_dump(target, one, progress=advance)
                except DumpError as error:
                    if error.why not in {Why.DAMAGED, Why.NEWER} and (name or error.why is not Why.NOT_FOUND):
                        raise
                    found.append({"dump": one, "ok": False, "records": 0, "bytes": 0, "error": str(error)})
                else:
                    counts = manifest.counts
                    found.append(
                        {"dump": one, "ok": True, "records": counts.records, "bytes": counts.bytes, "error": ""}
                    )
        return found

    async def _names(target: Target) -> Any:
        if name is not None:
            yield name
            return
        page = await list_dumps(target)
        while page:
            for one in page:
                yield one
            page = await list_dumps(target, after=page[-1])

    found = _run(where, option, timeout, look)
    if output is Format.JSON:
        print_json(found)
    else:
        rows = [(one["dump"], "ok" if one["ok"] else one["error"], one["records"], one["bytes"]) for one in found]
        print_table(("dump", "verified", "records", "bytes"), rows, "no dumps")
    bad = [one for one in found if not one["ok"]]
    if bad:
        raise Failure(
            bad[0]["error"] if len(found) == 1 else f"{len(bad)} of {len(found)} dumps do not verify", DIFFERENT
        )


_RESTORE_EPILOG = """
The server reads its own dump target (dump_target); --from, which may be another way to the same place, only says which
dumps --all names: of each session of the tenant the one of its last close. The tenant is that of `roost --tenant`, or
else default. Parents come before their children. Sessions come back CLOSED; ReopenSession makes them live.

Exit codes: 1 if a dump was refused (with --all not for sessions that the server knows already).

Examples:
$ roost dumps restore bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-1
$ roost dumps restore --all --from /var/lib/roost-dumps -o json
"""


@app.command("restore", epilog=_RESTORE_EPILOG)
def restore(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="The dumps: <tenant uid>/<session uid>-<close number>.", metavar="NAME...", show_default=False
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every session of the tenant that --from has a dump of.")] = False,
    where: Annotated[
        str | None,
        typer.Option("--from", help="Where --all finds the names.", metavar="URL", envvar="ROOST_DUMP_TARGET"),
    ] = None,
    target: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    option: Options = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that one call may take.")] = 600.0,
) -> None:
    """Have a server make sessions from their dumps."""
    if bool(names) == all_:
        raise typer.BadParameter("name dumps, or give --all", param_hint="NAME")
    if all_ and where is None:
        raise typer.BadParameter("--all needs to know where the dumps are", param_hint="--from")
    wanted = _latest(where, option, timeout) if all_ and where is not None else list(names or ())
    found = _restore(target, timeout, wanted)
    if output is Format.JSON:
        print_json([{"dump": name} | as_dict(found[name]) for name in wanted])
    else:
        rows = [(name, found[name].session.session_id, _told(found[name])) for name in wanted]
        print_table(("dump", "session", "restored"), rows, "no dumps")
    refused = [one.refusal for one in found.values() if one.HasField("refusal")]
    if all_:
        refused = [refusal for refusal in refused if refusal.reason != "SESSION_EXISTS"]
    if refused:
        sentence = f"{refused[0].reason}: {refused[0].message}"
        many = f"{len(refused)} of {len(wanted)} dumps were refused; the first: {sentence}"
        raise Failure(sentence if len(wanted) == 1 else many, REFUSED)


def _told(result: RestoreResult) -> str:
    if result.HasField("refusal"):
        return f"{result.refusal.reason}: {result.refusal.message}"
    return "before" if result.repeated else "yes"


def _latest(where: str, option: list[str] | None, timeout: float) -> list[str]:
    """The names of the dumps of each session's last close, in order of uid, of the tenant that the command acts for."""
    from roost.handlers.dump.names import check_dump
    from roost.handlers.dump.reader import list_dumps

    tenant = os.environ.get("ROOST_TENANT", "") or "default"

    async def look(target: Target) -> list[str]:
        latest: dict[str, tuple[int, str]] = {}
        page = await list_dumps(target, tenant=tenant)
        while page:
            for name in page:
                _, uid, number = check_dump(name)
                latest[uid] = max(latest.get(uid, (0, "")), (number, name))
            page = await list_dumps(target, tenant=tenant, after=page[-1])
        return [latest[uid][1] for uid in sorted(latest)]

    return _run(where, option, timeout, look)


def _restore(server: str, timeout: float, names: list[str]) -> dict[str, RestoreResult]:
    """What became of each. A child whose parent comes later in the list is tried again after it."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    found: dict[str, RestoreResult] = {}
    left = names
    with connect(server, timeout) as client:
        while left:
            starts = range(0, len(left), _AT_ONCE)
            for at in track(starts, "restoring", console=console, transient=True, disable=not console.is_terminal):
                some = left[at : at + _AT_ONCE]
                found |= zip(some, client.restore_sessions(some), strict=True)
            again = [name for name in left if found[name].refusal.reason == "PARENT_NOT_FOUND"]
            left = again if len(again) < len(left) else []
    return found


def _run(where: str, options: list[str] | None, timeout: float, work: Callable[[Target], Coroutine[Any, Any, T]]) -> T:
    """Open the target and do the work; a DumpError becomes a sentence and an exit code."""
    from roost.handlers.dump.errors import DumpError
    from roost.handlers.dump.target import open_target

    try:
        target = open_target(where, _mapping(options or []), operation_seconds=timeout)
        return asyncio.run(work(target))
    except DumpError as error:
        raise Failure(str(error), _exit_code(error)) from error


def _exit_code(error: DumpError) -> int:
    from roost.handlers.dump.errors import Why

    codes = {
        Why.INVALID: WRONG_USAGE,
        Why.UNREACHABLE: CANNOT_REACH,
        Why.SLOW: CANNOT_REACH,
        Why.DAMAGED: DIFFERENT,
        Why.NEWER: DIFFERENT,
    }
    return codes.get(error.why, UNUSABLE)


def _mapping(options: list[str]) -> dict[str, str]:
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise typer.BadParameter("--option takes KEY=VALUE")
        found[key] = value
    return found


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[Manifest, Part], None]]]:
    """A bar of the bytes of one dump after the other on stderr, while stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def begin(name: str) -> None:
            bar.reset(task, description=name.rpartition("/")[2], total=None)

        def advance(manifest: Manifest, part: Part) -> None:
            bar.update(task, total=manifest.counts.bytes, advance=part.raw_bytes)

        yield begin, advance
