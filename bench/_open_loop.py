"""An open-loop load generator on raw HTTP/2, for more load than a client library can make beside the server it loads.

Turns arrive at random moments (Poisson) that do not depend on the answers. Each begins the first turn of a session,
which it makes, holds it for a time, and commits it. Frames are made once and patched, answers are told apart by their
frames; only grants are decoded. It keeps to what the server's SETTINGS allow: what finds no stream waits here, and is
given up when its time is over, as a client with a deadline does.
"""

from __future__ import annotations

import base64
import contextlib
import random
import selectors
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hpack import Decoder

from roost.v1 import turn_service_pb2, types_pb2
from roost.workload.latency import Latency

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_STATUS, _DETAILS = b"grpc-status", b"grpc-status-details-bin"
_LOOK_AT: Final = 50
_MAX_STREAMS: Final = 3  # the id of the setting
_WINDOW_SIZE: Final = 2**31 - 1
Ended = Callable[[str, bytes], None]  # "OK" and the message; else the code, "RESET" or "LATE", and the trailers


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that is not indexed, so that blocks can be used again."""
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def _status(block: bytes) -> str:
    """The code of a call that ended without a message."""
    at = block.find(_STATUS) + len(_STATUS)
    if at >= len(_STATUS) and block[at] == 1:  # one digit, as it is
        return chr(block[at + 1])
    fields: dict[bytes, bytes] = dict(Decoder().decode(block, raw=True))
    return fields[b"grpc-status"].decode()


@dataclass(slots=True)
class _Call:
    ended: Ended
    message: bytes = b""


class Connection:
    """One connection to a Unix socket, kept to its number of streams."""

    def __init__(self, path: str, deadline: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.deadline = deadline
        self.waiting: deque[tuple[float, str, bytes, Ended]] = deque()
        self.calls: dict[int, _Call] = {}  # by stream
        self.order: deque[tuple[float, int]] = deque()  # when each stream is late
        self.out = bytearray(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 1, 0))  # no dynamic table: each block can be read by itself
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_SIZE - 65_535))
        )
        self._in = b""
        self._next = 1
        self._room = 65_535  # what the server lets us send
        self._streams = 100
        self._heads: dict[tuple[str, int], bytes] = {}

    def call(self, method: str, message: bytes, ended: Ended, since: float) -> None:
        """A call that is late `deadline` seconds after `since`."""
        self.waiting.append((since + self.deadline, method, message, ended))

    def _head(self, method: str, timeout_ms: int) -> bytes:
        head = self._heads.get((method, timeout_ms))
        if head is None:
            fields = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")]
            fields += [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", f"{timeout_ms}m")]
            head = self._heads[method, timeout_ms] = b"".join(_literal(*one) for one in fields)
        return head

    def pump(self, now: float) -> None:
        """Give up what is late, send what there is room for."""
        while self.order and self.order[0][0] <= now:
            _, stream = self.order.popleft()
            if (call := self.calls.pop(stream, None)) is not None:
                self.out += _frame(_RESET, 0, stream, struct.pack(">I", 8))
                call.ended("LATE", b"")
        while self.waiting and (self.waiting[0][0] <= now or len(self.calls) < self._streams):
            late, method, message, ended = self.waiting.popleft()
            if late <= now:
                ended("LATE", b"")
                continue
            body = struct.pack(">BI", 0, len(message)) + message
            if len(body) > self._room:
                self.waiting.appendleft((late, method, message, ended))
                break
            self._room -= len(body)
            stream, self._next = self._next, self._next + 2
            # In steps, so that few heads are made.
            head = self._head(method, max(50, int((late - now) * 20) * 50))
            self.out += _frame(_HEADERS, 4, stream, head) + _frame(_DATA, 1, stream, body)
            self.calls[stream] = _Call(ended)
            self.order.append((late, stream))
        if self.out:
            with contextlib.suppress(BlockingIOError):
                del self.out[: self.socket.send(self.out, socket.MSG_DONTWAIT)]

    def read(self) -> None:
        """Take in what has come."""
        data = self._in + self.socket.recv(1 << 18, socket.MSG_DONTWAIT)
        if not data:
            raise ConnectionError("the server has ended the connection")
        at = 0
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + length:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, data[at + 9 : at + 9 + length])
            at += 9 + length
        self._in = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            if (call := self.calls.get(stream)) is not None:
                call.message += payload
        elif kind == _HEADERS:
            if flags & 1 and (call := self.calls.pop(stream, None)) is not None:
                if call.message:
                    call.ended("OK", call.message[5:])
                else:
                    call.ended(_status(payload), payload)
        elif kind == _RESET:
            if (call := self.calls.pop(stream, None)) is not None:
                call.ended("RESET", b"")
        elif kind == _SETTINGS and not flags & 1:
            for start in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, start)
                if name == _MAX_STREAMS:
                    self._streams = value
            self.out += _frame(_SETTINGS, 1, 0, b"")
        elif kind == _PING and not flags & 1:
            self.out += _frame(_PING, 1, 0, payload)
        elif kind == _WINDOW and stream == 0:
            self._room += struct.unpack(">I", payload)[0]
        elif kind == _GOAWAY:
            raise ConnectionError(f"GOAWAY {payload!r}")


@dataclass
class Tally:
    """What has ended."""

    begins: Counter[str] = field(default_factory=Counter)  # by reason or code
    commits: Counter[str] = field(default_factory=Counter)  # by code
    committed: list[float] = field(default_factory=list)  # when each turn was
    waits: Latency = field(default_factory=Latency)  # of these, from their arrival


@dataclass(frozen=True)
class Work:
    """What a turn is: how long it may wait for a slot and how long it holds it, in seconds; bytes of its record."""

    wait: float = 0.0
    hold: float = 0.0
    content: int = 1_000


class OpenLoop:
    """Turns of sessions `name-1`.. through `pairs` of connections: one for new work, one for the rest, as the clients
    that ship with Roost keep two."""

    def __init__(self, socket_path: str, pairs: int, deadline: float, name: str, work: Work) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._new = [self._connect(socket_path, deadline) for _ in range(pairs)]
        self._rest = [self._connect(socket_path, deadline) for _ in range(pairs)]
        self._work = work
        self._record = types_pb2.RecordInput(content=random.randbytes(work.content))
        self._open = types_pb2.OpenOptions()
        self._looked: Counter[str] = Counter()
        self._told: dict[str, str] = {}
        self._held: deque[tuple[float, Connection, bytes, Ended]] = deque()
        self._turn = 0
        self.tally = Tally()
        self.running = 0
        self.late = 0.0  # seconds by which the generator itself came too late to an arrival

    def _connect(self, path: str, deadline: float) -> Connection:
        connection = Connection(path, deadline)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def measure(self, seconds: float, rate: float = 0.0, closed: int = 0) -> tuple[Tally, float]:
        """As `run`; what ended meanwhile, and the moment at which it began."""
        self.tally, began = Tally(), time.monotonic()
        self.run(seconds, rate, closed)
        return self.tally, began

    def run(self, seconds: float, rate: float = 0.0, closed: int = 0) -> None:
        """Turns arrive at `rate` a second; or `closed` run at all times, each followed by the next at once."""
        clock = time.monotonic
        end = clock() + seconds
        due = clock() + random.expovariate(rate) if rate else end
        while (now := clock()) < end:
            while due <= now and due < end:
                self.late = max(self.late, now - due)
                self._arrive(due)
                due += random.expovariate(rate)
            while self.running < closed:
                self._arrive(now)
            while self._held and self._held[0][0] <= now:
                _, connection, commit, committed = self._held.popleft()
                connection.call("/roost.v1.TurnService/CommitTurn", commit, committed, now)
            for connection in (*self._new, *self._rest):
                connection.pump(now)
            for key, _ in self._selector.select(max(0.0, min(due - now, 0.005))):
                key.data.read()

    def drop(self) -> None:
        """Those that have not been sent are given up: their callers have gone away."""
        for connection in self._new:
            for _, _, _, ended in connection.waiting:
                ended("LATE", b"")
            connection.waiting.clear()

    def settle(self, seconds: float) -> None:
        """No more arrive; what runs ends."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            self.run(0.05)

    def _arrive(self, since: float) -> None:
        self.running += 1
        self._turn += 1
        pair = self._turn % len(self._new)
        new, rest = self._new[pair], self._rest[pair]
        name = f"{self._name}-{self._turn}"
        begin = turn_service_pb2.BeginTurnRequest(session_id=name, open=self._open)
        if self._work.wait:
            begin.wait.FromMilliseconds(int(self._work.wait * 1_000))

        def begun(code: str, message: bytes) -> None:
            if code != "OK":
                self.tally.begins[code if code in ("LATE", "RESET") else self._reason(code, message)] += 1
                self.running -= 1
                return
            self.tally.begins["OK"] += 1
            lease = turn_service_pb2.BeginTurnResponse.FromString(message).grant.lease
            commit = turn_service_pb2.CommitTurnRequest(session_id=name, lease=lease, record=self._record)
            self._held.append((time.monotonic() + self._work.hold, rest, commit.SerializeToString(), committed))

        def committed(code: str, _message: bytes) -> None:
            self.tally.commits[code] += 1
            if code == "OK":
                now = time.monotonic()
                self.tally.committed.append(now)
                self.tally.waits.record(now - since)
            self.running -= 1

        new.call("/roost.v1.TurnService/BeginTurn", begin.SerializeToString(), begun, since)

    def _reason(self, code: str, block: bytes) -> str:
        """The reason of a refusal, found in its details; the code where it has none. Of many alike one is looked at,
        because to decode takes longer than all the rest."""
        self._looked[code] += 1
        if self._looked[code] % _LOOK_AT == 1:
            self._told[code] = self._look(code, block)
        return self._told[code]

    def _look(self, code: str, block: bytes) -> str:
        details = dict(Decoder().decode(block, raw=True)).get(_DETAILS, b"")
        for reason in ("OVERLOADED", "JOURNAL_BEHIND", "TURN_IN_PROGRESS", "TENANT_TURNS", "TREE_TURNS"):
            if reason.encode() in base64.b64decode(details + b"==="):
                return reason
        return f"code {code}"
