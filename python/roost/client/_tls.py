"""TLS of a client: the authorities that it trusts, the certificate that it shows, and the name of the server."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

VARIABLE = "ROOST_TLS"  # those of the files: ROOST_TLS_CA, ROOST_TLS_CERT, ROOST_TLS_KEY, ROOST_TLS_SERVER_NAME


@dataclass(frozen=True)
class Tls:
    """Files in PEM, read when the client is made. `ca`: authorities that may have signed the server's certificate; ""
    takes those that come with gRPC. `cert`, `key`: the client's own, where the server asks for one. `server_name`: the
    name that the server's certificate must bear; "" takes the host of the target.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC connects with. OSError for a file that cannot be read, ValueError for one that is of no use: gRPC
        itself would only never connect."""
        if bool(self.cert) != bool(self.key):
            raise ValueError("a client's certificate and its key go together: one of them is not given")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca = cert = key = None
        if self.ca:
            ca = Path(self.ca).read_bytes()
            try:
                context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
            except ssl.SSLError:
                raise ValueError(f"the file of authorities {self.ca} holds no certificate in PEM") from None
        if self.cert:
            cert, key = Path(self.cert).read_bytes(), Path(self.key).read_bytes()
            try:
                context.load_cert_chain(self.cert, self.key, password=_nobody)
            except (ssl.SSLError, ValueError):
                raise ValueError(
                    f"the certificate {self.cert} and the key {self.key} are not a pair in PEM, or the key is encrypted"
                ) from None
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> list[tuple[str, str]]:
        """The channel options that belong to it."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


def _nobody() -> str:
    raise ValueError("there is nobody to ask for a password")


def chosen(tls: Tls | bool | None) -> Tls | None:
    """What a client is to use. None asks the environment: ROOST_TLS, or any of the variables that name its parts."""
    if tls is None:
        parts = {
            name: os.environ.get(f"{VARIABLE}_{name.upper()}", "") for name in ("ca", "cert", "key", "server_name")
        }
        said = os.environ.get(VARIABLE, "").strip().lower()
        if said not in {"", "0", "1", "false", "true", "no", "yes", "off", "on"}:
            raise ValueError(f"{VARIABLE} = {said!r} is neither true nor false")
        if said in {"0", "false", "no", "off"} or not (said or any(parts.values())):
            return None
        return Tls(**parts)
    if isinstance(tls, Tls):
        return tls
    return Tls() if tls else None
