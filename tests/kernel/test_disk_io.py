"""disk_io_latency_ms on the real kernel."""

from __future__ import annotations

import json
import os
import statistics
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import ControlGroup, Recording, first_line, script, tell

SIGNAL = "disk_io_latency_ms"
READS, WRITES = 200, 50
VARIANTS = ["block_io", "block_rq", "tracepoint"]
every = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture
def file(kernel: None, tmp_path: Path) -> Iterator[Path]:
    """A file of 4 MiB on a block device, written down."""
    path = tmp_path / "blocks"
    with path.open("wb") as made:
        made.write(os.urandom(4 << 20))
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
    """250 direct reads and writes are 250 events of the process that made them, each within its call, with queue and device apart."""
    with script("disk_user.py", file, READS, WRITES) as user, recorded(variant) as recording:
        tell(user)
        done = json.loads(first_line(user))
        pid = user.pid
    events = recording.of(SIGNAL, pid)
    assert len(events) == len(done) == READS + WRITES
    device = file.stat().st_dev
    over = []
    for event, (is_write, begun_ns, ended_ns) in zip(events, done, strict=True):
        about = event["attributes"]
        assert begun_ns <= event["ts_unix_nano"] <= ended_ns
        assert 0 < event["value"] <= (ended_ns - begun_ns) / 1e6
        assert about["disk.operation"] == ("write" if is_write else "read")
        assert about["disk.queue_ms"] + about["disk.device_ms"] == pytest.approx(event["value"])
        assert about["disk.queue_ms"] >= 0 < about["disk.device_ms"]
        assert about["disk.device"].split(":")[0] == str(os.major(device))
        assert (event["tid"], event["unit"], "conn_tuple" in event) == (pid, "ms", False)
        over.append((ended_ns - begun_ns) / 1e6 - event["value"])
    typical_ms = statistics.median((ended_ns - begun_ns) / 1e6 for _, begun_ns, ended_ns in done)
    assert statistics.median(over) <= max(0.05 * typical_ms, 1)
    recording.account(SIGNAL)


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
    from libslo.kernel.libbpf import map_lookup_batch
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with (
        script("disk_user.py", file, 100, 20) as user,
        Session(CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant}, pids=(user.pid,))) as session,
    ):
        tell(user)
        first_line(user)
        (state,) = session.states
        assert state.probe is not None
        assert len(session.drain()) == 120
        key_bytes = 16 if variant == "tracepoint" else 8
        _, starts, count = map_lookup_batch(state.probe.object.map_fd("io_starts"), key_bytes, 56, 16384)
        assert user.pid not in {struct.unpack_from("<I", starts, 56 * index + 16)[0] for index in range(count)}
