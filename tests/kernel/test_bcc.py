"""The BCC variants: what they say where BCC cannot compile, and what they measure where it can (Debian with its headers)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import INTERPRETED, Namespace, Recording, eventually, run_plan, server

from libslo.contracts import contract
from libslo.errors import CannotError
from libslo.host import process_start_ticks
from libslo.kernel import bcc
from libslo.kernel.account import Account
from libslo.kernel.polled import Targets, WorkerPoller

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


READY = "echo '{\"ready\": true}'"
NONE = {"CapEff": 0, "CapPrm": 0, "CapInh": 0, "CapAmb": 0, "NoNewPrivs": 1}


def capabilities(pid: int) -> list[dict[str, int]] | dict[str, int]:
    """Of a process, when all its threads have the same."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(text.split(":\t", 1) for text in (task / "status").read_text().splitlines() if ":\t" in text)
        found.append({name: int(fields[name], 16) for name in NONE})
    return found[0] if all(each == found[0] for each in found) else found


def workers() -> list[int]:
    """Workers that this process has started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((place / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"bcc_worker.py" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


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
    started = subprocess.Popen(["sh", "-c", f"{sys.executable} {tmp_path / bcc._WORKER.name} dns_latency_ms $$ 1 keep & echo $!; wait"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    time.sleep(0.5)
    assert process_start_ticks(pid) is not None
    started.kill()
    started.wait()
    eventually(lambda: process_start_ticks(pid) is None)


def polled(poller: bcc.BccPoller, attempts: int) -> tuple[Account, list[Any]]:
    """What the poller has given when it has accounted for so many attempts."""
    account, events = Account(), list[Any]()

    def enough() -> bool:
        nonlocal account
        readings = poller.poll(0)
        account += readings.account
        events.extend(readings.events)
        return account.attempts >= attempts

    eventually(enough)
    return account, events


@pytest.mark.parametrize("comm", ["приложение-имён", 15 * "\ufffd", "😀😀😀😀"])
def test_a_command_of_any_letters(tmp_path: Path, comm: str) -> None:
    """A command's name of other letters than ASCII is a record with as many of its bytes as the kernel keeps."""
    poller = bcc.BccPoller("dns_latency_ms", Targets(), python=worker(tmp_path, f"{READY}\necho '{line(comm=comm)}'\nexec sleep 60"))
    try:
        account, events = polled(poller, 1)
        assert (account, [event["comm"] for event in events]) == (Account(attempts=1, emitted=1), [comm.encode()[:15]])
    finally:
        poller.close()


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(line()).items() if key != name})


@pytest.mark.parametrize(
    "wrong",
    ["Traceback", "[]", "7", "null", '"dropped"', '{"dropped": "x"}', without("pid"), without("rcode"), without("saddr"), without("comm"),
     line(pid=-1), line(pid=1 << 40), line(txid="x"), line(comm=7), line(cgroup_id=[1]), line(saddr="zz"), line(daddr="00"), line(extra=1),
     line(comm="\ud800")],
)  # fmt: skip
def test_a_line_that_is_none_is_dropped(tmp_path: Path, wrong: str) -> None:
    """What is no line of the worker is counted as dropped, and those after it are read."""
    (tmp_path / "lines").write_text(f"{wrong}\n{line()}\n")
    python = worker(tmp_path, f"{READY}\ncat {tmp_path / 'lines'}\nexec sleep 60")
    poller = bcc.BccPoller("dns_latency_ms", Targets(), python=python)
    try:
        account, events = polled(poller, 2)
        assert (account, [event["txid"] for event in events]) == (Account(attempts=2, emitted=1, dropped=1), [7])
    finally:
        poller.close()


@pytest.mark.parametrize("first", ["Segmentation fault", "[1]"])
def test_a_first_line_that_is_none_is_told(tmp_path: Path, first: str) -> None:
    """A worker that begins with something else is a reason, not a crash."""
    with pytest.raises(CannotError, match=r"not a line of the worker: .*(fault|1)"):
        bcc.BccPoller("dns_latency_ms", Targets(), python=worker(tmp_path, f"echo '{first}'"))


FAKE_BCC = """
import time
from pathlib import Path

class Table:
    def __getitem__(self, key):
        class Value:
            value = 0
        {lookup}
        return Value

    def open_ring_buffer(self, callback):
        pass

class BPF:
    def __init__(self, text):
        pass

    def __getitem__(self, name):
        return Table()

    def ring_buffer_poll(self, ms):
        time.sleep(ms / 1000)
"""


def fake_bcc(tmp_path: Path, lookup: str = "pass") -> str:
    """A Python that runs the worker itself, with a BCC that only seems to be one."""
    (tmp_path / "bcc.py").write_text(FAKE_BCC.replace("{lookup}", lookup))
    shutil.copy(bcc._WORKER, tmp_path)
    return worker(tmp_path, f'shift 2\nexec {sys.executable} {tmp_path / bcc._WORKER.name} "$@"')


@pytest.mark.parametrize("drop", [True, False])
def test_the_worker_keeps_no_capability(tmp_path: Path, drop: bool) -> None:
    """Once attached, the worker has no capability and can gain none, unless the agent keeps its own."""
    poller = bcc.BccPoller("tcp_retransmits_total", Targets(drop_capabilities=drop), python=fake_bcc(tmp_path))
    try:
        assert capabilities(poller._worker.pid) == (NONE if drop else capabilities(os.getpid()))
        time.sleep(0.3)
        assert poller.poll(0).account == Account()
    finally:
        poller.close()


def test_a_kernel_that_hides_its_maps_is_told(tmp_path: Path) -> None:
    """Where maps cannot be read without capabilities, the signal is not attached, and the cure is named."""
    with pytest.raises(CannotError, match="--keep-capabilities"):
        bcc.BccPoller("dns_latency_ms", Targets(drop_capabilities=True), python=fake_bcc(tmp_path, "raise KeyError"))


BURN = "print('{\"ready\": true}', flush=True)\nwhile True: pass"


@pytest.fixture
def burning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers use all of a CPU; the file has their pids."""
    (tmp_path / "burn.py").write_text(BURN)
    pids = tmp_path / "pids"
    python = worker(tmp_path, f"echo $$ >> {pids}\nexec {sys.executable} {tmp_path / 'burn.py'}")
    monkeypatch.setattr(bcc.BccPoller.__init__, "__kwdefaults__", {"python": python, "compile_s": 60.0, "stopped": lambda: False})
    monkeypatch.setattr(bcc, "missing_capabilities", lambda _: [])
    return pids


def test_a_workers_cpu_time_is_told(burning: Path) -> None:
    """A worker's CPU time is known while it runs and after it has ended, and that of the next one is added."""
    from libslo.kernel.overhead import HitCost, OverheadMeter

    poller = bcc.BccPoller("dns_latency_ms", Targets())
    assert isinstance(poller, WorkerPoller)
    begun_s, first_s, own_s = time.monotonic(), poller.cpu_s(), time.process_time()
    meter = OverheadMeter(HitCost(0.0, 0.0), {}, {}, poller.cpu_s)
    try:
        eventually(lambda: poller.cpu_s() >= first_s + 0.35)
        most_pct = 100 * (poller.cpu_s() - first_s + time.process_time() - own_s) / (time.monotonic() - begun_s) / (os.cpu_count() or 1)
        assert 0.5 * most_pct < meter.read({}, {}).agent_pct < 2 * most_pct
        poller.pause()
        ended_s = poller.cpu_s()
        assert first_s + 0.35 <= ended_s == poller.cpu_s()
        assert poller.poll(0).account == Account()
        poller.resume()
        eventually(lambda: poller.cpu_s() >= ended_s + 0.45, 60)
    finally:
        poller.close()


def test_shed_the_worker_ends_and_restored_it_begins_anew(burning: Path) -> None:
    """The guard counts a worker's CPU time to its signal; shed, the worker is gone; restored, another one measures."""
    from libslo.kernel.guard import Guard
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    settings = CaptureSettings(signals=("dns_latency_ms",), variants={"dns_latency_ms": "bcc_udp_send_skb"})
    with Session(settings) as session:
        guard = Guard(session, ceiling_pct=0.01)
        decisions: list[dict[str, Any]] = []
        costs = []
        while not decisions and len(costs) < 50:
            time.sleep(0.1)
            decisions = guard.turn()
            assert guard.overhead is not None
            costs.append(guard.overhead["signals"].get("dns_latency_ms", 0.0))
        assert max(costs) > 1  # of the machine's CPU time: far more than asking it takes
        assert (decisions[0]["action"], decisions[0]["how"]) == ("shed", "detached")
        first = int(burning.read_text())
        assert process_start_ticks(first) is None
        used_s = session.children_s()["dns_latency_ms"]
        assert session.poll() == []
        session.restore("dns_latency_ms")
        assert session.shed_signals == frozenset()
        eventually(lambda: len(burning.read_text().split()) == 2, 60)
        eventually(lambda: session.poll() == [] and session.children_s()["dns_latency_ms"] >= used_s + 0.4, 60)
        assert session.states[0].attached
    assert workers() == []


def test_without_capabilities_no_worker_begins_anew(burning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shed worker cannot come back when the agent has no capability any more: that is said, and the signal stays shed."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    settings = CaptureSettings(signals=("dns_latency_ms",), variants={"dns_latency_ms": "bcc_udp_send_skb"})
    with Session(settings) as session:
        assert session.shed("dns_latency_ms", detach=False)
        monkeypatch.setattr(bcc, "missing_capabilities", list)
        with pytest.raises(CannotError, match="missing capability CAP_SYS_ADMIN"):
            session.restore("dns_latency_ms")
        assert session.shed_signals == {"dns_latency_ms"}
        assert session.report(final=True)["signals"][0]["shed"] is True
    assert len(burning.read_text().split()) == 1


@pytest.mark.parametrize("more", [(), ("--strict",), ("--check", "--strict")])
def test_a_stop_while_it_compiles(tmp_path: Path, more: tuple[str, ...]) -> None:
    """SIGTERM while BCC compiles ends the agent within a second, with exit 0; the worker is gone and no other was started."""
    pids = tmp_path / "pids"
    python = worker(tmp_path, f"echo $$ >> {pids}\nexec sleep 100")
    code = (f"from libslo.kernel.bcc import BccPoller; BccPoller.__init__.__kwdefaults__['python'] = {python!r}\n"
            "from slotools.agent import main; main()")  # fmt: skip
    agent = subprocess.Popen([sys.executable, "-c", code, "--signals", ",".join(SIGNALS), "--capability-mode", "bcc_degraded", *more],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        eventually(lambda: pids.exists() and pids.read_text().endswith("\n"), 60)
        time.sleep(0.2)
        stopped_s = time.monotonic()
        agent.send_signal(signal.SIGTERM)
        out, err = agent.communicate(timeout=30)
        took_s = time.monotonic() - stopped_s
    finally:
        agent.kill()
        agent.wait()
    assert (agent.returncode, err) == (0, "")
    assert out == "" or "--check" in more
    assert took_s < 1.0 * (5 if INTERPRETED else 1)
    (pid,) = pids.read_text().split()
    assert process_start_ticks(int(pid)) is None


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
        Recording(
            signals=SIGNALS[:1], mode="bcc_degraded", dns_timeout_ns=3 * 10**9, drop_capabilities=True, patience_s=PATIENCE_S
        ) as recording,
    ):
        assert [capabilities(pid) for pid in workers()] == [NONE]
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
        Recording(signals=SIGNALS[1:], mode="bcc_degraded", drop_capabilities=True, patience_s=PATIENCE_S) as recording,
        server(namespace, "tcp_server.py", port) as listener,
    ):
        assert [capabilities(pid) for pid in workers()] == [NONE]
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
