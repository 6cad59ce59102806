"""`roost sessions list|get|history|watch|interrupt|close|reopen`."""

from __future__ import annotations

import base64
import enum
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    MOST,
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
    from roost.client import Resync
    from roost.v1.session_service_pb2 import SessionEvent
    from roost.v1.types_pb2 import Record, Session

app = typer.Typer(help="Look at sessions, watch, interrupt and close them.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(help="The session's id.", metavar="SESSION_ID")]


class State(enum.StrEnum):
    """Filter of `list`."""

    OPEN = "open"
    SEALED = "sealed"
    CLOSED = "closed"


class Reason(enum.StrEnum):
    """Reasons that end a session."""

    QUIT = "quit"
    ADMIN = "admin"
    ERROR = "error"


_LIST_EPILOG = """
Examples:
$ roost sessions list
$ roost sessions list --state open --running -o json
$ roost sessions list --root task-17 --path /root/scout --label team=red --limit 20
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    root: Annotated[str, typer.Option(help="Only the tree of this root session.", metavar="ID")] = "",
    path: Annotated[str, typer.Option(help="Only this path and below; needs --root.", metavar="PATH")] = "",
    state: Annotated[State | None, typer.Option(help="Only this state.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Only sessions that run a turn.")] = False,
    resident: Annotated[bool, typer.Option("--resident", help="Only sessions in memory.")] = False,
    label: Annotated[list[str] | None, typer.Option(help="Only with this label; repeat.", metavar="K=V")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 1_000,
    timeout: Timeout = 10.0,
) -> None:
    """List sessions in order of creation."""
    labels = labels_of(label)
    found: list[Session] = []
    more = False
    with connect(target, timeout) as client:
        for session in client.list_sessions(
            root=root,
            path_prefix=path,
            state=state.value if state else None,
            running=running,
            resident=resident,
            labels=labels,
            page_size=min(limit, 1_000),
        ):
            if len(found) == limit:
                more = True
                break
            found.append(session)
    if output is Format.JSON:
        print_json([as_dict(session) for session in found])
    else:
        rows = [_row(session) for session in found]
        columns = ("session", "path", "state", "activity", "turns", "last outcome", "tokens", "residency")
        print_table(columns, rows, "no sessions")
    if more:
        typer.echo(f"there are more than {limit}; raise --limit to see them", err=True)


_GET_EPILOG = """
Example:
$ roost sessions get task-17 -o json
"""


@app.command("get", epilog=_GET_EPILOG)
def get(
    session_id: SessionId, target: Target = DEFAULT_TARGET, output: Output = Format.TABLE, timeout: Timeout = 10.0
) -> None:
    """Print one session."""
    with connect(target, timeout) as client:
        session = client.get_session(session_id)
    print_message(as_dict(session), output)


class Status(enum.StrEnum):
    """Filter of `history`."""

    COMMITTED = "committed"
    PROVISIONAL = "provisional"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"


_HISTORY_EPILOG = """
A record is committed (it counts), provisional (what a failed attempt left; the next one may start from it), aborted
(given up) or superseded (a later attempt or a rewind took its place). "2 < 1" is a turn 2 that a rewind built on
turn 1. Content is printed as text where it is UTF-8, else as base64.

Examples:
$ roost sessions history task-17
$ roost sessions history task-17 --from-turn 3 --status committed -o json
"""


@app.command("history", epilog=_HISTORY_EPILOG)
def history(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    from_turn: Annotated[int, typer.Option(min=0, max=MOST, help="Only this turn and later.")] = 0,
    status: Annotated[list[Status] | None, typer.Option(help="Only records of this status; repeat.")] = None,
    omit_payload: Annotated[bool, typer.Option("--omit-payload", help="Leave content and tokens out.")] = False,
    timeout: Timeout = 300.0,
) -> None:
    """Print the records of a session, oldest first."""
    from roost.v1 import types_pb2

    with connect(target, timeout) as client:
        records = client.read_history(
            session_id,
            statuses=[getattr(types_pb2, f"RECORD_STATUS_{word.upper()}") for word in status or ()],
            from_turn=from_turn,
            omit_payload=omit_payload,
            timeout=timeout,
        )
        if output is Format.JSON:
            print_json([record_as_json(record) for record in records])
            return
        rows = [_record_row(record) for record in records]
    columns = ("turn", "try", "status", "outcome", "trajectory", "reward", "created", "tokens", "bytes", "content")
    print_table(columns, rows, "no records")


class Kind(enum.StrEnum):
    """Filter of `watch`."""

    OPENED = "opened"
    TURN_BEGUN = "turn_begun"
    TURN_ENDED = "turn_ended"
    INTERRUPTED = "interrupted"
    MAIL = "mail"
    CLOSED = "closed"
    REOPENED = "reopened"
    UPDATED = "updated"


_WATCH_EPILOG = """
One line for each thing that happens to a session, from now on, until Ctrl-C. A
server that is started anew, or a reader that is too slow, loses some: stderr
says so (with -o json a line {"resync": true}, which is the first line too), and
`roost sessions list` prints what there is.

Examples:
$ roost sessions watch
$ roost sessions watch --root task-17 --path /root/scout
$ roost sessions watch --kind turn_ended --kind closed -o json
"""


@app.command("watch", epilog=_WATCH_EPILOG)
def watch(
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    root: Annotated[str, typer.Option(help="Only the tree of this root session.", metavar="ID")] = "",
    path: Annotated[str, typer.Option(help="Only this path and below; needs --root.", metavar="PATH")] = "",
    kind: Annotated[list[Kind] | None, typer.Option(help="Only what is of this kind; repeat.")] = None,
    timeout: Timeout = 10.0,
) -> None:
    """Print what happens to sessions, line by line."""
    with connect(target, timeout) as client:
        for news in client.watch_sessions(root=root, path_prefix=path, kinds=[k.value for k in kind or ()]):
            _print_news(news, output)


def _print_news(news: SessionEvent | Resync, output: Format) -> None:
    from roost.client import Resync

    if isinstance(news, Resync):
        if output is Format.JSON:
            typer.echo('{"resync": true}')
        else:
            typer.echo("from now on; for what was before see `roost sessions list`", err=True)
    elif output is Format.JSON:
        typer.echo(json.dumps(as_dict(news), ensure_ascii=False))
    else:
        typer.echo("  ".join(_event_words(news)))


_INTERRUPT_EPILOG = """
The holder of the turn learns it with its next renewal; a commit that comes first still counts. --force ends the turn at
once, and what it was about to commit is lost.

Examples:
$ roost sessions interrupt task-17
$ roost sessions interrupt task-17 --force
"""


@app.command("interrupt", epilog=_INTERRUPT_EPILOG)
def interrupt(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    force: Annotated[bool, typer.Option("--force", help="End the turn now instead of asking.")] = False,
    timeout: Timeout = 10.0,
) -> None:
    """Ask the running turn of a session to end, or end its wait; prints what it did before."""
    with connect(target, timeout) as client:
        answer = client.interrupt_session(session_id, force=force)
    print_message(as_dict(answer), output)


_CLOSE_EPILOG = """
Closing again prints the same receipt.

Examples:
$ roost sessions close task-17
$ roost sessions close task-17 --reason admin
"""


@app.command("close", epilog=_CLOSE_EPILOG)
def close(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    reason: Annotated[Reason, typer.Option(help="Why it ends.")] = Reason.QUIT,
    timeout: Timeout = 10.0,
) -> None:
    """End a session and its descendants; prints the receipt."""
    with connect(target, timeout) as client:
        answer = client.close_session(session_id, reason=reason.value)
    print_message(as_dict(answer.receipt), output)


_REOPEN_EPILOG = """
The descendants that the same close took down come back with it. What was purged does not.

Examples:
$ roost sessions reopen task-17
"""


@app.command("reopen", epilog=_REOPEN_EPILOG)
def reopen(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Make a closed session open again; prints it and how many came back."""
    with connect(target, timeout) as client:
        answer = client.reopen_session(session_id)
    print_message(as_dict(answer.session) | {"reopened": answer.reopened}, output)


def _row(session: Session) -> tuple[object, ...]:
    from roost.v1 import types_pb2 as t

    return (
        session.session_id,
        session.path,
        enum_word(t.SessionState.Name(session.state), "SESSION_STATE_"),
        enum_word(t.Activity.Name(session.activity), "ACTIVITY_"),
        session.turn_count,
        enum_word(t.TurnOutcome.Name(session.last_outcome), "TURN_OUTCOME_"),
        session.checkpoint_tokens,
        enum_word(t.Residency.Name(session.residency), "RESIDENCY_"),
    )


def _event_words(event: SessionEvent) -> list[str]:
    """An event as a line: when, what, which session, and what there is to say of it."""
    from roost.v1 import session_service_pb2 as s
    from roost.v1 import types_pb2 as t

    words = [
        event.time.ToDatetime().isoformat(timespec="milliseconds"),
        enum_word(s.SessionEventKind.Name(event.kind), "SESSION_EVENT_KIND_"),
        event.session_id,
        event.path if event.session_id == event.root_session_id else f"{event.path} of {event.root_session_id}",
    ]
    if event.turn:
        words.append(f"turn={event.turn} attempt={event.attempt}")
    if event.owner:
        words.append(f"owner={event.owner}")
    if event.kind == s.SESSION_EVENT_KIND_TURN_ENDED:
        words.append(f"outcome={enum_word(t.TurnOutcome.Name(event.outcome), 'TURN_OUTCOME_')}")
    if event.close_reason:
        words.append(f"reason={enum_word(t.CloseReason.Name(event.close_reason), 'CLOSE_REASON_')}")
    if event.kind == s.SESSION_EVENT_KIND_MAIL:
        words.append(f"queued={event.queued}" + (" trigger" if event.trigger else ""))
    return words


def record_as_json(record: Record) -> dict[str, Any]:
    """A record as JSON: content as text where it is text."""
    values = as_dict(record)
    content = record.record.content
    try:
        values["record"]["content"] = content.decode()
    except UnicodeDecodeError:
        values["record"]["content"] = None
        values["record"]["content_base64"] = base64.b64encode(content).decode()
    return values


def _record_row(record: Record) -> tuple[object, ...]:
    from roost.v1 import types_pb2 as t

    content = record.record.content
    start = content[:200].decode(errors="replace").replace("\n", " ")
    tokens = record.record.tokens
    return (
        f"{record.turn} < {record.base_turn}" if record.HasField("base_turn") else record.turn,
        record.attempt,
        enum_word(t.RecordStatus.Name(record.status), "RECORD_STATUS_"),
        enum_word(t.TurnOutcome.Name(record.outcome), "TURN_OUTCOME_"),
        record.trajectory,
        f"{record.reward:g}" if record.HasField("reward") else "",
        record.create_time.ToDatetime().isoformat(timespec="seconds"),
        f"{tokens.offset}+{len(tokens.token_ids) // 4}" if record.record.HasField("tokens") else "",
        len(content),
        start[:60] + ("…" if len(content) > 60 else ""),
    )
