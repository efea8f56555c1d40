"""Samples: windows by time and service, labels by what was on in the whole of them."""

from __future__ import annotations

from typing import Any

from builders import T0, S, one_span, probe, slo_event

from libslo.contracts import contract
from libslo.samples import FaultInterval, SampleStats, fault_intervals, fault_samples
from libslo.slo import format_timestamp


def event(at_s: float, value: float = 300, service: str = "rag") -> tuple[str, Any]:
    return "slo-event", slo_event(timestamp=format_timestamp(T0 + int(at_s * S)), sli_value=value, service=service)


def signal(at_s: float, value: float = 5, service: str | None = "rag") -> tuple[str, Any]:
    return "probe-event", probe(T0 + int(at_s * S), value=value, **({"service": service} if service else {}))


def sampled(records: list[tuple[str, Any]], faults: list[FaultInterval] | None = None) -> tuple[list[dict[str, Any]], SampleStats]:
    stats = SampleStats()
    found = list(fault_samples(records, faults or [], window_ns=5 * S, about={"synthetic": False}, stats=stats))
    assert all(contract("fault-sample").is_valid(each) for each in found)
    return found, stats


def fault(begin_s: float, end_s: float | None, label: str = "dns_latency", domain: str = "network_dns") -> FaultInterval:
    return FaultInterval(T0 + int(begin_s * S), None if end_s is None else T0 + int(end_s * S), label, (domain,))


def test_windows_by_time_and_service() -> None:
    """Windows begin at the first slo-event; each service has its own; what belongs to nobody is in none."""
    found, stats = sampled([event(0), event(1, 1500), signal(2, 7), signal(2, 9, "b"), signal(3, 1, None), event(6), event(4, service="b")])
    assert [(each["service"], len(each["slis"])) for each in found] == [("b", 1), ("rag", 1), ("rag", 1)]
    assert found[1]["slis"] == [{"sli": "ttft_ms", "requests": 2, "mean": 900.0, "p95": 1440.0, "bad": 1}]
    assert {row["signal"]: row["value"] for row in found[1]["signals"]}["dns_latency_ms"] == 7
    assert stats.samples == 3 and stats.across_edges == 0


def test_labels_by_the_whole_window() -> None:
    """On in all of it: the fault; in none of it: baseline; an edge inside: left out and counted."""
    found, stats = sampled([event(at) for at in range(30)], [fault(7, 20), fault(28, None)])
    assert [each["fault_label"] for each in found] == ["baseline", "dns_latency", "dns_latency", "baseline"]
    assert [each["expected_domains"] for each in found] == [[], ["network_dns"], ["network_dns"], []]
    assert (stats.samples, stats.across_edges) == (4, 2)


def test_two_faults_at_once_are_both_named() -> None:
    """Labels joined with +, domains of both, each once."""
    both = [fault(-1, 9), fault(-1, 9, "cpu_throttle", "cpu_throttle"), fault(-2, 9)]
    (sample,) = sampled([event(0), event(1)], both)[0]
    assert (sample["fault_label"], sample["expected_domains"]) == ("dns_latency+cpu_throttle", ["network_dns", "cpu_throttle"])


def test_samples_come_while_the_stream_goes_on() -> None:
    """A window is given out a minute after its end; what comes later still is counted."""
    stats = SampleStats()
    records = iter([event(at) for at in range(100)] + [event(1)])
    samples = fault_samples(records, [], window_ns=5 * S, about={"synthetic": False}, stats=stats)
    next(samples)
    assert len(list(records)) > 20
    rest = SampleStats()
    list(fault_samples([event(at) for at in range(100)] + [event(1)], [], window_ns=5 * S, about={"synthetic": False}, stats=rest))
    assert rest.late == 1


def test_spans_are_evidence_too() -> None:
    """What an enriched span says that slo-events cannot."""
    span = one_span(T0, T0 + S, name="chat.retrieval", kind=1, attrs={"llm.ebpf.retrieval.kernel_attributed_ms": 400.0})
    (sample,) = sampled([event(0), ("otlp-spans", [span])])[0]
    assert {row["signal"]: row["value"] for row in sample["signals"]}["retrieval_unexplained_ms"] == 600


def test_intervals_of_fault_windows() -> None:
    """Begin and end are one interval; a real fault is named by its scenario, a synthetic one by its parts."""
    begun = {
        "fault_id": "a",
        "scenario": "mixed",
        "fault": "dns_latency",
        "synthetic": True,
        "begin_unix_nano": 5,
        "expected_domains": ["network_dns"],
    }
    real = {**begun, "fault_id": "b", "scenario": "cpu_throttle", "fault": "cpu_quota", "synthetic": False, "begin_unix_nano": 1}
    found = fault_intervals([begun, real, {**begun, "end_unix_nano": 9}, begun])
    assert [(each.label, each.begin_ns, each.end_ns) for each in found] == [("cpu_throttle", 1, None), ("dns_latency", 5, 9)]
    assert [found[1].covers(*each) for each in ((5, 9), (0, 5), (9, 12), (4, 9), (6, 10))] == [True, False, False, None, None]
