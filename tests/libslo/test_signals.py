"""The catalogues: signals and SLIs are data, complete and in agreement with the contracts."""

from __future__ import annotations

import pytest

from libslo.contracts import contract
from libslo.signals import Objective, signal, signals, sli, slis, vocabulary

ATTRIBUTES = {
    "dns_latency_ms": "llm.ebpf.dns.latency_ms",
    "tcp_retransmits_total": "llm.ebpf.tcp.retransmits",
    "runqueue_delay_ms": "llm.ebpf.sched.runqueue_delay_ms",
    "connect_latency_ms": "llm.ebpf.net.connect_latency_ms",
    "connect_errors_total": "llm.ebpf.net.connect_errors_total",
    "tls_handshake_ms": "llm.ebpf.tls.handshake_ms",
    "tls_handshake_fail_total": "llm.ebpf.tls.handshake_fail_total",
    "cpu_steal_pct": "llm.ebpf.cpu.steal_pct",
    "cfs_throttled_ms": "llm.ebpf.cpu.cfs_throttled_ms",
    "mem_reclaim_latency_ms": "llm.ebpf.mm.reclaim_latency_ms",
    "disk_io_latency_ms": "llm.ebpf.blk.io_latency_ms",
    "syscall_latency_ms": "llm.ebpf.syscall.latency_ms",
}


def test_signals_are_those_of_the_design_with_their_attribute_names() -> None:
    """All twelve signals, in order, with the llm.ebpf.* names that spans carry."""
    assert {name: each.attribute for name, each in signals().items()} == ATTRIBUTES


def test_catalogue_and_contract_know_the_same_names() -> None:
    """The enums of the contracts are the catalogue's names."""
    assert set(contract("probe-event").schema["properties"]["signal"]["enum"]) == set(signals())
    assert set(contract("slo-event").schema["properties"]["sli_name"]["enum"]) == set(slis())
    report = contract("agent-report").schema["properties"]["signals"]["items"]["properties"]["signal"]["enum"]
    assert set(report) == set(signals())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_signal_rows_are_sound(name: str) -> None:
    """Thresholds are in order, the unit is the name's suffix, waits are in ms, hooks and a meaning are given."""
    each = signal(name)
    assert 0 < each.warning <= each.error
    assert {"_ms": "ms", "_total": "count", "_pct": "pct"}["_" + name.rsplit("_", 1)[1]] == each.unit
    assert each.kind != "wait" or each.unit == "ms"
    assert each.hooks and each.meaning


@pytest.mark.parametrize(
    ("name", "warning", "breach"),
    [("ttft_ms", 500, 1000), ("request_latency_ms", 700, 1500), ("token_throughput_tps", 30, 10), ("error_rate", 0.02, 0.05)],
)
def test_default_thresholds(name: str, warning: float, breach: float) -> None:
    """The default thresholds are those of the design, and reaching one counts."""
    indicator = sli(name)
    assert (indicator.warning, indicator.breach) == (warning, breach)
    worse = 1e-6 if indicator.worse == "higher" else -1e-6
    assert [indicator.status(value) for value in (warning - worse, warning, breach - worse, breach)] == [
        "ok",
        "warning",
        "warning",
        "breach",
    ]


def test_ttft_objective() -> None:
    """TTFT is promised at 800 ms for 95 % of the requests; exactly 800 is good."""
    indicator = sli("ttft_ms")
    assert indicator.objective == Objective(800, 0.95)
    assert indicator.meets(800, 800) and not indicator.meets(800.001, 800)
    assert sli("token_throughput_tps").meets(10, 10) and not sli("token_throughput_tps").meets(9.9, 10)


def test_signal_status_grades_one_event() -> None:
    """A value at a threshold has reached it."""
    dns = signal("dns_latency_ms")
    assert [dns.status(value) for value in (0, 49.9, 50, 149.9, 150, 1e9)] == ["ok", "ok", "warning", "warning", "error", "error"]


def test_unknown_names_are_key_errors() -> None:
    """Look-ups of names that do not exist fail loudly."""
    with pytest.raises(KeyError):
        signal("dns_ms")
    with pytest.raises(KeyError):
        sli("latency")


def test_correlation_tiers_are_those_of_the_design() -> None:
    """Four tiers with their confidence and window; enrichment at 0.70 and above; at most three signals a span."""
    rules = vocabulary("correlation-tiers")
    assert [(t["name"], t["confidence"], t["window_ms"]) for t in rules["tiers"]] == [
        ("trace_id_exact", 1.0, 2000),
        ("pod_pid_100ms", 0.9, 100),
        ("pod_conn_250ms", 0.8, 250),
        ("service_node_500ms", 0.65, 500),
    ]
    assert (rules["enrich_at"], rules["fanout"]) == (0.7, 3)


def test_every_vocabulary_says_what_it_is() -> None:
    """Numbers as data come with a description; burn windows with their source."""
    for name in ("signals", "slis", "burn-windows", "span-attributes", "evidence", "correlation-tiers"):
        assert vocabulary(name)["description"]
    assert "Workbook" in vocabulary("burn-windows")["source"]
