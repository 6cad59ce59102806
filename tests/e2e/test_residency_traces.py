"""I11: what is in memory decides no answer. One seeded trace of calls against three servers side by side, with room for
one session, for seven and for all: each answer of each call is the same, fields that report residency excepted."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from roost_server import DEADLINE, Api, ClockedServer, letter, refusal, until

from roost.client._convert import pack_u32
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

ROOMS = {"one": "1", "seven": "7", "all": "50000"}
LEASE = 3_600.0
PAUSE = 100.0  # seconds: after it nothing pauses any more that came back to its mailbox
TREE_TURNS, TENANT_TURNS = 4, 6

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# What is another at each server: when it was, and where it was then.
_ASIDE = {"residency", "uptime", "next_page_token", "queue_wait"}
_TIMED = re.compile(r"\d+ ms|(?<=for )\d+ s\b|(?<==)\d+")  # of who holds a slot: for how long

Choose = random.Random
WEIGHTS = {
    "open": 6, "begin": 24, "commit": 18, "abort": 5, "renew": 1, "send": 9, "poll": 4, "interrupt": 3, "close": 2,
    "reopen": 2, "reward": 2, "finish": 2, "update": 2, "expire": 2, "give_up": 1, "get": 4, "list": 2, "history": 3,
    "list_mail": 3, "wait_mail": 2, "export": 2, "checkpoint": 2,
}  # fmt: skip


class Names:
    """What is random is told by the order in which it was first seen."""

    def __init__(self) -> None:
        self._seen: dict[Any, str] = {}

    def of(self, value: Any, kind: str) -> str:
        return self._seen.setdefault(value, f"{kind} {len(self._seen)}")

    def text(self, text: str) -> str:
        return _TIMED.sub("some ms", _UUID.sub(lambda found: self.of(found[0], "uid"), text))

    def shown(self, value: Any, name: str = "") -> Any:
        """An answer as plain data that can be compared."""
        if isinstance(value, timestamp_pb2.Timestamp | duration_pb2.Duration):
            return "a time"
        if isinstance(value, Message):
            fields = [(each.name, at) for each, at in value.ListFields() if each.name not in _ASIDE]
            return {name: self.shown(at, name) for name, at in fields}
        if isinstance(value, str):
            return self.text(value)
        if name in ("lease", "cursor"):
            return self.of(value, name)
        if hasattr(value, "items"):
            return {key: self.shown(at) for key, at in sorted(value.items())}
        if isinstance(value, Iterable) and not isinstance(value, bytes):
            return [self.shown(each) for each in value]
        return value

    def refused(self, error: grpc.RpcError) -> Any:
        why = refusal(error)
        numbers = {key: at for key, at in why.metadata.items() if not key.endswith("_ms")}
        return why.reason, self.text(why.message), {key: self.text(at) for key, at in numbers.items()}


@dataclass
class Side:
    """One of the servers and what its caller knows. All sides know the same, under other random names."""

    server: ClockedServer
    api: Api
    names: Names = field(default_factory=Names)
    made: int = 0
    sessions: list[str] = field(default_factory=list)
    leases: dict[str, list[bytes]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    waits: list[tuple[str, Any]] = field(default_factory=list)

    def some(self, choose: Choose) -> str:
        """Mostly one of the newest."""
        if not self.sessions or choose.random() < 0.02:
            return "nobody"
        return choose.choice(self.sessions[-12:] if choose.random() < 0.8 else self.sessions)

    def holder(self, choose: Choose) -> tuple[str, bytes]:
        """A session that has had a turn, and mostly its latest lease."""
        if not self.leases:
            return "nobody", bytes(40)
        name = choose.choice(list(self.leases)[-8:])
        return name, self.leases[name][-1 if choose.random() < 0.9 else 0]

    def took(self, name: str, grant: Any) -> None:
        self.leases.pop(name, None)
        self.leases[name] = [grant.lease]
        self.tokens[name] = grant.checkpoint.length

    def pass_time(self, seconds: float) -> None:
        """Until what was due by then is on disk: lists tell no sooner of it."""
        self.server.clock.skip(seconds)
        until(lambda: not self.api.stats().gauges["journal_entries"])

    # -- calls, each of which returns its answer

    def open(self, choose: Choose) -> Any:
        self.made += 1
        name = f"s{self.made}" if choose.random() < 0.95 or not self.sessions else choose.choice(self.sessions)
        parent = self.some(choose) if choose.random() < 0.75 else ""
        given = choose.choice(["", "", "scout", "critic"]) if parent else ""
        first = choose.choice([None, letter(b"begin", trigger=True), letter(b"to know")])
        labels = {"kind": choose.choice("abc")}
        told = self.api.open(
            name,
            first_message=first,
            parent_session_id=parent,
            name=given,
            labels=labels,
            wake_on_completion=choose.random() < 0.5,
        )
        if told.created:
            self.sessions.append(name)
        return told

    def begin(self, choose: Choose) -> Any:
        name, kind = self.some(choose), choose.choice(["", "", "", "wait", "wait", "takeover", "mark", "look"])
        request = turns.BeginTurnRequest(session_id=name, owner=choose.choice(["one", "two"]))
        request.lease_duration.FromSeconds(int(LEASE))
        request.want_provisional = choose.random() < 0.4
        request.priority = choose.choice([0, 0, 3])
        if choose.random() < 0.3:
            request.known_head_version = choose.randrange(4)
        if kind == "takeover":
            request.if_running = turns.IF_RUNNING_TAKEOVER
        elif kind == "mark":
            request.request_id = f"b{choose.randrange(5)}"
        elif kind == "look":
            request.validate_only = True
        elif kind == "wait":
            request.wait.FromSeconds(int(LEASE))
            # It may be answered much later.
            self.waits.append((name, self.api.turns.BeginTurn.future(request, timeout=10 * DEADLINE)))
            return None
        told = self.api.turns.BeginTurn(request, timeout=DEADLINE)
        if kind != "look":
            self.took(name, told.grant)
        return told

    def commit(self, choose: Choose) -> Any:
        name, lease = self.holder(choose)
        record = self.record(choose, name)
        request = turns.CommitTurnRequest(session_id=name, lease=lease, record=record, max_trim=2)
        request.then = choose.choice([turns.THEN_IDLE] * 6 + [turns.THEN_CONTINUE] * 4 + [turns.THEN_CLOSE])
        if choose.random() < 0.3:
            request.completion.content = b"what came of it"
        if choose.random() < 0.3:
            request.state = b"state %d" % choose.randrange(100)
        if choose.random() < 0.1:
            request.base_turn = choose.randrange(3)
        request.new_segment = choose.random() < 0.1
        told = self.api.turns.CommitTurn(request, timeout=DEADLINE)
        if told.HasField("next"):
            self.took(name, told.next)
        return told

    def record(self, choose: Choose, name: str) -> Any:
        record = types.RecordInput(content=b"content %d" % choose.randrange(1_000), content_type="text/plain")
        if choose.random() < 0.7:
            record.tokens.offset = max(0, self.tokens.get(name, 0) - choose.choice([0, 0, 0, 1, 5]))
            record.tokens.token_ids = pack_u32(range(choose.randrange(4)))
        return record

    def abort(self, choose: Choose) -> Any:
        name, lease = self.holder(choose)
        return self.api.abort(name, lease, record=self.record(choose, name), final=choose.random() < 0.3)

    def renew(self, choose: Choose) -> Any:
        renewals = [turns.Renewal(session_id=n, lease=le) for n, le in (self.holder(choose) for _ in range(3))]
        return self.api.turns.RenewTurns(turns.RenewTurnsRequest(renewals=renewals), timeout=DEADLINE)

    def send(self, choose: Choose) -> Any:
        sender = self.some(choose) if choose.random() < 0.5 else ""
        request_id = f"r{choose.randrange(20)}" if choose.random() < 0.3 else ""
        ttl = 3 * PAUSE if choose.random() < 0.2 else 0
        return self.api.send(
            self.some(choose),
            b"message %d" % choose.randrange(3),
            trigger=choose.random() < 0.6,
            ttl=ttl,
            sender_session_id=sender,
            request_id=request_id,
        )

    def poll(self, choose: Choose) -> Any:
        """Where there is something to have: how soon a poll finds it is nobody's promise."""
        self.pass_time(PAUSE)
        told = [s for s in self.api.list_all() if s.state == types.SESSION_STATE_OPEN]
        running = [s for s in told if s.activity == types.ACTIVITY_RUNNING]
        below = Counter(s.root_session_id for s in running if s.parent_session_id)
        able = [
            s.session_id
            for s in told
            if s.activity == types.ACTIVITY_IDLE
            and (not s.parent_session_id or below[s.root_session_id] < TREE_TURNS - 1)
            and self.api.wait_mail(s.session_id).runnable
        ]
        if not able or len(running) >= TENANT_TURNS:
            return None
        polled = self.api.poll(wait=DEADLINE / 2, lease=LEASE, owner="poller")
        assert polled.session_id in able
        self.took(polled.session_id, polled.grant)
        return polled

    def interrupt(self, choose: Choose) -> Any:
        return self.api.interrupt(self.some(choose), force=choose.random() < 0.2)

    def close(self, choose: Choose) -> Any:
        return self.api.close(self.some(choose), request_id=f"x{self.made}-{choose.randrange(10**9)}")

    def reopen(self, choose: Choose) -> Any:
        return self.api.reopen(self.some(choose))

    def reward(self, choose: Choose) -> Any:
        return self.api.reward(self.some(choose), choose.choice([0.0, 1.0]), turn=choose.randrange(3))

    def finish(self, choose: Choose) -> Any:
        return self.api.finish(self.some(choose))

    def update(self, choose: Choose) -> Any:
        request = sessions.UpdateSessionRequest(session_id=self.some(choose), labels={"kind": choose.choice("abc")})
        return self.api.sessions.UpdateSession(request, timeout=DEADLINE)

    def expire(self, choose: Choose) -> None:
        """Every lease and every wait is over."""
        self.pass_time(LEASE + 1)

    def give_up(self, choose: Choose) -> None:
        if self.waits:
            _, future = self.waits.pop(choose.randrange(len(self.waits)))
            future.cancel()

    def get(self, choose: Choose) -> Any:
        return self.api.get(self.some(choose))

    def list(self, choose: Choose) -> Any:
        labels = {"kind": choose.choice("abc")} if choose.random() < 0.5 else {}
        activity = choose.choice([types.ACTIVITY_UNSPECIFIED, types.ACTIVITY_RUNNING])
        # In order of uid, and that is random where two were made in one millisecond.
        return sorted(self.api.list_all(labels=labels, activity=activity), key=lambda s: str(s.session_id))

    def history(self, choose: Choose) -> Any:
        return self.api.history(self.some(choose))

    def list_mail(self, choose: Choose) -> Any:
        name = self.some(choose)
        return self.api.list_mail(name) if choose.random() < 0.6 else self.api.list_mail(sender_session_id=name)

    def wait_mail(self, choose: Choose) -> Any:
        return self.api.wait_mail(self.some(choose))

    def export(self, choose: Choose) -> Any:
        found = self.api.export(session_ids=[self.some(choose)])
        return [record for records in found.values() for record in records]

    def checkpoint(self, choose: Choose) -> Any:
        name, lease = self.holder(choose)
        request = turns.GetCheckpointRequest(session_id=name, lease=lease)
        return list(self.api.turns.GetCheckpoint(request, timeout=DEADLINE))

    # -- one step

    def step(self, what: str, choose: Choose) -> Any:
        """Do it; its answer, and those of the calls that had waited until then."""
        told: Any
        try:
            told = self.names.shown(getattr(self, what)(choose))
        except grpc.RpcError as error:
            told = self.names.refused(error)
        return told, self.settled()

    def settled(self) -> list[Any]:
        """The calls that wait no more, once all that do are counted as such."""
        while sum(not future.done() for _, future in self.waits) != self.api.stats().gauges["waiting"]:
            pass
        ended = [wait for wait in self.waits if wait[1].done()]
        self.waits = [wait for wait in self.waits if not wait[1].done()]
        found: list[Any] = []
        for name, future in ended:
            try:
                told = future.result()
            except grpc.RpcError as error:
                found.append((name, self.names.refused(error)))
                continue
            self.took(name, told.grant)
            found.append((name, self.names.shown(told)))
        return found


def play(directory: Path, seed: int, steps: int) -> Counter[str]:
    """The trace of a seed; how often each kind of call was not refused."""
    limits = {
        "max_turns_per_tree": TREE_TURNS,
        "max_turns_per_tenant": TENANT_TURNS,
        "max_sessions_per_tree": 12,
        "max_depth": 3,
        "max_deliveries": 3,
        "max_mailbox_messages": 8,
        "max_wait_ms": 3_600_000,
        "default_stale_ms": 0,
    }
    flags = [flag for name, value in limits.items() for flag in ("--set", f"{name}={value}")]
    servers = {
        name: ClockedServer(directory / name, "--max-resident", room, "--log-level", "error", *flags)
        for name, room in ROOMS.items()
    }
    kinds = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    went: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            stack.callback(server.end)
        sides = {name: Side(server, stack.enter_context(server.start().api())) for name, server in servers.items()}
        for number in range(steps):
            # Trees first, then what happens in them.
            what = random.Random(f"{seed} {number}").choice(kinds) if number > 15 else "open"
            told = {name: side.step(what, random.Random(f"{seed} {number} {what}")) for name, side in sides.items()}
            assert told["one"] == told["all"], f"seed {seed}, step {number}: {what}"
            assert told["seven"] == told["all"], f"seed {seed}, step {number}: {what}"
            answer, waited = told["all"]
            went[what] += not isinstance(answer, tuple) and (answer is not None or what in ("expire", "give_up"))
            went["waited"] += sum(isinstance(each, dict) for _, each in waited)
        evictions = {name: side.api.stats().counters["evictions"] for name, side in sides.items()}
        assert evictions["one"] > evictions["seven"] > evictions["all"] == 0, evictions
        went["evictions"] = int(evictions["one"])
    return went


def test_i11_the_answers_are_the_same_whatever_is_in_memory(tmp_path: Path) -> None:
    went = play(tmp_path, seed=11, steps=300)
    # That it was about something: most kinds of calls have done what they are for, and waits have ended with turns.
    assert all(went[what] > 0 for what in WEIGHTS), went
    assert went["waited"] >= 5, went
    assert went["evictions"] >= 50, went


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(6))
def test_i11_the_answers_are_the_same_in_long_traces(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed, steps=4_000)
