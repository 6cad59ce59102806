"""Dumps in an object store: S3, Google Cloud Storage, Azure, and what speaks as they do.

The library's errors quote requests and answers; what is told of them here is the status and the store's own error code.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.names import MANIFEST, check_dump, check_object, is_dump_of

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

_RETRIES: Final = 2
_PAGE: Final = 1_000
_PAST: Final = "/z"  # sorts behind all names of a dump
# Options of the connection, which the library takes apart from those of the store.
_CONNECTION: Final = frozenset(
    (
        "allow_http allow_invalid_certificates connect_timeout proxy_url proxy_ca_certificate proxy_excludes "
        "root_certificate user_agent"
    ).split()
)

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_NO_ROOM: Final = frozenset(
    (
        "QuotaExceeded",
        "InsufficientStorage",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "AccountQuotaExceeded",
    )
)
_NO_BUCKET: Final = frozenset(("NoSuchBucket", "ContainerNotFound"))
_SAYS: Final = {
    Why.FULL: "the object store has no room for dumps: raise its quota or remove what is not needed",
    Why.DENIED: "the object store refuses the credentials: give them read, write and list on the dump target",
    Why.UNREACHABLE: "the object store cannot be reached or has no such bucket: check URL, endpoint and network",
    Why.SLOW: "the object store did not answer in time",
    Why.SERVER_ERROR: "the object store failed",
    Why.INVALID: "the object store does not accept the request: check the URL and its options",
}


def _connection_of_environment(url: str) -> dict[str, str]:
    """The connection options that the environment gives as the store's own tools read them, AWS_ALLOW_HTTP for one."""
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[url.partition("://")[0]]
    found = {key: os.environ.get(f"{prefix}_{key.upper()}") for key in _CONNECTION}
    return {key: value for key, value in found.items() if value}


class Objects:
    """A target; see target.Target."""

    def __init__(self, url: str, options: Mapping[str, str], operation_seconds: float) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            said = "dumps in an object store need the package obstore: install roost[server] or roost[cli]"
            raise DumpError(Why.INVALID, said) from None
        self._obstore = obstore
        self._url = url
        self._seconds = operation_seconds
        limit = timedelta(seconds=operation_seconds)
        config: Any = {key: value for key, value in options.items() if key not in _CONNECTION}
        # What is given here stands in place of all that the environment says of connections: that is read first.
        connection: Any = _connection_of_environment(url) | {
            key: value for key, value in options.items() if key in _CONNECTION
        }
        connection["timeout"] = limit
        try:
            self._store: ObjectStore = from_url(
                url,
                config=config,
                client_options=connection,
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": limit,
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=1),
                        "base": 2,
                    },
                },
            )
        except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
            said = str(error).partition("\n")[0]
            for value in filter(None, options.values()):
                said = said.replace(value, "...")
            raise DumpError(Why.INVALID, f"the dump target cannot be opened: {said}") from None

    @property
    def url(self) -> str:
        """See target.Target."""
        return self._url

    async def prepare(self, dump: str) -> None:
        """Nothing: an object is whole or not there."""
        check_dump(dump)

    async def create(self, name: str, data: bytes) -> bool:
        """See target.Target. A try whose answer was lost finds what it stored, and says False."""
        return await self._put(name, data, "create")

    async def replace(self, name: str, data: bytes) -> None:
        """See target.Target."""
        await self._put(name, data, "overwrite")

    async def _put(self, name: str, data: bytes, mode: Any) -> bool:
        check_object(name)
        try:
            await self._limited(self._obstore.put_async(self._store, name, data, mode=mode, use_multipart=False))
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except FileNotFoundError as error:
            raise _translated(error) from None
        return True

    async def get(self, name: str, limit: int) -> bytes | None:
        """See target.Target."""
        check_object(name)
        try:
            return await self._limited(self._get(name, limit))
        except FileNotFoundError as error:
            failed = _translated(error)
            if failed.why is Why.UNREACHABLE:
                raise failed from None
            return None

    async def _get(self, name: str, limit: int) -> bytes:
        found = await self._obstore.get_async(self._store, name)
        if found.meta["size"] > limit:
            raise DumpError(Why.DAMAGED, f"{name} has {found.meta['size']} bytes, and {limit} at most are right")
        stored = await found.bytes_async()
        return await asyncio.to_thread(stored.to_bytes)

    async def dumps(self, tenant: str | None, after: str, limit: int) -> list[str]:
        """See target.Target. Costs a request for a thousand parts and manifests."""
        names: list[str] = []
        offset = after + _PAST if after else None
        pages = self._obstore.list(self._store, tenant, offset=offset, chunk_size=_PAGE)
        try:
            while True:
                for found in await self._limited(pages.__anext__()):
                    dump, _, file = found["path"].rpartition("/")
                    if file == MANIFEST and is_dump_of(*dump.split("/", 1) if "/" in dump else ("", dump)):
                        names.append(dump)
                        if len(names) == limit:
                            return names
        except StopAsyncIteration:
            return names
        except FileNotFoundError as error:
            raise _translated(error) from None

    async def _limited(self, operation: Awaitable[T]) -> T:
        """Its result within the time limit. FileNotFoundError and AlreadyExistsError are the caller's."""
        try:
            async with asyncio.timeout(self._seconds):
                return await operation
        except TimeoutError:
            raise self._slow() from None
        except self._obstore.exceptions.AlreadyExistsError:
            raise
        except self._obstore.exceptions.BaseError as error:
            failed = _translated(error)
            # The library's own limit is the same, and either may come first.
            raise self._slow() if failed.why is Why.SLOW else failed from None

    def _slow(self) -> DumpError:
        return DumpError(Why.SLOW, f"the object store did not answer within {self._seconds:g} s")


def _translated(error: Exception) -> DumpError:
    """The word and the sentence of an error of the library."""
    said = str(error)
    status = _STATUS.search(said)
    code = _CODE.search(said)
    number = int(status[1]) if status else 0
    word = code[1] if code else ""
    if number == 507 or word in _NO_ROOM:
        why = Why.FULL
    elif number in {401, 403}:
        why = Why.DENIED
    elif word in _NO_BUCKET:
        why = Why.UNREACHABLE
    elif number >= 500 or number in {408, 429}:
        why = Why.SERVER_ERROR
    elif number:
        why = Why.INVALID
    elif "kind: Timeout" in said:
        why = Why.SLOW
    else:
        why = Why.UNREACHABLE
    told = " ".join(filter(None, [status[1] if status else "", word]))
    return DumpError(why, f"{_SAYS[why]} ({told})" if told else _SAYS[why])
