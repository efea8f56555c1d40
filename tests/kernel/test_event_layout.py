"""Structs in C and their numpy and struct twins in Python are the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libslo.errors import CannotError
from libslo.kernel.catalogue import VARIANTS
from libslo.kernel.events import DNS_KEY_DTYPE, DNS_START_DTYPE, EVENT_DTYPE, KINDS
from libslo.kernel.listeners import Listener, pack_listener
from libslo.kernel.settings import CaptureSettings, pack_config
from libslo.resources import data_path

ROOT = Path(__file__).parents[2]


def btf_struct(object_name: str, name: str) -> tuple[int, dict[str, int]]:
    """Size and member offsets, both in bytes, from an object's own BTF."""
    try:
        path = data_path(f"bpf/build/{object_name}.bpf.o")
    except CannotError:
        if os.environ.get("SLO_REQUIRE_KERNEL") == "1":
            pytest.fail("SLO_REQUIRE_KERNEL=1, but: objects not compiled (make bpf)")
        pytest.skip("objects not compiled (make bpf)")
    dump = subprocess.run(["bpftool", "-j", "btf", "dump", "file", str(path)], check=True, capture_output=True, text=True).stdout
    found = next(entry for entry in json.loads(dump)["types"] if entry["kind"] == "STRUCT" and entry["name"] == name)
    return found["size"], {member["name"]: member["bits_offset"] // 8 for member in found["members"]}


def layout(dtype: np.dtype[Any]) -> tuple[int, dict[str, int]]:
    assert dtype.fields is not None
    return dtype.itemsize, {name: field[1] for name, field in dtype.fields.items()}


@pytest.mark.parametrize("object_name", [variant.object_name for variant in VARIANTS if not variant.polled])
def test_event_dtype_is_the_c_struct(object_name: str) -> None:
    """EVENT_DTYPE has the size and the offsets of struct slo_event in every object."""
    assert layout(EVENT_DTYPE) == btf_struct(object_name, "slo_event")


@pytest.mark.parametrize(("dtype", "name"), [(DNS_KEY_DTYPE, "dns_key"), (DNS_START_DTYPE, "dns_start")])
def test_dns_dtypes_are_the_c_structs(dtype: np.dtype[Any], name: str) -> None:
    """The key and value that the sweep reads are those that the probe writes."""
    assert layout(dtype) == btf_struct("dns_latency_ms.cgroup_skb", name)


def test_packed_configuration_is_the_c_struct() -> None:
    """Every field of the configuration lies where struct slo_config has it."""
    size, offsets = btf_struct("dns_latency_ms.cgroup_skb", "slo_config")
    settings = CaptureSettings(("dns_latency_ms",), pids=(7, 8), comm="0123456789abcdefgh", min_latency_ms=1.5, rate_limit=8, burst_limit=3,
                               signal_rate_limit=100, min_latencies_ms={"connect_latency_ms": 7})  # fmt: skip
    packed = pack_config(settings, {"dns_latency_ms", "connect_latency_ms"}, [(77, 3)], since_ns=99, n_stripes=4)
    assert len(packed) == size

    def number(name: str, index: int = 0, width: int = 4) -> int:
        return int.from_bytes(packed[offsets[name] + index * width : offsets[name] + (index + 1) * width], "little")

    latencies = [number("min_latency_ns", kind, width=8) for kind in range(16)]
    assert latencies[KINDS["dns_latency_ms"]] == latencies[KINDS["disk_io_latency_ms"]] == 1_500_000
    assert latencies[KINDS["connect_latency_ms"]] == 7_000_000
    assert latencies[KINDS["tcp_retransmits_total"]] == latencies[0] == 0
    assert (number("cgroup_token_ns", width=8), number("cgroup_burst_ns", width=8)) == (125_000_000, 375_000_000)
    assert (number("signal_token_ns", width=8), number("signal_burst_ns", width=8)) == (10_000_000, 1_000_000_000)
    assert (number("since_ns", width=8), number("histograms"), number("stripe_mask")) == (99, 0b110, 3)
    assert (number("cgroup_ids", width=8), number("cgroup_levels"), number("pids"), number("pids", 1)) == (77, 3, 7, 8)
    assert (number("n_cgroups"), number("n_pids"), number("wanted"), number("has_comm")) == (1, 2, 0b110, 1)
    assert packed[offsets["comm"] :] == b"0123456789abcde\0"


def test_packed_listener_is_the_c_struct() -> None:
    """The entry written for a server that was there before has the fields where the probe reads them."""
    listener = Listener(netns=11, port=8080, pid=77, comm="gunicorn", cgroup_path="/")
    key, value = pack_listener(listener, cgroup_id=5, seen_ns=9, passes=True)
    key_size, key_offsets = btf_struct("tcp_retransmits_total.tcp_retransmit_skb", "listener_key")
    size, offsets = btf_struct("tcp_retransmits_total.tcp_retransmit_skb", "port_listener")
    _, owner = btf_struct("tcp_retransmits_total.tcp_retransmit_skb", "slo_owner")
    assert (len(key), len(value)) == (key_size, size)
    assert (key_offsets, offsets) == ({"netns": 0, "port": 4}, {"owner": 0, "cookie": 48})
    assert key == (11).to_bytes(4, "little") + (8080).to_bytes(4, "little")
    assert [
        int.from_bytes(value[owner[name] : owner[name] + 4], "little") for name in ("seen_ns", "cgroup_id", "pid", "tid", "passes")
    ] == [9, 5, 77, 77, 1]
    assert value[owner["comm"] :].startswith(b"gunicorn\0")


def test_kinds_are_the_c_enum() -> None:
    """Signal numbers in Python are those of enum slo_kind."""
    header = (ROOT / "bpf/include/slo_event.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"(SLO_[A-Z_]+) = (\d+),", header)}
    expected = {
        "dns_latency_ms": "SLO_DNS_LATENCY",
        "connect_latency_ms": "SLO_CONNECT_LATENCY",
        "connect_errors_total": "SLO_CONNECT_ERROR",
        "tcp_retransmits_total": "SLO_TCP_RETRANSMIT",
        "mem_reclaim_latency_ms": "SLO_MEM_RECLAIM",
        "runqueue_delay_ms": "SLO_RUNQUEUE_DELAY",
        "cfs_throttled_ms": "SLO_CFS_THROTTLED",
        "cpu_steal_pct": "SLO_CPU_STEAL",
        "disk_io_latency_ms": "SLO_DISK_IO",
        "tls_handshake_ms": "SLO_TLS_HANDSHAKE",
        "tls_handshake_fail_total": "SLO_TLS_FAIL",
        "syscall_latency_ms": "SLO_SYSCALL_LATENCY",
    }
    assert {name: numbers[word] for name, word in expected.items()} == KINDS


def test_every_source_is_in_the_catalogue() -> None:
    """Each bpf/<signal>.<variant>.bpf.c is a variant, and each variant a source, but for the polled ones."""
    sources = {path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf").glob("*.bpf.c")}
    assert sources == {variant.object_name for variant in VARIANTS if not variant.polled}
