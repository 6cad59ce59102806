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

class IfRunning(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IF_RUNNING_UNSPECIFIED: _ClassVar[IfRunning]
    IF_RUNNING_REFUSE: _ClassVar[IfRunning]
    IF_RUNNING_TAKEOVER: _ClassVar[IfRunning]

class Then(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THEN_UNSPECIFIED: _ClassVar[Then]
    THEN_IDLE: _ClassVar[Then]
    THEN_CONTINUE: _ClassVar[Then]
    THEN_CLOSE: _ClassVar[Then]
IF_RUNNING_UNSPECIFIED: IfRunning
IF_RUNNING_REFUSE: IfRunning
IF_RUNNING_TAKEOVER: IfRunning
THEN_UNSPECIFIED: Then
THEN_IDLE: Then
THEN_CONTINUE: Then
THEN_CLOSE: Then

class Checkpoint(_message.Message):
    __slots__ = ("offset", "token_ids", "length", "state", "omitted")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    offset: int
    token_ids: bytes
    length: int
    state: bytes
    omitted: bool
    def __init__(self, offset: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., length: _Optional[int] = ..., state: _Optional[bytes] = ..., omitted: bool = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("lease", "turn", "attempt", "head_version", "fence", "expire_time", "lease_duration", "checkpoint", "queue_wait", "provisional", "mail", "more_mail")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAIT_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    MAIL_FIELD_NUMBER: _ClassVar[int]
    MORE_MAIL_FIELD_NUMBER: _ClassVar[int]
    lease: bytes
    turn: int
    attempt: int
    head_version: int
    fence: int
    expire_time: _timestamp_pb2.Timestamp
    lease_duration: _duration_pb2.Duration
    checkpoint: Checkpoint
    queue_wait: _duration_pb2.Duration
    provisional: _types_pb2.Record
    mail: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    more_mail: int
    def __init__(self, lease: _Optional[bytes] = ..., turn: _Optional[int] = ..., attempt: _Optional[int] = ..., head_version: _Optional[int] = ..., fence: _Optional[int] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., lease_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., queue_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., provisional: _Optional[_Union[_types_pb2.Record, _Mapping]] = ..., mail: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., more_mail: _Optional[int] = ...) -> None: ...

class BeginTurnRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "open", "wait", "expected_turn", "expected_head_version", "known_head_version", "lease_duration", "owner", "priority", "validate_only", "if_running", "want_provisional", "session_final")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TURN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    IF_RUNNING_FIELD_NUMBER: _ClassVar[int]
    WANT_PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FINAL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    open: _types_pb2.OpenOptions
    wait: _duration_pb2.Duration
    expected_turn: int
    expected_head_version: int
    known_head_version: int
    lease_duration: _duration_pb2.Duration
    owner: str
    priority: int
    validate_only: bool
    if_running: IfRunning
    want_provisional: bool
    session_final: bool
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., open: _Optional[_Union[_types_pb2.OpenOptions, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., expected_turn: _Optional[int] = ..., expected_head_version: _Optional[int] = ..., known_head_version: _Optional[int] = ..., lease_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., owner: _Optional[str] = ..., priority: _Optional[int] = ..., validate_only: bool = ..., if_running: _Optional[_Union[IfRunning, str]] = ..., want_provisional: bool = ..., session_final: bool = ...) -> None: ...

class BeginTurnResponse(_message.Message):
    __slots__ = ("grant", "uid", "created", "receipt")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    uid: str
    created: bool
    receipt: _types_pb2.CloseReceipt
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ..., uid: _Optional[str] = ..., created: bool = ..., receipt: _Optional[_Union[_types_pb2.CloseReceipt, _Mapping]] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("session_id", "lease", "tokens")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease: bytes
    tokens: int
    def __init__(self, session_id: _Optional[str] = ..., lease: _Optional[bytes] = ..., tokens: _Optional[int] = ...) -> None: ...

class RenewalResult(_message.Message):
    __slots__ = ("refusal", "expire_time", "interrupt_requested")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    refusal: _types_pb2.Refusal
    expire_time: _timestamp_pb2.Timestamp
    interrupt_requested: bool
    def __init__(self, refusal: _Optional[_Union[_types_pb2.Refusal, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., interrupt_requested: bool = ...) -> None: ...

class RenewTurnsRequest(_message.Message):
    __slots__ = ("renewals",)
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    renewals: _containers.RepeatedCompositeFieldContainer[Renewal]
    def __init__(self, renewals: _Optional[_Iterable[_Union[Renewal, _Mapping]]] = ...) -> None: ...

class RenewTurnsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RenewalResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RenewalResult, _Mapping]]] = ...) -> None: ...

class CommitTurnRequest(_message.Message):
    __slots__ = ("session_id", "lease", "request_id", "record", "state", "max_trim", "new_segment", "then", "completed", "base_turn", "timings", "completion")
    class TimingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MAX_TRIM_FIELD_NUMBER: _ClassVar[int]
    NEW_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    BASE_TURN_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease: bytes
    request_id: str
    record: _types_pb2.RecordInput
    state: bytes
    max_trim: int
    new_segment: bool
    then: Then
    completed: bool
    base_turn: int
    timings: _containers.ScalarMap[str, float]
    completion: _types_pb2.MessageInput
    def __init__(self, session_id: _Optional[str] = ..., lease: _Optional[bytes] = ..., request_id: _Optional[str] = ..., record: _Optional[_Union[_types_pb2.RecordInput, _Mapping]] = ..., state: _Optional[bytes] = ..., max_trim: _Optional[int] = ..., new_segment: bool = ..., then: _Optional[_Union[Then, str]] = ..., completed: bool = ..., base_turn: _Optional[int] = ..., timings: _Optional[_Mapping[str, float]] = ..., completion: _Optional[_Union[_types_pb2.MessageInput, _Mapping]] = ...) -> None: ...

class CommitTurnResponse(_message.Message):
    __slots__ = ("turn", "head_version", "next", "next_refused", "receipt", "repeated")
    TURN_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    NEXT_REFUSED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    head_version: int
    next: Grant
    next_refused: _types_pb2.Refusal
    receipt: _types_pb2.CloseReceipt
    repeated: bool
    def __init__(self, turn: _Optional[int] = ..., head_version: _Optional[int] = ..., next: _Optional[_Union[Grant, _Mapping]] = ..., next_refused: _Optional[_Union[_types_pb2.Refusal, _Mapping]] = ..., receipt: _Optional[_Union[_types_pb2.CloseReceipt, _Mapping]] = ..., repeated: bool = ...) -> None: ...

class AbortTurnRequest(_message.Message):
    __slots__ = ("session_id", "lease", "request_id", "record", "final", "timings")
    class TimingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease: bytes
    request_id: str
    record: _types_pb2.RecordInput
    final: bool
    timings: _containers.ScalarMap[str, float]
    def __init__(self, session_id: _Optional[str] = ..., lease: _Optional[bytes] = ..., request_id: _Optional[str] = ..., record: _Optional[_Union[_types_pb2.RecordInput, _Mapping]] = ..., final: bool = ..., timings: _Optional[_Mapping[str, float]] = ...) -> None: ...

class AbortTurnResponse(_message.Message):
    __slots__ = ("turn", "attempt", "status", "repeated")
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    attempt: int
    status: _types_pb2.RecordStatus
    repeated: bool
    def __init__(self, turn: _Optional[int] = ..., attempt: _Optional[int] = ..., status: _Optional[_Union[_types_pb2.RecordStatus, str]] = ..., repeated: bool = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("session_id", "lease", "known_head_version", "from_offset")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    FROM_OFFSET_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease: bytes
    known_head_version: int
    from_offset: int
    def __init__(self, session_id: _Optional[str] = ..., lease: _Optional[bytes] = ..., known_head_version: _Optional[int] = ..., from_offset: _Optional[int] = ...) -> None: ...

class GetCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint", "head_version", "last")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    head_version: int
    last: bool
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., head_version: _Optional[int] = ..., last: bool = ...) -> None: ...

class WatchOwnerRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: str
    def __init__(self, owner: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("session_id", "name", "handle")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    handle: str
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., handle: _Optional[str] = ...) -> None: ...

class Interrupt(_message.Message):
    __slots__ = ("session_id", "turn", "fence")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    turn: int
    fence: int
    def __init__(self, session_id: _Optional[str] = ..., turn: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class OwnedSessionClosed(_message.Message):
    __slots__ = ("session_id", "reason")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reason: _types_pb2.CloseReason
    def __init__(self, session_id: _Optional[str] = ..., reason: _Optional[_Union[_types_pb2.CloseReason, str]] = ...) -> None: ...

class LeaseLost(_message.Message):
    __slots__ = ("session_id", "turn", "fence", "outcome")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    turn: int
    fence: int
    outcome: _types_pb2.TurnOutcome
    def __init__(self, session_id: _Optional[str] = ..., turn: _Optional[int] = ..., fence: _Optional[int] = ..., outcome: _Optional[_Union[_types_pb2.TurnOutcome, str]] = ...) -> None: ...

class MailWaiting(_message.Message):
    __slots__ = ("session_id", "queued")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    queued: int
    def __init__(self, session_id: _Optional[str] = ..., queued: _Optional[int] = ...) -> None: ...

class WatchOwnerResponse(_message.Message):
    __slots__ = ("release", "interrupt", "closed", "lease_lost", "mail")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    LEASE_LOST_FIELD_NUMBER: _ClassVar[int]
    MAIL_FIELD_NUMBER: _ClassVar[int]
    release: Release
    interrupt: Interrupt
    closed: OwnedSessionClosed
    lease_lost: LeaseLost
    mail: MailWaiting
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ..., interrupt: _Optional[_Union[Interrupt, _Mapping]] = ..., closed: _Optional[_Union[OwnedSessionClosed, _Mapping]] = ..., lease_lost: _Optional[_Union[LeaseLost, _Mapping]] = ..., mail: _Optional[_Union[MailWaiting, _Mapping]] = ...) -> None: ...

class PollTurnRequest(_message.Message):
    __slots__ = ("request_id", "owner", "wait", "lease_duration", "root_session_id", "want_provisional")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    WANT_PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    owner: str
    wait: _duration_pb2.Duration
    lease_duration: _duration_pb2.Duration
    root_session_id: str
    want_provisional: bool
    def __init__(self, request_id: _Optional[str] = ..., owner: _Optional[str] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., lease_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., root_session_id: _Optional[str] = ..., want_provisional: bool = ...) -> None: ...

class PollTurnResponse(_message.Message):
    __slots__ = ("session_id", "uid", "grant")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    uid: str
    grant: Grant
    def __init__(self, session_id: _Optional[str] = ..., uid: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ...) -> None: ...
