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

class TrajectoryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAJECTORY_STATE_UNSPECIFIED: _ClassVar[TrajectoryState]
    TRAJECTORY_STATE_ACTIVE: _ClassVar[TrajectoryState]
    TRAJECTORY_STATE_READY: _ClassVar[TrajectoryState]
    TRAJECTORY_STATE_ACKNOWLEDGED: _ClassVar[TrajectoryState]

class TrajectorySelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAJECTORY_SELECTION_UNSPECIFIED: _ClassVar[TrajectorySelection]
    TRAJECTORY_SELECTION_READY: _ClassVar[TrajectorySelection]
    TRAJECTORY_SELECTION_ALL: _ClassVar[TrajectorySelection]

class ExportStyle(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPORT_STYLE_UNSPECIFIED: _ClassVar[ExportStyle]
    EXPORT_STYLE_INDIVIDUAL: _ClassVar[ExportStyle]
    EXPORT_STYLE_CONCAT: _ClassVar[ExportStyle]
TRAJECTORY_STATE_UNSPECIFIED: TrajectoryState
TRAJECTORY_STATE_ACTIVE: TrajectoryState
TRAJECTORY_STATE_READY: TrajectoryState
TRAJECTORY_STATE_ACKNOWLEDGED: TrajectoryState
TRAJECTORY_SELECTION_UNSPECIFIED: TrajectorySelection
TRAJECTORY_SELECTION_READY: TrajectorySelection
TRAJECTORY_SELECTION_ALL: TrajectorySelection
EXPORT_STYLE_UNSPECIFIED: ExportStyle
EXPORT_STYLE_INDIVIDUAL: ExportStyle
EXPORT_STYLE_CONCAT: ExportStyle

class Trajectory(_message.Message):
    __slots__ = ("trajectory_id", "session_id", "number", "state", "first_turn", "turn_count", "ready_time", "ready_sequence")
    TRAJECTORY_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TURN_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    READY_TIME_FIELD_NUMBER: _ClassVar[int]
    READY_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    trajectory_id: str
    session_id: str
    number: int
    state: TrajectoryState
    first_turn: int
    turn_count: int
    ready_time: _timestamp_pb2.Timestamp
    ready_sequence: int
    def __init__(self, trajectory_id: _Optional[str] = ..., session_id: _Optional[str] = ..., number: _Optional[int] = ..., state: _Optional[_Union[TrajectoryState, str]] = ..., first_turn: _Optional[int] = ..., turn_count: _Optional[int] = ..., ready_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ready_sequence: _Optional[int] = ...) -> None: ...

class SetRewardRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "turn", "reward", "finish_after")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    FINISH_AFTER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    turn: int
    reward: float
    finish_after: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., turn: _Optional[int] = ..., reward: _Optional[float] = ..., finish_after: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SetRewardResponse(_message.Message):
    __slots__ = ("turn", "trajectory_id", "finished", "finish_time", "repeated")
    TURN_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_ID_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    trajectory_id: str
    finished: bool
    finish_time: _timestamp_pb2.Timestamp
    repeated: bool
    def __init__(self, turn: _Optional[int] = ..., trajectory_id: _Optional[str] = ..., finished: bool = ..., finish_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., repeated: bool = ...) -> None: ...

class FinishTrajectoryRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "reward")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    reward: float
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., reward: _Optional[float] = ...) -> None: ...

class FinishTrajectoryResponse(_message.Message):
    __slots__ = ("trajectory", "repeated")
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    trajectory: Trajectory
    repeated: bool
    def __init__(self, trajectory: _Optional[_Union[Trajectory, _Mapping]] = ..., repeated: bool = ...) -> None: ...

class ExportTrajectoriesRequest(_message.Message):
    __slots__ = ("session_ids", "root_session_id", "include_provisional", "include_superseded", "selection", "follow", "after_sequence", "trajectory_ids", "style", "discount", "omit_payload", "limit")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_FIELD_NUMBER: _ClassVar[int]
    OMIT_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    root_session_id: str
    include_provisional: bool
    include_superseded: bool
    selection: TrajectorySelection
    follow: bool
    after_sequence: int
    trajectory_ids: _containers.RepeatedScalarFieldContainer[str]
    style: ExportStyle
    discount: float
    omit_payload: bool
    limit: int
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ..., root_session_id: _Optional[str] = ..., include_provisional: bool = ..., include_superseded: bool = ..., selection: _Optional[_Union[TrajectorySelection, str]] = ..., follow: bool = ..., after_sequence: _Optional[int] = ..., trajectory_ids: _Optional[_Iterable[str]] = ..., style: _Optional[_Union[ExportStyle, str]] = ..., discount: _Optional[float] = ..., omit_payload: bool = ..., limit: _Optional[int] = ...) -> None: ...

class TrajectoryRow(_message.Message):
    __slots__ = ("segment", "first_turn", "last_turn", "tokens", "reward", "aborted", "last", "finish_reason")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TURN_FIELD_NUMBER: _ClassVar[int]
    LAST_TURN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    segment: int
    first_turn: int
    last_turn: int
    tokens: _types_pb2.TokenSpan
    reward: float
    aborted: bool
    last: bool
    finish_reason: str
    def __init__(self, segment: _Optional[int] = ..., first_turn: _Optional[int] = ..., last_turn: _Optional[int] = ..., tokens: _Optional[_Union[_types_pb2.TokenSpan, _Mapping]] = ..., reward: _Optional[float] = ..., aborted: bool = ..., last: bool = ..., finish_reason: _Optional[str] = ...) -> None: ...

class ExportTrajectoriesResponse(_message.Message):
    __slots__ = ("session", "session_id", "records", "last", "trajectory", "rows", "context")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    session_id: str
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    last: bool
    trajectory: Trajectory
    rows: _containers.RepeatedCompositeFieldContainer[TrajectoryRow]
    context: _types_pb2.TokenSpan
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., session_id: _Optional[str] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., last: bool = ..., trajectory: _Optional[_Union[Trajectory, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[TrajectoryRow, _Mapping]]] = ..., context: _Optional[_Union[_types_pb2.TokenSpan, _Mapping]] = ...) -> None: ...

class AckTrajectoriesRequest(_message.Message):
    __slots__ = ("trajectory_ids",)
    TRAJECTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    trajectory_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, trajectory_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class AckResult(_message.Message):
    __slots__ = ("refusal", "repeated")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    refusal: _types_pb2.Refusal
    repeated: bool
    def __init__(self, refusal: _Optional[_Union[_types_pb2.Refusal, _Mapping]] = ..., repeated: bool = ...) -> None: ...

class AckTrajectoriesResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[AckResult]
    def __init__(self, results: _Optional[_Iterable[_Union[AckResult, _Mapping]]] = ...) -> None: ...

class RestoreSessionsRequest(_message.Message):
    __slots__ = ("dump_names", "request_id")
    DUMP_NAMES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    dump_names: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, dump_names: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RestoreResult(_message.Message):
    __slots__ = ("refusal", "session", "repeated")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    refusal: _types_pb2.Refusal
    session: _types_pb2.Session
    repeated: bool
    def __init__(self, refusal: _Optional[_Union[_types_pb2.Refusal, _Mapping]] = ..., session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., repeated: bool = ...) -> None: ...

class RestoreSessionsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RestoreResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RestoreResult, _Mapping]]] = ...) -> None: ...
