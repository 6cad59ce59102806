"""`roost backup` and `roost restore`: a store to a directory and back. Neither needs a server; a backup minds none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli.output import BAD_CONFIG, UNUSABLE, Failure, Format, Output, print_json
from roost.cli.serve import ConfigFile, DataDir, flags

if TYPE_CHECKING:
    from roost.store.backup import Manifest
    from roost.store.restore import Restored

BACKUP_EPILOG = """
The store may be served meanwhile. The backup holds all that was acknowledged before it began, and is verified: it is
made as TO.partial, and bears its name once it is whole. Run it as the user of the server, on its machine.

The server's secret is left out unless --with-secret says so: keep it apart from the backups (docs/OPERATIONS.md).

Exit codes: 69 if the data directory or TO cannot be used; 78 wrong configuration.

Examples:
$ roost backup /var/backups/roost-2026-11-22 --data-dir /var/lib/roost
$ roost backup /mnt/backups/before-upgrade --config /etc/roost.toml --with-secret
"""

RESTORE_EPILOG = """
No server may run on the data directory. The backup is verified before anything takes its place; a restore that is
killed leaves no store, or the one that was there, and can be repeated. The epoch grows by far, so that names and tokens
which were given out after the backup mean nothing in the store that comes from it.

With --replace the store that is there is put aside, into DIR/replaced-..; remove it when you need it no more.

Exit codes: 69 if the backup or the data directory cannot be used; 78 wrong configuration.

Examples:
$ roost restore /var/backups/roost-2026-11-22 --data-dir /var/lib/roost --secret /root/roost.secret
$ roost restore /var/lib/roost/backups/schema-7-epoch-12 --data-dir /var/lib/roost --replace
$ roost restore /var/backups/roost-2026-11-22 --check
"""

To = Annotated[Path, typer.Argument(help="The directory to make.", metavar="TO")]
From = Annotated[Path, typer.Argument(help="The directory that a backup made.", metavar="FROM")]
WithSecret = Annotated[bool, typer.Option("--with-secret", help="Put the server's secret into the backup.")]
Secret = Annotated[Path | None, typer.Option("--secret", help="The server's secret, as roost.secret.", metavar="FILE")]
Replace = Annotated[bool, typer.Option("--replace", help="Put the store that is there aside.")]
Check = Annotated[bool, typer.Option("--check", help="Verify the backup and restore nothing.")]


def data_dir_of(data_dir: str | None, config: str | None) -> Path:
    """The directory of the store, as the server would take it. Failure for a configuration that cannot be used."""
    from roost.server.config import ConfigError, load

    if data_dir:
        return Path(data_dir)
    try:
        return Path(load(flags(None), config).settings.data_dir)
    except ConfigError as error:
        raise Failure(str(error), BAD_CONFIG) from error


def backup(
    to: To,
    data_dir: DataDir = None,
    with_secret: WithSecret = False,
    output: Output = Format.TABLE,
    config: ConfigFile = None,
) -> None:
    """Copy a store, served or not, into a new directory, and verify the copy."""
    from roost._core import failpoint
    from roost.store.backup import back_up
    from roost.store.base import StoreError

    where = data_dir_of(data_dir, config)
    try:
        with bar() as progress:
            manifest = back_up(where, to, with_secret=with_secret, progress=progress, at=failpoint)
    except StoreError as error:
        raise Failure(str(error), UNUSABLE) from error
    if output is Format.JSON:
        print_json(manifest.model_dump(mode="json") | {"path": str(to)})
        return
    typer.echo(f"Backed up to {to}, verified: {_summary(manifest)}.")
    if not with_secret and manifest.secret_sha256:
        typer.echo(f"{where / 'roost.secret'} is not in it: keep a copy of it elsewhere, once.")


def restore(
    source: From,
    data_dir: DataDir = None,
    secret: Secret = None,
    replace: Replace = False,
    check: Check = False,
    output: Output = Format.TABLE,
    config: ConfigFile = None,
) -> None:
    """Make a backup the store of a data directory that has none."""
    from roost._core import failpoint
    from roost.store.backup import verify
    from roost.store.base import StoreError
    from roost.store.restore import restore as put_back

    try:
        if check:
            with bar() as progress:
                whole = verify(source, progress)
            _tell_whole(source, whole, output)
            return
        where = data_dir_of(data_dir, config)
        with bar() as progress:
            done = put_back(source, where, secret_file=secret, replace=replace, progress=progress, at=failpoint)
    except StoreError as error:
        raise Failure(str(error), UNUSABLE) from error
    _tell_restored(source, where, done, output)


def _tell_whole(source: Path, manifest: Manifest, output: Format) -> None:
    if output is Format.JSON:
        print_json({"backup": manifest.model_dump(mode="json")})
    else:
        typer.echo(f"{source} is whole: {_summary(manifest)}.")


def _tell_restored(source: Path, where: Path, done: Restored, output: Format) -> None:
    manifest = done.manifest
    if output is Format.JSON:
        more = {"epoch": done.epoch, "last_seq": done.last_seq, "secret": done.secret}
        print_json({"backup": manifest.model_dump(mode="json"), **more, "replaced": str(done.replaced or "")})
        return
    typer.echo(f"Restored {source} of {manifest.when()} into {where}: {_summary(manifest)}. Its epoch is {done.epoch}.")
    if done.replaced is not None:
        typer.echo(f"The store that was there is in {done.replaced}: remove it when you need it no more.")
    said = {
        "none": "There is no roost.secret: the server makes a new one, and the keys of sessions end.",
        "other": f"{where / 'roost.secret'} is another than this store had: the keys of its sessions end.",
    }
    if manifest.secret_sha256 and done.secret in said:
        typer.echo(said[done.secret])


def _summary(manifest: Manifest) -> str:
    counts = manifest.counts
    size = manifest.files["roost.db"].bytes / (1 << 20)
    return (
        f"store {manifest.store_id}, schema version {manifest.schema_version}, {counts.get('session', 0)} sessions, "
        f"{counts.get('record', 0)} records, {size:.1f} MiB"
    )


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description:>8}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("begin", total=None)
        now = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal now
            if what != now:
                now = what
                shown.reset(task, description=what)
            shown.update(task, completed=done, total=total or None)

        yield show
