"""disk_io_latency_ms on the real kernel."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import CLOCK_SLACK_MS, ControlGroup, Recording, first_line, io_group, prefer, script, tell

SIGNAL = "disk_io_latency_ms"
READS, WRITES = 1000, 50
VARIANTS = ["block_io", "block_rq", "tracepoint"]
every = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture
def file(kernel: None, tmp_path: Path) -> Iterator[Path]:
    """A file of 8 MiB on a block device, written down."""
    path = tmp_path / "blocks"
    with path.open("wb") as made:
        made.write(os.urandom(8 << 20))
        made.flush()
        os.fsync(made.fileno())
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("no file system with O_DIRECT below the temporary directory")
    device = path.stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
        pytest.skip("the temporary directory is on no block device")
    yield path
    path.unlink()


def recorded(variant: str, **settings: Any) -> Recording:
    return Recording(signals=(SIGNAL,), variants={SIGNAL: variant}, **settings)


@every
def test_each_request_is_timed_as_on_its_owners_clock(file: Path, variant: str) -> None:
    """1,050 direct reads and writes are as many events of the process that made them, each within its call, with queue and device apart."""
    # The kernel skips the programs of a classic tracepoint now and then, where another one is under way on the same CPU.
    for _ in range(4 if variant == "tracepoint" else 1):
        with script("disk_user.py", file, READS, WRITES) as user, recorded(variant) as recording:
            prefer(user)
            tell(user)
            done = json.loads(first_line(user))
            pid = user.pid
        events = recording.of(SIGNAL, pid)
        if len(events) == len(done):
            break
    assert len(events) == len(done) == READS + WRITES
    device = file.stat().st_dev
    over = []
    for event, (is_write, begun_ns, ended_ns) in zip(events, done, strict=True):
        about = event["attributes"]
        assert begun_ns - CLOCK_SLACK_MS * 1e6 <= event["ts_unix_nano"] <= ended_ns + CLOCK_SLACK_MS * 1e6
        assert 0 < event["value"] <= (ended_ns - begun_ns) / 1e6
        assert about["disk.operation"] == ("write" if is_write else "read")
        assert about["disk.queue_ms"] + about["disk.device_ms"] == pytest.approx(event["value"])
        assert about["disk.queue_ms"] >= 0 < about["disk.device_ms"]
        assert about["disk.device"].split(":")[0] == str(os.major(device))
        assert (event["tid"], event["unit"], "conn_tuple" in event) == (pid, "ms", False)
        over.append((ended_ns - begun_ns) / 1e6 - event["value"])
    typical_ms = statistics.median((ended_ns - begun_ns) / 1e6 for _, begun_ns, ended_ns in done)
    assert statistics.median(over) <= max(0.05 * typical_ms, CLOCK_SLACK_MS)
    recording.account(SIGNAL)


@pytest.fixture
def loop_device(file: Path) -> Iterator[str]:
    """A block device whose requests are reads of the file, past the page cache."""
    subprocess.run(["modprobe", "loop"], capture_output=True)  # where it is a module
    made = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", str(file)], check=True, capture_output=True, text=True)
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@every
def test_a_slow_device_is_as_slow_as_its_reader_saw(file: Path, loop_device: str, variant: str) -> None:
    """Of a device whose own disk is limited to ten reads a second, each request takes the time that its reader waited, at the device."""
    disk, slow = file.stat().st_dev, Path(loop_device).stat().st_rdev
    number = f"{os.major(disk)}:{os.minor(disk)}"
    with io_group() as group, script("disk_user.py", loop_device, 15, 0) as user:
        group.set(("blkio.throttle.read_iops_device", f"{number} 10"), ("io.max", f"{number} riops=10"))
        group.take(user.pid)
        prefer(user)
        with recorded(variant, pids=(user.pid,)) as recording:
            tell(user)
            done = json.loads(first_line(user))
        pid = user.pid
    events = [event for event in recording.of(SIGNAL, pid) if event["attributes"]["disk.device"] == f"{os.major(slow)}:{os.minor(slow)}"]
    lengths_ms = [(ended_ns - begun_ns) / 1e6 for _, begun_ns, ended_ns in done]
    assert len(events) == len(done)
    assert statistics.median(lengths_ms) > 20
    for event, length_ms in zip(events, lengths_ms, strict=True):
        assert event["value"] <= length_ms
        assert event["attributes"]["disk.device_ms"] == pytest.approx(event["value"], abs=max(0.1 * event["value"], 5))
    typical_ms = statistics.median(lengths_ms)
    assert statistics.median(event["value"] for event in events) == pytest.approx(typical_ms, abs=max(0.05 * typical_ms, CLOCK_SLACK_MS))
    recording.account(SIGNAL)


def merges(device: int) -> int:
    """Reads that the kernel has merged, Documentation/admin-guide/iostats.rst, field 2."""
    return int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()[1])


@every
def test_a_merged_request_is_part_of_another(file: Path, variant: str) -> None:
    """Of three reads side by side the first and the last are requests, and become one: one event, one request filtered.

    The variants that see a request when it is in its queue never see the one that is merged on its way there.
    """
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    device, rounds = file.stat().st_dev, 20
    with (
        script("disk_merger.py", file, rounds) as user,
        Session(CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant}, pids=(user.pid,))) as session,
    ):
        before = merges(device)
        tell(user)
        first_line(user)
        if merges(device) - before < 2 * rounds:
            pytest.skip(f"the device merged {merges(device) - before} reads: it has no scheduler, or the file is not in one piece")
        assert len(session.drain()) == rounds
        assert user.pid not in waiting(session, variant)
        account = session.report(final=True)["signals"][0]["account"]
        assert account["filtered"] >= (rounds if variant == "block_io" else 0)


def waiting(session: Any, variant: str) -> set[int]:
    """The processes with requests in the map."""
    from libslo.kernel.libbpf import map_lookup_batch

    fd = session.states[0].probe.object.map_fd("io_starts")
    _, starts, count = map_lookup_batch(fd, 16 if variant == "tracepoint" else 8, 56, 16384)
    return {struct.unpack_from("<I", starts, 56 * index + 16)[0] for index in range(count)}


@every
def test_filters_are_counted(file: Path, variant: str) -> None:
    """The pid and cgroup filters pass one process's requests and count the other's, the threshold and the rate limit count theirs."""
    with ControlGroup("memory") as group, script("disk_user.py", file, 100, 0) as wanted, script("disk_user.py", file, 100, 0) as other:
        group.take(wanted.pid)
        with (
            recorded(variant, pids=(wanted.pid,)) as by_pid,
            recorded(variant, cgroups=(group.unified,)) as by_cgroup,
            recorded(variant, pids=(wanted.pid,), min_latency_ms=60_000) as by_time,
            recorded(variant, pids=(wanted.pid,), rate_limit=5) as by_rate,
        ):
            for process in (wanted, other):
                tell(process)
                first_line(process)
        pid = wanted.pid
        wanted.kill()
        wanted.wait()
    for recording in (by_pid, by_cgroup):
        assert [event["pid"] for event in recording.events] == [pid] * 100
        assert recording.account(SIGNAL)["filtered"] >= 100
    assert by_time.events == []
    assert by_time.account(SIGNAL)["filtered"] >= 200
    limited = by_rate.account(SIGNAL)
    assert limited["emitted"] + limited["rate_limited"] == 100
    assert 5 <= limited["emitted"] < 100


@every
def test_no_start_is_left(file: Path, variant: str) -> None:
    """When its requests have come back, none of a process is left in the map."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with (
        script("disk_user.py", file, 100, 20) as user,
        Session(CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant}, pids=(user.pid,))) as session,
    ):
        tell(user)
        first_line(user)
        assert len(session.drain()) == 120
        assert user.pid not in waiting(session, variant)
