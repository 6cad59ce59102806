"""The server's certificates: checked before it starts, and read again, without a restart, when their files change.

Each connection asks before its handshake whether a file is another one than was read last, by what the path leads
to: so a file that was replaced is seen, and so is a link that was turned, as Kubernetes does it with secrets. What
cannot be used is said in the log, and the certificate that was there stays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from roost.server import secret_file
from roost.server.config import ConfigError, Settings

_LARGEST: Final = 1 << 20  # bytes of a file of certificates
_LOOK_SECONDS: Final = 60.0  # between two looks where nobody connects
_TRIES: Final = 3  # to read files none of which was replaced meanwhile

log = structlog.get_logger("roost.tls")

Signature = tuple[tuple[int, int, int, int] | None, ...]


class TlsError(Exception):
    """The files cannot be used. The message is one sentence for a person, and shows nothing of the key."""


@dataclass(frozen=True)
class Files:
    """Where the certificates are."""

    cert: str
    key: str
    client_ca: str  # empty: clients need no certificate

    def signature(self) -> Signature:
        """What the paths lead to, and its age; None for a path that leads nowhere. It differs once one was replaced."""
        found: list[tuple[int, int, int, int] | None] = []
        for path in filter(None, (self.cert, self.key, self.client_ca)):
            try:
                status = Path(path).stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


@dataclass(frozen=True)
class Material:
    """What gRPC is given."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    not_before: datetime
    not_after: datetime

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.client_ca)


def files_of(settings: Settings) -> Files | None:
    """The files that the settings name; None without TLS. ConfigError where one is missing."""
    files = Files(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    if files.cert and files.key:
        return files
    if not files.cert and not files.key and not files.client_ca:
        return None
    given, missing = next(
        (given, missing)
        for given, missing, wrong in (
            ("tls_cert_file", "tls_key_file", files.cert),
            ("tls_key_file", "tls_cert_file", files.key),
            ("tls_client_ca_file", "tls_cert_file and tls_key_file", files.client_ca),
        )
        if wrong
    )
    raise ConfigError(f"{given} is given and {missing} is not: TLS needs a certificate and its key")


def _read(path: str, what: str) -> bytes:
    """A file of certificates."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise TlsError(f"cannot read the {what} {path}: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise TlsError(f"the {what} {path} has more than {_LARGEST} bytes")
    return content


def _certificates(content: bytes, path: str, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise TlsError(f"the {what} {path} holds no certificate in PEM that can be read") from error


def _public(key: Any) -> bytes:
    """A public key as bytes to compare."""
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def read(files: Files) -> Material:
    """Read and check all of them. TlsError for what no client could be served with."""
    chain = _read(files.cert, "TLS certificate")
    leaf = _certificates(chain, files.cert, "TLS certificate")[0]
    try:
        key = secret_file.read(files.key, "TLS key").encode("ascii", "replace")
    except secret_file.SecretFileError as error:
        raise TlsError(str(error)) from None
    try:
        private: Any = serialization.load_pem_private_key(key, None)
        same = _public(private.public_key()) == _public(leaf.public_key())
    except TypeError:
        raise TlsError(f"the TLS key {files.key} is encrypted: there is nobody to ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(f"the TLS key {files.key} holds no private key in PEM that can be read") from None
    if not same:
        raise TlsError(
            f"the TLS key {files.key} does not belong to the first certificate in {files.cert}, "
            "which must be the server's own"
        )
    client_ca = None
    if files.client_ca:
        client_ca = _read(files.client_ca, "authorities of clients")
        _certificates(client_ca, files.client_ca, "authorities of clients")
    return Material(chain, key, client_ca, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _now() -> datetime:
    return datetime.now(UTC)


class Certificates:
    """The certificates in force. Threads of gRPC and the event loop look whether they are still those of the files."""

    def __init__(self, files: Files, now: Callable[[], datetime] = _now) -> None:
        """Read them. TlsError if they cannot be used; one that is out of date can, and is warned of."""
        self._files = files
        self._now = now
        self._lock = threading.Lock()
        self._warned: Material | None = None  # of what it was said that it is out of date
        self._seen, self._material = self._load()
        self._check_dates()

    @property
    def of_clients(self) -> bool:
        """Whether clients need one."""
        return bool(self._files.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC listens with; each connection gets the certificate of that time."""
        given = self._material

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self.look()
            if current is given:
                return None
            given = current
            return current.configuration()

        fetcher: Any = fetch  # None means no change; its stub does not know
        return grpc.dynamic_ssl_server_credentials(given.configuration(), fetcher, self.of_clients)

    def look(self) -> Material:
        """Read the files again if one of them is another; what is in force. Any thread may call it."""
        with self._lock:
            if self._files.signature() != self._seen:
                self._reload()
            self._check_dates()
            return self._material

    async def run(self) -> None:
        """Look from time to time, so that what is wrong is in the log before somebody connects."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def _load(self) -> tuple[Signature, Material]:
        """What the files hold, and their signature from before they were read: what changes meanwhile is read again."""
        for left in reversed(range(_TRIES)):
            before = self._files.signature()
            try:
                return before, read(self._files)
            except TlsError:
                # Half of the old and half of the new is no fault of theirs: that is seen by looking again.
                if not left or before == self._files.signature():
                    self._seen = before
                    raise
        raise AssertionError

    def _reload(self) -> None:
        try:
            self._seen, material = self._load()
        except TlsError as error:
            log.warning("certificate_refused", reason=str(error), kept_until=self._material.not_after.isoformat())
            return
        if material != self._material:
            self._material = material
            log.info("certificate_reloaded", not_after=material.not_after.isoformat())

    def _check_dates(self) -> None:
        """Say once of each that it is out of date: it is served all the same, and clients refuse it."""
        material, now = self._material, self._now()
        if material is self._warned or material.not_before <= now <= material.not_after:
            return
        self._warned = material
        over = now > material.not_after
        log.warning(
            "certificate_expired" if over else "certificate_not_yet_valid",
            file=self._files.cert,
            not_before=material.not_before.isoformat(),
            not_after=material.not_after.isoformat(),
            reason="clients refuse it",
        )


def certificates(settings: Settings) -> Certificates | None:
    """The certificates that the settings name; None without TLS. ConfigError for those that cannot be used."""
    files = files_of(settings)
    try:
        return None if files is None else Certificates(files)
    except TlsError as error:
        raise ConfigError(str(error)) from None
