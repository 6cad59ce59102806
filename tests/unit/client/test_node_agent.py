"""`roost reap` as a node agent: it ends what the server named and its list held, and nothing else (I20)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import typer
from fake_server import FakeServer, Refuse

from roost.cli import reap
from roost.cli.output import Failure, Format
from roost.cli.reap import Kind
from roost.drivers import DriverError, Item, Marker
from roost.errors import ConnectionFailed, KeyScope
from roost.v1 import resource_service_pb2 as r


def item(n: int, instance: str = "i") -> Item:
    return Item(str(Marker("roost", "deadbeef", 1, bytes(16), n)), instance)


def judged(*due: Item, waits: tuple[Item, ...] = (), next_ms: int = 1) -> r.ReconcileInventoryResponse:
    answer = r.ReconcileInventoryResponse(
        orphans=[
            r.Orphan(item=r.InventoryItem(name=one.name, instance=one.instance), end=one in due)
            for one in (*due, *waits)
        ]
    )
    answer.next.FromMilliseconds(next_ms)
    return answer


class Outside:
    """A driver of things that are there until they are ended. `fails`: what says so, and how often."""

    def __init__(self, *there: Item) -> None:
        self.there = list(there)
        self.ended: list[Item] = []
        self.fails: dict[Item, int] = {}
        self.listing: list[DriverError | Callable[[], None]] = []

    async def inventory(self) -> list[Item]:
        if self.listing:
            step = self.listing.pop(0)
            if isinstance(step, DriverError):
                raise step
            step()
        return list(self.there)

    async def end(self, one: Item) -> None:
        if self.fails.get(one, 0):
            self.fails[one] -= 1
            raise DriverError(f"{one.name} stays", retryable=True)
        self.ended.append(one)
        if one in self.there:
            self.there.remove(one)

    async def release(self, resource: Any) -> None:
        raise AssertionError

    async def close(self) -> None: ...


@pytest.fixture
def command(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command in a thread of its own, on an outside that is made up."""
    monkeypatch.setattr(reap, "_MARGIN", 0.0)
    monkeypatch.setattr(reap, "_PAUSE", 0.001)
    monkeypatch.delenv("ROOST_API_KEY", raising=False)
    # Signals go to the main thread, which runs the fake server here.
    monkeypatch.setattr(reap, "_run", asyncio.run)

    async def run(outside: Outside, **options: Any) -> None:
        monkeypatch.setattr(reap, "_lister", lambda *_: outside)
        given = {"target": server.target, "output": Format.JSON, "tmux_socket": "", "node": "", "timeout": 30.0}
        flags = {"dry_run": False, "once": False, "watch": False, "every": None}
        await asyncio.to_thread(reap.reap, Kind.PROCESS, **{**given, **flags, **options})

    return run


def told(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    return [(one["name"], one["state"], one["error"]) for one in json.loads(capsys.readouterr().out)]


Run = Callable[..., Any]
Captured = pytest.CaptureFixture[str]


async def test_it_looks_waits_and_ends_what_the_server_names(
    server: FakeServer, command: Run, capsys: Captured
) -> None:
    owned, lost, replaced = item(1), item(2), item(3)
    outside = Outside(owned, lost, replaced, Item("notes", "x"), Item("roost-nearly", "y"))

    def replace() -> None:
        outside.there[outside.there.index(replaced)] = item(3, "another")

    outside.listing = [lambda: None, replace]
    server.script["ReconcileInventory"].extend(
        [judged(waits=(lost, replaced)), judged(lost, waits=(item(3, "another"),))]
    )
    with pytest.raises(Failure, match="1 of 3 orphans are not due yet") as left:
        await command(outside)
    assert left.value.exit_code == 4
    assert outside.ended == [lost]
    assert told(capsys) == [(lost.name, "ended", ""), (replaced.name, "waits", ""), (replaced.name, "gone", "")]
    first, second = server.requests("ReconcileInventory")
    # What bears no name of Roost's is not told to anybody.
    assert [(one.name, one.instance) for one in first.items] == [(o.name, o.instance) for o in (owned, lost, replaced)]
    assert first.node == second.node == f"{os.uname().nodename}:process:{os.getuid()}"
    assert [request.dry_run for request in (first, second)] == [False, False]
    assert first.HasField("listing_time")


async def test_nothing_to_wait_for_is_one_look(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1), item(2))
    server.script["ReconcileInventory"].extend([judged(item(2)), judged()])
    await command(outside)
    assert (outside.ended, told(capsys)) == ([item(2)], [(item(2).name, "ended", "")])
    await command(outside)
    assert told(capsys) == []
    assert len(server.requests("ReconcileInventory")) == 2


async def test_a_dry_run_ends_nothing(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1), item(2), item(3))
    server.script["ReconcileInventory"].append(judged(item(1), waits=(item(3),)))
    await command(outside, dry_run=True, node="n")
    assert outside.ended == []
    assert told(capsys) == [(item(1).name, "due", ""), (item(3).name, "waits", "")]
    (request,) = server.requests("ReconcileInventory")
    assert (request.dry_run, request.node) == (True, "n")


async def test_once_leaves_what_is_not_due_to_the_next_time(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1), item(2))
    server.script["ReconcileInventory"].append(judged(item(1), waits=(item(2),)))
    await command(outside, once=True)
    assert outside.ended == [item(1)]
    assert told(capsys) == [(item(1).name, "ended", ""), (item(2).name, "waits", "")]


async def test_i20_only_what_was_listed_is_ended(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1))
    server.script["ReconcileInventory"].append(judged(item(1, "a successor"), item(2), Item("main", "$0")))
    await command(outside, once=True)
    assert (outside.ended, told(capsys)) == ([], [])


async def test_what_cannot_be_ended_is_tried_once_more(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1), item(2), item(3))
    outside.fails = {item(1): 1, item(2): 2}
    server.script["ReconcileInventory"].extend([judged(item(1), item(2), item(3)), judged(item(1), item(2))])
    with pytest.raises(Failure, match=f"1 of 3 orphans could not be ended: {item(2).name} stays") as left:
        await command(outside)
    assert left.value.exit_code == 4
    assert set(outside.ended) == {item(1), item(3)}
    assert [state for _, state, _ in told(capsys)] == ["ended", "failed", "ended"]


async def test_without_a_list_nothing_is_ended(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1))
    outside.listing = [DriverError("tmux is not installed", retryable=False)]
    with pytest.raises(Failure, match="so nothing is ended: tmux is not installed") as failed:
        await command(outside)
    assert failed.value.exit_code == 69
    assert capsys.readouterr().out == ""
    assert server.requests("ReconcileInventory") == []
    # One that fails when the time has come: what was found before it is told.
    outside.listing = [lambda: None, DriverError("it hangs", retryable=True)]
    server.script["ReconcileInventory"].append(judged(waits=(item(1),)))
    with pytest.raises(Failure, match="it hangs"):
        await command(outside)
    assert told(capsys) == [(item(1).name, "waits", "")]
    outside.listing, outside.there = [], [item(n) for n in range(1, reap.MOST_ITEMS + 2)]
    with pytest.raises(Failure, match="10001 things"):
        await command(outside)
    assert (outside.ended, len(server.requests("ReconcileInventory"))) == ([], 1)


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        (Refuse(grpc.StatusCode.UNAVAILABLE), ConnectionFailed),
        (Refuse(grpc.StatusCode.PERMISSION_DENIED, "KEY_SCOPE"), KeyScope),
    ],
)
async def test_without_an_answer_nothing_is_ended(
    server: FakeServer, command: Run, refuse: Refuse, error: type[Exception]
) -> None:
    outside = Outside(item(1))
    server.script["ReconcileInventory"].append(refuse)
    with pytest.raises(error):
        await command(outside)
    assert (outside.ended, len(server.requests("ReconcileInventory"))) == ([], 1)


async def test_a_watcher_goes_on_over_what_may_pass(server: FakeServer, command: Run, capsys: Captured) -> None:
    outside = Outside(item(1), item(2))
    outside.listing = [DriverError("busy", retryable=True), *([lambda: None] * 5), DriverError("gone", retryable=False)]
    outside.fails = {item(2): 1}
    server.script["ReconcileInventory"].extend(
        [
            judged(waits=(item(1), item(2)), next_ms=0),
            Refuse(grpc.StatusCode.UNAVAILABLE, message="down"),
            judged(item(1), item(2)),
            judged(item(2)),
            judged(),
        ]
    )
    with pytest.raises(Failure, match="gone"):
        await command(outside, watch=True)
    assert outside.ended == [item(1), item(2)]
    said = capsys.readouterr()
    assert [(one["name"], one["state"]) for one in map(json.loads, said.out.splitlines())] == [
        (item(1).name, "ended"),
        (item(2).name, "failed"),
        (item(2).name, "ended"),
    ]
    assert said.err.splitlines() == [
        "no inventory, so nothing is ended: busy",
        "the server gave no answer: down",
    ]
    server.script["ReconcileInventory"].append(Refuse(grpc.StatusCode.PERMISSION_DENIED, "KEY_SCOPE"))
    with pytest.raises(KeyScope):
        await command(outside, watch=True, output=Format.TABLE)


@pytest.mark.parametrize(
    "options",
    [
        {"dry_run": True, "once": True},
        {"dry_run": True, "watch": True},
        {"once": True, "watch": True},
        {"every": 5.0},
        {"tmux_socket": "/run/tmux"},
    ],
    ids=str,
)
async def test_options_that_do_not_go_together(server: FakeServer, command: Run, options: dict[str, Any]) -> None:
    with pytest.raises(typer.BadParameter):
        await command(Outside(), **options)
    assert server.calls == []


def test_sigterm_ends_it_in_order() -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(SystemExit) as end:
        reap._run(work())
    assert (end.value.code, ended) == (143, [True])
