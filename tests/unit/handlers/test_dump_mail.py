"""Mail that nobody has read is in the dump of its session, and comes back with it (I15, I21)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House, read_now

from roost.handlers import restore as restoring
from roost.handlers.cold import Cold
from roost.handlers.dump import writer
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.reader import DumpedMail, DumpedRecord, DumpedTrajectory, read_rows, verify_dump
from roost.handlers.dump.target import Target, open_target
from roost.handlers.dump.writer import DumpResult, write_dump
from roost.handlers.mail import list_mail
from roost.handlers.restore import Restorer
from roost.v1 import mail_service_pb2 as pb
from roost.v1 import session_service_pb2, trajectory_service_pb2, types_pb2

CLOSED = types_pb2.MESSAGE_STATE_CLOSED
CONSUMED, EXPIRED = types_pb2.MESSAGE_STATE_CONSUMED, types_pb2.MESSAGE_STATE_EXPIRED


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data")
    yield made
    made.store.close()


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "dumps").mkdir()
    return open_target(str(tmp_path / "dumps"))


def corresponded(house: House, many: int = 0) -> bytes:
    """An ended session with mail of every fate: consumed, expired, taken by a turn that did not commit, unread."""
    house.open("root")
    uid = house.open("chat", parent_session_id="root")
    house.open("child", parent_session_id="chat")
    house.send("chat", b"consumed", request_id="one")
    house.turn("chat", b"answer")
    house.finish("chat")
    house.send("chat", b"expired", ttl={"seconds": 1})
    house.engine.skip_time(1_000)
    house.send("chat", b"unread \xff", "root", request_id="two", content_type="x/y", labels={"k": "v"}, trigger=True)
    house.send("chat", b"will not expire now", ttl={"seconds": 60})
    house.close("child")  # tells its parent, without a word
    house.abort("chat", b"half of it")
    house.turn("root", b"x")
    for n in range(many):
        house.send("chat", b"%d " % n * 1_000)
    house.close("chat")
    return uid


def listed(house: House, **fields: Any) -> list[types_pb2.Message]:
    """All there is of a mailbox."""
    cold = Cold(house.engine, house.store, house.tenant)
    request = pb.ListMailRequest(page_size=1_000, **fields).SerializeToString()
    answer = pb.ListMailResponse.FromString(list_mail(cold, request))
    assert not answer.next_page_token
    return [*answer.messages]


def dump(house: House, target: Target, uid: bytes, part_bytes: int = 500) -> DumpResult:
    return asyncio.run(write_dump(house.store, target, uid, read_now, part_bytes=part_bytes))


def rows_of(target: Target, name: str) -> list[Any]:
    async def rows() -> list[Any]:
        return [row async for row in read_rows(target, name)]

    return asyncio.run(rows())


def restore(house: House, target: Target, name: str, steps: list[str] | None = None) -> Any:
    """Restore a dump; its result. `steps` gets the name for each step that was taken."""

    async def settle(answer: Any) -> Any:
        if steps is not None:
            steps.append(name)
        return house.ended(answer) if isinstance(answer, int) else answer

    async def read(job: Callable[[], Any]) -> Any:
        return job()

    async def undo(_: bytes) -> None:
        raise AssertionError

    made = Restorer(house.engine, house.store, target, read, settle, undo, set())
    request = trajectory_service_pb2.RestoreSessionsRequest(dump_names=[name]).SerializeToString()
    answer = asyncio.run(made(lambda: house.tenant, request))
    (result,) = trajectory_service_pb2.RestoreSessionsResponse.FromString(answer).results
    return result


def test_unread_mail_is_in_the_dump_of_its_session(house: House, target: Target) -> None:
    uid = corresponded(house)
    states = {message.content: message.state for message in listed(house, session_id="chat")}
    assert states == {
        b"consumed": CONSUMED,
        b"expired": EXPIRED,
        b"unread \xff": CLOSED,
        b"will not expire now": CLOSED,
        b"": CLOSED,
    }
    result = dump(house, target, uid)
    manifest = asyncio.run(verify_dump(target, result.name))
    assert (manifest.schema, manifest.counts.mail) == (2, 3)
    assert manifest.counts == result.counts
    rows = rows_of(target, result.name)
    kinds = [type(row) for row in rows[1:]]
    assert kinds == sorted(kinds, key=[DumpedRecord, DumpedTrajectory, DumpedMail].index)
    stored = house.store.unread_mail(uid, 0, 1 << 30)
    mail = [row for row in rows if isinstance(row, DumpedMail)]
    assert mail == [DumpedMail(*row[1:2], row.sender or b"", *row[3:]) for row in stored]
    assert [row.content for row in mail] == [b"unread \xff", b"will not expire now", None]
    assert {row.deliveries for row in mail} == {1}
    # The receipt said so at the close.
    row = house.store.session_by_uid(uid)
    assert row is not None
    (session,) = house.engine.describe([row])
    assert types_pb2.Session.FromString(session).receipt.unread_messages == 3
    # Made again, it is the same.
    again = dump(house, target, uid)
    assert (again.repeated, again.sha256) == (True, result.sha256)


def test_a_session_whose_mail_was_read_has_a_dump_of_schema_1(house: House, target: Target, tmp_path: Path) -> None:
    """As it would have been made before there was mail: nobody who has one gets another of the same close."""
    uid = house.open("chat")
    house.send("chat", b"read")
    house.turn("chat", b"answer")
    house.close("chat")
    result = dump(house, target, uid)
    manifest = json.loads((tmp_path / "dumps" / result.name / "manifest.json").read_bytes())
    assert manifest["schema"] == 1
    assert manifest["counts"].keys() == {"records", "trajectories", "lines", "bytes"}


def test_a_large_mailbox_is_read_in_short_steps(house: House, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PAGE_BYTES", 10_000)
    uid = corresponded(house, many=60)
    read: list[int] = []

    async def counted(step: Callable[[], Any]) -> Any:
        answer = step()
        if isinstance(answer, list) and answer and hasattr(answer[0], "message_id"):
            read.append(sum(len(row.content or b"") for row in answer))
        return answer

    result = asyncio.run(write_dump(house.store, target, uid, counted, part_bytes=5_000))
    assert result.counts.mail == 63
    assert len(read) > 10
    assert max(read) < 10_000 + 5_000
    assert len(asyncio.run(verify_dump(target, result.name)).parts) > 20


def test_a_mailbox_that_lost_a_message_is_not_dumped(house: House, target: Target) -> None:
    """What is counted first must be what is read then: a dump is whole or none."""
    uid = corresponded(house)

    async def losing(step: Callable[[], Any]) -> Any:
        answer = step()
        if isinstance(answer, list) and answer and hasattr(answer[0], "message_id"):
            house.store._conn.execute("DELETE FROM message WHERE state = 6")
            return answer[:-1]
        return answer

    with pytest.raises(DumpError, match="2 messages, of 3") as error:
        asyncio.run(write_dump(house.store, target, uid, losing))
    assert error.value.why is Why.CORRUPT


@pytest.mark.parametrize("steps", [1, 2, 256])
def test_mail_comes_back_with_its_session(
    house: House, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    uid = corresponded(house, many=5)
    house.close("root")
    root = house.store.read_session("default", "root")
    assert root is not None
    names = [dump(house, target, root.uid).name, dump(house, target, uid).name]
    before = [m for m in listed(house, session_id="chat") if m.state == CLOSED]
    assert len(before) == 8
    monkeypatch.setattr(restoring, "STEP_RECORDS", steps)

    there = House(tmp_path / "there")
    there.open("elsewhere")  # its journal has other sequences
    taken: list[str] = []
    for name in names:
        assert restore(there, target, name, taken).refusal.reason == ""
    # The row, three records, eight messages; the last of them with the end.
    assert taken.count(names[1]) == 1 + -(-3 // steps) + -(-8 // steps)
    assert listed(there, session_id="chat") == before
    assert [m.content for m in listed(there, sender_session_id="root")] == [b"unread \xff"]
    # A dump of it holds the same mail, under the sequences that it has here.
    (tmp_path / "again").mkdir()
    second = open_target(str(tmp_path / "again"))
    pairs = ((target, names[1]), (second, dump(there, second, uid).name))
    first, again = ([row for row in rows_of(at, name) if isinstance(row, DumpedMail)] for at, name in pairs)
    assert first == again
    # It is over: reopened, the session begins with an empty mailbox, and what is sent again is a repeat.
    reopen = session_service_pb2.ReopenSessionRequest(session_id="root")
    there.call("SessionService", "ReopenSession", reopen, session_service_pb2.ReopenSessionResponse)
    reopen = session_service_pb2.ReopenSessionRequest(session_id="chat")
    there.call("SessionService", "ReopenSession", reopen, session_service_pb2.ReopenSessionResponse)
    unread = next(m for m in before if m.content == b"unread \xff")
    fields: dict[str, Any] = {"content_type": "x/y", "labels": {"k": "v"}, "trigger": True}
    assert there.send("chat", b"unread \xff", "root", request_id="two", **fields) == unread.message_id
    assert listed(there, session_id="chat") == before
    there.turn("chat", b"more")
    assert listed(there, session_id="chat") == before
    # Closed once more, its next dump has what was unread each time.
    there.send("chat", b"late")
    there.close("chat")
    last = dump(there, target, uid)
    assert [row.content for row in rows_of(target, last.name) if isinstance(row, DumpedMail)] == [
        *(m.content or None for m in before),
        b"late",
    ]
    there.store.close()


def test_i22_two_messages_of_one_request_are_refused_before_anything_is_made(
    house: House, target: Target, tmp_path: Path
) -> None:
    """The store would refuse them, and set the tree aside: a dump that says so was not written by Roost."""
    uid = house.open("chat")
    house.send("chat", b"one", request_id="same")
    house.send("chat", b"two")
    house.close("chat")
    house.store._conn.execute("DROP INDEX message_request")
    house.store._conn.execute("UPDATE message SET meta = (SELECT meta FROM message WHERE request IS NOT NULL)")
    name = dump(house, target, uid).name
    there = House(tmp_path / "there")
    result = restore(there, target, name)
    assert result.refusal.reason == "DUMP_DAMAGED"
    assert "its request has made another one" in result.refusal.message
    assert there.store.session_by_uid(uid) is None
    there.store.close()
