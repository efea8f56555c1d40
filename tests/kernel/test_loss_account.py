"""The loss account closes exactly: under overflow, rate limit, filters and full maps."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_harness import Namespace, Recording, finish, first_line, run_plan, server

from libslo.kernel.account import Account, account_from_cpus

CONNECTS = 700


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup2 directory with a child in it."""
    from libslo.host import cgroup2_mount

    root = cgroup2_mount()
    assert root is not None
    parent = root / f"slo-test-{os.getpid()}"
    (parent / "child").mkdir(parents=True)
    yield parent
    (parent / "child").rmdir()
    parent.rmdir()


def refused(namespace: Namespace, count: int = CONNECTS) -> int:
    """Make exactly `count` failing connects; the pid that made them."""
    pid, results = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 9}] * count)
    assert len(results) == count
    return pid


def test_cpus_are_summed() -> None:
    """The per-CPU structs add up, counter by counter."""
    account = account_from_cpus(struct.pack("<10Q", 10, 4, 3, 2, 1, 1, 1, 0, 0, 0))
    assert account == Account(11, 5, 3, 2, 1)
    assert account.closes
    assert not Account(attempts=1).closes
    assert Account(1, 1) + Account(2, 0, 2) == Account(3, 1, 2)


def test_an_overflowing_ring_is_counted(namespace: Namespace) -> None:
    """With the smallest ring and nobody reading, what does not fit is counted as dropped, and the rest is read at the end."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    client = namespace.start("tcp_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([{"host": "127.0.0.1", "port": 9}] * CONNECTS) + "\n")
    client.stdin.flush()
    first_line(client)
    with Session(CaptureSettings(signals=("connect_errors_total",), pids=(client.pid,), ring_bytes=4096)) as session:
        finish(client, "go")
        events = session.detach()
        (entry,) = session.report(final=True)["signals"]
    account = entry["account"]
    assert account["attempts"] - account["filtered"] == CONNECTS
    assert account["emitted"] == entry["drained"] == len(events) == 4096 // 136
    assert account["dropped"] == CONNECTS - len(events)


def test_the_rate_limit_is_counted(namespace: Namespace) -> None:
    """Beyond the limit of a cgroup and second, events are counted as rate limited: none is lost from the account."""
    client = namespace.start("tcp_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([{"host": "127.0.0.1", "port": 9}] * CONNECTS) + "\n")
    client.stdin.flush()
    first_line(client)
    with Recording(signals=("connect_errors_total",), pids=(client.pid,), rate_limit=10) as recording:
        begun = time.monotonic()
        finish(client, "go")
        seconds = int(time.monotonic() - begun) + 2
    account = recording.account("connect_errors_total")
    assert account["emitted"] + account["rate_limited"] == CONNECTS
    assert 10 <= account["emitted"] == len(recording.events) <= 12 * seconds


def test_the_threshold_is_counted(namespace: Namespace) -> None:
    """Successful waits below --min-latency are filtered and counted; failures pass."""
    plan = [{"host": "127.0.0.1", "port": 8080}] * 50 + [{"host": "127.0.0.1", "port": 9}] * 5
    with server(namespace, "tcp_server.py", 8080), Recording(min_latency_ms=60_000) as recording:
        pid, _ = run_plan(namespace, "tcp_client.py", plan)
    assert recording.of("connect_latency_ms", pid) == []
    assert len(recording.of("connect_errors_total", pid)) == 5
    assert recording.account("connect_latency_ms")["filtered"] >= 50


def test_the_pid_filter_is_counted(namespace: Namespace) -> None:
    """Events of processes not asked for are filtered and counted."""
    with Recording(signals=("connect_errors_total",), pids=(1,)) as recording:
        refused(namespace, 40)
    assert recording.events == []
    account = recording.account("connect_errors_total")
    assert account["filtered"] == account["attempts"] >= 40


def test_the_comm_filter(namespace: Namespace) -> None:
    """--comm passes the threads with exactly this name."""
    with Recording(signals=("connect_errors_total",), comm="no-such-name") as other:
        refused(namespace, 5)
    assert other.events == []
    assert other.account("connect_errors_total")["filtered"] >= 5
    with Recording(signals=("connect_errors_total",), comm=Path(sys.executable).name[:15]) as recording:
        pid = refused(namespace, 5)
    assert len(recording.of("connect_errors_total", pid)) == 5


def test_all_cgroups_of_a_signal_share_its_own_limit(namespace: Namespace, cgroup: Path) -> None:
    """Two cgroups that each keep to theirs get no more than the signal's limit together, and every other event is counted."""
    enter = ("sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh")
    plan = [{"host": "127.0.0.1", "port": 9}] * 200
    begun = time.monotonic()
    with Recording(signals=("connect_errors_total",), rate_limit=100_000, signal_rate_limit=50) as recording:
        inside, _ = run_plan(namespace, "tcp_client.py", plan, prefix=enter)
        run_plan(namespace, "tcp_client.py", plan)
    took_s = time.monotonic() - begun
    account = recording.account("connect_errors_total")
    assert 50 <= account["emitted"] <= 51 + 50 * took_s
    assert account["rate_limited"] == account["attempts"] - account["emitted"] >= 200
    assert recording.of("connect_errors_total", inside)


@pytest.mark.parametrize("below", ["", "child"])
def test_the_cgroup_filter(namespace: Namespace, cgroup: Path, below: str) -> None:
    """--cgroup passes what runs in that cgroup or in one below it, and nothing else; DNS, connects and retransmits alike."""
    namespace.run("iptables", "-A", "INPUT", "-d", "127.0.0.9", "-j", "DROP")
    enter = ("sh", "-c", f'echo $$ > {cgroup / below}/cgroup.procs; exec "$@"', "sh")
    plan = [{"host": "127.0.0.1", "port": 9}, {"host": "127.0.0.9", "port": 9, "give_up_s": 1.3}]
    query = [
        {"family": 4, "connected": True, "together": False, "server": "127.0.0.1", "queries": [{"txid": 1, "name": "nx.test", "qtype": 1}]}
    ]
    with server(namespace, "dns_server.py"), Recording(cgroups=(cgroup,)) as recording:
        inside, _ = run_plan(namespace, "tcp_client.py", plan, prefix=enter)
        asked, _ = run_plan(namespace, "dns_client.py", [query, 5.0, 0.0], prefix=enter)
        refused(namespace, 3)
        run_plan(namespace, "dns_client.py", [query, 5.0, 0.0])
    assert {(event["signal"], event["pid"]) for event in recording.events} == {
        ("connect_errors_total", inside), ("tcp_retransmits_total", inside), ("dns_latency_ms", asked),
    }  # fmt: skip
    assert {event["attributes"]["cgroup_id"] for event in recording.events} == {(cgroup / below).stat().st_ino}
    for signal in ("connect_errors_total", "dns_latency_ms"):
        assert recording.account(signal)["filtered"] >= 1


def test_a_full_map_of_starts_is_counted(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that finds no room among the open ones is an attempt that was dropped; the others time out, and the account closes."""
    from libslo.kernel import libbpf

    load = libbpf.BpfObject.load

    def load_small(self: libbpf.BpfObject) -> None:
        if self.path.name.startswith("dns"):
            self.set_max_entries("dns_starts", 64)
        load(self)

    monkeypatch.setattr(libbpf.BpfObject, "load", load_small)
    queries = [{"txid": number, "name": "drop.test", "qtype": 1} for number in range(200)]
    plan = [{"family": 4, "connected": True, "together": True, "server": "127.0.0.1", "queries": queries}]
    client = namespace.start("dns_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([plan, 0.1, 0.0]) + "\n")
    client.stdin.flush()
    first_line(client)
    with (
        server(namespace, "dns_server.py"),
        Recording(signals=("dns_latency_ms",), pids=(client.pid,), dns_timeout_ns=300_000_000) as recording,
    ):
        finish(client, "go")
        time.sleep(1.5)
    account = recording.account("dns_latency_ms")
    assert account["emitted"] == len(recording.events)
    assert 0 < account["emitted"] <= 64
    assert account["emitted"] + account["dropped"] == 200


def test_entries_are_freed_on_every_path(namespace: Namespace) -> None:
    """After answers, failures, time-outs and closed sockets, no start is left in the map."""
    from libslo.kernel.libbpf import map_lookup_batch
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    names = ["d5.test", "nx.test", "drop.test", "sf.test"]
    plan = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1",
             "queries": [{"txid": index, "name": name, "qtype": 1} for index, name in enumerate(names)]}]  # fmt: skip
    client = namespace.start("dns_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([plan, 0.3, 0.0]) + "\n")
    client.stdin.flush()
    first_line(client)
    settings = CaptureSettings(signals=("dns_latency_ms",), pids=(client.pid,), dns_timeout_ns=200_000_000)
    with server(namespace, "dns_server.py"), Session(settings) as session:
        finish(client, "go")
        assert len(session.drain()) == 3
        time.sleep(0.2)
        assert len(session.sweep()) == 1
        assert session.sweep() == []
        assert map_lookup_batch(session.probes()[0].object.map_fd("dns_starts"), 32, 80, 16384)[2] == 0
