"""Write deploy/monitoring/dashboard.json, the Grafana dashboard, from the table of panels below; `--check` fails where
it differs. Which metric is what is in docs/OPERATIONS.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parent.parent / "deploy/monitoring/dashboard.json"
WIDTH, HEIGHT = 24, 8  # Grafana's grid, and how high a panel is
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNDER_WAY = "sum by (method) (roost_rpc_started_total{}) - sum by (method) (roost_rpc_handled_total{}) > 0"
TENANT_CAP = 'limit="max_turns_per_tenant"'
ONE = '{job="$job",instance=~"$instance"}'  # stands for {} in queries


@dataclass(frozen=True)
class Panel:
    """A panel: title, unit as Grafana has it, and its queries with the legend of each."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8


def rate(metric: str, by: str = "", labels: str = "") -> str:
    inner = f"rate({metric}{_with(labels)}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(q: float, metric: str, by: str = "", labels: str = "") -> str:
    groups = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{_with(labels)}[$__rate_interval])))"


def _with(labels: str) -> str:
    return ONE.replace("}", f",{labels}}}") if labels else ONE


def rates(*metrics: str) -> tuple[tuple[str, str], ...]:
    """The rate of each counter, called by what tells it from the others."""
    return tuple((rate(f"roost_{metric}_total"), metric.partition("_")[2].replace("_", " ")) for metric in metrics)


def gauges(*metrics: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"sum({metric}{ONE})", legend) for metric, legend in metrics)


def quantiles(metric: str, *qs: float) -> tuple[tuple[str, str], ...]:
    return tuple((quantile(q, metric), f"p{q * 100:g}") for q in qs)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            Panel("Ready", "none", ((f"min by (instance) (roost_ready{ONE})", "{{instance}}"),), "stat", 4),
            Panel("Version", "none", ((f"roost_build_info{ONE}", "{{version}}"),), "stat", 4),
            Panel("Up for", "s", ((f"time() - process_start_time_seconds{ONE}", "{{instance}}"),), "stat", 4),
            Panel("Turns running", "short", gauges(("roost_turns_running", "")), "stat", 4),
            Panel("Calls waiting", "short", gauges(("roost_waiting", "")), "stat", 4),
            Panel("Turns a second", "ops", ((rate("roost_turns_begun_total"), ""),), "stat", 4),
        ),
    ),
    (
        "Turns",
        (
            Panel(
                "Turns by how they end",
                "ops",
                rates("turns_begun", "turns_committed", "turns_aborted", "turns_expired", "turns_taken_over"),
            ),
            Panel(
                "Turns ended from outside",
                "ops",
                rates("turns_interrupted", "turns_released", "turns_rewound"),
            ),
            Panel(
                "Slots and who waits",
                "short",
                (
                    *gauges(("roost_slots_held", "slots held"), ("roost_waiting", "calls waiting")),
                    (f"max(roost_limit{_with(TENANT_CAP)})", "cap of a tenant"),
                ),
            ),
            Panel("Wait for a slot", "s", quantiles("roost_turn_wait_seconds", 0.5, 0.95, 0.99)),
            Panel("Time that slots are held", "s", quantiles("roost_turn_held_seconds", 0.5, 0.95, 0.99)),
            Panel("Use of limits", "percentunit", ((f"max by (limit) (roost_limit_used_ratio{ONE})", "{{limit}}"),)),
        ),
    ),
    (
        "Calls",
        (
            Panel("Calls by method", "ops", ((rate("roost_rpc_handled_total", "method"), "{{method}}"),)),
            Panel(
                "Calls that do not end with OK",
                "ops",
                ((rate("roost_rpc_handled_total", "method, code", 'code!="OK"'), "{{method}} {{code}}"),),
            ),
            Panel("Refusals by reason", "ops", ((rate("roost_refusals_total", "reason") + " > 0", "{{reason}}"),)),
            Panel(
                "Latency of calls that never wait, p99",
                "s",
                (
                    (
                        quantile(
                            0.99,
                            "roost_rpc_duration_seconds",
                            "method",
                            'method=~"CommitTurn|AbortTurn|RenewTurns|OpenSession|GetSession|CloseSession|SendMessage"',
                        ),
                        "{{method}}",
                    ),
                ),
            ),
            Panel(
                "Latency of BeginTurn, waits included",
                "s",
                tuple(
                    (quantile(q, "roost_rpc_duration_seconds", "", 'method="BeginTurn"'), f"p{q * 100:g}")
                    for q in (0.5, 0.95, 0.99)
                ),
            ),
            Panel(
                "Calls under way",
                "short",
                ((UNDER_WAY.replace("{}", ONE), "{{method}}"),),
            ),
        ),
    ),
    (
        "Sessions and memory",
        (
            Panel(
                "Sessions opened and closed",
                "ops",
                rates("sessions_opened", "sessions_closed", "sessions_reopened", "sessions_forked"),
            ),
            Panel(
                "In memory",
                "short",
                gauges(("roost_resident_sessions", "sessions"), ("roost_tree_headers", "headers")),
            ),
            Panel(
                "Memory",
                "bytes",
                gauges(("roost_resident_bytes", "sessions and headers"), ("process_resident_memory_bytes", "process")),
            ),
            Panel(
                "Evictions and reloads",
                "ops",
                rates("evictions", "header_evictions", "reloads", "header_loads"),
            ),
            Panel("Reads, p99", "s", ((quantile(0.99, "roost_store_read_seconds", "kind"), "{{kind}}"),)),
            Panel("Loads that fail", "ops", rates("load_failures")),
        ),
    ),
    (
        "Store",
        (
            Panel("Appends", "s", quantiles("roost_store_append_seconds", 0.5, 0.99)),
            Panel(
                "Entries of a batch, mean",
                "short",
                ((f"{rate('roost_batch_entries_sum')} / {rate('roost_batch_entries_count')}", "entries"),),
            ),
            Panel(
                "Batches",
                "ops",
                rates("batches_stored", "batches_refused"),
            ),
            Panel("Age of the oldest entry not on disk", "s", ((f"max(roost_journal_lag_seconds{ONE})", "lag"),)),
            Panel("Journal not on disk", "bytes", gauges(("roost_journal_bytes", "queue"))),
            Panel(
                "On disk",
                "bytes",
                gauges(
                    ("roost_store_bytes", "store"),
                    ("roost_store_wal_bytes", "log"),
                    ("roost_store_reserve_bytes", "reserve"),
                ),
            ),
        ),
    ),
    (
        "After the end of a session",
        (
            Panel(
                "Dumped, purged, restored, swept",
                "ops",
                rates("sessions_dumped", "sessions_purged", "sessions_restored", "trees_swept"),
            ),
            Panel(
                "Sealed and kept",
                "short",
                gauges(("roost_sessions_sealed", "sealed"), ("roost_sessions_kept", "kept")),
            ),
            Panel(
                "Tries to dump",
                "ops",
                ((rate("roost_dump_seconds_count", "result"), "{{result}}"),),
            ),
            Panel(
                "Time that a dump takes, p95", "s", ((quantile(0.95, "roost_dump_seconds", "result"), "{{result}}"),)
            ),
            Panel("Dumped", "Bps", ((rate("roost_dump_bytes_total"), "bytes"),)),
            Panel("Steps that failed", "ops", rates("cleanup_failures")),
        ),
    ),
    (
        "Trajectories, mail, resources",
        (
            Panel("Trajectories", "ops", rates("trajectories_finished", "trajectories_acknowledged")),
            Panel(
                "Messages",
                "ops",
                rates("messages_sent", "messages_delivered", "messages_consumed", "messages_expired", "messages_dead"),
            ),
            Panel(
                "Messages in mailboxes, events kept for watchers",
                "short",
                gauges(("roost_messages_live", "messages"), ("roost_watch_events", "events")),
            ),
            Panel(
                "Resources",
                "short",
                gauges(
                    ("roost_resources", "attached"),
                    ("roost_resources_releasing", "to end"),
                    ("roost_pool_waiting", "calls that wait for a place"),
                    ("roost_orphans_found", "orphans"),
                ),
            ),
            Panel(
                "Releases by driver",
                "ops",
                ((rate("roost_release_seconds_count", "kind, result"), "{{kind}} {{result}}"),),
            ),
            Panel(
                "Resources, rates",
                "ops",
                rates("resources_attached", "resources_released", "releases_failed", "pool_evictions", "orphans_ended"),
            ),
        ),
    ),
    (
        "Process",
        (
            Panel("CPU", "percentunit", ((rate("process_cpu_seconds_total", "instance"), "{{instance}}"),)),
            Panel("Wait at the door", "s", ((f"max(roost_door_wait_seconds{ONE})", "wait"),)),
            Panel("Delay of the event loop", "s", quantiles("roost_event_loop_delay_seconds", 0.5, 0.99)),
            Panel(
                "Open files",
                "short",
                gauges(("process_open_fds", "open"), ("process_max_fds", "limit")),
            ),
        ),
    ),
)


def panels() -> Iterator[dict[str, Any]]:
    """Rows and panels, left to right and top to bottom."""
    number, y = 0, 0
    for row, members in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        y, x = y + 1, 0
        height = 4 if members[0].kind == "stat" else HEIGHT
        for panel in members:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            number += 1
            yield shown(panel, number, {"x": x, "y": y, "w": panel.width, "h": height})
            x += panel.width
        y += height


def shown(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    stat = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"textMode": "name" if panel.title == "Version" else "auto"}
        if stat
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": stat,
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }


def variables() -> Iterable[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    for name, label, query in (
        ("job", "Job", "label_values(roost_build_info, job)"),
        ("instance", "Instance", 'label_values(roost_build_info{job="$job"}, instance)'),
    ):
        many = name == "instance"
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": many,
            "includeAll": many,
            **({"allValue": ".*"} if many else {}),
        }


def dashboard() -> str:
    made = {
        "uid": "roost",
        "title": "Roost",
        "tags": ["roost"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": list(variables())},
        "panels": list(panels()),
    }
    return json.dumps(made, indent=1) + "\n"


def main() -> int:
    if "--check" not in sys.argv[1:]:
        DASHBOARD.write_text(dashboard())
    elif not DASHBOARD.exists() or DASHBOARD.read_text() != dashboard():
        print("gen_dashboard: the dashboard is not what its panels say; run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
