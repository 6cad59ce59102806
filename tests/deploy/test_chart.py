"""The Helm chart with its default values and with those of ci/: lint, strict schemas, and what a pod must have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import CHART, ROOT, documents, only, run, template, tool

CASES = [None, *sorted((CHART / "ci").glob("*.yaml"))]
OLDEST, NEWEST = "1.27", "1.37"  # of Kubernetes; the oldest is the chart's kubeVersion
CUSTOM = "monitoring.coreos.com/v1"
EVERYTHING = CHART / "ci/everything.yaml"
ALERT = """\
groups:
  - name: roost
    rules:
      - alert: RoostDown
        expr: up{job="roost"} == 0
        for: 5m
        labels: {severity: critical}
        annotations:
          summary: "{{ $labels.instance }} has not answered for 5 minutes"
"""


def arguments(case: Path | None) -> list[str | Path]:
    return [] if case is None else ["--values", case]


def name(case: Path | None) -> str:
    return "default" if case is None else case.stem


every_case = pytest.mark.parametrize("case", CASES, ids=name)


@every_case
def test_helm_lint_is_strict_and_content(case: Path | None) -> None:
    done = run("helm", "lint", "--strict", CHART, *arguments(case))
    assert done.returncode == 0, done.stdout + done.stderr


@every_case
def test_every_document_is_what_kubernetes_knows(case: Path | None, tmp_path: Path) -> None:
    """No field that Kubernetes does not have, and none of another type: an API server would drop or refuse it."""
    native, custom = tmp_path / "native.yaml", tmp_path / "custom.yaml"
    found = documents(template(*arguments(case)))
    assert len(found) >= 5
    native.write_text(yaml.safe_dump_all([d for d in found if d["apiVersion"] != CUSTOM]))
    done = run("kubernetes-validate", "--strict", "--quiet", "-k", OLDEST, "-k", NEWEST, native)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    theirs = [d for d in found if d["apiVersion"] == CUSTOM]
    assert bool(theirs) == (case == EVERYTHING)
    if theirs:
        custom.write_text(yaml.safe_dump_all(theirs))
        done = run("crdcheck", custom)
        assert (done.returncode, done.stdout.count("is well-formed")) == (0, len(theirs)), done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "checker"),
    [
        ("maxUnavailable: 1", "maxUnavailible: 1", "kubernetes-validate"),
        ("containerPort: 7117", "containerPort: grpc", "kubernetes-validate"),
        ("scrapeTimeout: 5s", "scrapeTimeOut: 5s", "crdcheck"),
    ],
)
def test_the_checkers_find_a_wrong_field(right: str, wrong: str, checker: str, tmp_path: Path) -> None:
    text = template("--values", EVERYTHING)
    assert right in text
    kind = CUSTOM if checker == "crdcheck" else ""
    found = [d for d in documents(text.replace(right, wrong)) if (d["apiVersion"] == CUSTOM) == bool(kind)]
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump_all(found))
    options = ["--strict", "-k", NEWEST] if checker == "kubernetes-validate" else []
    done = run(checker, *options, file)
    assert done.returncode != 0
    assert re.search(r"maxUnavailible|containerPort|scrapeTimeOut", done.stdout + done.stderr)


@every_case
def test_pods_are_restricted_and_alone(case: Path | None) -> None:
    found = documents(template(*arguments(case)))
    pods = [only("StatefulSet", found)["spec"]["template"]["spec"], only("Pod", found)["spec"]]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        # ROOST_PORT and others of a service named roost would end the server: it knows no such settings.
        assert pod["enableServiceLinks"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0 < security["fsGroup"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not container["image"].endswith(":latest")
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        claims = {c["metadata"]["name"] for c in only("StatefulSet", found)["spec"].get("volumeClaimTemplates", [])}
        assert mounted <= volumes | claims
        for volume in pod.get("volumes", []):
            # What others can read is refused by the server, and its group must be able to.
            assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440


@every_case
def test_kube_score_has_nothing_critical_to_say(case: Path | None, tmp_path: Path) -> None:
    if case is not None and case.stem == "no-persistence":
        pytest.skip("a trial has neither network policy nor budget, on purpose")
    found = [d for d in documents(template(*arguments(case))) if d["kind"] != "Pod" and d["apiVersion"] != CUSTOM]
    file = tmp_path / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(found))
    # A pinned tag need not be pulled again; CPU is not limited, see values.yaml.
    ignored = ["--ignore-test", "container-image-pull-policy", "--ignore-container-cpu-limit"]
    done = run("kube-score", "score", *ignored, "--output-format", "ci", file)
    critical = [line for line in done.stdout.splitlines() if line.startswith("[CRITICAL]")]
    assert (done.returncode, critical) == (0, []), done.stdout


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


@every_case
def test_selectors_choose_the_server_and_not_the_test(case: Path | None) -> None:
    found = documents(template(*arguments(case)))
    stateful = only("StatefulSet", found)
    server = stateful["spec"]["template"]["metadata"]["labels"]
    probe = only("Pod", found)["metadata"]["labels"]
    selectors = [stateful["spec"]["selector"]["matchLabels"]]
    selectors += [d["spec"]["selector"] for d in found if d["kind"] == "Service"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in found if d["kind"] == "PodDisruptionBudget"]
    selectors += [d["spec"]["podSelector"]["matchLabels"] for d in found if d["kind"] == "NetworkPolicy"]
    assert len(selectors) >= 3
    for selector in selectors:
        assert selects(selector, server)
        assert not selects(selector, probe)
        # An upgrade changes those, and a selector or a claim cannot be changed.
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & selector.keys()
    for claim in stateful["spec"].get("volumeClaimTemplates", []):
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & claim["metadata"]["labels"].keys()
    headless = next(d for d in found if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None")
    assert stateful["spec"]["serviceName"] == headless["metadata"]["name"]
    for monitor in (d for d in found if d["kind"] == "ServiceMonitor"):
        chosen = monitor["spec"]["selector"]["matchLabels"]
        services = [d for d in found if d["kind"] == "Service" and selects(chosen, d["metadata"]["labels"])]
        assert services == [headless]
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {p["name"] for p in headless["spec"]["ports"]}
    for policy in (d for d in found if d["kind"] == "NetworkPolicy"):
        peers = {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}
        for port in (7117, 9117):  # `helm test` uses one or the other
            assert any(selects(p.get("podSelector", {}).get("matchLabels", {}), probe) for p in peers[port])


def test_probes_are_native_and_differ() -> None:
    (container,) = only("StatefulSet", documents(template()))["spec"]["template"]["spec"]["containers"]
    services = {which: container[f"{which}Probe"]["grpc"]["service"] for which in ("startup", "readiness", "liveness")}
    assert services == {"startup": "ready", "readiness": "ready", "liveness": "live"}


def test_with_tls_probes_ask_the_admin_port() -> None:
    """A kubelet's gRPC probe speaks no TLS: it would have the server restarted for ever."""
    pod = only("StatefulSet", documents(template("--values", CHART / "ci/tls.yaml")))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {which: container[f"{which}Probe"]["httpGet"]["path"] for which in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}


def test_the_pod_outlives_the_drain() -> None:
    found = documents(template("--set", "drainSeconds=90"))
    settings = tomllib.loads(only("ConfigMap", found)["data"]["roost.toml"])
    pod = only("StatefulSet", found)["spec"]["template"]["spec"]
    assert settings["drain_timeout_ms"] == 90_000
    assert pod["terminationGracePeriodSeconds"] * 1_000 > settings["drain_timeout_ms"]


def test_another_configuration_is_another_pod_and_another_secret_is_not() -> None:
    def pod(*more: str) -> Any:
        return only("StatefulSet", documents(template(*more)))["spec"]["template"]

    assert pod("--set", "config.max_depth=3") != pod()
    assert pod("--set", "service.port=80") == pod()


def test_no_persistence_is_no_claim_and_no_limit_on_the_store() -> None:
    found = documents(template("--values", CHART / "ci/no-persistence.yaml"))
    spec = only("StatefulSet", found)["spec"]
    assert "volumeClaimTemplates" not in spec
    (data,) = [v for v in spec["template"]["spec"]["volumes"] if v["name"] == "data"]
    assert data["emptyDir"] == {"sizeLimit": "500Mi"}
    (container,) = spec["template"]["spec"]["containers"]
    assert set(container["resources"]["limits"]) == {"memory"}


def test_a_long_release_name_leaves_room_for_what_is_added_to_it() -> None:
    for document in documents(template(release="a-release-with-a-name-of-fifty-three-characters-xxxxx")):
        assert len(document["metadata"]["name"]) <= 63
        for label in document["metadata"]["labels"].values():
            assert len(label) <= 63


def test_alert_rules_are_taken_as_they_are(tmp_path: Path) -> None:
    """Their own template marks are Prometheus', not Helm's."""
    chart = tmp_path / "roost"
    shutil.copytree(CHART, chart)
    alerts = chart / "files/alerts.yaml"
    if not alerts.exists():
        alerts.write_text(ALERT)
    text = template("--set", "prometheusRule.enabled=true", chart=chart)
    rule = only("PrometheusRule", documents(text))
    assert rule["spec"] == yaml.safe_load(alerts.read_text())
    file = tmp_path / "rule.yaml"
    file.write_text(yaml.safe_dump(rule))
    assert run("crdcheck", file).returncode == 0
    done = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", alerts)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_chart_without_alert_rules_says_so(tmp_path: Path) -> None:
    chart = tmp_path / "roost"
    shutil.copytree(CHART, chart)
    (chart / "files/alerts.yaml").unlink(missing_ok=True)
    done = run("helm", "template", "roost", chart, "--set", "prometheusRule.enabled=true")
    assert done.returncode != 0
    assert "prometheusRule.enabled: this chart was made without alert rules" in done.stderr


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert (chart["appVersion"], chart["version"]) == (version, version)
    image = re.search(r"^ARG VERSION=(.*)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    assert image[1] == version


def test_everything_sets_every_value() -> None:
    """A value that no case sets is one whose template nobody has seen."""

    def paths(values: Any, schema: dict[str, Any], path: str = "") -> set[str]:
        found = set()
        for key, below in schema.get("properties", {}).items():
            if isinstance(values, dict) and key in values:
                nested = "properties" in below and not path
                found |= paths(values[key], below, f"{key}.") if nested and key != "config" else {path + key}
        return found

    schema = json.loads((CHART / "values.schema.json").read_text())
    every = paths(yaml.safe_load((CHART / "values.yaml").read_text()), schema)
    set_somewhere = {path for case in CASES if case for path in paths(yaml.safe_load(case.read_text()), schema)}
    defaults = {"store.mode", "image.tag", "probes.startup", "probes.readiness", "probes.liveness"}
    rules = {"prometheusRule.enabled", "prometheusRule.labels"}  # have a test of their own
    assert every - set_somewhere - defaults - rules == set()


def test_the_plain_manifests_are_what_the_chart_gives() -> None:
    tool("helm")
    command = [sys.executable, str(ROOT / "scripts/gen_manifests.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = {d["kind"] for d in documents((ROOT / "deploy/manifests/roost.yaml").read_text())}
    assert kinds >= {"StatefulSet", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"}
    assert "Pod" not in kinds  # the one of `helm test` is Helm's
