from roost.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExportTrajectoriesRequest(_message.Message):
    __slots__ = ("session_ids", "root_session_id", "include_provisional", "include_superseded")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    root_session_id: str
    include_provisional: bool
    include_superseded: bool
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ..., root_session_id: _Optional[str] = ..., include_provisional: bool = ..., include_superseded: bool = ...) -> None: ...

class ExportTrajectoriesResponse(_message.Message):
    __slots__ = ("session", "session_id", "records", "last")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    session_id: str
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    last: bool
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., session_id: _Optional[str] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., last: bool = ...) -> None: ...
