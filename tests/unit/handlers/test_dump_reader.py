"""I23: whatever stands in a target in place of a dump is a clear error, and takes no memory and no name of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House, read_now
from hypothesis import given, settings
from hypothesis import strategies as st

from roost._core import DUMP_SCHEMA, DumpDecoder
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.reader import list_dumps, read_manifest, read_rows, verify_dump
from roost.handlers.dump.target import open_target
from roost.handlers.dump.writer import write_dump


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with one good dump of some parts, and its name."""
    where = tmp_path_factory.mktemp("dumps")
    house = House(where / "data")
    uid = house.played("chat")
    result = asyncio.run(write_dump(house.store, open_target(str(where)), uid, read_now, part_bytes=1_000))
    house.store.close()
    shutil.rmtree(where / "data")
    return where, result.name


@pytest.fixture
def copy(whole: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """One of its own: the target's directory and the dump's name."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy", whole[1]


async def read_all(where: Path, name: str) -> None:
    async for _ in read_rows(open_target(str(where)), name):
        pass


async def refused(where: Path, name: str, why: Why, says: str) -> None:
    """Both ways of reading it say the same, in one line."""
    for reading in (verify_dump(open_target(str(where)), name), read_all(where, name)):
        with pytest.raises(DumpError, match=says) as error:
            await reading
        assert error.value.why is why
        assert "\n" not in str(error.value)


def change(where: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest."""
    file = where / name / "manifest.json"
    manifest = json.loads(file.read_bytes())
    edit(manifest)
    file.write_text(json.dumps(manifest))


def agree(where: Path, name: str) -> None:
    """Make the manifest say of each part what it is now: whoever changes a dump may change that too."""

    def edit(manifest: dict[str, Any]) -> None:
        for part in manifest["parts"]:
            data = (where / name / part["name"]).read_bytes()
            part |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    change(where, name, edit)


async def test_a_good_one_is_good(copy: tuple[Path, str]) -> None:
    where, name = copy
    seen: list[str] = []
    manifest = await verify_dump(open_target(str(where)), name, progress=lambda _, part: seen.append(part.name))
    assert seen == [part.name for part in manifest.parts]
    assert len(seen) > 2
    await read_all(where, name)
    agree(where, name)  # and this says nothing else
    await read_all(where, name)


async def test_parts_that_are_missing_cut_longer_or_other(copy: tuple[Path, str]) -> None:
    where, name = copy
    part = where / name / "part-00001.jsonl.zst"
    data = part.read_bytes()
    for content, says in (
        (data[:-1], "has [0-9]+ bytes, not"),
        (b"", "has 0 bytes, not"),
        (data + b"x", "at most are right"),
        (data[:-1] + bytes([data[-1] ^ 1]), "does not match its SHA-256"),
        ((where / name / "part-00000.jsonl.zst").read_bytes(), "bytes"),
    ):
        part.write_bytes(content)
        await refused(where, name, Why.DAMAGED, says)
    part.unlink()
    await refused(where, name, Why.DAMAGED, "part-00001.jsonl.zst is missing")


async def test_parts_that_their_manifest_agrees_with(copy: tuple[Path, str]) -> None:
    """The hashes are right, and the dump is none."""
    where, name = copy
    part = where / name / "part-00001.jsonl.zst"
    data = part.read_bytes()
    for content in (data[:-1], data + b"x", b"no zstd", bytes(1_000)):
        part.write_bytes(content)
        agree(where, name)
        await refused(where, name, Why.DAMAGED, "part-00001.jsonl.zst: the part is damaged")
    part.write_bytes(data + data)
    agree(where, name)
    await refused(where, name, Why.DAMAGED, "more than the")
    first = where / name / "part-00000.jsonl.zst"
    part.write_bytes(first.read_bytes())
    agree(where, name)
    await refused(where, name, Why.DAMAGED, "damaged|second session")


async def test_a_bomb(copy: tuple[Path, str]) -> None:
    where, name = copy
    change(where, name, lambda m: m["parts"][1].update(raw_bytes=1 << 40) or m["counts"].update(bytes=_raw(m)))
    await refused(where, name, Why.DAMAGED, "is the most there is")
    change(where, name, lambda m: m["parts"][1].update(raw_bytes=10) or m["counts"].update(bytes=_raw(m)))
    await refused(where, name, Why.DAMAGED, "more than the 10 bytes")


def _raw(manifest: dict[str, Any]) -> int:
    return sum(part["raw_bytes"] for part in manifest["parts"])


MANIFESTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m["parts"][0].update(name="../../etc/passwd"), "part 0 does not have its name"),
    (lambda m: m["parts"][1].update(name="part-00000.jsonl.zst"), "part 1 does not have its name"),
    (lambda m: m["parts"][0].update(name=None), "part 0 does not have its name"),
    (lambda m: m["parts"].clear(), "no parts"),
    (lambda m: m["parts"].pop(), "do not add up"),
    (lambda m: m["parts"].append("x"), "does not have its name"),
    (lambda m: m["parts"][0].update(bytes=-1), "one of its numbers is none"),
    (lambda m: m["parts"][0].update(bytes=1 << 40), "longer than a part may be"),
    (lambda m: m["parts"][0].update(bytes=True), "one of its numbers is none"),
    (lambda m: m["parts"][0].update(lines=1.0), "one of its numbers is none"),
    (lambda m: m["parts"][0].update(more=1), "fields are not those"),
    (lambda m: m["parts"][0].update(sha256="0" * 63), "one of its hashes is none"),
    (lambda m: m["parts"][0].update(sha256="0" * 64), "does not match its SHA-256"),
    (lambda m: m.update(sha256="0" * 64), "not those that its manifest counts"),
    (lambda m: m.update(sha256=None), "one of its hashes is none"),
    (lambda m: m["counts"].update(records=0), "not those that its manifest counts"),
    (lambda m: m["counts"].update(trajectories=7), "not those that its manifest counts"),
    (lambda m: m["counts"].update(lines=7), "do not add up"),
    (lambda m: m.update(counts=[]), "fields are not those"),
    (lambda m: m.update(parts={}), "fields are not those"),
    (lambda m: m.update(close_number=2), "that of another dump"),
    (lambda m: m.update(uid="0198f6a0-0000-7000-8000-000000000000"), "that of another dump"),
    (lambda m: m.update(more=1), "fields are not those"),
    (lambda m: m.pop("roost"), "fields are not those"),
    (lambda m: m["counts"].update(mail=1), "fields are not those"),
    (lambda m: m.update(schema=2), "fields are not those"),
    (lambda m: m.update(schema=2) or m["counts"].update(mail=0), "schema is not that of what it counts"),
    (lambda m: m.update(schema=2) or m["counts"].update(mail=1), "not those that its manifest counts"),
    (lambda m: m.update(schema=0), "names no schema"),
    (lambda m: m.update(schema="1"), "names no schema"),
    (lambda m: m.update(schema=True), "names no schema"),
]


@pytest.mark.parametrize(("edit", "says"), MANIFESTS)
async def test_manifests_that_lie(copy: tuple[Path, str], edit: Callable[[dict[str, Any]], Any], says: str) -> None:
    where, name = copy
    change(where, name, edit)
    await refused(where, name, Why.DAMAGED, says)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema": 1e400}', b'"x"'])
async def test_manifests_that_are_none(copy: tuple[Path, str], content: bytes) -> None:
    where, name = copy
    (where / name / "manifest.json").write_bytes(content)
    await refused(where, name, Why.DAMAGED, "manifest of dump .* is damaged")


async def test_one_of_a_newer_version_is_said_to_be_that(copy: tuple[Path, str]) -> None:
    """Whatever else its manifest holds: a later version may change everything but where the schema stands."""
    where, name = copy
    (where / name / "manifest.json").write_text(f'{{"schema": {DUMP_SCHEMA + 1}, "anything": []}}')
    says = f"has schema {DUMP_SCHEMA + 1}.*reads up to {DUMP_SCHEMA}: use a newer one"
    await refused(where, name, Why.NEWER, says)


async def test_a_dump_under_the_name_of_another(copy: tuple[Path, str]) -> None:
    where, name = copy
    for other in (name.replace(name[:32], "0" * 32), name[:-1] + "2", name[:-2].rstrip("-")[:-1] + "0-1"):
        if other == name:
            continue
        (where / other).parent.mkdir(exist_ok=True)
        shutil.copytree(where / name, where / other)
        uid, _, close = other.partition("/")[2].rpartition("-")
        change(where, other, lambda m, uid=uid, close=close: m.update(uid=uid, close_number=int(close)))  # type: ignore[misc]
        await refused(where, other, Why.DAMAGED, "not named after")


async def test_what_is_not_there_or_no_name(copy: tuple[Path, str]) -> None:
    where, name = copy
    await refused(where, name[:-1] + "9", Why.NOT_FOUND, "there is no dump")
    (where / name / "manifest.json").unlink()
    await refused(where, name, Why.NOT_FOUND, "there is no dump")
    assert await list_dumps(open_target(str(where))) == []
    for bad in ("..", f"{name}/", f"../{name}", name.upper(), f"{name}\n", ""):
        await refused(where, bad, Why.INVALID, "not that of a dump")
    with pytest.raises(DumpError, match="not that of a dump"):
        await list_dumps(open_target(str(where)), after="../x")


async def test_the_rows_come_before_the_verdict_and_the_verdict_comes(copy: tuple[Path, str]) -> None:
    """What a restore must know: rows are given out before the end is read."""
    where, name = copy
    manifest = await read_manifest(open_target(str(where)), name)
    (where / name / manifest.parts[-1].name).unlink()
    seen: list[object] = []

    async def read() -> None:
        async for row in read_rows(open_target(str(where)), name):
            seen.append(row)

    with pytest.raises(DumpError, match="is missing"):
        await read()
    assert len(seen) == sum(part.lines for part in manifest.parts[:-1])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_change_of_a_part_gets_through(whole: tuple[Path, str], data: st.DataObject) -> None:
    """Bytes changed, cut, added, anywhere in the stored parts: never rows that are not those that were dumped."""
    where, name = whole
    manifest = json.loads((where / name / "manifest.json").read_bytes())
    parts = [bytearray((where / name / part["name"]).read_bytes()) for part in manifest["parts"]]
    sizes = [part["raw_bytes"] for part in manifest["parts"]]
    right = _rows([bytes(part) for part in parts], sizes)
    which = parts[data.draw(st.integers(0, len(parts) - 1))]
    at = data.draw(st.integers(0, len(which) - 1))
    way = data.draw(st.sampled_from(["flip", "cut", "insert", "splice"]))
    if way == "flip":
        which[at] ^= data.draw(st.integers(1, 255))
    elif way == "cut":
        del which[at : at + data.draw(st.integers(1, 40))]
    elif way == "insert":
        which[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        which[at:] = parts[data.draw(st.integers(0, len(parts) - 1))][at:]
    try:
        rows = _rows([bytes(part) for part in parts], sizes)
    except ValueError:
        return
    assert rows == right


def _rows(parts: list[bytes], sizes: list[int]) -> list[Any]:
    decoder = DumpDecoder()
    rows = [row for part, size in zip(parts, sizes, strict=True) for row in decoder.part(part, size)]
    return [*rows, decoder.finish()]


def test_a_decoder_that_has_ended_says_so() -> None:
    decoder = DumpDecoder()
    with pytest.raises(ValueError, match="no session"):
        decoder.finish()
    with pytest.raises(ValueError, match="come to its end"):
        decoder.part(b"x", 1)
