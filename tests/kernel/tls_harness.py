"""What the TLS tests share: certificates, servers, plans, and the comparison with the client's own clock."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernel_harness import Namespace, Recording, run_plan, server

from libslo.contracts import contract

TLS = ("tls_handshake_ms", "tls_handshake_fail_total")
# Of what the client itself computes before its first and after its last packet; in an emulated CPU that takes its time.
TOLERANCE_MS = 20.0 if "QEMU TCG" in Path("/proc/cpuinfo").read_text() else 2.0
ROUNDING_MS = 0.3  # the client reads its clock a little before and after the kernel does


def make_certificates(directory: Path) -> Path:
    """ca.pem, other-ca.pem, server.pem, chain.pem (a long chain) and client.pem."""
    import trustme

    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    other.cert_pem.write_to_path(str(directory / "other-ca.pem"))
    names = ("slo.test", "localhost", "127.0.0.1", "::1")
    authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
    authority.issue_cert("client@slo.test").private_key_and_cert_chain_pem.write_to_path(str(directory / "client.pem"))
    other.issue_cert("client@slo.test").private_key_and_cert_chain_pem.write_to_path(str(directory / "other-client.pem"))
    # A flight of many segments: what follows the server's own certificate need not be a chain to be sent.
    (directory / "chain").mkdir()
    long = authority.issue_cert(*names, *(f"n{index}.a-long-name-that-takes-room.slo.test" for index in range(150)))
    bundle = b"".join([long.private_key_pem.bytes(), *(pem.bytes() for pem in long.cert_chain_pems)] + [authority.cert_pem.bytes()] * 20)
    (directory / "chain" / "server.pem").write_bytes(bundle)
    (directory / "chain" / "ca.pem").write_bytes(authority.cert_pem.bytes())
    return directory


@contextlib.contextmanager
def tls_servers(namespace: Namespace, certificates: Path, *entries: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """One process with a listener for each entry; the first one's port is 4431."""
    plan = [{"certificates": str(certificates), "port": 4431 + index, **entry} for index, entry in enumerate(entries)]
    with server(namespace, "tls_server.py", json.dumps(plan)) as process:
        yield process


def shake_hands(namespace: Namespace, certificates: Path, plan: list[dict[str, Any]], **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run a plan of tls_client.py: its pid, and what it saw. It goes before others: its clock is what the probe is compared with."""
    options = {"prefix": ("nice", "-n", "-15"), **options}
    return run_plan(namespace, "tls_client.py", [{"ca": str(certificates / "ca.pem"), "port": 4431, **entry} for entry in plan], **options)


def record(variant: str, signals: tuple[str, ...] = TLS, **settings: Any) -> Recording:
    return Recording(signals=signals, variants=dict.fromkeys(TLS, variant), **settings)


def differences(events: list[dict[str, Any]], log: list[dict[str, Any]]) -> list[float]:
    """The client's clock minus what was measured, ms; events and log are of one client that shook hands one by one."""
    assert len(events) == len(log)
    events = sorted(events, key=lambda event: int(event["ts_unix_nano"]))
    return [(entry["ended_ns"] - entry["begun_ns"]) / 1e6 - event["value"] for event, entry in zip(events, log, strict=True)]


def agree(events: list[dict[str, Any]], log: list[dict[str, Any]], delay_ms: float = 0.0, tolerance_ms: float = TOLERANCE_MS) -> None:
    """No measured wait is longer than the client's own, their median difference is tolerable, and the median has the server's delay.

    A single client may begin late, or read its clock late, by what the machine kept it from running.
    """
    found = differences(events, log)
    print(f"client less measured, ms: median {statistics.median(found):.3f} min {min(found):.3f} max {max(found):.3f} n {len(found)}")
    assert statistics.median(event["value"] for event in events) >= delay_ms * 0.9
    assert all(contract("probe-event").is_valid(event) for event in events)
    assert min(found) >= -ROUNDING_MS
    assert statistics.median(found) <= tolerance_ms
