"""mem_reclaim_latency_ms on the real kernel."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import ControlGroup, Recording, between, eventually, first_line, script, tell
from taskstats import delay_accounting, reclaim_delay

SIGNAL = "mem_reclaim_latency_ms"
PAGE = os.sysconf("SC_PAGESIZE")
both = pytest.mark.parametrize("variant", ["mm_vmscan", "raw_tp"])
LIMIT_BYTES, FILE_BYTES = 16 << 20, 64 << 20


@pytest.fixture
def files(kernel: None, tmp_path: Path) -> Iterator[list[Path]]:
    """Two files on a disk, and none of their pages in memory."""
    made = [tmp_path / "one", tmp_path / "two"]
    for path in made:
        with path.open("wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_share(made[0]) > 0.5:
        pytest.skip("the temporary directory keeps its files in memory (tmpfs): there is nothing to reclaim")
    yield made
    for path in made:
        path.unlink()


def resident_share(path: Path) -> float:
    """How much of a file is in memory, by mincore()."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // PAGE))()
        start = (ctypes.c_char * len(view)).from_buffer(view)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(view)), pages)
        del start
    assert not failed
    return sum(page & 1 for page in pages) / len(pages)


def recorded(variant: str, **settings: Any) -> Recording:
    return Recording(signals=(SIGNAL,), variants={SIGNAL: variant}, **settings)


def limited(group: ControlGroup) -> None:
    group.set(("memory.limit_in_bytes", LIMIT_BYTES), ("memory.max", LIMIT_BYTES))


@both
def test_a_reader_beyond_its_limit_waits_and_its_neighbour_does_not(files: list[Path], variant: str) -> None:
    """Every reclaim of a process in a limited cgroup is one event with its pid, cgroup and pages; none for one without a limit.

    Number and time agree with the kernel's delay accounting, pages with what was read and is not there any more.
    """
    with delay_accounting(), ControlGroup("memory") as tight, ControlGroup("memory") as wide:
        limited(tight)
        with script("mem_reader.py", files[0]) as reader, script("mem_reader.py", files[1]) as neighbour:
            tight.take(reader.pid)
            wide.take(neighbour.pid)
            with recorded(variant) as recording:
                tell(reader)
                tell(neighbour)
                told = json.loads(first_line(reader))
                first_line(neighbour)
                count, delay_ns = reclaim_delay(reader.pid)
                left = tight.read("memory.usage_in_bytes", "memory.current")[""]
                assert reclaim_delay(neighbour.pid) == (0, 0)
            pids, identity = (reader.pid, neighbour.pid), tight.id
    events = recording.of(SIGNAL, pids[0])
    assert recording.of(SIGNAL, pids[1]) == []
    assert len(events) == len(between(events, told)) > 10
    # The kernel counts a reclaim again when it found nothing and starts over (do_try_to_free_pages(), retry).
    assert len(events) <= count <= len(events) + 10
    assert {event["attributes"]["cgroup_id"] for event in events} == {identity}
    assert {(event["tid"], event["attributes"]["reclaim.scope"]) for event in events} == {(pids[0], "cgroup")}
    assert all(event["unit"] == "ms" and event["value"] > 0 and "conn_tuple" not in event for event in events)
    total_ms = sum(event["value"] for event in events)
    # The tracepoints enclose the kernel's own two clock readings.
    assert delay_ns / 1e6 <= total_ms <= 1.05 * delay_ns / 1e6 + 1
    assert total_ms <= (told["ended_ns"] - told["begun_ns"]) / 1e6
    freed = sum(event["attributes"]["reclaim.pages"] for event in events)
    assert freed == pytest.approx((FILE_BYTES - left) / PAGE, rel=0.03)
    recording.account(SIGNAL)


@both
def test_filters_and_rate_limit_are_counted(files: list[Path], variant: str) -> None:
    """The pid, cgroup and threshold filters keep other reclaims out, and the account of each closes over the same reads."""
    with ControlGroup("memory") as tight, ControlGroup("memory") as other:
        limited(tight)
        limited(other)
        with script("mem_reader.py", files[0]) as reader, script("mem_reader.py", files[1]) as neighbour:
            tight.take(reader.pid)
            other.take(neighbour.pid)
            with (
                recorded(variant, pids=(reader.pid,)) as by_pid,
                recorded(variant, cgroups=(tight.unified,)) as by_cgroup,
                recorded(variant, min_latency_ms=60_000) as by_time,
                recorded(variant, pids=(reader.pid,), rate_limit=5) as by_rate,
            ):
                for process in (reader, neighbour):
                    tell(process)
                    first_line(process)
            pids = reader.pid, neighbour.pid
    wanted = len(by_pid.of(SIGNAL, pids[0]))
    assert wanted > 10
    assert {event["pid"] for event in by_pid.events + by_cgroup.events} == {pids[0]}
    assert len(by_cgroup.events) == wanted
    assert by_time.events == []
    for recording in (by_pid, by_cgroup):
        assert recording.account(SIGNAL)["filtered"] > 10
    assert by_time.account(SIGNAL)["filtered"] >= wanted + 10
    limited_account = by_rate.account(SIGNAL)
    assert limited_account["emitted"] + limited_account["rate_limited"] == wanted
    assert 5 <= limited_account["emitted"] < wanted


@both
def test_no_start_is_left(files: list[Path], variant: str) -> None:
    """A process that is killed while it frees memory leaves no entry behind."""
    from libslo.kernel.libbpf import map_lookup_batch
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with ControlGroup("memory") as tight, Session(CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant})) as session:
        limited(tight)
        with script("mem_reader.py", files[0]) as reader:
            tight.take(reader.pid)
            tell(reader)
            eventually(lambda: bool(session.drain()))
        (state,) = session.states
        assert state.probe is not None
        fd = state.probe.object.map_fd("reclaim_starts")
        assert map_lookup_batch(fd, 4, 8, 8192)[2] == 0
