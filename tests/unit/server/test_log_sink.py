"""Log lines on their way to stderr: whole, in order, and never in anybody's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import structlog

from roost.server.logs import Sink

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


def read(fd: int, until: bytes) -> bytes:
    found = b""
    while not found.endswith(until):
        found += os.read(fd, 65_536)
    return found


def test_lines_of_many_threads_are_whole(pipe: Pipe) -> None:
    sink = Sink(pipe[1])
    lines = [f"{thread} {n} {'x' * 5000}\n".encode() for thread in range(8) for n in range(50)]

    def say(thread: int) -> None:
        for line in lines[thread * 50 : thread * 50 + 50]:
            sink.write(line)

    threads = [threading.Thread(target=say, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    found = b""
    while len(found) < sum(map(len, lines)):
        found += os.read(pipe[0], 65_536)
    for thread in threads:
        thread.join()
    assert sorted(found.splitlines(keepends=True)) == sorted(lines)


def test_what_does_not_fit_is_dropped_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink(pipe[1], most=200_000)
    told = threading.Event()

    class Log:
        def warning(self, event: str, **fields: int) -> None:
            sink.write(f"{event} {fields}\n".encode())
            told.set()

    monkeypatch.setattr(structlog, "get_logger", lambda *_: Log())
    line = b"x" * 999 + b"\n"
    for _ in range(300):
        sink.write(line)  # the pipe takes 64 KiB: this would block
    sink.flush(0.01)
    found = read(pipe[0], b"}\n")
    assert told.wait(60)
    kept = found.count(line)
    assert 200 <= kept < 300
    assert found.endswith(b"lines_dropped {'lines': %d}\n" % (300 - kept))
    sink.flush(60)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing)
    os.close(reading)
    for _ in range(10):
        sink.write(b"line\n")
    sink.flush(60)
    os.close(writing)
