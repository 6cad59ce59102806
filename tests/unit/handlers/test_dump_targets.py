"""What a place for dumps promises, held against a directory and an S3 server: put if absent, whole or not at all,
pages; and one clear error for whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3, SECRET, running

from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.target import Target, open_target

TENANT = "0123456789abcdef" * 2
OTHER = "f" * 32
UID = "0198f6a0-0000-7000-8000-00000000000"
NAME = f"{TENANT}/{UID}0-1/part-00000.jsonl.zst"
URL = "s3://bucket/a/prefix"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    server.trouble = lambda _method, _path: None
    server.requests.clear()
    yield server
    server.trouble = lambda _method, _path: None


def prefix(tmp_path: Path) -> str:
    """A prefix in the bucket that no other test uses."""
    return f"{URL}/{tmp_path.name}"


@pytest.fixture(params=["directory", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "directory":
        return open_target(str(tmp_path))
    return open_target(prefix(tmp_path), request.getfixturevalue("s3").options, operation_seconds=20)


async def failed(why: Why, operation: object) -> str:
    """What an operation says that must fail for this reason."""
    with pytest.raises(DumpError) as error:
        await operation  # type: ignore[misc]
    assert error.value.why is why, str(error.value)
    said = str(error.value)
    assert SECRET not in said
    assert "\n" not in said
    return said


async def test_what_was_created_stays_until_it_is_replaced(target: Target) -> None:
    assert await target.get(NAME, 100) is None
    assert await target.create(NAME, b"one")
    assert not await target.create(NAME, b"two")
    assert await target.get(NAME, 3) == b"one"
    await target.replace(NAME, b"three")
    assert await target.get(NAME, 100) == b"three"
    await failed(Why.DAMAGED, target.get(NAME, 4))
    assert await target.create(NAME.replace("00000.", "00001."), bytes(3 << 20))
    assert await target.get(NAME.replace("00000.", "00001."), 3 << 20) == bytes(3 << 20)


async def test_of_many_at_once_one_creates(tmp_path: Path) -> None:
    """The emulator of S3 looks and then writes; real stores do not."""
    target = open_target(str(tmp_path))
    made = await asyncio.gather(*(target.create(NAME, b"%d" % n) for n in range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert await target.get(NAME, 100) == b"%d" % made.index(True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        f"{TENANT}/{UID}0-1",
        f"../{TENANT}/{UID}0-1/manifest.json",
        f"{TENANT}/../{UID}0-1/manifest.json",
        f"{TENANT}/{UID}0-1/../manifest.json",
        f"{TENANT}/{UID}0-1/manifest.json/..",
        f"{TENANT}/{UID}0-1/part-00000.jsonl.zst\0",
        f"{TENANT}/{UID}0-1/part-0.jsonl.zst",
        f"{TENANT}/{UID}0-0/manifest.json",
        f"{TENANT.upper()}/{UID}0-1/manifest.json",
        f"/{TENANT}/{UID}0-1/manifest.json",
        f"{TENANT}//{UID}0-1/manifest.json",
        f"{TENANT}/{UID}0-1/manifest.json\n",
        f"{TENANT}/{UID}0-\u0661/manifest.json",  # a digit, but not one of ours
        NAME.replace("/", "\\"),
        "." * 128,
    ],
)
async def test_no_name_but_those_of_dumps_is_used(target: Target, name: str, tmp_path: Path) -> None:
    await failed(Why.INVALID, target.create(name, b"x"))
    await failed(Why.INVALID, target.replace(name, b"x"))
    await failed(Why.INVALID, target.get(name, 1))
    await failed(Why.INVALID, target.prepare(name + "/"))
    assert list(tmp_path.iterdir()) == []


async def test_dumps_are_those_with_a_manifest_and_come_in_pages(target: Target) -> None:
    names = sorted(f"{tenant}/{UID}{n}-{close}" for tenant in (TENANT, OTHER) for n in range(4) for close in (1, 10, 2))
    for name in names:
        await target.create(f"{name}/part-00000.jsonl.zst", b"x")
        await target.create(f"{name}/manifest.json", b"x")
    await target.create(f"{TENANT}/{UID}5-1/part-00000.jsonl.zst", b"x")
    assert await target.dumps(None, "", 1_000) == names
    mine = [name for name in names if name.startswith(TENANT)]
    assert await target.dumps(TENANT, "", 1_000) == mine
    assert await target.dumps("e" * 32, "", 1_000) == []
    for tenant, expected in ((None, names), (TENANT, mine)):
        for size in (1, 5, 7):
            found: list[str] = []
            while page := await target.dumps(tenant, found[-1] if found else "", size):
                assert len(page) <= size
                found += page
            assert found == expected


async def test_an_empty_target_has_no_dumps(target: Target) -> None:
    assert await target.dumps(None, "", 10) == []


# -- S3 alone


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        ("500 Internal Server Error", "InternalError", Why.SERVER_ERROR),
        ("503 Slow Down", "SlowDown", Why.SERVER_ERROR),
        ("507 Insufficient Storage", "InsufficientStorage", Why.FULL),
        ("403 Forbidden", "QuotaExceeded", Why.FULL),
        ("400 Bad Request", "XMinioStorageFull", Why.FULL),
        ("403 Forbidden", "AccessDenied", Why.DENIED),
        ("401 Unauthorized", "InvalidAccessKeyId", Why.DENIED),
        ("404 Not Found", "NoSuchBucket", Why.UNREACHABLE),
        ("400 Bad Request", "InvalidRequest", Why.INVALID),
    ],
)
async def test_what_the_server_answers_is_told_in_one_word(
    s3: S3, tmp_path: Path, status: str, code: str, why: Why
) -> None:
    target = open_target(prefix(tmp_path), s3.options, operation_seconds=20)
    s3.trouble = lambda _method, _path: (status, code)
    for operation in (
        target.create(NAME, b"x"),
        target.replace(NAME, b"x"),
        target.get(NAME, 1),
        target.dumps(None, "", 1),
    ):
        said = await failed(why, operation)
        assert code in said or why is Why.SLOW
    s3.trouble = lambda _method, _path: None
    assert await target.create(NAME, b"x")


async def test_a_server_that_hangs_is_given_up(s3: S3, tmp_path: Path) -> None:
    target = open_target(prefix(tmp_path), s3.options, operation_seconds=0.3)
    s3.trouble = lambda _method, _path: "hang"
    for operation in (target.create(NAME, b"x"), target.get(NAME, 1), target.dumps(None, "", 1)):
        assert "0.3 s" in await failed(Why.SLOW, operation)


async def test_a_create_whose_answer_was_lost_says_that_it_is_there(s3: S3, tmp_path: Path) -> None:
    target = open_target(prefix(tmp_path), s3.options, operation_seconds=20)
    s3.trouble = lambda method, _path: "lose" if method == "PUT" and len(s3.requests) == 1 else None
    assert not await target.create(NAME, b"x")
    assert await target.get(NAME, 1) == b"x"


async def test_a_server_that_is_not_there_or_has_no_such_bucket(s3: S3) -> None:
    gone = open_target(URL, s3.options | {"endpoint": "http://127.0.0.1:1"}, operation_seconds=20)
    await failed(Why.UNREACHABLE, gone.create(NAME, b"x"))
    nowhere = open_target("s3://other", s3.options, operation_seconds=20)
    for operation in (nowhere.create(NAME, b"x"), nowhere.get(NAME, 1), nowhere.dumps(None, "", 1)):
        assert "NoSuchBucket" in await failed(Why.UNREACHABLE, operation)


# -- what is no target


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("", {}, "empty"),
        ("a\0b", {}, "empty"),
        ("ftp://host/x", {}, "not ftp://"),
        ("http://host/x", {}, "not http://"),
        ("s3://", {}, "no bucket"),
        ("s3:///x", {}, "no bucket"),
        (f"s3://key:{SECRET}@bucket", {}, "no credentials"),
        (f"s3://bucket?secret_access_key={SECRET}", {}, "no credentials"),
        ("file://host/x", {}, "absolute path"),
        ("file://", {}, "absolute path"),
        ("s3://bucket", {"nonsense": SECRET}, "'nonsense'"),
        ("s3://bucket", {"allow_http": SECRET}, "cannot be opened"),
        ("s3://bucket", {"access_key_id": SECRET}, "cannot be opened"),
        ("gs://bucket", {"service_account_key": SECRET}, "cannot be opened"),
    ],
)
def test_what_is_no_target_is_said_at_once(url: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(DumpError, match=says) as error:
        open_target(url, options)
    assert error.value.why is Why.INVALID
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("scheme", ["file://{}", "file://localhost{}", "{}"])
async def test_a_directory_is_named_by_url_or_path(scheme: str, tmp_path: Path) -> None:
    where = tmp_path / "with space"
    where.mkdir()
    named = str(where).replace(" ", "%20") if "file" in scheme else str(where)
    target = open_target(scheme.format(named))
    assert await target.create(NAME, b"x")
    assert (where / NAME).read_bytes() == b"x"
