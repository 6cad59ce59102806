"""What `/metrics` tells: one table of metrics, and the collector that reads them when they are asked for.

Nothing is kept for metrics that is not counted anyway: the engine's numbers, the handlers' histograms and the calls'
counts are read at the scrape. Names, labels and label values are all from tables (I25): a test scrapes a server after
hostile clients and finds no word of theirs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import apsw
import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from roost._core import VERSION
from roost.handlers.stats import COUNTERS, About
from roost.server.calls import CODES, Calls

if TYPE_CHECKING:
    from roost._core import Engine
    from roost.handlers.measures import Histogram, Measures
    from roost.store.base import Store

Kind = Literal["counter", "gauge", "histogram", "info"]


@dataclass(frozen=True)
class Family:
    """One metric. `name` is without the suffix that its kind adds to each series; `stat` is the name in GetStats of the
    number that it is, times `scale`."""

    name: str
    kind: Kind
    meaning: str
    stat: str = ""
    labels: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def exported(self) -> str:
        """The name as queries use it; of a histogram the one that _bucket, _sum and _count follow."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")

    @property
    def unit(self) -> str:
        """Of the values."""
        last = self.name.rpartition("_")[2]
        return last if last in {"seconds", "bytes", "ratio"} else ""


def _of(stat: str, meaning: str, name: str = "", scale: float = 1.0) -> Family:
    """A number of GetStats."""
    return Family(f"roost_{name or stat}", "counter" if stat in COUNTERS else "gauge", meaning, stat, scale=scale)


_MS: Final = 1e-3
_OWN: Final = (
    Family("roost_build", "info", "Versions of this server.", labels=("version", "python", "grpcio", "sqlite")),
    Family("roost_ready", "gauge", "1 while the server takes calls: not while it starts, drains or fails."),
    Family("roost_store_epoch", "gauge", "How often the store has been started."),
    # Calls.
    Family("roost_rpc_started", "counter", "Calls that began.", labels=("method",)),
    Family("roost_rpc_handled", "counter", "Calls that ended.", labels=("method", "code")),
    Family(
        "roost_rpc_duration_seconds",
        "histogram",
        "How long calls took, those that wait and streams included.",
        labels=("method",),
    ),
    Family("roost_refusals", "counter", "Refusals, by reason (docs/API.md).", labels=("reason",)),
    _of("calls_in_flight", "Calls that the engine has not answered yet."),
    Family("roost_event_loop_delay_seconds", "histogram", "By how much the event loop is late, 50 samples a second."),
    # Turns and slots.
    _of("turns_begun", "Turns that were granted."),
    _of("turns_committed", "Turns that were committed."),
    _of("turns_rewound", "Commits that went back to an earlier turn; they count as committed too."),
    _of("turns_aborted", "Turns that were aborted."),
    _of("turns_expired", "Turns whose lease ran out."),
    _of("turns_taken_over", "Turns that another attempt took over."),
    _of("turns_interrupted", "Turns that an interrupt ended by force."),
    _of("turns_released", "Grants whose callers were gone before they had the answer."),
    _of("turns_running", "Turns that run."),
    _of("slots_held", "Slots in use, of all tenants; equal to the turns that run."),
    Family("roost_turn_held_seconds", "histogram", "How long turns held their slots."),
    Family("roost_turn_wait_seconds", "histogram", "How long granted BeginTurns had waited for a slot."),
    _of("waiting", "Calls that wait, for a slot, for mail, for a session to run or for a place in a pool."),
    _of("door_wait_ms", "How long new work waits to be taken in, by the latest probe.", "door_wait_seconds", _MS),
    Family("roost_limit", "gauge", "Limits that are counts, by setting.", labels=("limit",)),
    Family("roost_limit_bytes", "gauge", "Limits that are sizes, by setting.", labels=("limit",)),
    Family("roost_limit_seconds", "gauge", "Limits that are times, by setting.", labels=("limit",)),
    Family(
        "roost_limit_used_ratio",
        "gauge",
        "How much of a limit is in use, of those that are set and count one thing: 1 is all of it.",
        labels=("limit",),
    ),
    # Sessions and memory.
    _of("sessions_opened", "Sessions that were made."),
    _of("sessions_closed", "Sessions that were closed, by whatever."),
    _of("sessions_reopened", "Sessions that came back."),
    _of("sessions_forked", "Sessions that began with a copy of another's history."),
    _of("trees_swept", "Trees that the sweep closed because they were stale."),
    _of("resident_sessions", "Sessions in memory."),
    _of("resident_bytes", "Memory that sessions and headers are charged for."),
    _of("tree_headers", "Headers of trees in memory."),
    _of("evictions", "Sessions that left memory for others."),
    _of("header_evictions", "Headers that left memory."),
    _of("reloads", "Sessions that came back to memory."),
    _of("header_loads", "Headers that were read."),
    _of("load_failures", "Reads of sessions or headers that failed or did not verify."),
    # The store.
    Family("roost_store_read_seconds", "histogram", "Reads that calls wait for, by what is read.", labels=("kind",)),
    Family("roost_store_append_seconds", "histogram", "Appends of a batch, the wait for the disk included."),
    Family("roost_batch_entries", "histogram", "Journal entries that one append made durable."),
    _of("batches_stored", "Batches that were stored."),
    _of("entries_stored", "Journal entries that were stored."),
    _of("batches_refused", "Batches that the store refused."),
    _of("journal_entries", "Journal entries that are not yet on disk."),
    _of("journal_bytes", "Their size."),
    _of("journal_lag_ms", "Age of the oldest of them.", "journal_lag_seconds", _MS),
    _of("store_bytes", "Size of the store's file."),
    _of("wal_bytes", "Size of its write-ahead log.", "store_wal_bytes"),
    _of("reserve_bytes", "Size of its reserve; 0 once that is given up.", "store_reserve_bytes"),
    _of("store_low", "1 while new work is refused because the disk is almost full."),
    _of("quarantined_trees", "Trees that are set aside until a restart."),
    # What follows a close.
    _of("sessions_sealed", "Ended sessions whose next step (dump, or the end of a restore) is due or retried."),
    _of("sessions_kept", "Ended sessions that are kept because they were neither dumped nor acknowledged."),
    _of("sessions_dumped", "Sessions that were dumped and verified."),
    Family("roost_dump_seconds", "histogram", "Tries to write and verify a dump, by result.", labels=("result",)),
    Family("roost_dump_bytes", "counter", "Bytes of dumps that were verified."),
    _of("cleanup_failures", "Steps of clean-up that failed and are tried again."),
    _of("sessions_purged", "Sessions whose content was deleted."),
    _of("sessions_restored", "Sessions that were made from their dumps."),
    # Trajectories and mail.
    _of("trajectories_finished", "Trajectories that became READY."),
    _of("trajectories_acknowledged", "Trajectories that were acknowledged."),
    _of("messages_sent", "Messages that were sent, those that tell of a child's end included."),
    _of("messages_delivered", "Messages that went out with a grant, once for each time."),
    _of("messages_consumed", "Messages whose turn was committed."),
    _of("messages_expired", "Messages whose time ran out before they were delivered."),
    _of("messages_dead", "Messages that were delivered too often without a commit."),
    _of("messages_live", "Messages in mailboxes, in memory or not: queued, or delivered to a turn that runs."),
    # Outside resources.
    _of("resources", "Resources that are attached."),
    _of("resources_releasing", "Resources that are to end and have not."),
    _of("resources_attached", "Resources that were attached."),
    _of("resources_released", "Resources that were released."),
    _of("releases_failed", "Releases that failed and are tried again."),
    Family(
        "roost_release_seconds",
        "histogram",
        "Tries to release a resource, by driver and result.",
        labels=("kind", "result"),
    ),
    _of("pool_evictions", "Resources that were released for others of their pool, or for its idle time."),
    _of("watch_events", "Events of sessions that are kept in memory for those who watch."),
    _of("pool_waiting", "Calls that wait for a place in a pool."),
    _of("orphans_found", "Orphans that the last looks found."),
    Family("roost_orphans_ended", "counter", "Orphans that were ended.", "orphans_ended"),
    _of("api_keys", "Active keys of tenants."),
)
# Those of prometheus_client's ProcessCollector, which has them from /proc.
_PROCESS: Final = (
    Family("process_cpu_seconds", "counter", "Total user and system CPU time spent in seconds."),
    Family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    Family("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    Family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    Family("process_open_fds", "gauge", "Number of open file descriptors."),
    Family("process_max_fds", "gauge", "Maximum number of open file descriptors."),
)
FAMILIES: Final = _OWN + _PROCESS
# Numbers of GetStats that are told better otherwise: by reason, and as a histogram.
LEFT_OUT: Final = frozenset({"refusals", "loop_delay_p50_us", "loop_delay_p99_us", "loop_delay_max_us"})

_RESULTS: Final = {True: "ok", False: "failed"}
_MAKE: Final[dict[Kind, Callable[..., Any]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
Series = Iterator[tuple[Any, ...]]  # label values, and what `add_metric` takes of values


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics to the older text, as prometheus_client reads it."""
    try:
        return choose_encoder(accept)[1].startswith("application/openmetrics-text")
    except (TypeError, ValueError):  # it names a version that is none
        return False


class Metrics(Collector):
    """Reads this server's numbers; `ready`: whether it takes calls. Any thread may call it."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        about: About,
        calls: Calls,
        measures: Measures,
        ready: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._store = store
        self._about = about
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        versions = {
            "version": VERSION,
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
            "sqlite": apsw.sqlite_lib_version(),
        }
        self._own: dict[str, Callable[[], Series]] = {
            "roost_build": lambda: iter([((), versions)]),
            "roost_ready": lambda: iter([((), ready())]),
            "roost_store_epoch": lambda: iter([((), store.epoch)]),
            "roost_rpc_started": lambda: (((m.name,), m.started) for m in calls.methods()),
            "roost_rpc_handled": lambda: _handled(calls),
            "roost_rpc_duration_seconds": lambda: (((m.name,), *_seconds(m.seconds)) for m in calls.methods()),
            "roost_refusals": lambda: (((reason,), n) for reason, n in engine.refusals().items()),
            "roost_event_loop_delay_seconds": lambda: iter([((), *_seconds(measures.loop_delay))]),
            "roost_turn_held_seconds": lambda: self._told("turn_held_ms", _MS),
            "roost_turn_wait_seconds": lambda: self._told("turn_wait_ms", _MS),
            "roost_batch_entries": lambda: self._told("batch_entries", 1),
            "roost_limit": lambda: self._limited(""),
            "roost_limit_bytes": lambda: self._limited("bytes"),
            "roost_limit_seconds": lambda: self._limited("ms"),
            "roost_limit_used_ratio": lambda: (
                ((name,), used / value) for name, value, _, used in engine.limits() if value > 0 and used >= 0
            ),
            "roost_store_read_seconds": lambda: (((kind,), *_seconds(h)) for kind, h in measures.reads.items()),
            "roost_store_append_seconds": lambda: iter([((), *_seconds(measures.appends))]),
            "roost_dump_seconds": lambda: (((_RESULTS[done],), *_seconds(h)) for done, h in measures.dumps.items()),
            "roost_dump_bytes": lambda: iter([((), measures.dump_bytes)]),
            "roost_release_seconds": lambda: (
                ((kind, _RESULTS[done]), *_seconds(h)) for (kind, done), h in measures.releases.items()
            ),
        }

    def render(self, openmetrics: bool) -> tuple[str, bytes]:
        """All metrics in one of the two formats: its content type, and the text."""
        if openmetrics:
            encode: Any = exposition.generate_latest  # it has no types
            return exposition.CONTENT_TYPE_LATEST, encode(self._registry)
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table but those of the process."""
        numbers = self._engine.stats() | self._store.sizes() | self._about.gauges
        for family in _OWN:
            metric: Any
            if family.kind == "info":
                metric = InfoMetricFamily(family.name, family.meaning, labels=())
            else:
                metric = _MAKE[family.kind](family.name, family.meaning, labels=family.labels, unit=family.unit)
            if family.stat:
                metric.add_metric((), numbers.get(family.stat, 0) * family.scale)
            else:
                for labels, *values in self._own[family.name]():
                    metric.add_metric(labels, *values)
            yield metric

    def _told(self, name: str, scale: float) -> Series:
        """A histogram of the engine's."""
        bounds, counts, total = self._engine.distributions()[name]
        yield (), _buckets([bound * scale for bound in bounds], counts), total * scale

    def _limited(self, unit: str) -> Series:
        """The limits whose names end with this unit; without one, those that have none."""
        for name, value, *_ in self._engine.limits():
            last = name.rpartition("_")[2]
            if (last if last in ("bytes", "ms") else "") == unit:
                yield (name,), value * (_MS if unit == "ms" else 1)


def _handled(calls: Calls) -> Series:
    """By method and code: OK always, so that rates have a beginning, and whatever else has been seen."""
    for method in calls.methods():
        for number, name in CODES.items():
            if number == 0 or method.ended[number]:
                yield (method.name, name), method.ended[number]


def _seconds(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    return _buckets(histogram.bounds, histogram.counts), histogram.sum


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Counts up to each bound, as `add_metric` takes them."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*bounds, float("inf")), tuple(counts), strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else repr(round(float(bound), 6)), total))
    return found
