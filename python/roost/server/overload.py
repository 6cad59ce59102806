"""Sheds load: measures how long calls wait at the door, and refuses some of the new work there when that is too long.

To take a call in, if only to refuse it, costs Python a good part of what serving it costs: a server that refused all it
cannot serve would soon do nothing else. So there are three bounds (docs/ARCHITECTURE.md, "Overload"):

- What ends work, or keeps it going, has queues of its own at gRPC's door, a method each (`KEPT`): however many others
  wait, the next of these is taken in with the next of those.
- One in `_SHARE` of the others is refused with OVERLOADED while they wait for longer than the limit.
- Each queue at gRPC's door is bounded (`QUEUE`). What finds it full is dropped by gRPC itself, with a bare CANCELLED,
  before Python learns of it: so what is taken in is never old, however much comes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import structlog

from roost.server import address
from roost.server.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

    from roost._core import Refusal

# New work is what is not here: it begins something, or only looks.
KEPT: Final = frozenset(
    {
        "/roost.v1.TurnService/RenewTurns",
        "/roost.v1.TurnService/CommitTurn",
        "/roost.v1.TurnService/AbortTurn",
        "/roost.v1.TurnService/GetCheckpoint",
        "/roost.v1.SessionService/CloseSession",
        "/roost.v1.SessionService/InterruptSession",
        "/roost.v1.SessionService/UpdateSession",
        "/roost.v1.TrajectoryService/SetReward",
        "/roost.v1.TrajectoryService/FinishTrajectory",
        "/roost.v1.TrajectoryService/AckTrajectories",
        "/roost.v1.ResourceService/DetachResource",
        "/roost.v1.AdminService/GetStats",
        "/roost.v1.AdminService/RevokeApiKey",
        "/roost.v1.AdminService/SetLimits",
    }
)
# Calls in one queue: from the first number on more and more are dropped, from the second all. gRPC's own defaults.
QUEUE: Final = (1_000, 3_000)
_SHARE: Final = 5  # of the calls taken in while they wait too long, one in so many is refused
_SLOW: Final = 2  # probes in a row
_LOST: Final = 30.0  # seconds that a probe gets
_EVERY: Final = 0.05  # seconds between two looks
_RETRY_MS: Final = (500, 1_500)  # when to come again: a time in between, so that not all come at once
_SOCKET: Final = "door.sock"
_PROBE: Final = "/roost.Door/Probe"  # no such method: the answer is that, from the queue that all new work is in

log = structlog.get_logger("roost.overload")

MethodHandler = Any  # grpc.RpcMethodHandler of bytes
# Makes a refusal of a reason, a sentence, metadata, and milliseconds after which to come again.
Refuse = Callable[[str, str, dict[str, str], int], "Refusal"]


class Overload:
    """Measures the wait at the door by calling the server over a socket of its own, and keeps the gauge "door_wait_ms".
    `limit`: seconds; 0: never refuse. Runs on the event loop."""

    def __init__(self, limit: float, refuse: Refuse, gauges: dict[str, int]) -> None:
        self._limit = limit
        self._refuse = refuse
        self._gauges = gauges
        self._socket: address.Address | None = None
        self._sent: float | None = None  # when the probe that is on its way was sent
        self._waited = 0.0
        self._slow = 0  # probes in a row that waited too long
        self._taken = 0
        self._on = False
        self._began = 0.0
        gauges["door_wait_ms"] = 0

    @property
    def wait(self) -> float:
        """Seconds that a call waits at the door, by the latest probe; of one that is still on its way, so far."""
        return self._waited if self._sent is None else max(self._waited, time.monotonic() - self._sent)

    def listen(self, server: grpc.aio.Server, directory: Path) -> None:
        """Add the socket for the probe, which only this user may connect to, in the store's directory: nobody else's
        process uses that. Without one nothing is measured, and nothing refused."""
        if not self._limit:
            return
        path = directory.resolve() / _SOCKET
        try:
            socket = address.parse(f"unix:{path}", beyond=False)
            path.unlink(missing_ok=True)  # of a server that was killed
            server.add_insecure_port(socket.target)
            address.bound(socket)
        except (OSError, RuntimeError, address.AddressError) as error:
            log.warning("door_not_measured", reason=str(error))
            return
        self._socket = socket

    def close(self) -> None:
        """Take the socket away."""
        if self._socket is not None:
            address.released(self._socket)

    async def run(self) -> None:
        """Measure until cancelled."""
        if self._socket is None:
            return
        looking = asyncio.create_task(self._look())
        try:
            async with grpc.aio.insecure_channel(self._socket.target, options=[("grpc.enable_retries", 0)]) as door:
                untyped: Any = door  # its stub wants serializers
                probe = untyped.unary_unary(_PROBE)
                while True:
                    began = self._sent = time.monotonic()
                    code = None
                    try:
                        await probe(b"", timeout=_LOST, wait_for_ready=True)
                    except grpc.aio.AioRpcError as error:
                        code = error.code()
                    lost = (
                        code is grpc.StatusCode.DEADLINE_EXCEEDED
                    )  # no queue is as long as that: it has no connection
                    self.probed(0.0 if lost else time.monotonic() - began, code is grpc.StatusCode.CANCELLED)
                    await asyncio.sleep(_EVERY)
        finally:
            looking.cancel()

    def probed(self, seconds: float, dropped: bool = False) -> None:
        """A probe has come through after so many seconds, or was dropped because the queue is full."""
        self._sent = None
        self._waited = max(seconds, self._waited) if dropped else seconds
        self._slow = self._slow + 1 if dropped or seconds > self._limit else 0
        self.look()

    async def _look(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_EVERY)

    def look(self) -> None:
        """Refuse from now on, or no more. Two probes in a row must have waited too long, of which the second may still
        be on its way: one may be a moment in which the loop did something else."""
        late = self._sent is not None and time.monotonic() - self._sent > self._limit
        on = self._limit > 0 and self._slow + late >= _SLOW
        if on and not self._on:
            self._began = time.monotonic()
            log.warning("overload_began", wait_ms=round(self.wait * 1_000))
        elif self._on and not on:
            log.info("overload_over", seconds=round(time.monotonic() - self._began, 1))
        self._on = on
        self._gauges["door_wait_ms"] = round(self.wait * 1_000)

    def refusal(self) -> Refusal | None:
        """What a call of new work that comes now is answered, if it is one of those to refuse."""
        if not self._on:
            return None
        self._taken += 1
        if self._taken % _SHARE:
            return None
        wait, limit = round(self.wait * 1_000), round(self._limit * 1_000)
        sentence = f"calls wait {wait} ms at the door; new work is refused from {limit} ms on"
        metadata = {"wait_ms": str(wait), "limit_ms": str(limit)}
        return self._refuse("OVERLOADED", sentence, metadata, random.randint(*_RETRY_MS))


class Gate(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The handlers of new work, by path. A call that is refused is refused before its message is read; `shed` is told
    of it."""

    def __init__(
        self,
        handlers: Mapping[str, MethodHandler],
        overload: Overload,
        shed: Callable[[str, grpc.StatusCode], None],
    ) -> None:
        self._handlers = handlers
        self._overload = overload
        self._shed = shed

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        """What answers a call, or None for what is not a method of Roost's."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None or (refusal := self._overload.refusal()) is None:
            return handler
        code, message, trailers = status_of(refusal)
        self._shed(path, code)

        # As a stream, whatever the method is: a stream may end before it reads.
        async def refuse(_requests: Any, context: Any) -> None:
            context.set_code(code)
            context.set_details(message)
            context.set_trailing_metadata(trailers)

        return grpc.stream_stream_rpc_method_handler(refuse)
