"""A server that is stopped and started again under load costs its clients nothing but time; `roost drain` stops one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from conftest import Start
from google.protobuf.message import Message
from hyperframe.frame import GoAwayFrame, HeadersFrame
from raw_http2 import RawConnection, message
from roost_server import DEADLINE, Api, Server, environment, fresh, refused, roost, until

from roost.cli.drain import server_of
from roost.client import AsyncClient, Resync
from roost.v1 import trajectory_service_pb2

pytestmark = pytest.mark.crash

PARTS = 25
WATCH = "/roost.v1.SessionService/WatchSessions"


class Load:
    """Clients that run turns, one after the other, each in a session of its own. `acknowledged` is what the server has
    said that it holds."""

    def __init__(self, clients: list[AsyncClient], sessions: int) -> None:
        self.acknowledged: dict[str, list[bytes]] = {fresh("load"): [] for _ in range(sessions)}
        self.resyncs = 0
        self._over = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._work(clients[number % len(clients)], name))
            for number, name in enumerate(self.acknowledged)
        ]
        self._watch = asyncio.create_task(self._follow(clients[0]))

    async def _work(self, client: AsyncClient, name: str) -> None:
        done = self.acknowledged[name]
        await client.open_session(name)
        while not self._over.is_set():
            content = b"%s.%d" % (name.encode(), len(done))
            async with client.turn(name, wait=20) as turn:
                assert (turn.number, turn.attempt) == (len(done) + 1, 1)
                await turn.commit(content)
            done.append(content)
            await client.send(name, content)
            await client.update_session(name, labels={"turns": str(len(done))})

    async def _follow(self, client: AsyncClient) -> None:
        async for news in client.watch_sessions():
            self.resyncs += isinstance(news, Resync)

    async def progress(self, turns: int) -> None:
        """Wait until each has had so many turns more. What has failed is raised."""
        goal = {name: len(done) + turns for name, done in self.acknowledged.items()}
        while any(len(self.acknowledged[name]) < least for name, least in goal.items()):
            for task in (*self._tasks, self._watch):
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Let each finish its turn; raises what failed."""
        self._over.set()
        await asyncio.gather(*self._tasks)
        assert not self._watch.done()
        self._watch.cancel()


@contextlib.asynccontextmanager
async def clients(server: Server, number: int, **more: float) -> AsyncIterator[list[AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(AsyncClient(server.address, **more)) for _ in range(number)]


async def restarted_under_load(server: Server, down: float, restarts: int, **more: float) -> None:
    """The server goes away for a while, with turns running and others waiting, and nobody has lost anything."""
    server.listen = server.address  # where its clients will look for it
    async with clients(server, 3, **more) as (first, second, third):
        running = [fresh("running") for _ in range(2)]
        async with contextlib.AsyncExitStack() as stack:
            turns = [await stack.enter_async_context(third.turn(name, open=True)) for name in running]
            load = Load([first, second], 12)
            await load.progress(3)
            for _ in range(restarts):
                assert await asyncio.to_thread(server.terminate) == 0
                await asyncio.sleep(down)  # the outage, which is what this is about
                await asyncio.to_thread(server.start)
                await load.progress(3)
            for turn in turns:
                assert not turn.lost.is_set()
                assert (await turn.commit(b"over the restart")).turn == 1
        await load.end()
        assert first.retries + second.retries > 0  # or nobody has noticed, and nothing was shown
        assert load.resyncs == 1 + restarts
    with server.api() as api:
        for name, said in load.acknowledged.items():  # I5, I21, I4
            assert [record.record.content for record in api.history(name)] == said
            session = api.get(name)
            assert (session.turn_count, session.labels["turns"]) == (len(said), str(len(said)))
            assert api.wait_mail(name).queued <= 2  # each turn has consumed what was sent before it, once
        for name in running:
            assert [record.attempt for record in api.history(name)] == [1]
        gauges = api.stats().gauges
        assert (gauges["turns_running"], gauges["slots_held"], gauges["waiting"]) == (0, 0, 0)


async def test_i5_i21_a_restart_under_load_fails_no_call_and_ends_no_turn(start: Start) -> None:
    await restarted_under_load(start("--max-turns-per-tenant", "8"), down=1.0, restarts=1, timeout=30.0)


@pytest.mark.long
async def test_i5_i21_restarts_of_seconds_are_outlasted_by_clients_as_they_come(start: Start) -> None:
    await restarted_under_load(start("--max-turns-per-tenant", "8"), down=4.0, restarts=5)


def listening(server: Server) -> bool:
    host, _, port = server.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), DEADLINE).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:  # it was about to be let in
        return True
    return True


def fill(api: Api) -> None:
    """More than what an export sends before it is read."""
    name = api.open().session.session_id
    for _ in range(PARTS):
        api.turn(name, bytes(1_000_000))


def everything() -> Message:
    selection = trajectory_service_pb2.TRAJECTORY_SELECTION_ALL
    return trajectory_service_pb2.ExportTrajectoriesRequest(selection=selection)


def test_calls_that_run_finish_and_connections_are_told_to_go(start: Start) -> None:
    server = start("--drain-timeout", "60s")
    with server.api() as api, RawConnection(server.address, DEADLINE) as raw:
        fill(api)
        raw.begin()
        raw.send(*raw.call(WATCH, message(b""))[1])
        raw.until(lambda frame: isinstance(frame, HeadersFrame))
        export = iter(api.trajectories.ExportTrajectories(everything(), timeout=DEADLINE))
        parts = [next(export)]  # it is not read on, so that it runs until it is
        server.process.send_signal(signal.SIGTERM)
        raw.until(lambda frame: isinstance(frame, GoAwayFrame))
        # The stream that waits for news is ended, with a status that has a client come back.
        assert any(f.fields.get("grpc-status") == "14" for f in raw.frames if isinstance(f, HeadersFrame)) or (
            raw.until(lambda frame: isinstance(frame, HeadersFrame)).fields["grpc-status"] == "14"
        )
        # Nobody is let in any more, and what runs has its time.
        until(lambda: not listening(server))
        assert server.process.poll() is None
        parts += export
        assert sum(len(part.records) for part in parts) == PARTS
        assert server.wait() == 0


def test_the_grace_period_bounds_what_does_not_finish(start: Start) -> None:
    server = start("--drain-timeout", "200ms")
    with server.api() as api:
        fill(api)
        export = iter(api.trajectories.ExportTrajectories(everything(), timeout=DEADLINE))
        next(export)
        assert server.terminate() == 0
        with pytest.raises(grpc.RpcError):
            list(export)


def test_roost_drain_ends_it_as_a_signal_does(start: Start) -> None:
    server = start("--max-turns-per-tenant", "1")
    with server.api() as api:
        holder, waiter = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(holder).grant.lease
        waits = _begin_waiting(api, waiter)
        done = roost("drain", "--data-dir", str(server.data_dir))
        assert (done.returncode, done.stdout, done.stderr) == (0, "drained\n", "")
        assert server.wait() == 0
        with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            waits.result(DEADLINE)
    assert '"event": "stopped"' in server.logged
    # There is nobody to drain now, though the file has a number still: it may be that of any process.
    done = roost("drain", "--data-dir", str(server.data_dir))
    assert (done.returncode, done.stderr) == (3, f"roost: no server on this machine uses {server.data_dir}\n")
    server.start()
    with server.api() as api:
        assert api.commit(holder, lease).turn == 1


def _begin_waiting(api: Api, name: str) -> grpc.Future:
    from roost.v1 import turn_service_pb2

    request = turn_service_pb2.BeginTurnRequest(session_id=name)
    request.wait.FromSeconds(25)
    future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
    until(lambda: api.stats().gauges["waiting"])
    return future


def test_roost_drain_twice_or_before_sigterm_does_not_end_it_at_once(start: Start) -> None:
    """As a hook before the stop of a pod, which a SIGTERM follows."""
    server = start("--drain-timeout", "60s")
    with server.api() as api:
        fill(api)
        export = iter(api.trajectories.ExportTrajectories(everything(), timeout=DEADLINE))
        next(export)
        done = roost("drain", "--data-dir", str(server.data_dir), "--timeout", "0.1")
        assert (done.returncode, "goes on draining" in done.stderr) == (3, True)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            server.process.send_signal(number)
        list(export)
        assert server.wait() == 0


def test_roost_drain_leaves_a_process_alone_that_only_has_the_number(tmp_path: Path) -> None:
    lock = tmp_path / "roost.lock"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment()) as other:
        lock.write_text(f"{other.pid}\n")
        done = roost("drain", "--data-dir", str(tmp_path))
        assert (done.returncode, done.stdout, other.poll()) == (3, "", None)
        other.communicate(b"\n", DEADLINE)
    for number in ("", "x", "0", str(os.getpid()), "9" * 30):
        lock.write_text(number)
        assert server_of(tmp_path) is None
    with lock.open():
        lock.write_text(str(os.getpid()))
        found = server_of(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
