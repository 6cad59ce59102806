"""`roost`: the root of the command line, its exit codes and its errors.

Commands are imported when they run. A command that fails raises `Failure` (or a client, store or configuration error,
which become one): one sentence on stderr and the exit code of the table below, never a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final, NoReturn

import typer

from roost.cli.output import CANNOT_REACH, REFUSED, UNUSABLE, WRONG_USAGE, Failure, use_key_file, use_tls

EPILOG = """
Exit codes:
   0  done
   1  the server refused the call; a check failed (doctor)
   2  wrong usage
   3  the server cannot be reached, or gave no answer in time; nor did the place of dumps (dumps)
   4  what was kept is not what it should be (replay --verify, demo, dumps verify); an orphan is left (reap)
   6  the server gave wrong answers (load)
  69  the address, the data directory, a backup, the place of dumps or the output cannot be used; nothing can be
      listed (reap)
  70  the store failed while serving, or belongs to another server now
  78  wrong configuration
 130, 143  ended by SIGINT or SIGTERM; the server by a second one

Examples:
 $ roost serve --listen 127.0.0.1:7117 --data-dir ./roost-data
 $ roost sessions list --state open -o json
 $ roost stats --target unix:/run/roost/roost.sock
 $ roost --api-key-file admin.key keys create acme
 $ roost --tls-ca ca.pem stats --target roost.example:7117
"""

app = typer.Typer(
    name="roost",
    help="Roost keeps the life of LLM-agent sessions: turns, slots, residency, history, the end.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from roost._core import VERSION

        typer.echo(f"roost {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    api_key_file: Annotated[
        str,
        typer.Option(
            envvar="ROOST_API_KEY_FILE",
            help="File with the API key to call with; or set ROOST_API_KEY.",
            metavar="FILE",
        ),
    ] = "",
    tenant: Annotated[
        str, typer.Option(envvar="ROOST_TENANT", help="The tenant to act for, with the admin key.", metavar="NAME")
    ] = "",
    tls: Annotated[
        bool | None, typer.Option("--tls/--no-tls", envvar="ROOST_TLS", help="Call with TLS.", show_default=False)
    ] = None,
    tls_ca: Annotated[
        str,
        typer.Option(
            envvar="ROOST_TLS_CA", help="Authorities to trust, PEM; else those that come with gRPC.", metavar="FILE"
        ),
    ] = "",
    tls_cert: Annotated[
        str, typer.Option(envvar="ROOST_TLS_CERT", help="The certificate to call with (mTLS), PEM.", metavar="FILE")
    ] = "",
    tls_key: Annotated[str, typer.Option(envvar="ROOST_TLS_KEY", help="Its private key, PEM.", metavar="FILE")] = "",
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar="ROOST_TLS_SERVER_NAME",
            help="The name that the server's certificate must bear, if not the host of --target.",
            metavar="NAME",
        ),
    ] = "",
) -> None:
    # gRPC's core tells of failed handshakes by itself, once for each try; what matters of it is in our one sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    use_tls(tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name)
    if api_key_file:
        use_key_file(api_key_file)
    if tenant:
        os.environ["ROOST_TENANT"] = tenant


# Commands in the order of the help, each with its module: a function of its name, or an `app` with commands of its own.
COMMANDS: Final = {
    "serve": "serve",
    "sessions": "sessions",
    "mail": "mail",
    "trajectories": "trajectories",
    "dumps": "dumps",
    "resources": "resources",
    "keys": "keys",
    "limits": "limits",
    "drain": "drain",
    "stats": "stats",
    "top": "top",
    "sweep": "sweep",
    "reap": "reap",
    "config": "config_cmd",
    "backup": "backup",
    "restore": "backup",
    "doctor": "doctor",
    "replay": "replay",
    "load": "load",
    "demo": "demo",
}


# Options before the command that take a value.
_VALUES: Final = {"--api-key-file", "--tenant", "--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name"}


def register(argv: Sequence[str]) -> None:
    """Register the command that argv begins with, after options that every command takes; all of them where something
    else is: then it may be any, or for help. To build them all takes longer than most of them take."""
    words = iter(argv)
    for word in words:
        if word in _VALUES:
            next(words, None)
        elif word.partition("=")[0] not in _VALUES and word not in ("--tls", "--no-tls"):
            break
    else:
        word = ""
    for name in [word] if word in COMMANDS else COMMANDS:
        module = importlib.import_module(f"roost.cli.{COMMANDS[name]}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            epilog = getattr(module, f"{name.upper()}_EPILOG", None) or module.EPILOG
            app.command(name, epilog=epilog)(getattr(module, name))


def main() -> NoReturn:
    """Run the command line; the console script."""
    try:
        _run()
    except SystemExit as end:
        # The threads of an object store's client may still come back to an interpreter that is being taken down, and
        # abort the process: whoever has used one leaves without that.
        if "obstore" in sys.modules:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _run() -> NoReturn:
    try:
        register(sys.argv[1:])
        app(prog_name="roost")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        sys.exit(141)
    except Failure as failure:
        _end(str(failure), failure.exit_code)
    except Exception as error:
        from roost.errors import CallTimeout, ConnectionFailed, RoostError

        if isinstance(error, CallTimeout):
            _end(f"no answer in time: {error.message}", CANNOT_REACH)
        if isinstance(error, ConnectionFailed):
            _end(f"cannot reach the server: {error.message}", CANNOT_REACH)
        if isinstance(error, RoostError):
            _end(str(error), REFUSED)
        if isinstance(error, ValueError):  # of an option that the API's types cannot hold
            _end(str(error), WRONG_USAGE)
        if isinstance(error, OSError):
            _end(f"{error.filename or 'output'}: {error.strerror or error}", UNUSABLE)
        raise
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    print(f"roost: {message}", file=sys.stderr)
    sys.exit(code)
