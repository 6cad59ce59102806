"""What the commands share: exit codes, errors, the options that name a server and a format, tables and JSON."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from roost.client import Client

REFUSED: Final = 1
WRONG_USAGE: Final = 2
CANNOT_REACH: Final = 3
DIFFERENT: Final = 4
UNUSABLE: Final = 69
STORE_FAILED: Final = 70
BAD_CONFIG: Final = 78

DEFAULT_TARGET: Final = "127.0.0.1:7117"
MOST: Final = (1 << 32) - 1  # of what the API counts with 32 bits


class Failure(Exception):
    """Ends the command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Format(enum.StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"


Target = Annotated[
    str, typer.Option("--target", envvar="ROOST_TARGET", help="The server: host:port or unix:PATH.", metavar="ADDR")
]
Output = Annotated[Format, typer.Option("--output", "-o", envvar="ROOST_OUTPUT", help="How to print.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")]


def connect(target: str, timeout: float) -> AbstractContextManager[Client]:
    """A client of the server; its calls raise what `main` turns into one sentence. The key is that of ROOST_API_KEY,
    where --api-key-file puts it as well."""
    from roost.client import Client

    return Client(target, timeout=timeout, owner="roost-cli", tenant=os.environ.get("ROOST_TENANT", ""))


def use_key_file(path: str) -> None:
    """Have every client of this process send the key in a file. Failure if there is none in it."""
    try:
        key = Path(path).read_text("ascii", errors="replace").strip()
    except OSError as error:
        raise Failure(f"cannot read the API key file {path}: {error.strerror}", UNUSABLE) from error
    if not key:
        raise Failure(f"the API key file {path} is empty", UNUSABLE)
    os.environ["ROOST_API_KEY"] = key


def use_tls(tls: bool | None, **files: str) -> None:
    """Have every client of this process use TLS as the options say: it reads them in the environment, like the key."""
    if tls is not None:
        os.environ["ROOST_TLS"] = "1" if tls else "0"
    for name, value in files.items():
        if value:
            os.environ[f"ROOST_TLS_{name.upper()}"] = value


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON-able values, under its proto names; 64-bit numbers stay numbers."""
    from google.protobuf.json_format import MessageToDict

    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {str(key): _numbers(value, message, key) for key, value in values.items()}


def _numbers(value: Any, message: Message, key: str) -> Any:
    """Undo the strings that proto's JSON makes of 64-bit integers: scripts want to compare them."""
    field = message.DESCRIPTOR.fields_by_name[key]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        wide = field.message_type.fields_by_name["value"].cpp_type in _WIDE
        return {name: int(item) for name, item in value.items()} if wide else value
    inner = getattr(message, key)
    if field.message_type is not None:
        if isinstance(value, list):
            return [as_dict(item) for item in inner]
        return as_dict(inner) if isinstance(value, dict) else value
    if field.cpp_type in _WIDE:
        return [int(item) for item in value] if isinstance(value, list) else int(value)
    return value


_WIDE: Final = frozenset({2, 4})  # FieldDescriptor.CPPTYPE_INT64 and CPPTYPE_UINT64


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """A plain table on stdout; `empty` on stderr where there are no rows, so that pipes stay clean."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [[Text(str(cell)) for cell in row] for row in rows]  # Text: labels and ids are never markup
    if not lines:
        typer.echo(empty, err=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut is none
    for line in lines:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000, no_color=True)  # a pipe gets whole values, not those that fit 80 columns
    console.print(table)


def labels_of(given: Iterable[str] | None) -> dict[str, str]:
    """What --label was given: KEY=VALUE each."""
    labels = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint="--label")
        labels[key] = value
    return labels


def enum_word(name: str, prefix: str) -> str:
    """SESSION_STATE_OPEN -> open."""
    return name.removeprefix(prefix).lower()


def print_message(values: dict[str, Any], output: Format) -> None:
    """A message, as `as_dict` gives it: JSON, or a table of its fields."""
    if output is Format.JSON:
        print_json(values)
        return
    print_table(("field", "value"), [(key, _short(value)) for key, value in values.items()], "nothing")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
