"""Namespaces, cgroups and processes of a lab: up, down, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lab_traces import Traces

from libslo.errors import CannotError
from libslo.host import cgroup_mount
from libslo.lab import topology as module
from libslo.lab.state import write_record
from libslo.lab.topology import ADDRESSES, Topology, cgroup2_root, recover, running_lab

_RUNNER = """
import sys, time
from libslo.lab.topology import Topology
with Topology() as topology:
    topology.spawn("app", ["sleep", "100"])
    print(topology.lab_id, flush=True)
    time.sleep(100)
"""


def test_up_and_down_leaves_nothing(traces: Traces) -> None:
    """After a lab, processes, namespaces, cgroups, mounts, devices and state files are what they were before."""
    before = (traces.processes(), traces.mounts(), traces.links(), traces.files())
    with Topology() as topology:
        topology.spawn("app", ["sleep", "100"])
        cgroup = f"slo-lab-{topology.lab_id}"
        assert len(traces.namespaces()) == len(ADDRESSES) + 1
        assert cgroup in traces.cgroups()
        assert (traces.mounts(), traces.links()) == before[1:3]
        assert running_lab().pids.keys() == ADDRESSES.keys()
    assert traces.namespaces() == set()
    assert cgroup not in traces.cgroups()
    assert (traces.processes(), traces.mounts(), traces.links(), traces.files()) == before
    with pytest.raises(CannotError, match="no lab is running"):
        running_lab()


def test_role_has_its_own_network_resolver_and_cgroup(traces: Traces) -> None:
    """A command in a role has that role's address, the lab's resolver and the role's cgroup; this process keeps its own."""
    own = Path("/etc/resolv.conf").read_text()
    with Topology() as topology:
        look = "cat /etc/resolv.conf; ip -4 -br address show eth0; grep ^0:: /proc/self/cgroup"
        process = topology.spawn("app", ["sh", "-c", look], stdout=subprocess.PIPE)
        said = process.communicate(timeout=10)[0].decode()
        assert f"nameserver {ADDRESSES['dns']}\n" in said
        assert f"{ADDRESSES['app']}/24" in said
        assert f"0::/slo-lab-{topology.lab_id}/app" in said
        assert Path("/etc/resolv.conf").read_text() == own


def test_role_can_be_limited_alone(traces: Traces) -> None:
    """Where the machine has the cpu and memory controllers, v1 or v2, a process of a role is in the role's own cgroup of each."""
    with Topology() as topology:
        process = topology.spawn("app", ["sleep", "100"])
        expected = {controller for controller in ("cpu", "memory") if _offered(controller)}
        assert set(topology.cgroups) == expected
        places = running_lab().cgroups["app"]
        assert {controller: Path(path) for controller, path in places.items()} == {c: p / "app" for c, p in topology.cgroups.items()}
        deadline = time.monotonic() + 5
        for path in places.values():
            while str(process.pid) not in (Path(path) / "cgroup.procs").read_text().split() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert str(process.pid) in (Path(path) / "cgroup.procs").read_text().split()
        (Path(places["cpu"]).parent / "dns" / "inner").mkdir()  # whatever somebody made below a role goes with it
    assert not any(Path(path).parent.exists() for path in places.values())


def _offered(controller: str) -> bool:
    mount = cgroup_mount(controller)
    return mount is not None and (mount[1] == 1 or controller in (mount[0] / "cgroup.controllers").read_text().split())


@pytest.mark.parametrize(("own", "children", "enabled"), [("cpu memory", "", True), ("cpu memory", "cpu", True), ("memory", "", False)])
def test_controllers_are_enabled_for_the_children(tmp_path: Path, own: str, children: str, enabled: bool) -> None:
    """On cgroup2 a controller is enabled once where the kernel offers it. A directory stands in: this machine has none on cgroup2."""
    (tmp_path / "cgroup.controllers").write_text(own)
    if enabled:
        (tmp_path / "cgroup.subtree_control").write_text(children)
    assert module._enable(tmp_path, "cpu") is enabled
    assert not enabled or (tmp_path / "cgroup.subtree_control").read_text() == ("cpu" if children else "+cpu")


def test_killed_runner_leaves_no_process(traces: Traces) -> None:
    """SIGKILL to the runner ends every process and namespace by itself; the next start removes its cgroups and files."""
    runner = subprocess.Popen([sys.executable, "-c", _RUNNER], stdout=subprocess.PIPE, env={**os.environ, **module.importable()})
    assert runner.stdout is not None
    lab_id = runner.stdout.readline().decode().strip()
    assert len(traces.namespaces()) == len(ADDRESSES) + 1
    runner.kill()
    runner.communicate()
    deadline = time.monotonic() + 5
    while traces.processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert traces.processes() == {}
    assert f"slo-lab-{lab_id}" in traces.cgroups()
    assert traces.files() == [f"files-{lab_id}", f"lab-{lab_id}.json"]
    with Topology() as topology:
        assert f"slo-lab-{lab_id}" not in traces.cgroups()
        assert f"slo-lab-{topology.lab_id}" in traces.cgroups()
        assert f"lab-{lab_id}.json" not in traces.files()
    assert traces.files() == []


def test_recover_leaves_a_living_lab_alone(traces: Traces) -> None:
    """Recovering while a lab of a living owner runs removes nothing of it, and two labs run side by side."""
    with Topology() as first, Topology() as second:
        assert recover() == []
        assert {f"slo-lab-{first.lab_id}", f"slo-lab-{second.lab_id}"} <= traces.cgroups()
        process = first.spawn("app", ["true"])
        assert process.wait(10) == 0


def test_failure_half_way_is_taken_down(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """When joining the namespaces fails, what was made before is removed and the cause is said."""
    topology = Topology()

    def broken(pid: int, lines: list[str]) -> None:
        raise CannotError("cannot join the namespaces: Unknown device type")

    monkeypatch.setattr(module, "_ip_batch", broken)
    with pytest.raises(CannotError, match="Unknown device type"):
        topology.__enter__()
    assert (traces.processes(), traces.files()) == ({}, [])
    assert f"slo-lab-{topology.lab_id}" not in traces.cgroups()


def test_record_cannot_name_a_cgroup_of_others(traces: Traces) -> None:
    """A stale record whose cgroup is not the lab's own never makes recover() kill or remove anything there."""
    child = subprocess.Popen(["true"])
    child.wait()
    victim = cgroup2_root() / f"slo-lab-test-{os.getpid()}"
    victim.mkdir()
    try:
        record = write_record("lab", "abc123", {"cgroup": str(victim)})
        record.path.write_text(record.path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child.pid}'))
        assert recover() == ["abc123"]
        assert victim.is_dir()
    finally:
        victim.rmdir()


def test_missing_program_is_named_with_its_package(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iproute2 the error says what to install."""
    monkeypatch.setattr(module.shutil, "which", lambda program: None if program == "ip" else "/bin/true")
    with pytest.raises(CannotError, match="ip is not installed") as caught, Topology():
        pass
    assert caught.value.hint == "apt-get install iproute2"


def test_refuses_another_thread_than_the_main_one(state: Path) -> None:
    """Processes would die with the thread that started them, so a lab in a passing thread is refused."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            Topology().__enter__()
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(failures[0])


def test_terminated_process_of_a_lab_gets_sigterm(traces: Traces) -> None:
    """Closing asks politely first."""
    with Topology() as topology:
        process = topology.spawn("app", ["sleep", "100"])
    assert process.returncode == -signal.SIGTERM
