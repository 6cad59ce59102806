"""WatchOwner: a host is told what it is to release, all that is due first, and then what becomes due.

The store says what is due; a stream remembers only what it has told. So a stream that breaks is opened again, and tells
what is still to be done once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from roost.handlers.cold import NOTHING_YET, Cold, Follow, Step
from roost.handlers.errors import invalid, parse
from roost.v1 import turn_service_pb2 as pb

PAGE: Final = 100  # resources that one step reads
_MOST: Final = 128  # characters of an owner


def watch_owner(cold: Cold, data: bytes) -> Iterator[Step]:
    """Stream what this owner is to release, each once."""
    owner = parse(cold.engine, pb.WatchOwnerRequest, data).owner
    if not owner:
        raise invalid(cold.engine, "owner", "must not be empty")
    if len(owner) > _MOST:
        rule = f"has {len(owner)} characters; at most {_MOST} are allowed"
        raise invalid(cold.engine, "owner", rule, size=len(owner), limit=_MOST)
    told: set[str] = set()
    while True:
        # Before the reads, so that what becomes due during them is not waited for in vain.
        seen = cold.engine.releases_count()
        due: set[str] = set()
        after = ""
        while page := cold.store.owner_releases(cold.tenant, owner, after, PAGE):
            due.update(row.name for row in page)
            for row in page:
                if row.name not in told:
                    release = pb.Release(session_id=row.session_id, name=row.name, handle=row.handle)
                    yield pb.WatchOwnerResponse(release=release).SerializeToString()
            if len(page) < PAGE:
                break
            after = page[-1].name
            yield NOTHING_YET
        told = due  # what is not due any more never is again
        yield Follow(seen, "releases")
