"""Dumps of every schema are restored: what an earlier version of Roost has written comes back."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House

from roost._core import DUMP_SCHEMA, tenant_uid
from roost.handlers.cold import NOTHING_YET, Cold
from roost.handlers.dump.manifest import Counts, Manifest, Part
from roost.handlers.dump.target import open_target
from roost.handlers.export import export_trajectories
from roost.handlers.restore import Restorer
from roost.v1 import trajectory_service_pb2 as pb

GOLDEN = Path(__file__).resolve().parents[3] / "rust" / "dump" / "tests"
UID, CLOSE = "0198f6a0-0000-7000-8000-000000000001", 2  # of the golden files' session


def compressed(data: bytes) -> bytes:
    """A zstd frame of one block that is not compressed."""
    assert len(data) < 1 << 17
    header = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data))
    return header + (1 | len(data) << 3).to_bytes(3, "little") + data


def laid_down(where: Path, schema: int) -> str:
    """The golden file of a schema as a dump in a target; its name."""
    # Its format has numbers that no store keeps.
    raw = (GOLDEN / f"schema-{schema}.jsonl").read_bytes().replace(b"18446744073709551615", b"3")
    part, lines = compressed(raw), raw.count(b"\n")
    counts = Counts(
        records=raw.count(b'{"kind":"record"'),
        trajectories=raw.count(b'{"kind":"trajectory"'),
        lines=lines,
        bytes=len(raw),
        mail=raw.count(b'{"kind":"mail"'),
    )
    file = Part("part-00000.jsonl.zst", len(part), len(raw), lines, hashlib.sha256(part).hexdigest())
    manifest = Manifest(schema, "0.1.0", UID, CLOSE, counts, hashlib.sha256(raw).hexdigest(), (file,))
    name = f"{tenant_uid('default')}/{UID}-{CLOSE}"
    (where / name).mkdir(parents=True)
    (where / name / file.name).write_bytes(part)
    (where / name / "manifest.json").write_bytes(manifest.encode())
    return name


@pytest.mark.parametrize("schema", range(1, DUMP_SCHEMA + 1))
def test_the_golden_dump_is_restored(tmp_path: Path, schema: int) -> None:
    place = tmp_path / "dumps"
    name = laid_down(place, schema)
    house = House(tmp_path / "data")

    async def settle(answer: Any) -> Any:
        return house.ended(answer) if isinstance(answer, int) else answer

    async def read(job: Callable[[], Any]) -> Any:
        return job()

    async def undo(_: bytes) -> None:
        raise AssertionError

    made = Restorer(house.engine, house.store, open_target(str(place)), read, settle, undo, set())
    request = pb.RestoreSessionsRequest(dump_names=[name]).SerializeToString()
    answer = asyncio.run(made(lambda: "default", request))
    (result,) = pb.RestoreSessionsResponse.FromString(answer).results
    assert result.refusal.reason == ""
    session = result.session
    assert (session.session_id, session.turn_count, session.receipt.close_number) == ("chat-1", 3, CLOSE)
    cold = Cold(house.engine, house.store, "default")
    everything = pb.ExportTrajectoriesRequest(selection=pb.TRAJECTORY_SELECTION_ALL, include_superseded=True)
    parts = [part for part in export_trajectories(cold, everything.SerializeToString()) if part != NOTHING_YET]
    records = [r for part in parts for r in pb.ExportTrajectoriesResponse.FromString(part).records]
    assert records[0].record.content == b"one"
    house.store.close()
