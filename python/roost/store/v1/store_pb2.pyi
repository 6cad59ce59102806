from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENDED_BY_UNSPECIFIED: _ClassVar[EndedBy]
    ENDED_BY_COMMIT: _ClassVar[EndedBy]
    ENDED_BY_ABORT: _ClassVar[EndedBy]
    ENDED_BY_EXPIRY: _ClassVar[EndedBy]
    ENDED_BY_TAKEOVER: _ClassVar[EndedBy]
    ENDED_BY_INTERRUPT: _ClassVar[EndedBy]
    ENDED_BY_FINISH: _ClassVar[EndedBy]
ENDED_BY_UNSPECIFIED: EndedBy
ENDED_BY_COMMIT: EndedBy
ENDED_BY_ABORT: EndedBy
ENDED_BY_EXPIRY: EndedBy
ENDED_BY_TAKEOVER: EndedBy
ENDED_BY_INTERRUPT: EndedBy
ENDED_BY_FINISH: EndedBy

class SessionFacts(_message.Message):
    __slots__ = ("create_ms", "labels", "stale_timeout_ms", "last_outcome", "chain", "checkpoint_tokens", "state_seq", "open_request", "update_request", "attempts", "head_seq", "trajectories", "trajectory_turns", "trajectory_seq", "reward_request", "reward_turn", "reward_trajectory", "interrupt_request", "interrupt_activity", "interrupt_turn", "reward_value", "reward_request_turn", "reward_request_trajectory", "attempts_ahead", "past_receipts", "reopen_requests", "restore_request", "wake_on_completion")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CREATE_MS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STALE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STATE_SEQ_FIELD_NUMBER: _ClassVar[int]
    OPEN_REQUEST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_SEQ_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORIES_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_TURNS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_SEQ_FIELD_NUMBER: _ClassVar[int]
    REWARD_REQUEST_FIELD_NUMBER: _ClassVar[int]
    REWARD_TURN_FIELD_NUMBER: _ClassVar[int]
    REWARD_TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_TURN_FIELD_NUMBER: _ClassVar[int]
    REWARD_VALUE_FIELD_NUMBER: _ClassVar[int]
    REWARD_REQUEST_TURN_FIELD_NUMBER: _ClassVar[int]
    REWARD_REQUEST_TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    PAST_RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    REOPEN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    WAKE_ON_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    create_ms: int
    labels: _containers.ScalarMap[str, str]
    stale_timeout_ms: int
    last_outcome: int
    chain: bytes
    checkpoint_tokens: int
    state_seq: int
    open_request: RequestMark
    update_request: RequestMark
    attempts: int
    head_seq: int
    trajectories: int
    trajectory_turns: int
    trajectory_seq: int
    reward_request: RequestMark
    reward_turn: int
    reward_trajectory: int
    interrupt_request: RequestMark
    interrupt_activity: int
    interrupt_turn: int
    reward_value: float
    reward_request_turn: int
    reward_request_trajectory: int
    attempts_ahead: _containers.RepeatedScalarFieldContainer[int]
    past_receipts: _containers.RepeatedCompositeFieldContainer[Receipt]
    reopen_requests: _containers.RepeatedCompositeFieldContainer[RequestMark]
    restore_request: RequestMark
    wake_on_completion: bool
    def __init__(self, create_ms: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., stale_timeout_ms: _Optional[int] = ..., last_outcome: _Optional[int] = ..., chain: _Optional[bytes] = ..., checkpoint_tokens: _Optional[int] = ..., state_seq: _Optional[int] = ..., open_request: _Optional[_Union[RequestMark, _Mapping]] = ..., update_request: _Optional[_Union[RequestMark, _Mapping]] = ..., attempts: _Optional[int] = ..., head_seq: _Optional[int] = ..., trajectories: _Optional[int] = ..., trajectory_turns: _Optional[int] = ..., trajectory_seq: _Optional[int] = ..., reward_request: _Optional[_Union[RequestMark, _Mapping]] = ..., reward_turn: _Optional[int] = ..., reward_trajectory: _Optional[int] = ..., interrupt_request: _Optional[_Union[RequestMark, _Mapping]] = ..., interrupt_activity: _Optional[int] = ..., interrupt_turn: _Optional[int] = ..., reward_value: _Optional[float] = ..., reward_request_turn: _Optional[int] = ..., reward_request_trajectory: _Optional[int] = ..., attempts_ahead: _Optional[_Iterable[int]] = ..., past_receipts: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ..., reopen_requests: _Optional[_Iterable[_Union[RequestMark, _Mapping]]] = ..., restore_request: _Optional[_Union[RequestMark, _Mapping]] = ..., wake_on_completion: bool = ...) -> None: ...

class RequestMark(_message.Message):
    __slots__ = ("request_id", "hash")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    hash: bytes
    def __init__(self, request_id: _Optional[str] = ..., hash: _Optional[bytes] = ...) -> None: ...

class RunningGrant(_message.Message):
    __slots__ = ("fence", "nonce", "turn", "attempt", "owner", "lease_ms", "begin_ms", "request", "expired", "interrupted", "polled")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    POLLED_FIELD_NUMBER: _ClassVar[int]
    fence: int
    nonce: bytes
    turn: int
    attempt: int
    owner: str
    lease_ms: int
    begin_ms: int
    request: RequestMark
    expired: bool
    interrupted: bool
    polled: bool
    def __init__(self, fence: _Optional[int] = ..., nonce: _Optional[bytes] = ..., turn: _Optional[int] = ..., attempt: _Optional[int] = ..., owner: _Optional[str] = ..., lease_ms: _Optional[int] = ..., begin_ms: _Optional[int] = ..., request: _Optional[_Union[RequestMark, _Mapping]] = ..., expired: bool = ..., interrupted: bool = ..., polled: bool = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("reason", "close_ms", "slots_released", "children_closed", "turn_count", "close_number", "provisionals_aborted", "request", "close_seq", "dump_name", "resources", "unread_messages")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLOSE_MS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_RELEASED_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_CLOSED_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROVISIONALS_ABORTED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CLOSE_SEQ_FIELD_NUMBER: _ClassVar[int]
    DUMP_NAME_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    UNREAD_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    reason: int
    close_ms: int
    slots_released: int
    children_closed: int
    turn_count: int
    close_number: int
    provisionals_aborted: int
    request: RequestMark
    close_seq: int
    dump_name: str
    resources: int
    unread_messages: int
    def __init__(self, reason: _Optional[int] = ..., close_ms: _Optional[int] = ..., slots_released: _Optional[int] = ..., children_closed: _Optional[int] = ..., turn_count: _Optional[int] = ..., close_number: _Optional[int] = ..., provisionals_aborted: _Optional[int] = ..., request: _Optional[_Union[RequestMark, _Mapping]] = ..., close_seq: _Optional[int] = ..., dump_name: _Optional[str] = ..., resources: _Optional[int] = ..., unread_messages: _Optional[int] = ...) -> None: ...

class Cleanup(_message.Message):
    __slots__ = ("closed_ms", "dump_bytes", "dump_sha256", "dump_ms", "attempts", "error", "purging", "purged_ms", "restoring", "restored_ms")
    CLOSED_MS_FIELD_NUMBER: _ClassVar[int]
    DUMP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DUMP_SHA256_FIELD_NUMBER: _ClassVar[int]
    DUMP_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PURGING_FIELD_NUMBER: _ClassVar[int]
    PURGED_MS_FIELD_NUMBER: _ClassVar[int]
    RESTORING_FIELD_NUMBER: _ClassVar[int]
    RESTORED_MS_FIELD_NUMBER: _ClassVar[int]
    closed_ms: int
    dump_bytes: int
    dump_sha256: bytes
    dump_ms: int
    attempts: int
    error: str
    purging: bool
    purged_ms: int
    restoring: bool
    restored_ms: int
    def __init__(self, closed_ms: _Optional[int] = ..., dump_bytes: _Optional[int] = ..., dump_sha256: _Optional[bytes] = ..., dump_ms: _Optional[int] = ..., attempts: _Optional[int] = ..., error: _Optional[str] = ..., purging: bool = ..., purged_ms: _Optional[int] = ..., restoring: bool = ..., restored_ms: _Optional[int] = ...) -> None: ...

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

class RecordMeta(_message.Message):
    __slots__ = ("turn", "attempt", "fence", "outcome", "head_version", "create_ms", "nonce", "begin_request", "end_request", "content_type", "finish_reason", "labels", "token_offset", "token_count", "new_segment", "weight_versions", "prompt_tokens", "completion_tokens", "cached_tokens", "has_usage", "owner", "tokens_digest", "content_digest", "arrays_digest", "logprobs_bytes", "state_digest", "has_tokens", "then", "next_fence", "ended_by", "base_turn", "attachments", "trajectory", "trajectory_base", "finishes", "next_refused")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TURN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_MS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_REQUEST_FIELD_NUMBER: _ClassVar[int]
    END_REQUEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEW_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HAS_USAGE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HAS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_FENCE_FIELD_NUMBER: _ClassVar[int]
    ENDED_BY_FIELD_NUMBER: _ClassVar[int]
    BASE_TURN_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_BASE_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_REFUSED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    attempt: int
    fence: int
    outcome: int
    head_version: int
    create_ms: int
    nonce: bytes
    begin_request: RequestMark
    end_request: RequestMark
    content_type: str
    finish_reason: str
    labels: _containers.ScalarMap[str, str]
    token_offset: int
    token_count: int
    new_segment: bool
    weight_versions: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    has_usage: bool
    owner: str
    tokens_digest: bytes
    content_digest: bytes
    arrays_digest: bytes
    logprobs_bytes: int
    state_digest: bytes
    has_tokens: bool
    then: int
    next_fence: int
    ended_by: EndedBy
    base_turn: int
    attachments: _containers.RepeatedCompositeFieldContainer[Attachment]
    trajectory: int
    trajectory_base: int
    finishes: bool
    next_refused: str
    def __init__(self, turn: _Optional[int] = ..., attempt: _Optional[int] = ..., fence: _Optional[int] = ..., outcome: _Optional[int] = ..., head_version: _Optional[int] = ..., create_ms: _Optional[int] = ..., nonce: _Optional[bytes] = ..., begin_request: _Optional[_Union[RequestMark, _Mapping]] = ..., end_request: _Optional[_Union[RequestMark, _Mapping]] = ..., content_type: _Optional[str] = ..., finish_reason: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., token_offset: _Optional[int] = ..., token_count: _Optional[int] = ..., new_segment: bool = ..., weight_versions: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., has_usage: bool = ..., owner: _Optional[str] = ..., tokens_digest: _Optional[bytes] = ..., content_digest: _Optional[bytes] = ..., arrays_digest: _Optional[bytes] = ..., logprobs_bytes: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., has_tokens: bool = ..., then: _Optional[int] = ..., next_fence: _Optional[int] = ..., ended_by: _Optional[_Union[EndedBy, str]] = ..., base_turn: _Optional[int] = ..., attachments: _Optional[_Iterable[_Union[Attachment, _Mapping]]] = ..., trajectory: _Optional[int] = ..., trajectory_base: _Optional[int] = ..., finishes: bool = ..., next_refused: _Optional[str] = ...) -> None: ...

class MessageMeta(_message.Message):
    __slots__ = ("sender_session_id", "sender_path", "content_type", "labels", "trigger", "turn", "close_reason", "request")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SENDER_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    sender_session_id: str
    sender_path: str
    content_type: str
    labels: _containers.ScalarMap[str, str]
    trigger: bool
    turn: int
    close_reason: int
    request: RequestMark
    def __init__(self, sender_session_id: _Optional[str] = ..., sender_path: _Optional[str] = ..., content_type: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., trigger: bool = ..., turn: _Optional[int] = ..., close_reason: _Optional[int] = ..., request: _Optional[_Union[RequestMark, _Mapping]] = ...) -> None: ...
