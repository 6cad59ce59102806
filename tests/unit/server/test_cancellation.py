"""I24: whatever call a caller gives up, and wherever it waits then, nothing is leaked.

The real handlers on a real engine and a real store, without a socket: a call runs as a task that is
cancelled at its first suspension, then at its second, until it comes to its end. Each time three ways:
while it waits, when its answer is there and it has not run since, and when it is cancelled first and
its answer comes before it runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ended_sessions
import grpc
import pytest
import pytest_asyncio

from roost._core import LIMITS, METHODS, Engine, new_admin_key
from roost.client._convert import pack_u32
from roost.drivers.reap import Ours
from roost.handlers.cleanup import Cleaner
from roost.handlers.dump.target import open_target
from roost.handlers.dump.writer import write_dump
from roost.handlers.inventory import Reconciler
from roost.handlers.journal import JournalWriter
from roost.handlers.reload import StoreReader
from roost.handlers.restore import Restorer
from roost.handlers.stats import About
from roost.server.overload import Overload
from roost.server.transport import SERVICES, Transport
from roost.store.sqlite import SqliteStore
from roost.v1 import (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

PATIENCE = 30.0  # seconds
POLLER = "poller"
READS = 4  # a find, a header, a session, its mail: as many may follow each other
LATE = 0.05  # seconds an answer is waited for that may never come
MESSAGES = (
    session_service_pb2,
    turn_service_pb2,
    mail_service_pb2,
    trajectory_service_pb2,
    resource_service_pb2,
    admin_service_pb2,
)
CLIENT = resource_service_pb2.RESOURCE_KIND_CLIENT
ADMIN_KEY = new_admin_key()
PATHS = {f"{s.full_name}/{m.name}": m for s in SERVICES for m in s.methods}


class Aborted(Exception):
    """What a handler is ended with that refuses its call."""


class Context:
    """A call's connection."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def __init__(self) -> None:
        self._code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {ADMIN_KEY}"),)

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def time_remaining(self) -> float | None:
        return None

    async def abort(self, code: grpc.StatusCode, message: str, _trailers: Any) -> None:
        self._code = code
        await asyncio.sleep(0)  # where grpc writes the status
        raise Aborted(f"{code.name}: {message}")


class House:
    """All of a server but its door."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory, reserve_bytes=1 << 20, reserve_margin=0, background_checkpoint=False)
        limits = {name: default for name, default, _, _ in LIMITS}
        # Whatever another session does evicts the one under test; half the turns of a tenant are what a test takes.
        limits |= {"max_resident_sessions": 1, "max_turns_per_tenant": 2, "max_inline_checkpoint_bytes": 0}
        self.engine = Engine(limits, self.store.last_seq, secret=self.store.secret, admin_key=ADMIN_KEY)
        self.engine.set_resources("roost", self.store.store_id, self.store.epoch, [CLIENT], [])
        reconcile = Reconciler(Ours("roost", self.store.store_id, self.store.epoch), lambda: 60.0)
        self.transport = Transport(self.engine, self.store, 1 << 22, About(0.0), reconcile, self.fail)
        self._loop = asyncio.get_running_loop()
        self._writer = JournalWriter(self.engine, self.store, self._wake, self.fail)
        self._reader = StoreReader(
            self.engine, self.store, self._loop.call_soon_threadsafe, self.transport.drain, self.fail
        )
        self.handlers: dict[str, Any] = {}
        self.directory = directory.parent
        self.dumps = open_target(str(self.directory))
        self.live: set[bytes] = set()
        server: Any = SimpleNamespace(add_generic_rpc_handlers=self._add, add_registered_method_handlers=self._add_kept)
        read, settle, live = self._reader.read, self.transport.settle, self.live
        step, nothing = self.transport.cleanup_step, dict[str, int]()
        cleaner = Cleaner(self.engine, self.store, read, step, lambda: None, None, lambda: False, nothing, live)
        restorer = Restorer(self.engine, self.store, self.dumps, read, settle, cleaner.undo_restore, live)
        calm = Overload(0.0, self.engine.refuse, nothing)
        self.transport.register(server, self._reader, restorer, calm)
        self._writer.start()
        self._reader.start()
        self.transport.start_ticking()
        self._made = 0
        self._meanwhile: list[asyncio.Task[Any]] = []
        self.over = False  # whether the call that may be given up has ended

    def _add(self, generic: tuple[Any, ...]) -> None:
        for path in PATHS:
            found = generic[0].service(SimpleNamespace(method="/" + path, invocation_metadata=()))
            if found is not None:
                self.handlers[path] = found

    def _add_kept(self, service: str, methods: dict[str, Any]) -> None:
        self.handlers |= {f"{service}/{name}": handler for name, handler in methods.items()}

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self.transport.drain)

    def fail(self, message: str) -> Any:
        raise AssertionError(message)

    def end(self) -> None:
        self.transport.stop_ticking()
        self._reader.stop()
        self._writer.stop()
        self.store.close()
        for method in self.transport.calls.methods():
            assert sum(method.ended) == method.started == sum(method.seconds.counts), method.name

    # -- calls

    async def run(self, path: str, request: Any) -> list[bytes]:
        """The messages a call answers with; of a stream, all of them."""
        handler = self.handlers[path]
        data = request.SerializeToString()
        if handler.response_streaming:
            messages = []
            async for part in handler.unary_stream(data, Context()):
                await asyncio.sleep(0)  # where grpc writes it
                messages.append(part)
            return messages
        return [await handler.unary_unary(data, Context())]

    async def call(self, method: str, **fields: Any) -> Any:
        """One call that nobody cancels, decoded."""
        path = next(path for path in PATHS if path.endswith(f"/{method}"))
        made = message(PATHS[path].input_type)(**fields)
        return message(PATHS[path].output_type).FromString((await self.run(path, made))[0])

    def fresh(self) -> str:
        self._made += 1
        return f"session-{self._made}"

    async def opened(self, *sizes: int) -> str:
        """An open session with a turn of so many tokens for each of these."""
        name, offset = self.fresh(), 0
        await self.call("OpenSession", session_id=name)
        for size in sizes:
            span = types_pb2.TokenSpan(offset=offset, token_ids=pack_u32(range(size)))
            lease = (await self.begun(name)).lease
            record = types_pb2.RecordInput(content=b"x", tokens=span)
            await self.call("CommitTurn", session_id=name, lease=lease, record=record)
            offset += size
        return name

    async def begun(self, name: str) -> Any:
        return (await self.call("BeginTurn", session_id=name)).grant

    async def sent(self, name: str, **fields: Any) -> str:
        """A message to a session; its id."""
        made = await self.call("SendMessage", session_id=name, message={"content": b"x"} | fields)
        return str(made.message_id)

    async def attached(self, name: str, owner: str = "host", **fields: Any) -> str:
        """A resource of a session, confirmed."""
        made = await self.call("AttachResource", session_id=name, kind=CLIENT, owner=owner, **fields)
        await self.call("AttachResource", session_id=name, name=made.name)
        return str(made.name)

    def following(self) -> bool:
        """Whether a stream waits for something to happen."""
        return any(map(len, self.transport._followers.values()))

    async def evicted(self, name: str) -> str:
        """The session, out of memory."""
        other = await self.opened(1)
        await self.call("CloseSession", session_id=other)
        await self.opened(1)
        return name

    def meanwhile(self, work: Any) -> None:
        """Have something happen beside the call."""
        self._meanwhile.append(asyncio.ensure_future(work))

    async def settled(self) -> dict[str, int]:
        """The gauges once nothing is under way any more."""
        await asyncio.gather(*self._meanwhile)
        self._meanwhile.clear()
        for _ in range(READS):
            # What was being read for a call that is gone comes to its end: the engine's reads go before this one.
            await self._reader.read(lambda: b"")
        until = time.monotonic() + PATIENCE
        while self.transport.in_flight() or not self.engine.flushed() or self._reader.queued():
            assert time.monotonic() < until, "calls are still in flight"
            self.transport.drain()
            await asyncio.sleep(0)
        return self.engine.stats()


def message(descriptor: Any) -> Any:
    return next(getattr(module, descriptor.name) for module in MESSAGES if hasattr(module, descriptor.name))


# -- ways to give a call up


def while_it_waits(_: House, task: asyncio.Task[Any], _future: Any) -> None:
    task.cancel()


def when_it_is_answered(_: House, task: asyncio.Task[Any], future: Any) -> None:
    """Its answer is there, but it has not run since."""
    if future is None:
        task.cancel()
    else:
        # Called before the task is woken: it asked to be later.
        future.add_done_callback(lambda _: task.cancel())


def when_its_answer_crosses(house: House, task: asyncio.Task[Any], _future: Any) -> None:
    """It is cancelled, and before it runs again the answer is handed out."""

    def cross() -> None:
        task.cancel()
        until = time.monotonic() + LATE
        while not house.engine.flushed() and time.monotonic() < until:
            house.transport.drain()
        house.transport.drain()

    asyncio.get_running_loop().call_soon(cross)


WAYS = [while_it_waits, when_it_is_answered, when_its_answer_crosses]


class GivenUp:
    """Runs a call and gives it up at its suspension number `at`."""

    def __init__(self, house: House, call: Any, at: int, way: Callable[..., None]) -> None:
        self._house, self._call, self._at, self._way = house, call, at, way
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._call.__await__()
        resume = partial(next, inner)
        suspensions = 0
        while True:
            try:
                future = resume()
            except StopIteration as ended:
                return ended.value
            suspensions += 1
            if suspensions == self._at:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                self._way(self._house, task, future)
            try:
                yield future
            except BaseException as error:  # noqa: BLE001 - it is the call's
                resume = partial(inner.throw, error)
            else:
                resume = partial(next, inner)

    async def end(self) -> bool:
        """Whether the call was given up before its end."""

        async def run() -> Any:
            return await self

        task = asyncio.create_task(run())
        try:
            await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        except asyncio.CancelledError:
            return True
        except Aborted:
            return False
        finally:
            self._house.over = True
        return False


# -- what callers do: each makes its sessions and returns the call, and what it is part of

Scenario = Callable[[House], Any]
SCENARIOS: dict[str, tuple[str, Scenario]] = {}


def scenario(method: str) -> Callable[[Scenario], Scenario]:
    def register(make: Scenario) -> Scenario:
        SCENARIOS[make.__name__] = (method, make)
        return make

    return register


@scenario("OpenSession")
async def open_a_session(h: House) -> dict[str, Any]:
    return {"session_id": h.fresh()}


@scenario("OpenSession")
async def open_a_child_of_one_that_is_not_in_memory(h: House) -> dict[str, Any]:
    parent = await h.evicted(await h.opened(1))
    return {"session_id": h.fresh(), "options": types_pb2.OpenOptions(parent_session_id=parent, name="child")}


@scenario("GetSession")
async def get_a_session(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1))}


@scenario("UpdateSession")
async def update_a_session(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1)), "labels": {"a": "b"}}


@scenario("CloseSession")
async def close_a_session(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    await h.begun(name)
    return {"session_id": name}


@scenario("CloseSession")
async def close_one_that_still_has_to_finish(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    await h.call("SetReward", session_id=name, reward=1, finish_after={"seconds": 3600})
    return {"session_id": await h.evicted(name)}


@scenario("ListSessions")
async def list_sessions(h: House) -> dict[str, Any]:
    await h.opened()
    return {}


@scenario("ReadHistory")
async def read_a_history(h: House) -> dict[str, Any]:
    return {"session_id": await h.opened(*[3] * 40)}


@scenario("InterruptSession")
async def interrupt_a_session(h: House) -> dict[str, Any]:
    name = await h.opened()
    await h.begun(name)
    return {"session_id": name, "force": True}


@scenario("InterruptSession")
async def interrupt_one_that_is_not_in_memory(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1)), "request_id": "once"}


@scenario("BeginTurn")
async def begin_a_turn(h: House) -> dict[str, Any]:
    return {"session_id": await h.opened(1)}


@scenario("BeginTurn")
async def begin_the_first_turn_of_a_new_session(h: House) -> dict[str, Any]:
    return {"session_id": h.fresh(), "open": types_pb2.OpenOptions()}


@scenario("BeginTurn")
async def begin_in_one_that_is_not_in_memory(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1)), "request_id": h.fresh()}


@scenario("BeginTurn")
async def begin_from_what_was_left(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    await h.call("AbortTurn", session_id=name, lease=(await h.begun(name)).lease)
    return {"session_id": await h.evicted(name), "want_provisional": True}


@scenario("BeginTurn")
async def take_a_turn_over(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    await h.begun(name)
    return {"session_id": name, "if_running": turn_service_pb2.IF_RUNNING_TAKEOVER}


@scenario("BeginTurn")
async def wait_for_a_slot(h: House) -> dict[str, Any]:
    for _ in range(2):
        await h.begun(await h.opened())
    return {"session_id": await h.opened(), "wait": {"nanos": 200_000_000}}


@scenario("BeginTurn")
async def wait_for_a_slot_until_one_is_free(h: House) -> dict[str, Any]:
    for _ in range(2):
        name = await h.opened()
        grant = await h.begun(name)
    h.meanwhile(h.call("AbortTurn", session_id=name, lease=grant.lease))
    return {"session_id": await h.opened(), "wait": {"seconds": 60}}


@scenario("BeginTurn")
async def ask_for_a_turn_that_runs(h: House) -> dict[str, Any]:
    name = await h.opened()
    await h.begun(name)
    return {"session_id": name}


@scenario("RenewTurns")
async def renew_leases(h: House) -> dict[str, Any]:
    name, ended = await h.opened(), await h.opened()
    lease = (await h.begun(ended)).lease
    await h.call("CloseSession", session_id=ended)
    renewals = [{"session_id": ended, "lease": lease}]
    renewals.append({"session_id": name, "lease": (await h.begun(name)).lease})
    return {"renewals": renewals}


async def leased(h: House, *sizes: int) -> dict[str, Any]:
    name = await h.opened(*sizes)
    return {"session_id": name, "lease": (await h.begun(name)).lease, "record": types_pb2.RecordInput(content=b"x")}


@scenario("CommitTurn")
async def commit_a_turn(h: House) -> dict[str, Any]:
    return await leased(h, 1)


@scenario("CommitTurn")
async def commit_and_continue(h: House) -> dict[str, Any]:
    return await leased(h, 1) | {"then": turn_service_pb2.THEN_CONTINUE}


@scenario("CommitTurn")
async def commit_and_close(h: House) -> dict[str, Any]:
    return await leased(h, 1) | {"then": turn_service_pb2.THEN_CLOSE}


@scenario("CommitTurn")
async def rewind(h: House) -> dict[str, Any]:
    return await leased(h, 1, 1, 1) | {"base_turn": 1}


@scenario("CommitTurn")
async def commit_again(h: House) -> dict[str, Any]:
    request = await leased(h, 1)
    await h.call("CommitTurn", **request)
    return request


@scenario("AbortTurn")
async def abort_a_turn(h: House) -> dict[str, Any]:
    return await leased(h, 1)


@scenario("AbortTurn")
async def give_a_turn_up(h: House) -> dict[str, Any]:
    return await leased(h, 1) | {"final": True}


@scenario("GetCheckpoint")
async def read_a_checkpoint(h: House) -> dict[str, Any]:
    request = await leased(h, *[200_000] * 3)
    del request["record"]
    return request


@scenario("SetReward")
async def reward_the_last_turn(h: House) -> dict[str, Any]:
    return {"session_id": await h.opened(1, 1), "reward": 1.0}


@scenario("SetReward")
async def reward_an_earlier_turn_and_finish(h: House) -> dict[str, Any]:
    name = await h.evicted(await h.opened(1, 1))
    return {"session_id": name, "turn": 1, "reward": 1.0, "finish_after": {"seconds": 0}}


@scenario("FinishTrajectory")
async def finish_a_trajectory(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1)), "request_id": h.fresh()}


async def finished(h: House) -> str:
    name = await h.opened(1)
    return str((await h.call("FinishTrajectory", session_id=name)).trajectory.trajectory_id)


@scenario("AckTrajectories")
async def acknowledge(h: House) -> dict[str, Any]:
    return {"trajectory_ids": [await finished(h), await finished(h)]}


@scenario("ExportTrajectories")
async def export_all(h: House) -> dict[str, Any]:
    return {"session_ids": [await h.opened(1, 1)], "selection": trajectory_service_pb2.TRAJECTORY_SELECTION_ALL}


@scenario("ExportTrajectories")
async def follow(h: House) -> dict[str, Any]:
    async def one_more() -> None:
        for _ in range(100):  # it need not wait: then the call was given up before
            if h.following():
                break
            await asyncio.sleep(0)
        await finished(h)

    await finished(h)
    h.meanwhile(one_more())
    return {"follow": True, "limit": 1, "after_sequence": h.engine.ready_sequence()}


@scenario("BeginTurn")
async def begin_with_mail(h: House) -> dict[str, Any]:
    name = await h.evicted(await h.opened(1))
    await h.sent(name)
    return {"session_id": name}


@scenario("CommitTurn")
async def commit_and_continue_with_mail(h: House) -> dict[str, Any]:
    request = await leased(h, 1)
    await h.sent(request["session_id"])
    return request | {"then": turn_service_pb2.THEN_CONTINUE}


@scenario("PollTurn")
async def poll_for_what_is_runnable(h: House) -> dict[str, Any]:
    await h.sent(await h.evicted(await h.opened(1)), trigger=True)
    return {"owner": POLLER, "wait": {"seconds": 60}}


@scenario("PollTurn")
async def poll_until_something_is_runnable(h: House) -> dict[str, Any]:
    h.meanwhile(h.sent(await h.opened(1), trigger=True))
    return {"owner": POLLER, "wait": {"seconds": 60}, "request_id": h.fresh()}


@scenario("PollTurn")
async def poll_for_nothing(_: House) -> dict[str, Any]:
    return {"owner": POLLER, "wait": {"seconds": 1}}


@scenario("SendMessage")
async def send_a_message(h: House) -> dict[str, Any]:
    name = await h.evicted(await h.opened(1))
    sender = await h.evicted(await h.opened(1))
    request = {"session_id": name, "sender_session_id": sender, "request_id": h.fresh(), "message": {"content": b"x"}}
    await h.call("SendMessage", **request | {"request_id": h.fresh()})
    return request


@scenario("WaitMail")
async def wait_for_mail(h: House) -> dict[str, Any]:
    name = await h.opened()
    h.meanwhile(h.sent(name))
    return {"session_id": name, "wait": {"seconds": 60}}


@scenario("WaitMail")
async def wait_for_mail_in_vain(h: House) -> dict[str, Any]:
    return {"session_id": await h.evicted(await h.opened(1)), "wait": {"nanos": 100_000_000}}


@scenario("ListMail")
async def list_mail(h: House) -> dict[str, Any]:
    name = await h.opened()
    await h.sent(name)
    return {"session_id": name}


@scenario("AttachResource")
async def attach_a_resource(h: House) -> dict[str, Any]:
    name = await h.evicted(await h.opened(1))
    return {"session_id": name, "kind": CLIENT, "owner": "host", "request_id": h.fresh()}


@scenario("AttachResource")
async def confirm_a_resource(h: House) -> dict[str, Any]:
    name = await h.opened()
    return {"session_id": name, "name": await h.attached(name), "handle": "there"}


async def full_pool(h: House) -> tuple[str, str, dict[str, Any]]:
    """A session with the one resource that its pool may have, its name, and the attach of another session's."""
    pool = {"name": h.fresh(), "key": "user", "max_resources": 1}
    holder = await h.opened()
    held = await h.attached(holder, pool=pool)
    return holder, held, {"session_id": await h.opened(), "kind": CLIENT, "owner": "host", "pool": pool}


@scenario("AttachResource")
async def wait_for_a_place_in_a_pool(h: House) -> dict[str, Any]:
    _, _, request = await full_pool(h)
    return request | {"wait": {"nanos": 100_000_000}}


@scenario("AttachResource")
async def wait_for_a_place_in_a_pool_until_one_is_free(h: House) -> dict[str, Any]:
    holder, held, request = await full_pool(h)
    h.meanwhile(h.call("DetachResource", session_id=holder, name=held))
    return request | {"wait": {"seconds": 60}}


@scenario("DetachResource")
async def detach_a_resource(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    held = await h.attached(name)
    return {"session_id": await h.evicted(name), "name": held}


@scenario("DetachResource")
async def detach_the_last_one_of_a_session_that_has_ended(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    held = await h.attached(name)
    await h.call("CloseSession", session_id=name)
    return {"session_id": name, "name": held}


@scenario("ListResources")
async def list_resources(h: House) -> dict[str, Any]:
    name = await h.opened()
    await h.attached(name)
    return {"session_id": name}


@scenario("ReconcileInventory")
async def reconcile(h: House) -> dict[str, Any]:
    return {"node": "one", "items": [{"name": await h.attached(await h.opened()), "instance": "1"}]}


def watched(h: House, happens: Callable[[], Any]) -> None:
    """Has something happen while a stream waits for that, and then ends the stream."""
    h.transport._stopping = False
    for followers in h.transport._followers.values():
        followers._over = False

    h.over = False

    async def waits() -> bool:
        while not h.following() and not h.over:
            await asyncio.sleep(0)
        return h.following()

    async def one_more() -> None:
        if await waits():  # else the call was given up before
            await happens()
            if await waits():
                h.transport.stop_following()  # a stream ends no other way by itself

    h.meanwhile(one_more())


@scenario("WatchOwner")
async def watch_an_owner(h: House) -> dict[str, Any]:
    owner, sessions = h.fresh(), [await h.opened() for _ in range(2)]
    for name in sessions:
        await h.attached(name, owner)
    await h.call("CloseSession", session_id=sessions[0])
    watched(h, lambda: h.call("CloseSession", session_id=sessions[1]))
    return {"owner": owner}


@scenario("WatchOwner")
async def watch_an_owner_of_turns_and_mail(h: House) -> dict[str, Any]:
    owner, name = h.fresh(), await h.opened()
    grant = (await h.call("BeginTurn", session_id=name, owner=owner)).grant
    await h.call("AbortTurn", session_id=name, lease=grant.lease)
    await h.sent(name, trigger=True)
    running = await h.opened()
    await h.call("BeginTurn", session_id=running, owner=owner)
    await h.call("InterruptSession", session_id=running)
    watched(h, lambda: h.call("InterruptSession", session_id=running, force=True))
    return {"owner": owner}


@scenario("WatchSessions")
async def watch_sessions(h: House) -> dict[str, Any]:
    name = await h.opened()
    watched(h, lambda: h.call("UpdateSession", session_id=name, labels={"a": "b"}))
    return {"root_session_id": name}


@scenario("ReopenSession")
async def reopen(h: House) -> dict[str, Any]:
    name = await h.opened(1)
    await h.call("CloseSession", session_id=name)
    return {"session_id": name}


@scenario("RestoreSessions")
async def restore(h: House) -> dict[str, Any]:
    """A session of another store."""
    name = h.fresh()
    other = ended_sessions.House(h.directory / name)
    made = await write_dump(other.store, h.dumps, other.played(name), ended_sessions.read_now)
    other.store.close()
    return {"dump_names": [made.name]}


@scenario("Sweep")
async def sweep(_: House) -> dict[str, Any]:
    return {"dry_run": True}


@scenario("GetStats")
async def get_stats(_: House) -> dict[str, Any]:
    return {}


@scenario("SetLimits")
async def set_limits(h: House) -> dict[str, Any]:
    return {"limits": {"max_rewind": int(h.fresh().rpartition("-")[2])}}


@scenario("CreateApiKey")
async def create_a_key(h: House) -> dict[str, Any]:
    return {"tenant": h.fresh(), "request_id": h.fresh()}


@scenario("RevokeApiKey")
async def revoke_a_key(h: House) -> dict[str, Any]:
    return {"key_id": (await h.call("CreateApiKey", tenant=h.fresh())).api_key.key_id}


@scenario("ListApiKeys")
async def list_keys(_: House) -> dict[str, Any]:
    return {}


DELIVERIES = {"begin_with_mail"}
ANSWERED_AT_ONCE = {"list_keys"}  # these are never suspended


# -- the test


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "store")
    yield made
    made.end()


def test_every_method_has_its_scenario() -> None:
    assert {method for method, _ in SCENARIOS.values()} == {path.rpartition("/")[2] for path in PATHS}
    assert all(path.lstrip("/") in PATHS for path in METHODS)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_i24_a_call_that_is_given_up_anywhere_leaks_nothing(
    house: House, name: str, way: Callable[..., None]
) -> None:
    method, make = SCENARIOS[name]
    path = next(path for path in PATHS if path.endswith(f"/{method}"))
    at, reached = 1, True
    while reached:
        request = message(PATHS[path].input_type)(**await make(house))
        call = GivenUp(house, house.run(path, request), at, way)
        gone = await call.end()
        reached = call.reached
        gauges = await house.settled()
        held, running = gauges["slots_held"], gauges["turns_running"]
        sessions = await lists(house)
        runs = [s for s, session in sessions.items() if session.activity == types_pb2.ACTIVITY_RUNNING]
        # I1, I2: as many slots as turns, each of them a session's.
        assert held == running == len(runs) <= 2
        assert gauges["waiting"] == gauges["pool_waiting"] == gauges["calls_in_flight"] == 0
        own = getattr(request, "session_id", "")
        if method == "BeginTurn" and gone and own in runs:
            # I3: the turn that runs is not the one whose caller is gone.
            assert name == "ask_for_a_turn_that_runs"
        if method == "PollTurn" and gone:
            # What it was handed is released: nobody knows of that turn.
            assert not [s for s in runs if sessions[s].running.owner == POLLER]
        if name.startswith("commit_and_continue") and gone:
            assert own not in runs or sessions[own].turn_count == 1
        if name in DELIVERIES and gone and own not in runs:
            # I15: a message that nobody got was not delivered, and not lost.
            states = await mail_states(house, own)
            assert states == [types_pb2.MESSAGE_STATE_QUEUED] * len(states)
            assert len(states) == 1
        await empty(house, sessions)
        at += 1
        assert at < 200
    assert at > 2 or name in ANSWERED_AT_ONCE, "the call was never suspended"


async def lists(house: House) -> dict[str, Any]:
    answer = await house.call("ListSessions", state=types_pb2.SESSION_STATE_OPEN, page_size=1000)
    return {session.session_id: session for session in answer.sessions}


async def mail_states(house: House, name: str) -> list[int]:
    return [message.state for message in (await house.call("ListMail", session_id=name)).messages]


async def empty(house: House, sessions: dict[str, Any]) -> None:
    """Closes everything: then nothing is held, pinned or remembered."""
    for session in sessions.values():
        await house.call("CloseSession", session_id=session.session_id)
    gauges = await house.settled()
    left = {name: gauges[name] for name in ("slots_held", "turns_running", "waiting", "resident_sessions")}
    assert left == dict.fromkeys(left, 0)
    transport: Any = house.transport
    assert not transport._pending
    assert not transport._unclaimed
    assert not house.following()
    assert not transport._streams
    assert not house.live
    assert not transport._connections._known
