from google.protobuf import duration_pb2 as _duration_pb2
from roost.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SendMessageRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "message", "sender_session_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SENDER_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    message: _types_pb2.MessageInput
    sender_session_id: str
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., message: _Optional[_Union[_types_pb2.MessageInput, _Mapping]] = ..., sender_session_id: _Optional[str] = ...) -> None: ...

class SendMessageResponse(_message.Message):
    __slots__ = ("message_id", "repeated")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    repeated: bool
    def __init__(self, message_id: _Optional[str] = ..., repeated: bool = ...) -> None: ...

class WaitMailRequest(_message.Message):
    __slots__ = ("session_id", "wait", "after")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    wait: _duration_pb2.Duration
    after: int
    def __init__(self, session_id: _Optional[str] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., after: _Optional[int] = ...) -> None: ...

class WaitMailResponse(_message.Message):
    __slots__ = ("queued", "cursor", "runnable")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RUNNABLE_FIELD_NUMBER: _ClassVar[int]
    queued: int
    cursor: int
    runnable: bool
    def __init__(self, queued: _Optional[int] = ..., cursor: _Optional[int] = ..., runnable: bool = ...) -> None: ...

class ListMailRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "session_id", "sender_session_id", "states", "omit_content")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    OMIT_CONTENT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    session_id: str
    sender_session_id: str
    states: _containers.RepeatedScalarFieldContainer[_types_pb2.MessageState]
    omit_content: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., session_id: _Optional[str] = ..., sender_session_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_types_pb2.MessageState, str]]] = ..., omit_content: bool = ...) -> None: ...

class ListMailResponse(_message.Message):
    __slots__ = ("messages", "next_page_token")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    next_page_token: str
    def __init__(self, messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
