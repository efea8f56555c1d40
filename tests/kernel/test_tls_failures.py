"""tls_handshake_fail_total on the real kernel: who failed a handshake, how, and what is no handshake at all."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import Namespace, Recording, finish, first_line, start_inline
from tls_harness import TLS, make_certificates, record, shake_hands, tls_servers

from libslo.contracts import contract
from libslo.kernel.libbpf import map_lookup
from libslo.kernel.session import Session
from libslo.kernel.settings import CaptureSettings

BOTH = pytest.mark.parametrize("variant", ["cgroup_skb", "uprobe_openssl"])
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def failures(recording: Recording, pid: int, variant: str, count: int, outcome: str) -> list[dict[str, Any]]:
    """The failure events of a process, checked to be all that it has."""
    events = recording.of("tls_handshake_fail_total", pid)
    assert len(events) == count
    assert recording.of("tls_handshake_ms", pid) == []
    assert all(contract("probe-event").is_valid(event) for event in events)
    assert {event["status"] for event in events} == {"error"}
    assert {event["value"] for event in events} == {1}
    assert {event["attributes"]["tls.outcome"] for event in events} == {outcome if variant == "cgroup_skb" else "library"}
    assert recording.account("tls_handshake_fail_total")["dropped"] == 0
    return events


@BOTH
@VERSIONS
def test_a_client_that_does_not_trust_the_server(namespace: Namespace, certificates: Path, variant: str, version: str) -> None:
    """A server's certificate from an unknown authority is a local failure by alert, each time."""
    plan = [{"ca": str(certificates / "other-ca.pem"), "version": version}] * 5
    with tls_servers(namespace, certificates, {"delay_ms": 20}), record(variant, min_latency_ms=1000) as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert all("CERTIFICATE_VERIFY_FAILED" in entry["error"] for entry in log)
    events = failures(recording, pid, variant, 5, "alert")
    assert all(event["attributes"]["tls.elapsed_ms"] >= 15 for event in events)
    if variant == "cgroup_skb":
        assert {event["attributes"]["tls.side"] for event in events} == {"local"}
        assert {event["attributes"]["tls.alert"] for event in events} <= {"unknown_ca", "encrypted"}
        if version == "1.2":
            assert {event["attributes"]["tls.alert"] for event in events} == {"unknown_ca"}


def test_an_encrypted_alert(namespace: Namespace, certificates: Path) -> None:
    """The alert of a client that encrypts it already (rustls in TLS 1.3) is a local failure without a description."""
    plan = [{"ca": str(certificates / "other-ca.pem"), "how": "httpr"}] * 5
    with tls_servers(namespace, certificates, {"version": "1.3"}), record("cgroup_skb") as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert all(entry["error"] for entry in log)
    events = failures(recording, pid, "cgroup_skb", 5, "alert")
    assert {(event["attributes"]["tls.alert"], event["attributes"]["tls.side"]) for event in events} == {("encrypted", "local")}


@BOTH
@pytest.mark.parametrize(
    ("listener", "client", "alert"),
    [
        ({"version": "1.2", "ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"}, {"version": "1.2", "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"},
         "handshake_failure"),
        ({"version": "1.3"}, {"version": "1.2"}, "protocol_version"),
    ],
    ids=["cipher", "version"],
)  # fmt: skip
def test_a_server_that_refuses(
    namespace: Namespace, certificates: Path, variant: str, listener: dict[str, Any], client: dict[str, Any], alert: str
) -> None:
    """No common cipher or version is a failure by the peer, with the description of its alert."""
    with tls_servers(namespace, certificates, listener), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [client] * 5)
    assert all(entry["error"] for entry in log)
    events = failures(recording, pid, variant, 5, "alert")
    if variant == "cgroup_skb":
        assert {(event["attributes"]["tls.alert"], event["attributes"]["tls.side"]) for event in events} == {(alert, "peer")}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_server_that_does_not_trust_the_client(namespace: Namespace, certificates: Path, version: str) -> None:
    """A refused client certificate is a failure in TLS 1.2; in TLS 1.3 it comes after the client's end, as the blind spots say."""
    plan = [{"certificate": str(certificates / "other-client.pem"), "version": version}] * 3
    with tls_servers(namespace, certificates, {"client_ca": True}), record("cgroup_skb") as recording:
        pid, log = shake_hands(namespace, certificates, plan)
    assert all(entry["error"] for entry in log)
    if version == "1.2":
        events = failures(recording, pid, "cgroup_skb", 3, "alert")
        assert {(event["attributes"]["tls.alert"], event["attributes"]["tls.side"]) for event in events} == {("unknown_ca", "peer")}
    else:
        assert len(recording.of("tls_handshake_ms", pid)) == 3
        assert recording.of("tls_handshake_fail_total", pid) == []


@BOTH
@pytest.mark.parametrize(("action", "outcome"), [("close", "closed"), ("reset", "closed"), ("half", "closed"), ("plain", "not_tls")])
def test_a_server_that_ends_it(namespace: Namespace, certificates: Path, variant: str, action: str, outcome: str) -> None:
    """A server that closes, resets, stops half way or answers with something else is one failure by the peer each time."""
    with tls_servers(namespace, certificates, {"action": action, "delay_ms": 10}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{}] * 5)
    assert all(entry["error"] for entry in log)
    events = failures(recording, pid, variant, 5, outcome)
    if variant == "cgroup_skb":
        assert {event["attributes"]["tls.side"] for event in events} == {"peer"}
        assert {event.get("errno") for event in events} == {104 if action == "reset" else None}


@BOTH
@pytest.mark.parametrize("how", ["", "asyncio"])
def test_a_client_that_gives_up(namespace: Namespace, certificates: Path, variant: str, how: str) -> None:
    """A client that closes because nobody answers has failed by itself, after the time that it waited."""
    with tls_servers(namespace, certificates, {"action": "silence"}), record(variant) as recording:
        pid, log = shake_hands(namespace, certificates, [{"give_up_s": 0.2, "how": how}] * 3)
    assert all("Timeout" in entry["error"] for entry in log)
    events = failures(recording, pid, variant, 3, "closed")
    assert all(195 <= event["attributes"]["tls.elapsed_ms"] < 600 for event in events)
    if variant == "cgroup_skb":
        assert {event["attributes"]["tls.side"] for event in events} == {"local"}


NOT_TLS = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 4440))
def echo(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)
def accept():
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
print("ready", flush=True); sys.stdin.readline()
for first in (b"GET / HTTP/1.1\\r\\nHost: slo.test\\r\\n" + b"Accept: */*\\r\\n" * 9 + b"\\r\\n", b"SSH-2.0-OpenSSH_9.2\\r\\n" * 9,
              b"\\x16" * 200, b"\\x16\\x03\\x01" + b"\\x00" * 200, b"\\x16\\x03\\x01\\x01\\x90" + b"a text of 20 letters" * 20,
              b"\\x15\\x03\\x01\\x00\\x02\\x02\\x28" * 20, b"\\x17\\x03\\x03\\x00\\x50" + b"b" * 0x50):
    sock = socket.create_connection(("127.0.0.1", 4440))
    for _ in range(5):
        sock.sendall(first)
        got = 0
        while got < len(first):
            got += len(sock.recv(1 << 16))
    sock.close()
print("[]")
"""


def test_what_is_no_tls_gives_nothing(namespace: Namespace) -> None:
    """HTTP, SSH, and plain protocols whose bytes begin like a TLS record give no event and no attempt."""
    with record("cgroup_skb") as recording:
        client = start_inline(namespace, NOT_TLS)
        first_line(client)
        finish(client, "go")
    assert [event for event in recording.events if event["pid"] == client.pid] == []
    assert [event for event in recording.events if event.get("conn_tuple", {}).get("dst_port") == 4440] == []
    assert recording.account("tls_handshake_ms")["dropped"] == 0  # nothing was taken for a handshake and then lost


def test_what_stays_with_a_socket(kernel: None, certificates: Path) -> None:
    """A socket has an owner until its handshake ended, failed, or is no more expected, and a mark that it is over from then on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entries = [{"port": port, "certificates": str(certificates)}]
    server = [sys.executable, str(Path(__file__).parent / "tls_server.py"), json.dumps(entries)]
    trusting, other = (ssl.create_default_context(cafile=str(certificates / name)) for name in ("ca.pem", "other-ca.pem"))
    with (
        subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        Session(CaptureSettings(signals=TLS, variants=dict.fromkeys(TLS, "cgroup_skb"))) as session,
    ):
        first_line(process)
        (probe,) = session.probes()

        def kept(sock: socket.socket) -> tuple[bool, int | None]:
            key = struct.pack("<i", sock.fileno())
            mark = map_lookup(probe.object.map_fd("tls_marks"), key, 8)
            return map_lookup(probe.object.map_fd("tls_waits"), key, 96) is not None, mark and struct.unpack("<II", mark)[0]

        for context in (trusting, other):
            with socket.create_connection(("127.0.0.1", port)) as plain:
                assert kept(plain) == (True, None)
                with context.wrap_socket(plain, server_hostname="slo.test", do_handshake_on_connect=False) as tls:
                    with contextlib.suppress(ssl.SSLCertVerificationError):
                        tls.do_handshake()
                    assert kept(tls) == (False, 2)
        with socket.create_server(("127.0.0.1", 0)) as reader, socket.create_connection(reader.getsockname()) as plain:
            for _ in range(16):
                assert kept(plain)[0]
                plain.send(b"no TLS" * 100)
                time.sleep(0.01)
            assert kept(plain) == (False, 2)
        assert process.stdin is not None
        process.stdin.close()
