"""RestoreSessions: what was dumped comes back CLOSED and whole, or is refused and leaves nothing (I13, I21-I23)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed, opened, revoke
from conftest import Start
from restored import CLOSED, dump_names, exported, forest, play, ready, restore, restored, until
from roost_server import Api, refused

from roost._core import tenant_uid
from roost.v1 import trajectory_service_pb2 as pb
from roost.v1 import types_pb2 as types
from roost.workload import transcripts

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "airline-trajectories.jsonl"
DAY = 86_400
INVALID = grpc.StatusCode.INVALID_ARGUMENT
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "dumps"
    made.mkdir()
    return made


def gone_stale(server: Any, api: Api, count: int) -> None:
    """All there is goes stale and is dumped."""
    server.clock.skip(10)  # leases run out: no tree goes stale while a turn runs in it
    until(lambda: not api.stats().gauges["turns_running"])
    server.clock.skip(DAY)
    until(lambda: len(api.list_all(state=CLOSED, page_size=1000)) == count)


def reasons(results: list[Any]) -> list[str]:
    return [result.refusal.reason for result in results]


def test_a_restored_forest_exports_the_same_bytes_and_goes_on(start: Start, place: Path, tmp_path: Path) -> None:
    flags = ("--dump-target", str(place))
    first = start(*flags, data_dir=tmp_path / "first", clocked=True)
    with first.api() as api:
        names = list(forest(api, 3))
        gone_stale(first, api, len(names))
        before, order = exported(api), ready(api)
        receipts = {name: api.get(name).receipt for name in names}
        assert api.history("t0-a")[-1].status == types.RECORD_STATUS_ABORTED
    second = start(*flags, data_dir=tmp_path / "second", clocked=True)
    with second.api() as api:
        play(api, "elsewhere", [b"x"] * 40)  # its journal has other sequences
        api.close("elsewhere")
        until(lambda: api.get("elsewhere").state == CLOSED)
        # Children first: the order of the names is not that of their sessions.
        mine = sorted((receipts[name].dump_name for name in names), reverse=True)
        sessions = restored(api, mine)
        assert [session.receipt.dump_name for session in sessions] == mine
        assert {session.state for session in sessions} == {CLOSED}
        assert exported(api, session_ids=sorted(names, key=lambda n: api.get(n).uid)) == before
        assert [one for one in ready(api) if one in set(order)] != []
        assert sorted(one for one in ready(api) if one in set(order)) == sorted(order)
        assert {name: api.get(name).receipt for name in names} == receipts
        # Again, after a restart.
        second.terminate()
    second.start()
    with second.api() as api:
        assert exported(api, session_ids=sorted(names, key=lambda n: api.get(n).uid)) == before
        # The tree that one sweep took down comes back whole, and its turns go on where they were.
        assert api.reopen("t0-root").reopened == 4
        grant = api.begin("t0-a").grant
        assert grant.turn == api.get("t0-a").turn_count + 1
        api.commit("t0-a", grant.lease, b"more")
        assert api.history("t0-a")[-1].record.content == b"more"
        # Closed once more it is dumped under its next number.
        receipt = api.close("t0-root").receipt
        assert receipt.dump_name == receipts["t0-root"].dump_name.removesuffix("-1") + "-2"
        until(lambda: api.get("t0-root").state == CLOSED)


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")
def test_the_recorded_sessions_dumped_in_mid_turn_are_restored_to_the_byte(
    start: Start, place: Path, tmp_path: Path
) -> None:
    flags = ("--dump-target", str(place))
    first = start(*flags, data_dir=tmp_path / "first", clocked=True)
    conversations = transcripts.read(RECORDED)
    with first.api() as api:
        for number, conversation in enumerate(conversations):
            name = conversation.session
            left = len(conversation.turns) // 2 if number % 3 else len(conversation.turns)
            play(api, name, conversation.turns[:left])
            api.turn(name, b"last")
            api.reward(name, conversation.reward)
            if number % 3 == 1:
                api.abort(name, api.begin(name).grant.lease, conversation.turns[left][:100])
            elif number % 3 == 2:
                api.begin(name, lease=5)
        gone_stale(first, api, len(conversations))
        before, order = exported(api), ready(api)
    names = dump_names(place)
    assert len(names) == len(conversations) >= 40
    second = start(*flags, data_dir=tmp_path / "second", clocked=True)
    with second.api() as api:
        for at in range(0, len(names), 100):
            restored(api, names[at : at + 100])
        assert exported(api) == before
        assert sorted(ready(api)) == sorted(order)
        assert api.stats().counters["sessions_restored"] == len(names)


def dumped(start: Start, place: Path, where: Path) -> dict[str, str]:
    """The names of the dumps of one small tree, by session."""
    server = start("--dump-target", str(place), data_dir=where)
    with server.api() as api:
        play(api, "root", [b"a", b"b"])
        play(api, "child", [b"a"], parent_session_id="root")
        api.close("root")
        until(lambda: {api.get(name).state for name in ("root", "child")} == {CLOSED})
        names = {name: api.get(name).receipt.dump_name for name in ("root", "child")}
    server.terminate()
    return names


def test_i21_the_closes_of_before_are_still_known(start: Start, place: Path, tmp_path: Path) -> None:
    """Each late repeat is told of its own close, and the next close counts on from the dump's."""
    flags = ("--dump-target", str(place))
    receipts, commits = {}, {}
    with start(*flags, data_dir=tmp_path / "first").api() as api:
        api.open("root")
        for life in (1, 2, 3):
            api.open(f"child-{life}", parent_session_id="root")
            api.turn("root")
            commits[life] = {
                "lease": api.begin("root").grant.lease, "content": b"last", "then": "THEN_CLOSE",
                "request_id": f"last-{life}",
            }  # fmt: skip
            receipts[life] = api.commit("root", **commits[life]).receipt
            until(lambda: {session.state for session in api.list_all()} == {CLOSED})
            if life < 3:
                assert api.reopen("root", request_id=f"back-{life}").reopened == life + 1
        names = [api.get(name).receipt.dump_name for name in ("root", "child-1", "child-2", "child-3")]
    second = start(*flags, data_dir=tmp_path / "second")
    with second.api() as api:
        play(api, "elsewhere", [b"x"] * 20)  # its journal has other sequences
        restored(api, names)
        repeats(api, receipts, commits)
        assert api.reopen("root", request_id="back-3").reopened == 4  # what its last close took down
        api.turn("root")
        repeats(api, receipts, commits)
    second.kill()
    second.start()
    with second.api() as api:
        repeats(api, receipts, commits)
        assert api.close("root").receipt.close_number == 4
        repeats(api, receipts, commits)


def repeats(api: Api, receipts: dict[int, Any], commits: dict[int, dict[str, Any]]) -> None:
    for life, receipt in receipts.items():
        assert api.commit("root", **commits[life]).receipt == receipt
    for life in (1, 2):
        assert api.reopen("root", request_id=f"back-{life}").reopened == 0


def test_i17_a_tenants_key_restores_its_own_and_a_sessions_none(start: Start, place: Path, tmp_path: Path) -> None:
    flags, env = ("--dump-target", str(place)), {"ROOST_ADMIN_KEY": ADMIN}
    first = start(*flags, data_dir=tmp_path / "first", **env)
    names = {}
    for tenant in ("one", "two"):
        with keyed(first, ADMIN, tenant) as api:
            api.open("s")
            api.turn("s", tenant.encode())
            api.close("s")
            until(lambda: api.get("s").state == CLOSED)
            names[tenant] = api.get("s").receipt.dump_name
    second = start(*flags, data_dir=tmp_path / "second", **env)
    key = create(second, "one")
    with keyed(second, key.key) as api:
        session_key = opened(api, "agent")
        assert reasons(restore(api, [names["two"], names["one"]])) == ["DUMP_NOT_FOUND", ""]
        assert reasons(restore(api, [names["one"]])) == ["SESSION_EXISTS"]
        assert [record.record.content for record in api.history("s")] == [b"one"]
    for other in (session_key, None):
        code, reason = (DENIED, "KEY_SCOPE") if other else (UNAUTHENTICATED, "KEY_INVALID")
        with keyed(second, other) as api, refused(code, reason):
            restore(api, [names["one"]])
    with keyed(second, ADMIN) as api:  # it acts for one tenant at a time
        assert reasons(restore(api, [names["two"]])) == ["DUMP_NOT_FOUND"]
    with keyed(second, ADMIN, "two") as api:
        assert reasons(restore(api, [names["one"], names["two"]])) == ["DUMP_NOT_FOUND", ""]
        assert [record.record.content for record in api.history("s")] == [b"two"]
    revoke(second, key.api_key.key_id)
    with keyed(second, key.key) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        restore(api, [names["one"]])


def test_i17_keys_of_a_restored_session_are_of_lives_that_are_over(start: Start, place: Path, tmp_path: Path) -> None:
    """Also where the server's secret came along with the dumps."""
    flags, env = ("--dump-target", str(place)), {"ROOST_ADMIN_KEY": ADMIN}
    first = start(*flags, data_dir=tmp_path / "first", **env)
    with keyed(first, ADMIN) as api:
        key = opened(api, "s")
        api.turn("s")
        receipt = api.close("s").receipt
        until(lambda: api.get("s").state == CLOSED)
    second = start(*flags, data_dir=tmp_path / "second", **env)
    second.terminate()
    (tmp_path / "second" / "roost.secret").write_bytes((tmp_path / "first" / "roost.secret").read_bytes())
    second.start()
    with keyed(second, key) as agent, refused(UNAUTHENTICATED, "KEY_INVALID"):
        agent.get("s")
    with keyed(second, ADMIN) as api:
        restored(api, [receipt.dump_name])
        for again in (False, True):
            with keyed(second, key) as agent:
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED"):
                    agent.get("s")
                assert agent.close("s").receipt == receipt
            if not again:
                assert api.reopen("s").reopened == 1
        assert api.get("s").state == types.SESSION_STATE_OPEN


def test_who_follows_an_export_is_given_what_comes_back(start: Start, place: Path, tmp_path: Path) -> None:
    names = dumped(start, place, tmp_path / "first")
    with start("--dump-target", str(place), data_dir=tmp_path / "second").api() as api:
        follow = pb.ExportTrajectoriesRequest(follow=True, limit=1)
        parts = api.trajectories.ExportTrajectories(follow, timeout=30)
        restored(api, [names["root"]])
        found = [part.trajectory for part in parts if part.HasField("trajectory")]
        assert [(one.session_id, one.state) for one in found] == [("root", pb.TRAJECTORY_STATE_READY)]
        assert not api.ack(found[0].trajectory_id)[0].repeated  # it came back unacknowledged


def test_i21_the_same_request_restores_once(start: Start, place: Path, tmp_path: Path) -> None:
    names = dumped(start, place, tmp_path / "first")
    both = [names["root"], names["child"]]
    second = start("--dump-target", str(place), data_dir=tmp_path / "second")
    with second.api() as api:
        assert [result.repeated for result in restore(api, both, "again")] == [False, False]
        assert [result.repeated for result in restore(api, both, "again")] == [True, True]
        assert reasons(restore(api, both)) == ["SESSION_EXISTS"] * 2
        assert reasons(restore(api, both[:1], "again")) == ["REQUEST_MISMATCH"]
    second.terminate()
    second.start()
    with second.api() as api:
        api.reopen("root")
        api.turn("root")
        repeat = restore(api, both, "again")
        assert [result.repeated for result in repeat] == [True, True]
        assert repeat[0].session.state == types.SESSION_STATE_OPEN  # as it is now


def test_i13_what_is_known_here_is_refused_and_stays_as_it_is(start: Start, place: Path, tmp_path: Path) -> None:
    names = dumped(start, place, tmp_path / "first")
    with start("--dump-target", str(place), data_dir=tmp_path / "second").api() as api:
        api.open("root")  # another session of its id
        api.turn("root", b"mine")
        results = restore(api, [names["root"], names["child"]])
        assert reasons(results) == ["SESSION_EXISTS", "PARENT_NOT_FOUND"]
        assert [record.record.content for record in api.history("root")] == [b"mine"]
        assert [session.session_id for session in api.list_all()] == ["root"]
    first = start("--dump-target", str(place), data_dir=tmp_path / "first")
    with first.api() as api:
        assert reasons(restore(api, [names["child"]])) == ["SESSION_EXISTS"]
        assert api.get("child").state == CLOSED


def test_i22_a_dump_that_is_not_whole_changes_nothing(start: Start, place: Path, tmp_path: Path) -> None:
    names = dumped(start, place, tmp_path / "first")
    part = place / names["root"] / "part-00000.jsonl.zst"
    manifest = place / names["root"] / "manifest.json"
    whole, told = part.read_bytes(), manifest.read_bytes()
    stranger = names["root"].replace(tenant_uid("default"), tenant_uid("somebody else"))
    absent = names["root"].removesuffix("1") + "2"
    with start("--dump-target", str(place), data_dir=tmp_path / "second").api() as api:
        part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert reasons(restore(api, [names["root"], names["child"]])) == ["DUMP_DAMAGED", "PARENT_NOT_FOUND"]
        part.unlink()
        assert reasons(restore(api, [names["root"]])) == ["DUMP_DAMAGED"]
        part.write_bytes(whole)
        manifest.write_bytes(told.replace(b'"schema": 1', b'"schema": 99'))
        assert reasons(restore(api, [names["root"]])) == ["DUMP_NEWER"]
        manifest.write_bytes(told)
        assert reasons(restore(api, [absent, stranger])) == ["DUMP_NOT_FOUND"] * 2
        assert api.list_all() == []
        assert api.stats().counters["sessions_restored"] == 0
        restored(api, [names["child"], names["root"]])


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["../etc/passwd"],
        ["bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000"],
        ["bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-1"] * 2,
        [f"bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-{n}" for n in range(1, 102)],
    ],
)
def test_names_that_are_none_are_refused(api: Api, names: list[str]) -> None:
    with refused(INVALID, "INVALID_FIELD"):
        restore(api, names)


def test_without_a_target_there_is_nothing_to_restore_from(api: Api) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_DUMP_TARGET"):
        restore(api, ["bedbfa66a4839fbb3c6911e1a058a34c/0198f6a0-0000-7000-8000-000000000000-1"])


def test_a_target_that_cannot_be_read_is_said(start: Start, place: Path, tmp_path: Path) -> None:
    names = dumped(start, place, tmp_path / "first")
    place.rename(tmp_path / "elsewhere")
    with start("--dump-target", str(place), data_dir=tmp_path / "second").api() as api:
        (result,) = restore(api, [names["root"]])
        assert result.refusal.reason == "DUMP_UNREADABLE"
        assert result.refusal.metadata["detail"] == "unreachable"
        (tmp_path / "elsewhere").rename(place)
        restored(api, [names["root"]])
