"""The configuration file that the chart writes is one that the server takes, and what the probes ask is answered."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest
from admin_port import address_of, get
from authority import Authority
from deploy_tools import CHART, documents, only, template
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost_server import DEADLINE, Server, roost

from roost.client import Client, Tls
from roost.server.config import ConfigError, Settings, load

CASES = [None, *sorted((CHART / "ci").glob("*.yaml"))]


def settings(text: str, directory: Path) -> dict[str, Any]:
    """The chart's configuration file, with the files of the pod moved into a directory."""
    given = tomllib.loads(only("ConfigMap", documents(text))["data"]["roost.toml"])
    if "admin_key_file" in given:
        key_file = directory / "admin.key"
        assert roost("keys", "new-admin-key", str(key_file)).returncode == 0
        key_file.chmod(0o440)  # as the volume of a secret has it
        given["admin_key_file"] = str(key_file)
    return given


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem if case else "default")
def test_the_server_takes_the_configuration(case: Path | None, tmp_path: Path) -> None:
    given = settings(template(*(["--values", case] if case else [])), tmp_path)
    configuration = load(given, environment={})
    assert configuration.settings.data_dir == "/var/lib/roost/store"
    assert configuration.sources["max_resident_bytes"] == "flag"


def test_amounts_are_what_the_server_makes_of_them(tmp_path: Path) -> None:
    """The templates and the server read units alike."""
    amounts = {"default_stale_ms": "90 m", "retention_ms": "3d", "max_store_bytes": "7TiB", "heartbeat_ms": "5min"}
    sets = [word for key, value in amounts.items() for word in ("--set-string", f"config.{key}={value}")]
    given = settings(template(*sets), tmp_path)
    for key, value in amounts.items():
        assert given[key] == getattr(load({key: value}, environment={}).settings, key)


def test_ranges_are_those_of_the_server() -> None:
    """Whatever the templates let through, the server takes; it is asked for the ends of each range."""
    for key, table in json.loads((CHART / "files/settings.json").read_text()).items():
        if not table or key == "max_turn_bytes":  # which max_request_bytes bounds as well
            continue
        for end in ("min", "max"):
            assert getattr(Settings(**{key: table[end]}), key) == table[end]
        with pytest.raises(ConfigError):
            load({key: table["max"] + 1}, environment={})


def prepared(given: dict[str, Any], directory: Path) -> Server:
    """A server of the chart's configuration, on a volume in a directory."""
    given["data_dir"] = str(directory / "volume/store")  # the server makes it: the volume's own root is the kubelet's
    given["admin_listen"] = "127.0.0.1:0"
    (directory / "volume").mkdir(mode=0o770)
    config = directory / "roost.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    return Server(Path(given["data_dir"]), "--config", str(config))


def test_a_server_of_the_tls_values_is_reached_with_them_and_by_the_probes(tmp_path: Path) -> None:
    """The secrets' volumes are as a kubelet has them: links into a directory that is turned, files for the group."""
    sets = ("--set", "tls.clientCASecret=agents", "--set", "auth.enabled=false")
    text = template("--values", CHART / "ci/tls.yaml", *sets)
    given = settings(text, tmp_path)
    assert not given.get("insecure")
    authority = Authority(tmp_path / "authority")
    paths = {}
    for key in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
        volume, name = tmp_path / Path(given[key]).parent.name, Path(given[key]).name
        paths[key] = volume / "..made" / name
        paths[key].parent.mkdir(parents=True, exist_ok=True)
        if not (volume / "..data").is_symlink():
            (volume / "..data").symlink_to("..made")
        (volume / name).symlink_to(f"..data/{name}")
        given[key] = str(volume / name)
    cert, key_file = authority.issue("roost.agents.svc")
    sources = {"tls_cert_file": cert, "tls_key_file": key_file, "tls_client_ca_file": authority.ca}
    for key, source in sources.items():
        shutil.copy(source, paths[key])
        paths[key].chmod(0o440)
    server = prepared(given, tmp_path).start()
    try:
        (container,) = only("StatefulSet", documents(text))["spec"]["template"]["spec"]["containers"]
        for which in ("startup", "readiness", "liveness"):
            assert get(address_of(server), container[f"{which}Probe"]["httpGet"]["path"])[0] == 200
        cert, key_file = authority.issue("agent", file="agent", client=True)
        tls = Tls(str(authority.ca), str(cert), str(key_file), "roost.agents.svc")
        with Client(server.address, tls=tls, timeout=DEADLINE) as client:
            assert client.get_stats().epoch == 1
    finally:
        code = server.terminate()
    assert code == 0


def test_a_server_of_the_default_values_answers_its_probes_and_ends(tmp_path: Path) -> None:
    text = template()
    (container,) = only("StatefulSet", documents(text))["spec"]["template"]["spec"]["containers"]
    server = prepared(settings(text, tmp_path), tmp_path).start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for which in ("startup", "readiness", "liveness"):
                request = health_pb2.HealthCheckRequest(service=container[f"{which}Probe"]["grpc"]["service"])
                assert health.Check(request, timeout=DEADLINE).status == health_pb2.HealthCheckResponse.SERVING
    finally:
        code = server.terminate()
    assert code == 0
    assert (tmp_path / "volume/store/roost.secret").stat().st_mode & 0o777 == 0o600


def test_service_links_would_end_the_server() -> None:
    """Why the pods have none: these are what a cluster sets for a service named roost."""
    with pytest.raises(ConfigError, match="ROOST_PORT"):
        load({}, environment={"ROOST_PORT": "tcp://10.0.0.1:7117"})
