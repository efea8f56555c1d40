"""Faults of TCP: loss by counters of the kernel, delay by another clock, a peer that is cut off."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import ground, injector, injector_files
from lab_traces import Traces

from libslo.errors import CannotError, InputError
from libslo.lab.faults import network
from libslo.lab.faults.trials import unusable
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.topology import ADDRESSES, Topology

_ECHO = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], 9000), backlog=100)
def serve(one):
    while data := one.recv(4096):
        one.sendall(data)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
# Connections at once, some exchanges each; how long each exchange took, and how many connections failed.
_ASK = """
import json, socket, sys, threading, time
took, failed = [], []
def run():
    try:
        with socket.create_connection((sys.argv[1], 9000), float(sys.argv[4])) as one:
            for _ in range(int(sys.argv[3])):
                began = time.perf_counter()
                one.sendall(b"x" * 400)
                one.recv(4096)
                took.append((time.perf_counter() - began) * 1e3)
    except OSError:
        failed.append(1)
threads = [threading.Thread(target=run) for _ in range(int(sys.argv[2]))]
[one.start() for one in threads]
[one.join() for one in threads]
print(json.dumps([took, len(failed)]))
"""


@pytest.fixture
def lab(traces: Traces) -> object:
    """Namespaces with an echo server in two of them."""
    with Topology() as topology:
        for role in ("llm", "retrieval"):
            echo = topology.spawn(role, [sys.executable, "-c", _ECHO, ADDRESSES[role]], stdout=subprocess.PIPE)
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            echo.stdout.close()
        yield topology


def _ask(lab: Topology, server: str, connections: int, exchanges: int, timeout_s: float = 20) -> tuple[list[float], int]:
    command = [sys.executable, "-c", _ASK, ADDRESSES[server], str(connections), str(exchanges), str(timeout_s)]
    took_ms, failed = json.loads(lab.spawn("app", command, stdout=subprocess.PIPE).communicate(timeout=60)[0])
    return took_ms, failed


def _tcp_counts(lab: Topology, role: str) -> dict[str, int]:
    text = call_in_netns(netns_of(lab.pids[role]), lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return {name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}


def _datagrams(lab: Topology, sender: str, receiver: str) -> int:
    """How many of five datagrams arrive."""
    with (
        call_in_netns(netns_of(lab.pids[receiver]), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener,
        call_in_netns(netns_of(lab.pids[sender]), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one,
    ):
        listener.bind((ADDRESSES[receiver], 9001))
        listener.settimeout(0.3)
        for _ in range(5):
            one.sendto(b"x", (ADDRESSES[receiver], 9001))
        count = 0
        try:
            while listener.recv(10):
                count += 1
        except TimeoutError:
            pass
    return count


@pytest.mark.slow
def test_loss_is_retransmitted_by_both_sides(lab: Topology, state: Path) -> None:
    """With 20 % lost, both ends send again, as after a real loss; before and after nobody does."""
    before = ground(lab, "app")
    took_ms, _ = _ask(lab, "llm", 10, 10)
    assert (_tcp_counts(lab, "app")["RetransSegs"], len(took_ms)) == (0, 100)
    fault = injector("packet_loss", ratio=0.2)
    fault.apply()
    try:
        counts = {role: _tcp_counts(lab, role) for role in ("app", "llm")}
        took_ms, failed = _ask(lab, "llm", 20, 10)
        again = {role: _tcp_counts(lab, role)["RetransSegs"] - counts[role]["RetransSegs"] for role in counts}
        measured = fault.verify()
    finally:
        fault.undo()
    assert failed <= 2  # of 20 connections: with every fifth packet lost one may run out of time
    sent = 20 * 13  # per connection a SYN, ten requests, an acknowledgement and a FIN, at least
    assert again["app"] > 0.1 * sent, again
    assert again["llm"] > 0.05 * sent, again
    assert sum(value > 150 for value in took_ms) > 10  # a retransmission waits 200 ms
    assert 0.05 < measured["unanswered_ratio"] < 0.75  # 36 % are lost on one of the ways
    assert ground(lab, "app") == before
    again_after = _tcp_counts(lab, "app")["RetransSegs"]
    took_ms, _ = _ask(lab, "llm", 10, 10)
    assert (_tcp_counts(lab, "app")["RetransSegs"], len(took_ms)) == (again_after, 100)
    assert injector_files(state) == []


def test_partition_cuts_one_peer_off(lab: Topology, state: Path) -> None:
    """The peer cannot be reached in either direction and by no protocol; others can."""
    before = ground(lab, "app")
    fault = injector("partition", peer="llm")
    fault.apply()
    try:
        assert _ask(lab, "llm", 3, 1, 1)[1] == 3
        assert len(_ask(lab, "retrieval", 3, 1, 1)[0]) == 3
        # a DROP on the way out would tell the sender: PermissionError
        assert _datagrams(lab, "llm", "app") == _datagrams(lab, "app", "llm") == 0
        assert _datagrams(lab, "retrieval", "app") == _datagrams(lab, "app", "retrieval") == 5
        assert fault.verify() == {"unanswered_ratio": 1.0, "probes": 40}
    finally:
        fault.undo()
    assert len(_ask(lab, "llm", 3, 1, 1)[0]) == 3
    assert ground(lab, "app") == before
    assert injector_files(state) == []


def test_partition_needs_a_peer(lab: Topology) -> None:
    """A peer that is no role and no address is refused with those that there are, before anything is done."""
    with pytest.raises(InputError, match="no peer 'moon'") as caught:
        injector("partition", peer="moon").apply()
    assert "llm" in str(caught.value.hint)


@pytest.mark.parametrize("mechanism", [None, "nfqueue"])
def test_packet_delay(lab: Topology, mechanism: str | None) -> None:
    """Every exchange takes 100 ms longer, by the client's clock, as the injector says."""
    before = ground(lab, "app")
    quick_ms = min(_ask(lab, "llm", 3, 3)[0])
    fault = injector("packet_delay", mechanisms=[mechanism] if mechanism else None, delay_ms=100)
    fault.apply()
    try:
        added_ms = min(_ask(lab, "llm", 3, 3)[0]) - quick_ms
        measured = fault.verify()
    finally:
        fault.undo()
    assert added_ms == pytest.approx(100, rel=0.05)
    assert measured["delay_ms"] == pytest.approx(100, rel=0.4)
    assert ground(lab, "app") == before


@pytest.mark.slow
def test_loss_and_delay_at_once(lab: Topology) -> None:
    """Two faults of one namespace both work, and each is undone without the other."""
    before = ground(lab, "app")
    delay, loss = injector("packet_delay", delay_ms=50), injector("packet_loss", ratio=0.2)
    delay.apply()
    with_delay = ground(lab, "app")
    loss.apply()
    took_ms, _ = _ask(lab, "llm", 20, 5)
    assert min(took_ms) >= 50
    assert sum(value > 250 for value in took_ms) > 5
    loss.undo()
    assert ground(lab, "app") == with_delay
    assert min(_ask(lab, "llm", 3, 3)[0]) >= 50
    delay.undo()
    assert ground(lab, "app") == before


def test_nftables_where_the_kernel_lacks_queue_falls_back(lab: Topology) -> None:
    """The mechanism is decided by what happened: nftables when it could be put on, else iptables."""
    fault = injector("packet_loss", ratio=0.5)
    fault.apply()
    try:
        assert fault.mechanism == ("nftables" if "slo_" in ground(lab, "app") else "iptables")
        fault.verify()
    finally:
        fault.undo()


@pytest.mark.parametrize(
    ("fault", "parameters", "rules"),
    [
        ("packet_loss", {"ratio": 0.2}, 2),
        ("partition", {"peer": "llm"}, 2),
        ("partition", {"peer": "fd00::1", "ratio": 0.5}, 2),
        ("dns_loss", {"ratio": 0.3}, 1),
    ],
)
def test_nftables_rules(lab: Topology, monkeypatch: pytest.MonkeyPatch, fault: str, parameters: dict[str, float | str], rules: int) -> None:
    """nft takes the rules, they are seen as there, and undo() removes all of them. Where its queue verdict lacks, a drop stands in."""
    before, real = ground(lab, "app"), network.run_in_netns

    def without_queue(netns: Path, command: list[str], stdin: str | None = None) -> str:
        return real(netns, command, stdin=re.sub(r"queue num \d+", "drop", stdin) if stdin else None)

    if unusable("nftables"):
        monkeypatch.setattr(network, "run_in_netns", without_queue)
    one = injector(fault, role="app", mechanisms=["nftables"], **parameters)
    one.apply()
    try:
        one.check_presence()  # type: ignore[attr-defined]
        listed = call_in_netns(netns_of(lab.pids["app"]), lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True))
        assert listed.count("counter packets") == rules
    finally:
        one.undo()
    assert ground(lab, "app") == before


def test_what_cannot_be_looked_at_is_not_begun(lab: Topology, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not ask what is on may not take it off: exit 3 with the reason, no rule, and no record that blocks all others."""
    before = ground(lab, "app")
    monkeypatch.setattr(network, "is_on", lambda step: True)
    with pytest.raises(CannotError, match="cannot tell what is on there already: "):
        injector("packet_loss", ratio=0.5).apply()
    assert ground(lab, "app") == before and injector_files(state) == []


def test_loss_whose_rule_has_gone(lab: Topology) -> None:
    """When somebody flushed the rules, verify() says so."""
    fault = injector("packet_loss", mechanisms=["iptables"], ratio=0.5)
    fault.apply()
    lab.spawn("app", ["iptables", "-t", "raw", "-F"]).wait(10)
    with pytest.raises(CannotError, match="packet_loss did not take: not there any more: iptables"):
        fault.verify()
    fault.undo()
    fault.undo()


def test_nothing_but_loopback_is_spared(lab: Topology) -> None:
    """With everything lost, a service still reaches itself; that is how faults of services are controlled."""
    fault = injector("packet_loss", role="llm", ratio=0.9)
    fault.apply()
    try:
        command = [sys.executable, "-c", _ASK, ADDRESSES["llm"], "5", "5", "1"]
        took_ms, failed = json.loads(lab.spawn("llm", command, stdout=subprocess.PIPE).communicate(timeout=30)[0])
    finally:
        fault.undo()
    assert (len(took_ms), failed) == (25, 0)
    assert max(took_ms) < 150
