"""GetStats: counters, gauges, and the limits with their sources. Momentary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from roost._core import VERSION
from roost.handlers.cold import Cold
from roost.handlers.errors import parse
from roost.v1 import admin_service_pb2

# Engine numbers that only grow; all others are gauges.
COUNTERS: Final = frozenset(
    (
        "turns_begun turns_committed turns_rewound turns_aborted turns_expired turns_taken_over turns_interrupted "
        "turns_released trajectories_finished trajectories_acknowledged sessions_opened sessions_closed "
        "sessions_reopened sessions_dumped sessions_purged sessions_restored sessions_forked trees_swept "
        "cleanup_failures messages_sent messages_delivered messages_consumed messages_expired messages_dead "
        "resources_attached resources_released releases_failed pool_evictions evictions header_evictions "
        "reloads header_loads load_failures refusals batches_stored entries_stored batches_refused"
    ).split()
)


@dataclass(frozen=True)
class About:
    """What GetStats says of this server beside the engine's numbers."""

    started: float  # time.monotonic() when it began to serve
    gauges: dict[str, int] = field(default_factory=dict)  # what others keep up to date


def get_stats(cold: Cold, data: bytes, about: About) -> bytes:
    """Answer GetStats, encoded."""
    parse(cold.engine, admin_service_pb2.GetStatsRequest, data)
    numbers = cold.engine.stats()
    response = admin_service_pb2.GetStatsResponse(
        counters={name: value for name, value in numbers.items() if name in COUNTERS},
        gauges={name: value for name, value in numbers.items() if name not in COUNTERS}
        | cold.store.sizes()
        | about.gauges,
        limits=[
            admin_service_pb2.Limit(name=name, value=value, source=source, used=used)
            for name, value, source, used in cold.engine.limits()
        ],
        version=VERSION,
        epoch=cold.store.epoch,
        store_id=cold.store.store_id,
    )
    response.uptime.FromMilliseconds(int((time.monotonic() - about.started) * 1_000))
    return response.SerializeToString()
