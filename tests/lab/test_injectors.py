"""Faults by scenario: their windows, together or not at all, step after step, by signal, and what the tool refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_runs import faultinject, ground, injector, injector_files, run_faultinject, window_line
from lab_traces import Traces

from libslo.contracts import contract
from libslo.errors import CannotError, InputError
from libslo.lab.faults.base import fault_table
from libslo.lab.faults.targets import find_target
from libslo.lab.faults.trials import unusable
from libslo.lab.faults.undo import INJECTION_TAG, take_off
from libslo.lab.injectors import PlannedFault, Step, make_injector, plan_fault, plan_scenario, real_faults, recover_stale
from libslo.lab.netns import find_netns, netns_inode, netns_of
from libslo.lab.state import write_record
from libslo.lab.topology import Topology
from libslo.scenarios import load_scenario, scenario_names


@pytest.fixture
def lab(named_lab: Topology) -> Iterator[Topology]:
    """Namespaces with the name server in them, and a process in the app role."""
    named_lab.spawn("app", [sys.executable, "-c", "import time\nwhile True: time.sleep(0.001)"])
    yield named_lab


def _dns(delay_ms: float, duration_s: float | None = None) -> Iterator[dict[str, Any]]:
    return (
        real_faults(plan_scenario("dns_latency", None, {"delay_ms": delay_ms}))
        if duration_s is None
        else real_faults(plan_scenario("dns_latency", None, {"delay_ms": delay_ms}, duration_s))
    )


def test_fault_window_records(lab: Topology) -> None:
    """A fault of one second gives a begin and an end record of the contract, with its true times and its measured size."""
    started_ns = time.time_ns()
    begin, end = _dns(100, 1)
    ended_ns = time.time_ns()
    for window in (begin, end):
        assert contract("fault-window").is_valid(window)
    assert (begin["phase"], end["phase"]) == ("begin", "end")
    assert "end_unix_nano" not in begin
    assert begin["fault_id"] == end["fault_id"]
    assert (begin["scenario"], begin["fault"], begin["severity"]) == ("dns_latency", "dns_delay", "medium")
    assert begin["expected_domains"] == ["network_dns"]
    assert begin["parameters"] == {"delay_ms": 100}
    assert begin["measured"]["delay_ms"] == pytest.approx(100, rel=0.4)
    assert started_ns < begin["begin_unix_nano"] < end["end_unix_nano"] < ended_ns
    assert 1 <= (end["end_unix_nano"] - begin["begin_unix_nano"]) / 1e9 < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_undone_on_signal(lab: Topology, number: signal.Signals) -> None:
    """SIGTERM, SIGINT, and a terminal that goes away end the fault: rules and qdiscs are what they were, and the end record is written."""
    before = ground(lab)
    inherited = signal.signal(number, signal.default_int_handler)  # these tests may have been started with it ignored, as by nohup
    try:
        process = faultinject("--real", "dns_latency", "--duration", "60")
    finally:
        signal.signal(number, inherited)
    assert window_line(process)["phase"] == "begin"
    assert ground(lab) != before
    process.send_signal(number)
    assert window_line(process)["phase"] == "end"
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert ground(lab) == before


def test_consumer_that_stops_early_undoes(lab: Topology) -> None:
    """Closing the iterator (a reader that has gone) takes the fault off and gives the signals back."""
    before, handler = ground(lab), signal.getsignal(signal.SIGTERM)
    windows = _dns(100)
    next(windows)
    assert ground(lab) != before
    windows.close()  # type: ignore[attr-defined]
    assert ground(lab) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_namespace_gone_with_its_fault(traces: Traces) -> None:
    """When the lab ended first, undoing later is no error and only the record goes."""
    with Topology() as lab:
        delay = injector("dns_delay", f"pid:{lab.pids['dns']}", delay_ms=50)
        delay.apply()
    delay.undo()
    assert traces.files() == []


def test_severity_and_parameters_from_the_command_line(lab: Topology, state: Path) -> None:
    """The tool takes a severity, single parameters and a duration; the windows say what was on."""
    code, (begin, end), err = run_faultinject("--real", "cpu_throttle", "--severity", "low", "--duration", "0.5")
    assert (code, err) == (0, "")
    (low,) = (fault.severities["low"]["cpus"] for fault in load_scenario("cpu_throttle").faults)
    assert (begin["severity"], begin["parameters"]["cpus"]) == ("low", low)
    assert end["measured"]["cpus"] == low
    code, (begin, _), _ = run_faultinject("--real", "cpu_throttle", "--set", "cpus=0.5", "--duration", "0.2")
    assert begin["parameters"]["cpus"] == begin["measured"]["cpus"] == 0.5
    code, (begin, _), _ = run_faultinject("--fault", "cpu_quota", "--set", "cpus=0.25", "--duration", "0.2")
    assert (begin["scenario"], begin["fault"], begin["expected_domains"]) == ("cpu_quota", "cpu_quota", ["cpu_throttle"])
    assert "severity" not in begin
    assert injector_files(state) == []


def test_faults_of_a_scenario_are_on_together(lab: Topology, state: Path) -> None:
    """network_partition has two faults: two begin lines, then two end lines, of one scenario, each with its own id and domain."""
    before = ground(lab, "app")
    code, windows, err = run_faultinject("--real", "network_partition", "--duration", "0.5")
    assert (code, err) == (0, "")
    assert [(one["phase"], one["fault"]) for one in windows] == [
        ("begin", "packet_loss"), ("begin", "partition"), ("end", "packet_loss"), ("end", "partition"),
    ]  # fmt: skip
    assert len({one["fault_id"] for one in windows}) == 2
    assert {one["scenario"] for one in windows} == {"network_partition"}
    assert windows[0]["begin_unix_nano"] <= windows[1]["begin_unix_nano"] < windows[2]["end_unix_nano"]
    assert ground(lab, "app") == before
    assert injector_files(state) == []


def test_all_or_nothing(lab: Topology, state: Path) -> None:
    """When the second fault of a step cannot be put on, the first is taken off, no window is written and the reason is said."""
    before = ground(lab)
    steps = [
        Step(
            "pair",
            "",
            (PlannedFault("dns_delay", "dns", {"delay_ms": 50}, ()), PlannedFault("partition", "app", {"peer": "x", "ratio": 1}, ())),
            1,
        )
    ]
    windows = real_faults(steps)
    with pytest.raises(InputError, match="no peer 'x'"):
        next(windows)
    assert ground(lab) == before
    assert injector_files(state) == []


def test_step_after_step(lab: Topology, state: Path) -> None:
    """A sequence puts one step on after another with a rest in between; a signal ends all of it."""
    faults = [
        PlannedFault("dns_delay", "dns", {"delay_ms": 60}, ("network_dns",)),
        PlannedFault("cpu_quota", "app", {"cpus": 0.5, "period_ms": 100}, ()),
    ]
    steps = [Step("pair", "low", (fault,), 0.3, 0.5) for fault in faults]
    windows = list(real_faults(steps))
    assert [(one["fault"], one["phase"]) for one in windows] == [
        ("dns_delay", "begin"), ("dns_delay", "end"), ("cpu_quota", "begin"), ("cpu_quota", "end"),
    ]  # fmt: skip
    assert windows[2]["begin_unix_nano"] - windows[1]["end_unix_nano"] >= 0.5e9
    assert injector_files(state) == []


def test_a_sequence_that_cannot_be_finished_is_not_begun(lab: Topology, state: Path) -> None:
    """A service without a fault control in a later step is found before the first fault is on."""
    before = ground(lab)
    code, windows, err = run_faultinject("--real", "mixed", "--duration", "0.2")
    assert (code, windows) == (3, [])
    assert "ca.pem: no certificate authority to check the service with" in err  # this lab has no provider
    assert ground(lab) == before
    assert injector_files(state) == []


def test_plans_follow_the_harness() -> None:
    """mixed is one step a member, mixed_multi two faults a step, each as long as the harness says unless told; the last needs no rest."""
    harness = load_scenario("mixed").harness
    assert harness is not None
    times = harness.profiles[harness.durations]
    mixed = plan_scenario("mixed")
    assert [fault.fault for step in mixed for fault in step.faults] == [
        "dns_delay", "cpu_quota", "memory_limit", "provider_throttle", "packet_loss", "partition",
    ]  # fmt: skip
    assert [(step.fault_s, step.rest_s) for step in mixed] == [(times["fault"], times["recovery"])] * 4 + [(times["fault"], 0)]
    assert [len(step.faults) for step in plan_scenario("mixed_multi", "high", {}, 3)] == [2, 2, 3]
    assert {step.fault_s for step in plan_scenario("mixed_multi", "high", {}, 3)} == {3}
    both = [plan_scenario("network_partition", "low", {name: 0.5})[0].faults for name in ("partition.ratio", "ratio")]
    assert [[fault.parameters["ratio"] == 0.5 for fault in faults] for faults in both] == [[False, True], [True, True]]


@pytest.mark.parametrize("name", [name for name in scenario_names() if name != "baseline"])
@pytest.mark.parametrize("severity", ["low", "medium", "high"])
def test_every_scenario_has_a_plan(name: str, severity: str) -> None:
    """All faults of every scenario have an injector, and all that the vocabulary names are there."""
    for step in plan_scenario(name, severity):
        for fault in step.faults:
            assert fault.fault in fault_table()
            assert fault.domains


def test_two_scenarios_at_once(lab: Topology, state: Path) -> None:
    """Two processes with different scenarios both put theirs on and both take theirs off, in either order."""
    before = (ground(lab), ground(lab, "app"))
    first = faultinject("--real", "network_partition", "--duration", "60")
    window_line(first), window_line(first)
    second = faultinject("--real", "dns_latency", "--duration", "60")
    window_line(second)
    assert len(injector_files(state)) == 3
    assert ground(lab) != before[0]
    assert ground(lab, "app") != before[1]
    first.terminate()
    assert first.wait(20) == 0
    assert ground(lab) != before[0]
    assert ground(lab, "app") == before[1]
    second.terminate()
    assert second.wait(20) == 0
    for process in (first, second):
        process.communicate()
    assert (ground(lab), ground(lab, "app")) == before
    assert injector_files(state) == []


def test_the_same_twice_is_refused(lab: Topology, state: Path) -> None:
    """The second of two equal faults on one target ends with exit 3 and says who has it; the first stays on and is undone."""
    before = ground(lab)
    first = faultinject("--real", "dns_latency", "--duration", "60")
    window_line(first)
    code, windows, err = run_faultinject("--real", "dns_latency", "--set", "delay_ms=50", "--duration", "1")
    assert (code, windows) == (3, [])
    assert err.startswith("faultinject: dns_delay is on already at lab=") and f"put on by process {first.pid}" in err
    assert ground(lab) != before
    first.terminate()
    first.communicate(timeout=20)
    assert ground(lab) == before


def test_fault_that_went_off_early_is_no_truth(lab: Topology) -> None:
    """When somebody else took the rule off meanwhile, there is no end record but an error."""
    windows = _dns(60, 0.3)
    next(windows)
    for command in (["iptables", "-F"], ["ip6tables", "-F"], ["tc", "qdisc", "del", "dev", "eth0", "root"]):
        lab.spawn("dns", command, stderr=subprocess.DEVNULL).wait(10)
    with pytest.raises(CannotError, match="did not take"):
        next(windows)


@pytest.mark.parametrize(
    ("fault", "target", "fact"),
    [
        ("dns_delay", "pid:x", "not a target: pid:x"),
        ("dns_delay", "dns", "not a target: dns"),
        ("dns_delay", "pid:4194305", "no network namespace"),
        ("dns_delay", "/nowhere", "no network namespace"),
        ("dns_delay", "dev:none0", "no network interface 'none0'"),
        ("dns_delay", "cgroup:/sys/fs/cgroup", "goes on a netns, which cgroup:/sys/fs/cgroup is not"),
        ("cpu_quota", "dev:lo", "goes on a cgroup, which dev:lo is not"),
        ("cpu_quota", "cgroup:/nowhere", "no cgroup directory"),
        ("cpu_quota", "pid:4194305", "no process 4194305"),
        ("app_stall", "pid:1", "goes on a service, which pid:1 is not"),
        ("app_stall", "url:ftp://x", "not a target"),
        ("dns_delay", "dev:lo", "would touch the interface lo of network namespace"),
        ("dns_delay", f"pid:{os.getpid()}", "which is in no lab"),
    ],
)
def test_unknown_target(lab_ground: None, state: Path, fault: str, target: str, fact: str) -> None:
    """A target that is none, does not fit, or is in no lab is an input error with a cure."""
    with pytest.raises(InputError) as caught:
        find_target(fault, target)
    assert fact in str(caught.value)
    assert caught.value.hint


def test_outside_a_lab_from_the_command_line(lab_ground: None, state: Path) -> None:
    """Exit 2, what would be touched, and how to insist; nothing is done."""
    code, windows, err = run_faultinject("--fault", "packet_delay", "--set", "delay_ms=5", "--target", "dev:lo", "--duration", "0.1")
    assert (code, windows) == (2, [])
    assert err.splitlines()[0].startswith("faultinject: packet_delay would touch the interface lo of network namespace")
    assert err.splitlines()[1] == "  try: add --i-know if that is meant"
    assert injector_files(state) == []


def test_interface_outside_a_lab(lab_ground: None, state: Path) -> None:
    """With permission an interface of the current namespace can be delayed; it is a namespace of this test's own."""
    command = ["unshare", "--net", sys.executable, "-c", "import sys; from slotools.faultinject import main; sys.exit(main())"]
    words = ["--fault", "packet_delay", "--set", "delay_ms=5", "--target", "dev:lo", "--duration", "0.2"]
    done = subprocess.run([*command, *words, "--i-know"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    begin, end = (json.loads(line) for line in done.stdout.splitlines())
    assert begin["target"]["given"] == "dev:lo"
    assert end["phase"] == "end"


def test_not_a_namespace(lab: Topology, tmp_path: Path) -> None:
    """A path to something else than a network namespace is refused before anything is done."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError, match="not a network namespace"):
        injector("dns_delay", str(path), ["nfqueue"], delay_ms=100).apply()


def test_without_a_lab(lab_ground: None, state: Path) -> None:
    """With no lab and no target the error says how to get one; a lab that is not there is named."""
    code, _, err = run_faultinject("--real", "dns_latency")
    assert (code, err.splitlines()[0]) == (3, f"faultinject: {state}: no lab is running")
    code, _, err = run_faultinject("--real", "dns_latency", "--target", "lab:abcdef")
    assert (code, err.splitlines()[0]) == (3, f"faultinject: {state}: no lab abcdef is running")


def test_without_root(lab: Topology, state: Path) -> None:
    """Another user gets exit 3 and is told to be root."""
    if shutil.which("setpriv") is None:
        pytest.skip("no lab here: no setpriv")
    words = [sys.executable, "-c", "import sys; from slotools.faultinject import main; sys.exit(main())", "--real", "dns_latency"]
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", *words], capture_output=True, text=True, check=False)
    if "Permission denied" in done.stderr and "libslo" not in done.stderr and "state" not in done.stderr:
        pytest.skip("no lab here: the checkout cannot be read by another user")
    assert done.returncode == 3, done.stderr
    assert "root" in done.stderr


@pytest.mark.parametrize(
    "steps",
    [
        None,
        [["rm", "-r", "x"]],
        [{"do": "run", "netns": [1, "/"], "command": ["rm", "-r", "x"]}],
        [{"do": "run", "netns": [1, "/"], "command": []}],
        [{"do": "write", "path": "/etc/passwd", "inode": 1, "value": "x"}],
        [{"do": "write", "path": "/sys/fs/cgroup/../../etc/cpu.max", "inode": 1, "value": "x"}],
        [{"do": "kill", "tag": "PATH=/bin"}],
        [{"do": "kill", "tag": "SLO_INJECTION="}],
        [{"do": "lease", "url": "file:///etc/passwd", "id": "x", "netns": None, "ca": ""}],
        [{"do": "explode"}],
    ],
)
def test_record_with_foreign_content(lab_ground: None, traces: Traces, steps: object) -> None:
    """A stale record that does not say how to undo, or names something that is not ours, is reported with its place, kept and not run."""
    child = subprocess.Popen(["true"])
    child.wait()
    record = write_record("injection", "x1", {} if steps is None else {"undo": steps})
    record.path.write_text(record.path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child.pid}'))
    with pytest.raises(InputError, match="not an undo record") as caught:
        recover_stale()
    assert caught.value.source == str(record.path)
    assert record.path.exists()


def test_a_limit_that_cannot_be_restored_is_said(lab: Topology, state: Path) -> None:
    """The record stays and the error has the command; a cgroup that was made anew under the same name is left alone."""
    place = lab.cgroups["cpu"] / "app"
    name = "cpu.max" if (place / "cpu.max").is_file() else "cpu.cfs_quota_us"
    step = {"do": "write", "path": str(place / name), "inode": place.stat().st_ino, "value": "nonsense"}
    record = write_record("injection", "x2", {"fault": "cpu_quota", "undo": [step]})
    with pytest.raises(CannotError, match="cannot take the fault off: cpu_quota") as caught:
        take_off(record)
    assert caught.value.hint == f"echo nonsense > {place / name}"
    assert record.path.exists()
    assert take_off(write_record("injection", "x2", {"fault": "cpu_quota", "undo": [{**step, "inode": 1}]})) is False
    assert not record.path.exists()


@pytest.mark.parametrize("fault", ["dns_delay", "packet_loss"])
def test_the_list_knows_what_the_kernel_cannot(lab: Topology, fault: str) -> None:
    """What --list says against a mechanism is what happens when it is tried: the first it says nothing against is the one used."""
    usable = [mechanism for mechanism in fault_table()[fault]["mechanisms"] if unusable(mechanism) is None]
    one = injector(fault, **({"delay_ms": 50} if fault == "dns_delay" else {"ratio": 0.5}))
    one.apply()
    one.undo()
    assert one.mechanism == usable[0]


def test_processes_are_found_by_their_tag(lab_ground: None, state: Path) -> None:
    """A record that names a tag ends every process that carries it, and no other."""
    tag = f"{INJECTION_TAG}={os.getpid():016x}"
    name, value = tag.split("=")
    ours = [subprocess.Popen(["sleep", "100"], env={name: value}) for _ in range(2)]
    other = subprocess.Popen(["sleep", "100"], env={name: value + "0"})
    try:
        assert take_off(write_record("injection", "x3", {"fault": "noisy_neighbour", "undo": [{"do": "kill", "tag": tag}]}))
        assert [one.wait(5) for one in ours] == [-signal.SIGKILL] * 2
        assert other.poll() is None
    finally:
        for one in (*ours, other):
            one.kill()
            one.wait()
    assert injector_files(state) == []


@pytest.mark.parametrize(("code", "stays"), [(0, True), (1, False), (3, False), (4, True)])
def test_a_rule_is_gone_only_when_that_is_known(code: int, stays: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """iptables says 1 for no such rule and 3 for no such table; 4 (the lock was held) leaves it open, so the record must stay."""
    from libslo.lab.faults import undo

    fake = tmp_path / "iptables"
    fake.write_text(f"#!/bin/sh\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert undo._stays(["iptables", "-D", "OUTPUT", "-j", "NFQUEUE"]) is stays


@pytest.mark.parametrize(("value", "left"), [("100000", ""), ("20000", "echo 20000 > ")])
def test_a_limit_that_cannot_be_written(value: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cgroup tree that is read only nothing was put on: what stands there is what was there before. Otherwise it stays on."""
    from libslo.lab.faults import undo

    limit = tmp_path / "cpu.cfs_quota_us"
    limit.write_text("100000\n")

    def refuses(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuses)
    found, cure = undo._undo_limit({"path": str(limit), "inode": tmp_path.stat().st_ino, "value": value})
    assert found and cure.startswith(left) and bool(cure) == bool(left)


def test_find_namespace_by_inode(lab: Topology) -> None:
    """A namespace is found again through any process in it, and not when it is gone."""
    inode = netns_inode(netns_of(lab.pids["dns"]))
    found = find_netns(inode, Path("/nowhere"))
    assert found is not None
    assert netns_inode(found) == inode
    assert find_netns(1) is None


def test_find_namespace_without_a_process(lab: Topology) -> None:
    """One that is kept by a mount is not gone: what is on in it stays on, and will meet whoever enters it next."""
    name = f"slo test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inode = netns_inode(Path("/run/netns") / name)
        assert find_netns(inode, Path("/proc/4194304/ns/net")) == Path("/run/netns") / name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert find_netns(inode) is None


def test_a_fault_alone_needs_its_parameters() -> None:
    """An unknown fault, parameter or value is an input error that names it."""
    with pytest.raises(InputError, match="cpu_quota has no parameter cpu"):
        plan_fault("cpu_quota", {"cpu": 1}, 1)
    with pytest.raises(InputError, match="cpu_quota: cpus cannot be 'many'"):
        plan_fault("cpu_quota", {"cpus": "many"}, 1)
    with pytest.raises(InputError, match="no fault 'x'"):
        make_injector("x", {}, find_target("app_stall", "url:http://127.0.0.1:1", allow_outside=True))
