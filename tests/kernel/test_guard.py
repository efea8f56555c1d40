"""The overhead guard on a running session, and life without capabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_harness import AGENT, Namespace, eventually, run_plan, script, server, tell

pytestmark = pytest.mark.kernel


@pytest.fixture
def switching(kernel: None) -> Iterator[int]:
    """A process that makes the scheduler work."""
    with script("cpu_worker.py", "busy", 120) as first, script("cpu_worker.py", "quiet", 120) as second:
        tell(first)
        tell(second)
        yield second.pid


def test_a_hit_costs_something_here(kernel: None) -> None:
    """The calibrated cost of a run is measured: below ten microseconds, above nothing at its best, and never the same twice."""
    from libslo.kernel.overhead import calibrate_hit_ns

    values = [calibrate_hit_ns() for _ in range(3)]
    assert all(0 <= value < 10_000 for value in values)
    assert max(values) > 0
    assert len(set(values)) > 1


def test_overhead_counts_runs_and_cpu_time(switching: int) -> None:
    """The meter sees the programs of a busy hook and not those of a quiet one, and this process's own CPU time."""
    from libslo.kernel.overhead import OverheadMeter, calibrate_hit_ns
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with Session(CaptureSettings(signals=("runqueue_delay_ms", "mem_reclaim_latency_ms"), min_latency_ms=1000)) as session:
        meter = OverheadMeter(calibrate_hit_ns())
        begun, used = time.monotonic(), time.process_time()
        while time.monotonic() < begun + 0.5:
            sum(range(1000))
        objects = {probe.variant.object_name: probe.object for probe in session.probes()}
        expected = 100 * (time.process_time() - used) / (time.monotonic() - begun) / (os.cpu_count() or 1)
        reading = meter.read(objects, {})
        assert reading.method == "sampled"
        busy, quiet = reading.kernel_pct["runqueue_delay_ms.sched_switch"], reading.kernel_pct["mem_reclaim_latency_ms.mm_vmscan"]
        assert busy > quiet >= 0
        assert reading.agent_pct == pytest.approx(expected, rel=0.3)


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


@pytest.mark.parametrize("keep", [True, False])
def test_a_ceiling_that_cannot_hold_sheds_and_says_so(switching: int, keep: bool) -> None:
    """With a ceiling near zero the guard sheds, tells why on the line of the report and on stderr, and the agent goes on."""
    command = [*AGENT, "--signals", "runqueue_delay_ms,dns_latency_ms", "--max-overhead-pct", "0.0001", "--duration", "17"]
    done = subprocess.run([*command, "--keep-capabilities" if keep else "--drop-capabilities"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if '"agent_version"' in line]
    decisions = [decision for report in reports for decision in report.get("decisions", [])]
    assert decisions[0]["action"] == "shed"
    assert decisions[0]["how"] == ("detached" if keep else "muted")
    assert decisions[0]["overhead_pct"] > decisions[0]["ceiling_pct"] == 0.0001
    assert "overhead" in done.stderr and "shed" in done.stderr and decisions[0]["signals"][0] in done.stderr
    shed = {name for decision in decisions for name in decision["signals"]}
    last = {entry["signal"]: entry.get("shed", False) for entry in reports[-1]["signals"]}
    assert {name for name, away in last.items() if away} == shed
    assert reports[-1]["overhead"]["method"] == ("sampled" if keep else "estimated")


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
        output, _ = agent.communicate(timeout=20)
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
