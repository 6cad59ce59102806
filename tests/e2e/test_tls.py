"""TLS: who is let in and who is not, names, certificates that are replaced while the server runs, and wrong files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from authority import Authority
from conftest import Start
from cryptography import x509
from roost_server import DEADLINE, Server, fresh, roost, until

from roost.client import NO_RETRY, Client, Tls
from roost.errors import ConnectionFailed

NAMES = ("localhost", "127.0.0.1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def flags(pair: tuple[Path, Path], client_ca: Path | None = None) -> list[str]:
    more = [] if client_ca is None else ["--tls-client-ca", str(client_ca)]
    return ["--tls-cert", str(pair[0]), "--tls-key", str(pair[1]), *more]


def calls(server: Server, **tls: object) -> bool:
    """Whether a new client is answered."""
    made = Tls(**{name: str(value) for name, value in tls.items()})
    with Client(server.address, tls=made, retry=NO_RETRY, timeout=DEADLINE) as client:
        try:
            client.get_stats()
        except ConnectionFailed:
            return False
    return True


def serial(server: Server) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE) as raw, context.wrap_socket(raw) as secured:
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def serial_of(cert: Path) -> int:
    return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number


def events(server: Server, name: str) -> list[dict[str, object]]:
    """The lines of an event; the last line of a log that is being written may be half of one."""
    lines = [line for line in server.logged.splitlines() if name in line]
    return [found for found in map(json.loads, lines) if found["event"] == name]


def test_a_client_believes_only_its_authorities_and_the_name_of_the_server(start: Start, authority: Authority) -> None:
    other = Authority(authority.directory / "other")
    server = start(*flags(authority.issue("roost.example", "other.example")))
    assert calls(server, ca=authority.ca, server_name="roost.example")
    assert not calls(server, ca=authority.ca)  # the certificate does not bear 127.0.0.1
    assert not calls(server, ca=authority.ca, server_name="roost.example.org")
    assert not calls(server, ca=other.ca, server_name="roost.example")
    assert not calls(server, server_name="roost.example")  # those that come with gRPC
    with (
        Client(server.address, tls=False, retry=NO_RETRY, timeout=DEADLINE) as plain,
        pytest.raises(ConnectionFailed),
    ):
        plain.get_stats()
    said = ("--target", server.address)
    done = roost("--tls-ca", str(authority.ca), "--tls-server-name", "roost.example", "stats", *said)
    assert (done.returncode, done.stderr) == (0, "")
    done = roost("--tls", "stats", "--timeout", "1", *said)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("roost: cannot reach the server: ")
    assert server.terminate() == 0
    assert [json.loads(line)["event"] for line in server.logged.splitlines()][-1] == "stopped"


def test_with_an_authority_for_clients_each_needs_a_certificate(start: Start, authority: Authority) -> None:
    theirs = Authority(authority.directory / "clients")
    cert, key = theirs.issue("agent-1", file="agent", client=True)
    wrong_cert, wrong_key = authority.issue("agent-1", file="agent", client=True)
    server = start(*flags(authority.issue(*NAMES), theirs.ca))
    assert calls(server, ca=authority.ca, cert=cert, key=key)
    assert not calls(server, ca=authority.ca)
    assert not calls(server, ca=authority.ca, cert=wrong_cert, key=wrong_key)
    given = ("--tls-ca", str(authority.ca), "--tls-cert", str(cert), "--tls-key", str(key))
    done = roost(*given, "stats", "--target", server.address)
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: "ready" in server.logged)
    assert events(server, "ready")[0]["tls"] == "mutual"
    # Another authority, in the file that is looked at: whom it signed is let in, whom the old one signed is not.
    shutil.copy(authority.ca, theirs.ca)
    assert calls(server, ca=authority.ca, cert=wrong_cert, key=wrong_key)
    assert not calls(server, ca=authority.ca, cert=cert, key=key)


def by_a_link(authority: Authority, volume: Path) -> Callable[[int], Path]:
    """As Kubernetes does it: the files are links into `..data`, a link itself, which is turned in one step."""

    def put(n: int) -> Path:
        made = volume / f"..made-{n}"
        made.mkdir(parents=True)
        cert, _ = authority.issue(*NAMES, directory=made)
        turned = volume / "..data_tmp"
        turned.symlink_to(made.name)
        turned.rename(volume / "..data")
        for name in ("server.pem", "server.key"):
            link = volume / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        return cert

    return put


def in_place(authority: Authority, volume: Path) -> Callable[[int], Path]:
    """Files that are replaced by others of the same name, one after the other."""

    def put(n: int) -> Path:
        made = volume / f"made-{n}"
        made.mkdir(parents=True)
        for file in authority.issue(*NAMES, directory=made):
            file.rename(volume / file.name)
        return volume / "server.pem"

    return put


@pytest.mark.parametrize("way", [by_a_link, in_place])
def test_a_new_certificate_is_served_without_a_restart_and_a_bad_one_is_not(
    start: Start, authority: Authority, tmp_path: Path, way: Callable[[Authority, Path], Callable[[int], Path]]
) -> None:
    volume = tmp_path / "volume"
    put = way(authority, volume)
    first = serial_of(put(1))
    server = start(*flags((volume / "server.pem", volume / "server.key")))
    with Client(server.address, tls=Tls(ca=str(authority.ca)), retry=NO_RETRY, timeout=DEADLINE) as client:
        client.open_session(fresh())
        assert serial(server) == first
        second = serial_of(put(2))
        assert serial(server) == second != first

        key = volume / "server.key"
        authority.issue("localhost", file="another")[1].replace(key)
        assert serial(server) == second
        until(lambda: events(server, "certificate_refused"))
        assert "does not belong to" in str(events(server, "certificate_refused")[0]["reason"])
        key.unlink()
        assert serial(server) == second
        until(lambda: len(events(server, "certificate_refused")) == 2)
        assert calls(server, ca=authority.ca)
        third = serial_of(put(3))
        if not key.exists():  # a link before, which was replaced by a file
            key.symlink_to("..data/server.key")
        assert serial(server) == third
        # Whoever was connected has noticed nothing.
        client.open_session(fresh())
        assert client.retries == 0
    assert server.terminate() == 0
    assert len(events(server, "certificate_refused")) == 2
    assert "PRIVATE" not in server.logged


def test_a_certificate_that_is_out_of_date_is_served_with_a_warning(start: Start, authority: Authority) -> None:
    server = start(*flags(authority.issue(*NAMES, days=-1)))
    until(lambda: events(server, "certificate_expired"))
    assert not calls(server, ca=authority.ca)
    cert, _ = authority.issue(*NAMES)
    assert serial(server) == serial_of(cert)
    assert calls(server, ca=authority.ca)
    assert server.terminate() == 0
    assert len(events(server, "certificate_expired")) == 1


def test_with_tls_other_machines_may_be_listened_to(start: Start, authority: Authority) -> None:
    server = start(*flags(authority.issue(*NAMES)), listen="0.0.0.0:0")
    server.address = server.address.replace("0.0.0.0", "127.0.0.1")
    assert calls(server, ca=authority.ca)
    until(lambda: events(server, "insecure"))  # there are neither keys nor certificates of clients
    assert "plaintext" not in str(events(server, "insecure")[0]["reason"])


def wrong_files(authority: Authority, directory: Path) -> dict[str, tuple[dict[str, Path], str]]:
    """Settings by what is wrong with them, and what the server says of it."""
    cert, key = authority.issue(*NAMES)
    other = authority.issue(*NAMES, file="other")[1]
    text = directory / "text"
    text.write_text("no certificate")
    text.chmod(0o600)
    open_key = directory / "open.key"
    shutil.copy(key, open_key)
    open_key.chmod(0o644)
    locked = directory / "locked.key"
    locked.write_bytes(encrypted(key))
    locked.chmod(0o600)
    nothing = directory / "nothing"
    pair = {"tls_cert_file": cert, "tls_key_file": key}
    return {
        "no key": ({"tls_cert_file": cert}, "tls_cert_file is given and tls_key_file is not"),
        "no certificate": ({"tls_key_file": key}, "tls_key_file is given and tls_cert_file is not"),
        "only clients": ({"tls_client_ca_file": authority.ca}, "tls_client_ca_file is given and"),
        "certificate missing": (
            pair | {"tls_cert_file": nothing},
            f"cannot read the TLS certificate {nothing}: No",
        ),
        "key missing": (pair | {"tls_key_file": nothing}, f"cannot read the TLS key {nothing}: No such"),
        "key of another": (pair | {"tls_key_file": other}, f"the TLS key {other} does not belong to"),
        "no pem": (pair | {"tls_cert_file": text}, f"{text} holds no certificate"),
        "no pem key": (pair | {"tls_key_file": text}, f"{text} holds no private key"),
        "key for all": (pair | {"tls_key_file": open_key}, "mode 0644: other users can read it"),
        "key with a password": (pair | {"tls_key_file": locked}, "is encrypted"),
        "no authorities": (pair | {"tls_client_ca_file": text}, f"{text} holds no certificate"),
        "a directory": (pair | {"tls_cert_file": directory}, f"cannot read the TLS certificate {directory}: Is a dir"),
    }


def encrypted(key: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_wrong_files_are_said_before_anything_is_touched(authority: Authority, tmp_path: Path) -> None:
    from roost.server.app import run
    from roost.server.config import ConfigError, load

    def never(path: Path) -> None:
        raise AssertionError(f"the store {path} was opened")

    for what, (given, says) in wrong_files(authority, tmp_path).items():
        configuration = load({key: str(path) for key, path in given.items()}, environment={})
        mask = os.umask(0o077)  # which `run` sets for a process of its own
        try:
            with pytest.raises(ConfigError) as caught:
                run(configuration, never)  # type: ignore[arg-type]
        finally:
            os.umask(mask)
        assert says in str(caught.value), what
        assert "\n" not in str(caught.value)


def test_the_command_ends_with_78_and_one_sentence(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.issue(*NAMES)
    _, other = authority.issue(*NAMES, file="other")
    data = tmp_path / "data"
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(data), *flags((cert, other)))
    assert (ended.returncode, ended.stderr.count("\n"), data.exists()) == (78, 1, False)
    assert ended.stderr.startswith(f"roost: the TLS key {other} does not belong to")
