"""The network signals without the kernel's types: no relocation in the objects, and they measure where /sys/kernel/btf is hidden."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_harness import AGENT, Namespace, rest, run_plan, server

from libslo.errors import CannotError
from libslo.kernel.catalogue import VARIANTS
from libslo.resources import data_path

NETWORK = "dns_latency_ms,connect_latency_ms,connect_errors_total,tcp_retransmits_total"
BTF_FREE = {
    "dns_latency_ms": "cgroup_skb",
    "connect_latency_ms": "sock_ops",
    "connect_errors_total": "sock_ops",
    "tcp_retransmits_total": "sock_ops",
}
NO_TYPES = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh"]


def relocations(path: Path, tmp_path: Path) -> int:
    """Bytes of CO-RE relocations in an object: core_relo_len of .BTF.ext, struct btf_ext_header."""
    section = tmp_path / "btf_ext"
    subprocess.run(["llvm-objcopy", f"--dump-section=.BTF.ext={section}", str(path), str(tmp_path / "copy.o")], check=True)
    magic, _, _, header_bytes = struct.unpack_from("<HBBI", section.read_bytes())
    assert (magic, header_bytes) == (0xEB9F, 32)
    return int(struct.unpack_from("<I", section.read_bytes(), 28)[0])


def compiled(object_name: str) -> Path:
    try:
        return data_path(f"bpf/build/{object_name}.bpf.o")
    except CannotError:
        if os.environ.get("SLO_REQUIRE_KERNEL") == "1":
            pytest.fail("SLO_REQUIRE_KERNEL=1, but: objects not compiled (make bpf)")
        pytest.skip("objects not compiled (make bpf)")


@pytest.mark.parametrize("object_name", [variant.object_name for variant in VARIANTS if variant.source == "bpf" and not variant.btf])
def test_what_needs_no_types_asks_for_none(object_name: str, tmp_path: Path) -> None:
    """An object that says it needs no types relocates no access and hooks nothing that is found by type."""
    assert relocations(compiled(object_name), tmp_path) == 0
    sections = subprocess.run(["llvm-objdump", "-h", str(compiled(object_name))], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"tp_btf|fentry|fexit|fmod_ret|lsm|iter", sections)


def test_relocations_are_found(tmp_path: Path) -> None:
    """The object that reads the kernel's structs is seen to do so."""
    assert relocations(compiled("connect_latency_ms.inet_sock_set_state"), tmp_path) > 0


def test_check_without_types_says_what_attached(kernel: None) -> None:
    """With the kernel's types hidden all network signals attach by their variants that need none, and the report says so."""
    done = subprocess.run([*NO_TYPES, *AGENT, "--check", "--json", "--strict", "--btf", "/nonexistent", "--signals", NETWORK],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {state["signal"]: state["variant"] for state in report["signals"] if state["attached"]} == BTF_FREE
    assert report["mode"] == "no_btf"


def test_mode_no_btf_tries_nothing_else(kernel: None) -> None:
    """Mode no_btf takes the same variants where types are there."""
    script = """
import sys, orjson
from libslo.kernel.capture import check_report
from libslo.kernel.settings import CaptureSettings
sys.stdout.buffer.write(orjson.dumps(check_report(CaptureSettings(signals=tuple(sys.argv[1].split(",")), mode="no_btf"))))
"""
    done = subprocess.run([*NO_TYPES, sys.executable, "-c", script, NETWORK], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert {state["signal"]: state["variant"] for state in report["signals"] if state["attached"]} == BTF_FREE


@pytest.fixture
def blind_agent(kernel: None) -> Iterator[subprocess.Popen[str]]:
    """An agent that has attached with the kernel's types hidden."""
    process = subprocess.Popen([*NO_TYPES, *AGENT, "--btf", "/nonexistent", "--signals", NETWORK],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["mode"] == "no_btf"
    yield process
    process.kill()
    process.communicate()


def test_it_measures_without_types(namespace: Namespace, blind_agent: subprocess.Popen[str]) -> None:
    """23 of each: 23 queries, 23 connects, 23 refused, 23 SYNs sent again are 23 events of each signal, of the right process."""
    namespace.run("iptables", "-A", "INPUT", "-d", "127.0.0.9", "-j", "DROP")
    queries = [{"txid": number, "name": "d30.test", "qtype": 1} for number in range(23)]
    plan = {"family": 4, "connected": True, "together": False, "server": "127.0.0.1", "queries": queries}
    with server(namespace, "dns_server.py"), server(namespace, "tcp_server.py", 8080):
        asked, log = run_plan(namespace, "dns_client.py", [[plan], 5.0, 0.0])
        connected, _ = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": port} for port in [8080] * 23 + [9] * 23])
        lost, _ = run_plan(namespace, "tcp_client.py", [{"host": "127.0.0.9", "port": 9, "give_up_s": 1.5}] * 23)
    blind_agent.send_signal(signal.SIGTERM)
    output, errors = rest(blind_agent)
    events = [event for event in map(json.loads, output.splitlines()) if "signal" in event]
    found = [(event["signal"], event["pid"]) for event in events]
    assert (blind_agent.returncode, errors) == (0, "")
    assert found.count(("dns_latency_ms", asked)) == 23
    assert found.count(("connect_latency_ms", connected)) == found.count(("connect_errors_total", connected)) == 23
    assert found.count(("tcp_retransmits_total", lost)) == 23
    latest_ms = max((entry["got_ns"] - entry["sent_ns"]) / 1e6 for entry in log)
    assert all(29 <= event["value"] <= latest_ms + 0.2 for event in events if (event["signal"], event["pid"]) == ("dns_latency_ms", asked))
