"""`roost serve`: run the server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli.output import BAD_CONFIG, UNUSABLE, Failure

EPILOG = """
Every setting of `roost config show` can also be given with --set KEY=VALUE, as ROOST_KEY in the environment, or
in the TOML file of --config; flags win over the environment, which wins over the file.

Examples:
$ roost serve
$ roost serve --listen unix:/run/roost/roost.sock --data-dir /var/lib/roost
$ roost serve --listen 0.0.0.0:7117 --tls-cert server.pem --tls-key server.key --admin-key-file admin.key
$ roost serve --dump-target /var/lib/roost-dumps --stale-timeout 30m
$ roost serve --max-resident 10 --set default_lease_ms=90s --set max_turn_bytes=512KiB
"""


Listen = Annotated[
    str | None, typer.Option(help="Where to listen: host:port (port 0: any) or unix:PATH.", metavar="ADDR")
]
AdminListen = Annotated[
    str | None, typer.Option(help="Where /metrics, /healthz and /readyz are: host:port or unix:PATH.", metavar="ADDR")
]
DataDir = Annotated[str | None, typer.Option(help="Directory of the store; made if it is not there.", metavar="DIR")]
ConfigFile = Annotated[str | None, typer.Option("--config", envvar="ROOST_CONFIG", help="A TOML file.", metavar="FILE")]
MaxResident = Annotated[str | None, typer.Option(help="Sessions kept in memory.", metavar="N")]
MaxTree = Annotated[str | None, typer.Option(help="Turns that run at once in one tree.", metavar="N")]
MaxTenant = Annotated[str | None, typer.Option(help="Turns that run at once in all; 0 pauses.", metavar="N")]
DumpTarget = Annotated[
    str | None, typer.Option(help="Where ended sessions are dumped: a directory or s3://, gs://, az://.", metavar="URL")
]
StaleTimeout = Annotated[
    str | None, typer.Option(help="Idle time after which a tree is closed; 0: never.", metavar="TIME")
]
SweepInterval = Annotated[str | None, typer.Option(help="How often stale trees are closed; 0: never.", metavar="TIME")]
DrainTimeout = Annotated[str | None, typer.Option(help="Time running calls get at SIGTERM.", metavar="TIME")]
LogFormat = Annotated[str | None, typer.Option(help="json or logfmt.", metavar="FORMAT")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.", metavar="LEVEL")]
TlsCert = Annotated[
    str | None, typer.Option("--tls-cert", help="The server's certificate and its chain, PEM.", metavar="FILE")
]
TlsKey = Annotated[str | None, typer.Option("--tls-key", help="Its private key, PEM.", metavar="FILE")]
TlsClientCa = Annotated[
    str | None,
    typer.Option("--tls-client-ca", help="Authorities of clients' certificates: each needs one then.", metavar="FILE"),
]
Insecure = Annotated[bool | None, typer.Option("--insecure", help="Listen in plaintext beyond this machine.")]
AdminKeyFile = Annotated[
    str | None, typer.Option(help="File with the admin key; with one, every call needs a key.", metavar="FILE")
]
Introspection = Annotated[str | None, typer.Option(help="Reflection and channelz: auto, on or off.", metavar="WHEN")]
More = Annotated[list[str] | None, typer.Option("--set", help="Any other setting; repeat.", metavar="KEY=VALUE")]


def flags(more: list[str] | None, **given: Any) -> dict[str, Any]:
    """The settings that the command line gives, by key. Failure for a --set that is none."""
    values = {key: value for key, value in given.items() if value is not None}
    for item in more or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise Failure(f"--set {item!r} is not KEY=VALUE", BAD_CONFIG)
        values[key.strip()] = value
    return values


def serve(
    listen: Listen = None,
    admin_listen: AdminListen = None,
    data_dir: DataDir = None,
    max_resident: MaxResident = None,
    max_turns_per_tree: MaxTree = None,
    max_turns_per_tenant: MaxTenant = None,
    dump_target: DumpTarget = None,
    stale_timeout: StaleTimeout = None,
    sweep_interval: SweepInterval = None,
    drain_timeout: DrainTimeout = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    introspection: Introspection = None,
    admin_key_file: AdminKeyFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    insecure: Insecure = None,
    config: ConfigFile = None,
    more: More = None,
) -> None:
    """Run the server until SIGTERM or SIGINT.

    The first signal drains (health first, then what runs, then the journal); a second one ends it at once.
    """
    from roost.server.config import ConfigError, load

    given = flags(
        more,
        listen=listen,
        admin_listen=admin_listen,
        data_dir=data_dir,
        max_resident_sessions=max_resident,
        max_turns_per_tree=max_turns_per_tree,
        max_turns_per_tenant=max_turns_per_tenant,
        dump_target=dump_target,
        default_stale_ms=stale_timeout,
        sweep_interval_ms=sweep_interval,
        drain_timeout_ms=drain_timeout,
        log_format=log_format,
        log_level=log_level,
        introspection=introspection,
        admin_key_file=admin_key_file,
        tls_cert_file=tls_cert,
        tls_key_file=tls_key,
        tls_client_ca_file=tls_client_ca,
        insecure=insecure,
    )
    try:
        configuration = load(given, config)
    except ConfigError as error:
        raise Failure(str(error), BAD_CONFIG) from error

    import functools
    import os

    os.environ.pop("ROOST_ADMIN_KEY", None)  # it has been read, and no child is to inherit it
    from roost._core import failpoint
    from roost.server.address import AddressError
    from roost.server.app import run
    from roost.store.base import StoreError
    from roost.store.sqlite import SqliteStore

    try:
        keep = configuration.settings.migration_backups
        code = run(configuration, functools.partial(SqliteStore, migration_backups=keep, at=failpoint))
    except ConfigError as error:
        raise Failure(str(error), BAD_CONFIG) from error
    except AddressError as error:
        raise Failure(str(error), error.exit_code) from error
    except StoreError as error:
        raise Failure(str(error), UNUSABLE) from error
    raise typer.Exit(code)
