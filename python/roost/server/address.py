"""Where the server listens: host:port or unix:PATH, checked before it is bound so that errors are one sentence."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UNIX_PATH_MAX: Final = 107  # bytes that fit in sockaddr_un with its end mark
_PROBE_SECONDS: Final = 1.0


class AddressError(Exception):
    """The address cannot be listened on. The message is one sentence; `exit_code` says whose mistake it is."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


USAGE: Final = 78  # the configuration is wrong
UNUSABLE: Final = 69  # the address is taken or forbidden


@dataclass(frozen=True)
class Address:
    """A checked listen address."""

    host: str  # empty for a Unix socket
    port: int  # 0: the kernel chooses
    path: str  # empty for TCP
    setting: str = "listen"  # where it was given

    @property
    def target(self) -> str:
        """As grpc wants it, and as a client may give it back."""
        return f"unix:{self.path}" if self.path else self.named(self.port)

    def named(self, port: int) -> str:
        """host:port with the port that was bound."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{port}"

    @property
    def local(self) -> bool:
        """True if only this machine reaches it."""
        return bool(self.path) or all(ipaddress.ip_address(ip).is_loopback for _, ip in _resolve(self))


def parse(listen: str, beyond: bool, setting: str = "listen") -> Address:
    """Check an address. AddressError for one that is not well-formed, or that other machines reach where they may not
    (`beyond`)."""
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:").removeprefix("//")
        if not path:
            raise AddressError(f"{setting} = {listen!r}: a path must follow unix:", USAGE)
        size = len(os.fsencode(path))
        if size > _UNIX_PATH_MAX:
            raise AddressError(f"{setting}: the socket path has {size} bytes; at most {_UNIX_PATH_MAX} fit", USAGE)
        return Address("", 0, path, setting)
    host, colon, number = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not number.isascii() or not number.isdigit() or int(number) > 65_535:
        raise AddressError(f"{setting} = {listen!r} is neither host:port (port 0 to 65535) nor unix:PATH", USAGE)
    address = Address(host, int(number), "", setting)
    if not address.local and not beyond:
        raise AddressError(
            f"listen = {listen!r} can be reached from other machines and there is no TLS: keys and content would cross "
            "the network in plaintext; listen on 127.0.0.1 or unix:PATH, give it a certificate with --tls-cert and "
            "--tls-key, or say --insecure",
            USAGE,
        )
    return address


def prepare(address: Address) -> None:
    """Make sure that the address can be bound. AddressError says why not. Removes a socket file nobody listens on."""
    if address.path:
        _prepare_unix(Path(address.path))
        return
    for family, ip in _resolve(address):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, address.port))
                probe.listen(1)
            except OSError as error:
                raise unusable(address.target, error) from error


def bound(address: Address) -> None:
    """After the bind: nobody but the owner may connect to a Unix socket."""
    if address.path:
        Path(address.path).chmod(0o600)


def released(address: Address) -> None:
    """After the stop: take the socket file away."""
    if address.path:
        Path(address.path).unlink(missing_ok=True)


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{address.setting}: the host {address.host!r} is not known", UNUSABLE) from error
    return [(family, str(name[0])) for family, _, _, _, name in found]


def _prepare_unix(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            reason = "cannot be written" if path.parent.is_dir() else "does not exist"
            raise AddressError(f"cannot listen on unix:{path}: its directory {reason}", UNUSABLE) from None
        return
    except OSError as error:
        raise unusable(f"unix:{path}", error) from error
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"cannot listen on unix:{path}: a file that is not a socket is there", UNUSABLE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its server is gone
            return
        except OSError as error:
            raise unusable(f"unix:{path}", error) from error
    raise AddressError(f"cannot listen on unix:{path}: another server listens there", UNUSABLE)


def unusable(target: str, error: OSError) -> AddressError:
    """Why an address cannot be bound."""
    why = {
        errno.EADDRINUSE: "the port is in use",
        errno.EACCES: "permission denied",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }.get(error.errno or 0, error.strerror or "unknown error")
    return AddressError(f"cannot listen on {target}: {why}", UNUSABLE)
