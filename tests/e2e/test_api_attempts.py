"""TurnService over a real socket, where turns go wrong: given up, taken over, rewound, interrupted, raced."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from conftest import Start
from roost_server import DEADLINE, Api, fresh, record_input, refusal, refused

from roost.client._convert import pack_u32, unpack_u32
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

COMMITTED, PROVISIONAL = types.RECORD_STATUS_COMMITTED, types.RECORD_STATUS_PROVISIONAL
ABORTED, SUPERSEDED = types.RECORD_STATUS_ABORTED, types.RECORD_STATUS_SUPERSEDED
TAKEOVER = turns.IF_RUNNING_TAKEOVER
FAILED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def statuses(api: Api, name: str) -> list[tuple[int, int, int]]:
    return [(r.turn, r.attempt, r.status) for r in api.history(name)]


def grown(api: Api, name: str, *sizes: int) -> None:
    """Commit a turn of as many tokens as each of these says."""
    length = 0
    for size in sizes:
        record = record_input(b"turn", tokens=size, offset=length)
        api.commit(name, api.begin(name).grant.lease, record=record, state=b"after %d" % (length + size))
        length += size


# -- giving up


def test_i8_a_final_abort_is_for_good_and_its_number_can_be_begun_again(api: Api) -> None:
    name = api.open().session.session_id
    api.abort(name, api.begin(name).grant.lease, b"half")
    lease = api.begin(name).grant.lease
    given_up = api.abort(name, lease, b"no more", final=True)
    assert (given_up.turn, given_up.attempt, given_up.status) == (1, 2, ABORTED)
    session = api.get(name)
    assert (session.provisional_turn, session.last_outcome) == (0, types.TURN_OUTCOME_FAILED)
    again = api.abort(name, lease, b"no more", final=True)
    assert (again.status, again.repeated) == (ABORTED, True)
    third = api.begin(name, want_provisional=True).grant
    assert (third.turn, third.attempt) == (1, 3)
    assert not third.HasField("provisional")
    api.commit(name, third.lease, b"whole")
    assert statuses(api, name) == [(1, 1, SUPERSEDED), (1, 2, ABORTED), (1, 3, COMMITTED)]


def test_a_repeat_of_an_abort_says_what_its_record_is_by_now(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    assert api.abort(name, lease, b"half").status == PROVISIONAL
    assert api.abort(name, lease, b"half").status == PROVISIONAL
    api.turn(name)
    assert api.abort(name, lease, b"half").status == SUPERSEDED
    other = api.begin(name).grant.lease
    api.abort(name, other, b"tail")
    api.close(name)
    told = api.abort(name, other, b"tail")
    assert (told.turn, told.attempt, told.status, told.repeated) == (2, 1, ABORTED, True)


# -- generating on


def test_i7_a_retry_starts_from_the_checkpoint_or_generates_on_from_the_partial(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 3)
    partial = record_input(b"par", tokens=2, offset=3, finish_reason="abort", labels={"k": "v"})
    partial.tokens.logprobs = struct.pack("<2f", -0.5, -0.25)
    partial.tokens.weight_versions.add(version=7, count=2)
    api.abort(name, api.begin(name).grant.lease, record=partial)
    plain = api.begin(name).grant
    assert plain.checkpoint.length == 3
    assert not plain.HasField("provisional")
    api.abort(name, plain.lease, record=partial)
    lease = api.begin(name, want_provisional=True).grant
    assert (lease.attempt, lease.checkpoint.length) == (3, 3)
    left = lease.provisional
    assert (left.turn, left.attempt, left.status, left.outcome) == (2, 2, PROVISIONAL, types.TURN_OUTCOME_ABORTED)
    assert left.record == partial
    whole = record_input(b"partial and the rest", tokens=5, offset=3)
    api.commit(name, lease.lease, record=whole)
    assert api.get(name).checkpoint_tokens == 8
    assert [s for _, _, s in statuses(api, name)] == [COMMITTED, SUPERSEDED, SUPERSEDED, COMMITTED]


def test_a_repeated_begin_and_one_that_only_asks_are_given_the_partial_too(api: Api) -> None:
    name = api.open().session.session_id
    api.abort(name, api.begin(name).grant.lease, b"par")
    asked = api.begin(name, want_provisional=True, validate_only=True).grant
    assert (asked.lease, asked.attempt, asked.provisional.record.content) == (b"", 2, b"par")
    request_id = fresh("r")
    first = api.begin(name, want_provisional=True, request_id=request_id).grant
    again = api.begin(name, want_provisional=True, request_id=request_id).grant
    assert again.lease == first.lease
    assert again.provisional == first.provisional


# -- taking over


def test_i3_a_takeover_ends_the_turn_that_runs_and_its_lease_for_good(api: Api) -> None:
    name = api.open().session.session_id
    lost = api.begin(name, owner="dead").grant
    taken = api.begin(name, if_running=TAKEOVER, owner="alive").grant
    assert (taken.turn, taken.attempt) == (1, 2)
    assert taken.fence > lost.fence
    assert api.stats().gauges["turns_running"] >= 1
    with refused(FAILED, "LEASE_LOST"):
        api.commit(name, lost.lease, b"late")
    with refused(FAILED, "LEASE_LOST"):
        api.abort(name, lost.lease, b"late")
    api.commit(name, taken.lease, b"mine")
    records = api.history(name)
    assert [(r.status, r.outcome, r.owner, r.record.content) for r in records] == [
        (SUPERSEDED, types.TURN_OUTCOME_EXPIRED, "dead", b""),
        (COMMITTED, types.TURN_OUTCOME_COMMITTED, "alive", b"mine"),
    ]


def test_a_takeover_of_nothing_is_a_begin_and_its_repeat_takes_over_nothing(api: Api) -> None:
    name = api.open().session.session_id
    request_id = fresh("r")
    first = api.begin(name, if_running=TAKEOVER, request_id=request_id).grant
    again = api.begin(name, if_running=TAKEOVER, request_id=request_id).grant
    assert again.lease == first.lease
    assert api.history(name) == []


def test_i2_a_takeover_needs_no_free_slot(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api:
        name = api.open().session.session_id
        api.begin(name)
        other = api.open().session.session_id
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS"):
            api.begin(other)
        api.begin(name, if_running=TAKEOVER)
        assert api.stats().gauges["slots_held"] == 1
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS"):
            api.begin(other)


# -- late commits


def test_a_lease_that_ran_out_is_good_for_a_commit_until_the_next_grant(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = api.open().session.session_id
        first = api.begin(name, lease=5).grant
        server.clock.skip(6)
        session = api.get(name)
        assert (session.activity, session.provisional_turn) == (types.ACTIVITY_IDLE, 1)
        assert api.stats().gauges["slots_held"] == 0
        committed = api.commit(name, first.lease, b"late but whole")
        assert (committed.turn, committed.repeated) == (1, False)
        assert statuses(api, name) == [(1, 1, SUPERSEDED), (1, 1, COMMITTED)]
        second = api.begin(name, lease=5).grant
        server.clock.skip(6)
        third = api.begin(name).grant
        with refused(FAILED, "LEASE_LOST"):
            api.commit(name, second.lease, b"too late")
        api.commit(name, third.lease)
        assert api.stats().gauges["slots_held"] == 0


def test_i22_an_expired_lease_may_abort_with_what_it_has_and_may_not_after_that(start: Start) -> None:
    server = start(clocked=True)
    with server.api() as api:
        name = api.open().session.session_id
        lease = api.begin(name, lease=5).grant.lease
        server.clock.skip(6)
        assert api.abort(name, lease, b"what there is").status == PROVISIONAL
        with refused(FAILED, "LEASE_LOST"):
            api.commit(name, lease, b"whole")
        records = api.history(name)
        assert [(r.status, r.record.content) for r in records] == [(SUPERSEDED, b""), (PROVISIONAL, b"what there is")]


# -- rewinding


def test_i4_i7_a_rewind_is_a_commit_on_an_earlier_turn(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 4, 3, 2)
    grant = api.begin(name).grant
    assert (grant.turn, grant.checkpoint.length) == (4, 9)
    with refused(FAILED, "TOKEN_PREFIX_MISMATCH") as why:
        api.commit(name, grant.lease, record=record_input(tokens=1, offset=9), base_turn=1)
    assert why.metadata["checkpoint_tokens"] == "4"
    # Until a commit is made nothing is undone.
    assert (api.get(name).turn_count, api.get(name).checkpoint_tokens) == (3, 9)
    done = api.commit(name, grant.lease, record=record_input(b"other", tokens=5, offset=4), base_turn=1)
    assert (done.turn, done.head_version) == (2, 4)
    session = api.get(name)
    assert (session.turn_count, session.head_version, session.checkpoint_tokens) == (2, 4, 9)
    records = api.history(name)
    assert [(r.turn, r.status) for r in records] == [
        (1, COMMITTED),
        (2, SUPERSEDED),
        (3, SUPERSEDED),
        (2, COMMITTED),
    ]
    assert [r.base_turn for r in records if r.HasField("base_turn")] == [1]
    assert records[-1].attempt == 2
    following = api.begin(name).grant
    assert (following.turn, following.checkpoint.state) == (3, b"after 4")
    assert tuple(unpack_u32(following.checkpoint.token_ids)) == (*range(9),)
    (line,) = api.export(session_ids=[name]).values()
    assert [(r.turn, r.record.content) for r in line] == [(1, b"turn"), (2, b"other")]


def test_what_was_known_before_a_rewind_is_not_built_on(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 4, 3)
    api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=1, offset=4), base_turn=1)
    checkpoint = api.begin(name, known_head_version=2).grant.checkpoint
    assert (checkpoint.offset, checkpoint.length) == (0, 5)


def test_a_rewind_to_nothing_and_one_to_the_head(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 4)
    to_head = api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=1, offset=4), base_turn=1)
    assert to_head.turn == 2
    assert not api.history(name)[-1].HasField("base_turn")
    to_nothing = api.commit(name, api.begin(name).grant.lease, record=record_input(tokens=2), base_turn=0)
    assert to_nothing.turn == 1
    session = api.get(name)
    assert (session.turn_count, session.checkpoint_tokens, session.head_version) == (1, 2, 3)
    assert api.begin(name).grant.checkpoint.state == b""


def test_i22_rewinds_that_are_refused_change_nothing(start: Start) -> None:
    with start(ROOST_MAX_REWIND="2").api() as api:
        name = api.open().session.session_id
        grown(api, name, 1, 1, 1, 1)
        api.finish(name)
        for _ in range(3):
            api.turn(name)
        lease = api.begin(name).grant.lease
        with refused(FAILED, "REWIND_REFUSED") as above:
            api.commit(name, lease, base_turn=8)
        assert above.metadata["turn_count"] == "7"
        with refused(FAILED, "REWIND_REFUSED") as before:
            api.commit(name, lease, base_turn=3)
        assert before.metadata["trajectory_turns"] == "4"
        with refused(FAILED, "REWIND_REFUSED") as far:
            api.commit(name, lease, base_turn=4)
        assert (far.metadata["back"], far.metadata["max_rewind"]) == ("3", "2")
        assert api.get(name).turn_count == 7
        assert api.commit(name, lease, base_turn=5).turn == 6
        assert api.get(name).turn_count == 6


def test_i21_the_repeat_of_a_rewind_is_the_same_answer(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 2, 2)
    lease = api.begin(name).grant.lease
    first = api.commit(name, lease, b"other", base_turn=1)
    again = api.commit(name, lease, b"other", base_turn=1)
    assert (again.turn, again.head_version, again.repeated) == (first.turn, first.head_version, True)
    assert api.get(name).turn_count == 2


def test_a_rewind_with_continue_goes_on_from_the_new_line(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 2, 2)
    record = record_input(tokens=3, offset=2)
    done = api.commit(name, api.begin(name).grant.lease, record=record, base_turn=1, then=turns.THEN_CONTINUE)
    assert (done.turn, done.next.turn, done.next.attempt, done.next.checkpoint.length) == (2, 3, 1, 5)
    assert api.commit(name, done.next.lease).turn == 3


# -- new segments


def test_a_new_segment_may_drop_any_number_of_tokens(api: Api) -> None:
    name = api.open().session.session_id
    grown(api, name, 100)
    lease = api.begin(name).grant.lease
    with refused(FAILED, "TOKEN_PREFIX_MISMATCH") as why:
        api.commit(name, lease, record=record_input(tokens=3, offset=5), max_trim=94)
    assert (why.metadata["trimmed"], why.metadata["max_trim"]) == ("95", "94")
    api.commit(name, lease, record=record_input(tokens=3, offset=5), new_segment=True)
    assert api.get(name).checkpoint_tokens == 8
    assert [r.new_segment for r in api.history(name)] == [False, True]


# -- interrupts


def test_i18_an_interrupt_is_asked_of_the_turn_that_runs_and_of_no_other(api: Api) -> None:
    root = api.open().session.session_id
    child = api.open(parent_session_id=root, name="child").session.session_id
    leases = {name: api.begin(name).grant.lease for name in (root, child)}
    told = api.interrupt(root)
    assert (told.previous_activity, told.turn) == (types.ACTIVITY_RUNNING, 1)
    assert api.get(root).running.interrupt_requested
    assert not api.get(child).running.interrupt_requested
    renewals = [turns.Renewal(session_id=name, lease=lease) for name, lease in leases.items()]
    results = api.turns.RenewTurns(turns.RenewTurnsRequest(renewals=renewals), timeout=DEADLINE).results
    assert [r.interrupt_requested for r in results] == [True, False]
    api.abort(root, leases[root], b"stopped")
    assert api.history(root)[0].outcome == types.TURN_OUTCOME_INTERRUPTED
    assert api.get(root).last_outcome == types.TURN_OUTCOME_INTERRUPTED


def test_a_forced_interrupt_ends_the_turn_at_once(api: Api) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    assert api.interrupt(name, force=True).turn == 1
    session = api.get(name)
    assert (session.activity, session.last_outcome) == (types.ACTIVITY_IDLE, types.TURN_OUTCOME_INTERRUPTED)
    with refused(FAILED, "LEASE_LOST"):
        api.commit(name, lease)
    assert api.begin(name).grant.attempt == 2


def test_an_interrupt_of_what_is_idle_does_nothing_in_memory_or_out_of_it(start: Start) -> None:
    with start("--max-resident", "1").api() as api:
        name = api.open().session.session_id
        api.turn(name)
        assert api.interrupt(name).previous_activity == types.ACTIVITY_IDLE
        api.turn(api.open().session.session_id)
        assert api.interrupt(name).previous_activity == types.ACTIVITY_IDLE
        with refused(FAILED, "SESSION_CLOSED"):
            api.close(name)
            api.interrupt(name)
        with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
            api.interrupt(fresh())


def test_i21_the_repeat_of_an_interrupt_does_not_meet_a_later_turn(start: Start) -> None:
    with start("--max-resident", "1").api() as api:
        name = api.open().session.session_id
        lease = api.begin(name).grant.lease
        assert api.interrupt(name, request_id="once").turn == 1
        api.abort(name, lease)
        api.turn(api.open().session.session_id)
        lease = api.begin(name).grant.lease
        again = api.interrupt(name, request_id="once")
        assert (again.turn, again.repeated) == (1, True)
        assert not api.get(name).running.interrupt_requested
        api.commit(name, lease)


def test_an_interrupt_ends_a_wait(start: Start) -> None:
    with start("--max-turns-per-tenant", "1").api() as api, ThreadPoolExecutor() as pool:
        running = api.open().session.session_id
        held = api.begin(running).grant.lease
        waits = api.open().session.session_id
        waiting = pool.submit(api.begin, waits, wait=DEADLINE)
        while api.get(waits).activity != types.ACTIVITY_WAITING:
            pass
        assert api.interrupt(waits).previous_activity == types.ACTIVITY_WAITING
        with refused(FAILED, "TURN_INTERRUPTED"):
            waiting.result(DEADLINE)
        api.commit(running, held)
        assert api.stats().gauges["slots_held"] == 0


# -- checkpoints that are too long for a grant


def streamed(api: Api, name: str, lease: bytes, **fields: Any) -> tuple[Any, list[Any]]:
    request = turns.GetCheckpointRequest(session_id=name, lease=lease, **fields)
    parts = list(api.turns.GetCheckpoint(request, timeout=DEADLINE))
    assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
    return parts[0].checkpoint, parts


def test_i7_a_long_checkpoint_is_streamed(api: Api) -> None:
    name = api.open().session.session_id
    each, count = 200_000, 600_000  # tokens: 2.4 MB in all
    ids = pack_u32(range(count))
    for at in range(0, count, each):
        part = types.TokenSpan(offset=at, token_ids=ids[at * 4 : (at + each) * 4])
        api.commit(name, api.begin(name).grant.lease, record=types.RecordInput(tokens=part), state=b"state")
    grant = api.begin(name).grant
    assert (grant.checkpoint.omitted, grant.checkpoint.length, grant.checkpoint.token_ids) == (True, count, b"")
    first, parts = streamed(api, name, grant.lease)
    assert len(parts) > 1
    assert b"".join(p.checkpoint.token_ids for p in parts) == ids
    assert first.state == b"state"
    assert {p.head_version for p in parts} == {3}
    at = 0
    for part in parts:
        assert part.checkpoint.offset == at
        at += len(part.checkpoint.token_ids) // 4
    # A stream that broke is taken up again.
    _, rest = streamed(api, name, grant.lease, from_offset=count - 10)
    assert b"".join(p.checkpoint.token_ids for p in rest) == ids[-40:]
    _, nothing = streamed(api, name, grant.lease, known_head_version=3)
    assert (nothing[0].checkpoint.offset, nothing[0].checkpoint.token_ids) == (count, b"")
    with refused(INVALID, "INVALID_FIELD"):
        streamed(api, name, grant.lease, from_offset=count + 1)
    api.commit(name, grant.lease, record=record_input(tokens=1, offset=count))
    with refused(FAILED, "LEASE_LOST"):
        streamed(api, name, grant.lease)
    known = api.begin(name, known_head_version=3).grant.checkpoint
    assert (known.omitted, known.offset, len(known.token_ids)) == (False, count, 4)


# -- what a record bears


def test_a_record_comes_back_as_it_was_given(api: Api) -> None:
    name = api.open().session.session_id
    given = types.RecordInput(
        content=b"\x00\xff",
        content_type="application/octet-stream",
        usage=types.Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=3),
        finish_reason="length",
        labels={"a": "b", "c": ""},
        tokens=types.TokenSpan(
            token_ids=pack_u32([1, 2, 3]),
            logprobs=struct.pack("<3f", -1, -2, -3),
            loss_mask=b"\x00\x01\x01",
            weight_versions=[{"version": 4, "count": 1}, {"version": -1, "count": 2}],
        ),
        attachments=[
            types.Attachment(
                name="routed-experts",
                dtype="uint8",
                shape=[3, 32, 8],
                uri="s3://bucket/key",
                sha256=b"\x01" * 32,
                size_bytes=768,
            ),
            types.Attachment(name="log", uri="file:///tmp/x"),
        ],
    )
    for end in (api.commit, api.abort):
        end(name, api.begin(name).grant.lease, record=given, timings={"generate": 12.5})
    for record in api.history(name):
        assert record.record == given


def attachment(**fields: Any) -> Any:
    return types.RecordInput(attachments=[types.Attachment(**{"name": "a", "uri": "s3://b/c", **fields})])


@pytest.mark.parametrize(
    ("record", "field", "reason"),
    [
        (attachment(name=""), "record.attachments.name", "INVALID_FIELD"),
        (attachment(name="a/b"), "record.attachments.name", "INVALID_FIELD"),
        (attachment(name="a" * 129), "record.attachments.name", "INVALID_FIELD"),
        (attachment(uri=""), "record.attachments.uri", "INVALID_FIELD"),
        (attachment(uri="u" * 2049), "record.attachments.uri", "TOO_LARGE"),
        (attachment(dtype="d" * 33), "record.attachments.dtype", "TOO_LARGE"),
        (attachment(shape=[1] * 9), "record.attachments.shape", "INVALID_FIELD"),
        (attachment(sha256=b"short"), "record.attachments.sha256", "INVALID_FIELD"),
        (
            types.RecordInput(attachments=[types.Attachment(name="a", uri="u")] * 2),
            "record.attachments.name",
            "INVALID_FIELD",
        ),
        (
            types.RecordInput(tokens=types.TokenSpan(token_ids=b"\0" * 4, loss_mask=b"\2")),
            "record.tokens.loss_mask",
            "INVALID_FIELD",
        ),
    ],
)
def test_i22_records_that_break_their_rules(api: Api, record: Any, field: str, reason: str) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    for end in (api.commit, api.abort):
        with refused(INVALID, reason) as why:
            end(name, lease, record=record)
        assert why.metadata["field"].startswith(field)
    assert api.history(name) == []
    assert api.get(name).activity == types.ACTIVITY_RUNNING


@pytest.mark.parametrize(
    "timings",
    [{"": 1.0}, {"Upper": 1.0}, {"a" * 33: 1.0}, {"a": float("nan")}, {f"t{i}": 1.0 for i in range(17)}],
)
def test_timings_that_break_their_rules(api: Api, timings: dict[str, float]) -> None:
    name = api.open().session.session_id
    lease = api.begin(name).grant.lease
    for end in (api.commit, api.abort):
        with refused(INVALID, "INVALID_FIELD") as why:
            end(name, lease, timings=timings)
        assert why.metadata["field"].startswith("timings")


def test_an_unknown_if_running_is_refused(api: Api) -> None:
    with refused(INVALID, "INVALID_FIELD") as why:
        api.begin(api.open().session.session_id, if_running=9)
    assert why.metadata["field"] == "if_running"


# -- two clients, one turn


def test_i3_i5_two_clients_race_the_same_turn(start: Start) -> None:
    """Exactly one commits each turn; whoever loses is told so, and nothing of it is stored."""
    server = start()
    rounds, clients = 60, 4
    with server.api() as api:
        name = api.open().session.session_id

    def play(me: int) -> tuple[list[tuple[int, bytes]], set[str]]:
        won, reasons = [], set()
        with server.api() as api:
            for attempt in range(10_000):
                turn = api.get(name).turn_count + 1
                if turn > rounds:
                    return won, reasons
                content = f"{me}-{attempt}".encode()
                how = TAKEOVER if attempt % 3 == 0 else turns.IF_RUNNING_REFUSE
                try:
                    lease = api.begin(name, expected_turn=turn, if_running=how).grant.lease
                    done = api.commit(name, lease, content)
                    won.append((done.turn, content))
                except grpc.RpcError as error:
                    reasons.add(refusal(error).reason)
        raise AssertionError("the turns were not played")

    with ThreadPoolExecutor() as pool:
        played = list(pool.map(play, range(clients)))
    reasons = set().union(*(lost for _, lost in played))
    assert reasons <= {"TURN_IN_PROGRESS", "TURN_MISMATCH", "LEASE_LOST"}
    won = sorted(one for all_of_it, _ in played for one in all_of_it)
    assert [turn for turn, _ in won] == list(range(1, rounds + 1))
    with server.api() as api:
        assert [(r.turn, r.record.content) for r in api.history(name, statuses=[COMMITTED])] == won
        contents = {content for _, content in won}
        assert all(r.record.content in contents | {b""} for r in api.history(name))
        assert api.stats().gauges["slots_held"] == 0
