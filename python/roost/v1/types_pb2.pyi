from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATE_UNSPECIFIED: _ClassVar[SessionState]
    SESSION_STATE_OPEN: _ClassVar[SessionState]
    SESSION_STATE_SEALED: _ClassVar[SessionState]
    SESSION_STATE_CLOSED: _ClassVar[SessionState]

class Activity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVITY_UNSPECIFIED: _ClassVar[Activity]
    ACTIVITY_IDLE: _ClassVar[Activity]
    ACTIVITY_WAITING: _ClassVar[Activity]
    ACTIVITY_PAUSED: _ClassVar[Activity]
    ACTIVITY_RUNNING: _ClassVar[Activity]

class TurnOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TURN_OUTCOME_UNSPECIFIED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_NONE: _ClassVar[TurnOutcome]
    TURN_OUTCOME_COMMITTED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_COMPLETED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_ABORTED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_FAILED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_INTERRUPTED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_EXPIRED: _ClassVar[TurnOutcome]

class Residency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIDENCY_UNSPECIFIED: _ClassVar[Residency]
    RESIDENCY_RESIDENT: _ClassVar[Residency]
    RESIDENCY_UNLOADED: _ClassVar[Residency]

class RecordStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECORD_STATUS_UNSPECIFIED: _ClassVar[RecordStatus]
    RECORD_STATUS_COMMITTED: _ClassVar[RecordStatus]
    RECORD_STATUS_PROVISIONAL: _ClassVar[RecordStatus]
    RECORD_STATUS_ABORTED: _ClassVar[RecordStatus]
    RECORD_STATUS_SUPERSEDED: _ClassVar[RecordStatus]

class CloseReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSE_REASON_UNSPECIFIED: _ClassVar[CloseReason]
    CLOSE_REASON_QUIT: _ClassVar[CloseReason]
    CLOSE_REASON_PARENT_CLOSED: _ClassVar[CloseReason]
    CLOSE_REASON_STALE: _ClassVar[CloseReason]
    CLOSE_REASON_ADMIN: _ClassVar[CloseReason]
    CLOSE_REASON_ERROR: _ClassVar[CloseReason]
    CLOSE_REASON_RELOAD: _ClassVar[CloseReason]
    CLOSE_REASON_FORK: _ClassVar[CloseReason]
    CLOSE_REASON_NEW: _ClassVar[CloseReason]
    CLOSE_REASON_RESUME: _ClassVar[CloseReason]

class MessageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MESSAGE_KIND_UNSPECIFIED: _ClassVar[MessageKind]
    MESSAGE_KIND_MESSAGE: _ClassVar[MessageKind]
    MESSAGE_KIND_COMPLETED: _ClassVar[MessageKind]
    MESSAGE_KIND_FAILED: _ClassVar[MessageKind]
    MESSAGE_KIND_CLOSED: _ClassVar[MessageKind]

class MessageState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MESSAGE_STATE_UNSPECIFIED: _ClassVar[MessageState]
    MESSAGE_STATE_QUEUED: _ClassVar[MessageState]
    MESSAGE_STATE_DELIVERED: _ClassVar[MessageState]
    MESSAGE_STATE_CONSUMED: _ClassVar[MessageState]
    MESSAGE_STATE_EXPIRED: _ClassVar[MessageState]
    MESSAGE_STATE_DEAD: _ClassVar[MessageState]
    MESSAGE_STATE_CLOSED: _ClassVar[MessageState]
SESSION_STATE_UNSPECIFIED: SessionState
SESSION_STATE_OPEN: SessionState
SESSION_STATE_SEALED: SessionState
SESSION_STATE_CLOSED: SessionState
ACTIVITY_UNSPECIFIED: Activity
ACTIVITY_IDLE: Activity
ACTIVITY_WAITING: Activity
ACTIVITY_PAUSED: Activity
ACTIVITY_RUNNING: Activity
TURN_OUTCOME_UNSPECIFIED: TurnOutcome
TURN_OUTCOME_NONE: TurnOutcome
TURN_OUTCOME_COMMITTED: TurnOutcome
TURN_OUTCOME_COMPLETED: TurnOutcome
TURN_OUTCOME_ABORTED: TurnOutcome
TURN_OUTCOME_FAILED: TurnOutcome
TURN_OUTCOME_INTERRUPTED: TurnOutcome
TURN_OUTCOME_EXPIRED: TurnOutcome
RESIDENCY_UNSPECIFIED: Residency
RESIDENCY_RESIDENT: Residency
RESIDENCY_UNLOADED: Residency
RECORD_STATUS_UNSPECIFIED: RecordStatus
RECORD_STATUS_COMMITTED: RecordStatus
RECORD_STATUS_PROVISIONAL: RecordStatus
RECORD_STATUS_ABORTED: RecordStatus
RECORD_STATUS_SUPERSEDED: RecordStatus
CLOSE_REASON_UNSPECIFIED: CloseReason
CLOSE_REASON_QUIT: CloseReason
CLOSE_REASON_PARENT_CLOSED: CloseReason
CLOSE_REASON_STALE: CloseReason
CLOSE_REASON_ADMIN: CloseReason
CLOSE_REASON_ERROR: CloseReason
CLOSE_REASON_RELOAD: CloseReason
CLOSE_REASON_FORK: CloseReason
CLOSE_REASON_NEW: CloseReason
CLOSE_REASON_RESUME: CloseReason
MESSAGE_KIND_UNSPECIFIED: MessageKind
MESSAGE_KIND_MESSAGE: MessageKind
MESSAGE_KIND_COMPLETED: MessageKind
MESSAGE_KIND_FAILED: MessageKind
MESSAGE_KIND_CLOSED: MessageKind
MESSAGE_STATE_UNSPECIFIED: MessageState
MESSAGE_STATE_QUEUED: MessageState
MESSAGE_STATE_DELIVERED: MessageState
MESSAGE_STATE_CONSUMED: MessageState
MESSAGE_STATE_EXPIRED: MessageState
MESSAGE_STATE_DEAD: MessageState
MESSAGE_STATE_CLOSED: MessageState

class WeightVersionRun(_message.Message):
    __slots__ = ("version", "count")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    version: int
    count: int
    def __init__(self, version: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TokenSpan(_message.Message):
    __slots__ = ("offset", "token_ids", "logprobs", "loss_mask", "weight_versions")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOSS_MASK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    token_ids: bytes
    logprobs: bytes
    loss_mask: bytes
    weight_versions: _containers.RepeatedCompositeFieldContainer[WeightVersionRun]
    def __init__(self, offset: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., loss_mask: _Optional[bytes] = ..., weight_versions: _Optional[_Iterable[_Union[WeightVersionRun, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("name", "dtype", "shape", "uri", "sha256", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    uri: str
    sha256: bytes
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., uri: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class RecordInput(_message.Message):
    __slots__ = ("content", "content_type", "tokens", "usage", "finish_reason", "labels", "attachments")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    content_type: str
    tokens: TokenSpan
    usage: Usage
    finish_reason: str
    labels: _containers.ScalarMap[str, str]
    attachments: _containers.RepeatedCompositeFieldContainer[Attachment]
    def __init__(self, content: _Optional[bytes] = ..., content_type: _Optional[str] = ..., tokens: _Optional[_Union[TokenSpan, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., finish_reason: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., attachments: _Optional[_Iterable[_Union[Attachment, _Mapping]]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("turn", "attempt", "status", "record", "create_time", "outcome", "head_version", "fence", "new_segment", "owner", "reward", "trajectory", "discounted_reward", "base_turn")
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    NEW_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    DISCOUNTED_REWARD_FIELD_NUMBER: _ClassVar[int]
    BASE_TURN_FIELD_NUMBER: _ClassVar[int]
    turn: int
    attempt: int
    status: RecordStatus
    record: RecordInput
    create_time: _timestamp_pb2.Timestamp
    outcome: TurnOutcome
    head_version: int
    fence: int
    new_segment: bool
    owner: str
    reward: float
    trajectory: int
    discounted_reward: float
    base_turn: int
    def __init__(self, turn: _Optional[int] = ..., attempt: _Optional[int] = ..., status: _Optional[_Union[RecordStatus, str]] = ..., record: _Optional[_Union[RecordInput, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[TurnOutcome, str]] = ..., head_version: _Optional[int] = ..., fence: _Optional[int] = ..., new_segment: bool = ..., owner: _Optional[str] = ..., reward: _Optional[float] = ..., trajectory: _Optional[int] = ..., discounted_reward: _Optional[float] = ..., base_turn: _Optional[int] = ...) -> None: ...

class RunningTurn(_message.Message):
    __slots__ = ("turn", "attempt", "owner", "begin_time", "interrupt_requested")
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    BEGIN_TIME_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    attempt: int
    owner: str
    begin_time: _timestamp_pb2.Timestamp
    interrupt_requested: bool
    def __init__(self, turn: _Optional[int] = ..., attempt: _Optional[int] = ..., owner: _Optional[str] = ..., begin_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., interrupt_requested: bool = ...) -> None: ...

class CloseReceipt(_message.Message):
    __slots__ = ("reason", "close_time", "slots_released", "children_closed", "turn_count", "close_number", "provisionals_aborted", "dump_name", "resources", "unread_messages")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLOSE_TIME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_RELEASED_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_CLOSED_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROVISIONALS_ABORTED_FIELD_NUMBER: _ClassVar[int]
    DUMP_NAME_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    UNREAD_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    reason: CloseReason
    close_time: _timestamp_pb2.Timestamp
    slots_released: int
    children_closed: int
    turn_count: int
    close_number: int
    provisionals_aborted: int
    dump_name: str
    resources: int
    unread_messages: int
    def __init__(self, reason: _Optional[_Union[CloseReason, str]] = ..., close_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., slots_released: _Optional[int] = ..., children_closed: _Optional[int] = ..., turn_count: _Optional[int] = ..., close_number: _Optional[int] = ..., provisionals_aborted: _Optional[int] = ..., dump_name: _Optional[str] = ..., resources: _Optional[int] = ..., unread_messages: _Optional[int] = ...) -> None: ...

class Cleanup(_message.Message):
    __slots__ = ("closed_time", "dump_time", "dump_bytes", "dump_sha256", "attempts", "error", "due_time", "purged_time", "restored_time")
    CLOSED_TIME_FIELD_NUMBER: _ClassVar[int]
    DUMP_TIME_FIELD_NUMBER: _ClassVar[int]
    DUMP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DUMP_SHA256_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    PURGED_TIME_FIELD_NUMBER: _ClassVar[int]
    RESTORED_TIME_FIELD_NUMBER: _ClassVar[int]
    closed_time: _timestamp_pb2.Timestamp
    dump_time: _timestamp_pb2.Timestamp
    dump_bytes: int
    dump_sha256: bytes
    attempts: int
    error: str
    due_time: _timestamp_pb2.Timestamp
    purged_time: _timestamp_pb2.Timestamp
    restored_time: _timestamp_pb2.Timestamp
    def __init__(self, closed_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., dump_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., dump_bytes: _Optional[int] = ..., dump_sha256: _Optional[bytes] = ..., attempts: _Optional[int] = ..., error: _Optional[str] = ..., due_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., purged_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., restored_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "uid", "parent_session_id", "root_session_id", "path", "state", "activity", "last_outcome", "residency", "turn_count", "head_version", "checkpoint_tokens", "labels", "stale_timeout", "create_time", "running", "receipt", "provisional_turn", "trajectory", "trajectory_first_turn", "finish_time", "cleanup", "wake_on_completion", "owner")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    PARENT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    LAST_OUTCOME_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STALE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_TURN_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIRST_TURN_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    CLEANUP_FIELD_NUMBER: _ClassVar[int]
    WAKE_ON_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    uid: str
    parent_session_id: str
    root_session_id: str
    path: str
    state: SessionState
    activity: Activity
    last_outcome: TurnOutcome
    residency: Residency
    turn_count: int
    head_version: int
    checkpoint_tokens: int
    labels: _containers.ScalarMap[str, str]
    stale_timeout: _duration_pb2.Duration
    create_time: _timestamp_pb2.Timestamp
    running: RunningTurn
    receipt: CloseReceipt
    provisional_turn: int
    trajectory: int
    trajectory_first_turn: int
    finish_time: _timestamp_pb2.Timestamp
    cleanup: Cleanup
    wake_on_completion: bool
    owner: str
    def __init__(self, session_id: _Optional[str] = ..., uid: _Optional[str] = ..., parent_session_id: _Optional[str] = ..., root_session_id: _Optional[str] = ..., path: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., activity: _Optional[_Union[Activity, str]] = ..., last_outcome: _Optional[_Union[TurnOutcome, str]] = ..., residency: _Optional[_Union[Residency, str]] = ..., turn_count: _Optional[int] = ..., head_version: _Optional[int] = ..., checkpoint_tokens: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., stale_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., running: _Optional[_Union[RunningTurn, _Mapping]] = ..., receipt: _Optional[_Union[CloseReceipt, _Mapping]] = ..., provisional_turn: _Optional[int] = ..., trajectory: _Optional[int] = ..., trajectory_first_turn: _Optional[int] = ..., finish_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., cleanup: _Optional[_Union[Cleanup, _Mapping]] = ..., wake_on_completion: bool = ..., owner: _Optional[str] = ...) -> None: ...

class MessageInput(_message.Message):
    __slots__ = ("content", "content_type", "labels", "trigger", "ttl")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    content_type: str
    labels: _containers.ScalarMap[str, str]
    trigger: bool
    ttl: _duration_pb2.Duration
    def __init__(self, content: _Optional[bytes] = ..., content_type: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., trigger: bool = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("message_id", "kind", "session_id", "sender_session_id", "sender_path", "content", "content_type", "labels", "trigger", "state", "deliveries", "create_time", "expire_time", "turn", "close_reason")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_REASON_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    kind: MessageKind
    session_id: str
    sender_session_id: str
    sender_path: str
    content: bytes
    content_type: str
    labels: _containers.ScalarMap[str, str]
    trigger: bool
    state: MessageState
    deliveries: int
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    turn: int
    close_reason: CloseReason
    def __init__(self, message_id: _Optional[str] = ..., kind: _Optional[_Union[MessageKind, str]] = ..., session_id: _Optional[str] = ..., sender_session_id: _Optional[str] = ..., sender_path: _Optional[str] = ..., content: _Optional[bytes] = ..., content_type: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., trigger: bool = ..., state: _Optional[_Union[MessageState, str]] = ..., deliveries: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., turn: _Optional[int] = ..., close_reason: _Optional[_Union[CloseReason, str]] = ...) -> None: ...

class OpenOptions(_message.Message):
    __slots__ = ("parent_session_id", "name", "labels", "stale_timeout", "wake_on_completion")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STALE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    WAKE_ON_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    parent_session_id: str
    name: str
    labels: _containers.ScalarMap[str, str]
    stale_timeout: _duration_pb2.Duration
    wake_on_completion: bool
    def __init__(self, parent_session_id: _Optional[str] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., stale_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., wake_on_completion: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...
