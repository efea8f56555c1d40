"""Deliver an agent's metrics as OTLP over HTTP (libslo/export/otlp_http.py says how).

Counters and histograms are cumulative, so a snapshot that is lost costs resolution and no counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from libslo import __version__
from libslo.export.agent_metrics import Metric, metrics_of
from libslo.export.agent_state import AgentSnapshot
from libslo.export.otlp_http import DeliveryStats, OtlpSender, headers_from_environment, signal_url

__all__ = ["OtlpMetricsExporter", "metrics_request"]

_CUMULATIVE = 2  # AGGREGATION_TEMPORALITY_CUMULATIVE
_MOST_WAITING = 8  # snapshots; each one holds what those before it held


def metrics_request(snapshot: AgentSnapshot) -> dict[str, Any]:
    """An ExportMetricsServiceRequest in JSON form: 64-bit integers are texts, enumerations numbers."""
    metrics = [_metric(each, snapshot) for each in metrics_of(snapshot) if each.samples or each.series]
    resource = {"service.name": "llm-slo-agent", "service.version": __version__, **({"host.name": snapshot.node} if snapshot.node else {})}
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeMetrics": [{"scope": {"name": "llm-slo-ebpf-toolkit", "version": __version__}, "metrics": metrics}],
            }
        ]
    }


def _attributes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": value}} for name, value in labels.items()]


def _metric(metric: Metric, snapshot: AgentSnapshot) -> dict[str, Any]:
    now = {"timeUnixNano": str(snapshot.ts_unix_ns)}
    since = {"startTimeUnixNano": str(snapshot.started_unix_ns), **now}
    about = {"description": metric.help, "unit": metric.unit}

    def labels(values: Sequence[str]) -> list[dict[str, Any]]:
        return _attributes(dict(zip(metric.labels, values, strict=True)))

    if metric.kind == "gauge":
        points = [{**now, "asDouble": value, "attributes": labels(values)} for values, value in metric.samples if math.isfinite(value)]
        return {"name": metric.name, **about, "gauge": {"dataPoints": points}}
    if metric.kind == "counter":
        points = [{**since, "asInt": str(int(value)), "attributes": labels(values)} for values, value in metric.samples]
        name = metric.name.removesuffix("_total")  # OTLP's mapping to Prometheus adds it
        return {"name": name, **about, "sum": {"aggregationTemporality": _CUMULATIVE, "isMonotonic": True, "dataPoints": points}}
    points = [
        {
            **since,
            "count": str(int(series.counts.sum())),
            "sum": series.sum_ms,
            "bucketCounts": [str(count) for count in series.counts.tolist()],
            "explicitBounds": list(series.bounds_ms),
            "attributes": labels([series.labels.get(name, "") for name in metric.labels]),
        }
        for series in metric.series
    ]
    return {"name": metric.name, **about, "histogram": {"aggregationTemporality": _CUMULATIVE, "dataPoints": points}}


class OtlpMetricsExporter:
    """Sends snapshots from a thread of its own. The account counts snapshots. options: those of OtlpSender."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        url, headers = signal_url(endpoint, "metrics"), headers_from_environment("metrics")
        chosen: dict[str, Any] = {"capacity": _MOST_WAITING, "batch": 1, "linger_s": 0.0, **options}
        self._sender = OtlpSender(url, lambda batch: metrics_request(batch[0]), "rejectedDataPoints", headers=headers, **chosen)

    @property
    def stats(self) -> DeliveryStats:
        """The account so far, as a copy; a snapshot of which the endpoint rejected any point counts as rejected."""
        return self._sender.stats

    def submit(self, snapshot: AgentSnapshot) -> None:
        """Queue one snapshot, not to be changed any more."""
        self._sender.submit([("", snapshot)])

    def close(self, grace_s: float = 10.0) -> DeliveryStats:
        """Send what is queued (for at most `grace_s`), count the rest as given up, and return the account."""
        return self._sender.close(grace_s)
