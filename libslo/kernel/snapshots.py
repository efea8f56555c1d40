"""The state of a running agent for its metrics, put together from what each turn of the capture says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.export.agent_state import AgentSnapshot, HistogramSeries, snapshot_from_report
from libslo.kernel.capture import Batch
from libslo.kernel.catalogue import source
from libslo.kernel.events import KINDS
from libslo.kernel.histogram import BUCKETS, bucket_bounds_ms
from libslo.signals import signal

__all__ = ["Snapshots"]

_MAX_OWNERS = 2000  # of one signal; what comes later is counted together, so that pods that come and go cannot fill the memory
_REST = ("other", "other", "other", "other")
_LABELS = ("namespace", "pod", "container", "service")
_SIGNAL_OF = {kind: name for name, kind in KINDS.items()}


class Snapshots:
    """Adds up, since the start, what a capture gives bit by bit."""

    def __init__(self, started_unix_ns: int, *, histograms: bool) -> None:
        """histograms: the kernel counts waits by length."""
        self._histograms = histograms
        self._started_unix_ns = started_unix_ns
        self._bounds = tuple(bucket_bounds_ms().tolist())
        self._waits: dict[str, dict[tuple[str, ...], tuple[NDArray[np.uint64], int]]] = {}
        self._decisions: Counter[tuple[str, str]] = Counter()

    def add(self, batch: Batch) -> AgentSnapshot | None:
        """Take one turn in; the state when this turn tells it."""
        for series, who in batch.counts:
            owners = self._waits.setdefault(_SIGNAL_OF[series.kind], {})
            labels = _REST if series.cgroup_id is None else (who.namespace, who.pod, who.container, who.service)
            if labels not in owners and len(owners) >= _MAX_OWNERS:
                labels = _REST
            counts, sum_ns = owners.get(labels, (np.zeros(BUCKETS, np.uint64), 0))
            owners[labels] = counts + series.counts, sum_ns + series.sum_ns
        for report in batch.reports:
            for decision in report.get("decisions", []):
                self._decisions.update((name, decision["action"]) for name in decision["signals"])
        state = batch.reports[-1] if batch.reports else batch.state
        return self._snapshot(state) if state else None

    def _snapshot(self, report: Mapping[str, Any]) -> AgentSnapshot:
        overhead = report.get("overhead")
        found = snapshot_from_report(
            report, self._started_unix_ns, cpu_overhead_pct=overhead["cpu_pct"] if overhead else None, decisions=dict(self._decisions)
        )
        signals = {
            name: replace(each, histograms=[
                HistogramSeries(dict(zip(_LABELS, labels, strict=True)), self._bounds, counts, sum_ns / 1e6)
                for labels, (counts, sum_ns) in self._waits.get(name, {}).items()
            ], counted=self._histograms and signal(name).kind == "wait" and source(name, each.variant) == "bpf")
            for name, each in found.signals.items()
        }  # fmt: skip
        return replace(found, signals=signals)
