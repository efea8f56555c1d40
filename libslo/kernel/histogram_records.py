"""What histograms gave between two writings, as signal-histogram records."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from libslo.kernel.events import KINDS
from libslo.kernel.histogram import SeriesCounts, bucket_bounds_ms
from libslo.kernel.identity import Identity

__all__ = ["HistogramRecords"]

_SIGNAL_OF = {kind: name for name, kind in KINDS.items()}


class Identify(Protocol):
    """Who a cgroup belongs to; None stands for those without a histogram of their own."""

    def __call__(self, cgroup_id: int | None) -> Identity: ...


class HistogramRecords:
    """Adds readings up until they are written."""

    def __init__(self) -> None:
        self._series: dict[tuple[int, int | None], SeriesCounts] = {}

    def add(self, readings: list[SeriesCounts]) -> None:
        """Take readings in."""
        for reading in readings:
            key = (reading.kind, reading.cgroup_id)
            known = self._series.get(key)
            self._series[key] = reading if known is None else SeriesCounts(
                *key, known.counts + reading.counts, known.sum_ns + reading.sum_ns
            )  # fmt: skip

    def take(self, ts_unix_ns: int, interval_ms: float, identify: Identify) -> list[dict[str, Any]]:
        """Records (contract v1alpha1) of everything since the last time."""
        bounds = bucket_bounds_ms()
        result = []
        for series in self._series.values():
            who = identify(series.cgroup_id)
            filled = np.flatnonzero(series.counts)
            record: dict[str, Any] = {
                "ts_unix_nano": ts_unix_ns,
                "interval_ms": interval_ms,
                "histogram_of": _SIGNAL_OF[series.kind],
                "node": who.node,
                "namespace": who.namespace,
                "pod": who.pod,
                "container": who.container,
                "unit": "ms",
                "count": int(series.counts.sum()),
                "sum": series.sum_ns / 1e6,
                "le": [float(bounds[index]) if np.isfinite(bounds[index]) else None for index in filled],
                "counts": series.counts[filled].tolist(),
            }
            if who.service:
                record["service"] = who.service
            if who.workload:
                record["workload"] = who.workload
            if series.cgroup_id is not None:
                record["cgroup_id"] = series.cgroup_id
            result.append(record)
        self._series.clear()
        return result
