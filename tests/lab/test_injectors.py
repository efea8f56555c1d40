"""Real faults: their size by another clock, their end, and what happens when their maker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_traces import Traces

from libslo.contracts import contract
from libslo.errors import CannotError, InputError
from libslo.lab import injectors as module
from libslo.lab.injectors import DnsDelay, Target, find_target, measure_dns_ms, real_fault, recover_stale
from libslo.lab.netns import call_in_netns, find_netns, netns_inode, netns_of
from libslo.lab.nfqueue import PacketDelayer
from libslo.lab.state import write_record
from libslo.lab.topology import ADDRESSES, NAMES, Topology, importable

_BUSY = 0.4  # tolerance of a median of five on a machine that does other things; the accuracy has a test of its own

# Measures on a clock and with a library of its own.
_DNS_CLIENT = """
import sys, time, dns.message, dns.query
for number in range(int(sys.argv[2])):
    query = dns.message.make_query("rag.lab", "A")
    before = time.perf_counter()
    dns.query.udp(query, sys.argv[1], timeout=5)
    print((time.perf_counter() - before) * 1e3)
"""
_INJECTION = """
import json, sys
from libslo.lab.injectors import real_fault
for window in real_fault("dns_latency", delay_ms=float(sys.argv[1]), duration_s=float(sys.argv[2])):
    print(json.dumps(window), flush=True)
"""


@pytest.fixture
def lab(traces: Traces) -> Iterator[Topology]:
    """Namespaces with the name server in them, no other service."""
    with Topology() as topology:
        records = [word for name, role in NAMES.items() for word in ("--record", f"{name}={ADDRESSES[role]}")]
        command = [sys.executable, "-m", "libslo.lab.dns_server", "--listen", ADDRESSES["dns"], *records]
        process = topology.spawn("dns", command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield topology
        process.stdout.close()


def _asked_ms(lab: Topology, count: int) -> list[float]:
    command = [sys.executable, "-c", _DNS_CLIENT, ADDRESSES["dns"], str(count)]
    return [float(word) for word in lab.spawn("client", command, stdout=subprocess.PIPE).communicate(timeout=60)[0].split()]


def _ground(lab: Topology) -> str:
    """Everything an injection may change in the name server's namespace."""
    commands = [["iptables", "-S"], ["ip6tables", "-S"], ["tc", "qdisc", "show"]]

    def look() -> str:
        return "".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands)

    return call_in_netns(netns_of(lab.pids["dns"]), look)


def _inject(delay_ms: float, duration_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _INJECTION, str(delay_ms), str(duration_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **importable()})


def _line(process: subprocess.Popen[bytes]) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(process.stdout.readline())
    assert contract("fault-window").is_valid(line)
    return line


def test_delay_by_the_clients_clock(lab: Topology, traces: Traces) -> None:
    """200 ms asked are 200 ms within 5 % by a DNS client's own clock, as the injector says; none before, none after.

    The quickest of nine is compared: a busy machine can only add to a wait.
    """
    ground = _ground(lab)
    delay = DnsDelay(find_target(), 200)
    before_ms = min(_asked_ms(lab, 9))
    delay.apply()
    assert _ground(lab) != ground
    added_ms = min(_asked_ms(lab, 9)) - before_ms
    measured = delay.verify()
    delay.undo()
    after_ms = min(_asked_ms(lab, 9))
    assert added_ms == pytest.approx(200, rel=0.05)
    assert measured["delay_ms"] == pytest.approx(200, rel=_BUSY)
    assert before_ms < 20
    assert after_ms < 20
    assert _ground(lab) == ground
    assert [name for name in traces.files() if name.startswith("injection")] == []


def test_many_packets_wait_at_once(lab: Topology) -> None:
    """Two hundred queries at the same time are each delayed by the same 200 ms: they do not wait for one another."""
    delay = DnsDelay(find_target(), 200)
    delay.apply()
    try:
        values_ms = measure_dns_ms(netns_of(lab.pids["client"]), ADDRESSES["dns"], "rag.lab", 200)
    finally:
        delay.undo()
    assert len(values_ms) == 200
    assert min(values_ms) >= 200
    assert statistics.median(values_ms) < 2000  # one after the other, half of them would take more than 20 s


def test_undone_packets_are_not_lost(lab: Topology) -> None:
    """What waits when the fault ends goes at once."""
    delay = DnsDelay(find_target(), 5000, mechanisms=["nfqueue"])
    delay._probe_ms = lambda: None  # type: ignore[method-assign]  # it would wait 5 s
    delay.apply()
    answers: list[float] = []
    target = find_target()
    thread = threading.Thread(target=lambda: answers.extend(measure_dns_ms(target.netns, ADDRESSES["dns"], "rag.lab", 3)))
    thread.start()
    time.sleep(0.3)
    delay.undo()
    thread.join(10)
    assert len(answers) == 3
    assert all(300 <= value < 2000 for value in answers)


def test_only_dns_is_delayed(lab: Topology) -> None:
    """Other UDP of the same namespace passes as before."""
    code = (
        "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind((sys.argv[1], 5353))\n"
        "print('ready', flush=True)\n"
        "while True:\n    data, peer = s.recvfrom(100)\n    s.sendto(data, peer)"
    )
    echo = lab.spawn("dns", [sys.executable, "-c", code, ADDRESSES["dns"]], stdout=subprocess.PIPE)
    assert echo.stdout is not None
    assert echo.stdout.readline() == b"ready\n"
    ask = (
        "import socket, sys, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\nt = time.perf_counter()\n"
        "s.sendto(b'x', (sys.argv[1], 5353))\ns.recv(10)\nprint((time.perf_counter() - t) * 1e3)"
    )
    delay = DnsDelay(find_target(), 200)
    delay.apply()
    try:
        said = lab.spawn("client", [sys.executable, "-c", ask, ADDRESSES["dns"]], stdout=subprocess.PIPE).communicate(timeout=20)[0]
    finally:
        delay.undo()
        echo.stdout.close()
    assert float(said) < 150


def test_fault_window_records(lab: Topology) -> None:
    """A fault of one second gives a begin and an end record of the contract, with its true times and its measured size."""
    started_ns = time.time_ns()
    begin, end = real_fault("dns_latency", delay_ms=100, duration_s=1)
    ended_ns = time.time_ns()
    for window in (begin, end):
        assert contract("fault-window").is_valid(window)
    assert (begin["phase"], end["phase"]) == ("begin", "end")
    assert "end_unix_nano" not in begin
    assert begin["fault_id"] == end["fault_id"]
    assert begin["expected_domains"] == ["network_dns"]
    assert begin["parameters"] == {"delay_ms": 100}
    assert begin["measured"]["delay_ms"] == pytest.approx(100, rel=_BUSY)
    assert started_ns < begin["begin_unix_nano"] < end["end_unix_nano"] < ended_ns
    assert 1 <= (end["end_unix_nano"] - begin["begin_unix_nano"]) / 1e9 < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_undone_on_signal(lab: Topology, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end the fault: rules and qdiscs are what they were, and the end record is written."""
    ground = _ground(lab)
    process = _inject(150, 60)
    assert _line(process)["phase"] == "begin"
    assert _ground(lab) != ground
    process.send_signal(number)
    assert _line(process)["phase"] == "end"
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert _ground(lab) == ground


def test_killed_injection_is_removed_at_the_next_start(lab: Topology, traces: Traces) -> None:
    """SIGKILL leaves a rule and its record; DNS works meanwhile or stays delayed; the next start takes both away."""
    ground = _ground(lab)
    process = _inject(150, 60)
    assert _line(process)["phase"] == "begin"
    assert recover_stale() == []  # its maker lives
    process.kill()
    process.communicate()
    assert _ground(lab) != ground
    assert len([name for name in traces.files() if name.startswith("injection")]) == 1
    windows = list(real_fault("dns_latency", delay_ms=50, duration_s=0.1))
    assert [window["phase"] for window in windows] == ["begin", "end"]
    assert _ground(lab) == ground
    assert [name for name in traces.files() if name.startswith("injection")] == []
    assert min(_asked_ms(lab, 9)) < 20


def test_namespace_gone_with_its_fault(traces: Traces) -> None:
    """When the lab ended first, undoing later is no error and only the record goes."""
    with Topology():
        delay = DnsDelay(Target(find_target().netns, {}), 50)
        delay.apply()
    delay.undo()
    assert traces.files() == []


def test_consumer_that_stops_early_undoes(lab: Topology) -> None:
    """Closing the iterator (a reader that has gone) takes the fault off and gives the signals back."""
    ground, handler = _ground(lab), signal.getsignal(signal.SIGTERM)
    windows = real_fault("dns_latency", delay_ms=100)
    next(windows)
    assert _ground(lab) != ground
    windows.close()  # type: ignore[attr-defined]
    assert _ground(lab) == ground
    assert signal.getsignal(signal.SIGTERM) is handler


def test_target_by_pid_and_path(lab: Topology) -> None:
    """A namespace given by pid or path is delayed too; the delay is then measured on the packets that passed."""
    pid = lab.pids["dns"]
    assert find_target(f"pid:{pid}").netns == find_target(str(pid)).netns == find_target(f"/proc/{pid}/ns/net").netns == find_target().netns
    delay = DnsDelay(find_target(f"pid:{pid}"), 100, mechanisms=["nfqueue"])
    delay.apply()
    try:
        assert delay.verify() == {}
        _asked_ms(lab, 3)
        assert delay.verify()["delay_ms"] == pytest.approx(100, rel=_BUSY)
    finally:
        delay.undo()


def test_fault_that_did_not_take_is_no_truth(lab: Topology) -> None:
    """A second delay behind a first adds nothing: it is refused and taken off, and the first stays on."""
    first = DnsDelay(find_target(), 100, mechanisms=["nfqueue"])
    first.apply()
    try:
        ground = _ground(lab)
        second = DnsDelay(find_target(), 60, mechanisms=["nfqueue"])
        second.apply()
        with pytest.raises(CannotError, match="did not take: asked for 60 ms"):
            second.verify()
        second.undo()
        assert _ground(lab) == ground
        assert first.verify()["delay_ms"] == pytest.approx(100, rel=_BUSY)
    finally:
        first.undo()


@pytest.mark.parametrize("target", ["pid:x", "dns", "pid:4194305", "/nowhere"])
def test_unknown_target(lab_ground: None, state: Path, target: str) -> None:
    """A target that is no namespace is an input error with a cure."""
    with pytest.raises(InputError) as caught:
        find_target(target)
    assert caught.value.hint


def test_not_a_namespace(lab: Topology, tmp_path: Path) -> None:
    """A path to something else than a network namespace is refused before anything is done."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError, match="not a network namespace"):
        DnsDelay(find_target(str(path)), 100, mechanisms=["nfqueue"]).apply()


def test_without_a_lab(lab_ground: None, state: Path) -> None:
    """With no lab and no target the error says how to get one."""
    with pytest.raises(CannotError, match="no lab is running") as caught:
        next(real_fault("dns_latency"))
    assert caught.value.hint


def test_unknown_scenario() -> None:
    """A scenario without a real injector is an input error that lists those that have one."""
    with pytest.raises(InputError, match="no real injector") as caught:
        next(real_fault("solar_flare"))
    assert "dns_latency" in str(caught.value.hint)


def test_missing_iptables(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iptables the error names the package, and nothing is left."""
    ground, real = _ground(lab), shutil.which
    monkeypatch.setattr(module.shutil, "which", lambda program: None if program.endswith("tables") else real(program))
    with pytest.raises(CannotError, match="iptables is not installed") as caught:
        DnsDelay(find_target(), 100, mechanisms=["nfqueue"]).apply()
    assert caught.value.hint == "apt-get install iptables"
    monkeypatch.undo()
    assert _ground(lab) == ground


def test_refused_rule_leaves_nothing(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second of two rules is refused, the first is taken back and so is the record."""
    ground, real = _ground(lab), module._in_netns

    def refuse(netns: Path, command: list[str]) -> str:
        if command[0] == "ip6tables":
            raise CannotError("ip6tables failed: Permission denied")
        return real(netns, command)

    monkeypatch.setattr(module, "_in_netns", refuse)
    with pytest.raises(CannotError, match="Permission denied"):
        DnsDelay(find_target(), 100, mechanisms=["nfqueue"]).apply()
    assert _ground(lab) == ground
    assert [name for name in traces.files() if name.startswith("injection")] == []


def test_undo_that_fails_is_said(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a rule cannot be taken off, the error names it with the command to do it, and the record stays."""
    delay = DnsDelay(find_target(), 50, mechanisms=["nfqueue"])
    delay.apply()
    real = subprocess.run

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return real(["false"] if "-D" in command else command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(module.subprocess, "run", refuse)
    with pytest.raises(CannotError, match="cannot take the fault off: iptables") as caught:
        delay.undo()
    assert str(caught.value.hint).startswith("nsenter --net=")
    assert any(name.startswith("injection") for name in traces.files())
    monkeypatch.undo()
    delay.undo()
    assert traces.files() == [name for name in traces.files() if not name.startswith("injection")]


@pytest.mark.parametrize(("code", "stays"), [(0, True), (1, False), (3, False), (4, True)])
def test_a_rule_is_gone_only_when_that_is_known(code: int, stays: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """iptables says 1 for no such rule and 3 for no such table; 4 (the lock was held) leaves it open, so the record must stay."""
    fake = tmp_path / "iptables"
    fake.write_text(f"#!/bin/sh\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert module._stays(["iptables", "-D", "OUTPUT", "-j", "NFQUEUE"]) is stays


def test_fault_that_went_off_early_is_no_truth(lab: Topology) -> None:
    """When somebody else took the rule off meanwhile, there is no end record but an error."""
    windows = real_fault("dns_latency", delay_ms=60, duration_s=0.3)
    next(windows)
    for command in (["iptables", "-F"], ["ip6tables", "-F"], ["tc", "qdisc", "del", "dev", "eth0", "root"]):
        lab.spawn("dns", command, stderr=subprocess.DEVNULL).wait(10)
    with pytest.raises(CannotError, match="did not take"):
        next(windows)


def test_netem_where_the_kernel_lacks_it_falls_back(lab: Topology) -> None:
    """The mechanism is decided by what happened: netem when it could be put on, else the queue; the delay is the same."""
    delay = DnsDelay(find_target(), 80)
    delay.apply()
    try:
        present = "netem" in _ground(lab)
        assert delay.mechanism == ("netem" if present else "nfqueue")
        assert delay.verify()["delay_ms"] == pytest.approx(80, rel=_BUSY)
    finally:
        delay.undo()


def test_queue_taken_twice(lab: Topology) -> None:
    """A queue number that somebody else holds is an error, not a fault that is not there."""
    first = PacketDelayer(netns_of(lab.pids["dns"]), 2000, 10)
    first.start()
    try:
        second = PacketDelayer(netns_of(lab.pids["dns"]), 2000, 10)
        with pytest.raises(CannotError, match="queue 2000"):
            second.start()
        second.stop()
    finally:
        first.stop()


@pytest.mark.parametrize(
    "data",
    [
        {"unexpected": 1},
        {"netns_inode": 1, "netns_path": "/", "undo": [["rm", "-r", "x"]]},
        {"netns_inode": 1, "netns_path": "/", "undo": [[]]},
    ],
)
def test_record_with_foreign_content(lab_ground: None, traces: Traces, data: dict[str, object]) -> None:
    """A stale record that does not say how to undo, or names another program, is reported with its place, kept and not run."""
    child = subprocess.Popen(["true"])
    child.wait()
    record = write_record("injection", "x1", data)
    record.path.write_text(record.path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child.pid}'))
    with pytest.raises(InputError, match="not an undo record") as caught:
        recover_stale()
    assert caught.value.source == str(record.path)
    assert record.path.exists()


def test_find_namespace_by_inode(lab: Topology) -> None:
    """A namespace is found again through any process in it, and not when it is gone."""
    inode = netns_inode(netns_of(lab.pids["dns"]))
    found = find_netns(inode, Path("/nowhere"))
    assert found is not None
    assert netns_inode(found) == inode
    assert find_netns(1) is None
