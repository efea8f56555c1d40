"""The agent as a process: what it prints, how it stops, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import AGENT, Namespace, eventually, rest, run_plan

from libslo.contracts import contract


def agent(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*AGENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def started(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """An agent that has attached, and its first report."""
    process = agent(*arguments)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def bpf_objects() -> dict[str, set[int]]:
    """Ids of all links, programs and maps of the machine that carry our names."""
    found = {}
    for kind in ("link", "prog", "map"):
        listed = json.loads(subprocess.run(["bpftool", "-j", kind, "list"], check=True, capture_output=True, text=True).stdout or "[]")
        found[kind] = {entry["id"] for entry in listed if kind == "link" or entry.get("name", "").startswith(("slo_", "dns_", "connect_"))}
    return found


def connects(namespace: Namespace, count: int) -> int:
    return run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 9}] * count)[0]


def test_it_writes_valid_lines_and_stops_with_a_final_report(namespace: Namespace) -> None:
    """On SIGTERM the agent drains, writes its final report last and exits 0; every line keeps its contract."""
    process, first = started("--signals", "connect_errors_total")
    pid = connects(namespace, 23)
    process.send_signal(signal.SIGTERM)
    output, errors = rest(process)
    lines = [first, *map(json.loads, output.splitlines())]
    assert (process.returncode, errors) == (0, "")
    events = [line for line in lines if "signal" in line]
    assert len([event for event in events if event["pid"] == pid]) == 23
    assert lines[-1]["final"] is True and lines[0]["final"] is False
    assert lines[-1]["signals"][0]["drained"] == len(events)
    assert all(contract("probe-event").is_valid(event) for event in events)
    assert all(contract("agent-report").is_valid(line) for line in lines if "signal" not in line)


def test_it_stops_after_count_events(namespace: Namespace, tmp_path: Path) -> None:
    """--count ends the run after exactly so many events; --report-out takes the reports out of the stream."""
    reports = tmp_path / "reports.jsonl"
    process = agent("--signals", "connect_errors_total", "--count", "5", "--report-out", str(reports))
    eventually(lambda: reports.exists() and reports.stat().st_size > 0)
    connects(namespace, 12)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert ["signal" in json.loads(line) for line in output.splitlines()] == [True] * 5
    assert json.loads(reports.read_text().splitlines()[-1])["final"] is True


def test_it_stops_after_its_duration(kernel: None) -> None:
    """--duration ends the run with exit 0, and --report-interval writes reports on the way."""
    process = agent("--duration", "0.7", "--report-interval", "0.2")
    output, _ = process.communicate(timeout=20)
    reports = [line for line in map(json.loads, output.splitlines()) if "agent_version" in line]
    assert process.returncode == 0
    assert len(reports) >= 4
    assert [report["final"] for report in reports] == [False] * (len(reports) - 1) + [True]


def test_a_closed_stdout_ends_it_quietly(kernel: None) -> None:
    """When nobody reads any more the agent ends by itself, silent, with 0, even without events."""
    process, _ = started("--signals", "tcp_retransmits_total")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(10) == 0
    assert process.stderr.read() == ""


def test_two_agents_see_the_same(namespace: Namespace) -> None:
    """Two agents at once do not disturb each other: each reports all events."""
    both = [started("--signals", "connect_errors_total,dns_latency_ms")[0] for _ in range(2)]
    pid = connects(namespace, 10)
    for process in both:
        process.send_signal(signal.SIGINT)
        output, _ = rest(process)
        assert process.returncode == 0
        assert len([event for event in map(json.loads, output.splitlines()) if event.get("pid") == pid]) == 10


def test_nothing_is_left_after_sigkill(namespace: Namespace) -> None:
    """Links, programs and maps of a killed agent are gone: nothing is pinned."""
    before = bpf_objects()
    process, _ = started()
    during = bpf_objects()
    created = {kind: during[kind] - before[kind] for kind in during}
    assert all(created.values())
    process.kill()
    process.communicate()
    eventually(lambda: not any(bpf_objects()[kind] & created[kind] for kind in created))


def test_check_names_what_attached(kernel: None) -> None:
    """--check says per signal what attached and what it cannot see; with --json as an agent report."""
    table = subprocess.run([*AGENT, "--check"], capture_output=True, text=True)
    assert table.returncode == 0
    assert re.search(r"^dns_latency_ms +cgroup_skb +yes$", table.stdout, re.MULTILINE)
    assert "does not see: DNS on ports other than 53" in table.stdout
    checked = subprocess.run([*AGENT, "--check", "--json", "--strict"], capture_output=True, text=True)
    assert checked.returncode == 0
    report = json.loads(checked.stdout)
    assert contract("agent-report").is_valid(report)
    assert report["mode"] == "core_full"


def test_check_says_what_can_be_attached_to_by_trying(kernel: None) -> None:
    """kprobe and the others are said to work exactly when a program has been attached through them, whatever bpftool lists."""
    from libslo.kernel.abilities import ABILITIES
    from libslo.kernel.libbpf import BpfError, BpfObject
    from libslo.resources import data_path

    table = subprocess.run([*AGENT, "--check", "--signals", "cpu_steal_pct"], capture_output=True, text=True).stdout
    for name, object_name in ABILITIES.items():
        bpf = BpfObject(data_path(f"bpf/build/{object_name}.bpf.o"))
        try:
            bpf.load()
            bpf.attach()
            works = True
        except BpfError:
            works = False
        finally:
            bpf.close()
        assert re.search(rf"^{name}: {'yes$' if works else 'no [(]'}", table, re.MULTILINE), table
    symbols = Path("/proc/kallsyms").read_text().split()
    assert ("kprobe: yes" in table) == ("register_kprobe" in symbols)


def test_strict_without_a_variant_is_exit_3(kernel: None, tmp_path: Path) -> None:
    """An object that does not load takes only its own signals down; --strict then exits 3, and the reason is in the report."""
    broken = """
from libslo.kernel import libbpf
load = libbpf.BpfObject.load
def failing(self):
    if self.path.name.startswith("dns"):
        self.set_max_entries("slo_events", 12345)
        self._lib.bpf_map__set_max_entries(self._map("dns_starts"), 0)
    load(self)
libbpf.BpfObject.load = failing
from slotools.agent import main
main()
"""
    for strict, code in (([], 0), (["--strict"], 3)):
        done = subprocess.run([sys.executable, "-c", broken, "--check", "--json", *strict], capture_output=True, text=True)
        report = json.loads(done.stdout)
        assert done.returncode == code
        states = {state["signal"]: state for state in report["signals"]}
        assert [name for name, state in states.items() if not state["attached"]] == ["dns_latency_ms"]
        assert states["dns_latency_ms"]["errno"] and states["dns_latency_ms"]["reason"]
        assert report["mode"] == "core_partial"
    running = subprocess.run([sys.executable, "-c", broken, "--duration", "0.2"], capture_output=True, text=True)
    assert running.returncode == 0
    assert running.stderr.startswith("agent: dns_latency_ms: not attached: load dns_latency_ms.cgroup_skb.bpf.o")


def test_without_capabilities_it_says_what_to_do(kernel: None) -> None:
    """A process without capabilities gets exit 3 and the cure."""
    drop = """
import libslo.kernel.privileges, slotools.agent
libslo.kernel.privileges.drop_capabilities()
slotools.agent.main(["--signals", "dns_latency_ms,connect_latency_ms"])
"""
    done = subprocess.run([sys.executable, "-c", drop], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == ("agent: kernel: missing capability CAP_BPF and CAP_PERFMON\n"
                           "  try: run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN\n")  # fmt: skip


def test_it_runs_with_three_capabilities(namespace: Namespace) -> None:
    """CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are enough for all signals."""
    caps = "-all,+bpf,+perfmon,+net_admin"
    prefix = ["setpriv", "--bounding-set", caps, "--inh-caps", caps]
    if os.environ.get("SLO_REQUIRE_KERNEL") != "1" and subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("this interpreter cannot be read without capabilities")
    done = subprocess.run([*prefix, *AGENT, "--check", "--json", "--strict"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_cgroup_outside_cgroup2_is_refused(kernel: None, tmp_path: Path) -> None:
    """--cgroup takes only directories of the cgroup2 hierarchy."""
    done = subprocess.run([*AGENT, "--cgroup", str(tmp_path), "--duration", "0.1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"agent: {tmp_path}: not in the cgroup2 hierarchy\n  try: ")
