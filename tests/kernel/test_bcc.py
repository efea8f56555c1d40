"""The BCC variants: what they say where BCC cannot compile, and what they measure where it can (Debian with its headers)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import Namespace, Recording, eventually, run_plan, server

from libslo.contracts import contract
from libslo.errors import CannotError
from libslo.host import process_start_ticks
from libslo.kernel import bcc
from libslo.kernel.account import Account
from libslo.kernel.polled import Targets

SIGNALS = ("dns_latency_ms", "tcp_retransmits_total")
HEADERS = Path("/lib/modules") / os.uname().release / "build"
PATIENCE_S = 500

no_headers = pytest.mark.skipif(HEADERS.exists(), reason="the kernel's headers are here")
headers = pytest.mark.skipif(not HEADERS.exists(), reason=f"no kernel headers at {HEADERS}")


def worker(tmp_path: Path, body: str) -> str:
    """A Python that is not the system's: a script that runs `body` instead of the worker."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def line(**changed: Any) -> str:
    return json.dumps({
        "ts_ns": 5_000_000_000, "duration_ns": 30_000_000, "value": 1, "family": 2, "sport": 4000, "dport": 53, "txid": 7, "qtype": 28,
        "rcode": 0, "flags": 0, "tcp_state": 0, "start_ns": 4_970_000_000, "cgroup_id": 1, "pid": 77, "tid": 78, "comm": "app",
        "saddr": "7f000001" + 24 * "0", "daddr": "7f000002" + 24 * "0", **changed,
    })  # fmt: skip


@no_headers
def test_without_headers_it_says_what_to_install(kernel: None) -> None:
    """Where BCC cannot compile, the report names what it said and what to install; the mode is flagged."""
    from libslo.kernel.capture import check_report
    from libslo.kernel.settings import CaptureSettings

    report = check_report(CaptureSettings(signals=SIGNALS, mode="bcc_degraded"))
    assert contract("agent-report").is_valid(report)
    assert report["mode"] == "bcc_degraded"
    for state in report["signals"]:
        assert not state["attached"]
        assert f"(try: apt-get install python3-bpfcc linux-headers-{os.uname().release})" in state["reason"]
        assert "Unable to find kernel headers" in state["reason"] or "No module named 'bcc'" in state["reason"]


def test_no_python_is_told(tmp_path: Path) -> None:
    """A machine without the system's Python has no BCC, and says so."""
    with pytest.raises(CannotError, match="No such file or directory"):
        bcc.BccPoller("dns_latency_ms", Targets(), python=str(tmp_path / "python3"))


def test_lines_become_records_and_the_account_closes(tmp_path: Path) -> None:
    """Lines of the worker are records; what the filters and the ring took is in the account; unfinished lines wait."""
    lines = [
        '{"ready": true}', line(), line(pid=5), line(duration_ns=10), line(duration_ns=10, rcode=3), '{"dropped": 4}', '{"dropped": 6}'
    ]  # fmt: skip
    said = "\n".join(f"echo '{text}'" for text in lines)
    python = worker(
        tmp_path, f"{said}\nprintf '%s' '{line(txid=9)[:40]}'\nread wait < {_fifo(tmp_path)}\necho '{line(txid=9)[40:]}'\nexec sleep 60"
    )
    poller = bcc.BccPoller("dns_latency_ms", Targets(pids=(77,), dns_min_latency_ns=1_000_000), python=python)
    try:
        time.sleep(0.3)
        readings = poller.poll(0)
        assert readings.account == Account(attempts=10, emitted=2, filtered=2, rate_limited=0, dropped=6)
        assert readings.events["txid"].tolist() == [7, 7]
        assert (readings.events["kind"].tolist(), readings.events["protocol"].tolist()) == ([1, 1], [17, 17])
        assert bytes(readings.events["saddr"][0])[:4] == b"\x7f\0\0\1"
        assert readings.events["comm"].tolist() == [b"app"] * 2
        (tmp_path / "fifo").write_text("go\n")
        eventually(lambda: poller.poll(0).events["txid"].tolist() == [9])
    finally:
        poller.close()


def _fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_rate_limit_holds(tmp_path: Path) -> None:
    """Beyond the limit of a cgroup, lines are counted as rate limited."""
    said = "\n".join(f"echo '{text}'" for text in ['{"ready": true}', *[line()] * 20, *[line(cgroup_id=2)] * 3])
    poller = bcc.BccPoller("dns_latency_ms", Targets(rate_limit=5), python=worker(tmp_path, f"{said}\nexec sleep 60"))
    try:
        time.sleep(0.3)
        assert poller.poll(time.monotonic_ns()).account == Account(attempts=23, emitted=8, rate_limited=15)
    finally:
        poller.close()


def test_a_worker_that_ends_is_told(tmp_path: Path) -> None:
    """A worker that dies raises with what it said last, and leaves no process."""
    python = worker(tmp_path, "echo '{\"ready\": true}'\necho 'error: out of memory' >&2")
    poller = bcc.BccPoller("tcp_retransmits_total", Targets(), python=python)
    eventually(lambda: poller._worker.poll() is not None)
    with pytest.raises(CannotError, match="BCC ended: error: out of memory"):
        poller.poll(0)
    poller.close()


def test_a_session_goes_on_without_it(tmp_path: Path, kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the worker dies, its signal's state says so and the others are measured on."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    monkeypatch.setattr(
        bcc.BccPoller.__init__, "__kwdefaults__", {"python": worker(tmp_path, "echo '{\"ready\": true}'"), "compile_s": 5.0}
    )
    settings = CaptureSettings(signals=("dns_latency_ms", "connect_errors_total"), variants={"dns_latency_ms": "bcc_udp_send_skb"})
    with Session(settings) as session:
        assert [state.attached for state in session.states] == [True, True]
        assert session.mode == "bcc_degraded"
        time.sleep(0.2)
        assert session.poll() == []
        dns, connect = session.report(final=True)["signals"]
        assert (dns["attached"], connect["attached"]) == (False, True)
        assert "BCC ended" in dns["reason"]


def test_the_worker_dies_with_its_agent(tmp_path: Path) -> None:
    """A worker whose agent is killed ends by itself."""
    (tmp_path / "bcc.py").write_text("import time\ntime.sleep(60)\n")
    shutil.copy(bcc._WORKER, tmp_path)
    started = subprocess.Popen(["sh", "-c", f"{sys.executable} {tmp_path / bcc._WORKER.name} dns_latency_ms $$ 1 & echo $!; wait"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    time.sleep(0.5)
    assert process_start_ticks(pid) is not None
    started.kill()
    started.wait()
    eventually(lambda: process_start_ticks(pid) is None)


@headers
def test_dns_by_bcc(namespace: Namespace) -> None:
    """23 answered queries and 5 that nobody answers are 28 records of the asking process, with its latencies."""

    def names(answered: int, lost: int) -> list[str]:
        return ["d200.test"] * answered + ["drop.test"] * lost

    plan = [
        {"family": family, "connected": connected, "together": False, "server": ("127.0.0.1", "::1")[family == 6],
         "queries": [{"txid": 1 + number, "name": name, "qtype": 1} for number, name in enumerate(names(answered, lost))]}
        for family, connected, answered, lost in ((4, True, 10, 5), (6, False, 13, 0))
    ]  # fmt: skip
    with (
        server(namespace, "dns_server.py"),
        Recording(signals=SIGNALS[:1], mode="bcc_degraded", dns_timeout_ns=3 * 10**9, patience_s=PATIENCE_S) as recording,
    ):
        pid, log = run_plan(namespace, "dns_client.py", [plan, 2.0, 0.0])
        time.sleep(6)
    events = recording.of("dns_latency_ms", pid)
    answers = {(event["conn_tuple"]["src_port"], event["attributes"]["dns.txid"]): event for event in events if "errno" not in event}
    assert (len(events), len(answers)) == (28, 23)
    for entry in log:
        if entry["got_ns"]:
            event = answers[entry["port"], entry["txid"]]
            assert 199 <= event["value"] <= (entry["got_ns"] - entry["sent_ns"]) / 1e6 + 0.2
    assert recording.reports[-1]["mode"] == "bcc_degraded"
    assert recording.account("dns_latency_ms")["emitted"] >= 28
    print(f"answers {len(answers)}, time-outs {len(events) - len(answers)}")


@headers
def test_retransmits_by_bcc(namespace: Namespace) -> None:
    """Segments sent again are those of the kernel's RetransSegs, charged to the two ends."""
    port = 20000 + os.getpid() % 10000
    loss = ("-m", "statistic", "--mode", "random", "--probability", "0.04", "-j", "DROP")
    with (
        Recording(signals=SIGNALS[1:], mode="bcc_degraded", patience_s=PATIENCE_S) as recording,
        server(namespace, "tcp_server.py", port) as listener,
    ):
        for end in ("--dport", "--sport"):
            namespace.run("iptables", "-A", "INPUT", "-p", "tcp", end, str(port), *loss)
        plan = [{"host": "127.0.0.1", "port": port, way: 4_000_000} for way in ("send_bytes", "get_bytes") for _ in range(4)]
        pid, _ = run_plan(namespace, "tcp_client.py", plan)
        namespace.run("iptables", "-F", "INPUT")
        eventually(lambda: not namespace.run("ss", "-Htn", "state", "connected", "exclude", "time-wait", "exclude", "fin-wait-2"))
        counted = namespace.tcp_counter("RetransSegs")
        time.sleep(2)
    here = [event for event in recording.events if port in (event["conn_tuple"]["src_port"], event["conn_tuple"]["dst_port"])]
    print(f"{sum(event['value'] for event in here)} of {counted} segments")
    assert sum(event["value"] for event in here) == counted > 5
    assert {event["pid"] for event in here} <= {pid, listener.pid, 0}
