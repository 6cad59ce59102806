"""WatchSessions and WatchOwner step by step: what a stream tells that reads when it wants to (I6, I17)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ended_sessions import House
from google.rpc import error_details_pb2, status_pb2

from roost.handlers import owner, watch
from roost.handlers.cold import NOTHING_YET, Cold, Follow
from roost.handlers.errors import Refused
from roost.handlers.reach import Reach
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns

OPENED, UPDATED = sessions.SESSION_EVENT_KIND_OPENED, sessions.SESSION_EVENT_KIND_UPDATED
MAIL, CLOSED = sessions.SESSION_EVENT_KIND_MAIL, sessions.SESSION_EVENT_KIND_CLOSED
HOST = "host"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data", max_watch_events=8)
    yield made
    made.store.close()


class Stream:
    """A stream whose steps the test takes; `following` is what it waits for then."""

    def __init__(self, house: House, steps: Any, answer: Any, request: Any, key: str = "") -> None:
        reach = None
        if key:
            row = house.store.read_session(house.tenant, key)
            assert row is not None
            reach = Reach(key, row.uid, row.closes + 1)
        self._cold = Cold(house.engine, house.store, house.tenant, reach)
        self._answer = answer
        self._steps = steps(self._cold, request.SerializeToString())
        self.following: Follow | None = None

    def answer(self) -> Any:
        """The next answer; None if the stream waits."""
        while True:
            step = self._cold.step(partial(next, self._steps))
            if isinstance(step, Follow):
                self.following = step
                return None
            if step != NOTHING_YET:
                return self._answer.FromString(step)

    def answers(self) -> list[Any]:
        """Those up to where it waits."""
        return list(iter(self.answer, None))

    def wakes(self) -> bool:
        assert self.following is not None
        assert self.following.look is not None
        return self.following.look()


def watched(house: House, key: str = "", **fields: Any) -> Stream:
    request = sessions.WatchSessionsRequest(**fields)
    return Stream(house, watch.watch_sessions, sessions.WatchSessionsResponse, request, key)


def of_host(house: House) -> Stream:
    request = turns.WatchOwnerRequest(owner=HOST)
    return Stream(house, owner.watch_owner, turns.WatchOwnerResponse, request)


def updated(house: House, session_id: str, times: int) -> None:
    for _ in range(times):
        labels = {"n": str(house.engine.watch_count())}
        request = sessions.UpdateSessionRequest(session_id=session_id, labels=labels)
        house.call("SessionService", "UpdateSession", request, sessions.UpdateSessionResponse)


def begun(house: House, session_id: str) -> bytes:
    request = turns.BeginTurnRequest(session_id=session_id, owner=HOST)
    return house.call("TurnService", "BeginTurn", request, turns.BeginTurnResponse).grant.lease


def ended(house: House, session_id: str, lease: bytes, commit: bool = True) -> None:
    if commit:
        end: Any = turns.CommitTurnRequest(session_id=session_id, lease=lease)
        house.call("TurnService", "CommitTurn", end, turns.CommitTurnResponse)
    else:
        end = turns.AbortTurnRequest(session_id=session_id, lease=lease)
        house.call("TurnService", "AbortTurn", end, turns.AbortTurnResponse)


def interrupted(house: House, session_id: str) -> None:
    request = sessions.InterruptSessionRequest(session_id=session_id)
    house.call("SessionService", "InterruptSession", request, sessions.InterruptSessionResponse)


def told(answers: list[Any]) -> list[tuple[str, str]]:
    """What an owner is told, and of which session."""
    return [(kind, getattr(a, kind).session_id) for a in answers if (kind := a.WhichOneof("event"))]


def reason(error: Refused) -> str:
    for detail in status_pb2.Status.FromString(error.refusal[2]).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    raise AssertionError("it has no reason")


# -- WatchSessions


def test_the_first_answer_comes_at_once_and_the_next_with_something_to_tell(house: House) -> None:
    house.open("before")
    stream = watched(house)
    (first,) = stream.answers()
    assert (list(first.events), first.resync, bool(first.resume_token)) == ([], False, True)
    assert not stream.wakes()
    house.open("after")
    assert stream.wakes()
    (answer,) = stream.answers()
    assert [(e.kind, e.session_id, e.path) for e in answer.events] == [(OPENED, "after", "/root")]
    assert not stream.wakes()


def test_answers_are_bounded_and_each_can_be_gone_on_from(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BATCH", 3)
    stream = watched(house)
    stream.answers()
    for n in range(8):
        house.open(f"s{n}")
    answers = stream.answers()
    assert [[e.session_id for e in a.events] for a in answers] == [
        ["s0", "s1", "s2"],
        ["s3", "s4", "s5"],
        ["s6", "s7"],
    ]
    again = watched(house, resume_token=answers[0].resume_token).answers()
    assert [[e.session_id for e in a.events] for a in again] == [["s3", "s4", "s5"], ["s6", "s7"]]
    assert not any(a.resync for a in [*answers, *again])


def test_a_stream_that_falls_behind_is_told_once_and_goes_on_from_then(house: House) -> None:
    house.open("s")
    stream = watched(house)
    (first,) = stream.answers()
    updated(house, "s", 9)
    assert stream.wakes()
    (answer,) = stream.answers()
    assert (list(answer.events), answer.resync) == ([], True)
    updated(house, "s", 2)
    (answer,) = stream.answers()
    assert (len(answer.events), answer.resync) == (2, False)
    (late, *more) = watched(house, resume_token=first.resume_token).answers()
    assert (list(late.events), late.resync, more) == ([], True, [])
    assert house.engine.stats()["watch_events"] == 8


def test_a_token_of_another_life_of_the_server_is_told_so(house: House, tmp_path: Path) -> None:
    (first,) = watched(house).answers()
    house.open("before")
    house.store.close()
    again = House(tmp_path / "data", max_watch_events=8)
    again.open("during")
    stream = watched(again, resume_token=first.resume_token)
    (answer,) = stream.answers()
    assert (list(answer.events), answer.resync) == ([], True)
    again.open("after")
    (answer,) = stream.answers()
    assert ([e.session_id for e in answer.events], answer.resync) == (["after"], False)
    again.store.close()


def test_a_quiet_stream_keeps_a_token_that_is_good(house: House) -> None:
    """Though more has happened to others than is kept. It says that after a fixed time, whatever they do (I17)."""
    house.open("s")
    house.open("busy")
    stream = watched(house, root_session_id="s")
    (first,) = stream.answers()
    for _ in range(3):
        updated(house, "busy", 6)
        assert not stream.wakes()
    assert stream.following is not None
    assert stream.following.until_ms is not None
    assert stream.answers() == []
    house.engine.skip_time(watch.SILENCE_MS)
    assert house.engine.service_ms() >= stream.following.until_ms
    (silent,) = stream.answers()
    assert (list(silent.events), silent.resync) == ([], False)
    assert watched(house, root_session_id="s", resume_token=first.resume_token).answers()[0].resync
    updated(house, "s", 1)
    (answer,) = watched(house, root_session_id="s", resume_token=silent.resume_token).answers()
    assert ([e.kind for e in answer.events], answer.resync) == ([UPDATED], False)


def test_i17_a_token_is_of_its_filters_and_its_caller_and_shows_no_position(house: House) -> None:
    house.open("root")
    house.open("a", parent_session_id="root")
    tokens = {watched(house, key).answers()[0].resume_token for key in ("", "", "a", "a", "root")}
    assert len(tokens) == 5
    token = watched(house, "a").answers()[0].resume_token
    assert watched(house, "a", resume_token=token).answers()
    for key, fields in (("", {}), ("root", {}), ("a", {"kinds": [OPENED]})):
        with pytest.raises(Refused) as error:
            watched(house, key, resume_token=token, **fields).answers()
        assert reason(error.value) == "BAD_PAGE_TOKEN"
    for bad in ("x", "AAAA", token[:-2], token[::-1]):
        with pytest.raises(Refused) as error:
            watched(house, "a", resume_token=bad).answers()
        assert reason(error.value) == "BAD_PAGE_TOKEN"


def test_i17_a_sessions_stream_wakes_for_its_own_events_alone(house: House) -> None:
    house.open("root")
    for name, parent in (("a", "root"), ("b", "root"), ("aa", "a")):
        house.open(name, parent_session_id=parent)
    stream = watched(house, "a")
    stream.answers()
    updated(house, "b", 2)
    updated(house, "root", 1)
    assert not stream.wakes()
    updated(house, "aa", 1)
    updated(house, "a", 1)
    assert stream.wakes()
    (answer,) = stream.answers()
    assert [e.session_id for e in answer.events] == ["aa", "a"]


def test_a_sessions_stream_ends_with_it_whatever_it_watches(house: House) -> None:
    house.open("root")
    house.open("a", parent_session_id="root")
    stream = watched(house, "a", kinds=[MAIL])
    stream.answers()
    house.close("a")
    assert stream.wakes()
    with pytest.raises(Refused) as error:
        stream.answers()
    assert reason(error.value) == "SESSION_CLOSED"


# -- WatchOwner


def test_what_is_to_be_done_is_told_first_and_each_thing_once(house: House) -> None:
    for name in ("i", "m", "other"):
        house.open(name)
    lease = begun(house, "m")
    ended(house, "m", lease)
    house.send("m", b"x", trigger=True)
    begun(house, "i")
    interrupted(house, "i")
    stream = of_host(house)
    assert told(stream.answers()) == [("interrupt", "i"), ("mail", "m")]
    assert not stream.wakes()
    # What another sees of it changes nothing here.
    house.send("m", b"y")
    house.send("other", b"z", trigger=True)
    interrupted(house, "i")
    assert stream.answers() == []
    house.send("m", b"z", trigger=True)
    (mail,) = stream.answers()
    assert (mail.mail.session_id, mail.mail.queued) == ("m", 3)


def test_an_event_between_the_two_looks_is_told_once(house: House) -> None:
    """It is in the events of the stream, and in what there is when it looks."""
    house.open("i")
    begun(house, "i")
    stream = of_host(house)
    stream._steps = owner._Stream(stream._cold, HOST).steps()
    real, asked = stream._cold.engine, []

    class Between:
        def __getattr__(self, name: str) -> Any:
            if name == "interrupts_of" and not asked:
                asked.append(name)
                interrupted(house, "i")
            return getattr(real, name)

    cold = Cold(Between(), house.store, house.tenant)  # type: ignore[arg-type]
    stream._steps = owner._Stream(cold, HOST).steps()
    assert told(stream.answers()) == [("interrupt", "i")]
    assert asked
    assert stream.answers() == []


@pytest.mark.parametrize("remembered", [owner.REMEMBERED, 1])
def test_a_stream_that_begins_again_tells_nothing_twice(
    house: House, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    """Because it fell behind, or has much to remember."""
    monkeypatch.setattr(owner, "REMEMBERED", remembered)
    for name in ("i", "j", "m", "n", "busy"):
        house.open(name)
    for name in ("m", "n"):
        ended(house, name, begun(house, name))
    for name in ("i", "j"):
        begun(house, name)
    stream = of_host(house)
    assert stream.answers() == []
    interrupted(house, "i")
    house.send("m", b"x", trigger=True)
    assert told(stream.answers()) == [("interrupt", "i"), ("mail", "m")]
    updated(house, "busy", 20)
    interrupted(house, "j")
    house.send("n", b"x", trigger=True)
    assert stream.wakes()
    assert told(stream.answers()) == [("interrupt", "j"), ("mail", "n")]
    updated(house, "busy", 20)
    assert stream.answers() == []


def test_mail_is_told_when_the_session_is_runnable_again(house: House) -> None:
    house.open("m")
    lease = begun(house, "m")
    stream = of_host(house)
    stream.answers()
    # While a turn runs it is not; with its end it is.
    house.send("m", b"x", trigger=True)
    assert stream.answers() == []
    ended(house, "m", lease)
    assert told(stream.answers()) == [("mail", "m")]
    # A turn that takes it and comes to nothing: after a pause.
    ended(house, "m", begun(house, "m"), commit=False)
    assert stream.answers() == []
    assert stream.following is not None
    assert stream.following.until_ms is not None
    house.engine.skip_time(1_100)
    assert house.engine.service_ms() >= stream.following.until_ms
    assert told(stream.answers()) == [("mail", "m")]
    # One that consumes it: not any more.
    ended(house, "m", begun(house, "m"))
    house.engine.skip_time(120_000)
    assert stream.answers() == []
    assert stream.following.until_ms is None
