"""Counting probe events: nothing is lost, memory is bounded, a fast way that agrees with a slow one."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from typing import Any

import numpy as np
import pytest
from builders import T0, probe

from libslo.export.agent_state import HistogramSeries
from libslo.export.counting import LABELS, EventCounter, SeriesBook, bucket_bounds_ms, latency_signals
from libslo.signals import signals


def event(signal: str = "dns_latency_ms", value: float = 1.0, status: str = "ok", **more: Any) -> dict[str, Any]:
    return probe(T0, **{"signal": signal, "value": value, "status": status, **more})


def random_events(count: int, pods: int, seed: int = 1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        event(
            rng.choice(["dns_latency_ms", "connect_latency_ms", "tcp_retransmits_total"]),
            rng.choice([*bucket_bounds_ms(), 10 ** rng.uniform(-4, 5)]),
            rng.choice(["ok", "warning", "error"]),
            pod=f"pod-{rng.randrange(pods)}",
            **({"service": "s"} if rng.random() < 0.5 else {}),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_counts_agree_with_a_slow_reference(batch: int) -> None:
    """By signal and status, and by owner and bucket, whatever the size of the batches; a value on a border counts below it."""
    events = random_events(5000, 30)
    counter = EventCounter()
    for start in range(0, len(events), batch):
        counter.feed(events[start : start + batch])
    counts = counter.counts()
    buckets: Counter[Any] = Counter()
    sums: Counter[Any] = Counter()
    for each in events:
        owner = (each["signal"], *(each.get(name, "") for name in LABELS))
        buckets[owner, bisect_left(bucket_bounds_ms(), each["value"])] += 1
        sums[owner] += each["value"]
    for signal in ("dns_latency_ms", "connect_latency_ms", "tcp_retransmits_total"):
        assert counts.events_by_status(signal) == Counter(each["status"] for each in events if each["signal"] == signal)
    for signal in ("dns_latency_ms", "connect_latency_ms"):
        found = counts.histograms(signal)
        assert len(found) == len({owner for owner in sums if owner[0] == signal})
        for series in found:
            owner = (signal, *series.labels.values())
            assert series.counts.tolist() == [buckets[owner, bucket] for bucket in range(len(bucket_bounds_ms()) + 1)]
            assert series.sum_ms == pytest.approx(sums[owner])
    assert counts.histograms("tcp_retransmits_total") == []


def test_series_are_bounded_and_counts_are_not_lost() -> None:
    """The first owners of each signal keep series of their own; all others share one, and the counts add up."""
    counter = EventCounter(max_series=3)
    for number in range(1000):
        counter.feed([event(pod=f"p{number}", value=number), event("connect_latency_ms", pod=f"q{number}"), event(pod="p1")])
    found = counter.counts().histograms("dns_latency_ms")
    assert [series.labels["pod"] for series in found] == ["p0", "p1", "p2", "other"]
    assert set(found[3].labels.values()) == {"other"}
    assert [int(series.counts.sum()) for series in found] == [1, 1001, 1, 997]
    assert found[3].sum_ms == sum(range(3, 1000))
    assert len(counter.counts().histograms("connect_latency_ms")) == 4
    assert len(counter._sums) <= 64


def test_keys_are_bounded_however_many_owners_come() -> None:
    """A hundred thousand owners leave no more than a bounded number of keys behind, and are all counted."""
    counter = EventCounter(max_series=2)
    for start in range(0, 100_000, 1000):
        counter.feed([event(pod=f"p{start + number}") for number in range(1000)])
    assert len(counter._rows) <= 16_384
    assert counter.counts().events_by_status("dns_latency_ms") == {"ok": 100_000}
    assert len(counter.counts().histograms("dns_latency_ms")) == 3


def test_a_copy_stays_as_it_is() -> None:
    """Counts that were taken do not change when counting goes on."""
    counter = EventCounter()
    counter.feed([event()])
    counts = counter.counts()
    counter.feed([event()] * 5)
    assert counts.events_by_status("dns_latency_ms") == {"ok": 1}
    assert counter.counts().events_by_status("dns_latency_ms") == {"ok": 6}


def test_kernel_series_are_merged_rebucketed_and_bounded() -> None:
    """Two cgroups of one owner become one series; beyond the limit owners share one; an owner that has a series keeps it."""
    fine = tuple(0.001 * 2**power for power in range(27))

    def series(pod: str, scale: int) -> HistogramSeries:
        labels = {"namespace": "n", "pod": pod, "container": "c", "service": "s"}
        return HistogramSeries(labels, fine, np.full(27, scale, np.uint64), float(scale))

    book = SeriesBook(limit=2)
    merged = book.merge("dns_latency_ms", [series("a", 1), series("b", 10), series("a", 100), series("c", 1000), series("d", 1000)])
    assert [each.labels["pod"] for each in merged] == ["a", "b", "other"]
    assert [int(each.counts.sum()) for each in merged] == [27 * 101, 27 * 10, 27 * 2000]
    assert [each.sum_ms for each in merged] == [101.0, 10.0, 2000.0]
    assert all(each.bounds_ms == bucket_bounds_ms() for each in merged)
    assert merged[0].counts.tolist() == [101 * 4, *[101] * 20, 101 * 3]
    assert [each.labels["pod"] for each in book.merge("dns_latency_ms", [series("c", 1), series("b", 1)])] == ["other", "b"]


def test_borders_are_powers_of_two_microseconds() -> None:
    """Every border of the vocabulary is 2^k microseconds, ascending; every signal in ms has a histogram."""
    powers = [np.log2(bound * 1000) for bound in bucket_bounds_ms()]
    assert powers == sorted(powers) and np.allclose(powers, np.round(powers), atol=1e-9)
    assert len(powers) == 21
    assert set(latency_signals()) == {name for name in signals() if name.endswith("_ms")}
