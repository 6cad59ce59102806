"""`roost replay`: play recorded conversations against a server and verify what it kept, byte for byte."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    DIFFERENT,
    REFUSED,
    Failure,
    Format,
    Output,
    Target,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from roost.workload.replay import ReplayOptions, ReplayReport
    from roost.workload.transcripts import Conversation
    from roost.workload.verify import Verdict

EPILOG = """
FILE holds one conversation a line: {"session", "reward", "messages"}. Every assistant message is one turn.
The server may be killed and started again meanwhile: calls are repeated until it is back.\n
\n
Exit codes: 0 played (with --verify: and the export is the file, byte for byte) - 1 a session exists already, or a
turn was refused - 2 wrong usage or file - 3 the server was away for longer than --patience - 4 the export differs.\n
\n
Examples:\n
$ roost replay sessions.jsonl --target 127.0.0.1:7117 --verify\n
$ roost replay sessions.jsonl --run-id monday --concurrency 64 -o json\n
$ roost replay sessions.jsonl --run-id monday --resume --verify\n
$ roost replay sessions.jsonl --abort-rate 0.1 --give-up-rate 0.02 --verify
"""


def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The conversations.")],
    target: Target = DEFAULT_TARGET,
    verify: Annotated[bool, typer.Option("--verify", help="Export the sessions and compare them with FILE.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=10_000, help="Sessions played at once.")] = 32,
    run_id: Annotated[
        str | None, typer.Option(help="Put before each session id; default: made from the time.", metavar="ID")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with sessions that exist; without it they are an error.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N conversations.", metavar="N")] = None,
    close: Annotated[bool, typer.Option("--close", help="Close the sessions at the end.")] = False,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds for which the server may be away.")] = 120.0,
    abort_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of turns that are aborted once and tried again.")
    ] = 0.0,
    give_up_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of turns that are given up; they end their conversations.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Which turns those are.")] = 1,
    output: Output = Format.TABLE,
) -> None:
    """Play recorded conversations, many at once, and verify what the server kept."""
    from roost.workload.fates import Fates
    from roost.workload.replay import ReplayOptions, ReplayRefused
    from roost.workload.transcripts import TranscriptError, read

    if resume and run_id is None:
        raise typer.BadParameter("--resume needs the --run-id of the run to go on with")
    try:
        conversations = read(file)[:limit]
    except (TranscriptError, OSError) as error:
        raise Failure(str(error), 2) from None
    run = run_id if run_id is not None else time.strftime("%Y%m%d-%H%M%S")
    prefix = f"{run}:" if run else ""
    if abort_rate + give_up_rate > 1:
        raise typer.BadParameter("--abort-rate and --give-up-rate are more than 1 together")
    fates = Fates(abort_rate, give_up_rate, seed)
    options = ReplayOptions(prefix, concurrency, resume, patience, fates=fates)
    try:
        report, verdict = run_loop(_run(target, conversations, options, verify, close))
    except ReplayRefused as error:
        raise Failure(str(error), REFUSED) from None
    values = as_values(run, report, verdict)
    if output is Format.JSON:
        print_json(values)
    else:
        print_table(("replay", ""), [(key.replace("_", " "), value) for key, value in flat(values)], "nothing played")
    complain(report, verdict)
    if verdict is not None and not verdict.ok:
        raise typer.Exit(DIFFERENT)
    if report.failures:
        raise typer.Exit(REFUSED)


async def _run(
    target: str, conversations: list[Conversation], options: ReplayOptions, verify: bool, close: bool
) -> tuple[ReplayReport, Verdict | None]:
    from roost.workload.replay import Replay, make_client
    from roost.workload.verify import verify as verify_export

    async with make_client(target, options.patience) as client:
        with progress("turns", sum(len(c.turns) for c in conversations)) as advance:
            player = Replay(client, conversations, options, advance)
            report = await player.run()
        verdict = None
        played = [(player.session_id(c), c) for c in conversations]
        if verify:
            with progress("verified", len(played)) as advance:
                verdict = await verify_export(client, played, lambda: advance(1), options.fates)
        if close:
            with progress("closed", len(played)) as advance:
                for session_id, _ in played:
                    await client.close_session(session_id)
                    advance(1)
    return report, verdict


def run_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr that leaves nothing behind; none where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def as_values(run: str, report: ReplayReport, verdict: Verdict | None) -> dict[str, Any]:
    """What `-o json` prints. Latencies in milliseconds."""
    values: dict[str, Any] = {
        "run_id": run,
        "sessions": report.sessions,
        "turns": report.turns,
        "played": report.played,
        "already_played": report.already,
        "aborted": report.aborted,
        "given_up": report.given_up,
        "retried": report.retried,
        "seconds": round(report.seconds, 3),
        "turns_per_second": round(report.played / report.seconds, 1) if report.seconds else 0.0,
        "begin": report.begin.summary(),
        "commit": report.commit.summary(),
        "failures": report.failures,
    }
    if verdict is not None:
        values |= {
            "verified": verdict.ok,
            "lost": verdict.lost,
            "duplicated": verdict.duplicated,
            "exported_sessions": verdict.sessions,
            "exported_turns": verdict.turns,
            "exported_bytes": verdict.bytes,
            "differences": [{"session": d.session_id, "turn": d.turn, "what": d.what} for d in verdict.differences],
        }
    return values


def flat(values: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The rows of a table: nested numbers under dotted names, lists as their length."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key} {name}", number) for name, number in value.items())
        else:
            yield key, len(value) if isinstance(value, list) else value


def complain(report: ReplayReport, verdict: Verdict | None) -> None:
    """Say on stderr which sessions and turns are not as they should be, the first twenty."""
    problems = [*report.failures, *(str(d) for d in (verdict.differences if verdict else ()))]
    for problem in problems[:20]:
        typer.echo(f"roost replay: {problem}", err=True)
    if len(problems) > 20:
        typer.echo(f"roost replay: and {len(problems) - 20} more", err=True)
