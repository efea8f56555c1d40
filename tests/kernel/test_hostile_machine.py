"""The agent where something is missing, in the way, or happens at the wrong moment."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import AGENT, NETWORK_SIGNALS, Namespace, Recording, run_plan, server, start_inline

pytestmark = pytest.mark.kernel

PLAN = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1",
         "queries": [{"txid": index, "name": "d5.test", "qtype": 1} for index in range(23)]}]  # fmt: skip
DEFAULTS = ["--signal-set", "default"]


def check(prefix: list[str], *options: str) -> dict[str, Any]:
    """The report of --check, run behind a prefix."""
    done = subprocess.run([*prefix, *AGENT, "--check", "--json", *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def attached(report: dict[str, Any]) -> set[str]:
    return {state["signal"] for state in report["signals"] if state["attached"]}


def without_mounts(*places: str) -> list[str]:
    """A prefix that hides directories below empty ones, for one command and its children only."""
    hide = "; ".join(f"if [ -d {place} ]; then mount -t tmpfs none {place}; fi" for place in places)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{hide}; exec "$@"', "sh"]


def test_the_defaults_need_neither_bpffs_nor_tracefs(kernel: None) -> None:
    """With /sys/fs/bpf, tracefs and debugfs hidden, everything of the default set attaches as before."""
    report = check(without_mounts("/sys/fs/bpf", "/sys/kernel/tracing", "/sys/kernel/debug"), *DEFAULTS)
    assert {state["signal"]: state["reason"] for state in report["signals"] if not state["attached"]} == {}
    assert report["mode"] == "core_full"


def test_without_cgroup2_it_says_what_to_mount(kernel: None) -> None:
    """What hangs at the root of cgroup2 names the mount that is missing; the rest attaches."""
    from libslo.host import cgroup2_mount

    hide = f'umount -l {cgroup2_mount()}; exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]
    report = check(prefix, "--signals", "dns_latency_ms,mem_reclaim_latency_ms", "--variant", "dns_latency_ms=cgroup_skb")
    states = {state["signal"]: state for state in report["signals"]}
    assert states["mem_reclaim_latency_ms"]["attached"]
    assert not states["dns_latency_ms"]["attached"]
    assert "try: mount -t cgroup2" in states["dns_latency_ms"]["reason"]


@pytest.mark.parametrize("missing", ["bpf", "perfmon", "net_admin"])
def test_each_missing_capability_is_named_and_costs_only_what_needs_it(kernel: None, missing: str) -> None:
    """With one of its three capabilities missing, what needs that one says so, and all others attach."""
    from libslo.kernel.catalogue import variants

    kept = [name for name in ("bpf", "perfmon", "net_admin") if name != missing]
    caps = "-all," + ",".join(f"+{name}" for name in kept)
    names = ("dns_latency_ms", "mem_reclaim_latency_ms", "cpu_steal_pct")
    chosen = {"dns_latency_ms": "cgroup_skb", "mem_reclaim_latency_ms": "mm_vmscan", "cpu_steal_pct": "proc_stat"}
    forced = [word for name in names for word in ("--variant", f"{name}={chosen[name]}")]
    report = check(["setpriv", "--bounding-set", caps, "--inh-caps", caps], "--signals", ",".join(names), *forced)
    for state in report["signals"]:
        variant = next(variant for variant in variants(state["signal"]) if variant.name == state["variant"])
        needed = f"CAP_{missing.upper()}" in variant.capabilities
        assert state["attached"] is not needed, state
        if needed:
            assert state["errno"] in (errno.EPERM, errno.EACCES)
            assert f"missing capability CAP_{missing.upper()}" in state["reason"]


def test_two_agents_see_the_same(namespace: Namespace) -> None:
    """Agents do not disturb each other: each reports all 23 queries, with an account that closes."""
    with server(namespace, "dns_server.py"), Recording(signals=NETWORK_SIGNALS) as first, Recording(signals=NETWORK_SIGNALS) as second:
        pid, _ = run_plan(namespace, "dns_client.py", [PLAN, 2.0, 0.0])
        time.sleep(0.2)
    for recording in (first, second):
        assert len(recording.of("dns_latency_ms", pid)) == 23
        recording.account("dns_latency_ms")


def test_a_step_of_the_wall_clock_moves_timestamps_and_nothing_else(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the wall clock is set back by an hour, events say the new time, and their lengths are as before."""
    from libslo.kernel import session

    step_ns = -3_600_000_000_000
    real = time.time_ns
    moved = {"ns": 0}
    monkeypatch.setattr(session.time, "time_ns", lambda: real() + moved["ns"])
    with server(namespace, "dns_server.py"), Recording(signals=("dns_latency_ms",)) as recording:
        before, _ = run_plan(namespace, "dns_client.py", [PLAN, 2.0, 0.0])
        time.sleep(0.3)
        moved["ns"] = step_ns
        after, _ = run_plan(namespace, "dns_client.py", [PLAN, 2.0, 0.0])
        time.sleep(0.3)
    early, late = recording.of("dns_latency_ms", before), recording.of("dns_latency_ms", after)
    assert len(early) == len(late) == 23
    now_ns = real()
    assert all(0 <= now_ns - event["ts_unix_nano"] < 60e9 for event in early)
    assert all(0 <= now_ns + step_ns - event["ts_unix_nano"] < 60e9 for event in late)
    assert all(4 < event["value"] < 500 for event in early + late)


def test_sigterm_in_a_flood_loses_nothing_unsaid(namespace: Namespace, tmp_path: Path) -> None:
    """Stopped while thousands of events are under way, the agent writes all it drained, and its account closes."""
    flood = """
import socket
print("ready", flush=True)
while True:
    s = socket.socket()
    try:
        s.connect(("127.0.0.1", 9))
    except OSError:
        pass
    s.close()
"""
    client = start_inline(namespace, flood)
    out = tmp_path / "events.jsonl"
    options = ["--signals", "connect_errors_total", "--rate-limit", "0", "--signal-rate-limit", "0", "--max-overhead-pct", "0"]
    agent = subprocess.Popen([*AGENT, *options, "--pid", str(client.pid), "--out", str(out)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while (not out.exists() or out.read_bytes().count(b"\n") < 1000) and time.monotonic() < deadline:
            time.sleep(0.1)
        agent.send_signal(signal.SIGTERM)
        agent.send_signal(signal.SIGTERM)
        _, said = agent.communicate(timeout=60)
    finally:
        client.kill()
        client.communicate()
        agent.kill()
    assert agent.returncode == 0, said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    report = lines[-1]
    assert report["final"]
    (entry,) = report["signals"]
    account = entry["account"]
    assert account["attempts"] == account["emitted"] + account["filtered"] + account["rate_limited"] + account["dropped"]
    assert sum("pid" in line for line in lines) == entry["drained"] == account["emitted"] > 1000


def test_a_ring_that_is_too_small_is_counted(namespace: Namespace) -> None:
    """The smallest ring drops what comes faster than it is read, and says how much."""
    burst = """
import socket, sys
sys.stdin.readline()
for _ in range(400):
    s = socket.socket()
    try:
        s.connect(("127.0.0.1", 9))
    except OSError:
        pass
    s.close()
"""
    client = start_inline(namespace, burst)
    with Recording(signals=("connect_errors_total",), pids=(client.pid,), ring_bytes=4096) as recording:
        client.communicate("go\n", timeout=60)
    account = recording.account("connect_errors_total")
    assert account["emitted"] + account["dropped"] == 400
    assert account["dropped"] > 0


def test_the_agent_is_not_killed_by_its_own_mode(kernel: None) -> None:
    """min_capability loads nothing into the kernel and still measures what counters tell."""
    code = """
import libslo.kernel.privileges, slotools.agent
libslo.kernel.privileges.drop_capabilities()
slotools.agent.main(["--signal-set", "counters", "--capability-mode", "min_capability", "--duration", "1.5"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if "agent_version" in line]
    assert reports[-1]["mode"] == "min_capability"
    assert attached(reports[-1]) == {"cpu_steal_pct", "cfs_throttled_ms"}
