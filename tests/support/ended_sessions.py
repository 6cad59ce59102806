"""A real engine on a real store, without a server: ended sessions for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from roost._core import LIMITS, METHODS, Batch, Engine
from roost.handlers.reload import StoreReader
from roost.store import SqliteStore
from roost.v1 import mail_service_pb2, session_service_pb2, trajectory_service_pb2, turn_service_pb2, types_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)


async def read_now(step: Callable[[], T]) -> T:
    """A read of the store, where the test is."""
    return step()


class House:
    """Calls are whole: when one returns, it is in the store."""

    def __init__(self, data_dir: Path, *, tenant: str = "default", **limits: int) -> None:
        self.tenant = tenant
        self.store = SqliteStore(data_dir, reserve_bytes=1 << 20, reserve_margin=0, background_checkpoint=False)
        self.engine = Engine({name: default for name, default, _, _ in LIMITS} | limits, self.store.last_seq)
        parts: tuple[Any, ...] = (self.engine, self.store, lambda *_: None, lambda: None, lambda _: None)
        self._reader = StoreReader(*parts)

    def call(self, service: str, method: str, request: Message, answer: type[M]) -> M:
        """One RPC."""
        number = METHODS[f"/roost.v1.{service}/{method}"]
        outcome: Any = self.engine.call(number, request.SerializeToString(), "", self.tenant, 1)
        if isinstance(outcome, int):
            outcome = self.ended(outcome)
        assert isinstance(outcome, bytes), outcome
        return answer.FromString(outcome)

    def ended(self, ticket: int, carried: Callable[[Batch], object] = lambda _: None) -> Any:
        """What a ticket comes to, once everything is stored; `carried` is shown each batch."""
        for _ in range(1_000):
            for kind, number, *arguments in self.engine.next_effects(timeout_ms=0):
                self._reader._load(kind, number, tuple(arguments))
            while (batch := self.engine.next_batch(timeout_ms=0, linger_us=0)) is not None:
                carried(batch)
                outcome = self.store.append(0, self.store.epoch, batch.first_seq, batch)
                self.engine.appended(batch, outcome.value, [])
            for done, answer in self.engine.completed():
                if done == ticket:
                    return answer
        raise AssertionError("the call does not end")

    def open(self, session_id: str, **options: Any) -> bytes:
        """Open a session; its uid."""
        request = session_service_pb2.OpenSessionRequest(
            session_id=session_id, options=types_pb2.OpenOptions(**options)
        )
        self.call("SessionService", "OpenSession", request, session_service_pb2.OpenSessionResponse)
        row = self.store.read_session(self.tenant, session_id)
        assert row is not None
        return row.uid

    def begin(self, session_id: str) -> bytes:
        """Begin a turn; its lease."""
        request = turn_service_pb2.BeginTurnRequest(session_id=session_id)
        return self.call("TurnService", "BeginTurn", request, turn_service_pb2.BeginTurnResponse).grant.lease

    def turn(self, session_id: str, content: bytes, tokens: bytes = b"", offset: int = 0, **record: Any) -> None:
        """Commit one turn."""
        span = types_pb2.TokenSpan(offset=offset, token_ids=tokens, logprobs=tokens, loss_mask=bytes(len(tokens) // 4))
        request = turn_service_pb2.CommitTurnRequest(
            session_id=session_id,
            lease=self.begin(session_id),
            record=types_pb2.RecordInput(content=content, tokens=span if tokens else None, **record),
        )
        self.call("TurnService", "CommitTurn", request, turn_service_pb2.CommitTurnResponse)

    def abort(self, session_id: str, content: bytes) -> None:
        """Begin a turn and give it up."""
        request = turn_service_pb2.AbortTurnRequest(
            session_id=session_id, lease=self.begin(session_id), record=types_pb2.RecordInput(content=content)
        )
        self.call("TurnService", "AbortTurn", request, turn_service_pb2.AbortTurnResponse)

    def send(self, session_id: str, content: bytes, sender: str = "", request_id: str = "", **message: Any) -> str:
        """Send a message; its id."""
        request = mail_service_pb2.SendMessageRequest(
            session_id=session_id,
            sender_session_id=sender,
            request_id=request_id,
            message=types_pb2.MessageInput(content=content, **message),
        )
        return self.call("MailService", "SendMessage", request, mail_service_pb2.SendMessageResponse).message_id

    def reward(self, session_id: str, value: float) -> None:
        """Reward the last turn."""
        request = trajectory_service_pb2.SetRewardRequest(session_id=session_id, reward=value)
        self.call("TrajectoryService", "SetReward", request, trajectory_service_pb2.SetRewardResponse)

    def finish(self, session_id: str) -> str:
        """Finish the active trajectory; its id."""
        request = trajectory_service_pb2.FinishTrajectoryRequest(session_id=session_id)
        answer = trajectory_service_pb2.FinishTrajectoryResponse
        return self.call("TrajectoryService", "FinishTrajectory", request, answer).trajectory.trajectory_id

    def acknowledge(self, trajectory_id: str) -> None:
        """Acknowledge a trajectory."""
        request = trajectory_service_pb2.AckTrajectoriesRequest(trajectory_ids=[trajectory_id])
        self.call("TrajectoryService", "AckTrajectories", request, trajectory_service_pb2.AckTrajectoriesResponse)

    def close(self, session_id: str) -> None:
        """Close a session."""
        request = session_service_pb2.CloseSessionRequest(session_id=session_id)
        self.call("SessionService", "CloseSession", request, session_service_pb2.CloseSessionResponse)

    def played(self, session_id: str, **options: Any) -> bytes:
        """An ended session with a bit of everything: a retried turn, rewards, two trajectories, a tail."""
        uid = self.open(session_id, **options)
        self.turn(session_id, b"first \xff\x00 answer", bytes(range(16)), finish_reason="stop", labels={"k": "v"})
        self.reward(session_id, 0.1)
        self.abort(session_id, b"half of it")
        self.turn(session_id, "zweite Antwort äöü".encode(), b"\1\0\0\0", 4, content_type="text/plain")
        self.finish(session_id)
        self.turn(session_id, b"", b"\2\0\0\0", 5)
        self.reward(session_id, -0.0)
        self.finish(session_id)
        self.turn(session_id, b"tail")
        self.abort(session_id, b"given up")
        self.close(session_id)
        return uid
