"""What a session costs as it grows: 100 turns of 2,000 new tokens, in the store and on the wire, at 10, 50 and 100."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import Start
from roost_server import Api, ClockedServer

from roost.v1 import types_pb2 as types

NEW = 2_000  # tokens a turn
CONTENT = 6_000  # bytes a turn
STATE = 500
# Token ids and log-probabilities of four bytes, a loss mask of one.
PAYLOAD = NEW * 9 + CONTENT + STATE


def play(api: Api, name: str, first: int, last: int) -> tuple[int, int]:
    """Turns `first` to `last`, each from what the client knows already. Bytes of the last grant and request."""
    sizes = (0, 0)
    for turn in range(first, last + 1):
        grant = api.begin(name, open=types.OpenOptions(), known_head_version=turn - 1)
        assert grant.grant.checkpoint.length == NEW * (turn - 1)
        span = types.TokenSpan(
            offset=NEW * (turn - 1),
            token_ids=os.urandom(4 * NEW),
            logprobs=bytes(4 * NEW),
            loss_mask=b"\x01" * NEW,
            weight_versions=[types.WeightVersionRun(version=turn, count=NEW)],
        )
        record = types.RecordInput(content=os.urandom(CONTENT), tokens=span)
        api.commit(name, grant.grant.lease, record=record, state=os.urandom(STATE))
        sizes = grant.ByteSize(), record.ByteSize()
    return sizes


def test_a_session_of_100_turns_grows_with_its_turns(start: Start) -> None:
    stored: dict[int, int] = {}
    sent: dict[int, tuple[int, int]] = {}
    before = 0
    for turns in (10, 50, 100):
        server = start()
        with server.api() as api:
            sent[turns] = play(api, "long", before + 1, turns)
        before = turns
        assert server.terminate() == 0
        # One whole file, its log emptied.
        stored[turns] = (Path(server.data_dir) / "roost.db").stat().st_size
    for turns, size in stored.items():
        # A payload of some 25 kB takes whole pages of 4 KiB; a new store about thirty of them.
        assert PAYLOAD * turns <= size <= 1.25 * PAYLOAD * turns + 40 * 4096, stored
    early, late = (stored[50] - stored[10]) / 40, (stored[100] - stored[50]) / 50
    assert 0.9 <= late / early <= 1.1, stored
    # Neither what a client that knows its head is sent nor what it sends grows with the session.
    assert sent[100][0] <= sent[10][0] + 64, sent
    assert sent[100][1] <= sent[10][1] + 64, sent


def test_a_week_of_churn_keeps_the_store_flat(start: Start) -> None:
    """As many sessions live at any time; what has ended goes when its days are over, and its room is used again."""
    flags = ("--set", "retention_ms=1d", "--set", "tombstone_retention_ms=1d", "--set", "purge_without_dump=true")
    server = start(*flags, clocked=True)
    assert isinstance(server, ClockedServer)
    live: list[str] = []
    sizes: list[int] = []
    for half in range(2):
        with server.api() as api:
            for day in range(4 * half, 4 * half + 4):
                for n in range(10):
                    live.append(f"day{day}-{n}")
                    for _ in range(3):
                        lease = api.begin(live[-1], open=types.OpenOptions()).grant.lease
                        api.commit(live[-1], lease, os.urandom(CONTENT))
                gone, live = live[:-5], live[-5:]
                for name in gone:
                    api.close(name)
                # A day later they are purged, and the tombstones of the day before are over.
                server.clock.skip(86_400 + 60)
                while {s.session_id for s in api.list_all() if not s.cleanup.HasField("purged_time")} != set(live):
                    pass
            assert len(api.list_all()) <= 3 * 10
        assert server.terminate() == 0
        sizes.append((Path(server.data_dir) / "roost.db").stat().st_size)
        server.start()
    assert sizes[1] <= 1.1 * sizes[0]
