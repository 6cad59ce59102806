"""The grpcio door: maps RPCs to the engine or to cold handlers, tickets to futures, refusals to statuses.

Hot RPCs go to the engine as bytes and come back as bytes; nothing is decoded here. Cold RPCs run on the reader
thread. All methods of `Transport` run on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

import grpc
import grpc.aio
import structlog

from roost._core import METHODS
from roost.handlers.cold import Cold, Follow, Step
from roost.handlers.errors import Refused, failure
from roost.handlers.export import export_trajectories
from roost.handlers.history import read_history
from roost.handlers.inventory import Reconciler
from roost.handlers.lists import list_sessions
from roost.handlers.mail import list_mail
from roost.handlers.measures import Context, Spans, Stream
from roost.handlers.measures import Unary as Handler
from roost.handlers.owner import owner_count, watch_owner
from roost.handlers.reach import Reach
from roost.handlers.resources import list_resources
from roost.handlers.stats import About, get_stats
from roost.handlers.sweep import sweep
from roost.handlers.watch import watch_sessions
from roost.server.calls import Calls
from roost.server.overload import KEPT, Gate, MethodHandler
from roost.server.status import refuse
from roost.v1 import (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
)

if TYPE_CHECKING:
    from roost._core import Engine, Refusal
    from roost.handlers.reload import StoreReader
    from roost.server.overload import Overload
    from roost.store.base import SessionRow, Store

SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (session_service_pb2, "SessionService"),
        (turn_service_pb2, "TurnService"),
        (mail_service_pb2, "MailService"),
        (trajectory_service_pb2, "TrajectoryService"),
        (resource_service_pb2, "ResourceService"),
        (admin_service_pb2, "AdminService"),
    )
)
# Of these a call may wait: for a slot, for a session that is runnable, for mail, or for a place in a pool.
_WAITING: Final = frozenset(
    {
        "/roost.v1.TurnService/BeginTurn",
        "/roost.v1.TurnService/PollTurn",
        "/roost.v1.MailService/WaitMail",
        "/roost.v1.ResourceService/AttachResource",
    }
)
_RESTORE: Final = "/roost.v1.TrajectoryService/RestoreSessions"
_CHECKPOINT: Final = "/roost.v1.TurnService/GetCheckpoint"
_EVENTS_PAUSE: Final = 0.02  # seconds; what happens in them is read at once by each stream that waits for it

log = structlog.get_logger("roost.transport")

Caller = tuple[str, str]  # the metadata authorization and x-roost-tenant, as they came
# Answers a request for the tenant that the first argument names; that raises Refused once the caller's key is no good.
Long = Callable[[Callable[[], str], bytes], Awaitable[bytes]]
P = ParamSpec("P")
R = TypeVar("R")


def caller_of(context: Context) -> Caller:
    """What the metadata of a call say of its caller. More than one `authorization` is no key: which would count?"""
    authorization = tenant = ""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            authorization = f"{authorization},{value}" if authorization else str(value)
        elif name == "x-roost-tenant":
            tenant = f"{tenant},{value}" if tenant else str(value)
    return authorization, tenant


class Connections:
    """Small numbers for the peers that have a call in flight that may wait: the engine bounds waiters by connection.

    All connections to a Unix socket have the same peer name. There each call counts as a connection of its own, so
    that one program cannot use up the bound of another; `max_concurrent_streams` and `max_waiters` still hold.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[int]] = {}  # peer -> [number, calls in flight]
        self._next = 0

    def enter(self, peer: str) -> int:
        """The number of a peer, kept until as many `leave` as `enter` were called."""
        entry = self._known.get(peer)
        if entry is None:
            self._next += 1
            if peer.startswith("unix:"):
                return self._next
            self._known[peer] = entry = [self._next, 0]
        entry[1] += 1
        return entry[0]

    def leave(self, peer: str) -> None:
        """A call of this peer is over."""
        entry = self._known.get(peer)
        if entry is not None:
            entry[1] -= 1
            if not entry[1]:
                del self._known[peer]


class Followers:
    """Streams that wait until a count of the engine's has grown. `pause`: seconds in which more may come before they
    look again. `clock`: the service clock, for those that wait only up to some time."""

    def __init__(self, count: Callable[[], int], clock: Callable[[], int], pause: float = 0.0) -> None:
        self._count = count
        self._clock = clock
        self._pause = pause
        self._seen = 0  # when it was last looked at
        self._waiting: dict[asyncio.Future[None], int | None] = {}  # each with the end of its wait
        self._over = False

    def __len__(self) -> int:
        return len(self._waiting)

    def look(self) -> None:
        """Wake them if it has grown, and those whose time is up."""
        count = self._count()
        if count != self._seen:
            self._seen = count
            self._wake(list(self._waiting))
        elif self._waiting and (ends := [end for end in self._waiting.values() if end is not None]):
            now = self._clock()
            if min(ends) <= now:
                self._wake([future for future, end in self._waiting.items() if end is not None and end <= now])

    def stop(self) -> None:
        """Wake them for good."""
        self._over = True
        self._wake(list(self._waiting))

    def _wake(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    async def wait(self, follow: Follow) -> None:
        """Wait until the count has grown and there is something for this stream, its time is up, or all is over."""
        seen, until = follow.seen, follow.until_ms
        while not self._over and (until is None or self._clock() < until):
            count = self._count()
            if count > seen:
                if self._pause:
                    await asyncio.sleep(self._pause)
                if follow.look is None or follow.look():
                    return
                seen = count
                continue
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = until
            try:
                await future
            finally:
                del self._waiting[future]


class Transport:
    """Registers every RPC on a grpc.aio server, counts its calls, and keeps those that wait for the engine. `reconcile`
    answers ReconcileInventory; `spans` are told of calls and of what they wait for."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        max_request_bytes: int,
        about: About,
        reconcile: Reconciler,
        fail: Callable[[str], None],
        spans: Spans | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._spans = spans or Spans()
        self.calls = Calls(f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods)
        self._limit = max_request_bytes
        self._about = about
        self._reconcile = reconcile
        self._fail = fail
        self._pending: dict[int, asyncio.Future[bytes | Refusal]] = {}
        self._unclaimed: dict[int, bytes | Refusal] = {}  # answers whose calls were cancelled a moment ago
        self._connections = Connections()
        self._cold_running = 0
        self._streams: dict[object, float] = {}  # when each stream that reads the store began
        self._tick: asyncio.TimerHandle | None = None
        self._followers = {
            "ready": Followers(engine.ready_sequence, engine.service_ms),
            "events": Followers(engine.watch_count, engine.service_ms, _EVENTS_PAUSE),
            "owner": Followers(lambda: owner_count(engine), engine.service_ms, _EVENTS_PAUSE),
        }
        self._stopping = False
        self.requests = 0  # RPCs received

    def oldest_stream(self) -> float | None:
        """When the oldest stream that still reads the store began, by the monotonic clock."""
        return min(self._streams.values(), default=None)

    def in_flight(self) -> int:
        """Calls that wait for the engine or for a cold read."""
        return len(self._pending) + self._cold_running

    # -- the engine's time and tickets

    def drain(self) -> None:
        """Hand finished tickets to their calls."""
        pending, ended = self._pending, self._ask(self._engine.completed)
        if self._spans.on:
            self._spans.settle()
        for ticket, result in ended:
            future = pending.get(ticket)
            if future is None:
                continue
            if future.done():
                # Its call was cancelled and has not run since: it gives the answer back when it does.
                self._unclaimed[ticket] = result
            else:
                del pending[ticket]
                future.set_result(result)
        for followers in self._followers.values():
            followers.look()

    def stop_following(self) -> None:
        """End the streams that wait for something to happen: the server stops."""
        self._stopping = True
        for followers in self._followers.values():
            followers.stop()

    def start_ticking(self) -> None:
        """Call the engine's tick whenever it is due."""
        delay = self._ask(self._engine.tick)
        self.drain()
        self._tick = asyncio.get_running_loop().call_later(delay / 1_000, self.start_ticking)

    def stop_ticking(self) -> None:
        """No tick follows."""
        if self._tick is not None:
            self._tick.cancel()

    def _ask(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a method of the engine that refuses nothing: whatever it raises leaves the engine unusable."""
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            self._fail(failure("engine", error))
            raise

    # -- registration

    def register(self, server: grpc.aio.Server, reader: StoreReader, restore: Long, overload: Overload) -> None:
        """Add every RPC of every Roost service. `restore` answers RestoreSessions."""
        unary: dict[str, Callable[[Cold, bytes], bytes]] = {
            "/roost.v1.SessionService/ListSessions": list_sessions,
            "/roost.v1.MailService/ListMail": list_mail,
            "/roost.v1.ResourceService/ListResources": list_resources,
            "/roost.v1.ResourceService/ReconcileInventory": self._reconcile,
            "/roost.v1.AdminService/GetStats": partial(get_stats, about=self._about),
            "/roost.v1.AdminService/Sweep": sweep,
        }
        streams: dict[str, Callable[[Cold, bytes], Iterator[Step]]] = {
            "/roost.v1.SessionService/ReadHistory": read_history,
            "/roost.v1.SessionService/WatchSessions": watch_sessions,
            "/roost.v1.TrajectoryService/ExportTrajectories": export_trajectories,
            "/roost.v1.TurnService/WatchOwner": watch_owner,
        }

        def answers(path: str) -> MethodHandler:
            # No (de)serializers: requests and replies are bytes.
            if path in streams or path == _CHECKPOINT:
                checkpoint = path == _CHECKPOINT
                stream = self._checkpoint(METHODS[path]) if checkpoint else self._stream(path, streams[path], reader)
                told = self._spans.stream(path, self.calls.stream(path, stream))
                return grpc.unary_stream_rpc_method_handler(told)
            if path in unary:
                handler = self._cold(path, unary[path], reader)
            elif path == _RESTORE:
                handler = self._long(path, restore)
            elif path in _WAITING:
                handler = self._waiting(METHODS[path])
            else:
                handler = self._hot(METHODS[path])
            return grpc.unary_unary_rpc_method_handler(self._spans.unary(path, self.calls.unary(path, handler)))

        untyped: Any = server  # its stub does not know of registered methods
        new: dict[str, MethodHandler] = {}
        for service in SERVICES:
            paths = {f"/{service.full_name}/{method.name}": method.name for method in service.methods}
            kept = {name: answers(path) for path, name in paths.items() if path in KEPT}
            new |= {path: answers(path) for path in paths if path not in KEPT}
            untyped.add_registered_method_handlers(service.full_name, kept)  # a queue of its own for each
        server.add_generic_rpc_handlers((Gate(new, overload, self._shed),))

    def _shed(self, path: str, code: grpc.StatusCode) -> None:
        """A call was refused at the door."""
        self.requests += 1
        self.calls.refused(path, code)

    def _hot(self, method: int) -> Handler:
        """A unary RPC of the engine."""
        call, limit, wait = self._call, self._limit, self._wait

        async def handle(request: bytes, context: Context) -> bytes:
            self.requests += 1
            if len(request) > limit:
                await self._too_large(context, len(request))
            caller = caller_of(context)
            result: Any = call(method, request, caller, 0)
            if type(result) is int:
                result = await wait(method, request, caller, result)
            if type(result) is bytes:
                return result
            return await refuse(context, result)

        return handle

    def _waiting(self, method: int) -> Handler:
        """As `_hot`, and the engine learns which connection the call came by."""
        call, limit, wait, connections = self._call, self._limit, self._wait, self._connections

        async def handle(request: bytes, context: Context) -> bytes:
            self.requests += 1
            if len(request) > limit:
                await self._too_large(context, len(request))
            peer, caller = context.peer(), caller_of(context)
            try:
                result: Any = call(method, request, caller, connections.enter(peer))
                if type(result) is int:
                    result = await wait(method, request, caller, result)
            finally:
                connections.leave(peer)
            if type(result) is bytes:
                return result
            return await refuse(context, result)

        return handle

    def _call(self, method: int, request: bytes, caller: Caller, connection: int) -> bytes | int | Refusal:
        """Ask the engine. An exception is a bug and fails the call; a panic leaves the engine unusable."""
        try:
            return self._engine.call(method, request, *caller, connection)
        except Exception:
            log.exception("call_failed", method=method)
            return self._engine.refuse("INTERNAL_ERROR", "the server failed to answer; see its log", {})
        except BaseException as error:
            self._fail(failure("engine", error))
            raise

    async def cleanup_step(self, row: SessionRow, step: tuple[Any, ...]) -> bool:
        """Journal a step of an ended session's clean-up and wait until it is durable. False if nothing was done: the
        session's row is another by now, or the server must not write at the moment."""
        result = self._ask(self._engine.cleanup_step, row.tenant, row.session_id, row.uid, row.root, row.seq, step)
        return await self.settle(result) == b"done"

    async def resource_step(self, name: str, step: tuple[Any, ...]) -> bool:
        """Journal what came of a release, as `cleanup_step` does. False if the resource is not one to be released any
        more, or nothing may be written at the moment."""
        return await self.settle(self._ask(self._engine.resource_step, name, step)) == b"done"

    async def settle(self, result: bytes | int | Refusal) -> bytes | Refusal:
        """What a step that the server itself had journaled comes to, once it is durable. It is taken even if nobody
        waits for it any more."""
        if type(result) is int:
            ticket, future = result, asyncio.get_running_loop().create_future()
            self._pending[ticket] = future
            try:
                result = await future
            finally:
                self._pending.pop(ticket, None)
                self._unclaimed.pop(ticket, None)  # it came when this was given up already
        return result  # type: ignore[return-value]

    async def _wait(self, method: int, request: bytes, caller: Caller, ticket: int) -> bytes | Refusal:
        """Await a ticket; the engine learns of it when the caller is gone (I24)."""
        future = self._pending[ticket] = asyncio.get_running_loop().create_future()
        if self._spans.on:
            self._spans.waits(ticket)
        try:
            result: bytes | Refusal = await future
            return result
        except asyncio.CancelledError:
            self._pending.pop(ticket, None)
            reply = self._unclaimed.pop(ticket, None) if future.cancelled() else future.result()
            if reply is None:
                self._ask(self._engine.cancel, ticket)
            elif type(reply) is bytes:
                # The answer was there, but this call was cancelled before it could be written.
                self._ask(self._engine.undelivered, method, request, reply, *caller)
            self.drain()
            raise
        finally:
            if self._spans.on:
                self._spans.left(ticket)

    def _authorize(self, path: str, caller: Caller) -> Cold | Refusal:
        """What a cold handler may use for this caller. Asked again before each step of a stream: keys are revoked."""
        try:
            granted = self._engine.authorize(path, *caller)
        except Exception:
            log.exception("authorize_failed", path=path)
            return self._engine.refuse("INTERNAL_ERROR", "the server failed to answer; see its log", {})
        if len(granted) == 3:
            return granted
        tenant, session = granted
        reach = None if session is None else Reach(*session)
        return Cold(self._engine, self._store, tenant, reach, self._engine.service_ms())

    def _cold(self, path: str, handler: Callable[[Cold, bytes], bytes], reader: StoreReader) -> Handler:
        """A unary RPC of the reader thread."""

        async def handle(request: bytes, context: Context) -> bytes:
            self.requests += 1
            if len(request) > self._limit:
                await self._too_large(context, len(request))
            cold = self._authorize(path, caller_of(context))
            if not isinstance(cold, Cold):
                await refuse(context, cold)
            self._cold_running += 1
            try:
                answer = await reader.read(partial(cold.step, partial(handler, cold, request)))
            finally:
                self._cold_running -= 1
            if type(answer) is bytes:
                return answer
            return await refuse(context, answer)

        return handle

    def _long(self, path: str, work: Long) -> Handler:
        """A unary RPC that runs on the event loop, over many reads and steps; given up with its call. Whether its key
        is still good is for `work` to ask."""

        async def handle(request: bytes, context: Context) -> bytes:
            self.requests += 1
            if len(request) > self._limit:
                await self._too_large(context, len(request))
            caller = caller_of(context)

            def tenant() -> str:
                cold = self._authorize(path, caller)
                if not isinstance(cold, Cold):
                    raise Refused(cold)
                return cold.tenant

            self._cold_running += 1
            try:
                return await work(tenant, request)
            except Refused as error:
                refusal = error.refusal
            except Exception:
                log.exception("call_failed")
                refusal = self._engine.refuse("INTERNAL_ERROR", "the server failed to answer; see its log", {})
            finally:
                self._cold_running -= 1
            return await refuse(context, refusal)

        return handle

    def _stream(self, path: str, handler: Callable[[Cold, bytes], Iterator[Step]], reader: StoreReader) -> Stream:
        """A server-streaming RPC: each step is one read, made when the message before was taken by the transport."""

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes]:
            self.requests += 1
            if len(request) > self._limit:
                await self._too_large(context, len(request))
            caller = caller_of(context)
            cold = self._authorize(path, caller)
            if not isinstance(cold, Cold):
                await refuse(context, cold)
            pages = handler(cold, request)
            step = partial(cold.step, partial(next, pages, None))
            self._cold_running += 1
            self._streams[pages] = time.monotonic()
            try:
                while (page := await reader.read(step)) is not None:
                    if type(page) is Follow:
                        # It has read all there was: what is purged from now on is none of its business.
                        del self._streams[pages]
                        await self._followers[page.what].wait(page)
                        self._streams[pages] = time.monotonic()
                        if self._stopping:
                            page = self._engine.refuse("SHUTTING_DOWN", "the server is stopping", {})
                            break
                    elif type(page) is not bytes:
                        break
                    elif page:  # else NOTHING_YET
                        yield page
                    still = self._authorize(path, caller)
                    if not isinstance(still, Cold):
                        page = still
                        break
            finally:
                self._cold_running -= 1
                self._streams.pop(pages, None)
            if page is not None:
                await refuse(context, page)

        return handle

    def _checkpoint(self, method: int) -> Stream:
        """GetCheckpoint: the engine answers one part a call; the next is asked for from where that one ended."""

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes]:
            self.requests += 1
            if len(request) > self._limit:
                await self._too_large(context, len(request))
            caller = caller_of(context)
            while True:
                result: Any = self._call(method, request, caller, 0)
                if type(result) is int:
                    result = await self._wait(method, request, caller, result)
                if type(result) is not bytes:
                    await refuse(context, result)
                yield result
                part = turn_service_pb2.GetCheckpointResponse.FromString(result)
                if part.last:
                    return
                again = turn_service_pb2.GetCheckpointRequest.FromString(request)
                again.from_offset = part.checkpoint.offset + len(part.checkpoint.token_ids) // 4
                request = again.SerializeToString()

        return handle

    async def _too_large(self, context: Context, size: int) -> NoReturn:
        message = f"the request is {size} bytes; the limit is {self._limit}"
        metadata = {"field": "request", "size": str(size), "limit": str(self._limit)}
        await refuse(context, self._engine.refuse("TOO_LARGE", message, metadata))
