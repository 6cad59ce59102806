"""I14, I23, I25: an ended session has one dump, verified, whatever stood in the way before; or it has a clear error."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
from ended_sessions import House, read_now
from s3_server import S3, SECRET, running

from roost._core import dump_name
from roost.handlers.dump import writer
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.manifest import Manifest
from roost.handlers.dump.reader import list_dumps, read_manifest, read_rows, verify_dump
from roost.handlers.dump.target import Target, open_target
from roost.handlers.dump.writer import DumpResult, write_dump
from roost.store.v1.store_pb2 import Receipt

SMALL = 500  # bytes a part, so that there are many


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data")
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture(params=["directory", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "directory":
        (tmp_path / "dumps").mkdir()
        return open_target(str(tmp_path / "dumps"))
    return open_target(f"s3://bucket/{tmp_path.name}", request.getfixturevalue("server").options)


def dumping(house: House, target: Target, uid: bytes) -> Any:
    return write_dump(house.store, target, uid, read_now, part_bytes=SMALL)


async def failed(why: Why, operation: Any) -> str:
    with pytest.raises(DumpError) as error:
        await operation
    assert error.value.why is why, str(error.value)
    return str(error.value)


ABSENT = object()


class Watched:
    """A target that counts, and does something else where it is told to."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.url = target.url
        self.done: list[str] = []
        self.instead: Callable[[str, str], Any] = lambda _what, _name: None

    async def _do(self, what: str, name: str, operation: Callable[[], Any]) -> Any:
        self.done.append(f"{what} {name.rpartition('/')[2]}")
        answer = self.instead(what, name)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return await operation()
        return None if answer is ABSENT else answer

    async def prepare(self, dump: str) -> None:
        await self.target.prepare(dump)

    async def create(self, name: str, data: bytes) -> bool:
        return bool(await self._do("create", name, lambda: self.target.create(name, data)))

    async def replace(self, name: str, data: bytes) -> None:
        await self._do("replace", name, lambda: self.target.replace(name, data))

    async def get(self, name: str, limit: int) -> bytes | None:
        found: bytes | None = await self._do("get", name, lambda: self.target.get(name, limit))
        return found

    async def dumps(self, tenant: str | None, after: str, limit: int) -> list[str]:
        return await self.target.dumps(tenant, after, limit)


async def test_all_of_a_session_is_in_its_dump(house: House, target: Target) -> None:
    uid = house.played("chat", labels={"a": "b"})
    result = await dumping(house, target, uid)
    assert not result.repeated
    assert await list_dumps(target) == [result.name]
    manifest = await verify_dump(target, result.name)
    assert (manifest.sha256, manifest.counts, manifest.stored_bytes) == (result.sha256, result.counts, result.bytes)
    assert len(manifest.parts) > 3
    session, *rest = [row async for row in read_rows(target, result.name)]
    found = house.store.record_lines(uid, 1_000)
    assert found is not None
    row, lines = found
    names = [name for name in session._fields if name != "dump"]  # type: ignore[union-attr]
    assert session[:-1] == tuple(getattr(row, name) for name in names)  # type: ignore[index]
    rows = house.store.read_records([line.seq for line in reversed(lines)])
    rewards = house.store.read_rewards(uid)
    records, trajectories = rest[: len(rows)], rest[len(rows) :]
    assert [record.row for record in records] == rows  # type: ignore[union-attr]
    assert [record.reward for record in records] == [rewards.get(row.seq) for row in rows]  # type: ignore[union-attr]
    assert sorted(rewards.values()) == [0.0, 0.1]
    made = house.store.session_trajectories(uid)
    columns = [(t.number, t.ready_seq, t.after_seq, t.first_turn, t.turn_count, t.ready_ms) for t in made]
    assert [tuple(t) for t in trajectories] == columns  # type: ignore[arg-type]
    assert len(made) == 2
    assert {row.status for row in rows} == {1, 3, 4, 5}  # COMMITTED, ABORTED, SUPERSEDED, events


async def test_its_files_can_be_checked_with_common_tools(house: House, tmp_path: Path) -> None:
    """sha256sum of each part, and of `zstdcat part-*`; each line is JSON."""
    target = open_target(str(tmp_path))
    result = await dumping(house, target, house.played("chat"))
    manifest = json.loads((tmp_path / result.name / "manifest.json").read_bytes())
    for part in manifest["parts"]:
        assert hashlib.sha256((tmp_path / result.name / part["name"]).read_bytes()).hexdigest() == part["sha256"]
    assert re.fullmatch("[0-9a-f]{32}/[0-9a-f-]{36}-1", result.name)


async def test_a_second_dump_of_the_same_close_is_the_first(house: House, target: Target) -> None:
    uid = house.played("chat")
    first = await dumping(house, target, uid)
    watched = Watched(target)
    again: DumpResult = await write_dump(house.store, watched, uid, read_now, part_bytes=SMALL)
    assert again == replace(first, repeated=True)
    assert not [done for done in watched.done if not done.startswith("get")]
    assert sum("part-" in done for done in watched.done) == len((await read_manifest(target, first.name)).parts)


async def test_each_close_has_a_dump_of_its_own(house: House, target: Target) -> None:
    """FIELD, AReaL: session ids are reused, so the second dump overwrites the first."""
    uid = house.played("chat")
    first = await dumping(house, target, uid)
    again: Any = Changed(house, receipt=Receipt(close_number=2).SerializeToString())
    second = await write_dump(again, target, uid, read_now, part_bytes=SMALL)
    assert (second.name, second.repeated) == (first.name[:-1] + "2", False)
    assert await list_dumps(target) == [first.name, second.name]
    for name in (first.name, second.name):
        await verify_dump(target, name)


async def test_parts_that_were_cut_or_compressed_otherwise_are_the_same_dump(house: House, target: Target) -> None:
    """As by another version of Roost, before a crash: what counts is the lines."""
    uid = house.played("chat")
    first = await dumping(house, target, uid)
    assert await write_dump(house.store, target, uid, read_now) == replace(first, repeated=True)


async def test_what_a_crash_left_half_written_is_gone_with_the_next_dump(house: House, tmp_path: Path) -> None:
    uid = house.played("chat")
    left = tmp_path / dump_name(house.tenant, uid, 1) / ".part-00000.jsonl.zst.0123.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    result = await dumping(house, open_target(str(tmp_path)), uid)
    assert result.name == "/".join(left.parts[-3:-1])
    assert not left.exists()


async def test_an_acknowledgement_changes_no_dump(house: House, target: Target) -> None:
    uid = house.open("chat")
    house.turn("chat", b"x")
    trajectory = house.finish("chat")
    house.close("chat")
    await dumping(house, target, uid)
    house.acknowledge(trajectory)
    assert (await dumping(house, target, uid)).repeated


async def test_parts_of_a_crash_are_kept_if_they_are_right_and_else_replaced(house: House, target: Target) -> None:
    uid = house.played("chat")
    watched = Watched(target)
    watched.instead = lambda what, name: OSError() if what == "create" and name.endswith("manifest.json") else None
    with pytest.raises(OSError):
        await write_dump(house.store, watched, uid, read_now, part_bytes=SMALL)
    name = dump_name(house.tenant, uid, 1)
    await target.replace(f"{name}/part-00001.jsonl.zst", b"torn")
    watched.instead = lambda _what, _name: None
    watched.done.clear()
    result: DumpResult = await write_dump(house.store, watched, uid, read_now, part_bytes=SMALL)
    assert (result.name, result.repeated) == (name, False)
    assert [done for done in watched.done if done.startswith("replace")] == ["replace part-00001.jsonl.zst"]
    await verify_dump(target, name)


async def test_another_dump_of_the_same_close_is_never_overwritten(house: House, target: Target) -> None:
    uid = house.played("chat")
    first = await dumping(house, target, uid)
    stored = await target.get(f"{first.name}/manifest.json", 1 << 20)
    assert stored is not None
    other = replace(Manifest.decode(stored, first.name), sha256="0" * 64)
    await target.replace(f"{first.name}/manifest.json", other.encode())
    assert "other content" in await failed(Why.CONFLICT, dumping(house, target, uid))
    assert await target.get(f"{first.name}/manifest.json", 1 << 20) == other.encode()


async def test_a_manifest_that_comes_in_between_is_looked_at(house: House, target: Target) -> None:
    """Two servers on copies of one store: the second sees no manifest when it begins, and the first's when it ends."""
    uid = house.played("chat")
    first = await dumping(house, target, uid)
    stored = await target.get(f"{first.name}/manifest.json", 1 << 20)
    assert stored is not None
    late = Watched(target)

    def not_at_first(what: str, _name: str) -> Any:
        return ABSENT if what == "get" and len(late.done) == 1 else None

    late.instead = not_at_first
    assert await write_dump(house.store, late, uid, read_now, part_bytes=SMALL) == replace(first, repeated=True)
    assert not [done for done in late.done if done.startswith("replace")]
    # One that is of other content, and a part that belongs to it: neither is touched.
    for file, content in (
        ("manifest.json", replace(Manifest.decode(stored, first.name), sha256="0" * 64).encode()),
        ("part-00001.jsonl.zst", b"of the other"),
    ):
        await target.replace(f"{first.name}/{file}", content)
        late.done.clear()
        await failed(Why.CONFLICT, write_dump(house.store, late, uid, read_now, part_bytes=SMALL))
        assert await target.get(f"{first.name}/{file}", 1 << 20) == content


async def test_what_is_read_back_is_compared(house: House, target: Target) -> None:
    """A target that stores something else than it was given has no dump."""
    uid = house.played("chat")
    for file in ("part-00002.jsonl.zst", "manifest.json"):
        watched = Watched(target)
        created: list[str] = []

        def instead(what: str, name: str, file: str = file, created: list[str] = created) -> Any:
            if what == "create":
                created.append(name.rpartition("/")[2])
            return b"other" if what == "get" and name.endswith(file) and file in created else None

        watched.instead = instead
        said = await failed(Why.SERVER_ERROR, write_dump(house.store, watched, uid, read_now, part_bytes=SMALL))
        assert file in said
    assert (await dumping(house, target, uid)).repeated  # the manifest was there after all


async def test_what_a_target_says_reaches_the_caller_and_the_next_try_ends_it(house: House, target: Target) -> None:
    """FIELD, AReaL: one failed dump loses every other session of that sweep. Here it is one error of one session."""
    first, second = house.played("a"), house.played("b")
    watched = Watched(target)
    for why in (Why.FULL, Why.DENIED, Why.UNREACHABLE, Why.SLOW, Why.SERVER_ERROR):
        for what, file in (
            ("create", "part-00001.jsonl.zst"),
            ("get", "part-00001.jsonl.zst"),
            ("create", "manifest.json"),
        ):
            watched.instead = lambda w, n, what=what, file=file, why=why: (  # type: ignore[misc]
                DumpError(why, "said") if w == what and n.endswith(file) else None
            )
            assert await failed(why, write_dump(house.store, watched, first, read_now, part_bytes=SMALL)) == "said"
            assert await list_dumps(target, after="") == [] or why is not Why.FULL
    watched.instead = lambda _what, _name: None
    for uid in (second, first):
        result = await dumping(house, target, uid)
        await verify_dump(target, result.name)
    assert len(await list_dumps(target)) == 2


# What session ids may be: letters, digits and . _ : -
HURTING = ["..", ".", "...", "." * 128, "a" * 256, "-", "-rf", "CON", "nul", "a", "A", "a:b", ":", "manifest.json"]
# What tenants may be called: letters, digits and . _ -
TENANTS = ["t", "T", "..", ".", "...", "." * 64, "a" * 64, "-", "-rf", "CON", "nul", "a", "_", "manifest.json"]


async def test_i25_ids_and_tenants_built_to_hurt_stay_out_of_all_names(tmp_path: Path) -> None:
    """FIELD, AReaL: task_id "../x" writes outside the dump directory; one with "/" fails."""
    where = tmp_path / "in" / "dumps"
    where.mkdir(parents=True)
    target = open_target(str(where))
    names: dict[str, tuple[str, str]] = {}
    for number, tenant in enumerate(TENANTS):
        house = House(tmp_path / f"data-{number}", tenant=tenant)
        for session_id in HURTING if number == 0 else ["s"]:
            uid = house.open(session_id)
            house.turn(session_id, b"x")
            house.close(session_id)
            result = await dumping(house, target, uid)
            names[result.name] = (tenant, session_id)
        house.store.close()
    assert len(names) == len(TENANTS) - 1 + len(HURTING)
    assert len({name.split("/")[0] for name in names}) == len(TENANTS)
    everything = [path.relative_to(where) for path in where.rglob("*")]
    for path in everything:
        assert re.fullmatch(r"[0-9a-f]{32}(/[0-9a-f-]{36}-1(/(manifest\.json|part-[0-9]{5}\.jsonl\.zst))?)?", str(path))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["dumps"]
    for name, (tenant, session_id) in names.items():
        session = await anext(aiter(read_rows(target, name)))
        assert (session.tenant, session.session_id) == (tenant, session_id)  # type: ignore[union-attr]
        assert await list_dumps(target, tenant=tenant) == sorted(n for n, of in names.items() if of[0] == tenant)


async def test_i25_no_error_holds_content_ids_or_secrets(tmp_path: Path) -> None:
    house = House(tmp_path / "data")
    uid = house.open(f"id-{SECRET}", labels={"label": SECRET})
    house.turn(f"id-{SECRET}", SECRET.encode())
    house.turn(f"id-{SECRET}", SECRET.encode())
    house.close(f"id-{SECRET}")
    house.store.close()
    for column in ("content", "meta", "chain"):
        house = House(tmp_path / "data")
        conn = apsw.Connection(str(tmp_path / "data" / "roost.db"))
        cut = f"substr({column}, 1, length({column}) - 1)"
        conn.execute(f"UPDATE record SET {column} = CAST({cut} || x'00' AS BLOB) WHERE turn = 2")
        conn.close()
        said = await failed(Why.CORRUPT, dumping(house, open_target(str(tmp_path)), uid))
        assert SECRET not in said
        assert "does not verify: record " in said
        house.store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE record SET content = x'00' WHERE turn = 1",
        "UPDATE record SET meta = CAST(meta || x'00' AS BLOB) WHERE turn = 1",
        "DELETE FROM record WHERE turn = 1",
        "DELETE FROM record WHERE seq = (SELECT max(seq) FROM record)",
        "DELETE FROM trajectory WHERE number = 1",
        "UPDATE session SET receipt = x'ff'",
        "UPDATE session SET facts = x'ff'",
        "UPDATE record SET turn = 3 WHERE turn = 2 AND status = 1",
    ],
)
async def test_i23_a_session_that_does_not_verify_has_no_dump(tmp_path: Path, damage: str) -> None:
    house = House(tmp_path / "data")
    good, uid = house.played("good"), house.played("chat")
    house.store.close()
    conn = apsw.Connection(str(tmp_path / "data" / "roost.db"))
    number = conn.execute("SELECT hex(uid) FROM session WHERE session_id = 'chat'").get
    where = "uid" if "UPDATE session" in damage else "session"
    conn.execute(f"{damage} {'AND' if 'WHERE' in damage else 'WHERE'} {where} = x'{number}'")
    assert conn.changes() > 0
    conn.close()
    house = House(tmp_path / "data")
    target = open_target(str(tmp_path))
    await failed(Why.CORRUPT, dumping(house, target, uid))
    assert await list_dumps(target) == []
    result = await dumping(house, target, good)
    assert await list_dumps(target) == [result.name]
    house.store.close()


class Changed:
    """A store in which a session's row is another."""

    def __init__(self, house: House, **columns: Any) -> None:
        self._store = house.store
        self._columns = columns

    def record_lines(self, uid: bytes, limit: int) -> Any:
        found = self._store.record_lines(uid, limit)
        assert found is not None
        return found[0]._replace(**self._columns), found[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def test_only_what_has_ended_is_dumped(house: House, target: Target) -> None:
    uid = house.open("chat")
    house.turn("chat", b"x")
    await failed(Why.NOT_ENDED, dumping(house, target, uid))
    house.close("chat")
    reopened: Any = Changed(house, state=1)  # it has the receipt of its close
    await failed(Why.NOT_ENDED, write_dump(reopened, target, uid, read_now))
    await failed(Why.NOT_FOUND, dumping(house, target, bytes(16)))
    assert await list_dumps(target) == []


async def test_a_session_without_a_turn_has_a_dump(house: House, target: Target) -> None:
    uid = house.open("chat")
    house.close("chat")
    result = await dumping(house, target, uid)
    assert (result.counts.records, result.counts.lines) == (0, 1)
    await verify_dump(target, result.name)


async def test_the_store_is_read_in_short_steps(house: House, tmp_path: Path) -> None:
    """Between any two of them the reader thread serves what turns wait for."""
    uid = house.open("chat")
    for turn in range(600):
        house.turn("chat", b"%d" % turn * (20_000 if turn > 550 else 1))
    house.close("chat")
    read: list[int] = []
    at_once = 0

    async def counted(step: Callable[[], Any]) -> Any:
        nonlocal at_once
        at_once += 1
        assert at_once == 1, "one read ahead, and no more"
        await asyncio.sleep(0)
        answer = step()
        at_once -= 1
        rows = answer[1] if isinstance(answer, tuple) else answer
        if isinstance(rows, list) and rows and hasattr(rows[0], "content"):
            assert len(rows) <= writer.READ_AHEAD
            assert sum(len(row.content) for row in rows) <= 2 * writer.PAGE_BYTES
        read.append(len(rows) if isinstance(rows, list | dict) else 1)
        return answer

    target = open_target(str(tmp_path))
    result = await write_dump(house.store, target, uid, counted)
    assert max(read) <= writer.PAGE_LINES
    assert result.counts.records == 600
    await verify_dump(target, result.name)


async def test_a_dump_given_up_leaves_no_read_behind(house: House, tmp_path: Path) -> None:
    uid = house.played("chat")
    target = Watched(open_target(str(tmp_path)))
    target.instead = lambda what, _name: DumpError(Why.FULL, "said") if what == "create" else None
    before = asyncio.all_tasks()
    for _ in range(3):
        await failed(Why.FULL, write_dump(house.store, target, uid, read_now, part_bytes=SMALL))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
