"""`roost trajectories reward|finish|list|export|ack`."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Self

import typer

from roost.cli.output import (
    DEFAULT_TARGET,
    MOST,
    REFUSED,
    Failure,
    Format,
    Output,
    Target,
    Timeout,
    as_dict,
    connect,
    enum_word,
    print_json,
    print_message,
    print_table,
)
from roost.cli.sessions import SessionId, record_as_json

if TYPE_CHECKING:
    from roost.client import Client
    from roost.client.training import Exported

_BLOCK = 1 << 20  # bytes

app = typer.Typer(help="Rewards and trajectories: what is trained on.", no_args_is_help=True)


class Style(enum.StrEnum):
    """What an export makes of a trajectory."""

    INDIVIDUAL = "individual"
    CONCAT = "concat"


class Shape(enum.StrEnum):
    """How an export is written."""

    JSONL = "jsonl"
    AREAL = "areal"
    SLIME = "slime"
    MILES = "miles"


_REWARD_EPILOG = """
Examples:
$ roost trajectories reward task-17 1.0
$ roost trajectories reward task-17 -0.5 --turn 3
$ roost trajectories reward task-17 1.0 --finish-after 30
"""


# What begins with a minus may be a reward.
@app.command("reward", epilog=_REWARD_EPILOG, context_settings={"ignore_unknown_options": True})
def reward(
    session_id: SessionId,
    value: Annotated[float, typer.Argument(help="The reward.", metavar="REWARD")],
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    turn: Annotated[int, typer.Option(min=0, max=MOST, help="The turn; 0: the last committed one.")] = 0,
    finish_after: Annotated[
        float | None,
        typer.Option(min=0, max=30 * 86_400, help="Seconds after which the trajectory finishes by itself."),
    ] = None,
    timeout: Timeout = 10.0,
) -> None:
    """Give a turn of the active trajectory its reward."""
    with connect(target, timeout) as client:
        answer = client.set_reward(session_id, value, turn=turn, finish_after=finish_after)
    print_message(as_dict(answer), output)


_FINISH_EPILOG = """
Examples:
$ roost trajectories finish task-17
$ roost trajectories finish task-17 --reward 1.0
"""


@app.command("finish", epilog=_FINISH_EPILOG)
def finish(
    session_id: SessionId,
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    value: Annotated[float | None, typer.Option("--reward", help="Of its last committed turn.")] = None,
    timeout: Timeout = 10.0,
) -> None:
    """Make the active trajectory READY; the next one starts."""
    with connect(target, timeout) as client:
        answer = client.finish_trajectory(session_id, reward=value)
    print_message(as_dict(answer.trajectory), output)


Sessions = Annotated[list[str] | None, typer.Option("--session", help="Only of this session; repeat.", metavar="ID")]
Root = Annotated[str, typer.Option(help="Only of the tree of this root session.", metavar="ID")]
All = Annotated[bool, typer.Option("--all", help="Acknowledged and unfinished ones too.")]

_LIST_EPILOG = """
Examples:
$ roost trajectories list
$ roost trajectories list --all --session task-17 -o json
"""


@app.command("list", epilog=_LIST_EPILOG)
def list_(
    target: Target = DEFAULT_TARGET,
    output: Output = Format.TABLE,
    session: Sessions = None,
    root: Root = "",
    everything: All = False,
    limit: Annotated[int, typer.Option(min=1, max=MOST - 1, help="Print at most this many.")] = 1_000,
    timeout: Timeout = 300.0,
) -> None:
    """List trajectories that are READY and not acknowledged, in that order."""
    from roost.v1 import trajectory_service_pb2 as t

    found: list[Exported] = []
    more = False
    with connect(target, timeout) as client:
        for one in client.trajectories(
            session or (),
            root=root,
            selection="all" if everything else "ready",
            omit_payload=True,
            limit=limit + 1,
            timeout=timeout,
        ):
            if len(found) == limit:
                more = True
                break
            found.append(one)
    if output is Format.JSON:
        print_json([as_dict(one.trajectory) for one in found])
    else:
        columns = ("trajectory", "session", "number", "state", "first turn", "turns", "reward", "ready")
        rows = [
            (
                one.trajectory_id,
                one.trajectory.session_id,
                one.trajectory.number,
                enum_word(t.TrajectoryState.Name(one.trajectory.state), "TRAJECTORY_STATE_"),
                one.trajectory.first_turn,
                one.trajectory.turn_count,
                f"{sum(record.reward for record in one.records):g}",
                one.trajectory.ready_time.ToDatetime().isoformat(timespec="seconds")
                if one.trajectory.ready_sequence
                else "",
            )
            for one in found
        ]
        print_table(columns, rows, "no trajectories")
    if more:
        typer.echo(f"there are more than {limit}; raise --limit to see them", err=True)


_EXPORT_EPILOG = """
Formats: jsonl (one trajectory a line, records or rows as --style says), areal (an .npz file with the arrays input_ids,
loss_mask, logprobs, versions, attention_mask of rows x tokens and rewards of rows), slime and miles (one Sample a
line). Rewards are the discounted ones, but for `reward` of a jsonl record, which is as it was set.

A FILE that is not empty is left alone, unless --append says to go on in it.

Examples:
$ roost trajectories export > ready.jsonl
$ roost trajectories export --format areal --style concat --discount 0.9 --out batch.npz --limit 64 --ack
$ roost trajectories export --format slime --follow --out samples.jsonl --append --ack
"""


@app.command("export", epilog=_EXPORT_EPILOG)
def export(
    target: Target = DEFAULT_TARGET,
    session: Sessions = None,
    root: Root = "",
    trajectory: Annotated[
        list[str] | None, typer.Option("--id", help="This trajectory and no other; repeat.", metavar="TRAJECTORY_ID")
    ] = None,
    everything: All = False,
    shape: Annotated[Shape, typer.Option("--format", help="How to write it.")] = Shape.JSONL,
    style: Annotated[Style, typer.Option(help="Each turn by itself, or one row a segment.")] = Style.INDIVIDUAL,
    discount: Annotated[float, typer.Option(min=0, max=1, help="Of rewards, backward through a trajectory.")] = 1.0,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for the next ones, until interrupted.")] = False,
    limit: Annotated[int, typer.Option(min=0, max=MOST, help="End after this many; 0: no limit.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; without it stdout.", dir_okay=False, metavar="FILE")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to FILE what is written; not with areal.")] = False,
    ack: Annotated[bool, typer.Option("--ack", help="Acknowledge what was written, once it is on disk.")] = False,
    timeout: Timeout = 300.0,
) -> None:
    """Write trajectories for training."""
    if shape is Shape.AREAL and (out is None or follow):
        raise typer.BadParameter("areal is one file of arrays: it needs --out, and cannot --follow")
    if append and (out is None or shape is Shape.AREAL):
        raise typer.BadParameter("--append needs --out, and lines to add")
    if shape is Shape.AREAL and out is not None and out.exists() and not out.is_file():
        raise typer.BadParameter(f"{out} is no file: arrays cannot be written to it")
    if out is not None and not append and out.is_file() and out.stat().st_size:
        raise typer.BadParameter(f"{out} is not empty: choose another file, or say --append")
    if ack and (out is None or everything):
        raise typer.BadParameter("--ack needs --out, and READY trajectories only")
    if trajectory and (session or root or everything or follow):
        raise typer.BadParameter("--id cannot go together with --session, --root, --all or --follow")
    with connect(target, timeout) as client, _counter() as count:
        found = client.trajectories(
            session or (),
            root=root,
            trajectory_ids=trajectory or (),
            selection="all" if everything else "ready",
            style=style.value,
            discount=discount,
            follow=follow,
            limit=limit,
            timeout=timeout,
        )
        if shape is Shape.AREAL:
            assert out is not None
            taken = _write_arrays(found, out, count)
            _acknowledge(client, taken if ack else [])
            return
        index = 0
        with _Lines(out) as file:
            for one in found:
                lines = _lines(one, shape, style, index)
                index += len(lines)
                file.write(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                if ack:
                    file.sync()
                    _acknowledge(client, [one.trajectory_id])
                count(1)


def _lines(one: Exported, shape: Shape, style: Style, index: int) -> list[dict[str, Any]]:
    """A trajectory as lines of JSON."""
    from roost.client.training import slime_samples

    if shape is not Shape.JSONL:
        return slime_samples(one, index)
    whole: dict[str, Any] = {"trajectory": as_dict(one.trajectory), "session": as_dict(one.session)}
    if style is Style.CONCAT:
        whole["rows"] = [
            {
                "first_turn": row.first_turn,
                "last_turn": row.last_turn,
                "reward": row.reward,
                "aborted": row.aborted,
                "finish_reason": row.finish_reason,
                "tokens": list(row.tokens),
                "loss_mask": list(row.loss_mask),
                "logprobs": list(row.logprobs),
                "versions": list(row.versions),
            }
            for row in one.rows()
        ]
    else:
        whole["records"] = [record_as_json(record) for record in one.records]
    return [whole]


def _write_arrays(found: Iterator[Exported], out: Path, count: Any) -> list[str]:
    """Write AReaL's arrays as one .npz file; the ids of the trajectories in it."""
    from roost.client.training import areal_rows, pad_rows

    try:
        import numpy as np
    except ImportError:
        raise Failure('the format areal needs numpy: pip install "roost[train]"', 69) from None
    rows, taken = [], []
    for one in found:
        rows += areal_rows(one)
        taken.append(one.trajectory_id)
        count(1)
    arrays: Any = pad_rows(rows)
    # Under another name first: whoever finds the file finds all of it.
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_directory(out)
    return taken


class _Lines:
    """A file (stdout without a path) that lines are added to. It is made when there is something to write, or when
    there was nothing: a command that fails before that leaves none."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._file: IO[str] | None = sys.stdout if out is None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.write(())
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()

    def write(self, lines: Iterable[str]) -> None:
        if self._file is None:
            assert self._out is not None
            if self._out.is_file():
                _mend(self._out)
            self._file = self._out.open("a", encoding="utf-8")
        self._file.writelines(lines)
        self._file.flush()

    def sync(self) -> None:
        """What was written outlives a crash of the machine, as far as the file is one."""
        assert self._file is not None
        assert self._out is not None
        if self._out.is_file():
            os.fsync(self._file.fileno())
            _sync_directory(self._out)


def _mend(path: Path) -> None:
    """A command that was killed may have left half a line: what is added would be part of it."""
    with path.open("r+b") as file:
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail:
            start = max(start - _BLOCK, 0)
            file.seek(start)
            tail = file.read(end - start)
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            # Never acknowledged: it was not on disk.
            file.truncate(end - len(last))
            typer.echo(f"{path} ended with half a line: it was dropped", err=True)
        else:
            file.seek(end)
            file.write(b"\n")


def _sync_directory(path: Path) -> None:
    """A name in a directory is durable when the directory is."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _counter() -> Iterator[Any]:
    """A count of what was written on stderr, while stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed} trajectories"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.advance(task, count)


_ACK_EPILOG = """
Example:
$ roost trajectories ack 0198f6a0-0000-7000-8000-000000000000-1
"""


@app.command("ack", epilog=_ACK_EPILOG)
def ack(
    trajectory_ids: Annotated[list[str], typer.Argument(help="Their ids.", metavar="TRAJECTORY_ID")],
    target: Target = DEFAULT_TARGET,
    timeout: Timeout = 10.0,
) -> None:
    """Say that trajectories have been taken: exports leave them out from now on."""
    with connect(target, timeout) as client:
        _acknowledge(client, trajectory_ids)


def _acknowledge(client: Client, ids: list[str]) -> None:
    """Acknowledge; Failure if one was refused."""
    refused = []
    for start in range(0, len(ids), 1_000):
        part = ids[start : start + 1_000]
        results = client.ack_trajectories(part)
        refused += [
            f"{one}: {result.refusal.message}"
            for one, result in zip(part, results, strict=True)
            if result.HasField("refusal")
        ]
    if refused:
        raise Failure("; ".join(refused[:20]), REFUSED)
