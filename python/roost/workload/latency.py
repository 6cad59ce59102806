"""Latencies in HdrHistograms: microseconds, three significant digits, 1 us to 1 h."""

from __future__ import annotations

from typing import Any

from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Latency:
    """Latencies of one kind of call."""

    def __init__(self) -> None:
        self._histogram: Any = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)

    def record(self, seconds: float) -> None:
        """Count one latency."""
        self._histogram.record_value(min(max(int(seconds * 1e6), LOWEST_US), HIGHEST_US))

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._histogram.get_total_count())

    def percentile(self, percent: float) -> float:
        """Milliseconds below which `percent` of them lie; 0 if there are none."""
        return self._histogram.get_value_at_percentile(percent) / 1e3 if self.count else 0.0

    def summary(self) -> dict[str, float]:
        """Count, mean, percentiles and maximum, in milliseconds."""
        if not self.count:
            return {"count": 0}
        out: dict[str, float] = {"count": self.count, "mean_ms": round(self._histogram.get_mean_value() / 1e3, 3)}
        for percent in PERCENTILES:
            out[f"p{percent:g}_ms"] = round(self.percentile(percent), 3)
        out["max_ms"] = round(self._histogram.get_max_value() / 1e3, 3)
        return out

    def encoded(self) -> str:
        """The histogram in HdrHistogram's own compressed form (V2, base64), for merging elsewhere."""
        return str(self._histogram.encode().decode())
