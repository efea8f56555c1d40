"""SIGKILL of an injector at many points: the next start finds what it left, and touches nothing of one that lives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import ground, injector, injector_files, run_faultinject
from lab_traces import Traces

from libslo.lab.faults.cgroup import read_limit
from libslo.lab.faults.control import ask_control
from libslo.lab.faults.undo import CGROUP_FILES, INJECTION_TAG
from libslo.lab.injectors import recover_stale
from libslo.lab.netns import netns_of
from libslo.lab.topology import ADDRESSES, Topology, importable

# An injector that stops for ever at a point of its life and says so.
_INJECTOR = """
import sys, time
from libslo.lab.faults import base, undo
from libslo.lab.faults.targets import find_target
from libslo.lab.injectors import make_injector, parse_settings

def stop(*_):
    print("stopped", flush=True)
    time.sleep(1000)

def then_stop(function):
    def run(*arguments, **named):
        function(*arguments, **named)
        stop()
    return run

point, fault, *words = sys.argv[1:]
one = make_injector(fault, parse_settings(words), find_target(fault))
if point == "before":
    one.put_on = stop
elif point == "recorded":
    one.remember = then_stop(one.remember)
elif point == "applied":
    one.put_on = then_stop(one.put_on)
elif point == "verifying":
    one.verify = stop
elif point == "undoing":
    undo._undo_step = then_stop(undo._undo_step)
elif point == "undone":
    one.let_go = stop
one.apply()
one.verify()
one.undo()
"""
_SERVICE = str(Path(__file__).with_name("fault_service.py"))
_FAULTS = {
    "dns_delay": "delay_ms=50",
    "dns_servfail": "ratio=0.5",
    "packet_loss": "ratio=0.2",
    "cpu_quota": "cpus=0.3",
    "memory_limit": "headroom_mb=8 pressure_mb=50",
    "app_stall": "delay_ms=5",
    **({"noisy_neighbour": "workers=2"} if shutil.which("stress-ng") else {}),
}
_POINTS = ("before", "recorded", "applied", "verifying", "undoing", "undone")


@pytest.fixture
def lab(named_lab: Topology) -> Iterator[Topology]:
    """Namespaces with the name server, and in the app role a service with a fault control."""
    process = named_lab.spawn("app", [sys.executable, _SERVICE, ADDRESSES["app"], "8080"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield named_lab
    process.stdout.close()


def _stopped_at(point: str, fault: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _INJECTOR, point, fault, *_FAULTS[fault].split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **importable()})
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n"
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _everything(lab: Topology) -> list[str]:
    """What faults may change: rules and qdiscs of two roles, limits, processes of injections, faults of the service."""
    limits = [path for name, controller in CGROUP_FILES.items() if (path := lab.cgroups[controller] / "app" / name).is_file()]
    return [ground(lab, "dns"), ground(lab, "app"), *(f"{path}: {read_limit(path)}" for path in limits), *_pressing(), *_leases(lab)]


def _leases(lab: Topology) -> list[str]:
    """Ids of the faults that the service has on."""
    said = ask_control(f"http://{ADDRESSES['app']}:8080", "GET", netns_of(lab.pids["app"]))
    return [one["id"] for one in said["active"]]


def _pressing() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"\0{INJECTION_TAG}=".encode() in b"\0" + (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def _crashes() -> Iterator[object]:
    """Every fault at every point; one fault of rules and one of limits at all points, the others where most is on, come each time."""
    for fault in _FAULTS:
        for point in _POINTS:
            each_time = fault in ("packet_loss", "cpu_quota") or point == "applied"
            yield pytest.param(fault, point, marks=() if each_time else pytest.mark.slow)


@pytest.mark.parametrize(("fault", "point"), list(_crashes()))
def test_killed_at(lab: Topology, traces: Traces, state: Path, fault: str, point: str) -> None:
    """Wherever an injector is killed, recover_stale() brings back rules, limits and processes, and the fault can be put on again."""
    before = _everything(lab)
    process = _stopped_at(point, fault)
    assert recover_stale() == []  # its maker lives
    if point == "verifying":
        assert _everything(lab) != before
    _kill(process)
    recover_stale()
    assert _everything(lab) == before
    assert injector_files(state) == []
    parameters = {name: float(value) for name, value in (word.split("=") for word in _FAULTS[fault].split())}
    again = injector(fault, **parameters)
    again.apply()
    again.verify()
    again.undo()
    assert _everything(lab) == before


def test_pressure_dies_with_its_killed_maker(lab: Topology) -> None:
    """Without any recovering, the pressing process is gone at once."""
    before = _pressing()
    process = _stopped_at("verifying", "memory_limit")
    assert len(_pressing()) > len(before)
    _kill(process)
    deadline_s = time.monotonic() + 2
    while _pressing() != before and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert _pressing() == before
    recover_stale()


def test_the_next_run_recovers(lab: Topology, state: Path) -> None:
    """faultinject itself takes off what a killed one left, and so does --recover, which says what it was."""
    before = _everything(lab)
    for fault in ("dns_delay", "cpu_quota"):
        _kill(_stopped_at("verifying", fault))
    assert len(injector_files(state)) == 2
    code, windows, _ = run_faultinject("--real", "dns_latency", "--duration", "0.2")
    assert (code, [window["phase"] for window in windows]) == (0, ["begin", "end"])
    assert _everything(lab) == before
    assert injector_files(state) == []
    _kill(_stopped_at("verifying", "packet_loss"))
    code, _, err = run_faultinject("--recover")
    assert code == 0
    assert "packet_loss (" in err and "of killed process" in err
    assert _everything(lab) == before


def test_a_living_injector_keeps_what_is_its(lab: Topology, state: Path) -> None:
    """Recovering beside a living injector removes only what the dead one left."""
    before = _everything(lab)
    living = _stopped_at("verifying", "packet_loss")
    with_living = _everything(lab)
    _kill(_stopped_at("verifying", "dns_delay"))
    assert len(recover_stale()) == 1
    assert _everything(lab) == with_living
    assert len(injector_files(state)) == 1
    _kill(living)
    recover_stale()
    assert _everything(lab) == before


def test_a_record_half_written_is_swept(state: Path, lab_ground: None) -> None:
    """The scratch file of a killed writer goes; that of a living one stays."""
    child = subprocess.Popen(["true"])
    child.wait()
    state.mkdir()
    state.chmod(0o700)
    dead, living = state / f"injection-x.{child.pid}.tmp", state / f"injection-y.{os.getpid()}.tmp"
    dead.touch()
    living.touch()
    recover_stale()
    assert (dead.exists(), living.exists()) == (False, True)
