"""ListResources: pages in order of the names."""

from __future__ import annotations

from typing import Final

from roost.handlers.cold import PAGE_BYTES, Cold
from roost.handlers.errors import invalid, parse
from roost.handlers.paging import MAX_PAGE, mark_of, position_of, size_of, token_of, tree_of
from roost.handlers.reach import Reach
from roost.handlers.wire import field, repeated
from roost.store.base import ListedResource, ResourceFilter
from roost.v1 import resource_service_pb2 as pb

EXAMINED: Final = 5_000  # resources that one page looks at for such as match its filters


def list_resources(cold: Cold, data: bytes) -> bytes:
    """Answer one page, encoded; of a session's key those of the sessions that it reaches."""
    request = parse(cold.engine, pb.ListResourcesRequest, data)
    where = _filter(cold, request)
    size = size_of(cold, request)
    mark = mark_of(request, cold.tenant)
    after = position_of(cold, request.page_token, mark).decode("ascii", "replace")
    if cold.reach is None:
        rows, following = cold.store.list_resources(where, after, size, EXAMINED)
    else:
        rows, following = _reached(cold, cold.reach, where, after, size)
    page: list[bytes] = []
    length = 0
    for row in rows:
        if length >= PAGE_BYTES:
            following = after
            break
        after = row.name
        page.append(_encoded(row))
        length += len(page[-1])
    token = token_of(following.encode(), mark) if following is not None else ""
    return repeated(1, page) + (field(2, token.encode()) if token else b"")


def _reached(
    cold: Cold, reach: Reach, where: ResourceFilter, after: str, size: int
) -> tuple[list[ListedResource], str | None]:
    """As the store's list, of what a session's key reaches. Neither a short page nor its token tells that there is more
    in the tree (I17), so all that follows in it is looked through for one more than the page takes."""
    found: list[ListedResource] = []
    following: str | None = after
    while following is not None and len(found) <= size:
        rows, following = cold.store.list_resources(where, following, MAX_PAGE, EXAMINED)
        found += [row for row in rows if reach.inside(row.session, row.parent)]
    return found[:size], found[size - 1].name if len(found) > size else None


def _filter(cold: Cold, request: pb.ListResourcesRequest) -> ResourceFilter:
    """What the store filters by; Refused for what no list has."""
    if request.state not in pb.ResourceState.values():
        rule = f"{request.state} is not accepted as a filter"
        raise invalid(cold.engine, "state", rule, value=request.state)
    session = cold.session(request.session_id) if request.session_id else None
    if session is not None:
        request.session_id = session.session_id  # the list goes on with whom it began with
    return ResourceFilter(
        tenant=cold.tenant,
        session=None if session is None else session.uid,
        root=tree_of(cold, request.root_session_id),
        owner=request.owner or None,
        state=request.state or None,
        pool=request.pool or None,
    )


def _encoded(row: ListedResource) -> bytes:
    resource = pb.Resource(
        name=row.name,
        session_id=row.session_id,
        kind=row.kind,  # type: ignore[arg-type]
        state=row.state,  # type: ignore[arg-type]
        owner=row.owner,
        handle=row.handle,
        attempts=row.attempts,
        error=row.error,
    )
    if row.pool:
        resource.pool.name = row.pool
        resource.pool.key = row.pool_key
        if row.idle_ttl_ms:
            resource.pool.idle_ttl.FromMilliseconds(row.idle_ttl_ms)
    resource.create_time.FromMilliseconds(row.create_ms)
    if row.due and row.kind != pb.RESOURCE_KIND_CLIENT:
        resource.retry_time.FromMilliseconds(row.due)
    return resource.SerializeToString()
