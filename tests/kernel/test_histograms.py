"""The kernel's histograms: every wait of those asked for, whatever the threshold, by cgroup."""

from __future__ import annotations

import ctypes
import json
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest
from kernel_harness import ControlGroup, Namespace, Recording, eventually, first_line, script, server, tell

pytestmark = pytest.mark.kernel


@pytest.fixture
def busy_pair(kernel: None) -> Iterator[tuple[int, int]]:
    """Two processes that exchange a byte over a pipe forever: thousands of short waits a second."""
    with script("cpu_worker.py", "busy", 60) as first, script("cpu_worker.py", "quiet", 60) as second:
        tell(first)
        tell(second)
        yield first.pid, second.pid


def queries(namespace: Namespace, delays_ms: list[int], **settings: object) -> Recording:
    """A capture of one DNS client asking for names that are answered after these delays."""
    plan = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1",
             "queries": [{"txid": index, "name": f"d{delay}.test", "qtype": 1} for index, delay in enumerate(delays_ms)]}]  # fmt: skip
    client = namespace.start("dns_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([plan, 2.0, 0.0]) + "\n")
    client.stdin.flush()
    first_line(client)
    with server(namespace, "dns_server.py"), Recording(signals=("dns_latency_ms",), pids=(client.pid,), **settings) as recording:
        client.communicate("go\n", timeout=60)
    return recording


def test_it_counts_what_the_threshold_keeps_back(namespace: Namespace) -> None:
    """Events are those above the threshold; the histogram has all 23, at the lengths that the events say."""
    delays = [5] * 20 + [60] * 3
    recording = queries(namespace, delays, min_latency_ms=40.0, histogram_interval_s=0.2)
    account = recording.account("dns_latency_ms")
    assert account["emitted"] == 3 and account["filtered"] >= 20  # more when others on this machine ask, too
    assert sum(record["count"] for record in recording.histograms) == 23
    above = sum(
        count for record in recording.histograms for bound, count in zip(record["le"], record["counts"], strict=True) if bound > 40.96
    )
    assert above == 3
    longest = max(event["value"] for event in recording.events)
    assert max(bound for record in recording.histograms for bound in record["le"]) >= longest
    total_ms = sum(record["sum"] for record in recording.histograms)
    assert total_ms == pytest.approx(sum(event["value"] for event in recording.events) + 20 * 5, rel=0.25)


def test_it_agrees_with_the_events(namespace: Namespace) -> None:
    """Without a threshold, each event lies in the bucket that counts it, and the sums are equal."""
    recording = queries(namespace, [1, 3, 9, 20, 41, 83, 120] * 3, histogram_interval_s=60.0)
    (record,) = recording.histograms
    values = sorted(event["value"] for event in recording.events)
    assert record["count"] == len(values) == 21
    assert record["sum"] == pytest.approx(sum(values), rel=1e-9)
    upper = [bound for bound, count in zip(record["le"], record["counts"], strict=True) for _ in range(count)]
    assert all(value < bound <= max(1.26 * value, 0.005) for value, bound in zip(values, upper, strict=True))
    assert record["cgroup_id"] == recording.events[0]["attributes"]["cgroup_id"]


def test_off_means_off(namespace: Namespace) -> None:
    """With histograms off nothing is counted, and events are the same."""
    recording = queries(namespace, [5] * 4, histograms=False, histogram_interval_s=0.2)
    assert recording.histograms == []
    assert recording.account("dns_latency_ms")["emitted"] == 4


def test_cgroups_are_counted_apart_and_taken_back(busy_pair: tuple[int, int]) -> None:
    """A cgroup has its own histogram; when it is gone, its place is free again, and nothing of it is left for the next."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    first, _ = busy_pair
    with Session(CaptureSettings(signals=("runqueue_delay_ms",), pids=busy_pair, min_latency_ms=1000)) as session:
        histograms = session._histograms["runqueue_delay_ms.sched_switch.bpf.o"]
        with ControlGroup("cpu") as own:
            own.take(first)
            seen = {}

            def both() -> bool:
                for series in session.histograms():
                    seen[series.cgroup_id] = seen.get(series.cgroup_id, 0) + int(series.counts.sum())
                return own.id in seen and len(seen) >= 2

            eventually(both)
            slots = len(histograms._series())
            assert session.forget_cgroups() == []
            for path in {own.path, own.unified}:
                (path.parent / "cgroup.procs").write_text(str(first))
            gone = own.id
        session.histograms()
        assert [series.cgroup_id for series in session.forget_cgroups()] == [gone]
        assert len(histograms._series()) == slots - 1
        assert all(series.cgroup_id != gone for series in session.histograms())


def test_without_room_the_rest_is_counted_together(busy_pair: tuple[int, int]) -> None:
    """When no histogram is free, waits are counted as nobody's in particular, not lost."""
    from libslo.kernel.libbpf import library
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms",), pids=busy_pair, min_latency_ms=1000)) as session:
        probe = session.probes()[0]
        free, slots = probe.object.map_fd("slo_free_slots"), probe.object.map_fd("slo_series_slots")
        session.shed("runqueue_delay_ms", detach=True)
        value = ctypes.create_string_buffer(4)
        while not library().bpf_map_lookup_and_delete_elem(free, None, value):
            pass
        for cgroup_id, kind in session._histograms["runqueue_delay_ms.sched_switch.bpf.o"]._series():
            library().bpf_map_delete_elem(slots, struct.pack("<2Q", cgroup_id, kind))
        session.histograms()
        session.restore("runqueue_delay_ms")
        found = []
        eventually(lambda: found.extend(session.histograms()) or len(found) > 0)  # type: ignore[func-returns-value]
        assert {series.cgroup_id for series in found} == {None}
        assert found[0].kind == 6


def test_all_buckets_are_where_python_says(kernel: None) -> None:
    """Run-queue waits of all lengths: each bucket's share of the sum lies between its bounds."""
    from libslo.kernel.histogram import bucket_bounds_ms
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms",), min_latency_ms=1000)) as session:
        time.sleep(1.0)
        session.detach()
        bounds = bucket_bounds_ms()
        found = session.histograms()
        assert sum(int(series.counts.sum()) for series in found) > 10
        assert all(not series.counts[-1] for series in found)
        for series in found:
            low = np.concatenate([[0.0], bounds[:-1]])
            counts = series.counts.astype(float)
            held = series.sum_ns / 1e6
            assert float((counts * low).sum()) <= held <= float((counts[counts > 0] * bounds[counts > 0]).sum())
