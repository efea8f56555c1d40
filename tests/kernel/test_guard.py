"""The overhead guard on a running session, and life without capabilities."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_harness import AGENT, ControlGroup, Namespace, eventually, rest, run_plan, script, server, tell

pytestmark = pytest.mark.kernel


@pytest.fixture
def switching(kernel: None) -> Iterator[int]:
    """A process that makes the scheduler work."""
    with script("cpu_worker.py", "busy", 120) as first, script("cpu_worker.py", "quiet", 120) as second:
        tell(first)
        tell(second)
        yield second.pid


def test_a_hit_costs_what_it_costs_here(kernel: None) -> None:
    """The cost of a run before its own code is measured: some tens of nanoseconds, and most of it shown by the statistics."""
    from libslo.kernel.overhead import calibrate_hit

    costs = [calibrate_hit() for _ in range(5)]
    assert 5 < statistics.median(cost.whole_ns for cost in costs) < 2000, costs
    assert 5 < statistics.median(cost.shown_ns for cost in costs) < 2000, costs


def test_overhead_counts_runs_and_cpu_time(switching: int) -> None:
    """The meter sees the programs of a busy hook and not those of a quiet one, and this process's own CPU time."""
    from libslo.kernel.overhead import OverheadMeter, calibrate_hit
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms", "mem_reclaim_latency_ms"), min_latency_ms=1000)) as session:
        objects = {probe.variant.object_name: probe.object for probe in session.probes()}
        meter = OverheadMeter(calibrate_hit(), objects, session.hits())
        begun, used = time.monotonic(), time.process_time()
        while time.monotonic() < begun + 0.5:
            sum(range(1000))
        expected = 100 * (time.process_time() - used) / (time.monotonic() - begun) / (os.cpu_count() or 1)
        reading = meter.read(objects, session.hits())
        time.sleep(0.5)
        later = meter.read(objects, session.hits(), muted={"runqueue_delay_ms.sched_switch"})
        assert 0 < later.kernel_pct["runqueue_delay_ms.sched_switch"] < reading.kernel_pct["runqueue_delay_ms.sched_switch"]
        assert reading.method == "sampled"
        busy, quiet = reading.kernel_pct["runqueue_delay_ms.sched_switch"], reading.kernel_pct["mem_reclaim_latency_ms.mm_vmscan"]
        assert busy > quiet >= 0
        assert reading.agent_pct == pytest.approx(expected, rel=0.3)


def test_runs_are_counted_as_the_kernel_counts_them(switching: int) -> None:
    """A program's own count of its runs is the kernel's, but for the few that another one interrupts."""
    from libslo.kernel.libbpf import enable_statistics
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms",), min_latency_ms=1000)) as session:
        (probe,) = session.probes()
        fd = enable_statistics()
        try:
            before = session.hits()["runqueue_delay_ms.sched_switch"], sum(each.runs for each in probe.object.program_runs())
            time.sleep(1.0)
            after = session.hits()["runqueue_delay_ms.sched_switch"], sum(each.runs for each in probe.object.program_runs())
        finally:
            os.close(fd)
        assert after[1] - before[1] > 100
        assert after[0] - before[0] == pytest.approx(after[1] - before[1], rel=0.05)


@pytest.mark.parametrize("keep", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_the_kernel_spends_is_seen_and_shed(kernel: None, keep: bool) -> None:
    """Somebody else's storm of system calls makes the programs dear, not the agent: with or without capabilities it is seen and shed."""
    storm = "import os\nprint('ready', flush=True)\nwhile True: os.getppid()"
    with subprocess.Popen([sys.executable, "-c", storm], stdout=subprocess.PIPE) as caller:
        try:
            assert caller.stdout is not None and caller.stdout.readline()
            command = [*AGENT, "--signals", "syscall_latency_ms", "--min-latency", "1000", "--max-overhead-pct", "1.5",
                       "--overhead-interval", "1", "--duration", "5"]  # fmt: skip
            done = subprocess.run([*command, "--keep-capabilities" if keep else "--drop-capabilities"], capture_output=True, text=True)
        finally:
            caller.kill()
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if '"agent_version"' in line]
    decisions = [decision for report in reports for decision in report.get("decisions", [])]
    assert decisions and decisions[0]["signals"] == ["syscall_latency_ms"]
    assert decisions[0]["cost_pct"] > 1
    told = next(report for report in reports if report.get("decisions"))["overhead"]
    assert told["kernel_cpu_pct"] > 2 * told["agent_cpu_pct"]
    assert told["method"] == ("sampled" if keep else "estimated")


@pytest.mark.parametrize("detach", [True, False])
def test_a_shed_signal_is_silent_until_it_is_restored(switching: int, detach: bool) -> None:
    """Shed, nothing is attempted; restored, waits are measured again, and none that began before or during the pause is told."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms",), pids=(switching,))) as session:

        def attempts() -> int:
            return session.accounts()["runqueue_delay_ms"].attempts

        eventually(lambda: attempts() > 0)
        session.shed("runqueue_delay_ms", detach=detach)
        time.sleep(0.05)
        session.drain()
        before = attempts()
        time.sleep(1.0)
        assert attempts() == before
        assert session.drain() == []
        assert session.report(final=False)["signals"][0]["shed"] is True
        restored_ns = time.time_ns()
        session.restore("runqueue_delay_ms")
        assert session.shed_signals == frozenset()
        events = []
        eventually(lambda: events.extend(session.drain()) or len(events) > 20)  # type: ignore[func-returns-value]
        assert all(event["ts_unix_nano"] - event["value"] * 1e6 >= restored_ns - 1e6 for event in events)
        assert "shed" not in session.report(final=False)["signals"][0]


def test_a_shed_signal_is_told_everywhere(switching: int) -> None:
    """A decision is a report of its own, a line on stderr, and the signal is marked in every report until it is back."""
    done = subprocess.run([*AGENT, "--signals", "runqueue_delay_ms,dns_latency_ms", "--max-overhead-pct", "0.0001",
                           "--overhead-interval", "1", "--duration", "4"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if '"agent_version"' in line]
    decisions = [decision for report in reports for decision in report.get("decisions", [])]
    assert (decisions[0]["action"], decisions[0]["how"]) == ("shed", "muted")
    assert decisions[0]["overhead_pct"] > decisions[0]["ceiling_pct"] == 0.0001
    assert "overhead" in done.stderr and "shed" in done.stderr and decisions[0]["signals"][0] in done.stderr
    shed = {name for decision in decisions for name in decision["signals"]}
    assert {entry["signal"] for entry in reports[-1]["signals"] if entry.get("shed")} == shed


def test_a_pause_is_nobody_s_wait(kernel: None) -> None:
    """What a polled counter gained while its signal was shed is no event afterwards."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with ControlGroup("cpu") as tight, script("cpu_worker.py", "busy", 60) as held:
        tight.set(("cpu.cfs_quota_us", 10_000), ("cpu.max", "10000 100000"))
        tight.take(held.pid)
        tell(held)
        with Session(CaptureSettings(signals=("cfs_throttled_ms",))) as session:
            session.shed("cfs_throttled_ms", detach=False)
            time.sleep(2.0)
            assert session.poll() == []
            session.restore("cfs_throttled_ms")
            time.sleep(0.5)
            values = [event["value"] for event in session.poll() if event["pid"] == held.pid]
            assert values and max(values) < 900


def test_no_thread_keeps_a_capability(kernel: None) -> None:
    """A thread that began before the drop and keeps its capabilities is found, and is an error that names the way out."""
    code = """
import threading
from libslo.errors import CannotError
from libslo.kernel.privileges import check_dropped, drop_capabilities
stop = threading.Event()
threading.Thread(target=stop.wait, daemon=True).start()
drop_capabilities()
try:
    check_dropped(0.2)
except CannotError as error:
    print(error.fact, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "keep their capabilities" in done.stdout and "--keep-capabilities" in done.stdout
    forced = subprocess.run([*AGENT, "--signals", "dns_latency_ms", "--duration", "0.5"], capture_output=True, text=True, timeout=60,
                            env={**os.environ, "OPENBLAS_NUM_THREADS": "4"})  # fmt: skip
    assert forced.returncode == 0, forced.stderr


def test_it_goes_on_measuring_without_any_capability(namespace: Namespace) -> None:
    """With all attached, the agent drops every capability of all its threads, for good, and still sees what comes."""
    agent = subprocess.Popen([*AGENT, "--signals", "dns_latency_ms,connect_latency_ms,cfs_throttled_ms"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert agent.stdout is not None
    try:
        assert '"agent_version"' in agent.stdout.readline()
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            assert {name: int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == dict.fromkeys(
                ("CapEff", "CapPrm", "CapInh", "CapAmb"), 0
            )
            assert fields["NoNewPrivs"].strip() == "1"
        plan = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1",
                 "queries": [{"txid": index, "name": "d20.test", "qtype": 1} for index in range(23)]}]  # fmt: skip
        with server(namespace, "dns_server.py"):
            pid, _ = run_plan(namespace, "dns_client.py", [plan, 2.0, 0.0])
        time.sleep(0.3)
    finally:
        agent.terminate()
        output, _ = rest(agent)
    assert agent.returncode == 0
    events = [json.loads(line) for line in output.splitlines()]
    assert len([event for event in events if event.get("signal") == "dns_latency_ms" and event["pid"] == pid]) == 23


def test_a_user_may_keep_them(kernel: None) -> None:
    """--keep-capabilities keeps them."""
    code = "import sys; sys.argv[0] = 'agent'\nfrom slotools.agent import main\nmain(sys.argv[1:])"
    agent = subprocess.Popen([sys.executable, "-c", code, "--keep-capabilities"], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    try:
        agent.stdout.readline()
        status = Path(f"/proc/{agent.pid}/status").read_text()
        assert int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    finally:
        agent.terminate()
        agent.communicate(timeout=20)
