"""`roost demo`: one server, many sessions, one kill -9, and the proof that nothing was lost. What `make demo` runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli.output import DIFFERENT, Failure, Format, Output, print_json
from roost.cli.replay import complain, progress, run_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from roost.client import AsyncClient
    from roost.workload.local_server import LocalServer
    from roost.workload.replay import ReplayReport
    from roost.workload.transcripts import Conversation
    from roost.workload.verify import Verdict

FILE_VARIABLE = "ROOST_DEMO_FILE"
BESIDE = Path("shared/data/airline-trajectories.jsonl")  # looked for beside the checkout

EPILOG = """
Starts a server in a temporary directory with room for ten sessions in memory, plays recorded (or generated)
conversations against it, kills it once in mid-run with SIGKILL, starts it again, and compares the export with the
input byte for byte.\n
\n
Exit codes: 0 only if no slot is held, no turn was lost or played twice and the export is verified - 4 if not -
1 the replay failed.\n
\n
Examples:\n
$ roost demo\n
$ roost demo --generated --sessions 40\n
$ roost demo --file sessions.jsonl -o json
"""


@dataclass
class Lives:
    """Counters summed over the lives of a server that was killed: they start at 0 in each."""

    evictions: int = 0
    reloads: int = 0
    turns_expired: int = 0
    slots_held: int = -1

    async def add(self, client: AsyncClient) -> None:
        """Add the counters of the life that runs now."""
        stats = await client.get_stats()
        self.evictions += stats.counters["evictions"]
        self.reloads += stats.counters["reloads"]
        self.turns_expired += stats.counters["turns_expired"]
        self.slots_held = stats.gauges["slots_held"]


def demo(
    file: Annotated[
        Path | None,
        typer.Option(envvar=FILE_VARIABLE, exists=True, dir_okay=False, help="Conversations; see `roost replay`."),
    ] = None,
    generated: Annotated[bool, typer.Option("--generated", help="Generate the conversations.")] = False,
    sessions: Annotated[int, typer.Option(min=2, help="How many to generate.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the generated conversations.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="Sessions played at once.")] = 32,
    output: Output = Format.TABLE,
) -> None:
    """Play agent sessions through a server that is killed once, and prove that nothing was lost."""
    from roost.workload import generate, transcripts
    from roost.workload.local_server import ServerFailed
    from roost.workload.replay import ReplayRefused

    source = file or (None if generated else find_file())
    if source is None:
        name = f"{sessions} generated conversations (seed {seed})"
        conversations = list(transcripts.parse(generate.lines(sessions, seed)))
    else:
        name = source.name
        try:
            conversations = transcripts.read(source)
        except (transcripts.TranscriptError, OSError) as error:
            raise Failure(str(error), 2) from None
    try:
        report, verdict, lives = run_loop(_run(conversations, concurrency))
    except (ReplayRefused, ServerFailed) as error:
        raise Failure(str(error), 1) from None
    good = verdict.ok and lives.slots_held == 0 and not report.failures and not report.vanished
    if output is Format.JSON:
        print_json(as_values(name, report, verdict, lives, good))
    else:
        show(name, report, verdict, lives, good)
    complain(report, verdict)
    if not good:
        raise typer.Exit(DIFFERENT)


def find_file() -> Path | None:
    """The recorded sessions, where they lie beside the working directory or the checkout."""
    checkout = Path(__file__).resolve().parents[3]
    candidates = (base / BESIDE for base in (Path.cwd().parent, checkout.parent))
    return next((path for path in candidates if path.is_file() and os.access(path, os.R_OK)), None)


async def _run(conversations: list[Conversation], concurrency: int) -> tuple[ReplayReport, Verdict, Lives]:
    from roost.workload.replay import Replay, ReplayOptions, make_client
    from roost.workload.verify import verify

    total = sum(len(c.turns) for c in conversations)
    done = 0
    reached = asyncio.Event()
    lives = Lives()
    async with _server() as server:
        with progress("turns", total) as advance:

            def on_turn(count: int) -> None:
                nonlocal done
                done += count
                advance(count)
                if done >= total * 2 // 5:
                    reached.set()

            async def kill_once() -> None:
                await reached.wait()
                async with make_client(server.target, 10.0, tls=False) as observer:
                    await lives.add(observer)
                server.kill()  # between the last look at its counters and now it may have evicted a few more
                server.start()
                await server.ready()

            async with make_client(server.target, 120.0, tls=False) as client:
                options = ReplayOptions(prefix="demo:", concurrency=concurrency)
                player = Replay(client, conversations, options, on_turn)
                killer = asyncio.create_task(kill_once())
                try:
                    report = await player.run()
                    reached.set()  # a replay that failed early must not wait for a kill
                    await killer
                finally:
                    killer.cancel()
                verdict = await verify(client, [(player.session_id(c), c) for c in conversations])
                await lives.add(client)
    return report, verdict, lives


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[LocalServer]:
    from roost.workload.local_server import LocalServer

    with tempfile.TemporaryDirectory(prefix="roost-demo-") as directory:
        os.environ.pop("ROOST_API_KEY", None)  # of another server: this one has no keys
        server = LocalServer(Path(directory), ["--max-resident", "10"])
        server.start()
        try:
            await server.ready()
            yield server
        finally:
            await asyncio.to_thread(server.stop)


def as_values(name: str, report: ReplayReport, verdict: Verdict, lives: Lives, good: bool) -> dict[str, Any]:
    """What `-o json` prints."""
    return {
        "input": name,
        "sessions": report.sessions,
        "turns": report.turns,
        "seconds": round(report.seconds, 3),
        "turns_per_second": round(report.played / report.seconds, 1) if report.seconds else 0.0,
        "evictions": lives.evictions,
        "reloads": lives.reloads,
        "retried": report.retried,
        "begin": report.begin.summary(),
        "commit": report.commit.summary(),
        "slots_held": lives.slots_held,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "export_verified": verdict.ok,
        "ok": good,
    }


def show(name: str, report: ReplayReport, verdict: Verdict, lives: Lives, good: bool) -> None:
    """The one screen at the end."""
    rate = report.played / report.seconds if report.seconds else 0.0

    def percentiles(of: Any) -> str:
        return "  ".join(f"p{p:g} {of.percentile(p):.1f}" for p in (50, 90, 99)) + f"  max {of.percentile(100):.0f} ms"

    rows = (
        ("input", name),
        ("sessions", f"{report.sessions:,}"),
        ("turns", f"{report.turns:,} in {report.seconds:.1f} s ({rate:,.0f} a second)"),
        ("in memory", "at most 10 sessions beside those that run"),
        ("evictions", f"{lives.evictions:,}"),
        ("reloads", f"{lives.reloads:,}"),
        ("kill -9", f"1 in mid-run; {report.retried:,} calls repeated"),
        ("begin", percentiles(report.begin)),
        ("commit", f"{percentiles(report.commit)} (the restart included)"),
        ("exported", f"{verdict.sessions:,} sessions, {verdict.turns:,} turns, {verdict.bytes:,} bytes"),
    )
    typer.echo()
    for key, value in rows:
        typer.echo(f"  {key:<12}{value}")
    word = "export verified" if verdict.ok else "export DIFFERS"
    typer.echo()
    typer.secho(
        f"  slots held {lives.slots_held}, lost {verdict.lost}, duplicated {verdict.duplicated}, {word}",
        fg="green" if good else "red",
        bold=True,
    )
    typer.echo()
