"""tcp_retransmits_total on the real kernel, next to the kernel's own counter."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest
from kernel_harness import Namespace, Recording, eventually, run_plan, server

from libslo.kernel.listeners import parse_listening

SIGNALS = ("tcp_retransmits_total",)
PORT = 20000 + os.getpid() % 10000  # nobody else's on this machine: not every variant can tell namespaces apart


@pytest.fixture(params=["tcp_retransmit_skb", "sock_ops"])
def variant(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each variant in turn."""
    return {"tcp_retransmits_total": request.param}


def settle(namespace: Namespace) -> None:
    """Wait until no socket is left that could send anything again."""
    eventually(lambda: not namespace.run("ss", "-Htn", "state", "connected", "exclude", "time-wait", "exclude", "fin-wait-2"))


def within(recording: Recording, namespace: Namespace, port: int = PORT) -> list[dict[str, Any]]:
    """Events of this namespace; a variant that cannot see namespaces: those of the port."""
    return [
        event
        for event in recording.events
        if event["attributes"].get("netns", namespace.inum) == namespace.inum
        and port in (event["conn_tuple"]["src_port"], event["conn_tuple"]["dst_port"])
    ]


def lose(namespace: Namespace, variant: dict[str, str], *match: str) -> None:
    """Drop 4 % of the segments; none with SYN where the variant cannot see a SYN-ACK sent again."""
    if variant.get("tcp_retransmits_total") == "sock_ops":
        match = (*match, "--tcp-flags", "SYN", "NONE")
    namespace.run(
        "iptables", "-A", "INPUT", "-p", "tcp", *match, "-m", "statistic", "--mode", "random", "--probability", "0.04", "-j", "DROP"
    )


@pytest.mark.parametrize("server_first", [False, True])
def test_lost_segments_are_charged_to_both_ends(namespace: Namespace, variant: dict[str, str], server_first: bool) -> None:
    """Under random loss in both directions, the segments equal the kernel's RetransSegs, and each end's are charged to its process.

    Whether the server listened before the agent came or not.
    """
    with contextlib.ExitStack() as stack:
        if server_first:
            listener = stack.enter_context(server(namespace, "tcp_server.py", PORT))
            recording = stack.enter_context(Recording(signals=SIGNALS, variants=variant))
        else:
            recording = stack.enter_context(Recording(signals=SIGNALS, variants=variant))
            listener = stack.enter_context(server(namespace, "tcp_server.py", PORT))
        lose(namespace, variant, "--dport", str(PORT))
        lose(namespace, variant, "--sport", str(PORT))
        before = namespace.tcp_counter("RetransSegs")
        plan = [{"host": "127.0.0.1", "port": PORT, "send_bytes": 4_000_000} for _ in range(4)]
        plan += [{"host": "127.0.0.1", "port": PORT, "get_bytes": 4_000_000} for _ in range(4)]
        pid, _ = run_plan(namespace, "tcp_client.py", plan)
        namespace.run("iptables", "-F", "INPUT")
        settle(namespace)
        counted = namespace.tcp_counter("RetransSegs") - before
    here = within(recording, namespace)
    assert {event["pid"] for event in here} == {pid, listener.pid}
    assert {event["attributes"]["owner"] for event in here if event["pid"] == pid} == {"connect"}
    assert {event["attributes"]["owner"] for event in here if event["pid"] == listener.pid} == {"listener"}
    assert len({event["service"] for event in here}) == 1  # both are the same interpreter
    assert sum(event["value"] for event in here) == counted > 5, recording.reports[-1]["signals"]
    assert recording.account("tcp_retransmits_total")["dropped"] == 0


def test_segments_are_counted_not_calls(namespace: Namespace, variant: dict[str, str]) -> None:
    """A retransmission of a large buffer counts its segments: more of them than events."""
    with server(namespace, "tcp_server.py", PORT), Recording(signals=SIGNALS, variants=variant) as recording:
        namespace.run("ip", "link", "set", "lo", "mtu", "1500")
        lose(namespace, variant, "--dport", str(PORT))
        before = namespace.tcp_counter("RetransSegs")
        run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": PORT, "send_bytes": 20_000_000} for _ in range(4)])
        namespace.run("iptables", "-F", "INPUT")
        settle(namespace)
        counted = namespace.tcp_counter("RetransSegs") - before
    values = [event["value"] for event in within(recording, namespace)]
    assert sum(values) == counted, recording.reports[-1]["signals"]
    assert max(values) > 1


def test_syn_retransmits(namespace: Namespace, variant: dict[str, str]) -> None:
    """A SYN sent again is charged to the connecting process although it happens in a timer."""
    namespace.run("iptables", "-A", "INPUT", "-d", "127.0.0.9", "-j", "DROP")
    with Recording(signals=SIGNALS, variants=variant) as recording:
        before = namespace.tcp_counter("RetransSegs")
        pid, _ = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.9", "port": 80, "give_up_s": 1.5} for _ in range(20)])
        counted = namespace.tcp_counter("RetransSegs") - before
    events = recording.of("tcp_retransmits_total", pid)
    assert len(events) == counted == 20
    assert {event["attributes"]["tcp.state"] for event in events} == {"SYN_SENT"}


def test_syn_ack_retransmits_belong_to_the_listener(namespace: Namespace) -> None:
    """A SYN-ACK sent again is charged to the process that listens."""
    with Recording(signals=SIGNALS) as recording, server(namespace, "tcp_server.py", PORT) as listener:
        namespace.run("iptables", "-A", "INPUT", "-p", "tcp", "--sport", str(PORT), "-j", "DROP")
        run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": PORT, "give_up_s": 1.6}])
    events = [event for event in recording.of("tcp_retransmits_total", listener.pid) if event["attributes"].get("tcp.synack")]
    assert events
    assert events[0]["conn_tuple"]["src_port"] == PORT
    assert events[0]["conn_tuple"]["dst_port"] > 0


def test_without_a_known_owner_nobody_is_blamed(namespace: Namespace) -> None:
    """Sockets older than the agent are charged to no process, never to whoever was interrupted."""
    with server(namespace, "tcp_server.py", PORT):
        client = namespace.start("tcp_client.py")
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(json.dumps([{"host": "127.0.0.1", "port": PORT, "send_bytes": 60000000}]) + "\n")
        client.stdin.flush()
        client.stdout.readline()
        lose(namespace, {}, "--dport", str(PORT))
        client.stdin.write("go\n")
        client.stdin.flush()
        while namespace.tcp_counter("ActiveOpens") < 1:
            pass
        with Recording(signals=SIGNALS) as recording:
            client.communicate(timeout=30)
    here = within(recording, namespace)
    assert here
    assert {(event["pid"], event["attributes"]["owner"]) for event in here} == {(0, "cgroup")}


def test_listening_sockets_are_parsed() -> None:
    """Only the listening lines of /proc/net/tcp count, by inode and port."""
    text = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000000000000000 20 4 30 10 -1
"""
    assert parse_listening(text) == {4242: 8080}
