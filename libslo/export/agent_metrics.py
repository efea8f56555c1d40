"""The metrics of an agent, made from its snapshot: one list that Prometheus and OTLP are both written from.

Pure. Names, labels and units are data: ``contracts/vocabulary/metrics.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from libslo.contracts import contract
from libslo.export.agent_state import AgentSnapshot, HistogramSeries
from libslo.export.counting import latency_signals
from libslo.signals import signal, vocabulary

__all__ = ["Metric", "histogram_name", "metrics_of"]

_NOT_LOST = ("attempts", "emitted", "filtered")  # keys of an account that are no loss
_STATUSES = ("ok", "warning", "error")

Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. samples: (values of `labels`, number) of gauges and counters; series: those of a histogram."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    unit: str
    labels: tuple[str, ...]
    samples: Sequence[Sample] = ()
    series: Sequence[HistogramSeries] = ()


@cache
def _modes() -> tuple[str, ...]:
    return tuple(contract("agent-report").schema["properties"]["mode"]["enum"])


def histogram_name(name: str) -> str:
    """The metric of a latency signal."""
    return str(vocabulary("metrics")["histograms"]["prefix"]) + name


def metrics_of(snapshot: AgentSnapshot) -> list[Metric]:
    """Every metric of a snapshot, in a fixed order, zeros included so that a rate has something to start from."""
    samples: dict[str, list[Sample]] = {
        "llm_slo_agent_up": [((), float(snapshot.up))],
        "llm_slo_agent_heartbeat": [((), (snapshot.turned_unix_ns or snapshot.ts_unix_ns) / 1e9)],
        "llm_slo_agent_cpu_overhead_pct": [] if snapshot.cpu_overhead_pct is None else [((), snapshot.cpu_overhead_pct)],
        "llm_slo_agent_capability_mode": [
            ((mode,), float(mode == snapshot.mode)) for mode in dict.fromkeys((*_modes(), snapshot.mode)) if mode
        ],
        "llm_slo_agent_signal_enabled": [((name,), float(each.enabled)) for name, each in snapshot.signals.items()],
        "llm_slo_agent_dropped_events_total": list(_losses(snapshot)),
        "llm_ebpf_probe_events_total": [
            ((name, status), each.events_by_status.get(status, 0))
            for name, each in snapshot.signals.items()
            for status in dict.fromkeys((*_STATUSES, *each.events_by_status))
        ],
        "llm_slo_agent_governor_decisions_total": [(pair, count) for pair, count in snapshot.decisions.items()],
    }
    about = vocabulary("metrics")
    found = [
        Metric(row["name"], row["kind"], row["help"], row["unit"], tuple(row["labels"]), samples[row["name"]]) for row in about["agent"]
    ]
    rule: dict[str, Any] = about["histograms"]
    for name in latency_signals():
        if name in snapshot.signals and snapshot.signals[name].histograms:
            series = snapshot.signals[name].histograms
            found.append(Metric(histogram_name(name), "histogram", _sentence(name), rule["unit"], tuple(rule["labels"]), series=series))
    return found


def _sentence(name: str) -> str:
    about = signal(name)
    return about.meaning[0].upper() + about.meaning[1:] + f", in {about.unit}"


def _losses(snapshot: AgentSnapshot) -> Iterator[Sample]:
    for name, each in snapshot.signals.items():
        for reason, count in each.account.items():
            if reason not in _NOT_LOST:
                yield (name, reason), count
    lost: dict[tuple[str, ...], int] = {}
    for export in snapshot.exports:
        for (name, reason), count in export.lost.items():
            key = (name or "unknown", reason)
            lost[key] = lost.get(key, 0) + count
    yield from lost.items()
