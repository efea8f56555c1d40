"""Faults of DNS: their size by another clock or another library, and what is not touched."""

from __future__ import annotations

import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fault_runs import ground, injector, injector_files
from lab_traces import Traces

from libslo.errors import CannotError
from libslo.lab.faults import base as module
from libslo.lab.faults import network, undo
from libslo.lab.faults.dns_packets import internet_checksum, servfail
from libslo.lab.faults.probes import measure_dns_ms
from libslo.lab.faults.targets import find_target
from libslo.lab.netns import netns_of
from libslo.lab.nfqueue import PacketDelayer
from libslo.lab.topology import ADDRESSES, Topology

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
# Counts the rcodes of some queries, one after the other; -1: no answer.
_RCODES = """
import sys, dns.exception, dns.message, dns.query
for number in range(int(sys.argv[2])):
    try:
        answer = dns.query.udp(dns.message.make_query("rag.lab", "A"), sys.argv[1], timeout=float(sys.argv[3]))
        print(answer.rcode())
    except dns.exception.Timeout:
        print(-1)
"""


@pytest.fixture
def lab(named_lab: Topology) -> Topology:
    """Namespaces with the name server in them."""
    return named_lab


def _asked_ms(lab: Topology, count: int) -> list[float]:
    command = [sys.executable, "-c", _DNS_CLIENT, ADDRESSES["dns"], str(count)]
    return [float(word) for word in lab.spawn("client", command, stdout=subprocess.PIPE).communicate(timeout=60)[0].split()]


def test_delay_by_the_clients_clock(lab: Topology, traces: Traces) -> None:
    """200 ms asked are 200 ms within 5 % by a DNS client's own clock, as the injector says; none before, none after.

    The quickest of nine is compared: a busy machine can only add to a wait.
    """
    before = ground(lab)
    delay = injector("dns_delay", delay_ms=200)
    before_ms = min(_asked_ms(lab, 9))
    delay.apply()
    assert ground(lab) != before
    added_ms = min(_asked_ms(lab, 9)) - before_ms
    measured = delay.verify()
    delay.undo()
    after_ms = min(_asked_ms(lab, 9))
    assert added_ms == pytest.approx(200, rel=0.05)
    assert measured["delay_ms"] == pytest.approx(200, rel=_BUSY)
    assert before_ms < 20
    assert after_ms < 20
    assert ground(lab) == before
    assert injector_files(traces._state) == []


def test_many_packets_wait_at_once(lab: Topology) -> None:
    """Two hundred queries at the same time are each delayed by the same 200 ms: they do not wait for one another."""
    delay = injector("dns_delay", delay_ms=200)
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
    delay = injector("dns_delay", mechanisms=["nfqueue"], delay_ms=5000)
    delay.before = lambda: None  # type: ignore[method-assign]  # its probes would wait 5 s
    delay.apply()
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.extend(measure_dns_ms(netns_of(lab.pids["client"]), ADDRESSES["dns"], "rag.lab", 3)))
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
    delay = injector("dns_delay", delay_ms=200)
    delay.apply()
    try:
        said = lab.spawn("client", [sys.executable, "-c", ask, ADDRESSES["dns"]], stdout=subprocess.PIPE).communicate(timeout=20)[0]
    finally:
        delay.undo()
        echo.stdout.close()
    assert float(said) < 150


def test_target_by_pid_and_path(lab: Topology) -> None:
    """A namespace given by pid or path is delayed too; the delay is then measured on the packets that passed."""
    pid = lab.pids["dns"]
    places = [find_target("dns_delay", target) for target in (f"pid:{pid}", str(pid), f"/proc/{pid}/ns/net", None)]
    assert len({place.netns for place in places}) == len({place.key for place in places}) == 1
    delay = injector("dns_delay", f"pid:{pid}", ["nfqueue"], delay_ms=100)
    delay.apply()
    try:
        assert delay.verify() == {}
        _asked_ms(lab, 3)
        assert delay.verify()["delay_ms"] == pytest.approx(100, rel=_BUSY)
    finally:
        delay.undo()


def test_missing_iptables(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iptables the error names the package, and nothing is left."""
    before, real = ground(lab), shutil.which
    monkeypatch.setattr(module.shutil, "which", lambda program: None if program.endswith("tables") else real(program))
    with pytest.raises(CannotError, match="iptables is not installed") as caught:
        injector("dns_delay", mechanisms=["nfqueue"], delay_ms=100).apply()
    assert caught.value.hint == "apt-get install iptables"
    monkeypatch.undo()
    assert ground(lab) == before


def test_refused_rule_leaves_nothing(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second of two rules is refused, the first is taken back and so is the record."""
    before, real = ground(lab), network.run_in_netns

    def refuse(netns: Path, command: list[str]) -> str:
        if command[0] == "ip6tables":
            raise CannotError("ip6tables failed: Permission denied")
        return real(netns, command)

    monkeypatch.setattr(network, "run_in_netns", refuse)
    with pytest.raises(CannotError, match="Permission denied"):
        injector("dns_delay", mechanisms=["nfqueue"], delay_ms=100).apply()
    assert ground(lab) == before
    assert injector_files(traces._state) == []


def test_undo_that_fails_is_said(lab: Topology, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a rule cannot be taken off, the error names it with the command to do it, and the record stays."""
    delay = injector("dns_delay", mechanisms=["nfqueue"], delay_ms=50)
    delay.apply()
    real = subprocess.run

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return real(["false"] if "-D" in command else command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(undo.subprocess, "run", refuse)
    with pytest.raises(CannotError, match="cannot take the fault off: dns_delay") as caught:
        delay.undo()
    assert str(caught.value.hint).startswith("nsenter --net=")
    assert "iptables" in str(caught.value.hint)
    assert any(name.startswith("injection") for name in traces.files())
    monkeypatch.undo()
    delay.undo()
    assert traces.files() == [name for name in traces.files() if not name.startswith("injection")]


def test_netem_where_the_kernel_lacks_it_falls_back(lab: Topology) -> None:
    """The mechanism is decided by what happened: netem when it could be put on, else the queue; the delay is the same."""
    delay = injector("dns_delay", delay_ms=80)
    delay.apply()
    try:
        present = "netem" in ground(lab)
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


def _rcodes(lab: Topology, count: int, timeout_s: float = 5) -> list[int]:
    command = [sys.executable, "-c", _RCODES, ADDRESSES["dns"], str(count), str(timeout_s)]
    return [int(word) for word in lab.spawn("client", command, stdout=subprocess.PIPE).communicate(timeout=120)[0].split()]


def test_servfail_by_another_client(lab: Topology, state: Path) -> None:
    """Half of the answers are SERVFAIL for a client with a library of its own, which checks their checksums; all come; none after."""
    before = ground(lab)
    fault = injector("dns_servfail", ratio=0.5)
    fault.apply()
    try:
        rcodes = _rcodes(lab, 60, 1)
        measured = fault.verify()
    finally:
        fault.undo()
    assert set(rcodes) == {0, 2}
    assert 12 <= rcodes.count(2) <= 48  # of 60 at one half: outside only once in a million
    assert measured["changed_packets"] >= rcodes.count(2)
    assert 0 < measured["failed_ratio"] <= 1
    assert ground(lab) == before
    assert set(_rcodes(lab, 10)) == {0}
    assert injector_files(state) == []


def test_servfail_that_did_not_take(lab: Topology) -> None:
    """When its rule has gone, verify() says so."""
    fault = injector("dns_servfail", ratio=1)
    fault.apply()
    lab.spawn("dns", ["iptables", "-t", "mangle", "-F"]).wait(10)
    with pytest.raises(CannotError, match="dns_servfail did not take"):
        fault.verify()
    fault.undo()


def test_dns_loss(lab: Topology, state: Path) -> None:
    """Half of the answers never come; all come after."""
    before = ground(lab)
    fault = injector("dns_loss", ratio=0.5)
    fault.apply()
    try:
        rcodes = _rcodes(lab, 40, 0.1)
        measured = fault.verify()
    finally:
        fault.undo()
    assert set(rcodes) == {0, -1}
    assert 6 <= rcodes.count(-1) <= 34
    assert 0 < measured["unanswered_ratio"] <= 1
    assert ground(lab) == before
    assert set(_rcodes(lab, 10, 1)) == {0}
    assert injector_files(state) == []


@pytest.mark.slow
def test_delay_servfail_and_loss_at_once(lab: Topology) -> None:
    """Three faults of one server do not hide one another: answers are late, and some of them failed or lost."""
    before = ground(lab)
    faults = [injector("dns_delay", delay_ms=100), injector("dns_servfail", ratio=0.5), injector("dns_loss", ratio=0.3)]
    try:
        for fault in faults:
            fault.apply()
        for fault in faults:
            fault.verify()
        rcodes = _rcodes(lab, 30, 1)
        late_ms = measure_dns_ms(netns_of(lab.pids["client"]), ADDRESSES["dns"], "rag.lab", 20, 2)
    finally:
        for fault in faults:
            fault.undo()
    assert set(rcodes) == {0, 2, -1}
    assert min(late_ms) >= 100
    assert ground(lab) == before


def _udp_sum(packet: bytes) -> int:
    """The complement of the sum over pseudo header and datagram, with the checksum that is in it: 0 when that is right."""
    if packet[0] >> 4 == 4:
        datagram = packet[20:]
        return internet_checksum(packet[12:20] + b"\0\x11" + struct.pack(">H", len(datagram)) + datagram)
    datagram = packet[40:]
    return internet_checksum(packet[8:40] + struct.pack(">I", len(datagram)) + b"\0\0\0\x11" + datagram)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tail", [b"", b"x"])
def test_servfail_of_a_packet(version: int, tail: bytes) -> None:
    """rcode 2, all other bytes as they were but the checksum, which is right, for both IP versions and odd lengths."""
    answer = b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + b"\3rag\3lab\0\0\1\0\1" + tail
    udp = struct.pack(">HHHH", 53, 40000, 8 + len(answer), 0xABCD)
    ip = (
        bytes([0x45, *[0] * 8, 17, 0, 0, *[10, 0, 0, 1], *[10, 0, 0, 2]])
        if version == 4
        else bytes([0x60, 0, 0, 0, 0, 0, 17, 64, *range(32)])
    )
    changed = servfail(ip + udp + answer)
    assert changed is not None
    assert _udp_sum(changed) == 0
    start = len(ip) + 8
    assert changed[start + 3] == 0x82
    assert changed[: len(ip) + 6] + changed[start : start + 3] + changed[start + 4 :] == (ip + udp)[:-2] + answer[:3] + answer[4:]


@pytest.mark.parametrize(
    "packet", [b"", b"\x45" * 8, b"\x20" * 60, bytes([0x45, *[0] * 8, 6]) + b"\xff" * 60, bytes([0x45, *[0] * 8, 17]) + b"\0" * 60]
)
def test_what_is_no_answer_is_left_alone(packet: bytes) -> None:
    """Nothing, a piece, another version, TCP, a query: None."""
    assert servfail(packet) is None
