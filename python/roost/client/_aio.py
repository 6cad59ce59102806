"""AsyncClient: every RPC of the spine as a method, and `turn`, which most programs use instead of three of them.

This is the one implementation. The sync `Client` (`_sync.py`) is generated from its signatures and runs it on a
thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf import wrappers_pb2

from roost.client import _convert as convert
from roost.client import _keys, _tls
from roost.client._retry import RetryPolicy
from roost.client._transport import Option, Response, Transport
from roost.client._turn import AsyncTurn, Renewals
from roost.client._watch import Resync, reopened
from roost.client.training import Assembler, Exported
from roost.errors import CallTimeout, ConnectionFailed, ShuttingDown
from roost.v1 import admin_service_pb2 as admin
from roost.v1 import mail_service_pb2 as mail
from roost.v1 import resource_service_pb2 as resources
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import trajectory_service_pb2 as trajectory
from roost.v1 import turn_service_pb2 as turns
from roost.v1 import types_pb2 as types

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
    from types import TracebackType

    from google.protobuf.message import Message

    from roost.client._convert import (
        CloseReason,
        EventKind,
        IfExists,
        IfRunning,
        Letter,
        MessageState,
        ResourceKind,
        ResourceState,
        Seconds,
        Selection,
        State,
        Style,
        Then,
    )
    from roost.client._tls import Tls
    from roost.client._watch import OwnerEvent, SessionNews

log = logging.getLogger("roost.client")

Result = TypeVar("Result")

SESSION = "/roost.v1.SessionService/"
TURN = "/roost.v1.TurnService/"
MAIL = "/roost.v1.MailService/"
RESOURCE = "/roost.v1.ResourceService/"
TRAJECTORY = "/roost.v1.TrajectoryService/"
ADMIN = "/roost.v1.AdminService/"
# The messages of the health service have one field each, so these wrappers are the same on the wire: no other package
# is needed for them.
HEALTH = "/grpc.health.v1.Health/"
_SERVING = 1

WAIT_MARGIN = 10.0  # seconds a waiting call may take beyond its wait


class AsyncClient:
    """A client of one Roost server, for asyncio.

    `target`: host:port or unix:PATH. `timeout`: seconds after which a call gives up, its repeats included (a call that
    waits: wait + 10 s; streams: `stream_timeout`); every method takes its own. `retry`: how calls are repeated; every
    mutation carries a request_id (made here unless given), so that a repeat has one effect. `owner`: names this
    program in BeginTurn, AttachResource and WatchOwner. `tls`: True, or a `Tls` that names files and the server; None
    takes what ROOST_TLS and the variables beside it say, plaintext where they say nothing; `credentials`: gRPC's own,
    in its place. `options`: more grpc channel options. `api_key`: sent with each call; None takes that of
    ROOST_API_KEY, "" sends none. `tenant`: the one that an admin acts for.

    Calls raise the classes of `roost.errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 10.0,
        stream_timeout: float = 300.0,
        retry: RetryPolicy | None = None,
        owner: str = "",
        api_key: str | None = None,
        tenant: str = "",
        tls: Tls | bool | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        options: Sequence[Option] = (),
    ) -> None:
        self.target = target
        self.timeout = timeout
        self.stream_timeout = stream_timeout
        self.owner = owner
        if credentials is None:
            secured = _tls.chosen(tls)
            if secured is not None:
                credentials, options = secured.credentials(), [*secured.options(), *options]
        elif tls:
            raise ValueError("give tls or credentials, not both")
        metadata = [*metadata, *_keys.metadata(target, api_key, tenant, credentials is not None)]
        self._transport = Transport(
            target, credentials=credentials, options=options, metadata=metadata, retry=retry or RetryPolicy()
        )
        self._renewals = Renewals(self)
        self._background: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what ends turns in the background, stop renewing, close the connections."""
        if self._background:
            await asyncio.wait(set(self._background))
        await self._renewals.close()
        await self._transport.close()

    @property
    def retries(self) -> int:
        """How many calls were repeated so far."""
        return self._transport.retries

    # -- sessions

    async def open_session(
        self,
        session_id: str = "",
        *,
        parent: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        stale_timeout: Seconds | None = None,
        if_exists: IfExists = "refuse",
        validate_only: bool = False,
        mint_key: bool = False,
        wake_on_completion: bool = False,
        first_message: Letter | None = None,
        fork_from: str = "",
        fork_turn: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> sessions.OpenSessionResponse:
        """Make a session. An empty id is derived from the request_id; the answer bears it. `mint_key`: the answer's
        `session_key` is a key of the session, for the agent that runs it. `wake_on_completion`: what the ends of its
        children tell it makes it runnable. `first_message`: put into its mailbox with it; its content, or what
        `roost.client.message_input` makes. `fork_from`: begin with a copy of that session's history, up to `fork_turn`
        (0: all of it).

        Raises SessionExists, PathCollision, ParentNotFound, SessionClosed (the id ended), TreeSessions, TreeDepth,
        TenantSessions.
        """
        request = sessions.OpenSessionRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            options=open_options(
                parent=parent,
                name=name,
                labels=labels,
                stale_timeout=stale_timeout,
                wake_on_completion=wake_on_completion,
            ),
            if_exists=convert.IF_EXISTS[if_exists],
            validate_only=validate_only,
            mint_key=mint_key,
            first_message=convert.letter(first_message),
            fork_from=sessions.ForkFrom(session_id=fork_from, turn=fork_turn) if fork_from else None,
        )
        return await self._call(SESSION + "OpenSession", request, sessions.OpenSessionResponse, timeout)

    async def get_session(self, session_id: str, *, timeout: float | None = None) -> types.Session:
        """Read one session. Loads nothing on the server and does not count as a use. Raises SessionNotFound."""
        request = sessions.GetSessionRequest(session_id=session_id)
        return (await self._call(SESSION + "GetSession", request, sessions.GetSessionResponse, timeout)).session

    async def list_sessions(
        self,
        *,
        root: str = "",
        path_prefix: str = "",
        state: State | None = None,
        running: bool = False,
        resident: bool = False,
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[types.Session]:
        """Iterate over sessions in order of creation, reading page after page. All filters must match. `timeout`
        holds for each page."""
        request = sessions.ListSessionsRequest(
            page_size=page_size,
            root_session_id=root,
            path_prefix=path_prefix,
            state=convert.session_state(state),
            activity=types.ACTIVITY_RUNNING if running else None,
            residency=types.RESIDENCY_RESIDENT if resident else None,
            labels=labels,
        )
        while True:
            page = await self._call(SESSION + "ListSessions", request, sessions.ListSessionsResponse, timeout)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update_session(
        self,
        session_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        stale_timeout: Seconds | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> types.Session:
        """Set labels (an empty value removes one) or the staleness; with neither it is a sign of life."""
        request = sessions.UpdateSessionRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            labels=labels,
            stale_timeout=convert.duration(stale_timeout),
        )
        return (await self._call(SESSION + "UpdateSession", request, sessions.UpdateSessionResponse, timeout)).session

    async def read_history(
        self,
        session_id: str,
        *,
        statuses: Iterable[types.RecordStatus] = (),
        omit_payload: bool = False,
        from_turn: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[types.Record]:
        """Iterate over the records of a session, oldest first, in every state of it. `timeout` bounds the whole."""
        request = sessions.ReadHistoryRequest(
            session_id=session_id, statuses=statuses, omit_payload=omit_payload, from_turn=from_turn
        )
        pages = self._stream(SESSION + "ReadHistory", request, sessions.ReadHistoryResponse, timeout)
        async for page in pages:
            for record in page.records:
                yield record

    async def close_session(
        self,
        session_id: str,
        *,
        reason: CloseReason = "quit",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> sessions.CloseSessionResponse:
        """End a session and its open descendants. Closing again returns the same receipt. Reasons reload, fork, new
        and resume change nothing (`closed` is False). A caller that is cancelled has it closed all the same."""
        request = sessions.CloseSessionRequest(
            session_id=session_id, request_id=_request_id(request_id), reason=convert.close_reason(reason)
        )
        call = self._call(SESSION + "CloseSession", request, sessions.CloseSessionResponse, timeout)
        return await asyncio.shield(self._protect(call))

    async def reopen_session(
        self, session_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> sessions.ReopenSessionResponse:
        """Make a CLOSED session OPEN again, with its history and the descendants that the same close took down; an OPEN
        one is returned as it is (`reopened` is 0). Raises SessionNotFound, SessionSealed (its clean-up still runs),
        SessionPurged, SessionClosed (its parent has ended), PathCollision."""
        request = sessions.ReopenSessionRequest(session_id=session_id, request_id=_request_id(request_id))
        return await self._call(SESSION + "ReopenSession", request, sessions.ReopenSessionResponse, timeout)

    async def interrupt_session(
        self, session_id: str, *, force: bool = False, request_id: str | None = None, timeout: float | None = None
    ) -> sessions.InterruptSessionResponse:
        """Ask the running turn of one session to end (its holder learns it with the next renewal, one of this client at
        once), or end its wait. `force`: end the turn at once. Raises SessionNotFound, SessionClosed."""
        request = sessions.InterruptSessionRequest(
            session_id=session_id, request_id=_request_id(request_id), force=force
        )
        answer = await self._call(SESSION + "InterruptSession", request, sessions.InterruptSessionResponse, timeout)
        if answer.turn and not answer.repeated:
            self._renewals.interrupted(session_id, answer.turn)
        return answer

    async def watch_sessions(
        self,
        *,
        root: str = "",
        path_prefix: str = "",
        kinds: Iterable[EventKind] = (),
        timeout: float | None = None,
    ) -> AsyncIterator[SessionNews]:
        """Iterate for ever over what happens to sessions from now on, in order: to those of the tree of `root`, at
        `path_prefix` and below, of these kinds; all filters must match. `timeout`: seconds of each stream.

        The first item is a `Resync`: what happened before is not told. A stream that breaks is taken up where it broke;
        where that is not possible another `Resync` comes, once. Only a server that cannot be reached at the start is an
        error, and with retries off every break. Raises SessionNotFound, SessionClosed (the key's session has ended).
        """
        # From here on no broken connection is told: a wrong address must be.
        first = sessions.ListSessionsRequest(page_size=1)
        await self._call(SESSION + "ListSessions", first, sessions.ListSessionsResponse, None)
        request = sessions.WatchSessionsRequest(
            root_session_id=root, path_prefix=path_prefix, kinds=[convert.event_kind(kind) for kind in kinds]
        )

        def stream() -> AsyncIterator[sessions.WatchSessionsResponse]:
            return self._stream(SESSION + "WatchSessions", request, sessions.WatchSessionsResponse, timeout)

        async for _, answer in reopened(stream, self._transport.retry, "sessions"):
            if answer.resync or not request.resume_token:
                yield Resync()
            for event in answer.events:
                yield event
            request.resume_token = answer.resume_token

    # -- turns

    def turn(
        self,
        session_id: str,
        *,
        open: types.OpenOptions | bool = False,
        wait: Seconds = 0,
        expected_turn: int | None = None,
        expected_head_version: int | None = None,
        known_head_version: int | None = None,
        lease: Seconds | None = None,
        owner: str | None = None,
        priority: int = 0,
        if_running: IfRunning = "refuse",
        want_provisional: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncTurn:
        """Run one turn as a block: `async with client.turn("s1") as turn: ...`. Parameters as in `begin_turn`.

        Begins on entry, renews in the background, commits at the end of the block what `turn.record` set, aborts if
        the block raises. See AsyncTurn.
        """
        request_id = _request_id(request_id)

        async def begin() -> turns.BeginTurnResponse:
            return await self.begin_turn(
                session_id,
                open=open,
                wait=wait,
                expected_turn=expected_turn,
                expected_head_version=expected_head_version,
                known_head_version=known_head_version,
                lease=lease,
                owner=owner,
                priority=priority,
                if_running=if_running,
                want_provisional=want_provisional,
                request_id=request_id,
                timeout=timeout,
            )

        return AsyncTurn(self, session_id, begin)

    async def begin_turn(
        self,
        session_id: str,
        *,
        open: types.OpenOptions | bool = False,
        wait: Seconds = 0,
        expected_turn: int | None = None,
        expected_head_version: int | None = None,
        known_head_version: int | None = None,
        lease: Seconds | None = None,
        owner: str | None = None,
        priority: int = 0,
        if_running: IfRunning = "refuse",
        want_provisional: bool = False,
        validate_only: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> turns.BeginTurnResponse:
        """Take a slot and a lease. Nothing renews it: see `renew_turns`, or use `turn`.

        `open`: make the session if its id never existed (True: with default options). `wait`: seconds to queue for a
        slot. `lease`: seconds it lives without renewal (5 s to 1 h, default 60 s). `if_running="takeover"`: end a turn
        that runs as if its lease had run out, and take its slot. `want_provisional`: return what the last attempt at
        this turn left. A repeat with the same request_id returns the same lease while the turn runs. Raises
        TurnInProgress, TurnMismatch, TurnEnded, TurnInterrupted, SessionNotFound, SessionClosed, TreeTurns,
        TenantTurns.
        """
        options = types.OpenOptions() if open is True else open or None
        queue = convert.duration(wait) if wait else None
        waiting = queue is not None and convert.seconds(queue) > 0
        request = turns.BeginTurnRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            open=options,
            wait=queue,
            expected_turn=expected_turn,
            expected_head_version=expected_head_version,
            known_head_version=known_head_version,
            lease_duration=convert.duration(lease),
            owner=self.owner if owner is None else owner,
            priority=priority,
            if_running=convert.IF_RUNNING[if_running],
            want_provisional=want_provisional,
            validate_only=validate_only,
        )
        if timeout is None and queue is not None:
            timeout = convert.seconds(queue) + WAIT_MARGIN
        return await self._call(TURN + "BeginTurn", request, turns.BeginTurnResponse, timeout, waiting=waiting)

    async def poll_turn(
        self,
        *,
        wait: Seconds = 30,
        root: str = "",
        lease: Seconds | None = None,
        owner: str | None = None,
        want_provisional: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncTurn | None:
        """Begin a turn in the next session that a message has made runnable; None if none became so in `wait` seconds
        (from 1 to 300). `root`: only sessions of the tree of this root. The other parameters are those of `begin_turn`.

        `async with turn: ...` runs it, as a turn of `turn`: it is renewed from there on. `turn.session_id` says whose
        it is, `turn.mail` what for. A repeat with the same request_id returns the same turn while that runs. Raises
        QueueFull.
        """
        limit = convert.duration(wait)
        request = turns.PollTurnRequest(
            request_id=_request_id(request_id),
            owner=self.owner if owner is None else owner,
            wait=limit,
            lease_duration=convert.duration(lease),
            root_session_id=root,
            want_provisional=want_provisional,
        )
        if timeout is None and limit is not None:
            timeout = max(convert.seconds(limit), 1.0) + WAIT_MARGIN
        asked = asyncio.get_running_loop().time()
        answer = await self._call(TURN + "PollTurn", request, turns.PollTurnResponse, timeout, waiting=True)
        if not answer.session_id:
            return None

        async def begun() -> turns.BeginTurnResponse:
            return turns.BeginTurnResponse(uid=answer.uid, grant=answer.grant)

        turn = AsyncTurn(self, answer.session_id, begun)
        turn.uid = answer.uid
        turn._given(answer.grant, asked)
        return turn

    async def renew_turns(
        self, renewals: Iterable[turns.Renewal], *, timeout: float | None = None
    ) -> Sequence[turns.RenewalResult]:
        """Move the deadlines of up to 1,000 leases. One result each, in order; a refused one bears `refusal`."""
        request = turns.RenewTurnsRequest(renewals=renewals)
        return (await self._call(TURN + "RenewTurns", request, turns.RenewTurnsResponse, timeout)).results

    async def commit_turn(
        self,
        session_id: str,
        lease: bytes,
        record: types.RecordInput | None = None,
        *,
        state: bytes | None = None,
        max_trim: int = 0,
        new_segment: bool = False,
        then: Then = "idle",
        completed: bool = False,
        completion: Letter | None = None,
        base_turn: int | None = None,
        timings: Mapping[str, float] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> turns.CommitTurnResponse:
        """Commit a turn; the answer comes when it is durable. `record`: see `roost.client.record_input`. `completed`:
        the task is complete, which the parent is told; `completion`: with what content. `base_turn`: build on that turn
        and supersede what was committed after it. `timings`: ms by name, for the server's log. Idempotent by lease.
        Raises LeaseLost, SessionClosed, TokenPrefixMismatch, RewindRefused."""
        request = turns.CommitTurnRequest(
            session_id=session_id,
            lease=lease,
            request_id=_request_id(request_id),
            record=record,
            state=state,
            max_trim=max_trim,
            new_segment=new_segment,
            then=convert.THEN[then],
            completed=completed,
            completion=convert.letter(completion),
            base_turn=base_turn,
            timings=timings,
        )
        return await self._commit(request, timeout)

    async def abort_turn(
        self,
        session_id: str,
        lease: bytes,
        record: types.RecordInput | None = None,
        *,
        final: bool = False,
        timings: Mapping[str, float] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> turns.AbortTurnResponse:
        """Abort a turn: `record` stays as PROVISIONAL, head and checkpoint do not move; with `final` it is ABORTED for
        good. Idempotent by lease. Raises LeaseLost, SessionClosed."""
        request = turns.AbortTurnRequest(
            session_id=session_id,
            lease=lease,
            request_id=_request_id(request_id),
            record=record,
            final=final,
            timings=timings,
        )
        return await self._abort(request, timeout)

    async def get_checkpoint(
        self,
        session_id: str,
        lease: bytes,
        *,
        known_head_version: int | None = None,
        from_offset: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[turns.Checkpoint]:
        """Iterate over the parts of the checkpoint that a lease starts from. `turn` does it by itself where the grant
        left the tokens out. Raises LeaseLost, SessionClosed, SessionNotFound."""
        request = turns.GetCheckpointRequest(
            session_id=session_id, lease=lease, known_head_version=known_head_version, from_offset=from_offset
        )
        parts = self._stream(TURN + "GetCheckpoint", request, turns.GetCheckpointResponse, timeout)
        async for part in parts:
            yield part.checkpoint

    # -- mail

    async def send(
        self,
        session_id: str,
        content: bytes | str,
        *,
        content_type: str = "",
        labels: Mapping[str, str] | None = None,
        trigger: bool = False,
        ttl: Seconds | None = None,
        sender: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> mail.SendMessageResponse:
        """Put a message into a session's mailbox; its next turn gets it. Text becomes UTF-8. `trigger`: the session
        becomes runnable, for `poll_turn`. `ttl`: seconds after which it is EXPIRED if no turn has taken it. `sender`:
        the session that it is from; "": that of the client's key, or a host. Raises MailboxFull, RootTrigger (a
        descendant may not trigger the root), SessionNotFound, SessionClosed."""
        request = mail.SendMessageRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            message=convert.message_input(content, content_type=content_type, labels=labels, trigger=trigger, ttl=ttl),
            sender_session_id=sender,
        )
        return await self._call(MAIL + "SendMessage", request, mail.SendMessageResponse, timeout)

    async def wait_mail(
        self, session_id: str, *, wait: Seconds = 0, after: int = 0, timeout: float | None = None
    ) -> mail.WaitMailResponse:
        """Wait until a session has mail that no turn has taken, at most `wait` seconds (to 300); the answer's `queued`
        says how much, 0 if the wait ended without any. `after`: the `cursor` of an earlier answer, so that only newer
        mail counts. Delivers nothing: the next turn gets it. Raises QueueFull, SessionNotFound, SessionClosed."""
        request = mail.WaitMailRequest(
            session_id=session_id, wait=convert.duration(wait) if wait else None, after=after
        )
        limit = convert.seconds(request.wait)
        if timeout is None and limit > 0:
            timeout = limit + WAIT_MARGIN
        return await self._call(MAIL + "WaitMail", request, mail.WaitMailResponse, timeout, waiting=limit > 0)

    async def list_mail(
        self,
        session_id: str = "",
        *,
        sender: str = "",
        states: Iterable[MessageState] = (),
        omit_content: bool = False,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[types.Message]:
        """Iterate over the messages to a session, or from one (`sender`), in order of sending, reading page after page;
        each says what became of it. `states`: only these. In every state of the session; delivers nothing. `timeout`
        holds for each page. Raises SessionNotFound, SessionPurged, SessionRestoring."""
        request = mail.ListMailRequest(
            session_id=session_id,
            sender_session_id=sender,
            states=[convert.message_state(state) for state in states],
            omit_content=omit_content,
            page_size=page_size,
        )
        while True:
            page = await self._call(MAIL + "ListMail", request, mail.ListMailResponse, timeout)
            for message in page.messages:
                yield message
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    # -- resources

    async def attach_resource(
        self,
        session_id: str,
        kind: ResourceKind,
        *,
        owner: str | None = None,
        handle: str = "",
        pool: resources.Pool | None = None,
        wait: Seconds | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> resources.AttachResourceResponse:
        """Give something outside that is to end with the session its name, before it is made: make it under the `name`
        of the answer, then `confirm_resource`.

        `kind`: who ends it: "client" (this host, see `watch_owner`), or the server over "http", or as a "process" or a
        "tmux" session on its machine. `owner`: the host that makes it; None: the client's. `handle`: what finds it
        beside its name. `pool`: see `roost.client.resource_pool`. `wait`: seconds to wait for a place in the pool;
        None: until `timeout`, then CallTimeout; 0: not at all. A repeat with the same request_id returns the same
        resource. Raises PoolFull, ResourceLimit, DriverOff, ResourceReleasing (a repeat, of one that is to end),
        SessionNotFound, SessionClosed.
        """
        request = resources.AttachResourceRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            kind=convert.resource_kind(kind),
            owner=self.owner if owner is None else owner,
            handle=handle,
            pool=pool,
            wait=convert.duration(wait),
        )
        limit = convert.seconds(request.wait) if wait is not None else None
        waiting = pool is not None and limit != 0
        if timeout is None and limit is not None and waiting:
            timeout = limit + WAIT_MARGIN
        response = resources.AttachResourceResponse
        return await self._call(RESOURCE + "AttachResource", request, response, timeout, waiting=waiting)

    async def confirm_resource(
        self, session_id: str, name: str, handle: str = "", *, timeout: float | None = None
    ) -> resources.AttachResourceResponse:
        """Say that a resource is there, and what finds it beside its name ("": what was said before). Raises
        ResourceReleasing (it is to end: end it, then `detach_resource`), ResourceNotFound, SessionNotFound,
        SessionClosed."""
        request = resources.AttachResourceRequest(session_id=session_id, name=name, handle=handle)
        return await self._call(RESOURCE + "AttachResource", request, resources.AttachResourceResponse, timeout)

    async def detach_resource(
        self, session_id: str, name: str, *, timeout: float | None = None
    ) -> resources.DetachResourceResponse:
        """Of kind "client": say that it has ended; it is known no more. Of other kinds: have the server end it, or try
        again at once; `released` says whether it has. In every state of the session; again does no harm. Raises
        ResourceNotFound (the name was never one of this session's), SessionNotFound."""
        request = resources.DetachResourceRequest(session_id=session_id, name=name)
        return await self._call(RESOURCE + "DetachResource", request, resources.DetachResourceResponse, timeout)

    async def list_resources(
        self,
        *,
        session_id: str = "",
        root: str = "",
        owner: str = "",
        state: ResourceState | None = None,
        pool: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[resources.Resource]:
        """Iterate over resources in the order of their names, reading page after page: those of a session, of the tree
        of a `root`, of an owner, in a state, of a pool. All filters must match. `timeout` holds for each page. Raises
        SessionNotFound."""
        request = resources.ListResourcesRequest(
            session_id=session_id,
            root_session_id=root,
            owner=owner,
            state=convert.resource_state(state),
            pool=pool,
            page_size=page_size,
        )
        while True:
            page = await self._call(RESOURCE + "ListResources", request, resources.ListResourcesResponse, timeout)
            for resource in page.resources:
                yield resource
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def reconcile_inventory(
        self,
        node: str,
        items: Iterable[resources.InventoryItem],
        *,
        listing_time: Seconds,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> resources.ReconcileInventoryResponse:
        """Ask which of the things that this node has are orphans, and which of them are to be ended now: exactly those
        instances. `items`: all of them, at most 10,000; never a list that may not be whole. `listing_time`: seconds
        that listing took. `dry_run`: it counts for nothing. Come again after `next` of the answer.

        The one call that is never repeated by itself: what was found would be older than the server takes it to be.
        List again instead. Raises KeyScope.
        """
        request = resources.ReconcileInventoryRequest(
            node=node, items=items, listing_time=convert.duration(listing_time), dry_run=dry_run
        )
        limit = self.timeout if timeout is None else timeout
        response = resources.ReconcileInventoryResponse
        return await self._transport.call(RESOURCE + "ReconcileInventory", request, response, timeout=limit, safe=False)

    async def watch_owner(
        self, owner: str | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[turns.Release]:
        """Iterate for ever over the resources of kind "client" that their host is to end: end each, then
        `detach_resource`. `owner`: the host; None: the client's. `timeout`: seconds of each stream.

        A stream that breaks is opened again, and tells all that is still to be done once more: what was not detached by
        then comes again, so that ending it must do no harm where it has ended. Only a server that cannot be reached at
        the start is an error, and with retries off every break. Raises KeyScope.
        """
        async for event in self.watch_owner_events(owner, timeout=timeout):
            if isinstance(event, turns.Release):
                yield event

    async def watch_owner_events(
        self, owner: str | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[OwnerEvent]:
        """Iterate for ever over all that a host is told: `Interrupt` (end this turn), `LeaseLost` (somebody else has
        ended it), `OwnedSessionClosed`, `MailWaiting` (the session is runnable: begin a turn), and `Release` as of
        `watch_owner`. Its own are the turns that it began, and the sessions whose latest turn is one of these.

        A stream that breaks is opened again, and begins with what is still to be done: interrupts, mail and releases
        come once more. What ended in between is not told: renewals and commits say so. Errors as of `watch_owner`.
        """
        name = self.owner if owner is None else owner
        # From here on no broken connection is told: a wrong address must be.
        first = resources.ListResourcesRequest(owner=name, page_size=1)
        await self._call(RESOURCE + "ListResources", first, resources.ListResourcesResponse, None)
        request = turns.WatchOwnerRequest(owner=name)

        def stream() -> AsyncIterator[turns.WatchOwnerResponse]:
            return self._stream(TURN + "WatchOwner", request, turns.WatchOwnerResponse, timeout)

        released, stream_number = set[str](), 0
        async for number, answer in reopened(stream, self._transport.retry, name):
            what = answer.WhichOneof("event")
            if number != stream_number:
                released, stream_number = set(), number
            if what is None or (what == "release" and answer.release.name in released):
                continue  # it is of a newer server, or told again
            if what == "release":
                released.add(answer.release.name)
            yield getattr(answer, what)

    # -- trajectories, operation

    async def set_reward(
        self,
        session_id: str,
        reward: float,
        *,
        turn: int = 0,
        finish_after: Seconds | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> trajectory.SetRewardResponse:
        """Reward a turn of the active trajectory (0: the last one). `finish_after`: seconds after which the trajectory
        becomes READY by itself; 0: now, or when the running turn has ended. Raises TurnNotFound, TrajectoryEmpty,
        TrajectoryFinished, SessionNotFound, SessionClosed."""
        request = trajectory.SetRewardRequest(
            session_id=session_id,
            request_id=_request_id(request_id),
            turn=turn,
            reward=reward,
            finish_after=convert.duration(finish_after),
        )
        return await self._call(TRAJECTORY + "SetReward", request, trajectory.SetRewardResponse, timeout)

    async def finish_trajectory(
        self,
        session_id: str,
        *,
        reward: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> trajectory.FinishTrajectoryResponse:
        """Make the active trajectory READY; the next one starts. `reward`: of its last turn. Raises TurnInProgress,
        TrajectoryEmpty, SessionNotFound, SessionClosed."""
        request = trajectory.FinishTrajectoryRequest(
            session_id=session_id, request_id=_request_id(request_id), reward=reward
        )
        return await self._call(TRAJECTORY + "FinishTrajectory", request, trajectory.FinishTrajectoryResponse, timeout)

    async def ack_trajectories(
        self, trajectory_ids: Iterable[str], *, timeout: float | None = None
    ) -> Sequence[trajectory.AckResult]:
        """Say that up to 1,000 READY trajectories have been taken. One result each, in order; a refused one bears
        `refusal`."""
        request = trajectory.AckTrajectoriesRequest(trajectory_ids=trajectory_ids)
        answer = await self._call(TRAJECTORY + "AckTrajectories", request, trajectory.AckTrajectoriesResponse, timeout)
        return answer.results

    async def restore_sessions(
        self, dump_names: Iterable[str], *, request_id: str | None = None, timeout: float | None = None
    ) -> Sequence[trajectory.RestoreResult]:
        """Make up to 100 sessions from their dumps in the server's dump target. They come back CLOSED; `reopen_session`
        makes them live. Parents come before their children whatever the order here. One result each, in order; a
        refused one bears `refusal`. A long one takes its time: give it a `timeout` (seconds). Raises NoDumpTarget."""
        request = trajectory.RestoreSessionsRequest(dump_names=dump_names, request_id=_request_id(request_id))
        method = TRAJECTORY + "RestoreSessions"
        answer = await self._call(method, request, trajectory.RestoreSessionsResponse, timeout)
        return answer.results

    async def trajectories(
        self,
        session_ids: Iterable[str] = (),
        *,
        root: str = "",
        trajectory_ids: Iterable[str] = (),
        selection: Selection = "ready",
        style: Style = "individual",
        discount: float | None = None,
        follow: bool = False,
        after_sequence: int = 0,
        limit: int = 0,
        include_provisional: bool = False,
        include_superseded: bool = False,
        omit_payload: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Exported]:
        """Iterate over whole trajectories: see `roost.client.training` for what to make of them.

        Those that are READY and not acknowledged, in that order; `selection="all"`: every one, acknowledged and
        unfinished ones too. `follow`: wait for the next ones for ever; a stream that breaks is taken up again where
        it broke, and only a server that cannot be reached at the start is an error. `discount`: 0 to 1, of rewards,
        backward through each trajectory; None is 1. `timeout`: of each stream. Raises SessionCorrupt, SessionNotFound,
        TrajectoryNotFound.
        """
        named = list(trajectory_ids)
        request = trajectory.ExportTrajectoriesRequest(
            session_ids=session_ids,
            root_session_id=root,
            trajectory_ids=named,
            selection=None if named else convert.SELECTION[selection],
            style=convert.STYLE[style],
            discount=discount,
            follow=follow,
            after_sequence=after_sequence,
            limit=limit,
            include_provisional=include_provisional,
            include_superseded=include_superseded,
            omit_payload=omit_payload,
        )
        if follow:
            # From here on no broken connection is told: a wrong address must be.
            first = sessions.ListSessionsRequest(page_size=1)
            await self._call(SESSION + "ListSessions", first, sessions.ListSessionsResponse, None)
        left = limit
        while True:
            whole = Assembler()
            try:
                async for part in self._export(request, timeout):
                    done = whole.add(part)
                    if done is None:
                        continue
                    if follow:
                        request.after_sequence, request.limit = done.trajectory.ready_sequence, max(left - 1, 0)
                    yield done
                    left -= 1
                    if left == 0:
                        return
                return
            except (ConnectionFailed, CallTimeout, ShuttingDown) as error:
                # A follower outlives connections, their age limits and restarts. What came whole is not asked for
                # again.
                if not follow:
                    raise
                log.info("following trajectories: the stream ended (%s); it is taken up again", error)
                await asyncio.sleep(self._transport.retry.initial)

    async def export_trajectories(
        self,
        session_ids: Iterable[str] = (),
        *,
        root: str = "",
        selection: Selection = "ready",
        include_provisional: bool = False,
        include_superseded: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[trajectory.ExportTrajectoriesResponse]:
        """Iterate over parts of trajectories, for those too large to be held whole (else see `trajectories`): parts
        of one follow each other, the first bears `session` and `trajectory`, the last says `last`. At most 1,000 ids;
        none: all sessions. Raises SessionCorrupt, SessionNotFound.
        """
        request = trajectory.ExportTrajectoriesRequest(
            session_ids=session_ids,
            root_session_id=root,
            selection=convert.SELECTION[selection],
            include_provisional=include_provisional,
            include_superseded=include_superseded,
        )
        async for part in self._export(request, timeout):
            yield part

    async def check_health(self, service: str = "ready", *, timeout: float | None = None) -> bool:
        """Ask the standard health service: `ready`, whether the server takes calls, or `live`. Needs no key."""
        request = wrappers_pb2.StringValue(value=service)
        answer = await self._call(HEALTH + "Check", request, wrappers_pb2.Int32Value, timeout)
        return answer.value == _SERVING

    async def get_stats(self, *, timeout: float | None = None) -> admin.GetStatsResponse:
        """Read the server's counters, gauges and limits."""
        return await self._call(ADMIN + "GetStats", admin.GetStatsRequest(), admin.GetStatsResponse, timeout)

    async def sweep(self, *, dry_run: bool = False, timeout: float | None = None) -> admin.SweepResponse:
        """Find the stale trees, and have the server close them now; with `dry_run` only find them."""
        request = admin.SweepRequest(dry_run=dry_run)
        return await self._call(ADMIN + "Sweep", request, admin.SweepResponse, timeout)

    async def set_limits(
        self,
        limits: Mapping[str, int] | None = None,
        *,
        reset: Iterable[str] = (),
        timeout: float | None = None,
    ) -> admin.SetLimitsResponse:
        """Change limits by name while the server runs, and have the configuration say those of `reset` again: all of it
        or nothing. Kept over restarts. Answers all limits in force. Raises InvalidField, KeyScope."""
        request = admin.SetLimitsRequest(limits=limits, reset=reset)
        return await self._call(ADMIN + "SetLimits", request, admin.SetLimitsResponse, timeout)

    async def create_api_key(
        self, tenant: str = "", *, request_id: str | None = None, timeout: float | None = None
    ) -> admin.CreateApiKeyResponse:
        """Make a key of a tenant ("": default). The answer's `key` is shown here only; a repeat with the same
        request_id shows it again. Raises TenantKeys (two are active), KeysOff, KeyLost, KeyScope."""
        request = admin.CreateApiKeyRequest(tenant=tenant, request_id=_request_id(request_id))
        return await self._call(ADMIN + "CreateApiKey", request, admin.CreateApiKeyResponse, timeout)

    async def revoke_api_key(self, key_id: str, *, timeout: float | None = None) -> admin.RevokeApiKeyResponse:
        """Revoke a tenant's key; from the answer on it is not accepted. Raises KeyNotFound, KeyScope."""
        request = admin.RevokeApiKeyRequest(key_id=key_id)
        return await self._call(ADMIN + "RevokeApiKey", request, admin.RevokeApiKeyResponse, timeout)

    async def list_api_keys(
        self, *, tenant: str = "", page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[admin.ApiKey]:
        """Iterate over the keys of a tenant, or of all, in order of creation, revoked ones too; never the keys
        themselves. `timeout` holds for each page."""
        request = admin.ListApiKeysRequest(tenant=tenant, page_size=page_size)
        while True:
            page = await self._call(ADMIN + "ListApiKeys", request, admin.ListApiKeysResponse, timeout)
            for key in page.api_keys:
                yield key
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    # -- inside

    async def _call(
        self,
        method: str,
        request: Message,
        response: type[Response],
        timeout: float | None,
        *,
        waiting: bool = False,
    ) -> Response:
        # Every request here is a read, a renewal, or carries a request_id: repeating is safe.
        limit = self.timeout if timeout is None else timeout
        return await self._transport.call(method, request, response, timeout=limit, safe=True, waiting=waiting)

    def _stream(
        self, method: str, request: Message, response: type[Response], timeout: float | None
    ) -> AsyncIterator[Response]:
        limit = self.stream_timeout if timeout is None else timeout
        return self._transport.stream(method, request, response, timeout=limit)

    def _export(
        self, request: trajectory.ExportTrajectoriesRequest, timeout: float | None
    ) -> AsyncIterator[trajectory.ExportTrajectoriesResponse]:
        response = trajectory.ExportTrajectoriesResponse
        return self._stream(TRAJECTORY + "ExportTrajectories", request, response, timeout)

    async def _commit(self, request: turns.CommitTurnRequest, timeout: float | None = None) -> turns.CommitTurnResponse:
        return await self._call(TURN + "CommitTurn", request, turns.CommitTurnResponse, timeout)

    async def _abort(self, request: turns.AbortTurnRequest, timeout: float | None = None) -> turns.AbortTurnResponse:
        return await self._call(TURN + "AbortTurn", request, turns.AbortTurnResponse, timeout)

    async def _renew(self, request: turns.RenewTurnsRequest, timeout: float) -> turns.RenewTurnsResponse:
        return await self._call(TURN + "RenewTurns", request, turns.RenewTurnsResponse, timeout)

    def _protect(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run what ends a turn or a session to its end even if the caller, who waits for `asyncio.shield` of it, is
        cancelled: a slot must not stay taken because its holder was in a hurry. Bounded by the call's deadline; `close`
        waits."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._protected)
        return task

    def _protected(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("ending a turn: %s", error)


def open_options(
    *,
    parent: str = "",
    name: str = "",
    labels: Mapping[str, str] | None = None,
    stale_timeout: Seconds | None = None,
    wake_on_completion: bool = False,
) -> types.OpenOptions:
    """How a new session is made: for `open_session` and for `open=` of `turn` and `begin_turn`. `stale_timeout`:
    seconds, 0 = never, None = the server's default. `wake_on_completion`: what the ends of its children tell it makes
    it runnable."""
    return types.OpenOptions(
        parent_session_id=parent,
        name=name,
        labels=labels,
        stale_timeout=convert.duration(stale_timeout),
        wake_on_completion=wake_on_completion,
    )


def _request_id(given: str | None) -> str:
    return str(uuid.uuid4()) if given is None else given
