"""What user space makes of the records of read and write calls, and of tracepoints' formats: no kernel is needed."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libslo.errors import CannotError
from libslo.kernel.catalogue import VARIANTS
from libslo.kernel.events import EVENT_DTYPE, KINDS, probe_events
from libslo.kernel.files import name_files
from libslo.kernel.tracepoints import check_formats, field_offsets

ROOT = Path(__file__).parents[2]
NOBODY = SimpleNamespace(node="n", namespace="", pod="", container="", service="", workload="", ns_pid=0)
FORMAT = """name: block_rq_issue
ID: 2104
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:60;	size:4;	signed:0;

print fmt: "%d,%d"
"""


def events_of(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
    records = np.zeros(len(rows), EVENT_DTYPE)
    records["kind"] = KINDS["syscall_latency_ms"]
    for record, row in zip(records, rows, strict=True):
        for name, value in row.items():
            record[name] = value
    return probe_events(records, 0, lambda *_: NOBODY)


def test_only_a_wait_for_storage_is_graded() -> None:
    """Half a second in read is an error on a file, and none on a socket or on what is not known; fsync is about storage whatever it is."""
    long = {"duration_ns": 500_000_000}
    rows = [
        {**long, "value": 1, "tcp_state": 8, "device": 3}, {**long, "value": 1, "tcp_state": 12, "device": 4},
        {**long, "value": 1, "device": 0xFFFFFFFF}, {**long, "value": 11}, {"value": 2, "tcp_state": 1, "err": 32},
    ]  # fmt: skip
    events = events_of(rows)
    assert [event["status"] for event in events] == ["error", "ok", "ok", "error", "error"]
    about = [event["attributes"] for event in events]
    assert [each["syscall.name"] for each in about] == ["read", "read", "read", "fsync", "write"]
    assert [each["syscall.file"] for each in about] == ["regular", "socket", "unknown", "unknown", "pipe"]
    assert [each["syscall.waits_for"] for each in about] == ["storage", "peer", "peer", "storage", "peer"]
    assert [each.get("syscall.fd") for each in about] == [3, 4, None, 0, 0]
    assert events[4]["errno"] == 32


def test_names_are_those_of_the_c_enum() -> None:
    """Each number of enum slo_call gives the name that it has in C."""
    header = (ROOT / "bpf/include/slo_event.h").read_text()
    numbers = {int(value): name.lower() for name, value in re.findall(r"SLO_CALL_([A-Z0-9]+) = (\d+),", header)}
    events = events_of([{"value": number} for number in range(1, len(numbers))])
    assert [event["attributes"]["syscall.name"] for event in events] == [numbers[number] for number in range(1, len(numbers))]


def test_descriptors_are_looked_up(tmp_path: Path) -> None:
    """A descriptor of a living process is named by what it is; what the probe knew stays, and what is gone is unknown."""
    near, far = socket.socketpair()
    descriptors = [os.open(tmp_path, os.O_RDONLY), near.fileno(), 1 << 20, near.fileno(), near.fileno()]
    records = np.zeros(len(descriptors), EVENT_DTYPE)
    records["kind"] = KINDS["syscall_latency_ms"]
    records["pid"], records["device"] = os.getpid(), descriptors
    records["tcp_state"][3] = 8
    records["kind"][4] = KINDS["disk_io_latency_ms"]
    name_files(records)
    assert records["tcp_state"].tolist() == [4, 12, 0, 8, 0]
    os.close(descriptors[0])
    near.close()
    far.close()


def test_offsets_are_read_from_a_format() -> None:
    """Each field by its name, without its type or its length."""
    assert field_offsets(FORMAT) == {"common_type": 0, "dev": 8, "rwbs": 34, "cmd": 60}


def test_a_kernel_with_other_records_is_refused(tmp_path: Path) -> None:
    """A field elsewhere, a tracepoint that is not there and a tracefs that is not mounted are each named."""
    place = tmp_path / "events/block/block_rq_issue"
    place.mkdir(parents=True)
    (place / "format").write_text(FORMAT)
    check_formats({"block/block_rq_issue": {"dev": (8,), "rwbs": (32, 34)}}, (tmp_path,))
    with pytest.raises(CannotError, match="field rwbs of block/block_rq_issue is at 34, not at 32"):
        check_formats({"block/block_rq_issue": {"rwbs": (32,)}}, (tmp_path,))
    with pytest.raises(CannotError, match="no tracepoint block/block_rq_insert"):
        check_formats({"block/block_rq_insert": {}}, (tmp_path,))
    with pytest.raises(CannotError, match="no tracefs is mounted"):
        check_formats({"block/block_rq_issue": {}}, (tmp_path / "nowhere",))


def test_every_classic_tracepoint_is_checked() -> None:
    """A variant of classic tracepoints names the fields of each one that its source attaches to, and no other variant does."""
    for variant in VARIANTS:
        if not variant.object_name:
            continue
        source = (ROOT / "bpf" / f"{variant.object_name}.bpf.c").read_text()
        assert set(variant.formats) == set(re.findall(r'SEC\("tracepoint/([\w/]+)"\)', source)), variant.object_name
