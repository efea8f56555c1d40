"""The list of metrics: exact names and labels, losses without what filters left out, the absence of what was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import T0, agent_report

from libslo.contracts import contract
from libslo.export.agent_metrics import histogram_name, metrics_of
from libslo.export.agent_state import AgentSnapshot, ExportState, HistogramSeries, snapshot_from_report
from libslo.export.counting import bucket_bounds_ms

SERIES = HistogramSeries(
    {"namespace": "n", "pod": "p", "container": "c", "service": "s"}, bucket_bounds_ms(), np.arange(22, dtype=np.uint64), 12.5
)


def snapshot(**more: Any) -> AgentSnapshot:
    base = snapshot_from_report(agent_report(dropped=5), T0 - 1)
    dns = replace(base.signals["dns_latency_ms"], histograms=[SERIES], events_by_status={"ok": 80, "error": 10})
    return replace(base, signals={**base.signals, "dns_latency_ms": dns}, **more)


def samples(state: AgentSnapshot, name: str) -> dict[tuple[str, ...], float]:
    return dict(next(metric for metric in metrics_of(state) if metric.name == name).samples)


def test_names_and_labels_are_what_dashboards_rely_on() -> None:
    """Every metric has the agreed name, kind and labels; none is twice."""
    assert [(metric.name, metric.kind, metric.labels) for metric in metrics_of(snapshot())] == [
        ("llm_slo_agent_up", "gauge", ()),
        ("llm_slo_agent_heartbeat", "gauge", ()),
        ("llm_slo_agent_cpu_overhead_pct", "gauge", ()),
        ("llm_slo_agent_capability_mode", "gauge", ("mode",)),
        ("llm_slo_agent_signal_enabled", "gauge", ("signal",)),
        ("llm_slo_agent_dropped_events_total", "counter", ("signal", "reason")),
        ("llm_ebpf_probe_events_total", "counter", ("signal", "status")),
        ("llm_slo_agent_governor_decisions_total", "counter", ("signal", "action")),
        ("llm_ebpf_dns_latency_ms", "histogram", ("namespace", "pod", "container", "service")),
    ]
    assert histogram_name("connect_latency_ms") == "llm_ebpf_connect_latency_ms"


def test_losses_are_those_of_the_account_and_of_the_exports() -> None:
    """What was filtered is not dropped; what targets did not take is, added up over targets; an unknown signal is called so."""
    exports = [
        ExportState("a", lost={("dns_latency_ms", "export_queue_full"): 4, ("", "export_rejected"): 1}),
        ExportState("b", lost={("dns_latency_ms", "export_queue_full"): 2}),
    ]
    assert samples(snapshot(exports=exports), "llm_slo_agent_dropped_events_total") == {
        **{(name, reason): count for name in snapshot().signals for reason, count in (("rate_limited", 3), ("dropped", 5))},
        ("dns_latency_ms", "export_queue_full"): 6,
        ("unknown", "export_rejected"): 1,
    }


def test_events_start_from_zero() -> None:
    """Every status of every signal is there before its first event."""
    found = samples(snapshot(), "llm_ebpf_probe_events_total")
    assert found["dns_latency_ms", "ok"] == 80 and found["dns_latency_ms", "warning"] == 0
    assert len(found) == 9 and sum(found.values()) == 90


def test_one_mode_is_on() -> None:
    """The current mode is 1 and all others of the contract are 0; without a mode all are 0."""
    modes = contract("agent-report").schema["properties"]["mode"]["enum"]
    assert samples(snapshot(), "llm_slo_agent_capability_mode") == {(mode,): float(mode == "core_full") for mode in modes}
    assert set(samples(snapshot(mode=""), "llm_slo_agent_capability_mode").values()) == {0.0}
    assert samples(snapshot(mode="new"), "llm_slo_agent_capability_mode")["new",] == 1


@pytest.mark.parametrize(("measured", "shown"), [(None, {}), (0.0, {(): 0.0}), (1.5, {(): 1.5})])
def test_overhead_that_was_not_measured_is_absent(measured: float | None, shown: dict[Any, float]) -> None:
    """No number is made up for what nobody has measured."""
    assert samples(snapshot(cpu_overhead_pct=measured), "llm_slo_agent_cpu_overhead_pct") == shown


def test_the_heartbeat_is_the_last_turn() -> None:
    """Unix seconds of the last turn of the loop, or of the snapshot where that is all there is."""
    assert samples(snapshot(turned_unix_ns=1_500_000_000), "llm_slo_agent_heartbeat") == {(): 1.5}
    assert samples(snapshot(), "llm_slo_agent_heartbeat") == {(): T0 / 1e9}
    assert samples(snapshot(up=False), "llm_slo_agent_up") == {(): 0.0}


def test_decisions_are_counted_by_signal_and_action() -> None:
    """The guard's decisions appear under their signal and action."""
    assert samples(snapshot(decisions={("dns_latency_ms", "shed"): 2}), "llm_slo_agent_governor_decisions_total") == {
        ("dns_latency_ms", "shed"): 2
    }
