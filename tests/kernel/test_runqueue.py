"""runqueue_delay_ms on the real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import INTERPRETED, ControlGroup, Recording, between, first_line, prefer, script, tell

SIGNAL = "runqueue_delay_ms"
both = pytest.mark.parametrize("variant", ["sched_switch", "tracepoint"])


@pytest.fixture
def cpu(kernel: None) -> int:
    """The last CPU that this process may use."""
    return max(os.sched_getaffinity(0))


def recorded(variant: str, **settings: Any) -> Recording:
    return Recording(signals=(SIGNAL,), variants={SIGNAL: variant}, **settings)


@both
def test_the_sum_of_waits_is_the_kernels_own(cpu: int, variant: str) -> None:
    """Of three busy loops on one CPU, and a sleeper beside them, the waits add up to each one's run_delay in schedstat.

    The busy ones wait for two thirds of the time, having lost the CPU; the sleeper's waits follow wake-ups.
    """
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(script("cpu_worker.py", "busy", 2, cpu)) for _ in range(3)]
        quiet = stack.enter_context(script("cpu_worker.py", "quiet", 2, cpu))
        for process in (*busy, quiet):
            prefer(process)
        with recorded(variant, pids=tuple(process.pid for process in (*busy, quiet))) as recording:
            for process in (*busy, quiet):
                tell(process)
            told = {process.pid: json.loads(first_line(process)) for process in (*busy, quiet)}
    waited = {}
    for pid, said in told.items():
        events = between(recording.of(SIGNAL, pid), said)
        assert events and all(event["tid"] == pid for event in events)
        waited[pid] = sum(event["value"] for event in events)
        assert waited[pid] == pytest.approx(said["run_delay_ms"], rel=0.05, abs=max(2, (1 if INTERPRETED else 0.1) * len(events)))
        after = [event["attributes"]["sched.after"] for event in events]
        # A signal or the reading of a pipe may put a busy loop to sleep once; nothing keeps a sleeper from losing the CPU now and then.
        rare = "wakeup" if pid != quiet.pid else "preemption"
        assert after.count(rare) <= 0.2 * len(after)
    assert all(waited[process.pid] >= 1000 for process in busy)
    assert waited[quiet.pid] < min(waited[process.pid] for process in busy)
    assert 0 not in {event["tid"] for event in recording.events}
    assert recording.account(SIGNAL)["dropped"] == 0


def test_throttling_is_not_contention(kernel: None) -> None:
    """A process that its CPU quota holds waits in schedstat; what is left here is no more than schedstat has beyond the throttled time."""
    with ControlGroup("cpu") as tight:
        tight.set(("cpu.cfs_quota_us", 10_000), ("cpu.max", "10000 100000"))
        tight.prefer()
        with script("cpu_worker.py", "busy", 2) as held:
            tight.take(held.pid)
            with recorded("sched_switch", pids=(held.pid,)) as recording:
                tell(held)
                told = json.loads(first_line(held))
                throttled_ms = tight.throttled_ms()
            pid = held.pid
    events = between(recording.of(SIGNAL, pid), told)
    assert throttled_ms > 1000
    assert sum(event["value"] for event in events) < max(0, told["run_delay_ms"] - throttled_ms) + 0.05 * throttled_ms
    assert recording.account(SIGNAL)["filtered"] >= 10


@both
def test_filters_let_go_of_what_is_not_asked_for(cpu: int, variant: str) -> None:
    """Pid, command name and cgroup pass the one process that is asked for, the threshold its long waits; each account closes."""
    with ControlGroup("memory") as group, contextlib.ExitStack() as stack:
        wanted, other = (stack.enter_context(script("cpu_worker.py", "busy", 2.5, cpu, name)) for name in ("slo-wanted", "slo-other"))
        group.take(wanted.pid)
        for process in (wanted, other):
            prefer(process)
        with (
            recorded(variant, pids=(wanted.pid,)) as by_pid,
            recorded(variant, comm="slo-wanted") as by_comm,
            recorded(variant, cgroups=(group.unified,)) as by_cgroup,
            recorded(variant, pids=(wanted.pid,), min_latency_ms=2) as by_time,
            recorded(variant, pids=(wanted.pid,), rate_limit=7) as by_rate,
        ):
            for process in (wanted, other):
                tell(process)
            told = json.loads(first_line(wanted))
            first_line(other)
        pid = wanted.pid
    number = len(between(by_pid.events, told))
    assert number > 10
    for recording in (by_pid, by_comm, by_cgroup):
        assert {event["pid"] for event in recording.events} == {pid}
        assert len(between(recording.events, told)) == pytest.approx(number, abs=2)  # the ends of the time are not the same to each
        assert recording.account(SIGNAL)["filtered"] > number
    assert 0 < len(by_time.events) < len(by_pid.events) + 2
    assert min(event["value"] for event in by_time.events) >= 2
    by_time.account(SIGNAL)
    limited = by_rate.account(SIGNAL)
    assert 7 <= limited["emitted"] <= 7 * 4 < limited["emitted"] + limited["rate_limited"]


@both
def test_no_entry_outlives_its_task(kernel: None, variant: str) -> None:
    """When the processes asked for have ended, nothing of them is left; the variant that keeps all threads keeps none that is gone."""
    from libslo.kernel.libbpf import map_lookup_batch
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with script("cpu_worker.py", "busy", 60) as first, script("cpu_worker.py", "quiet", 60) as second:
        session = Session(CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant}, pids=(first.pid, second.pid)))
        tell(first)
        tell(second)
        session.wait(0.5)
    with session:
        (state,) = session.states
        assert state.probe is not None
        name, width, size = {"sched_switch": ("runnables", 32, 32768), "tracepoint": ("threads", 24, 32768)}[variant]

        def left() -> set[int]:
            keys, _, count = map_lookup_batch(state.probe.object.map_fd(name), 4, width, size)  # type: ignore[union-attr]
            return set(struct.unpack(f"<{count}I", keys))

        gone = {tid for tid in left() if not Path(f"/proc/{tid}").exists()}
        assert not gone & left()
        assert session.detach()
        assert not left() & {first.pid, second.pid}
        assert variant == "tracepoint" or not left()
