from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from roost.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IfExists(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IF_EXISTS_UNSPECIFIED: _ClassVar[IfExists]
    IF_EXISTS_REFUSE: _ClassVar[IfExists]
    IF_EXISTS_RETURN: _ClassVar[IfExists]

class SessionEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_EVENT_KIND_UNSPECIFIED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_OPENED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_TURN_BEGUN: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_TURN_ENDED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_INTERRUPTED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_MAIL: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_CLOSED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_REOPENED: _ClassVar[SessionEventKind]
    SESSION_EVENT_KIND_UPDATED: _ClassVar[SessionEventKind]
IF_EXISTS_UNSPECIFIED: IfExists
IF_EXISTS_REFUSE: IfExists
IF_EXISTS_RETURN: IfExists
SESSION_EVENT_KIND_UNSPECIFIED: SessionEventKind
SESSION_EVENT_KIND_OPENED: SessionEventKind
SESSION_EVENT_KIND_TURN_BEGUN: SessionEventKind
SESSION_EVENT_KIND_TURN_ENDED: SessionEventKind
SESSION_EVENT_KIND_INTERRUPTED: SessionEventKind
SESSION_EVENT_KIND_MAIL: SessionEventKind
SESSION_EVENT_KIND_CLOSED: SessionEventKind
SESSION_EVENT_KIND_REOPENED: SessionEventKind
SESSION_EVENT_KIND_UPDATED: SessionEventKind

class OpenSessionRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "options", "if_exists", "validate_only", "mint_key", "first_message", "fork_from")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    IF_EXISTS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MINT_KEY_FIELD_NUMBER: _ClassVar[int]
    FIRST_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FORK_FROM_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    options: _types_pb2.OpenOptions
    if_exists: IfExists
    validate_only: bool
    mint_key: bool
    first_message: _types_pb2.MessageInput
    fork_from: ForkFrom
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., options: _Optional[_Union[_types_pb2.OpenOptions, _Mapping]] = ..., if_exists: _Optional[_Union[IfExists, str]] = ..., validate_only: bool = ..., mint_key: bool = ..., first_message: _Optional[_Union[_types_pb2.MessageInput, _Mapping]] = ..., fork_from: _Optional[_Union[ForkFrom, _Mapping]] = ...) -> None: ...

class ForkFrom(_message.Message):
    __slots__ = ("session_id", "turn")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    turn: int
    def __init__(self, session_id: _Optional[str] = ..., turn: _Optional[int] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "created", "session_key")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SESSION_KEY_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    created: bool
    session_key: str
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., created: bool = ..., session_key: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "root_session_id", "path_prefix", "state", "activity", "residency", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    root_session_id: str
    path_prefix: str
    state: _types_pb2.SessionState
    activity: _types_pb2.Activity
    residency: _types_pb2.Residency
    labels: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., root_session_id: _Optional[str] = ..., path_prefix: _Optional[str] = ..., state: _Optional[_Union[_types_pb2.SessionState, str]] = ..., activity: _Optional[_Union[_types_pb2.Activity, str]] = ..., residency: _Optional[_Union[_types_pb2.Residency, str]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[_types_pb2.Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[_types_pb2.Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateSessionRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "labels", "stale_timeout")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STALE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    labels: _containers.ScalarMap[str, str]
    stale_timeout: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., stale_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UpdateSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...

class ReadHistoryRequest(_message.Message):
    __slots__ = ("session_id", "statuses", "omit_payload", "from_turn")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    OMIT_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    FROM_TURN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    statuses: _containers.RepeatedScalarFieldContainer[_types_pb2.RecordStatus]
    omit_payload: bool
    from_turn: int
    def __init__(self, session_id: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[_types_pb2.RecordStatus, str]]] = ..., omit_payload: bool = ..., from_turn: _Optional[int] = ...) -> None: ...

class ReadHistoryResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    def __init__(self, records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "reason")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    reason: _types_pb2.CloseReason
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., reason: _Optional[_Union[_types_pb2.CloseReason, str]] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("closed", "receipt")
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    closed: bool
    receipt: _types_pb2.CloseReceipt
    def __init__(self, closed: bool = ..., receipt: _Optional[_Union[_types_pb2.CloseReceipt, _Mapping]] = ...) -> None: ...

class ReopenSessionRequest(_message.Message):
    __slots__ = ("session_id", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ReopenSessionResponse(_message.Message):
    __slots__ = ("session", "reopened")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REOPENED_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    reopened: int
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., reopened: _Optional[int] = ...) -> None: ...

class InterruptSessionRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "force")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    force: bool
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., force: bool = ...) -> None: ...

class InterruptSessionResponse(_message.Message):
    __slots__ = ("previous_activity", "turn", "repeated")
    PREVIOUS_ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    previous_activity: _types_pb2.Activity
    turn: int
    repeated: bool
    def __init__(self, previous_activity: _Optional[_Union[_types_pb2.Activity, str]] = ..., turn: _Optional[int] = ..., repeated: bool = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("kind", "session_id", "uid", "root_session_id", "path", "time", "turn", "attempt", "owner", "outcome", "close_reason", "queued", "trigger")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_REASON_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    kind: SessionEventKind
    session_id: str
    uid: str
    root_session_id: str
    path: str
    time: _timestamp_pb2.Timestamp
    turn: int
    attempt: int
    owner: str
    outcome: _types_pb2.TurnOutcome
    close_reason: _types_pb2.CloseReason
    queued: int
    trigger: bool
    def __init__(self, kind: _Optional[_Union[SessionEventKind, str]] = ..., session_id: _Optional[str] = ..., uid: _Optional[str] = ..., root_session_id: _Optional[str] = ..., path: _Optional[str] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., turn: _Optional[int] = ..., attempt: _Optional[int] = ..., owner: _Optional[str] = ..., outcome: _Optional[_Union[_types_pb2.TurnOutcome, str]] = ..., close_reason: _Optional[_Union[_types_pb2.CloseReason, str]] = ..., queued: _Optional[int] = ..., trigger: bool = ...) -> None: ...

class WatchSessionsRequest(_message.Message):
    __slots__ = ("resume_token", "root_session_id", "path_prefix", "kinds")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    root_session_id: str
    path_prefix: str
    kinds: _containers.RepeatedScalarFieldContainer[SessionEventKind]
    def __init__(self, resume_token: _Optional[str] = ..., root_session_id: _Optional[str] = ..., path_prefix: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[SessionEventKind, str]]] = ...) -> None: ...

class WatchSessionsResponse(_message.Message):
    __slots__ = ("events", "resume_token", "resync")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[SessionEvent]
    resume_token: str
    resync: bool
    def __init__(self, events: _Optional[_Iterable[_Union[SessionEvent, _Mapping]]] = ..., resume_token: _Optional[str] = ..., resync: bool = ...) -> None: ...
