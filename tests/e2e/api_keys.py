"""What the tests of API keys share: stubs that send a key, keys that are none, and every method of the API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
from roost_server import DEADLINE, Api, Refusal, Server, refusal

from roost._core import new_admin_key
from roost.v1 import admin_service_pb2 as admin
from roost.v1 import mail_service_pb2 as mail
from roost.v1 import resource_service_pb2 as resources
from roost.v1 import session_service_pb2 as sessions
from roost.v1 import trajectory_service_pb2 as trajectories
from roost.v1 import turn_service_pb2 as turns

ADMIN = new_admin_key()
OTHER_ADMIN = new_admin_key()

SERVICES = tuple(
    service
    for file in (sessions, turns, mail, trajectories, resources, admin)
    for service in file.DESCRIPTOR.services_by_name.values()
)
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
ENDLESS = {"WatchSessions"}  # streams whose first message comes at once, and whose last never does
STREAMS = {"ReadHistory", "GetCheckpoint", "ExportTrajectories", "WatchOwner"}


class _Sends(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Adds metadata to each call."""

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def _with(self, call: Any) -> Any:
        return call._replace(metadata=[*(call.metadata or ()), *self._metadata])

    def intercept_unary_unary(self, continuation: Any, call: Any, request: Any) -> Any:
        return continuation(self._with(call), request)

    def intercept_unary_stream(self, continuation: Any, call: Any, request: Any) -> Any:
        return continuation(self._with(call), request)


def bearing(api: Api, key: str | None, tenant: str = "") -> Api:
    """The same connection's stubs, sending a key; None sends none."""
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    metadata += [("x-roost-tenant", tenant)] if tenant else []
    return Api(grpc.intercept_channel(api.channel, _Sends(metadata)))


@contextlib.contextmanager
def keyed(server: Server, key: str | None, tenant: str = "") -> Iterator[Api]:
    """Stubs that send a key; None sends none."""
    with server.api() as api:
        yield bearing(api, key, tenant)


def create(server: Server, tenant: str = "", request_id: str = "", by: str = ADMIN) -> Any:
    """CreateApiKey."""
    with keyed(server, by) as api:
        request = admin.CreateApiKeyRequest(tenant=tenant, request_id=request_id)
        return api.admin.CreateApiKey(request, timeout=DEADLINE)


def revoke(server: Server, key_id: str) -> Any:
    """RevokeApiKey."""
    with keyed(server, ADMIN) as api:
        return api.admin.RevokeApiKey(admin.RevokeApiKeyRequest(key_id=key_id), timeout=DEADLINE)


def list_keys(server: Server, tenant: str = "", page_size: int = 0) -> list[Any]:
    """All pages of ListApiKeys."""
    request, found = admin.ListApiKeysRequest(tenant=tenant, page_size=page_size), []
    with keyed(server, ADMIN) as api:
        while True:
            page = api.admin.ListApiKeys(request, timeout=DEADLINE)
            found += page.api_keys
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def opened(api: Api, session_id: str, parent: str = "", **labels: str) -> str:
    """Open a session and return its key."""
    request = sessions.OpenSessionRequest(session_id=session_id, mint_key=True)
    request.options.parent_session_id = parent
    request.options.labels.update(labels)
    return str(api.sessions.OpenSession(request, timeout=DEADLINE).session_key)


def invoke(api: Api, path: str, data: bytes = b"") -> list[bytes]:
    """Call any method with the bytes of a request; the messages it answers with."""
    name = path.rpartition("/")[2]
    if name in ENDLESS:
        stream = api.channel.unary_stream(path)(data, timeout=DEADLINE)
        first = next(stream)
        stream.cancel()
        return [first]
    if name in STREAMS:
        return list(api.channel.unary_stream(path)(data, timeout=DEADLINE))
    return [api.channel.unary_unary(path)(data, timeout=DEADLINE)]


def said(api: Api, path: str, request: Any = None) -> Refusal | None:
    """How a method refuses a request; None if it does not."""
    try:
        invoke(api, path, request.SerializeToString() if request is not None else b"")
    except grpc.RpcError as error:
        return refusal(error)
    return None
