"""The state of an agent at one moment, as plain data: what every metrics output is made from.

Pure: nothing here reads a clock, a file or the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AgentSnapshot", "ExportState", "HistogramSeries", "SignalSnapshot", "rebucket", "snapshot_from_report"]

_RELATIVE = 1e-9  # borders that differ by less are the same border, computed in two ways


@dataclass(frozen=True, slots=True)
class HistogramSeries:
    """Waits of one owner since the start.

    labels: namespace, pod, container, service. bounds_ms: finite upper bounds, ascending. counts: uint64, shape
    (len(bounds_ms) + 1,), one a bucket, not cumulative; the last is what lies above all bounds. sum_ms: of all waits.
    """

    labels: Mapping[str, str]
    bounds_ms: tuple[float, ...]
    counts: NDArray[np.uint64]
    sum_ms: float


@dataclass(frozen=True, slots=True)
class SignalSnapshot:
    """One signal. account: attempts, emitted, filtered, and every way to lose an event, each event under one key only.

    counted: its waits are counted where they happen, so that histograms is all there is; else written events are counted.
    """

    enabled: bool
    variant: str = ""
    account: Mapping[str, int] = field(default_factory=dict)
    events_by_status: Mapping[str, int] = field(default_factory=dict)
    histograms: Sequence[HistogramSeries] = ()
    counted: bool = False


@dataclass(frozen=True, slots=True)
class ExportState:
    """What one target got and did not get, in its own units; lost: events by (signal, reason), "" for an unknown signal."""

    target: str
    sent: int = 0
    given_up: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """An entry of an agent report's ``exports``."""
        return {"target": self.target, "sent": self.sent, "given_up": dict(self.given_up)}


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """The agent at ts_unix_ns; counts are since started_unix_ns. turned_unix_ns: the capture loop's last turn (None: ts_unix_ns)."""

    ts_unix_ns: int
    started_unix_ns: int
    mode: str
    signals: Mapping[str, SignalSnapshot]
    cpu_overhead_pct: float | None = None
    decisions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    exports: Sequence[ExportState] = ()
    node: str = ""
    up: bool = True
    turned_unix_ns: int | None = None


def snapshot_from_report(report: Mapping[str, Any], started_unix_ns: int, **more: Any) -> AgentSnapshot:
    """What an agent report (contract v1alpha1) knows, without events and histograms. more: further fields of AgentSnapshot."""
    signals = {
        entry["signal"]: SignalSnapshot(
            enabled=entry["attached"] and not entry.get("shed", False), variant=entry["variant"], account=dict(entry["account"])
        )
        for entry in report["signals"]
    }
    return AgentSnapshot(
        ts_unix_ns=report["ts_unix_nano"],
        started_unix_ns=started_unix_ns,
        mode=report["mode"],
        signals=signals,
        node=report["node"],
        **more,
    )


def rebucket(counts: NDArray[np.uint64], fine_ms: Sequence[float], coarse_ms: Sequence[float]) -> NDArray[np.uint64]:
    """Counts of fine buckets, shape (n,), in coarser ones, shape (len(coarse_ms) + 1,): exact, nothing is interpolated.

    fine_ms: upper bounds of the fine buckets, ascending, n of them (the last may be infinite) or n - 1 (the last bucket is open).
    coarse_ms: finite upper bounds, ascending; each is one of the fine ones, or lies above a finite last one.
    Raises ValueError otherwise. Who counts a value on a border, the bucket below or above, is decided by whoever counted.
    """
    edges = _edges(len(counts), tuple(fine_ms), tuple(coarse_ms))
    below = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, dtype=np.uint64, out=below[1:])
    return np.diff(below[edges])


@lru_cache(maxsize=64)
def _edges(size: int, fine_ms: tuple[float, ...], coarse_ms: tuple[float, ...]) -> NDArray[np.intp]:
    """Where the coarse buckets begin and end among `size` fine ones: the same for all series of a signal."""
    fine, coarse = np.array(fine_ms, np.float64), np.array(coarse_ms, np.float64)
    if fine.size == size - 1:
        fine = np.append(fine, np.inf)
    if fine.size != size:
        raise ValueError(f"{size} counts do not fit {fine.size} bounds")
    for name, bounds in (("fine", fine), ("coarse", coarse)):
        if np.isnan(bounds).any() or (np.diff(bounds) <= 0).any():
            raise ValueError(f"{name} bounds do not ascend")
    if not np.isfinite(coarse).all():
        raise ValueError("coarse bounds are not all finite")
    # The first fine bound at or above each coarse one, up to rounding: the fine buckets up to there lie below the border.
    at = np.searchsorted(fine, coarse * (1 - _RELATIVE))
    inside = at < fine.size
    split = coarse[inside][~np.isclose(fine[at[inside]], coarse[inside], rtol=_RELATIVE, atol=0)]
    if split.size:
        raise ValueError(f"{split[0]:g} ms is not a border of the fine buckets")
    return np.concatenate([[0], np.minimum(at + 1, fine.size), [fine.size]]).astype(np.intp)
