"""Faults of a cgroup: quota by CPU time, memory by what the kernel counts and who survives, neighbours by what is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import injector, injector_files
from lab_traces import Traces

from libslo.errors import CannotError, InputError
from libslo.host import cgroup_mount, process_cpu_s
from libslo.lab.faults import cgroup as module
from libslo.lab.faults.base import Target
from libslo.lab.faults.cgroup import read_limit
from libslo.lab.faults.pressure import pressing_way
from libslo.lab.faults.targets import find_target
from libslo.lab.faults.undo import CGROUP_FILES, tagged_pids
from libslo.lab.injectors import make_injector
from libslo.lab.topology import Topology

_SPIN = "print('ready', flush=True)\nwhile True: pass"
# A service: holds 30 MB of its own, reads a file of 20 MB again and again, and says how long each turn took.
_READER = """
import os, sys, tempfile, time
own = bytearray(30_000_000)
with tempfile.TemporaryFile(dir="/var/tmp", buffering=0) as file:
    file.truncate(20_000_000)
    print("ready", flush=True)
    while True:
        file.seek(0)
        while file.read(1 << 20):
            pass
        time.sleep(0.01)
"""
# Grows by 1 MB every 50 ms, up to the number given.
_GROWER = """
import sys, time
print("ready", flush=True)
own = []
for _ in range(int(sys.argv[1])):
    own.append(bytearray(b"x" * 1_000_000))
    time.sleep(0.05)
print("grown", flush=True)
time.sleep(100)
"""


@pytest.fixture
def lab(traces: Traces) -> Iterator[Topology]:
    """Namespaces and cgroups with nothing in them."""
    with Topology() as topology:
        if set(topology.cgroups) != {"cpu", "memory"}:
            pytest.skip("no lab here: neither cgroup v1 nor v2 has the cpu and memory controllers")
        yield topology


def _start(lab: Topology, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    process = lab.spawn("app", [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"  # it is in its cgroups and at work
    return process


def _limits(lab: Topology) -> dict[str, str]:
    """Every limit of the app role that a fault may change."""
    found = {}
    for name, controller in CGROUP_FILES.items():
        path = lab.cgroups[controller] / "app" / name
        if path.is_file():
            found[name] = read_limit(path)
    return found


def _cpus(pid: int, seconds: float = 1.0) -> float:
    """How many CPUs a process uses."""
    before, began = process_cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    after = process_cpu_s(pid)
    assert before is not None
    assert after is not None
    return (after - before) / (time.monotonic() - began)


def test_quota_by_cpu_time(lab: Topology, state: Path) -> None:
    """A busy loop gets a tenth of a CPU as asked, and what it got before afterwards; every limit is as it was."""
    limits = _limits(lab)
    process = _start(lab, _SPIN)
    fault = injector("cpu_quota", cpus=0.1)
    fault.apply()
    try:
        _cpus(process.pid, 0.3)
        assert _cpus(process.pid, 2) == pytest.approx(0.1, abs=0.03)
        measured = fault.verify()
    finally:
        fault.undo()
    assert measured["cpus"] == 0.1
    assert measured["throttled_periods"] > 5
    assert _limits(lab) == limits
    assert _cpus(process.pid) > 0.2
    assert injector_files(state) == []


def test_an_older_quota_comes_back_exactly(lab: Topology) -> None:
    """A quota and a period that somebody had set are what is there afterwards."""
    _start(lab, _SPIN)
    place, mount = lab.cgroups["cpu"] / "app", cgroup_mount("cpu")
    assert mount is not None
    if mount[1] == 1:
        (place / "cpu.cfs_period_us").write_text("50000")
        (place / "cpu.cfs_quota_us").write_text("35000")
    else:
        (place / "cpu.max").write_text("35000 50000")
    limits = _limits(lab)
    fault = injector("cpu_quota", cpus=0.2, period_ms=20)
    fault.apply()
    assert _limits(lab) != limits
    fault.verify()
    fault.undo()
    assert _limits(lab) == limits


def test_a_quota_that_somebody_changed_is_no_truth(lab: Topology) -> None:
    """verify() compares with what the kernel has now."""
    _start(lab, _SPIN)
    fault = injector("cpu_quota", cpus=0.2)
    fault.apply()
    name, value = ("cpu.max", "max 100000") if "cpu.max" in _limits(lab) else ("cpu.cfs_quota_us", "-1")
    (lab.cgroups["cpu"] / "app" / name).write_text(value)
    with pytest.raises(CannotError, match="cpu_quota did not take"):
        fault.verify()
    fault.undo()


@pytest.mark.parametrize("way", ["files", "memory"])
def test_memory_is_reclaimed_and_nobody_killed(lab: Topology, state: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """At its limit the cgroup frees pages all the time; the service and its pressure live; limit and processes are as before."""
    if way == "memory" or pressing_way() == "memory":  # where there is no disk, there is one way only
        monkeypatch.setattr(module, "pressing_way", lambda: "memory")
    limits = _limits(lab)
    process = _start(lab, _READER)
    fault = injector("memory_limit", headroom_mb=8, pressure_mb=100)
    fault.apply()
    try:
        first = fault.verify()
        scanned = _reclaimed(lab)
        time.sleep(1)
        second = fault.verify()
        assert _reclaimed(lab) > scanned
        assert second["limit_hits"] > first["limit_hits"] > 0
        assert _oom_kills(lab) == 0
        assert process.poll() is None
        assert tagged_pids(fault.tag) != []  # type: ignore[attr-defined]
    finally:
        fault.undo()
    assert tagged_pids(fault.tag) == []  # type: ignore[attr-defined]
    assert _limits(lab) == limits
    assert process.poll() is None
    assert injector_files(state) == []


def _reclaimed(lab: Topology) -> int:
    """Times an allocation met the limit and pages were freed for it."""
    place = lab.cgroups["memory"] / "app"
    if (place / "memory.failcnt").is_file():
        return int(read_limit(place / "memory.failcnt"))
    return int(dict(line.split() for line in read_limit(place / "memory.stat").splitlines())["pgsteal_direct"])


def _oom_kills(lab: Topology) -> int:
    place = lab.cgroups["memory"] / "app"
    name = "memory.oom_control" if (place / "memory.oom_control").is_file() else "memory.events"
    return int(dict(line.split() for line in read_limit(place / name).splitlines())["oom_kill"])


def test_a_service_that_grows_is_not_killed(lab: Topology) -> None:
    """A service that comes to need far more than the headroom gets it: the limit is raised, and said to be."""
    limits = _limits(lab)
    process = _start(lab, _GROWER, "60")
    fault = injector("memory_limit", headroom_mb=16, pressure_mb=100)
    fault.apply()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"grown\n"
        measured = fault.verify()
    finally:
        fault.undo()
    assert process.poll() is None
    assert _oom_kills(lab) == 0
    assert measured["limit_raised"] > 0
    assert _limits(lab) == limits


def test_way_of_pressing() -> None:
    """Files where they are on a disk, whatever is mounted above or beside them; memory where they are in memory or nobody knows."""
    assert pressing_way("/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n") == "files"
    assert pressing_way("/dev/vda / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\n") == "memory"
    assert pressing_way("overlay / overlay rw 0 0\n/dev/vdb /var xfs rw 0 0\n") == "files"
    assert pressing_way("overlay / overlay rw 0 0\n") == pressing_way("") == "memory"


def test_pressure_goes_before_the_service(lab: Topology) -> None:
    """Should the kernel have to kill after all, it takes the process that presses."""
    _start(lab, _READER)
    fault = injector("memory_limit", headroom_mb=8, pressure_mb=50)
    fault.apply()
    try:
        pressing = tagged_pids(fault.tag)  # type: ignore[attr-defined]
        assert [Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in pressing] == ["1000"]
    finally:
        fault.undo()


def test_pressure_that_ended_is_no_truth(lab: Topology) -> None:
    """When the pressing process is gone and the limit is not met, verify() says so."""
    _start(lab, _SPIN)
    fault = injector("memory_limit", headroom_mb=200, pressure_mb=201)
    fault.apply()
    for pid in tagged_pids(fault.tag):  # type: ignore[attr-defined]
        os.kill(pid, 9)
    try:
        with pytest.raises(CannotError, match=r"went off|does not meet its limit"):
            fault.verify()
    finally:
        fault.undo()


def test_an_empty_cgroup_is_refused(lab: Topology) -> None:
    """A limit on nobody is no fault."""
    place = lab.cgroups["cpu"] / "app" / "empty"
    place.mkdir()
    try:
        with pytest.raises(CannotError, match="no process is in the cgroup"):
            injector("cpu_quota", f"cgroup:{place}", cpus=0.1).apply()
    finally:
        place.rmdir()


def test_cgroup_by_pid_and_path(lab: Topology) -> None:
    """A pid, a path and the role name the same cgroup, so the same fault twice is refused; outside a lab permission is needed."""
    process = _start(lab, _SPIN)
    place = lab.cgroups["cpu"] / "app"
    assert find_target("cpu_quota", f"pid:{process.pid}").cgroups["cpu"][0] == place
    assert find_target("cpu_quota", f"cgroup:{place}").cgroups["cpu"][0] == place
    first = injector("cpu_quota", f"pid:{process.pid}", cpus=0.5)
    first.apply()
    try:
        for target in (f"cgroup:{place}", None):
            with pytest.raises(CannotError, match=f"cpu_quota is on already at .* put on by process {os.getpid()}"):
                injector("cpu_quota", target, cpus=0.3).apply()
        first.verify()
    finally:
        first.undo()
    outside = place.parent.parent / f"slo-test-{os.getpid()}"
    outside.mkdir()
    try:
        with pytest.raises(InputError, match=f"cpu_quota would touch cgroup {outside}, which is in no lab"):
            find_target("cpu_quota", f"cgroup:{outside}")
        assert find_target("cpu_quota", f"cgroup:{outside}", allow_outside=True).cgroups["cpu"][0] == outside
    finally:
        outside.rmdir()


def test_without_controllers(lab: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither cgroup v1 nor v2 has a controller, the refusal names what is missing."""
    _start(lab, _SPIN)
    target = find_target("cpu_quota")
    monkeypatch.setattr("libslo.lab.faults.base.cgroup_mount", lambda controller: None)
    with pytest.raises(CannotError, match=r"the cpu controller is not in cgroup v2; .*the cpu controller is not in cgroup v1") as caught:
        module.CpuQuota("cpu_quota", {"cpus": 0.1, "period_ms": 100}, target).apply()
    assert caught.value.hint


def test_neighbours_take_the_cpu(lab: Topology, state: Path) -> None:
    """A busy process on the same CPUs is left with much less than before, and gets it back; without stress-ng the package is named."""
    process = _start(lab, _SPIN)
    fault = injector("noisy_neighbour", workers=8)
    if shutil.which("stress-ng") is None:
        with pytest.raises(CannotError, match="stress-ng is not installed") as caught:
            fault.apply()
        assert caught.value.hint == "apt-get install stress-ng"
        return
    alone = _cpus(process.pid)
    fault.apply()
    try:
        measured = fault.verify()
        pressed = _cpus(process.pid, 2)
    finally:
        fault.undo()
    assert measured["workers"] >= 8
    assert pressed < 0.5 * alone
    assert tagged_pids(fault.tag) == []  # type: ignore[attr-defined]
    assert injector_files(state) == []


def test_without_stress_ng(lab: Topology, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is named with its package."""
    _start(lab, _SPIN)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotError, match="stress-ng is not installed"):
        injector("noisy_neighbour", workers=1).apply()
    assert injector_files(state) == []


@pytest.fixture
def plain_directory(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as those of a cgroup2 directory, for machines that have the controllers elsewhere: what is written and written back is seen."""
    for name, text in {
        "cgroup.procs": str(os.getpid()), "cpu.max": "max 100000", "cpu.stat": "nr_throttled 3", "memory.max": "max",
        "memory.current": "50000000",
        "memory.events": "max 5\noom_kill 0", "memory.stat": "anon 20000000\ninactive_file 20000000\nactive_file 10000000",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("libslo.lab.faults.base.missing", lambda mechanism: [])
    monkeypatch.setattr("libslo.lab.faults.undo.cgroup_mount", lambda controller: (tmp_path, 2))
    return tmp_path


def test_cpu_quota_of_cgroup2(plain_directory: Path) -> None:
    """cpu.max gets quota and period in microseconds, and its old value back."""
    target = Target("x", {}, cgroups={"cpu": (plain_directory, 2)})
    fault = make_injector("cpu_quota", {"cpus": 0.25, "period_ms": 50}, target)
    fault.apply()
    assert (fault.mechanism, read_limit(plain_directory / "cpu.max")) == ("cpu.max", "12500 50000")
    assert fault.verify() == {"cpus": 0.25, "throttled_periods": 0}
    fault.undo()
    assert read_limit(plain_directory / "cpu.max") == "max 100000"


def test_a_quota_below_what_the_kernel_takes_is_refused(plain_directory: Path) -> None:
    """Not raised in silence: what a fault-window says must be what was on."""
    target = Target("x", {}, cgroups={"cpu": (plain_directory, 2)})
    with pytest.raises(InputError, match=r"0\.5 ms in a period of 5 ms is less than the kernel takes"):
        make_injector("cpu_quota", {"cpus": 0.1, "period_ms": 5}, target).apply()
    assert read_limit(plain_directory / "cpu.max") == "max 100000"


def test_a_disk_without_room_is_not_filled(plain_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pressing processes may write has to fit, else nothing is changed."""
    monkeypatch.setattr(module, "free_bytes", lambda: 10**9)
    monkeypatch.setattr(module, "pressing_way", lambda: "files")
    target = Target("x", {}, cgroups={"memory": (plain_directory, 2)})
    with pytest.raises(CannotError, match=r"may write 4\.0 GB, and there is room for 1\.0"):
        make_injector("memory_limit", {"headroom_mb": 10, "pressure_mb": 400, "writers": 10}, target).apply()
    assert read_limit(plain_directory / "memory.max") == "max"


def test_memory_limit_of_cgroup2(plain_directory: Path) -> None:
    """memory.max gets what is in use and the headroom, more when the service comes to need it, and its old value back."""
    target = Target("x", {}, cgroups={"memory": (plain_directory, 2)})
    fault = make_injector("memory_limit", {"headroom_mb": 10}, target)
    fault.apply()
    assert fault.mechanism == "memory.max"
    assert int(read_limit(plain_directory / "memory.max")) == 60_000_000 // 4096 * 4096
    (plain_directory / "memory.current").write_text("95000000\n")
    time.sleep(0.3)
    assert fault.verify()["limit_raised"] == 1
    assert int(read_limit(plain_directory / "memory.max")) == 75_000_000 // 4096 * 4096
    fault.undo()
    assert read_limit(plain_directory / "memory.max") == "max"
