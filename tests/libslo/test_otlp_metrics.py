"""Metrics as OTLP: read back by OpenTelemetry's own protobuf definitions, and delivered to a real server."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from builders import T0
from google.protobuf import json_format
from loopback import OK, servers
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from test_agent_metrics import SERIES, snapshot

from libslo.export.counting import bucket_bounds_ms
from libslo.export.otlp_metrics import OtlpMetricsExporter, metrics_request


def parsed(**more: Any) -> dict[str, Any]:
    """Metrics by name, through JSON text and protobuf; unknown fields are an error."""
    request = json_format.Parse(orjson.dumps(metrics_request(snapshot(**more))), ExportMetricsServiceRequest())
    assert ExportMetricsServiceRequest.FromString(request.SerializeToString()) == request
    return {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}


def labels(point: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


def test_a_histogram_has_all_buckets_count_and_sum() -> None:
    """One point an owner: counts as they are, one more than bounds, their total, the sum, the time since the start."""
    metric = parsed()["llm_ebpf_dns_latency_ms"]
    (point,) = metric.histogram.data_points
    assert (metric.unit, metric.histogram.aggregation_temporality) == ("ms", 2)
    assert list(point.bucket_counts) == list(range(22)) and point.count == sum(range(22)) and point.sum == 12.5
    assert tuple(point.explicit_bounds) == bucket_bounds_ms()
    assert (point.start_time_unix_nano, point.time_unix_nano) == (T0 - 1, T0)
    assert labels(point) == SERIES.labels


def test_counters_are_monotonic_cumulative_sums() -> None:
    """Integers, monotonic, cumulative, with their start; without _total, which OTLP's mapping to Prometheus adds."""
    found = parsed()
    for name in ("llm_ebpf_probe_events", "llm_slo_agent_dropped_events"):
        metric = found[name].sum
        assert metric.is_monotonic and metric.aggregation_temporality == 2
        assert all(point.WhichOneof("value") == "as_int" and point.start_time_unix_nano == T0 - 1 for point in metric.data_points)
    points = [(labels(point), point.as_int) for point in found["llm_ebpf_probe_events"].sum.data_points]
    assert ({"signal": "dns_latency_ms", "status": "ok"}, 80) in points
    drops = [(labels(point), point.as_int) for point in found["llm_slo_agent_dropped_events"].sum.data_points]
    assert ({"signal": "dns_latency_ms", "reason": "dropped"}, 5) in drops


def test_gauges() -> None:
    """Up, the mode, what is enabled and a measured overhead; one that was not measured, or is no number, has no point."""
    found = parsed(cpu_overhead_pct=0.25)
    assert [point.as_double for point in found["llm_slo_agent_up"].gauge.data_points] == [1.0]
    assert [point.as_double for point in found["llm_slo_agent_cpu_overhead_pct"].gauge.data_points] == [0.25]
    modes = {labels(point)["mode"]: point.as_double for point in found["llm_slo_agent_capability_mode"].gauge.data_points}
    assert modes["core_full"] == 1 and sum(modes.values()) == 1
    assert {labels(point)["signal"] for point in found["llm_slo_agent_signal_enabled"].gauge.data_points} >= {"dns_latency_ms"}
    assert "llm_slo_agent_cpu_overhead_pct" not in parsed()
    assert not parsed(cpu_overhead_pct=float("nan"))["llm_slo_agent_cpu_overhead_pct"].gauge.data_points


def test_the_resource_names_the_agent_and_its_host() -> None:
    """service.name and host.name are on the resource."""
    resource = metrics_request(snapshot())["resourceMetrics"][0]["resource"]["attributes"]
    assert {"key": "service.name", "value": {"stringValue": "llm-slo-agent"}} in resource
    assert {"key": "host.name", "value": {"stringValue": "node-a"}} in resource


def test_large_counts_survive() -> None:
    """Counts above 2^53 keep every digit."""
    series = replace(SERIES, counts=np.array([2**60 + 1] + [0] * 21, np.uint64))
    state = snapshot()
    dns = replace(state.signals["dns_latency_ms"], histograms=[series], events_by_status={"ok": 2**60 + 1})
    request = metrics_request(replace(state, signals={"dns_latency_ms": dns}))
    message = json_format.Parse(orjson.dumps(request), ExportMetricsServiceRequest())
    metrics = {metric.name: metric for metric in message.resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["llm_ebpf_dns_latency_ms"].histogram.data_points[0].bucket_counts[0] == 2**60 + 1
    assert max(point.as_int for point in metrics["llm_ebpf_probe_events"].sum.data_points) == 2**60 + 1


def test_snapshots_are_delivered_to_v1_metrics() -> None:
    """Each snapshot is one request at /v1/metrics, also when the endpoint was named by its full logs URL."""
    with servers() as make:
        server = make(OK)
        exporter = OtlpMetricsExporter(f"{server.url}/v1/logs")
        exporter.submit(snapshot())
        exporter.submit(snapshot(up=False))
        stats = exporter.close()
        assert (stats.delivered, stats.all_reasons()) == (2, {})
        assert [got.path for got in server.got] == ["/v1/metrics"] * 2
        for got in server.got:
            json_format.ParseDict(got.value, ExportMetricsServiceRequest())


def test_a_slow_endpoint_costs_snapshots_not_the_loop() -> None:
    """With an endpoint that hangs, a bounded number of snapshots waits and the rest is refused and counted."""
    with servers() as make:
        exporter = OtlpMetricsExporter(make(30.0).url)
        began = time.monotonic()
        for _ in range(50):
            exporter.submit(snapshot())
        stats = exporter.close(0.2)
        assert time.monotonic() - began < 2
        assert stats.delivered == 0 and sum(stats.all_reasons().values()) == 50 and stats.refused >= 41
