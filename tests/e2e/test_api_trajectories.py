"""TrajectoryService over a real socket: rewards, finishing, exports in both styles, following, acknowledging."""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.client._convert import pack_u32
from roost.v1 import trajectory_service_pb2 as tpb
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

FAILED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
READY, ALL = tpb.TRAJECTORY_SELECTION_READY, tpb.TRAJECTORY_SELECTION_ALL
CONCAT = tpb.EXPORT_STYLE_CONCAT


def played(api: Api, turns_played: int = 1, **options: Any) -> str:
    """A session with this many turns of two tokens each."""
    name: str = api.open(**options).session.session_id
    for turn in range(turns_played):
        record = record_input(b"turn %d" % (turn + 1), tokens=2, offset=2 * turn)
        api.commit(name, api.begin(name).grant.lease, record=record)
    return name


def rewards(api: Api, name: str) -> list[float | None]:
    return [r.reward if r.HasField("reward") else None for r in api.history(name)]


def numbers(found: list[Any]) -> list[tuple[str, int]]:
    return [(one.trajectory.session_id, one.trajectory.number) for one in found]


# -- rewards


def test_a_reward_is_of_the_last_turn_or_of_a_named_one_and_the_latest_counts(api: Api) -> None:
    name = played(api, 3)
    uid = api.get(name).uid
    last = api.reward(name, 1.0)
    assert (last.turn, last.trajectory_id, last.finished, last.repeated) == (3, f"{uid}-1", False, False)
    assert not last.HasField("finish_time")
    assert api.reward(name, 0.25, turn=1).turn == 1
    api.reward(name, -2.5, turn=3)
    assert rewards(api, name) == [0.25, None, -2.5]


def test_i21_repeating_a_reward_has_one_effect(api: Api) -> None:
    name = played(api)
    request_id = fresh("r")
    assert not api.reward(name, 1.0, request_id=request_id).repeated
    api.turn(name)
    again = api.reward(name, 1.0, request_id=request_id)
    assert (again.turn, again.repeated) == (1, True)
    assert rewards(api, name) == [1.0, None]
    with refused(INVALID, "REQUEST_MISMATCH"):
        api.reward(name, 2.0, request_id=request_id)
    assert rewards(api, name) == [1.0, None]


def test_rewards_that_are_refused_change_nothing(api: Api) -> None:
    name = api.open().session.session_id
    with refused(FAILED, "TRAJECTORY_EMPTY"):
        api.reward(name, 1.0)
    api.turn(name)
    with refused(NOT_FOUND, "TURN_NOT_FOUND") as why:
        api.reward(name, 1.0, turn=2)
    assert why.metadata["turn"] == "2"
    for value in (math.nan, math.inf):
        with refused(INVALID, "INVALID_FIELD") as why:
            api.reward(name, value)
        assert why.metadata["field"] == "reward"
    with refused(INVALID, "INVALID_FIELD") as why:
        api.reward(name, 1.0, finish_after=31 * 86_400)
    assert why.metadata["field"] == "finish_after"
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        api.reward(fresh(), 1.0)
    api.finish(name)
    with refused(FAILED, "TRAJECTORY_EMPTY"):
        api.reward(name, 1.0)
    with refused(FAILED, "TRAJECTORY_FINISHED"):
        api.reward(name, 1.0, turn=1)
    api.close(name)
    with refused(FAILED, "SESSION_CLOSED"):
        api.reward(name, 1.0, turn=1)
    assert rewards(api, name) == [None]


def test_what_was_said_last_may_be_said_again_after_the_finish(api: Api) -> None:
    name = played(api)
    done = api.reward(name, 1.0, finish_after=0)
    assert done.finished
    again = api.reward(name, 1.0, turn=1)
    assert (again.trajectory_id, again.finished, again.repeated) == (done.trajectory_id, True, True)
    with refused(FAILED, "TRAJECTORY_FINISHED"):
        api.reward(name, 0.5, turn=1)


def test_a_rewound_turn_keeps_its_reward_and_the_new_one_has_none(api: Api) -> None:
    name = played(api, 2)
    api.reward(name, 1.0)
    api.commit(name, api.begin(name).grant.lease, base_turn=1)
    assert rewards(api, name) == [None, 1.0, None]
    api.reward(name, 0.5)
    assert rewards(api, name) == [None, 1.0, 0.5]
    api.finish(name)
    (one,) = api.exported(session_ids=[name])
    assert [r.discounted_reward for r in one.records] == [0.5, 0.5]


# -- finishing


def test_a_finished_trajectory_has_an_id_and_the_next_one_starts(api: Api) -> None:
    name = played(api, 2)
    uid = api.get(name).uid
    first = api.finish(name, reward=0.5).trajectory
    assert (first.trajectory_id, first.session_id, first.number) == (f"{uid}-1", name, 1)
    assert (first.state, first.first_turn, first.turn_count) == (tpb.TRAJECTORY_STATE_READY, 1, 2)
    assert first.ready_sequence > 0
    session = api.get(name)
    assert (session.trajectory, session.trajectory_first_turn, session.turn_count) == (2, 3, 2)
    api.turn(name)
    second = api.finish(name).trajectory
    assert (second.number, second.first_turn, second.turn_count) == (2, 3, 1)
    assert second.ready_sequence > first.ready_sequence
    assert [r.trajectory for r in api.history(name)] == [1, 1, 2]
    assert rewards(api, name) == [None, 0.5, None]


def test_i21_the_repeat_of_a_finish_is_the_same_trajectory(api: Api) -> None:
    name = played(api)
    request_id = fresh("f")
    first = api.finish(name, request_id=request_id, reward=1.0)
    api.turn(name)
    again = api.finish(name, request_id=request_id, reward=1.0)
    assert (again.trajectory, again.repeated) == (first.trajectory, True)
    with refused(INVALID, "REQUEST_MISMATCH"):
        api.finish(name, request_id=request_id, reward=2.0)
    assert api.get(name).trajectory == 2
    api.close(name)
    assert api.finish(name, request_id=request_id, reward=1.0).repeated


def test_i22_finishes_that_are_refused_change_nothing(api: Api) -> None:
    name = api.open().session.session_id
    with refused(FAILED, "TRAJECTORY_EMPTY"):
        api.finish(name)
    lease = api.begin(name).grant.lease
    with refused(FAILED, "TURN_IN_PROGRESS"):
        api.finish(name)
    with refused(INVALID, "INVALID_FIELD"):
        api.finish(name, reward=math.nan)
    api.commit(name, lease)
    assert api.get(name).trajectory == 1
    api.close(name)
    with refused(FAILED, "SESSION_CLOSED"):
        api.finish(name)


def test_i8_a_provisional_is_aborted_by_the_finish_and_its_lease_is_lost(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = played(api)
        lease = api.begin(name, lease=5).grant.lease
        server.clock.skip(6)
        assert api.get(name).provisional_turn == 2
        assert api.finish(name).trajectory.turn_count == 1
        with refused(FAILED, "LEASE_LOST"):
            api.commit(name, lease)
        assert [r.status for r in api.history(name)] == [types.RECORD_STATUS_COMMITTED, types.RECORD_STATUS_ABORTED]
        # Another try at the turn belongs to the next trajectory.
        api.turn(name)
        assert [(r.turn, r.trajectory) for r in api.history(name)] == [(1, 1), (2, 1), (2, 2)]


# -- finishing by itself


def test_a_delayed_finish_comes_after_the_latest_reward(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = played(api)
        told = api.reward(name, 1.0, finish_after=60)
        assert not told.finished
        assert told.finish_time.seconds > 0
        assert api.get(name).finish_time == told.finish_time
        server.clock.skip(40)
        later = api.reward(name, 0.5, finish_after=60)
        assert later.finish_time.seconds > told.finish_time.seconds
        server.clock.skip(40)
        assert api.get(name).trajectory == 1
        server.clock.skip(21)
        finished(api, name)
        assert rewards(api, name) == [0.5]
        assert numbers(api.exported(session_ids=[name])) == [(name, 1)]


def finished(api: Api, name: str, number: int = 1) -> None:
    """The server finishes it by itself, soon after it is due."""
    for _ in range(10_000):
        if api.get(name).trajectory == number + 1:
            return
    raise AssertionError("it was not finished")


def test_a_delayed_finish_waits_for_the_turn_that_runs(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = played(api)
        lease = api.begin(name, lease=3600).grant.lease
        api.reward(name, 1.0, turn=1, finish_after=10)
        server.clock.skip(11)
        assert api.get(name).trajectory == 1
        api.commit(name, lease)
        session = api.get(name)
        assert (session.trajectory, session.trajectory_first_turn) == (2, 3)
        (one,) = api.exported(session_ids=[name])
        assert one.trajectory.turn_count == 2


def test_a_turn_that_begins_after_the_due_time_is_of_the_next_trajectory(start: Start) -> None:
    server = start("--max-resident", "1", clocked=True)
    with server.api() as api:
        name = played(api)
        api.reward(name, 1.0, finish_after=10)
        api.turn(api.open().session.session_id)
        server.clock.skip(11)
        api.turn(name)
        assert [r.trajectory for r in api.history(name)] == [1, 2]


@pytest.mark.parametrize("killed", [False, True])
def test_i5_a_delayed_finish_survives_a_restart(start: Start, killed: bool) -> None:
    server = start(clocked=True)
    with server.api() as api:
        names = [played(api) for _ in range(3)]
        for name in names:
            api.reward(name, 1.0, finish_after=60)
    if killed:
        server.kill()
    else:
        server.terminate()
    # It comes due while no server runs.
    server.clock.skipped_ms += 61_000
    server.start()
    with server.api() as api:
        for name in names:
            finished(api, name)
        assert sorted(numbers(api.exported())) == sorted((name, 1) for name in names)


def test_a_close_finishes_what_was_still_to_finish(api: Api) -> None:
    root = played(api)
    child = played(api, parent_session_id=root, name="child")
    api.reward(root, 1.0, finish_after=3600)
    api.reward(child, 0.5, finish_after=3600)
    grown = api.open(parent_session_id=root, name="other").session.session_id
    api.turn(grown)
    api.close(root)
    assert sorted(numbers(api.exported(root_session_id=root))) == sorted([(root, 1), (child, 1)])
    # That one was never to finish: its tail stays as it is.
    (tail,) = api.exported(session_ids=[grown], selection=ALL)
    assert tail.trajectory.state == tpb.TRAJECTORY_STATE_ACTIVE


def test_the_delay_can_be_the_servers(start: Start) -> None:
    server = start(clocked=True, ROOST_REWARD_FINISH_DELAY_MS="30000")
    with server.api() as api:
        name = played(api)
        assert api.reward(name, 1.0).HasField("finish_time")
        server.clock.skip(31)
        finished(api, name)


# -- exports


def test_an_export_gives_what_is_ready_in_the_order_it_became_so(api: Api) -> None:
    one, two = played(api, 2), played(api)
    api.finish(two)
    api.finish(one)
    api.turn(one)
    found = api.exported(session_ids=[one, two])
    assert numbers(found) == [(two, 1), (one, 1)]
    assert [r.record.content for r in found[1].records] == [b"turn 1", b"turn 2"]
    # It removes nothing.
    assert numbers(api.exported(session_ids=[one, two])) == numbers(found)
    everything = api.exported(session_ids=[one, two], selection=ALL)
    assert numbers(everything) == [(one, 1), (one, 2), (two, 1)]
    assert everything[1].trajectory.state == tpb.TRAJECTORY_STATE_ACTIVE


def test_what_is_acknowledged_is_left_out_from_then_on(api: Api) -> None:
    name = played(api)
    ids = [api.finish(name).trajectory.trajectory_id]
    api.turn(name)
    ids.append(api.finish(name).trajectory.trajectory_id)
    unknown = f"{api.get(name).uid}-9"
    results = api.ack(ids[0], unknown, "no such form")
    assert [r.refusal.reason for r in results] == ["", "TRAJECTORY_NOT_FOUND", "INVALID_FIELD"]
    assert [r.repeated for r in api.ack(*ids)] == [True, False]
    assert api.exported(session_ids=[name]) == []
    assert len(api.exported(session_ids=[name], selection=ALL)) == 2
    named = api.exported(trajectory_ids=[ids[1], ids[0]])
    assert [one.trajectory_id for one in named] == [ids[1], ids[0]]
    assert {one.trajectory.state for one in named} == {tpb.TRAJECTORY_STATE_ACKNOWLEDGED}
    with refused(NOT_FOUND, "TRAJECTORY_NOT_FOUND"):
        api.exported(trajectory_ids=[ids[0], unknown])


def test_a_closed_session_can_be_exported_and_acknowledged(api: Api) -> None:
    name = played(api)
    done = api.finish(name).trajectory
    api.close(name)
    (one,) = api.exported(session_ids=[name])
    assert one.session.state == types.SESSION_STATE_CLOSED
    assert not api.ack(done.trajectory_id)[0].HasField("refusal")
    assert api.exported(session_ids=[name]) == []


def test_i5_acknowledgements_and_rewards_survive_kill_9(start: Start) -> None:
    server = start()
    with server.api() as api:
        one, two = played(api), played(api)
        taken = api.finish(one, reward=1.0).trajectory.trajectory_id
        api.finish(two, reward=0.5)
        api.ack(taken)
        api.reward(played(api), 0.25)
    server.kill()
    server.start()
    with server.api() as api:
        (left,) = api.exported()
        assert (left.trajectory.session_id, left.records[0].reward) == (two, 0.5)
        assert api.ack(taken)[0].repeated


def test_after_sequence_and_limit_take_an_export_up_where_it_ended(api: Api) -> None:
    names = [played(api) for _ in range(5)]
    sequences = [api.finish(name).trajectory.ready_sequence for name in names]
    first = api.exported(session_ids=names, limit=2)
    assert numbers(first) == [(names[0], 1), (names[1], 1)]
    rest = api.exported(session_ids=names, after_sequence=sequences[1])
    assert numbers(rest) == [(name, 1) for name in names[2:]]


def test_rewards_are_discounted_backward_once_and_only_in_the_export(api: Api) -> None:
    name = played(api, 4)
    api.reward(name, 1.0, turn=2)
    api.finish(name, reward=8.0)
    (one,) = api.exported(session_ids=[name], discount=0.5)
    assert [r.discounted_reward for r in one.records] == [1.0 / 2 + 8.0 / 8, 1.0 + 8.0 / 4, 8.0 / 2, 8.0]
    (plain,) = api.exported(session_ids=[name])
    assert [r.discounted_reward for r in plain.records] == [9.0, 9.0, 8.0, 8.0]
    (none,) = api.exported(session_ids=[name], discount=0)
    assert [r.discounted_reward for r in none.records] == [0.0, 1.0, 0.0, 8.0]
    assert rewards(api, name) == [None, 1.0, None, 8.0]
    for bad in (-0.1, 1.1, math.nan):
        with refused(INVALID, "INVALID_FIELD"):
            api.exported(session_ids=[name], discount=bad)


def test_what_is_not_on_the_line_is_left_out_unless_asked_for_and_never_trained_on(api: Api) -> None:
    name = api.open().session.session_id

    def spoke(content: bytes, offset: int) -> Any:
        record = record_input(content, tokens=2, offset=offset)
        record.tokens.loss_mask = b"\1\1"
        return record

    api.abort(name, api.begin(name).grant.lease, record=spoke(b"superseded by a commit", 0))
    api.commit(name, api.begin(name).grant.lease, record=spoke(b"one", 0))
    api.abort(name, api.begin(name).grant.lease, record=spoke(b"given up", 2), final=True)
    api.commit(name, api.begin(name).grant.lease, record=spoke(b"two", 2))
    api.abort(name, api.begin(name).grant.lease, record=spoke(b"tail", 4))
    (active,) = api.exported(session_ids=[name], selection=ALL)
    assert [r.record.content for r in active.records] == [b"one", b"two"]
    api.finish(name)

    def contents(**fields: Any) -> list[bytes]:
        (one,) = api.exported(session_ids=[name], **fields)
        for record in one.records:
            committed = record.status == types.RECORD_STATUS_COMMITTED
            assert record.record.tokens.loss_mask == (b"\1\1" if committed else b"\0\0")
            assert record.HasField("discounted_reward") == committed
        return [r.record.content for r in one.records]

    assert contents() == [b"one", b"two", b"tail"]
    assert contents(include_provisional=True) == [b"one", b"given up", b"two", b"tail"]
    whole = contents(include_provisional=True, include_superseded=True)
    assert whole == [b"superseded by a commit", b"one", b"given up", b"two", b"tail"]


def test_what_a_trajectory_builds_on_comes_with_it(api: Api) -> None:
    name = played(api, 2)
    api.finish(name)
    api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=1, offset=3), max_trim=1)
    api.finish(name)
    first, second = api.exported(session_ids=[name])
    assert list(first.context) == []
    assert list(second.context) == [0, 1, 2, 3]
    assert second.records[0].record.tokens.offset == 3
    assert [list(row.tokens) for row in second.rows()] == [[0, 1, 2, 3]]


def span(offset: int, ids: list[int], version: int = -2, **fields: Any) -> Any:
    tokens = types.TokenSpan(offset=offset, token_ids=pack_u32(ids), **fields)
    if version > -2:
        tokens.weight_versions.add(version=version, count=len(ids))
    return types.RecordInput(tokens=tokens)


def test_rows_are_segments(api: Api) -> None:
    """One row from a cut to the next; what a row repeats of the one before it is not trained on again."""
    name = api.open().session.session_id

    def commit(record: Any, **fields: Any) -> None:
        api.commit(name, api.begin(name).grant.lease, record=record, **fields)

    commit(span(0, [1, 2, 3], 7, loss_mask=b"\0\1\1", logprobs=struct.pack("<3f", 0, -1, -2)))
    commit(span(3, [4, 5], 8))
    commit(span(4, [6], 8), max_trim=1)
    commit(types.RecordInput(content=b"no tokens"))
    commit(span(2, [7, 8], 9), new_segment=True)
    api.abort(name, api.begin(name).grant.lease, record=span(4, [9, 10]))
    api.reward(name, 1.0, turn=2)
    api.finish(name, reward=4.0)
    (one,) = api.exported(session_ids=[name], style=CONCAT, discount=0.5)
    assert one.records == []
    rows = one.rows()
    assert [(list(r.tokens), list(r.loss_mask), list(r.versions)) for r in rows] == [
        ([1, 2, 3, 4, 5], [0, 1, 1, 1, 1], [7, 7, 7, 8, 8]),
        ([1, 2, 3, 4, 6], [0, 0, 0, 0, 1], [-1, -1, -1, -1, 8]),
        ([1, 2, 7, 8, 9, 10], [0, 0, 1, 1, 0, 0], [-1, -1, 9, 9, -1, -1]),
    ]
    assert [list(r.logprobs)[:3] for r in rows[:2]] == [[0, -1, -2], [0, 0, 0]]
    assert [(r.first_turn, r.last_turn, r.reward, r.aborted) for r in rows] == [
        (1, 2, 1.0 + 4.0 / 8, False),
        (3, 4, 4.0 / 2, False),
        (5, 6, 4.0, True),
    ]
    (turns_of_it,) = api.exported(session_ids=[name], discount=0.5)
    assert [list(r.tokens) for r in turns_of_it.rows()] == [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 6],
        [1, 2, 3, 4, 6],
        [1, 2, 7, 8],
        [1, 2, 7, 8, 9, 10],
    ]
    trained = [sum(row.loss_mask) for row in turns_of_it.rows()]
    assert (sum(trained), trained[-1]) == (sum(sum(row.loss_mask) for row in rows), 0)


def test_what_came_without_a_mask_is_exported_with_one(api: Api) -> None:
    name = api.open().session.session_id
    for at, usage in ((0, None), (4, 3), (8, 9)):
        record = span(at, [1, 2, 3, 4])
        if usage is not None:
            record.usage.completion_tokens = usage
        api.commit(name, api.begin(name).grant.lease, record=record)
    api.abort(name, api.begin(name).grant.lease, record=span(12, [5, 6]))
    api.finish(name)
    (one,) = api.exported(session_ids=[name])
    masks = [b"\1\1\1\1", b"\0\1\1\1", b"\1\1\1\1", b"\0\0"]
    assert [r.record.tokens.loss_mask for r in one.records] == masks
    (row,) = api.exported(session_ids=[name], style=CONCAT)[0].rows()
    assert bytes(row.loss_mask) == b"".join(masks)
    # The history shows what was stored.
    assert {r.record.tokens.loss_mask for r in api.history(name)} == {b""}


def test_many_cuts_of_a_long_context_come_one_row_at_a_time(api: Api) -> None:
    """Each row repeats its whole context: what is made of a page of records is not made at once."""
    name = api.open().session.session_id
    length = 200_000
    api.commit(name, api.begin(name).grant.lease, record=span(0, list(range(length))))
    api.finish(name)
    for n in range(40):
        api.commit(name, api.begin(name).grant.lease, record=span(length - 1 + n, [n, n]), max_trim=1)
    api.finish(name)
    whole = api.exported(session_ids=[name], style=CONCAT)[1].rows()
    assert [len(row.tokens) for row in whole] == [length + 1 + n for n in range(40)]
    assert [sum(row.loss_mask) for row in whole] == [2] * 40


def test_an_export_says_what_it_cannot_do(api: Api) -> None:
    name = played(api)
    for fields, field in (
        ({"follow": True, "selection": ALL}, "follow"),
        ({"after_sequence": 1, "selection": ALL}, "after_sequence"),
        ({"style": CONCAT, "omit_payload": True}, "omit_payload"),
        ({"style": 9}, "style"),
        ({"selection": 9}, "selection"),
        ({"trajectory_ids": ["x"], "session_ids": [name]}, "session_ids"),
        ({"trajectory_ids": ["x"]}, "trajectory_ids"),
        ({"root_session_id": name, "session_ids": [name]}, "root_session_id"),
        ({"session_ids": [name] * 1001}, "session_ids"),
        ({"after_sequence": 1 << 63}, "after_sequence"),
    ):
        with refused(INVALID, "INVALID_FIELD") as why:
            api.exported(**fields)
        assert why.metadata["field"] == field, fields
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        api.exported(session_ids=[fresh()])


def test_a_trajectory_is_exported_as_it_was_when_it_was_reached(api: Api) -> None:
    """A stream that is read slowly shows one moment, not what happened while it was read."""
    name = api.open().session.session_id
    size = 1_000_000
    for turn in range(8):
        api.commit(name, api.begin(name).grant.lease, bytes([turn]) * size)
    request = tpb.ExportTrajectoriesRequest(session_ids=[name], selection=ALL)
    stream = api.trajectories.ExportTrajectories(request, timeout=DEADLINE)
    parts = [next(stream)]
    api.commit(name, api.begin(name).grant.lease, b"other", base_turn=1)
    api.reward(name, 1.0)
    parts += list(stream)
    assert len(parts) > 1
    records = [r for part in parts for r in part.records]
    assert [(r.turn, r.record.content[:1], r.status) for r in records] == [
        (turn + 1, bytes([turn]), types.RECORD_STATUS_COMMITTED) for turn in range(8)
    ]
    assert {r.discounted_reward for r in records} == {0.0}


# -- following


def test_a_follower_is_given_each_trajectory_when_it_is_ready(start: Start) -> None:
    server = start()
    with server.api() as api, server.api() as other:
        ahead = played(api)
        api.finish(ahead)
        stream = other.trajectories.ExportTrajectories(tpb.ExportTrajectoriesRequest(follow=True), timeout=DEADLINE)
        assert next(stream).session_id == ahead
        for how in ("finish", "reward", "close"):
            name = played(api)
            if how == "finish":
                api.finish(name)
            elif how == "reward":
                api.reward(name, 1.0, finish_after=0)
            else:
                api.reward(name, 1.0, finish_after=3600)
                api.close(name)
            assert next(stream).session_id == name
        limited = tpb.ExportTrajectoriesRequest(follow=True, limit=5)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(lambda: list(other.trajectories.ExportTrajectories(limited, timeout=DEADLINE)))
            name = played(api)
            api.finish(name)
            assert [part.session_id for part in waiting.result(DEADLINE)][-1] == name
            assert next(stream).session_id == name
        server.process.terminate()
        with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            next(stream)
        assert server.wait() == 0


def test_followers_that_leave_leave_nothing(start: Start) -> None:
    with start().api() as api:
        for _ in range(20):
            request = tpb.ExportTrajectoriesRequest(follow=True)
            stream = api.trajectories.ExportTrajectories(request, timeout=DEADLINE)
            stream.cancel()
        name = played(api)
        api.finish(name)
        assert numbers(api.exported()) == [(name, 1)]
        while api.stats().gauges["rpcs_running"] > 1:
            pass


# -- what a turn's end does to its trajectory


def test_a_commit_may_end_the_session_and_its_trajectory(api: Api) -> None:
    name = played(api)
    api.reward(name, 1.0, finish_after=3600)
    lease = api.begin(name).grant.lease
    api.commit(name, lease, b"last", then=turns.THEN_CLOSE)
    (one,) = api.exported(session_ids=[name])
    assert [r.record.content for r in one.records] == [b"turn 1", b"last"]
