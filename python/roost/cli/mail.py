"""`roost mail send|list|wait`: messages to sessions, what became of them, and new ones."""

from __future__ import annotations

import base64
import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    labels_of,
    print_json,
    print_message,
    print_table,
)

if TYPE_CHECKING:
    from roost.v1.types_pb2 import Message

app = typer.Typer(help="Send messages to sessions, see what became of them, wait for new ones.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(help="The session's id.", metavar="SESSION_ID")]


class State(enum.StrEnum):
    """Filter of `list`."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    CONSUMED = "consumed"
    EXPIRED = "expired"
    DEAD = "dead"
    CLOSED = "closed"


_SEND_EPILOG = """
The session's next turn gets the message; its commit consumes it, and any other end of the turn puts it back. --trigger
makes the session runnable: a host that polls begins a turn of it. With the same --request-id it is sent once.

Examples:
$ roost mail send task-17 'the tests are red again' --trigger
$ git diff | roost mail send task-17 --file - --type text/x-diff --label from=ci --ttl 3600
"""


@app.command("send", epilog=_SEND_EPILOG)
def send(
    session_id: SessionId,
    content: Annotated[str | None, typer.Argument(help="The message, as text.", metavar="TEXT")] = None,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Send what is in this file instead; -: standard input.", metavar="FILE"),
    ] = None,
    type_: Annotated[str, typer.Option("--type", help="Its media type.", metavar="TYPE")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A label of it; repeat.", metavar="K=V")] = None,
    trigger: Annotated[bool, typer.Option("--trigger", help="Make the session runnable.")] = False,
    ttl: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds after which it expires if no turn has taken it.")
    ] = None,
    sender: Annotated[str, typer.Option("--from", help="The session that it is from.", metavar="ID")] = "",
    request_id: Annotated[str | None, typer.Option(help="Of one id a message is sent once.", metavar="ID")] = None,
    timeout: Timeout = 10.0,
) -> None:
    """Put a message into a session's mailbox; prints its id."""
    if (content is None) == (file is None):
        raise typer.BadParameter("give the message as TEXT, or a --file", param_hint="TEXT")
    data: bytes | str = content or b""
    if file is not None:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    with connect(target, timeout) as client:
        answer = client.send(
            session_id,
            data,
            content_type=type_,
            labels=labels_of(label),
            trigger=trigger,
            ttl=ttl,
            sender=sender,
            request_id=request_id,
        )
    if output is Format.JSON:
        print_json(as_dict(answer))
    else:
        typer.echo(answer.message_id)


_LIST_EPILOG = """
A message is queued, delivered (a turn that runs has it), consumed (that turn
committed), expired (its --ttl ended first), dead (it was handed to as many
turns as may be, and none committed) or closed (its session ended first). It is
a message, or what the end of a child told: completed, failed, closed. Content
is printed as text where it is UTF-8, else as base64.

Examples:
$ roost mail list task-17
$ roost mail list task-17 --state dead --state expired -o json
$ roost mail list --from task-17 --limit 20
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    session_id: Annotated[str, typer.Argument(help="Messages to this session.", metavar="[SESSION_ID]")] = "",
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    sender: Annotated[str, typer.Option("--from", help="Messages from this session instead.", metavar="ID")] = "",
    state: Annotated[list[State] | None, typer.Option(help="Only messages in this state; repeat.")] = None,
    omit_content: Annotated[bool, typer.Option("--omit-content", help="Leave content out.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 1_000,
    timeout: Timeout = 10.0,
) -> None:
    """List the messages to or from a session, oldest first, and what became of each."""
    if bool(session_id) == bool(sender):
        raise typer.BadParameter("name the session that they are to, or --from which", param_hint="SESSION_ID")
    found: list[Message] = []
    more = False
    with connect(target, timeout) as client:
        for message in client.list_mail(
            session_id,
            sender=sender,
            states=[one.value for one in state or ()],
            omit_content=omit_content,
            page_size=min(limit, 1_000),
        ):
            if len(found) == limit:
                more = True
                break
            found.append(message)
    if output is Format.JSON:
        print_json([_as_json(message) for message in found])
    else:
        columns = ("message", "kind", "from", "to", "state", "deliveries", "sent", "bytes", "content")
        print_table(columns, [_row(message) for message in found], "no messages")
    if more:
        typer.echo(f"there are more than {limit}; raise --limit to see them", err=True)


_WAIT_EPILOG = """
Takes nothing: the next turn of the session gets the mail. "queued" is 0 if none
came in time. --after with the "cursor" of an earlier answer waits for newer
mail than that.

Examples:
$ roost mail wait task-17 --wait 60
$ roost mail wait task-17 --wait 60 --after 4711 -o json
"""


@app.command("wait", epilog=_WAIT_EPILOG)
def wait(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    wait: Annotated[float, typer.Option("--wait", min=0, max=300, help="Seconds to wait.")] = 30.0,
    after: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="Only mail that came after this cursor.")] = 0,
) -> None:
    """Wait until a session has mail that no turn has taken; prints how much."""
    with connect(target, 10.0) as client:
        answer = client.wait_mail(session_id, wait=wait, after=after)
    print_message(as_dict(answer), output)


def _as_json(message: Message) -> dict[str, Any]:
    """A message as JSON: content as text where it is text."""
    values = as_dict(message)
    try:
        values["content"] = message.content.decode()
    except UnicodeDecodeError:
        values["content"] = None
        values["content_base64"] = base64.b64encode(message.content).decode()
    return values


def _row(message: Message) -> tuple[object, ...]:
    from roost.v1 import types_pb2 as t

    start = message.content[:200].decode(errors="replace").replace("\n", " ")
    return (
        message.message_id,
        enum_word(t.MessageKind.Name(message.kind), "MESSAGE_KIND_"),
        message.sender_session_id,
        message.session_id,
        enum_word(t.MessageState.Name(message.state), "MESSAGE_STATE_"),
        message.deliveries,
        message.create_time.ToDatetime().isoformat(timespec="seconds"),
        len(message.content),
        start[:60] + ("…" if len(message.content) > 60 else ""),
    )
