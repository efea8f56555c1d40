"""connect_latency_ms and connect_errors_total on the real kernel."""

from __future__ import annotations

import errno
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import Namespace, Recording, finish, first_line, run_plan, server, start_inline

SIGNALS = ("connect_latency_ms", "connect_errors_total")
DROPPED = "127.0.0.9"


@pytest.fixture(params=["inet_sock_set_state", "sock_ops"])
def variant(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each variant in turn, for both signals."""
    return dict.fromkeys(SIGNALS, request.param)


def drop(namespace: Namespace, host: str = DROPPED) -> None:
    namespace.run("iptables", "-A", "INPUT", "-d", host, "-j", "DROP")


def test_a_thousand_parallel_connects(namespace: Namespace, variant: dict[str, str]) -> None:
    """Of 1,000 non-blocking connects 700 succeed, 200 are refused, 100 given up: each is one event, with the right pid, port and errno."""
    drop(namespace)
    plan: list[dict[str, Any]] = [{"host": ("127.0.0.1", "::1")[index % 2], "port": 8080} for index in range(700)]
    plan += [{"host": ("127.0.0.1", "::1")[index % 2], "port": 9} for index in range(200)]
    plan += [{"host": DROPPED, "port": 8080, "give_up_s": 0.4} for _ in range(100)]
    with server(namespace, "tcp_server.py", 8080), Recording(signals=SIGNALS, variants=variant) as recording:
        pid, results = run_plan(namespace, "tcp_client.py", plan)
    by_end = {(result["host"], result["local_port"]): result for result in results if not result["errno"]}
    events = recording.of("connect_latency_ms", pid)
    assert len(by_end) == len(events) == 700
    assert {(event["conn_tuple"]["dst_ip"], event["conn_tuple"]["src_port"]) for event in events} == set(by_end)
    for event in events:
        result = by_end[event["conn_tuple"]["dst_ip"], event["conn_tuple"]["src_port"]]
        assert 0 < event["value"] <= result["elapsed_ms"]
        assert event["tid"] == pid
    failed = recording.of("connect_errors_total", pid)
    refused = [event for event in failed if event["errno"] == errno.ECONNREFUSED]
    given_up = [event for event in failed if event["errno"] == errno.ECANCELED]
    assert (len(failed), len(refused), len(given_up)) == (300, 200, 100)
    assert {event["conn_tuple"]["dst_port"] for event in refused} == {9}
    assert {event["conn_tuple"]["dst_ip"] for event in given_up} == {DROPPED}
    assert all(event["status"] == "error" and event["value"] == 1 and event["conn_tuple"]["src_port"] for event in failed)
    assert all(event["attributes"]["connect.outcome"] == "given up by the application" for event in given_up)
    # The client's 400 ms begin before its event loop gets round to connect(), so the kernel sees less, never more than the client.
    longest_ms = max(result["elapsed_ms"] for result in results)
    assert all(50 <= event["attributes"]["connect.elapsed_ms"] <= longest_ms for event in given_up)
    assert recording.account("connect_latency_ms")["emitted"] >= 700
    assert recording.account("connect_errors_total")["emitted"] >= 300


def test_the_kernels_own_timeout_is_etimedout(namespace: Namespace, variant: dict[str, str]) -> None:
    """A connect that the kernel gives up on is one error event with ETIMEDOUT and its whole wait."""
    drop(namespace)
    namespace.run("sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
    with Recording(signals=SIGNALS, variants=variant) as recording:
        pid, results = run_plan(namespace, "tcp_client.py", [{"host": DROPPED, "port": 80}])
    event = recording.only("connect_errors_total", pid)
    assert (event["errno"], results[0]["errno"]) == (errno.ETIMEDOUT, errno.ETIMEDOUT)
    assert abs(event["attributes"]["connect.elapsed_ms"] - results[0]["elapsed_ms"]) < 100


def test_an_icmp_error_ends_the_wait(namespace: Namespace, variant: dict[str, str]) -> None:
    """A connect that a router refuses is one error event; sock_ops says that it cannot see why, and invents no errno."""
    # The first SYN is lost: an error that came while connect() still holds the socket would only be a soft one.
    first = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
    namespace.run("iptables", "-A", "INPUT", "-d", DROPPED, *first, "-j", "DROP")
    namespace.run("iptables", "-A", "INPUT", "-d", DROPPED, "-j", "REJECT", "--reject-with", "icmp-host-unreachable")
    with Recording(signals=SIGNALS, variants=variant) as recording:
        pid, results = run_plan(namespace, "tcp_client.py", [{"host": DROPPED, "port": 80}])
    event = recording.only("connect_errors_total", pid)
    assert results[0]["errno"] == errno.EHOSTUNREACH
    seen = (event.get("errno"), event["attributes"]["connect.outcome"], event["status"])
    if variant["connect_errors_total"] == "sock_ops":
        assert seen == (None, "failed, reason not visible", "error")
    else:
        assert seen == (errno.EHOSTUNREACH, "unreachable", "error")
    assert abs(event["attributes"]["connect.elapsed_ms"] - results[0]["elapsed_ms"]) < 100


def test_a_delayed_connect_is_measured(namespace: Namespace, variant: dict[str, str]) -> None:
    """A connect whose first SYN is lost takes the retransmission's second, in the event as on the client's clock."""
    namespace.run(
        "iptables",
        "-A",
        "INPUT",
        "-p",
        "tcp",
        "--syn",
        "-d",
        "127.0.0.1",
        "-m",
        "statistic",
        "--mode",
        "nth",
        "--every",
        "2",
        "--packet",
        "0",
        "-j",
        "DROP",
    )
    with server(namespace, "tcp_server.py", 8080), Recording(signals=SIGNALS, variants=variant) as recording:
        pid, results = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 8080}])
    event = recording.only("connect_latency_ms", pid)
    assert 990 <= event["value"] <= results[0]["elapsed_ms"]
    assert results[0]["elapsed_ms"] - event["value"] < 50
    assert event["status"] == "error"


def test_an_injected_200_ms_is_measured(namespace: Namespace, variant: dict[str, str]) -> None:
    """23 connects whose SYN-ACKs are held for 200 ms are 23 waits within 5 % of the client's clock, none longer than there."""
    from libslo.lab.nfqueue import PacketDelayer

    script = """
import json, socket, sys, time
print("ready", flush=True); sys.stdin.readline()
waits = []
for _ in range(23):
    with socket.socket() as sock:
        begun = time.monotonic_ns()
        sock.connect(("127.0.0.1", 8080))
        waits.append((time.monotonic_ns() - begun) / 1e6)
print(json.dumps(waits))
"""
    namespace.run("iptables", "-A", "INPUT", "-p", "tcp", "--tcp-flags", "SYN,ACK", "SYN,ACK", "-j", "NFQUEUE", "--queue-num", "7")
    delayer = PacketDelayer(Path(namespace.path), 7, 200)
    delayer.start()
    try:
        with server(namespace, "tcp_server.py", 8080), Recording(signals=SIGNALS, variants=variant) as recording:
            client = start_inline(namespace, script)
            assert first_line(client) == "ready"
            theirs = finish(client, "go")
    finally:
        delayer.stop()
    ours = [event["value"] for event in recording.of("connect_latency_ms", client.pid)]
    apart = statistics.median(abs(one - other) / other for one, other in zip(ours, theirs, strict=True))
    print(
        f"{variant['connect_latency_ms']}: {statistics.median(ours):.2f} ms, client {statistics.median(theirs):.2f} ms, apart {apart:.2%}"
    )
    assert len(ours) == 23
    assert apart <= 0.05
    assert all(one <= other for one, other in zip(ours, theirs, strict=True))
    assert min(ours) >= 199


def test_a_reused_socket_starts_anew(namespace: Namespace, variant: dict[str, str]) -> None:
    """A socket that was refused and connects again is two attempts with two waits."""
    script = """
import socket, sys
listener = socket.socket(); listener.bind(("127.0.0.1", 8081))
print("ready", flush=True); sys.stdin.readline()
sock = socket.socket()
try:
    sock.connect(("127.0.0.1", 8081))
except ConnectionRefusedError:
    pass
listener.listen()
sock.connect(("127.0.0.1", 8081))
print("[]")
"""
    with Recording(signals=SIGNALS, variants=variant) as recording:
        client = start_inline(namespace, script)
        time.sleep(0.2)
        client.communicate("go\n")
    assert len(recording.of("connect_errors_total", client.pid)) == 1
    assert len(recording.of("connect_latency_ms", client.pid)) == 1


def test_only_wanted_signals_are_written(namespace: Namespace, variant: dict[str, str]) -> None:
    """One of the two signals of the object can be asked for alone."""
    with server(namespace, "tcp_server.py", 8080), Recording(signals=("connect_errors_total",), variants=variant) as recording:
        pid, _ = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 8080}, {"host": "127.0.0.1", "port": 9}])
    assert [event["signal"] for event in recording.events if event["pid"] == pid] == ["connect_errors_total"]
    assert [entry["signal"] for entry in recording.reports[-1]["signals"]] == ["connect_errors_total"]
