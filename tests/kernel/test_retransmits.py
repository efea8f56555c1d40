"""tcp_retransmits_total on the real kernel, next to the kernel's own counter."""

from __future__ import annotations

import contextlib

import pytest
from kernel_harness import Namespace, Recording, run_plan, server

from libslo.kernel.listeners import parse_listening

SIGNALS = ("tcp_retransmits_total",)


def lose(namespace: Namespace, *match: str) -> None:
    namespace.run(
        "iptables", "-A", "INPUT", "-p", "tcp", *match, "-m", "statistic", "--mode", "random", "--probability", "0.04", "-j", "DROP"
    )


@pytest.mark.parametrize("server_first", [False, True])
def test_lost_segments_are_charged_to_both_ends(namespace: Namespace, server_first: bool) -> None:
    """Under random loss in both directions, the segments equal the kernel's RetransSegs, and each end's are charged to its process.

    Whether the server listened before the agent came or not.
    """
    with contextlib.ExitStack() as stack:
        if server_first:
            listener = stack.enter_context(server(namespace, "tcp_server.py", 8080))
            recording = stack.enter_context(Recording(signals=SIGNALS))
        else:
            recording = stack.enter_context(Recording(signals=SIGNALS))
            listener = stack.enter_context(server(namespace, "tcp_server.py", 8080))
        lose(namespace, "--dport", "8080")
        lose(namespace, "--sport", "8080")
        before = namespace.tcp_counter("RetransSegs")
        plan = [{"host": "127.0.0.1", "port": 8080, "send_bytes": 4_000_000} for _ in range(4)]
        plan += [{"host": "127.0.0.1", "port": 8080, "get_bytes": 4_000_000} for _ in range(4)]
        pid, _ = run_plan(namespace, "tcp_client.py", plan)
        namespace.run("iptables", "-F", "INPUT")
        # What is still unacknowledged may be sent again a little later.
        run_plan(namespace, "tcp_client.py", [])
        counted = namespace.tcp_counter("RetransSegs") - before
    here = [event for event in recording.events if event["attributes"].get("netns") == namespace.inum]
    assert {event["pid"] for event in here} == {pid, listener.pid}
    assert {event["attributes"]["owner"] for event in here if event["pid"] == pid} == {"connect"}
    assert {event["attributes"]["owner"] for event in here if event["pid"] == listener.pid} == {"listener"}
    assert len({event["service"] for event in here}) == 1  # both are the same interpreter
    assert sum(event["value"] for event in here) == counted > 20
    assert recording.account("tcp_retransmits_total")["dropped"] == 0


def test_segments_are_counted_not_calls(namespace: Namespace) -> None:
    """A retransmission of a large buffer counts its segments: more of them than events."""
    with server(namespace, "tcp_server.py", 8080), Recording(signals=SIGNALS) as recording:
        namespace.run("ip", "link", "set", "lo", "mtu", "1500")
        lose(namespace, "--dport", "8080")
        before = namespace.tcp_counter("RetransSegs")
        run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 8080, "send_bytes": 20_000_000} for _ in range(4)])
        namespace.run("iptables", "-F", "INPUT")
        run_plan(namespace, "tcp_client.py", [])
        counted = namespace.tcp_counter("RetransSegs") - before
    values = [event["value"] for event in recording.events if event["attributes"].get("netns") == namespace.inum]
    assert sum(values) == counted
    assert max(values) > 1


def test_syn_retransmits(namespace: Namespace) -> None:
    """A SYN sent again is charged to the connecting process although it happens in a timer."""
    namespace.run("iptables", "-A", "INPUT", "-d", "127.0.0.9", "-j", "DROP")
    with Recording(signals=SIGNALS) as recording:
        before = namespace.tcp_counter("RetransSegs")
        pid, _ = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.9", "port": 80, "give_up_s": 1.5} for _ in range(20)])
        counted = namespace.tcp_counter("RetransSegs") - before
    events = recording.of("tcp_retransmits_total", pid)
    assert len(events) == counted == 20
    assert {event["attributes"]["tcp.state"] for event in events} == {"SYN_SENT"}


def test_syn_ack_retransmits_belong_to_the_listener(namespace: Namespace) -> None:
    """A SYN-ACK sent again is charged to the process that listens."""
    with Recording(signals=SIGNALS) as recording, server(namespace, "tcp_server.py", 8080) as listener:
        namespace.run("iptables", "-A", "INPUT", "-p", "tcp", "--sport", "8080", "-j", "DROP")
        run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 8080, "give_up_s": 1.6}])
    events = [event for event in recording.of("tcp_retransmits_total", listener.pid) if event["attributes"].get("tcp.synack")]
    assert events
    assert events[0]["conn_tuple"]["src_port"] == 8080
    assert events[0]["conn_tuple"]["dst_port"] > 0


def test_without_a_known_owner_nobody_is_blamed(namespace: Namespace) -> None:
    """Sockets older than the agent are charged to no process, never to whoever was interrupted."""
    with server(namespace, "tcp_server.py", 8080):
        client = namespace.start("tcp_client.py")
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write('[{"host": "127.0.0.1", "port": 8080, "send_bytes": 60000000}]\n')
        client.stdin.flush()
        client.stdout.readline()
        lose(namespace, "--dport", "8080")
        client.stdin.write("go\n")
        client.stdin.flush()
        while namespace.tcp_counter("ActiveOpens") < 1:
            pass
        with Recording(signals=SIGNALS) as recording:
            client.communicate(timeout=30)
    here = [event for event in recording.events if event["attributes"].get("netns") == namespace.inum]
    assert here
    assert {(event["pid"], event["attributes"]["owner"]) for event in here} == {(0, "cgroup")}


def test_listening_sockets_are_parsed() -> None:
    """Only the listening lines of /proc/net/tcp count, by inode and port."""
    text = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000000000000000 20 4 30 10 -1
"""
    assert parse_listening(text) == {4242: 8080}
