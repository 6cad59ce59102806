"""The dashboard, the alert rules and the docs name metrics, labels and label values that a running server tells, and
each alert has a section that says what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from admin_port import Scrape, address_of
from roost_server import Server

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
PROMETHEUS = {"job", "instance"}  # the labels that a scrape adds


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """What a server tells that nobody has called."""
    server = Server(tmp_path_factory.mktemp("monitoring") / "data", "--admin-listen", "127.0.0.1:0").start()
    try:
        yield Scrape(address_of(server))
    finally:
        server.end()


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((MONITORING / "dashboard.json").read_text())["panels"])


@cache
def queries() -> dict[str, str]:
    """Every query by where it stands; Grafana's own interval as any."""
    found = {f"alert {rule['alert']}": str(rule["expr"]) for rule in rules()}
    for panel in panels():
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"].replace("$__rate_interval", "5m")
    return found


def walk(query: str, visit: Callable[[Any], None]) -> None:
    promql.walk(promql.parse(query), pre_visit=visit)


def selectors(query: str) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)

    walk(query, visit)
    return list({id(node): node for node in found}.values())


@pytest.mark.parametrize("where", sorted(queries()))
def test_a_query_names_series_that_a_server_tells(told: Scrape, where: str) -> None:
    query = queries()[where]
    labels_of: dict[str, list[dict[str, str]]] = {}
    for name, labels in told.samples:
        labels_of.setdefault(name, []).append(dict(labels))
    found = selectors(query)
    assert found, "it asks for nothing"
    known = set(PROMETHEUS)
    for selector in found:
        assert selector.name in labels_of, f"{selector.name} is not told"
        series = labels_of[selector.name]
        known |= set(series[0])
        for matcher in selector.matchers.matchers:
            if matcher.name in PROMETHEUS:
                continue
            assert matcher.name in series[0], f"{selector.name} has no label {matcher.name}"
            # Codes are told once a call had them, use where there is a limit: all else is there from the start.
            values = {labels[matcher.name] for labels in series}
            if matcher.name == "code":
                values = {"OK", "INTERNAL", "UNKNOWN", "DATA_LOSS"}
            if selector.name.endswith("_ratio"):
                values |= {"max_store_bytes"}
            wanted = (
                matcher.value.split("|") if matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe) else [matcher.value]
            )
            assert set(wanted) <= values, f"{selector.name} has no {matcher.name} {sorted(set(wanted) - values)}"

    def grouped(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known | {"le"}, node.modifier.labels
        if isinstance(node, promql.Call) and node.func.name in ("rate", "increase"):
            (matrix,) = node.args
            name = matrix.vector_selector.name
            assert name.endswith(("_total", "_bucket", "_count", "_sum")), f"{name} is no counter"
        if isinstance(node, promql.Call) and node.func.name == "histogram_quantile":
            assert "le" in node.args[1].modifier.labels

    walk(query, grouped)


def test_every_metric_of_ours_is_on_the_dashboard_or_in_a_rule(told: Scrape) -> None:
    """What nobody would ever look at is not worth telling; these few are for who looks for something."""
    asked = {selector.name for query in queries().values() for selector in selectors(query)}
    families = {re.sub(r"_(total|bucket|count|sum|info)$", "", name) for name in asked}
    ours = {re.sub(r"_info$", "", name) for name in told.families if name.startswith("roost_")}
    rare = {
        "roost_api_keys",
        "roost_calls_in_flight",
        "roost_entries_stored",
        "roost_journal_entries",
        "roost_limit_bytes",
        "roost_limit_seconds",
        "roost_turns_running",
    }
    assert ours - families <= rare, ours - families


def test_every_alert_is_explained() -> None:
    text = OPERATIONS.read_text()
    chapter = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    sections = dict(re.findall(r"^### (Roost\w+)\n\n(.+?)(?=\n### |\Z)", chapter, re.MULTILINE | re.DOTALL))
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert list(sections) == names, "the sections are those of the rules, in their order"
    for rule in rules():
        name = rule["alert"]
        assert len(sections[name].split()) > 20, f"{name}: what does it mean, and what is to be done?"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+[mhd]", rule["for"])
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook"}
        assert notes["runbook"] == f"docs/OPERATIONS.md#{name.lower()}"
        # What a template names is in what the query leaves.
        for label in re.findall(r"\$labels\.(\w+)", notes["description"]):
            aggregated = re.search(r"by \(([^)]*)\)", rule["expr"])
            assert aggregated is None or label in aggregated[1], f"{name}: {label}"


def test_the_panels_stand_beside_each_other_and_say_what_they_show() -> None:
    taken: dict[tuple[int, int], str] = {}
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], (
                    f"{panel['title']} is on another panel"
                )
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all('job="$job"' in target["expr"] for target in panel["targets"]), panel["title"]


def test_the_table_of_the_docs_is_what_a_server_tells(told: Scrape) -> None:
    text = OPERATIONS.read_text()
    table = text.partition("<!-- metrics: written by `make docs` -->")[2].partition("<!-- end of metrics -->")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE))
    kinds = {
        (f"{name}_total" if family.type == "counter" else name): family.type for name, family in told.families.items()
    }
    # The text format says gauge of an info.
    assert {name: "gauge" if kind == "info" else kind for name, kind in listed.items()} == kinds
