"""A turn as a context manager: begin on entry, commit on success, abort on exception, LeaseLost when it is lost."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any, Self

import grpc

from roost.client._convert import THEN, Letter, Then, Tokens, letter, record_input, seconds, unpack_u32
from roost.errors import (
    CallTimeout,
    ConnectionFailed,
    LeaseLost,
    RoostError,
    SessionClosed,
    SessionNotFound,
    from_refusal,
)
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

if TYPE_CHECKING:
    import array
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import TracebackType

    from roost.client._aio import AsyncClient

log = logging.getLogger("roost.client")

# An answer with one of these ends the turn: nothing that this lease does will be accepted any more.
ENDED = (LeaseLost, SessionClosed, SessionNotFound)
# With one of these the server says that the request is wrong, not that it cannot be served now.
REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
# With one of these, and no reason, nobody knows what became of the request.
NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)


class AsyncTurn:
    """One turn of a session, made by `AsyncClient.turn` or `AsyncClient.poll_turn`.

    While the block runs, its lease is renewed in the background. At the end of the block the turn is committed with
    what `record` set (an empty record if nothing was), unless `commit` or `abort` ended it before; if the block
    raises or is cancelled, it is aborted, and what was recorded stays as a PROVISIONAL record.

    If the lease is lost, the block is cancelled at its next await and the `async with` raises LeaseLost (SessionClosed
    if the session was closed). `lost` is set at the same moment. Not being able to reach the server is not a loss:
    a server that restarts gives running turns a full lease again.
    """

    def __init__(self, client: AsyncClient, session_id: str, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.session_id = session_id
        self.uid = ""  # the session's life
        self.created = False  # True if the BeginTurn made the session
        self.lost = asyncio.Event()  # set when the lease is known to be lost
        self.interrupt_requested = asyncio.Event()  # set when someone asked this turn to end soon
        self.finished = False  # True once the turn was committed, aborted or lost
        self.tokens_used = 0  # tokens so far, reported with each renewal; the block may set it
        self.next_refused: RoostError | None = None  # why `commit(then="continue")` kept no slot
        self._client = client
        self._begin = begin
        self._grant = turns.Grant()
        self._asked: float | None = None  # loop time at which a call asked for the grant that it was made with
        self._request: turns.CommitTurnRequest | None = None
        self._request_id = ""
        self._under_way: asyncio.Task[Any] | None = None  # the commit or abort that the block asked for last
        self._loss: RoostError | None = None
        self._on_lost: Callable[[], None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancelled_body = False
        self._lease_seconds = 0.0
        self._expires_at = 0.0
        self.renew_at = 0.0  # loop time at which the client renews it next

    @property
    def grant(self) -> turns.Grant:
        """The grant as the server answered it."""
        return self._grant

    @property
    def number(self) -> int:
        """The number this turn gets when it commits."""
        return self._grant.turn

    @property
    def attempt(self) -> int:
        """Which try at that number this is, from 1."""
        return self._grant.attempt

    @property
    def fence(self) -> int:
        """The fencing token: hand it to whatever the turn writes to outside of Roost."""
        return self._grant.fence

    @property
    def head_version(self) -> int:
        """The session's head_version at the begin."""
        return self._grant.head_version

    @property
    def checkpoint(self) -> turns.Checkpoint:
        """The state to start from: tokens from `offset` on, and the client's own state."""
        return self._grant.checkpoint

    @property
    def provisional(self) -> types.Record | None:
        """What the last attempt at this turn left, if `want_provisional` asked for it and there is one."""
        return self._grant.provisional if self._grant.HasField("provisional") else None

    @property
    def mail(self) -> Sequence[types.Message]:
        """The messages that this turn has taken, in order of sending. Its commit consumes them; any other end of it
        puts them back."""
        return self._grant.mail

    @property
    def more_mail(self) -> int:
        """How many messages are left in the mailbox for the turns after this one."""
        return self._grant.more_mail

    @property
    def checkpoint_tokens(self) -> array.array[int]:
        """The checkpoint's token ids from its offset on."""
        return unpack_u32(self._grant.checkpoint.token_ids)

    @property
    def expires_in(self) -> float:
        """Seconds until the lease ends unless renewed, by this machine's clock; negative: it may have ended."""
        return self._expires_at - asyncio.get_running_loop().time()

    def record(
        self,
        content: bytes | str | None = None,
        *,
        content_type: str = "",
        tokens: Tokens | None = None,
        usage: types.Usage | None = None,
        finish_reason: str = "",
        labels: Mapping[str, str] | None = None,
        attachments: Iterable[types.Attachment] = (),
        state: bytes | None = None,
        max_trim: int = 0,
        new_segment: bool = False,
        then: Then = "idle",
        completed: bool = False,
        completion: Letter | None = None,
        base_turn: int | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Set what the end of the block commits (or, after an exception, leaves as PROVISIONAL). Replaces what an
        earlier call set. `tokens`: a TokenSpan, or token ids that continue the checkpoint. `completed`: the task is
        complete, which the parent is told; `completion`: with what content. `base_turn`: build on that turn and
        supersede what was committed after it; `tokens` is then a TokenSpan with an offset of its own. `timings`: ms by
        name, for the server's log. ValueError for `then="continue"`: the end of the block has no next turn to go on
        with, `commit` has."""
        if then == "continue":
            raise ValueError('then="continue" is for commit: after the block there is no turn to go on with')
        self._request = turns.CommitTurnRequest(
            session_id=self.session_id,
            lease=self._grant.lease,
            request_id=self._request_id,
            record=record_input(
                content,
                content_type=content_type,
                tokens=tokens,
                offset=self._grant.checkpoint.length,
                usage=usage,
                finish_reason=finish_reason,
                labels=labels,
                attachments=attachments,
            ),
            state=state,
            max_trim=max_trim,
            new_segment=new_segment,
            then=THEN[then],
            completed=completed,
            completion=letter(completion),
            base_turn=base_turn,
            timings=timings,
        )

    async def commit(
        self,
        content: bytes | str | None = None,
        *,
        content_type: str = "",
        tokens: Tokens | None = None,
        usage: types.Usage | None = None,
        finish_reason: str = "",
        labels: Mapping[str, str] | None = None,
        attachments: Iterable[types.Attachment] = (),
        state: bytes | None = None,
        max_trim: int = 0,
        new_segment: bool = False,
        then: Then = "idle",
        completed: bool = False,
        completion: Letter | None = None,
        base_turn: int | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> turns.CommitTurnResponse:
        """Commit now. Parameters as in `record`.

        With `then="continue"` this object becomes the next turn (number, checkpoint, lease); where the server kept no
        slot, `next_refused` says why and the turn is finished. Raises LeaseLost, SessionClosed, TokenPrefixMismatch,
        RewindRefused.
        """
        self._check_open()
        self.record(
            content,
            content_type=content_type,
            tokens=tokens,
            usage=usage,
            finish_reason=finish_reason,
            labels=labels,
            attachments=attachments,
            state=state,
            max_trim=max_trim,
            new_segment=new_segment,
            completed=completed,
            completion=completion,
            base_turn=base_turn,
            timings=timings,
        )
        assert self._request is not None
        self._request.then = THEN[then]
        self._under_way = self._client._protect(self._commit())
        return await asyncio.shield(self._under_way)

    async def abort(self, *, final: bool = False) -> turns.AbortTurnResponse:
        """Abort now; what `record` set stays as a PROVISIONAL record. The block goes on without a turn. `final`: give
        the turn up; the record is ABORTED, and no retry supersedes it."""
        self._check_open()
        self._under_way = self._client._protect(self._abort(final))
        return await asyncio.shield(self._under_way)

    # -- what the context manager and the sync client are made of

    async def _start(self) -> Self:
        """Begin the turn and hand its lease to the client's renewal."""
        asked = asyncio.get_running_loop().time() if self._asked is None else self._asked
        response = await self._begin()
        self.uid, self.created = response.uid, response.created
        self._granted(response.grant, asked)
        self._client._renewals.add(self)
        if response.grant.checkpoint.omitted:
            try:
                await self._fetch_checkpoint()
            except BaseException:
                await asyncio.shield(self._client._protect(self._abort()))
                raise
        return self

    async def _fetch_checkpoint(self) -> None:
        """Read the tokens that were too long for the grant. A stream that breaks is taken up again where it broke."""
        checkpoint = self._grant.checkpoint
        got = bytearray()
        while (at := checkpoint.offset + len(got) // 4) < checkpoint.length:
            before = len(got)
            try:
                async for part in self._client.get_checkpoint(self.session_id, self._grant.lease, from_offset=at):
                    got += part.token_ids
                if len(got) == before:
                    raise RoostError(f"the checkpoint ended at token {at} of {checkpoint.length}")
            except (ConnectionFailed, CallTimeout):
                if len(got) == before:
                    raise
        checkpoint.token_ids, checkpoint.omitted = bytes(got), False

    async def _finish(self, failed: bool) -> None:
        """End the turn if the block has not: abort after a failure, else commit. Raises what the commit raises."""
        if self._loss is not None:
            raise self._loss
        if not self.finished:
            await asyncio.shield(self._client._protect(self._end_block(failed)))

    async def _end_block(self, failed: bool) -> None:
        try:
            if self._under_way is not None:
                # A call whose caller was cancelled: what it comes to decides what there is to end.
                await asyncio.wait([self._under_way])
            if self._loss is not None:
                raise self._loss
            if self.finished:
                return
            if failed:
                await self._abort()
                return
            if self._request is None:
                self.record()
            await self._commit_or_abort()
        finally:
            # Whatever became of it: nobody runs this turn any more.
            self._client._renewals.remove(self)

    async def _commit_or_abort(self) -> None:
        """Commit; a turn whose commit is refused is aborted, so that its slot is free."""
        try:
            await self._commit()
        except ENDED:
            raise
        except RoostError as error:
            # Without an answer nobody knows what was stored: the lease decides.
            if error.reason or error.code not in NO_ANSWER:
                try:
                    await self._abort()
                except RoostError as failure:
                    error.add_note(f"the turn could not be aborted ({failure}); it ends with its lease")
            raise
        if not self.finished:
            # A commit that was to go on, tried again here: after the block there is nobody to go on.
            await self._abort()

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None  # from here on a loss cancels nobody
        if self._cancelled_body and task is not None:
            ours = task.uncancel() <= self._cancelling
            if ours and isinstance(error, asyncio.CancelledError):
                raise self._lost_error() from None
        if error is None:
            await self._finish(failed=False)
            return
        if self.finished:
            return
        try:
            await self._finish(failed=True)
        except RoostError as failure:
            # The block's own exception is the one to see; this one says what became of the turn.
            error.add_note(f"the turn could not be aborted ({failure}); it ends with its lease")

    def _check_open(self) -> None:
        if self._loss is not None:
            raise self._loss
        if self.finished:
            raise RuntimeError(f"turn {self.number} of session {self.session_id} is already finished")

    def _granted(self, grant: turns.Grant, asked: float) -> None:
        """Take over a new lease. `asked`: loop time at which the call was sent, so that we never count too long."""
        self._grant = grant
        self._request = None
        self._request_id = str(uuid.uuid4())
        self._lease_seconds = seconds(grant.lease_duration) or 60.0
        self.renewed(asked)

    def _given(self, grant: turns.Grant, asked: float) -> None:
        """It is made with a grant that a call at loop time `asked` brought; its block renews it."""
        self._asked = asked
        self._granted(grant, asked)

    def renewed(self, asked: float) -> None:
        """The lease was extended by a call that was sent at loop time `asked`."""
        self._expires_at = asked + self._lease_seconds
        self.renew_at = asked + self._lease_seconds / 3

    def lose(self, error: RoostError) -> None:
        """The server said that the lease is over: tell the block."""
        if self.finished:
            return
        self._loss = error
        self._end()
        self.lost.set()
        if self._on_lost is not None:
            self._on_lost()
        if self._task is not None and not self._task.done():
            self._cancelled_body = True
            self._task.cancel(msg=f"roost: {error}")

    def _lost_error(self) -> RoostError:
        return self._loss or LeaseLost("the lease was lost")

    def _end(self) -> None:
        self.finished = True
        self._client._renewals.remove(self)

    async def _commit(self) -> turns.CommitTurnResponse:
        request = self._request
        assert request is not None
        asked = asyncio.get_running_loop().time()
        try:
            response = await self._client._commit(request)
        except ENDED:
            self._end()
            raise
        if response.HasField("next"):
            self._granted(response.next, asked)
        else:
            if response.HasField("next_refused"):
                self.next_refused = from_refusal(response.next_refused, "CommitTurn")
            self._end()
        return response

    async def _abort(self, final: bool = False) -> turns.AbortTurnResponse:
        self._client._renewals.remove(self)
        request = turns.AbortTurnRequest(
            session_id=self.session_id, lease=self._grant.lease, request_id=str(uuid.uuid4()), final=final
        )
        if self._request is not None:
            request.record.CopyFrom(self._request.record)
            request.timings.update(self._request.timings)
        try:
            response = await self._client._abort(request)
        except ENDED:
            raise
        except RoostError as error:
            # The transport's own limits have no reason.
            refused = error.code in REFUSED or (error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not error.reason)
            if self._request is None or not refused:
                raise
            # What was recorded is what the server refuses: free the slot without it.
            request.ClearField("record")
            request.ClearField("timings")
            request.request_id = str(uuid.uuid4())
            response = await self._client._abort(request)
        finally:
            self.finished = True
        return response


class Renewals:
    """Renews all live turns of one client: one task, one RenewTurns for all that are due at about the same time."""

    LIMIT = 1000  # leases a RenewTurns may carry

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._turns: set[AsyncTurn] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._planned = float("inf")

    def add(self, turn: AsyncTurn) -> None:
        """Renew this turn from now on."""
        self._turns.add(turn)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="roost-renewals")
        elif turn.renew_at < self._planned:
            self._wake.set()

    def remove(self, turn: AsyncTurn) -> None:
        """Renew it no more."""
        self._turns.discard(turn)

    def interrupted(self, session_id: str, number: int) -> None:
        """Someone of this client interrupted that turn: if it is one of ours, it need not wait for its renewal."""
        for turn in self._turns:
            if (turn.session_id, turn.number) == (session_id, number):
                turn.interrupt_requested.set()

    async def close(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._planned = min((turn.renew_at for turn in self._turns), default=float("inf"))
            pause = self._planned - clock()
            if pause > 0:
                self._wake.clear()
                try:
                    async with asyncio.timeout(pause if self._turns else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            now = clock()
            # Whatever is due within a twelfth of a lease goes along: one call instead of many.
            due = [turn for turn in self._turns if turn.renew_at - turn._lease_seconds / 12 <= now]
            for start in range(0, len(due), self.LIMIT):
                await self._renew(due[start : start + self.LIMIT])

    async def _renew(self, due: list[AsyncTurn]) -> None:
        asked = asyncio.get_running_loop().time()
        request = turns.RenewTurnsRequest(
            renewals=[turns.Renewal(session_id=t.session_id, lease=t.grant.lease, tokens=t.tokens_used) for t in due]
        )
        leases = [turn.grant.lease for turn in due]
        try:
            # Up to a third of the shortest lease: two more tries fit before the first of them ends.
            response = await self._client._renew(request, timeout=min(t._lease_seconds for t in due) / 3)
        except Exception as error:  # noqa: BLE001 - renewal must not die silently; it goes on
            log.warning("renewing %d leases failed, trying again: %s", len(due), error)
            for turn in due:
                turn.renew_at = asyncio.get_running_loop().time() + min(1.0, turn._lease_seconds / 20)
            return
        for turn, lease, result in zip(due, leases, response.results, strict=False):
            if turn not in self._turns or turn.grant.lease != lease:
                continue  # it ended, or went on to its next turn, while the call was under way
            if result.HasField("refusal"):
                turn.lose(from_refusal(result.refusal, "RenewTurns"))
                continue
            turn.renewed(asked)
            if result.interrupt_requested:
                turn.interrupt_requested.set()
