"""`roost load`: drive a server with begin/commit pairs, or with a recorded trace, and report latencies honestly."""

from __future__ import annotations

import asyncio
import enum
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from roost.cli.output import DEFAULT_TARGET, Failure, Format, Target, print_json, print_table
from roost.cli.replay import flat, run_loop

if TYPE_CHECKING:
    from roost.load.runner import LoadOptions
    from roost.workload.trace import TracedTurn

WRONG: Final = 6

EPILOG = """
With --rate the loop is open: work starts when it is due, latency counts from that instant, and arrivals that start
late or find no room are reported. Without it --clients callers run back to back (closed loop): that finds throughput,
but says little about latency. --trace plays recorded requests at --speed-up times their pace, rebuilding sessions from
their prefix blocks.\n
\n
Exit codes: 0 done - 1 the server refused the preparation - 2 wrong usage or trace - 3 the server cannot be reached -
6 wrong answers (a lost lease, a turn number that does not follow) - 130 ended by Ctrl-C, after the partial report.\n
\n
Examples:\n
$ roost load --clients 64 --duration 30\n
$ roost load --rate 500 --arrivals poisson --sessions 5000 --payload-bytes 20000 --json\n
$ roost load --trace conversation-trace.jsonl --speed-up 20
"""


class ArrivalKind(enum.StrEnum):
    """How arrivals of an open loop are spaced."""

    POISSON = "poisson"
    CONSTANT = "constant"


def load(
    target: Target = DEFAULT_TARGET,
    rate: Annotated[float, typer.Option(min=0.0, help="Pairs a second (open loop); 0: closed loop.")] = 0.0,
    arrivals: Annotated[ArrivalKind, typer.Option(help="Spacing of arrivals in the open loop.")] = ArrivalKind.POISSON,
    clients: Annotated[int, typer.Option(min=1, max=100_000, help="Callers of the closed loop.")] = 64,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions to spread over.")] = 1_000,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds to measure.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before that which are not counted.")] = 2.0,
    payload_bytes: Annotated[int, typer.Option(min=0, max=1 << 20, help="Content of a turn.")] = 1_000,
    tokens: Annotated[int, typer.Option(min=0, max=200_000, help="Tokens that each turn appends.")] = 0,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Pairs at once in the open loop; more are dropped.")
    ] = 1_000,
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, readable=True, help="A trace to play.")
    ] = None,
    speed_up: Annotated[float, typer.Option(min=0.001, help="How much faster than recorded.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Fixes arrivals, choice of sessions and payloads.")] = 1,
    run_id: Annotated[
        str | None, typer.Option(help="Names the sessions; default: made from the time.", metavar="ID")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (with the histograms).")] = False,
    output: Annotated[
        Format, typer.Option("--output", "-o", envvar="ROOST_OUTPUT", help="How to print.")
    ] = Format.TABLE,
) -> None:
    """Drive a server and report rates, percentiles and what went wrong."""
    from roost.load.runner import LoadOptions

    if trace is not None and rate:
        raise typer.BadParameter("--trace has its own arrivals: leave --rate out")
    options = LoadOptions(
        sessions=sessions,
        duration=duration,
        warmup=warmup,
        rate=rate,
        arrivals=arrivals.value,
        clients=clients,
        max_in_flight=max_in_flight,
        payload_bytes=payload_bytes,
        tokens=tokens,
        seed=seed,
        prefix=f"load-{run_id or time.strftime('%Y%m%d-%H%M%S')}-",
    )
    plan = None
    if trace is not None:
        from roost.workload.trace import TraceError, read, rebuild

        try:
            plan = rebuild(read(trace))
        except (TraceError, OSError) as error:
            raise Failure(str(error), 2) from None
    report = run_loop(_run(target, options, plan, speed_up))
    if json_ or output is Format.JSON:
        print_json(report)
    else:
        show(report)
    if sum(report["correctness"].values()):
        typer.echo("roost load: the server gave wrong answers (see correctness)", err=True)
        raise typer.Exit(WRONG)
    if report["interrupted"]:
        raise typer.Exit(130)


async def _run(target: str, options: LoadOptions, plan: list[TracedTurn] | None, speed_up: float) -> dict[str, Any]:
    from roost.client import AsyncClient, RetryPolicy
    from roost.load.runner import LoadRun

    # No repeats: a load generator that hides failures measures something else.
    async with AsyncClient(target, timeout=30.0, retry=RetryPolicy(enabled=False), owner="roost-load") as client:
        run = LoadRun(client, options)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, run.stop.set)
        try:
            if plan is not None:
                return await run.trace(plan, speed_up)
            return await run.pairs()
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    names = [name for name in ("begin", "commit", "pair") if report["latency"][name]["count"]]
    columns = ("ms", "count", "mean", "p50", "p90", "p99", "p99.9", "max")
    keys = ("count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms")
    rows = [(name, *(report["latency"][name][key] for key in keys)) for name in names]
    print_table(columns, rows, "no pair was completed")
    shown = {
        key: report[key]
        for key in ("seconds", "pairs", "pairs_per_second", "arrivals", "errors", "correctness", "generator", "server")
        if key != "arrivals" or report["arrivals"]["offered"]
    }
    print_table(("load", ""), flat(shown), "")
    if report["interrupted"]:
        typer.echo("interrupted: this report is partial", err=True)
    if report["generator"]["was_bottleneck"]:
        typer.echo(f"the generator was the bottleneck: {report['generator']['why']}", err=True)
