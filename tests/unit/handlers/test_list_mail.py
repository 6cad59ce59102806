"""ListMail: pages in order of sending, what became of each message, and who may see it (I15, I17)."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from roost.handlers import mail
from roost.handlers.cold import PAGE_BYTES, Cold
from roost.handlers.errors import Refused
from roost.handlers.mail import list_mail
from roost.handlers.reach import Reach
from roost.store.v1.store_pb2 import Cleanup, MessageMeta
from roost.v1 import mail_service_pb2 as pb
from roost.v1 import types_pb2 as types

QUEUED, DELIVERED, CONSUMED = types.MESSAGE_STATE_QUEUED, types.MESSAGE_STATE_DELIVERED, types.MESSAGE_STATE_CONSUMED
EXPIRED, CLOSED = types.MESSAGE_STATE_EXPIRED, types.MESSAGE_STATE_CLOSED


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A root with two children, a and b, and a child of a: aa; another tree: other."""
    made = House(tmp_path / "data")
    made.open("root")
    for name, parent in (("a", "root"), ("b", "root"), ("aa", "a")):
        made.open(name, parent_session_id=parent)
    made.open("other")
    yield made
    made.store.close()


def page(house: House, key: str = "", **fields: Any) -> pb.ListMailResponse:
    """One page; with the key of a session, if one is named."""
    reach = None
    if key:
        row = house.store.read_session(house.tenant, key)
        assert row is not None
        reach = Reach(key, row.uid, row.closes + 1)
    cold = Cold(house.engine, house.store, house.tenant, reach)
    request = pb.ListMailRequest(**fields).SerializeToString()
    return pb.ListMailResponse.FromString(cold.step(lambda: list_mail(cold, request)))


def listed(house: House, key: str = "", **fields: Any) -> list[types.Message]:
    """All pages."""
    found: list[types.Message] = []
    token = ""
    while True:
        answer = page(house, key, page_token=token, **fields)
        found += answer.messages
        token = answer.next_page_token
        if not token:
            return found


def contents(house: House, key: str = "", **fields: Any) -> list[bytes]:
    return [message.content for message in listed(house, key, **fields)]


def refused(house: House, key: str = "", **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as error:
        page(house, key, **fields)
    _, message, details = error.value.refusal
    (detail,) = (d for d in status_pb2.Status.FromString(details).details if d.type_url.endswith("ErrorInfo"))
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    return info.reason, message, dict(info.metadata)


def test_a_message_is_shown_as_it_was_sent(house: House) -> None:
    before = house.engine.wall_ms()
    made = house.send("b", b"\xff\0", "aa", content_type="text/x", labels={"k": "v"}, trigger=True, ttl={"seconds": 60})
    (message,) = listed(house, session_id="b")
    assert uuid.UUID(message.message_id).version == 7
    assert (message.message_id, message.session_id, message.sender_session_id) == (made, "b", "aa")
    assert (message.kind, message.state, message.deliveries) == (types.MESSAGE_KIND_MESSAGE, QUEUED, 0)
    assert (message.content, message.content_type, dict(message.labels)) == (b"\xff\0", "text/x", {"k": "v"})
    assert message.sender_path.startswith("/root/")
    assert message.sender_path.count("/") == 3
    assert message.trigger
    assert before <= message.create_time.ToMilliseconds() <= house.engine.wall_ms()
    assert message.expire_time.ToMilliseconds() == message.create_time.ToMilliseconds() + 60_000
    assert (message.turn, message.close_reason) == (0, 0)
    # From a host, and for good.
    house.send("a", b"plain")
    (plain,) = listed(house, session_id="a")
    assert (plain.sender_session_id, plain.sender_path, plain.trigger) == ("", "", False)
    assert not plain.HasField("expire_time")
    assert [m.SerializeToString() for m in listed(house, sender_session_id="aa")] == [message.SerializeToString()]
    (bare,) = listed(house, session_id="b", omit_content=True)
    message.ClearField("content")
    assert bare == message


def test_i15_what_became_of_a_message_is_shown_and_filtered(house: House) -> None:
    house.send("a", b"consumed")
    house.turn("a", b"x")
    house.send("a", b"delivered")
    house.begin("a")
    house.send("a", b"expired", ttl={"seconds": 5})
    house.send("a", b"queued")
    house.engine.skip_time(5_000)
    assert [(m.content, m.state) for m in listed(house, session_id="a")] == [
        (b"consumed", CONSUMED),
        (b"delivered", DELIVERED),
        (b"expired", EXPIRED),
        (b"queued", QUEUED),
    ]
    assert [m.deliveries for m in listed(house, session_id="a")] == [1, 1, 0, 0]
    assert contents(house, session_id="a", states=[QUEUED]) == [b"queued"]
    assert contents(house, session_id="a", states=[EXPIRED]) == [b"expired"]
    assert contents(house, session_id="a", states=[CONSUMED, DELIVERED, CONSUMED]) == [b"consumed", b"delivered"]
    assert contents(house, session_id="a", states=[CLOSED]) == []
    house.close("a")
    assert [(m.content, m.state) for m in listed(house, session_id="a")][:2] == [
        (b"consumed", CONSUMED),
        (b"delivered", CLOSED),
    ]
    assert contents(house, session_id="a", states=[CLOSED])[-1] == b"queued"


def test_what_a_child_tells_is_a_message_of_the_child(house: House) -> None:
    house.turn("aa", b"x")
    house.close("aa")
    (told,) = listed(house, session_id="a")
    assert (told.kind, told.sender_session_id, told.close_reason) == (
        types.MESSAGE_KIND_CLOSED,
        "aa",
        types.CLOSE_REASON_QUIT,
    )
    assert (told.content, told.trigger) == (b"", False)
    assert listed(house, sender_session_id="aa") == [told]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pages_join_to_the_whole_in_order_of_sending(house: House, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    sent = [b"%d" % n for n in range(7)]
    for n, content in enumerate(sent):
        house.send("a" if n % 3 else "b", content, "aa" if n % 2 else "")
    monkeypatch.setattr(mail, "EXAMINED", 2)
    fields: dict[str, Any]
    for fields, expected in (
        ({"session_id": "a"}, [1, 2, 4, 5]),
        ({"session_id": "b"}, [0, 3, 6]),
        ({"sender_session_id": "aa"}, [1, 3, 5]),
        ({"session_id": "a", "states": [QUEUED]}, [1, 2, 4, 5]),
        ({"session_id": "a", "states": [CONSUMED]}, []),
    ):
        assert contents(house, page_size=size, **fields) == [sent[n] for n in expected]
    first = page(house, session_id="a", page_size=size)
    assert len(first.messages) == min(size, 4)
    # What comes meanwhile is on the last page.
    house.send("a", b"late")
    rest = listed_from(house, first.next_page_token, session_id="a", page_size=size)
    expected = [sent[n] for n in (1, 2, 4, 5)][size:] + ([b"late"] if first.next_page_token else [])
    assert rest == expected


def listed_from(house: House, token: str, **fields: Any) -> list[bytes]:
    found: list[bytes] = []
    while token:
        answer = page(house, page_token=token, **fields)
        found += [message.content for message in answer.messages]
        token = answer.next_page_token
    return found


def test_a_page_has_about_a_mebibyte(house: House) -> None:
    size = 200_000
    for _ in range(12):
        house.send("a", b"x" * size)
    answer = page(house, session_id="a")
    assert PAGE_BYTES <= answer.ByteSize() < PAGE_BYTES + size + 1_000
    assert answer.next_page_token
    assert len(listed(house, session_id="a")) == 12
    # Without content they all fit.
    assert len(page(house, session_id="a", omit_content=True).messages) == 12


def test_a_token_is_of_one_list(house: House) -> None:
    for _ in range(3):
        house.send("a", b"x", "aa")
    token = page(house, session_id="a", page_size=1).next_page_token
    for other in (
        {"session_id": "b"},
        {"sender_session_id": "aa"},
        {"session_id": "a", "states": [QUEUED]},
        {"session_id": "a", "omit_content": True},
    ):
        assert refused(house, page_token=token, **other)[0] == "BAD_PAGE_TOKEN"
    assert refused(house, session_id="a", page_token="nonsense")[0] == "BAD_PAGE_TOKEN"
    assert len(page(house, session_id="a", page_token=token, page_size=9).messages) == 2
    # A place that nobody was given is answered like any other that is past the end.
    raw = base64.urlsafe_b64decode(token)
    forged = base64.urlsafe_b64encode(b"\xff" * 12 + raw[8:]).decode()
    assert not page(house, session_id="a", page_token=forged).messages


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "session_id"),
        ({"session_id": "a", "sender_session_id": "b"}, "session_id"),
        ({"session_id": "a", "page_size": -1}, "page_size"),
        ({"session_id": "a", "states": [0]}, "states"),
        ({"session_id": "a", "states": [QUEUED, 77]}, "states"),
        ({"session_id": "a b"}, "session_id"),
        ({"sender_session_id": "a b"}, "sender_session_id"),
    ],
)
def test_bad_requests_are_refused(house: House, fields: dict[str, Any], field: str) -> None:
    reason, _, metadata = refused(house, **fields)
    assert (reason, metadata["field"]) == ("INVALID_FIELD", field)


def test_i17_a_sessions_key_sees_its_own_mail_and_its_descendants(house: House) -> None:
    house.send("a", b"to a", "root")
    house.send("aa", b"to aa", "b")
    house.send("b", b"to b", "a")
    house.send("root", b"to root", "b")
    assert contents(house, "a", session_id="a") == [b"to a"]
    assert contents(house, "a", session_id="aa") == [b"to aa"]
    # All of a message shows to either end of it, whoever the other is.
    assert contents(house, "a", sender_session_id="a") == [b"to b"]
    (seen,) = listed(house, "a", session_id="a")
    assert (seen.sender_session_id, seen.sender_path) == ("root", "/root")
    assert contents(house, "root", sender_session_id="b") == [b"to aa", b"to root"]
    for field in ("session_id", "sender_session_id"):
        unknown = refused(house, "a", **{field: "nobody"})
        assert unknown[0] == "SESSION_NOT_FOUND"
        for other in ("root", "b", "other"):
            reason, message, metadata = refused(house, "a", **{field: other})
            assert (reason, message.replace(other, "nobody")) == unknown[:2]
            assert {k: v.replace(other, "nobody") for k, v in metadata.items()} == unknown[2]
    # Of one that ended below it too; of one below that not any more.
    house.open("aaa", parent_session_id="aa")
    house.close("aa")
    assert contents(house, "a", session_id="aa") == [b"to aa"]
    assert refused(house, "a", session_id="aaa")[0] == "SESSION_NOT_FOUND"
    assert contents(house, session_id="aaa") == []


def test_a_purged_mailbox_is_said_to_be_gone_and_what_it_sent_is_not(house: House) -> None:
    house.send("a", b"to a")
    house.send("b", b"of a", "a")
    house.close("a")
    for cleanup, reason in ((Cleanup(purging=True), "SESSION_PURGED"), (Cleanup(restoring=True), "SESSION_RESTORING")):
        house.store._conn.execute(
            "UPDATE session SET cleanup = ? WHERE session_id = 'a'", (cleanup.SerializeToString(),)
        )
        assert refused(house, session_id="a")[0] == reason
        assert contents(house, sender_session_id="a") == [b"of a", b""]  # and that it was closed


def test_i25_one_damaged_message_hides_no_other(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    house.send("a", b"first")
    house.send("a", b"second")
    broken = b"\xff secret"
    with pytest.raises(DecodeError):
        MessageMeta.FromString(broken)
    house.store._conn.execute("UPDATE message SET meta = ? WHERE content = x'6669727374'", (broken,))
    assert contents(house, session_id="a") == [b"second"]
    captured = capfd.readouterr()
    assert "message_corrupt" in captured.out + captured.err
    assert "secret" not in captured.out + captured.err
