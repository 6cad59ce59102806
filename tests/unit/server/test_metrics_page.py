"""The table of metrics: it has every number of the server, each under a name and in a unit that Prometheus asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from roost._core import LIMITS, REASONS, Engine
from roost.handlers.measures import READS, Measures
from roost.handlers.reload import _reads
from roost.handlers.stats import COUNTERS, About
from roost.server.calls import Calls
from roost.server.metrics import FAMILIES, LEFT_OUT, Metrics, wants_openmetrics
from roost.server.transport import SERVICES
from roost.store.sqlite import SqliteStore

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
PATHS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]


class House:
    """What the metrics read."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory, reserve_bytes=1 << 20, reserve_margin=0, background_checkpoint=False)
        limits = {name: default for name, default, _, _ in LIMITS}
        self.engine = Engine(limits, self.store.last_seq, secret=self.store.secret)
        self.about = About(0.0)
        self.calls = Calls(PATHS)
        self.measures = Measures()
        self.ready = True
        parts = self.engine, self.store, self.about, self.calls, self.measures
        self.metrics = Metrics(*parts, lambda: self.ready)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = self.metrics.render(False)[1].decode()
        found = [sample for family in parse_text(text) for sample in family.samples]
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in found}

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, tuple(sorted(labels.items()))]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data")
    yield made
    made.store.close()


def test_every_number_of_the_server_is_a_metric(house: House) -> None:
    """A counter or gauge that GetStats has and the table has not is one that nobody would see."""
    gauges = ("sessions_kept", "sessions_sealed", "messages_live", "orphans_found", "orphans_ended", "door_wait_ms")
    known = {
        *house.engine.stats(),
        *house.store.sizes(),
        *gauges,
        *(f"loop_delay_{p}_us" for p in ("p50", "p99", "max")),
    }
    assert set(house.store.counts()) <= known
    assert {family.stat for family in FAMILIES if family.stat} == known - LEFT_OUT
    assert known >= COUNTERS


def test_every_kind_of_read_is_measured(house: House) -> None:
    assert set(_reads(house.engine, house.store)) == set(READS) == set(house.measures.reads)


def test_names_are_as_prometheus_wants_them() -> None:
    names = [family.exported for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"(roost|process)(_[a-z]+)+", family.name), family.name
        assert (family.kind == "counter") == family.exported.endswith("_total"), family.name
        # A unit is the last word, and a base unit.
        assert not re.search(r"_(ms|us|ns|millis|minutes|kib|mib|kb|mb|percent|total)(_|$)", family.name), family.name
        assert set(family.labels) <= {"method", "code", "reason", "limit", "kind", "result"} or family.kind == "info"
        assert family.meaning.endswith("."), family.name


@pytest.mark.parametrize("openmetrics", [False, True])
def test_what_is_told_is_the_table(house: House, openmetrics: bool) -> None:
    kind, text = house.metrics.render(openmetrics)
    assert kind.startswith(
        "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    )
    parse: Any = parse_openmetrics if openmetrics else parse_text
    found = {family.name: family for family in parse(text.decode())}
    # The older format has no info and keeps the suffix of counters in their names.
    wanted = {f.name: f for f in FAMILIES} if openmetrics else {f.exported: f for f in FAMILIES}
    wanted = {name.removesuffix("_total"): family for name, family in wanted.items()}
    assert set(found) == set(wanted)
    for name, family in found.items():
        assert family.documentation == wanted[name].meaning
        assert family.samples, name
        assert family.type == (wanted[name].kind if openmetrics or wanted[name].kind != "info" else "gauge")
        if openmetrics and name.startswith("roost"):
            assert family.unit == wanted[name].unit
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(wanted[name].labels), name
    assert b"# EOF" in text if openmetrics else b"# EOF" not in text


def test_values_are_those_of_their_sources(house: House) -> None:
    house.about.gauges["messages_live"] = 7
    house.measures.reads["session"].record(0.002)
    house.measures.releases["tmux", False].record(0.5)
    house.measures.dump_bytes += 12
    next(method for method in house.calls.methods() if method.name == "BeginTurn").end(8, 0.2)
    house.engine.refuse("QUEUE_FULL", "", {})
    assert house.value("roost_messages_live") == 7
    assert house.value("roost_store_bytes") == house.store.sizes()["store_bytes"] > 0
    assert house.value("roost_store_read_seconds_bucket", kind="session", le="0.0025") == 1
    assert house.value("roost_store_read_seconds_bucket", kind="session", le="0.001") == 0
    assert house.value("roost_store_read_seconds_sum", kind="session") == 0.002
    assert house.value("roost_release_seconds_count", kind="tmux", result="failed") == 1
    assert house.value("roost_dump_bytes_total") == 12
    assert house.value("roost_rpc_handled_total", method="BeginTurn", code="RESOURCE_EXHAUSTED") == 1
    assert house.value("roost_rpc_handled_total", method="BeginTurn", code="OK") == 0
    assert house.value("roost_refusals_total", reason="QUEUE_FULL") == 1
    assert {reason for reason, *_ in REASONS} == {
        dict(labels)["reason"] for name, labels in house.samples() if name == "roost_refusals_total"
    }
    assert house.value("roost_turn_wait_seconds_bucket", le="0.001") == 0
    assert house.value("roost_ready") == 1
    house.ready = False
    assert house.value("roost_ready") == 0


def test_limits_are_in_base_units_and_keep_the_names_of_their_settings(house: House) -> None:
    found = [(name, dict(labels), value) for (name, labels), value in house.samples().items() if "_limit" in name]
    told = {labels["limit"]: (name, value) for name, labels, value in found if not name.endswith("_ratio")}
    assert set(told) == {name for name, *_ in LIMITS}
    assert told["max_turns_per_tree"] == ("roost_limit", 8)
    assert told["max_resident_bytes"] == ("roost_limit_bytes", 4 << 30)
    assert told["default_lease_ms"] == ("roost_limit_seconds", 60)
    # What is not limited (0 bytes of store) and what is not one number (turns of a tree) has no use.
    used = {labels["limit"]: value for name, labels, value in found if name.endswith("_ratio")}
    assert set(used) == {
        "max_resident_sessions",
        "max_resident_bytes",
        "max_waiters",
        "max_resources",
        "journal_queue_bytes",
    }
    assert set(used.values()) == {0.0}


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (OPENMETRICS, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;escaping=zzz", True),
        ("", False),
        ("*/*", False),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", False),
        ("application/openmetrics-text;version=abc", False),
        (",;=,;;", False),
        ("\x00\xff" * 2_000, False),
    ],
)
def test_the_accept_header_chooses_whatever_it_says(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


def test_the_package_says_what_the_admin_port_needs() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    server = " ".join(project["optional-dependencies"]["server"])
    assert "h11>=" in server
    assert "prometheus-client>=" in server
    assert "opentelemetry" not in server + " ".join(project["dependencies"]), "traces are an extra"
