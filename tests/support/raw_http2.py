"""HTTP/2 by the frame, for what no honest client would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Header = tuple[str, str]


class Closed(Exception):
    """The server has ended the connection."""


def message(content: bytes, compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(content)) + content


class RawConnection:
    """One connection. What was received stays in `frames`."""

    def __init__(self, address: str, deadline: float) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), deadline)
        self.frames: list[Frame] = []
        self._buffer = b""
        self._encoder, self._decoder = Encoder(), Decoder()
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self) -> None:
        """What opens a connection: the preface, our settings, and the answer to the server's."""
        self.raw(PREFACE + SettingsFrame(0).serialize())
        self.until(lambda frame: isinstance(frame, SettingsFrame) and "ACK" not in frame.flags)
        self.send(SettingsFrame(0, flags=["ACK"]))

    def raw(self, data: bytes) -> None:
        """Send bytes. Closed if the server has gone."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def send(self, *frames: Frame) -> None:
        """Send frames in one go."""
        self.raw(b"".join(frame.serialize() for frame in frames))

    def stream(self) -> int:
        """The number of a new stream."""
        self._last += 2
        return self._last

    def headers(self, path: str, more: Iterable[Header] = ()) -> bytes:
        """The encoded headers of a call. Once encoded, they must be sent, in this order."""
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        ]
        return bytes(self._encoder.encode(fields, huffman=False))

    def call(self, path: str, content: bytes, more: Iterable[Header] = ()) -> tuple[int, list[Frame]]:
        """The frames of a whole unary call, not sent yet, and its stream. `content`: with gRPC's framing."""
        stream = self.stream()
        head = HeadersFrame(stream, self.headers(path, more), flags=["END_HEADERS"])
        parts = [content[at : at + 16_384] for at in range(0, len(content), 16_384)] or [b""]
        body = [DataFrame(stream, part) for part in parts]
        body[-1].flags.add("END_STREAM")
        return stream, [head, *body]

    def receive(self) -> Frame:
        """The next frame. Closed at the end of the connection; TimeoutError if there is neither in time."""
        while len(self._buffer) < 9:
            self._more()
        frame, length = Frame.parse_frame_header(memoryview(self._buffer)[:9])
        while len(self._buffer) < 9 + length:
            self._more()
        frame.parse_body(memoryview(self._buffer)[9 : 9 + length])
        self._buffer = self._buffer[9 + length :]
        if isinstance(frame, HeadersFrame):
            frame.fields = dict(self._decoder.decode(frame.data))
        self.frames.append(frame)
        return frame

    def _more(self) -> None:
        try:
            data = self.socket.recv(65_536)
        except ConnectionResetError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._buffer += data

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The next frame of a kind."""
        while not wanted(frame := self.receive()):
            pass
        return frame

    def answer(self, stream: int) -> dict[str, str]:
        """How a call ended: the fields of its trailers, or `reset` with the error code."""
        while True:
            frame = self.receive()
            if frame.stream_id != stream:
                continue
            if isinstance(frame, RstStreamFrame):
                return {"reset": str(frame.error_code)}
            if isinstance(frame, HeadersFrame) and "grpc-status" in frame.fields:
                return frame.fields

    def end(self) -> list[Frame]:
        """Read until the server ends the connection; all that it has said."""
        try:
            while True:
                self.receive()
        except Closed:
            return self.frames

    def gone_away(self) -> list[GoAwayFrame]:
        """The GOAWAY frames so far."""
        return [frame for frame in self.frames if isinstance(frame, GoAwayFrame)]
