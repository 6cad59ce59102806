"""Where dumps lie: a local directory or an object store, behind one small interface.

Every operation has a time limit and fails with a DumpError.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from roost.handlers.dump.errors import DumpError, Why

OPERATION_SECONDS: Final = 60.0
_REMOTE: Final = ("s3", "gs", "az")


class Target(Protocol):
    """One place for dumps. Names are those of `names.check_object`, and nothing else."""

    @property
    def url(self) -> str:
        """For people: without options."""

    async def prepare(self, dump: str) -> None:
        """Tidy up what a crash left of this dump, if it can be told from what counts."""

    async def create(self, name: str, data: bytes) -> bool:
        """Store it, whole or not at all, unless there is something of that name: then False."""

    async def replace(self, name: str, data: bytes) -> None:
        """Store it in place of what is there."""

    async def get(self, name: str, limit: int) -> bytes | None:
        """What is stored, None if nothing is; DumpError DAMAGED if that is longer than `limit` bytes."""

    async def dumps(self, tenant: str | None, after: str, limit: int) -> list[str]:
        """The names of at most `limit` dumps that have a manifest, in order, behind `after`; of all tenants, or of the
        one with this tenant uid."""


def open_target(
    where: str, options: Mapping[str, str] | None = None, *, operation_seconds: float = OPERATION_SECONDS
) -> Target:
    """The target of a URL (file://, s3://, gs://, az://) or of the path of a directory.

    `options` are those of the object store (endpoint, region, access_key_id, ..); what is not in them comes from the
    environment (AWS_*, GOOGLE_*, AZURE_*). Nothing is contacted yet. DumpError INVALID if it cannot be one.
    """
    from roost.handlers.dump.directory import Directory

    scheme, separator, _ = where.partition("://")
    if not where or "\0" in where:
        raise DumpError(Why.INVALID, "the dump target is empty: name a directory or a URL")
    if not separator:
        return Directory(Path(where), operation_seconds)
    parts = urlsplit(where)
    if parts.username or parts.password or parts.query or parts.fragment:
        rule = "the URL of a dump target holds no credentials or options: give them as options or in the environment"
        raise DumpError(Why.INVALID, rule)
    if scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise DumpError(Why.INVALID, "a file URL names an absolute path: file:///path/of/a/directory")
        return Directory(Path(unquote(parts.path)), operation_seconds)
    if scheme not in _REMOTE:
        raise DumpError(Why.INVALID, f"a dump target is a directory, file://, s3://, gs:// or az://, not {scheme}://")
    if not parts.netloc:
        raise DumpError(Why.INVALID, f"the dump target names no bucket: {scheme}://BUCKET/PREFIX")
    from roost.handlers.dump.objects import Objects

    return Objects(where, options or {}, operation_seconds)
