"""cfs_throttled_ms and cpu_steal_pct: readings against the kernel's own counters."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path

import pytest
from kernel_harness import ControlGroup, Recording, attachable, eventually, first_line, script, tell

from libslo.host import cgroup_mount
from libslo.kernel.account import Account
from libslo.kernel.polled import ProcStat, Targets, parse_cpu_stat, parse_cpu_times
from libslo.signals import signal

THROTTLED, CONTENDED, STEAL = "cfs_throttled_ms", "runqueue_delay_ms", "cpu_steal_pct"
PERIOD_MS = 100


throttled_by = pytest.mark.parametrize("variant", ["cpu_stat", "fentry"])


def hold(group: ControlGroup, quota_us: int = 20_000) -> None:
    group.prefer()
    group.set(("cpu.cfs_quota_us", quota_us), ("cpu.max", f"{quota_us} {PERIOD_MS * 1000}"))


@throttled_by
def test_a_quota_is_measured_and_a_neighbour_without_shows_nothing(kernel: None, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """The events of a held cgroup add up to its cpu.stat, second by second, and name its process and service."""
    attachable(THROTTLED, variant)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "held-service")
    with ControlGroup("cpu") as tight, ControlGroup("cpu") as free:
        hold(tight)
        with script("cpu_worker.py", "busy", 60) as held, script("cpu_worker.py", "busy", 60) as neighbour:
            tight.take(held.pid)
            free.take(neighbour.pid)
            tell(held)
            tell(neighbour)
            begun_ns = 0
            eventually(lambda: tight.throttled_ms() > 1000, 30)  # what was before does not count
            before_ms = tight.throttled_ms()
            with Recording(signals=(THROTTLED,), variants={THROTTLED: variant}) as recording:
                if variant == "fentry":  # whose programs take their time to load, and see nothing before
                    before_ms, begun_ns = tight.throttled_ms(), time.time_ns()
                time.sleep(3.2)
                after_ms = tight.throttled_ms()
            pids, identity, name = (held.pid, neighbour.pid), tight.id, tight.path.name
    events = [
        event
        for event in recording.of(THROTTLED, pids[0], 0)
        if event["ts_unix_nano"] >= begun_ns and event["attributes"]["cgroup_id"] == identity
    ]
    assert recording.of(THROTTLED, pids[1]) == []
    # The ends of the recording may each fall into a period that is under way.
    assert sum(event["value"] for event in events) == pytest.approx(after_ms - before_ms, rel=0.05, abs=2 * PERIOD_MS)
    assert after_ms - before_ms > 1000
    assert len(events) >= 3
    for event in events:
        assert event["unit"] == "ms"
        assert (event["tid"], event.get("service")) == (pids[0], "held-service") or (variant == "fentry" and event["pid"] == 0)
        assert event["attributes"]["cgroup_id"] == identity
        assert "conn_tuple" not in event
        assert variant == "fentry" or event["attributes"]["cgroup"] == f"/{name}"
    if variant == "cpu_stat":
        assert sum(event["attributes"]["interval_ms"] for event in events) == pytest.approx(3200, rel=0.2)
    assert recording.account(THROTTLED)["emitted"] == len(recording.events)


def test_a_cgroup_that_comes_later_is_counted_from_its_beginning(kernel: None) -> None:
    """Of a cgroup that was made after the start no millisecond is lost, and one whose process has ended is nobody's."""
    with Recording(signals=(THROTTLED,)) as recording, ControlGroup("cpu") as tight:
        hold(tight)
        with script("cpu_worker.py", "busy", 60) as held:
            tight.take(held.pid)
            tell(held)
            eventually(lambda: tight.throttled_ms() > 300)
        time.sleep(3 * PERIOD_MS / 1e3)  # the kernel counts a period when it is over, also that of a process which was killed in it
        total_ms, name = tight.throttled_ms(), tight.path.name
        eventually(lambda: sum(event["value"] for event in recording.events if event["attributes"]["cgroup"] == f"/{name}") >= total_ms)
    events = [event for event in recording.events if event["attributes"]["cgroup"] == f"/{name}"]
    assert sum(event["value"] for event in events) == pytest.approx(total_ms, abs=1)
    assert {event["pid"] for event in events} <= {0, held.pid}


@throttled_by
@pytest.mark.parametrize("chosen", ["pid", "comm", "cgroup", "time"])
def test_targets_filter_readings(kernel: None, chosen: str, variant: str) -> None:
    """A pid, a command name or a cgroup passes the cgroup that holds such a process, the threshold none; the others are counted."""
    attachable(THROTTLED, variant)
    with ControlGroup("cpu") as tight, ControlGroup("cpu") as other, contextlib.ExitStack() as stack:
        cpu = max(os.sched_getaffinity(0))
        wanted, unwanted = (
            stack.enter_context(script("cpu_worker.py", "busy", 60, cpu - index, name)) for index, name in enumerate(("slo-one", "slo-two"))
        )
        for group, process in ((tight, wanted), (other, unwanted)):
            hold(group)
            group.take(process.pid)
            tell(process)
        eventually(lambda: min(tight.throttled_ms(), other.throttled_ms()) > 0)
        settings = {
            "pid": {"pids": (wanted.pid,)}, "comm": {"comm": "slo-one"}, "cgroup": {"cgroups": (tight.unified,)},
            "time": {"min_latency_ms": 60_000.0},
        }[chosen]  # fmt: skip
        with Recording(signals=(THROTTLED, STEAL), variants={THROTTLED: variant}, **settings) as recording:
            time.sleep(1.4)
        pid = wanted.pid
    throttled = [event for event in recording.events if event["signal"] == THROTTLED]
    assert {event["pid"] for event in throttled} == ({pid} if chosen != "time" else set())
    assert recording.account(THROTTLED)["filtered"] >= 1
    assert (recording.account(STEAL)["filtered"] > 0) == (chosen != "time")


@pytest.mark.parametrize("variant", ["proc_stat", "prev_steal_time"])
def test_steal_is_what_proc_stat_says(kernel: None, variant: str) -> None:
    """One event a second for the node, and over all of them the share is that of /proc/stat over the same time."""
    with Recording(signals=(STEAL,), variants={STEAL: variant}) as recording:
        before = parse_cpu_times(Path("/proc/stat").read_text())
        time.sleep(3.2)
        after = parse_cpu_times(Path("/proc/stat").read_text())
    events = recording.events
    assert len(events) == recording.account(STEAL)["emitted"] >= 3
    assert {(event["pid"], event["unit"], event["attributes"]["cgroup_id"]) for event in events} == {(0, "pct", 0)}
    ticks = sum(event["attributes"]["cpu.ticks"] for event in events)
    stolen = sum(event["value"] * event["attributes"]["cpu.ticks"] for event in events) / ticks
    assert after[1] - before[1] <= ticks * 1.1 and ticks <= 1.5 * (after[1] - before[1])  # it begins sooner and ends later
    assert stolen == pytest.approx(100 * (after[0] - before[0]) / (after[1] - before[1]), abs=1)


def test_contention_throttling_and_steal_are_three_things(kernel: None) -> None:
    """A quota shows as throttling and not as contention, other work on the CPU the other way round, and neither as steal."""

    def totals(recording: Recording, *pids: int) -> dict[str, float]:
        recording.account(STEAL)
        return {name: sum(event["value"] for event in recording.of(name, *pids)) for name in (THROTTLED, CONTENDED)} | {
            STEAL: statistics.mean(event["value"] for event in recording.events if event["signal"] == STEAL)
        }

    signals, cpu = (THROTTLED, CONTENDED, STEAL), max(os.sched_getaffinity(0))
    with ControlGroup("cpu") as tight, script("cpu_worker.py", "busy", 3) as held:
        hold(tight)
        tight.take(held.pid)
        with Recording(signals=signals, variants={CONTENDED: "sched_switch"}, min_latencies_ms={CONTENDED: 1}) as recording:
            tell(held)
            first_line(held)
        quota = totals(recording, held.pid)
    with ControlGroup("cpu") as free, contextlib.ExitStack() as stack:
        free.prefer()
        rivals = [stack.enter_context(script("cpu_worker.py", "busy", 3, cpu)) for _ in range(3)]
        for rival in rivals:
            free.take(rival.pid)
        with Recording(signals=signals, variants={CONTENDED: "sched_switch"}, min_latencies_ms={CONTENDED: 1}) as recording:
            for rival in rivals:
                tell(rival)
            for rival in rivals:
                first_line(rival)
        contention = totals(recording, *(rival.pid for rival in rivals))
    assert quota[THROTTLED] > 1500 and quota[CONTENDED] < 0.1 * quota[THROTTLED]
    assert contention[CONTENDED] > 3000 and contention[THROTTLED] == 0
    assert max(quota[STEAL], contention[STEAL]) < signal(STEAL).warning


def test_steal_is_a_share_of_all_cpu_time(tmp_path: Path) -> None:
    """30 of 200 ticks stolen are 15 %, however the others were spent; guest time is not counted twice, and no tick is no event."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 20 5 5 10 40 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    source = ProcStat(Targets(), stat=stat)
    stat.write_text("cpu  150 0 70 890 25 5 10 40 60 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    readings = source.poll(5)
    assert (readings.events["value"].tolist(), readings.events["ts_ns"].tolist()) == ([15_000], [5])
    assert readings.account == Account(1, 1)
    assert source.poll(6).account == Account()
    stat.write_text("cpu  250 0 70 890 25 5 10 30 60 0\n")  # a counter that goes back, as iowait and steal may
    assert source.poll(7).events["value"].tolist() == [0]


def test_cpu_stat_of_both_versions() -> None:
    """v1 counts nanoseconds and v2 microseconds; a cgroup without a quota has had no period, and the root of v2 has neither."""
    assert parse_cpu_stat("nr_periods 23\nnr_throttled 21\nthrottled_time 1774647649\nnr_bursts 0\nburst_time 0\n") == (1774647649, True)
    assert parse_cpu_stat("usage_usec 9\nuser_usec 5\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2500\n") == (2_500_000, True)
    assert parse_cpu_stat("usage_usec 9\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n") == (0, False)
    assert parse_cpu_stat("usage_usec 9\nuser_usec 5\n") == (0, False)


def test_the_cpu_hierarchy_is_found() -> None:
    """A hierarchy of v1 with the controller wins over cgroup2 beside it; without one it is cgroup2."""
    hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n"
    assert cgroup_mount("cpu", hybrid) == (Path("/sys/fs/cgroup/cpu,cpuacct"), 1)
    assert cgroup_mount("memory", hybrid) == (Path("/sys/fs/cgroup/unified"), 2)
    assert cgroup_mount("cpu", "tmpfs / tmpfs rw 0 0\n") is None
