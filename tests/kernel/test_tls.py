"""tls_handshake_ms on the real kernel, against servers whose delays the test knows and the clients' own clocks."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from kernel_harness import ControlGroup, Namespace
from tls_harness import TOLERANCE_MS, agree, make_certificates, record, shake_hands, tls_servers

BOTH = pytest.mark.parametrize("variant", ["cgroup_skb", "uprobe_openssl"])
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
DELAYS = (0, 20, 100)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@BOTH
@VERSIONS
def test_each_handshake_takes_what_its_client_waited(namespace: Namespace, certificates: Path, variant: str, version: str) -> None:
    """24 handshakes against servers that wait 0, 20 or 100 ms are 24 events with the client's own durations, pid and version."""
    plan = [{"port": 4431 + index % 3, "version": version} for index in range(24)]
    with tls_servers(namespace, certificates, *({"delay_ms": delay} for delay in DELAYS)), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert not any(entry["error"] for entry in log)
    events = recording.of("tls_handshake_ms", pid)
    agree(events, log, 20)
    assert recording.of("tls_handshake_fail_total", pid) == []
    for event, entry in zip(sorted(events, key=lambda event: int(event["ts_unix_nano"])), log, strict=True):
        assert event["attributes"]["comm"].startswith("python")
        if variant == "cgroup_skb":
            assert event["conn_tuple"]["src_port"] == entry["local_port"]
            assert event["attributes"]["tls.version"] == f"TLSv{version}"
    account = recording.account("tls_handshake_ms")
    assert account["dropped"] == 0


@BOTH
@VERSIONS
def test_a_resumed_session_is_one_handshake(namespace: Namespace, certificates: Path, variant: str, version: str) -> None:
    """Handshakes that resume a session, in which the client has the last word also in TLS 1.2, take what the client waited."""
    plan = [{"version": version, "resume": index > 0} for index in range(21)]
    with tls_servers(namespace, certificates, {"delay_ms": 10}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert [entry["resumed"] for entry in log] == [False] + [True] * 20
    events = recording.of("tls_handshake_ms", pid)
    agree(events, log, 10)
    if variant == "cgroup_skb":
        assert [event["attributes"].get("tls.resumed", False) for event in events] == [False] + [True] * 20


@BOTH
def test_another_client_hello_belongs_to_the_same_wait(namespace: Namespace, certificates: Path, variant: str) -> None:
    """A server that asks for another group makes one handshake of two ClientHellos, which began with the first."""
    with tls_servers(namespace, certificates, {"delay_ms": 20, "group": "secp521r1", "version": "1.3"}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{}] * 20)
    events = recording.of("tls_handshake_ms", pid)
    agree(events, log, 20)
    if variant == "cgroup_skb":
        assert all(event["attributes"]["tls.hello_retry"] for event in events)


@BOTH
@VERSIONS
def test_client_certificates(namespace: Namespace, certificates: Path, variant: str, version: str) -> None:
    """A client that must show a certificate is measured like one that need not."""
    plan = [{"version": version, "certificate": str(certificates / "client.pem")}] * 20
    with tls_servers(namespace, certificates, {"delay_ms": 20, "client_ca": True}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert not any(entry["error"] for entry in log)
    agree(recording.of("tls_handshake_ms", pid), log, 20, 2 * TOLERANCE_MS)  # its signature (RSA) may come after its first encrypted record


@BOTH
@VERSIONS
def test_a_client_that_does_not_block(namespace: Namespace, certificates: Path, variant: str, version: str) -> None:
    """Of asyncio, whose every handshake is several calls that would block, each is one event with the client's own duration."""
    with tls_servers(namespace, certificates, {"delay_ms": 20}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{"how": "asyncio", "version": version}] * 20)
    agree(recording.of("tls_handshake_ms", pid), log, 20)


@BOTH
def test_the_handshakes_of_a_cgroup(namespace: Namespace, certificates: Path, variant: str) -> None:
    """Asked for one cgroup, its 23 handshakes are 23 events of that cgroup, and another client's are filtered."""
    with (
        ControlGroup("cpu") as group,
        tls_servers(namespace, certificates, {}),
        record(variant, cgroups=(group.unified,)) as recording,
    ):
        group_id = group.id
        join = ("sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group.unified / "cgroup.procs"))
        pid, _ = shake_hands(namespace, certificates, [{}] * 23, prefix=join)
        other, _ = shake_hands(namespace, certificates, [{}] * 3)
    events = recording.of("tls_handshake_ms", pid)
    assert [event["attributes"]["cgroup_id"] for event in events] == [group_id] * 23
    assert recording.of("tls_handshake_ms", other) == []
    assert recording.account("tls_handshake_ms")["filtered"] >= 3


@BOTH
def test_a_server_on_the_same_machine_is_no_client(namespace: Namespace, certificates: Path, variant: str) -> None:
    """The server's side of a handshake gives no event, neither under its own pid nor under none."""
    with tls_servers(namespace, certificates, {}) as process, record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{}] * 23)
    assert len(recording.of("tls_handshake_ms", pid)) == len(log) == 23
    assert recording.of("tls_handshake_ms", process.pid) == []
    if variant == "cgroup_skb":
        assert [event for event in recording.events if event["pid"] == 0 and event["conn_tuple"]["src_port"] == 4431] == []


@VERSIONS
def test_ipv6(namespace: Namespace, certificates: Path, version: str) -> None:
    """Handshakes over IPv6 are measured under their addresses."""
    with tls_servers(namespace, certificates, {"host": "::1", "delay_ms": 20}), record("cgroup_skb") as recording:
        pid, log = shake_hands(namespace, certificates, [{"host": "::1", "version": version}] * 20)
    events = recording.of("tls_handshake_ms", pid)
    agree(events, log, 20)
    assert {event["conn_tuple"]["dst_ip"] for event in events} == {"::1"}


def test_a_library_that_is_not_openssl(namespace: Namespace, certificates: Path) -> None:
    """Handshakes of rustls, linked statically into another module, are measured: they take the server's delay, within the request."""
    with tls_servers(namespace, certificates, *({"delay_ms": delay} for delay in DELAYS)), record("cgroup_skb") as recording:
        pid, log = shake_hands(namespace, certificates, [{"how": "httpr", "port": 4431 + index % 3} for index in range(24)])
    assert not any(entry["error"] for entry in log)
    events = sorted(recording.of("tls_handshake_ms", pid), key=lambda event: int(event["ts_unix_nano"]))
    assert len(events) == 24
    for event, entry in zip(events, log, strict=True):
        delay_ms = DELAYS[event["conn_tuple"]["dst_port"] - 4431]
        assert delay_ms / 2 <= event["value"] <= (entry["ended_ns"] - entry["begun_ns"]) / 1e6


@VERSIONS
def test_records_in_pieces(namespace: Namespace, certificates: Path, version: str) -> None:
    """Records and headers that are cut by segments of a few bytes, and a chain of many segments into a small buffer, lose nothing."""
    plan = [{"version": version, "cut_bytes": 3 + index} for index in range(7)]
    with tls_servers(namespace, certificates / "chain", {"delay_ms": 5}), record("cgroup_skb") as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    events = recording.of("tls_handshake_ms", pid)
    assert len(events) == 7
    assert all(4 <= event["value"] <= (entry["ended_ns"] - entry["begun_ns"]) / 1e6 + 0.3 for event, entry in zip(events, log, strict=True))
    assert recording.account("tls_handshake_ms")["dropped"] == 0


@BOTH
def test_a_proxy_and_its_plain_text_come_first(namespace: Namespace, certificates: Path, variant: str) -> None:
    """Behind a proxy that is asked in plain text, the wait begins with the ClientHello."""
    with tls_servers(namespace, certificates, {"action": "connect", "delay_ms": 30}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{"proxy": True}] * 20)
    agree(recording.of("tls_handshake_ms", pid), log, 30)


@BOTH
@pytest.mark.parametrize(("version", "flights"), [("1.2", 2), ("1.3", 1)])
def test_each_flight_of_the_server_counts(namespace: Namespace, certificates: Path, variant: str, version: str, flights: int) -> None:
    """Up to TLS 1.2 the client waits for two flights of the server, in TLS 1.3 for one."""
    plan = [{"version": version, "give_up_s": 5, "get_bytes": 0}] * 20
    with tls_servers(namespace, certificates, {"action": "slow", "delay_ms": 15}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    agree(recording.of("tls_handshake_ms", pid), log, 15 * flights)


@BOTH
def test_a_warning_is_no_failure(namespace: Namespace, certificates: Path, variant: str) -> None:
    """Up to TLS 1.2 an alert of warning level, here in the packet of the ServerHello, lets the handshake go on."""
    with tls_servers(namespace, certificates, {"action": "warn", "version": "1.2", "delay_ms": 20}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{}] * 5)
    assert not any(entry["error"] for entry in log)
    agree(recording.of("tls_handshake_ms", pid), log, 20)
    assert recording.of("tls_handshake_fail_total", pid) == []


@BOTH
def test_a_bulk_transfer_is_one_event(namespace: Namespace, certificates: Path, variant: str) -> None:
    """50 MB over one connection, full of bytes that could be anything, are one handshake."""
    with tls_servers(namespace, certificates, {}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{"get_bytes": 50_000_000}])
    assert not log[0]["error"]
    assert len(recording.of("tls_handshake_ms", pid)) == 1
    assert recording.of("tls_handshake_fail_total", pid) == []


def test_a_slow_handshake_moves_no_neighbour(namespace: Namespace, certificates: Path) -> None:
    """100 ms of TLS move tls_handshake_ms, and neither the connect's nor a name server's latency."""
    signals = ("tls_handshake_ms", "tls_handshake_fail_total", "connect_latency_ms", "dns_latency_ms")
    with tls_servers(namespace, certificates, {"delay_ms": 100}), record("cgroup_skb", signals) as recording:
        pid, _ = shake_hands(namespace, certificates, [{}] * 20)
    assert statistics.median(event["value"] for event in recording.of("tls_handshake_ms", pid)) >= 99
    connects = recording.of("connect_latency_ms", pid)
    assert len(connects) == len(recording.of("tls_handshake_ms", pid)) == 20
    assert statistics.median(event["value"] for event in connects) < 2
    assert recording.of("dns_latency_ms", pid) == []
