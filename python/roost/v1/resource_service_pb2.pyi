from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResourceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOURCE_KIND_UNSPECIFIED: _ClassVar[ResourceKind]
    RESOURCE_KIND_CLIENT: _ClassVar[ResourceKind]
    RESOURCE_KIND_HTTP: _ClassVar[ResourceKind]
    RESOURCE_KIND_PROCESS: _ClassVar[ResourceKind]
    RESOURCE_KIND_TMUX: _ClassVar[ResourceKind]

class ResourceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOURCE_STATE_UNSPECIFIED: _ClassVar[ResourceState]
    RESOURCE_STATE_PLANNED: _ClassVar[ResourceState]
    RESOURCE_STATE_LIVE: _ClassVar[ResourceState]
    RESOURCE_STATE_RELEASING: _ClassVar[ResourceState]
RESOURCE_KIND_UNSPECIFIED: ResourceKind
RESOURCE_KIND_CLIENT: ResourceKind
RESOURCE_KIND_HTTP: ResourceKind
RESOURCE_KIND_PROCESS: ResourceKind
RESOURCE_KIND_TMUX: ResourceKind
RESOURCE_STATE_UNSPECIFIED: ResourceState
RESOURCE_STATE_PLANNED: ResourceState
RESOURCE_STATE_LIVE: ResourceState
RESOURCE_STATE_RELEASING: ResourceState

class Pool(_message.Message):
    __slots__ = ("name", "key", "max_resources", "max_resources_per_key", "idle_ttl")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MAX_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESOURCES_PER_KEY_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: str
    max_resources: int
    max_resources_per_key: int
    idle_ttl: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., key: _Optional[str] = ..., max_resources: _Optional[int] = ..., max_resources_per_key: _Optional[int] = ..., idle_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AttachResourceRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "name", "kind", "owner", "handle", "pool", "wait")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    name: str
    kind: ResourceKind
    owner: str
    handle: str
    pool: Pool
    wait: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[_Union[ResourceKind, str]] = ..., owner: _Optional[str] = ..., handle: _Optional[str] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AttachResourceResponse(_message.Message):
    __slots__ = ("name", "state", "created")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ResourceState
    created: bool
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ResourceState, str]] = ..., created: bool = ...) -> None: ...

class DetachResourceRequest(_message.Message):
    __slots__ = ("session_id", "name")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DetachResourceResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class ListResourcesRequest(_message.Message):
    __slots__ = ("session_id", "root_session_id", "owner", "state", "pool", "page_size", "page_token")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    root_session_id: str
    owner: str
    state: ResourceState
    pool: str
    page_size: int
    page_token: str
    def __init__(self, session_id: _Optional[str] = ..., root_session_id: _Optional[str] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[ResourceState, str]] = ..., pool: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("name", "session_id", "kind", "state", "owner", "handle", "pool", "create_time", "attempts", "error", "retry_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRY_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    session_id: str
    kind: ResourceKind
    state: ResourceState
    owner: str
    handle: str
    pool: Pool
    create_time: _timestamp_pb2.Timestamp
    attempts: int
    error: str
    retry_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., session_id: _Optional[str] = ..., kind: _Optional[_Union[ResourceKind, str]] = ..., state: _Optional[_Union[ResourceState, str]] = ..., owner: _Optional[str] = ..., handle: _Optional[str] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[int] = ..., error: _Optional[str] = ..., retry_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListResourcesResponse(_message.Message):
    __slots__ = ("resources", "next_page_token")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    next_page_token: str
    def __init__(self, resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class InventoryItem(_message.Message):
    __slots__ = ("name", "instance")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    instance: str
    def __init__(self, name: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class ReconcileInventoryRequest(_message.Message):
    __slots__ = ("node", "items", "listing_time", "dry_run")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LISTING_TIME_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    node: str
    items: _containers.RepeatedCompositeFieldContainer[InventoryItem]
    listing_time: _duration_pb2.Duration
    dry_run: bool
    def __init__(self, node: _Optional[str] = ..., items: _Optional[_Iterable[_Union[InventoryItem, _Mapping]]] = ..., listing_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., dry_run: bool = ...) -> None: ...

class Orphan(_message.Message):
    __slots__ = ("item", "end")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    item: InventoryItem
    end: bool
    def __init__(self, item: _Optional[_Union[InventoryItem, _Mapping]] = ..., end: bool = ...) -> None: ...

class ReconcileInventoryResponse(_message.Message):
    __slots__ = ("orphans", "next")
    ORPHANS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    orphans: _containers.RepeatedCompositeFieldContainer[Orphan]
    next: _duration_pb2.Duration
    def __init__(self, orphans: _Optional[_Iterable[_Union[Orphan, _Mapping]]] = ..., next: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
