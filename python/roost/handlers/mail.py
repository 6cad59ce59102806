"""ListMail: the messages to or from one session, in order of sending, and what became of each."""

from __future__ import annotations

import uuid
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from roost.handlers.cold import PAGE_BYTES, Cold
from roost.handlers.errors import invalid, parse
from roost.handlers.paging import mark_of, position_of, size_of, token_of
from roost.handlers.wire import field, repeated
from roost.store.base import ListedMail, MailFilter
from roost.store.v1.store_pb2 import MessageMeta
from roost.v1 import mail_service_pb2 as pb
from roost.v1 import types_pb2

EXAMINED: Final = 5_000  # messages that one page looks at for such as match its filters
_PLACE: Final = 8  # bytes of a sequence in a token
_LARGEST: Final = (1 << 63) - 1

log = structlog.get_logger("roost.mail")


def list_mail(cold: Cold, data: bytes) -> bytes:
    """Answer one page, encoded. Loads nothing and delivers nothing."""
    request = parse(cold.engine, pb.ListMailRequest, data)
    where = _filter(cold, request)
    size = size_of(cold, request)
    mark = mark_of(request, cold.tenant)
    after = int.from_bytes(position_of(cold, request.page_token, mark), "big") & _LARGEST
    rows, following = cold.store.list_mail(where, after, size, EXAMINED, PAGE_BYTES)
    page = [message for row in rows if (message := _encoded(row)) is not None]
    token = token_of(following.to_bytes(_PLACE, "big"), mark) if following is not None else ""
    return repeated(1, page) + (field(2, token.encode()) if token else b"")


def _filter(cold: Cold, request: pb.ListMailRequest) -> MailFilter:
    """What the store filters by; Refused for what no list has, and for a session that the caller does not reach. Who
    reaches one end of a message may see all of it."""
    if bool(request.session_id) == bool(request.sender_session_id):
        raise invalid(cold.engine, "session_id", "give either session_id or sender_session_id")
    states = 0
    for state in request.states:
        if not state or state not in types_pb2.MessageState.values():
            raise invalid(cold.engine, "states", f"{state} is not accepted as a filter", value=state)
        states |= 1 << state
    recipient = sender = None
    if request.session_id:
        row = cold.session(request.session_id)
        cold.check_content(row)
        recipient, request.session_id = row.uid, row.session_id  # the list goes on with whom it began with
    else:
        # What it sent is its recipients': it is there when its own content is not any more.
        row = cold.session(request.sender_session_id, "sender_session_id")
        sender, request.sender_session_id = row.uid, row.session_id
    return MailFilter(recipient, sender, states, cold.engine.wall_ms(), not request.omit_content)


def _encoded(row: ListedMail) -> bytes | None:
    """A message as its sender and its recipient see it; None for one that is damaged: the others are still listed."""
    try:
        meta = MessageMeta.FromString(row.meta)
    except DecodeError:
        log.error("message_corrupt", seq=row.seq)  # noqa: TRY400 - the exception could quote it
        return None
    message = types_pb2.Message(
        message_id=str(uuid.UUID(bytes=row.message_id)),
        kind=row.kind,  # type: ignore[arg-type]
        session_id=row.session_id,
        sender_session_id=meta.sender_session_id,
        sender_path=meta.sender_path,
        content=row.content or b"",
        content_type=meta.content_type,
        labels=meta.labels,
        trigger=meta.trigger,
        state=row.state,  # type: ignore[arg-type]
        deliveries=row.deliveries,
        turn=meta.turn,
        close_reason=meta.close_reason,  # type: ignore[arg-type]
    )
    message.create_time.FromMilliseconds(row.create_ms)
    if row.expire:
        message.expire_time.FromMilliseconds(row.expire)
    return message.SerializeToString()
