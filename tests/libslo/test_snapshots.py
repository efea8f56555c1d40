"""An agent's state for its metrics: counts add up since the start, owners are bounded, decisions are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import T0, agent_report

from libslo.kernel import snapshots as module
from libslo.kernel.capture import Batch
from libslo.kernel.events import KINDS
from libslo.kernel.histogram import BUCKETS, SeriesCounts
from libslo.kernel.identity import Identity
from libslo.kernel.snapshots import Snapshots

DNS = KINDS["dns_latency_ms"]


def waits(cgroup_id: int | None, bucket: int, count: int) -> SeriesCounts:
    counts = np.zeros(BUCKETS, np.uint64)
    counts[bucket] = count
    return SeriesCounts(DNS, cgroup_id, counts, count * 1_000_000)


def who(pod: str) -> Identity:
    return Identity("node-a", pod=pod)


def report(**fields: Any) -> dict[str, Any]:
    found = {**agent_report(), **fields}
    found["signals"][0]["variant"] = "cgroup_skb"
    return found


def test_counts_of_one_owner_add_up() -> None:
    """Two cgroups of one pod, read at different times, make one series with the sum of both."""
    found = Snapshots(T0, histograms=True)
    assert found.add(Batch(counts=[(waits(1, 5, 3), who("a"))])) is None
    assert found.add(Batch(counts=[(waits(2, 5, 4), who("a")), (waits(3, 9, 1), who("b"))])) is None
    state = found.add(Batch(reports=[report()]))
    assert state is not None
    series = {each.labels["pod"]: each for each in state.signals["dns_latency_ms"].histograms}
    assert int(series["a"].counts[5]) == 7 and series["a"].sum_ms == 7
    assert int(series["b"].counts.sum()) == 1
    assert state.started_unix_ns == T0


def test_what_comes_after_the_bound_is_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners beyond the bound, and those without a histogram of their own, share one series, and no wait is lost."""
    monkeypatch.setattr(module, "_MAX_OWNERS", 2)
    found = Snapshots(T0, histograms=True)
    found.add(Batch(counts=[(waits(each, 5, 1), who(f"pod-{each}")) for each in range(5)] + [(waits(None, 5, 10), who(""))]))
    state = found.add(Batch(state=report()))
    assert state is not None
    series = {each.labels["pod"]: int(each.counts.sum()) for each in state.signals["dns_latency_ms"].histograms}
    assert series == {"pod-0": 1, "pod-1": 1, "other": 13}


def test_decisions_and_overhead_are_told() -> None:
    """Each decision is counted once by signal and action; a shed signal is not enabled; the overhead is the report's."""
    found = Snapshots(T0, histograms=False)
    decision = {"action": "shed", "signals": ["dns_latency_ms"]}
    shed = report(decisions=[decision], overhead={"cpu_pct": 4.5})
    shed["signals"][0]["shed"] = True
    state = found.add(Batch(reports=[shed]))
    assert state is not None
    assert state.decisions == {("dns_latency_ms", "shed"): 1}
    assert state.cpu_overhead_pct == 4.5
    assert not state.signals["dns_latency_ms"].enabled
    assert not state.signals["dns_latency_ms"].counted


def test_waits_of_a_probe_are_counted_in_the_kernel_only() -> None:
    """A wait that a probe measures is never counted from written events as well."""
    state = Snapshots(T0, histograms=True).add(Batch(reports=[report()]))
    assert state is not None
    assert state.signals["dns_latency_ms"].counted
