"""OpenSession's `fork_from` over a real server: what is copied is the history to the byte, all of it or nothing, and
nothing is shared afterwards (I4, I5, I7, I14, I21-I23)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed
from conftest import Start
from restored import CLOSED, exported, play, restored, span, until
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.v1 import session_service_pb2 as pb
from roost.v1 import types_pb2 as types

COMMITTED = types.RECORD_STATUS_COMMITTED
DAY = 86_400


def fork_request(source: str, turn: int = 0, name: str = "", **fields: Any) -> Any:
    options = types.OpenOptions(parent_session_id=fields.pop("parent", ""))
    origin = pb.ForkFrom(session_id=source, turn=turn)
    return pb.OpenSessionRequest(session_id=name or fresh("f"), fork_from=origin, options=options, **fields)


def fork(api: Api, source: str, turn: int = 0, name: str = "", **fields: Any) -> Any:
    """The session that is a fork, just made."""
    answer = api.sessions.OpenSession(fork_request(source, turn, name, **fields), timeout=DEADLINE)
    assert answer.created
    return answer.session


def live(api: Api, name: str) -> list[bytes]:
    """The live line as ReadHistory tells it, each turn to the byte, but for its reward and the numbers that the
    session's own grants and trajectories gave it."""
    turns = []
    for record in api.history(name, statuses=[COMMITTED]):
        told = types.Record.FromString(record.SerializeToString())
        for own in ("attempt", "fence", "head_version", "trajectory", "base_turn", "reward"):
            told.ClearField(own)
        turns.append(told.SerializeToString(deterministic=True))
    return turns


def played(api: Api) -> str:
    """A session with retries, rewards, a finished trajectory and a rewind; its name."""
    name = fresh()
    play(api, name, [b"turn %d \x00\xff" % n for n in range(6)])
    return name


def start_of(api: Api, name: str) -> tuple[int, bytes, bytes]:
    """The next turn's number, and the checkpoint that it starts from. The turn is given back."""
    grant = api.begin(name).grant
    api.abort(name, grant.lease, final=True)
    return grant.turn, grant.checkpoint.token_ids, grant.checkpoint.state


@pytest.mark.parametrize("turn", [1, 3, 5, 0])
def test_history_and_checkpoint_are_equal_up_to_the_turn(api: Api, turn: int) -> None:
    source = played(api)
    whole = live(api, source)
    session = fork(api, source, turn)
    name = session.session_id
    turns = turn or len(whole)
    assert live(api, name) == whole[:turns]
    assert (session.turn_count, session.head_version, session.trajectory) == (turns, turns, 1)
    assert session.last_outcome == types.TURN_OUTCOME_NONE
    assert [(r.turn, r.attempt, r.fence, r.head_version, r.trajectory) for r in api.history(name)] == [
        (n, 1, n, n, 1) for n in range(1, turns + 1)
    ]
    if turns == len(whole):
        assert start_of(api, name) == start_of(api, source)
    else:
        number, tokens, state = start_of(api, name)
        assert (number, tokens, state) == (turns + 1, span(3 * turns, 0).token_ids, b"state %d" % turns)


def test_nothing_is_shared_afterwards(api: Api) -> None:
    source = played(api)
    before = live(api, source)
    running = api.begin(source).grant
    name = fork(api, source).session_id
    api.commit(name, api.begin(name).grant.lease, b"its own", base_turn=3)
    api.reward(name, 0.5, turn=1)
    assert live(api, source) == before
    assert live(api, name)[:3] == before[:3]
    assert api.history(name, statuses=[COMMITTED])[-1].record.content == b"its own"
    after = live(api, name)
    api.commit(source, running.lease, b"the source's own")
    api.close(source)
    assert live(api, name) == after
    assert api.get(name).state == types.SESSION_STATE_OPEN
    # What it began with is its own to finish, and is exported as its first trajectory.
    assert api.finish(name).trajectory.turn_count == 4
    (mine,) = api.exported(session_ids=[name])
    assert [record.record.content for record in mine.records][-1] == b"its own"
    assert (mine.trajectory.first_turn, mine.trajectory.turn_count) == (1, 4)


def test_i22_what_cannot_be_forked_is_refused_and_leaves_nothing(api: Api) -> None:
    source = played(api)
    count = len(live(api, source))
    name = fresh()
    requests = [
        (fork_request(fresh("nobody"), 0, name), grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        (fork_request(source, count + 1, name), grpc.StatusCode.NOT_FOUND, "TURN_NOT_FOUND"),
        (fork_request(name, 0, name), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (fork_request("a/b", 0, name), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (fork_request("", 0, name), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (fork_request(source, 0, name, parent=fresh("nobody")), grpc.StatusCode.NOT_FOUND, "PARENT_NOT_FOUND"),
    ]
    for validate_only in (False, True):
        for request, code, reason in requests:
            request.validate_only = validate_only
            with refused(code, reason):
                api.sessions.OpenSession(request, timeout=DEADLINE)
    request = fork_request(source, 2, name, validate_only=True)
    told = api.sessions.OpenSession(request, timeout=DEADLINE)
    assert (told.created, told.session.turn_count, told.session.uid) == (False, 2, "")
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        api.get(name)


def test_i21_a_repeat_returns_the_session(api: Api) -> None:
    source = played(api)
    request = fork_request(source, 2, request_id=fresh("r"))
    first = api.sessions.OpenSession(request, timeout=DEADLINE)
    api.close(source)
    again = api.sessions.OpenSession(request, timeout=DEADLINE)
    assert (first.created, again.created, again.session.uid) == (True, False, first.session.uid)
    request.fork_from.turn = 3
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISMATCH"):
        api.sessions.OpenSession(request, timeout=DEADLINE)


def test_a_fork_has_its_size_limit(start: Start) -> None:
    with start("--set", "max_fork_bytes=4KiB").api() as api:
        api.open("a")
        for part in (b"x" * 3000, b"y" * 3000):
            api.turn("a", part)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE") as said:
            fork(api, "a", name="b")
        assert said.metadata["field"] == "fork_from"
        assert said.metadata["limit"] == "4096"
        assert 6000 < int(said.metadata["size"]) < 8000
        assert fork(api, "a", 1, name="b").turn_count == 1


def test_i5_a_fork_that_was_answered_survives_kill_9(start: Start) -> None:
    server = start()
    with server.api() as api:
        source = played(api)
        api.open("large")
        record = record_input(b"z" * 200_000, tokens=50_000)
        for number in range(5):
            record.tokens.offset = 50_000 * number
            api.commit("large", api.begin("large").grant.lease, record=record, state=b"s%d" % number)
        whole, large = live(api, source), live(api, "large")
        fork(api, source, name="first")
        fork(api, "large", 4, name="second")
        server.kill()
    server.start()
    with server.api() as api:
        assert live(api, "first") == whole
        assert live(api, "second") == large[:4]
        assert start_of(api, "first") == start_of(api, source)
        api.turn("second", b"goes on")
        assert api.get("second").turn_count == 5
        # As many bytes as tell it: the export verifies the whole of it (I23).
        assert len(api.export(session_ids=["second"])["second"]) == 5


def test_a_fork_is_dumped_and_restored_as_any_session(start: Start, tmp_path: Path) -> None:
    """From an open and from an ended source; what comes back exports the same bytes, and goes on."""
    place = tmp_path / "dumps"
    place.mkdir()
    flags = ("--dump-target", str(place))
    with start(*flags, data_dir=tmp_path / "first").api() as api:
        source = played(api)
        fork(api, source, 4, name="of-open")
        api.close(source)
        until(lambda: api.get(source).state == CLOSED)
        fork(api, source, name="of-closed")
        for name in ("of-open", "of-closed"):
            api.turn(name, b"its own", state=b"mine")
            api.reward(name, 1.0)
            api.finish(name)
            api.abort(name, api.begin(name).grant.lease, b"half of it")
            api.close(name)
        names = ["of-open", "of-closed"]
        until(lambda: {api.get(name).state for name in names} == {CLOSED})
        before = [exported(api, session_ids=[name]) for name in names]
        dumps = [api.get(name).receipt.dump_name for name in names]
        histories = [live(api, name) for name in names]
    with start(*flags, data_dir=tmp_path / "second").api() as api:
        restored(api, dumps)
        assert [exported(api, session_ids=[name]) for name in names] == before
        api.reopen("of-closed")
        assert live(api, "of-closed") == histories[1]
        assert start_of(api, "of-closed")[2] == b"mine"
        assert live(api, fork(api, "of-open").session_id) == histories[0]


def test_a_source_whose_content_is_purged_is_refused_and_its_fork_stays(start: Start) -> None:
    server = start("--set", "purge_without_dump=true", "--set", "retention_ms=1d", clocked=True)
    with server.api() as api:
        source = played(api)
        name = fork(api, source).session_id
        whole = live(api, name)
        api.close(source)
        server.clock.skip(2 * DAY)
        until(lambda: api.get(source).cleanup.HasField("purged_time"))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_PURGED"):
            fork(api, source)
        assert live(api, fork(api, name, parent="").session_id) == whole


def test_i17_a_key_forks_from_its_session_and_what_is_below(start: Start) -> None:
    server = start(ROOST_ADMIN_KEY=ADMIN)
    with keyed(server, create(server, "team").key) as api:
        for name, parent in (("root", ""), ("s", "root"), ("child", "s"), ("sibling", "root"), ("other", "")):
            api.open(name, parent_session_id=parent)
            api.turn(name, name.encode())
        request = pb.OpenSessionRequest(session_id="s", if_exists=pb.IF_EXISTS_RETURN, mint_key=True)
        key = api.sessions.OpenSession(request, timeout=DEADLINE).session_key
    with keyed(server, key) as own:
        for source in ("s", "child"):
            made = fork(own, source, parent="s").session_id
            assert own.history(made)[0].record.content == source.encode()
        said = set()
        for source in ("root", "sibling", "other", "nobody"):
            with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND") as told:
                fork(own, source, parent="s")
            said.add((told.message.replace(source, ""), tuple(told.details)))
        assert len(said) == 1
