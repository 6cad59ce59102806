"""What a hostile client can do to a connection is bounded, and a client beside it is answered all the while.

The attacks are frames that no client would send (tests/support/raw_http2.py), to a server with the bounds that it has
by default, but for the times of those tests that wait for one to run out, and for what a wait at the door does
(test_overload.py), which hangs on how fast the machine is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_port import Scrape, address_of
from authority import Authority
from conftest import Start
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from raw_http2 import PREFACE, Closed, RawConnection, message
from roost_server import DEADLINE, Api, Server, fresh, until

from roost.server.config import Settings

STREAMS = Settings().max_concurrent_streams
METADATA = Settings().max_metadata_bytes
STATS = "/roost.v1.AdminService/GetStats"
WATCH = "/roost.v1.SessionService/WatchSessions"
OPEN = "/roost.v1.SessionService/OpenSession"
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11
MUCH = 64 << 20  # bytes of memory that no attack may cost


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(
        tmp_path_factory.mktemp("abuse") / "data", "--admin-listen", "127.0.0.1:0", ROOST_OVERLOAD_DELAY_MS="0"
    ).start()
    yield made
    assert made.terminate() == 0  # whatever was done to it, it ends as it should


@pytest.fixture
def neighbour(server: Server) -> Iterator[Api]:
    """An honest client, connected before the attack."""
    with server.api() as api:
        answered(api)
        yield api
        answered(api)


def answered(api: Api) -> None:
    """The client beside the attack opens a session, runs a turn in it and closes it."""
    name = api.open(fresh()).session.session_id
    api.turn(name, b"as ever")
    api.close(name)


class Peak:
    """The most memory that a server has used since this was made, less what it used then."""

    def __init__(self, server: Server) -> None:
        self._proc = Path(f"/proc/{server.process.pid}")
        (self._proc / "clear_refs").write_text("5")
        self._before = self._status("VmHWM")

    def _status(self, field: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    def __call__(self) -> int:
        return self._status("VmHWM") - self._before


def test_stream_flood(server: Server, neighbour: Api) -> None:
    """More calls on one connection than it may have, none of which ends, against the server's SETTINGS."""
    where = address_of(server)
    before = Scrape(where)("rpc_started_total", method="WatchSessions")
    more = 300
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()
        for _ in range(STREAMS + more):
            attacker.send(*attacker.call(WATCH, message(b""))[1])
        answers = refusals = 0
        while answers < STREAMS or refusals < more:
            frame = attacker.receive()
            answers += isinstance(frame, HeadersFrame)
            if isinstance(frame, RstStreamFrame):
                assert frame.error_code == REFUSED_STREAM
                refusals += 1
        answered(neighbour)
        assert (answers, refusals) == (STREAMS, more)
        assert Scrape(where)("rpc_started_total", method="WatchSessions") - before == STREAMS
    # All of it is given back when the attacker is gone.
    until(lambda: Scrape(where)("rpc_handled_total", method="WatchSessions", code="CANCELLED") == before + STREAMS)


def test_rapid_reset(server: Server, neighbour: Api) -> None:
    """Calls that are cancelled as soon as they are made: they count until the server has cleared them away."""
    where = address_of(server)
    before = Scrape(where)("rpc_started_total", method="GetStats")
    peak = Peak(server)
    refusals = 0
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()
        for _ in range(4):
            frames = []
            for _ in range(2_500):
                stream, call = attacker.call(STATS, message(b""))
                frames += [*call, RstStreamFrame(stream, CANCEL)]
            attacker.send(*frames)
            answered(neighbour)
        ping = PingFrame(0, b"the last")
        attacker.send(ping)
        # Closed, or all of it read: the answer to the ping comes after what was sent before it.
        try:
            attacker.until(lambda frame: isinstance(frame, PingFrame) and frame.opaque_data == ping.opaque_data)
        except Closed:
            assert attacker.gone_away()
        refusals = sum(isinstance(frame, RstStreamFrame) for frame in attacker.frames)
    assert refusals > STREAMS
    assert Scrape(where)("rpc_started_total", method="GetStats") - before <= STREAMS
    assert peak() < MUCH


def test_oversized_metadata(server: Server, neighbour: Api) -> None:
    """Over the bound always refused, below it never: gRPC's own bounds leave what lies between them to chance."""
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()
        for extra, wanted in ((METADATA - 1_000, "0"), (METADATA, "8"), (2 * METADATA - 1_000, "8")):
            for _ in range(5):
                stream = attacker.stream()
                head = attacker.headers(STATS, [("x-large", "v" * extra)])
                attacker.send(
                    HeadersFrame(stream, head, flags=["END_HEADERS"]),
                    DataFrame(stream, message(b""), flags=["END_STREAM"]),
                )
                assert attacker.answer(stream)["grpc-status"] == wanted
        answered(neighbour)


def test_metadata_without_end(server: Server, neighbour: Api) -> None:
    """CONTINUATION frames that never say that they are the last: what is over the bound is not kept."""
    peak = Peak(server)
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()
        stream, encoder = attacker.stream(), Encoder()
        attacker.send(HeadersFrame(stream, attacker.headers(STATS)))
        for part in range(8_000):  # 128 MB
            block = encoder.encode([(f"x-{part}", "v" * 16_000)], huffman=False)
            attacker.send(ContinuationFrame(stream, block))
            if part % 2_000 == 0:
                answered(neighbour)
        ended = attacker.answer(stream)
        assert ended["grpc-status"] == "8"
        assert str(METADATA) in ended["grpc-message"]
    assert peak() < MUCH


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bomb(server: Server, neighbour: Api, encoding: str) -> None:
    """An eighth of a megabyte that becomes 128 MiB: inflating stops at what a request may have."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()
    assert len(bomb) < 150_000
    peak = Peak(server)
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()
        stream, call = attacker.call(OPEN, message(bomb, compressed=True), [("grpc-encoding", encoding)])
        attacker.send(*call)
        assert attacker.answer(stream)["grpc-status"] == "8"
        answered(neighbour)
    assert peak() < MUCH


def test_ping_flood(server: Server, neighbour: Api) -> None:
    """Pings without end on a connection without calls: the third too early ends it."""
    with RawConnection(server.address, DEADLINE) as attacker:
        attacker.begin()

        def flood() -> None:
            while True:
                attacker.send(*[PingFrame(0, b"pingping")] * 10)
                answered(neighbour)

        with pytest.raises(Closed):
            flood()
        attacker.end()
        (away,) = attacker.gone_away()
        assert (away.error_code, away.additional_data) == (ENHANCE_YOUR_CALM, b"too_many_pings")


# -- those that wait for a time to run out, on servers that are in a hurry

SHORT = ("--set", "handshake_timeout_ms=300", "--set", "settings_timeout_ms=300")


@pytest.mark.parametrize("secured", [False, True], ids=["plaintext", "tls"])
def test_slow_preface(start: Start, tmp_path: Path, secured: bool) -> None:
    """Connections that never become one: nothing, half a preface, no settings, settings never acknowledged."""
    tls = []
    if secured:
        cert, key = Authority(tmp_path / "authority").issue("localhost")
        tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
    server = start(*SHORT, *tls)
    starts = [b"", PREFACE[:10], PREFACE, PREFACE + SettingsFrame(0).serialize()]
    if secured:
        starts = [b"", b"\x16\x03\x01\x02\x00\x01"]  # a TLS handshake that stops after its first bytes
    slow = [RawConnection(server.address, DEADLINE) for _ in starts]
    for attacker, said in zip(slow, starts, strict=True):
        attacker.raw(said)
    if not secured:
        with server.api() as api:
            answered(api)
    for attacker in slow:
        with attacker:
            attacker.end()  # or this runs into its deadline


def test_connections_that_idle_are_closed(start: Start) -> None:
    server = start("--set", "connection_idle_ms=1s")
    with server.api() as api, RawConnection(server.address, DEADLINE) as idle:
        idle.begin()
        idle.end()
        assert idle.gone_away()
        answered(api)


def test_connections_age(start: Start) -> None:
    """One that is in use, too: its call gets the grace, and then it is over."""
    server = start("--set", "connection_age_ms=1s", "--set", "connection_age_grace_ms=100ms")
    with server.api() as api, RawConnection(server.address, DEADLINE) as busy:
        busy.begin()
        busy.send(*busy.call(WATCH, message(b""))[1])
        busy.end()
        assert b"max_age" in [away.additional_data for away in busy.gone_away()]
        answered(api)


def test_connection_flood(start: Start) -> None:
    """One too many is not served; who is connected is."""
    server = start("--set", "max_connections=4")
    with server.api() as api:
        answered(api)
        kept = [RawConnection(server.address, DEADLINE) for _ in range(3)]
        for attacker in kept:
            attacker.begin()
        with RawConnection(server.address, DEADLINE) as one_more, pytest.raises(Closed):
            one_more.begin()
        answered(api)
        kept.pop().socket.close()

        def served() -> bool:
            with RawConnection(server.address, DEADLINE) as another:
                try:
                    another.begin()
                except Closed:
                    return False
                return True

        until(served)
        for attacker in kept:
            attacker.socket.close()
