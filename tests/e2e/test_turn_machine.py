"""A real server against a plain model of one session's turns, with evictions and kill -9.

Guards I1, I3, I4, I5, I7, I8, I11, I18, I21 and I22: whatever is done in whatever order, the
server answers as the model does, and history, checkpoints, trajectories and exports are the model's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from roost_server import Api, ClockedServer, fresh, refusal
from turn_model import FOREIGN, Entry, Grant, Model, Refuses

from roost.client._convert import pack_u32, unpack_u32
from roost.v1 import trajectory_service_pb2 as tpb
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

LEASE = 3_600  # seconds: far more than a step takes on a busy machine
EXPIRES = 3_700
DUE = 20_000  # a delay that some skips reach and no step does
THEN = {"idle": turns.THEN_IDLE, "continue": turns.THEN_CONTINUE, "close": turns.THEN_CLOSE}

WEIGHTS = {
    "begin": 11,
    "renew": 2,
    "commit": 12,
    "abort": 6,
    "expire": 3,
    "late": 3,
    "interrupt": 2,
    "reward": 4,
    "finish": 2,
    "acknowledge": 1,
    "evict": 3,
    "restart": 1,
    "close": 2,
    "compare": 1,
}
Draw = Callable[[st.SearchStrategy[Any]], Any]
rarely = st.sampled_from([False] * 11 + [True])
sometimes = st.sampled_from([False] * 3 + [True])


# What the sample must have met to be worth something: of what is drawn often, so that no run comes without it.
WANTED = {"commit", "late commit", "commit again", "rewind", "abort", "takeover", "expiry", "eviction"}


class World:
    """The server of a run, started anew when it is killed."""

    def __init__(self, data_dir: Path) -> None:
        # One session in memory beside a running one: whatever another session does evicts the one under test.
        self.server = ClockedServer(
            data_dir, "--max-resident", "2", "--log-level", "error", "--set", "default_stale_ms=0"
        )
        self.met: Counter[str] = Counter()
        self._stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self.server.start()
        self.api: Api = self._stack.enter_context(self.server.api())

    def restart(self) -> None:
        self._stack.close()
        self.server.kill()
        self.start()

    def end(self) -> None:
        self._stack.close()
        self.server.end()


class TurnMachine(RuleBasedStateMachine):
    """What callers do to one session."""

    world: World

    @initialize()
    def open(self) -> None:
        self.name, self.other, self.bystander = fresh("m"), fresh("other"), fresh("bystander")
        self.model = Model()
        self.leases: list[tuple[int, bytes]] = []  # fence and token of every grant, in order
        self.requests: list[str] = []
        self.next_token = 1
        self.api.open(self.name)
        self.api.open(self.other)
        self.uid = self.api.get(self.name).uid
        self.foreign = self.api.begin(self.other).grant.lease
        self.api.abort(self.other, self.foreign)
        self.api.open(self.bystander)
        self.hold_another()

    def hold_another(self) -> None:
        """Another session runs a turn all the time: a slot that is given back twice is missing then."""
        taken = self.api.begin(self.bystander, lease=LEASE, if_running=turns.IF_RUNNING_TAKEOVER)
        self.held = taken.grant.lease

    @property
    def api(self) -> Api:
        return self.world.api

    # -- comparing

    def same(self, call: Any, model: Any) -> tuple[Any, Any]:
        """Do it to both; if the model refuses, so must the server, for the same reason."""
        expected, reason = None, ""
        try:
            expected = model()
        except Refuses as why:
            reason = str(why)
        if not reason:
            return call(), expected
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert refusal(caught.value).reason == reason
        return None, None

    def check_session(self) -> None:
        m, s = self.model, self.api.get(self.name)
        tokens, _ = m.fold()
        told = {
            "closed": s.state != types.SESSION_STATE_OPEN,
            "turns": s.turn_count,
            "head_version": s.head_version,
            "tokens": s.checkpoint_tokens,
            "outcome": types.TurnOutcome.Name(s.last_outcome).removeprefix("TURN_OUTCOME_"),
            "provisional": s.provisional_turn,
            "trajectory": (s.trajectory, s.trajectory_first_turn),
            "running": (s.running.turn, s.running.attempt, s.running.interrupt_requested),
            "due": s.HasField("finish_time"),
        }
        grant = m.grant if m.running and m.grant is not None else None
        assert told == {
            "closed": m.closed,
            "turns": len(m.line),
            "head_version": m.head_version,
            "tokens": len(tokens),
            "outcome": m.last_outcome,
            "provisional": m.provisional.turn if m.provisional else 0,
            "trajectory": (len(m.trajectories) + 1, m.first),
            "running": (grant.turn, grant.attempt, grant.interrupted) if grant else (0, 0, False),
            "due": m.due is not None,
        }

    def granted(self, told: turns.Grant, expected: Grant, known: int | None, repeated: bool = False) -> None:
        """A grant is the model's, and its checkpoint completes what the caller knows."""
        m = self.model
        assert (told.turn, told.attempt, told.fence) == (expected.turn, expected.attempt, expected.fence)
        assert told.head_version == m.head_version
        if repeated:
            assert told.lease == dict(self.leases)[told.fence]
        else:
            self.leases.append((told.fence, told.lease))
        tokens, state = m.fold()
        held = m.folds[known][0] if known is not None else ()
        assert told.checkpoint.length == len(tokens)
        assert held[: told.checkpoint.offset] + tuple(unpack_u32(told.checkpoint.token_ids)) == tokens
        if known != m.head_version:
            assert told.checkpoint.state == state

    def made(self, draw: Draw, backs: list[int], base: int | None = None, **more: Any) -> Entry:
        """A record with tokens that nobody else has, some tokens before the end of what it builds on; or with none."""
        count, back, has_tokens = draw(st.integers(0, 3)), draw(st.sampled_from(backs)), draw(st.integers(0, 4)) > 0
        ids = tuple(range(self.next_token, self.next_token + count)) if has_tokens else ()
        self.next_token += 3
        offset = max(len(self.model.fold(base)[0]) - back, 0) if has_tokens else -1
        return Entry(0, 0, "", "", 0, 0, b"content %d" % self.next_token, offset, ids, **more)

    def record(self, made: Entry) -> Any:
        record = types.RecordInput(content=made.content, content_type="text/plain")
        if made.offset >= 0:
            record.tokens.CopyFrom(types.TokenSpan(offset=made.offset, token_ids=pack_u32(made.tokens)))
        return record

    def lease(self, draw: Draw) -> tuple[int, bytes]:
        """The latest lease, sometimes one before it, rarely one of another session."""
        back = draw(st.sampled_from([0] * 18 + [1] * 4 + [draw(st.integers(2, 9)), None]))
        if back is None or not self.leases:
            return FOREIGN, self.foreign
        return self.leases[max(len(self.leases) - 1 - back, 0)]

    # -- what callers do

    @rule(what=st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]), data=st.data())
    def step(self, what: str, data: st.DataObject) -> None:
        """One rule with weights instead of many rules: most steps must find a turn to do something with."""
        getattr(self, what)(data.draw)

    def begin(self, draw: Draw) -> None:
        """A new call, or the repeat of one: whatever a request_id stands for is asked for the same way each time."""
        m = self.model
        request_id, takeover, expected, known, want = "", False, None, None, False
        kind = draw(st.sampled_from(["plain"] * 3 + ["marked"] * 3 + ["repeat", "takeover", "mismatch"]))
        if kind == "repeat" and self.requests:
            request_id = draw(st.sampled_from(self.requests[-1:] * 4 + self.requests[-4:]))
        elif kind == "marked":
            request_id = fresh("b")
            self.requests.append(request_id)
        else:
            takeover, want = kind == "takeover", draw(st.booleans())
            expected = len(m.line) + 2 if kind == "mismatch" else None
            known = draw(st.sampled_from([None, *sorted(m.folds)[-5:]]))
        ran = m.running
        fields: dict[str, Any] = {"request_id": request_id, "want_provisional": want}
        fields |= {"if_running": turns.IF_RUNNING_TAKEOVER} if takeover else {}
        fields |= {"expected_turn": expected} if expected is not None else {}
        fields |= {"known_head_version": known} if known is not None else {}
        told, answer = self.same(
            lambda: self.api.begin(self.name, lease=LEASE, **fields),
            lambda: m.begin(request_id, takeover, expected),
        )
        if told is None:
            return
        self.granted(told.grant, answer[0], known, repeated=answer[1])
        self.met("begin again" if answer[1] else "takeover" if ran and takeover else "begin")
        left = m.provisional if want else None
        assert told.grant.HasField("provisional") == (left is not None)
        if left is not None:
            shown = told.grant.provisional
            assert (shown.turn, shown.attempt, shown.fence) == (left.turn, left.attempt, left.fence)
            assert shown.record.content == left.content

    def renew(self, draw: Draw) -> None:
        fence, lease = self.lease(draw)
        renewal = turns.Renewal(session_id=self.name, lease=lease)
        (result,) = self.api.turns.RenewTurns(turns.RenewTurnsRequest(renewals=[renewal])).results
        # A renewal that is refused is an answer beside the others, not an error of the call.
        try:
            expected = ("", self.model.renew(fence))
        except Refuses as why:
            expected = (str(why), False)
        assert (result.refusal.reason, result.interrupt_requested) == expected

    def commit(self, draw: Draw) -> None:
        m = self.model
        fence, lease = self.lease(draw)
        rewind = draw(st.sampled_from([None] * 6 + [0, 1, 1, 2, 3, 9, -1]))
        base = None if rewind is None else max(len(m.line) - rewind, 0)
        below = None if base is None or base > len(m.line) else base
        made = self.made(
            draw,
            backs=[0, 0, 0, 0, 1, 3, -1],
            base=below,
            new_segment=draw(rarely),
            then=draw(st.sampled_from(["idle"] * 12 + ["continue"] * 10 + ["close"])),
            state=draw(st.sampled_from([None, None, b"", b"state"])),
        )
        made.base_turn = base
        max_trim, completed = draw(st.sampled_from([0, 2])), draw(rarely)
        late = m.grant is not None and not m.grant.running
        length = len(m.fold(below)[0])
        request = turns.CommitTurnRequest(
            session_id=self.name,
            lease=lease,
            record=self.record(made),
            max_trim=max_trim,
            new_segment=made.new_segment,
            then=THEN[made.then],
            base_turn=base,
            state=made.state,
            completed=completed,
        )
        told, answer = self.same(
            lambda: self.api.turns.CommitTurn(request), lambda: m.commit(fence, made, max_trim, completed)
        )
        if told is None:
            return
        assert (told.turn, told.head_version) == (answer["turn"], answer["head_version"])
        assert told.repeated == answer["repeated"]
        if told.repeated:
            self.met("commit again")
        else:
            stored = m.line[-1]
            self.met("late commit" if late else "commit", *{"close": ["commit and close"]}.get(made.then, []))
            self.met(*["rewind"] * (stored.base_turn is not None), *["continue"] * ("next" in answer))
            self.met(*["trim"] * (0 <= made.offset < length), *["new segment"] * made.new_segment)
        assert told.next_refused.reason == answer.get("next_refused", "")
        assert told.HasField("next") == ("next" in answer)
        if "next" in answer:
            self.granted(told.next, answer["next"], m.head_version, answer["repeated"])

    def abort(self, draw: Draw) -> None:
        fence, lease = self.lease(draw)
        made, final = self.made(draw, backs=[0, 0, 2, -1]), draw(sometimes)
        told, answer = self.same(
            lambda: self.api.abort(self.name, lease, record=self.record(made), final=final),
            lambda: self.model.abort(fence, made, final),
        )
        if told is not None:
            status = types.RecordStatus.Name(told.status).removeprefix("RECORD_STATUS_")
            is_now = {"turn": told.turn, "attempt": told.attempt, "status": status, "repeated": told.repeated}
            assert is_now == answer
            self.met("abort again" if told.repeated else "final abort" if final else "abort")

    def late(self, draw: Draw) -> None:
        """A commit that comes when its lease has run out."""
        if self.model.running:
            self.expire(draw)
            self.commit(draw)

    def expire(self, draw: Draw) -> None:
        """Time passes: every lease runs out, and sometimes a trajectory comes due."""
        seconds = draw(st.sampled_from([EXPIRES, DUE + 1]))
        self.met(*["expiry"] * self.model.running)
        finished = len(self.model.trajectories)
        self.world.server.clock.skip(seconds)
        self.model.skip(seconds)
        # What the server does by itself it does soon, and the session says when.
        for _ in range(10_000):
            s = self.api.get(self.name)
            running = s.activity == types.ACTIVITY_RUNNING
            if running == self.model.running and s.trajectory == len(self.model.trajectories) + 1:
                break
        self.met(*["delayed finish"] * (len(self.model.trajectories) > finished))
        self.hold_another()

    def interrupt(self, draw: Draw) -> None:
        force = draw(sometimes)
        known = next(iter(self.model.interrupts), "")
        request_id = "" if force else draw(st.sampled_from(["", known, fresh("i")]))
        told, answer = self.same(
            lambda: self.api.interrupt(self.name, force=force, request_id=request_id),
            lambda: self.model.interrupt(request_id, force),
        )
        if told is not None:
            activity = types.Activity.Name(told.previous_activity).removeprefix("ACTIVITY_")
            assert (activity, told.turn) == answer
            self.met(*["forced interrupt" if force else "interrupt"] * (activity == "RUNNING"))

    def reward(self, draw: Draw) -> None:
        turn = draw(st.sampled_from([0, 0, len(self.model.line), len(self.model.line) - 1, len(self.model.line) + 1]))
        turn, value = max(turn, 0), draw(st.sampled_from([0.0, 0.5, 1.0]))
        after = draw(st.sampled_from([None, None, 0, DUE, DUE]))
        told, answer = self.same(
            lambda: self.api.reward(self.name, value, turn=turn, finish_after=after),
            lambda: self.model.reward(turn, value, after),
        )
        if told is not None:
            assert (told.turn, told.finished) == answer
            self.met("reward")

    def finish(self, draw: Draw) -> None:
        value = draw(st.sampled_from([None, 1.0]))
        told, answer = self.same(lambda: self.api.finish(self.name, reward=value), lambda: self.model.finish(value))
        if told is not None:
            t, turn_count = told.trajectory, len(answer.turns)
            assert t.trajectory_id == f"{self.uid}-{answer.number}"
            assert (t.number, t.first_turn, t.turn_count) == (answer.number, answer.first_turn, turn_count)
            self.met("finish")

    def acknowledge(self, draw: Draw) -> None:
        if self.model.trajectories:
            one = draw(st.sampled_from(self.model.trajectories))
            (result,) = self.api.ack(f"{self.uid}-{one.number}")
            assert not result.HasField("refusal")
            assert result.repeated == one.acknowledged
            one.acknowledged = True

    def evict(self, _: Draw) -> None:
        """Another session comes to memory, where there is room for one."""
        self.api.abort(self.other, self.api.begin(self.other).grant.lease)
        self.met(*["eviction"] * (not self.model.running))

    def restart(self, draw: Draw) -> None:
        """kill -9; not often, for it takes a while."""
        if draw(st.sampled_from([False] * 7 + [True])):
            self.world.restart()
            self.met("restart")

    def close(self, draw: Draw) -> None:
        """Not often: there is not much to do afterwards."""
        if draw(sometimes):
            assert self.api.close(self.name).closed
            self.model.close()
            self.met("close")

    def met(self, *what: str) -> None:
        self.world.met.update(what)

    def compare(self, _: Draw) -> None:
        """History and exports are the model's, record by record."""
        self.check_history()
        self.check_exports()

    @invariant()
    def the_session_is_the_models(self) -> None:
        if hasattr(self, "model"):
            self.check_session()
            # At once: what is released twice is made good by the next turn that is released when none is held.
            self.check_slots()

    def check_history(self) -> None:
        told = [
            (
                r.turn,
                r.attempt,
                types.RecordStatus.Name(r.status).removeprefix("RECORD_STATUS_"),
                types.TurnOutcome.Name(r.outcome).removeprefix("TURN_OUTCOME_"),
                r.fence,
                r.trajectory,
                r.record.content,
                r.record.tokens.offset if r.record.HasField("tokens") else -1,
                tuple(unpack_u32(r.record.tokens.token_ids)),
                r.head_version,
                r.base_turn if r.HasField("base_turn") else None,
                r.new_segment,
                r.reward if r.HasField("reward") else None,
            )
            for r in self.api.history(self.name)
        ]
        assert told == [
            (
                e.turn,
                e.attempt,
                e.status,
                e.outcome,
                e.fence,
                e.trajectory,
                e.content,
                e.offset,
                e.tokens,
                e.head_version,
                e.base_turn,
                e.new_segment,
                e.reward,
            )
            for e in self.model.entries
        ]

    def check_exports(self) -> None:
        m = self.model
        ready = [t for t in m.trajectories if not t.acknowledged]
        told = self.api.exported(session_ids=[self.name])
        assert [one.trajectory.number for one in told] == [t.number for t in ready]
        for one, t in zip(told, ready, strict=True):
            self.same_records(one.records, m.exported(t.entries))
        everything = self.api.exported(session_ids=[self.name], selection=tpb.TRAJECTORY_SELECTION_ALL, discount=0.5)
        wanted = [t.entries for t in m.trajectories]
        if m.active or not wanted:
            wanted.append(m.active)
        assert len(everything) == len(wanted)
        before: tuple[int, ...] = ()
        for one, entries in zip(everything, wanted, strict=True):
            exported = m.exported(entries)
            self.same_records(one.records, exported)
            assert tuple(one.context) == before
            after = 0.0
            for record, entry in zip(reversed(one.records), reversed(exported), strict=True):
                if entry.status == "COMMITTED":
                    after = (entry.reward or 0.0) + 0.5 * after
                    assert record.discounted_reward == after
            for entry in exported:
                if entry.status == "COMMITTED" and entry.offset >= 0:
                    before = before[: entry.offset] + entry.tokens

    def check_slots(self) -> None:
        """I1: nothing is held but by the turns that run."""
        assert self.api.stats().gauges["slots_held"] == self.model.running + 1

    def same_records(self, told: Any, entries: list[Entry]) -> None:
        assert [(r.turn, r.fence, r.record.content) for r in told] == [(e.turn, e.fence, e.content) for e in entries]

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.check_history()
        self.check_exports()
        self.api.abort(self.bystander, self.held)
        if self.model.running and self.model.grant is not None:
            self.api.abort(self.name, dict(self.leases)[self.model.grant.fence])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("machine") / "data")
    yield made
    made.end()


def run(world: World, runs: int, steps: int, same_every_time: bool) -> None:
    class Machine(TurnMachine):
        pass

    Machine.world = world
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=same_every_time,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_turns_are_the_models(world: World) -> None:
    world.met.clear()
    run(world, runs=16, steps=60, same_every_time=True)
    assert set(world.met) >= WANTED, WANTED - set(world.met)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("batch", range(20))
def test_turns_are_the_models_in_two_thousand_runs(world: World, batch: int) -> None:
    # In batches, because hypothesis remembers all that it tried; each has a seed of its own.
    run(world, runs=100, steps=100, same_every_time=False)
