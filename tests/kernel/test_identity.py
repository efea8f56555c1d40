"""identity: from a pid to the pod, container and service it belongs to."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from builders import TESTDATA
from kernel_harness import Namespace, Recording, eventually

from libslo.host import cgroup2_mount, parse_start_ticks
from libslo.kernel.cgroups import CgroupPaths, CgroupPlace, parse_cgroup
from libslo.kernel.identity import Identity, IdentityResolver
from libslo.kernel.kube import PodIdentity
from libslo.kernel.otel_env import parse_environ

UID = "0a1b2c3d-1111-2222-3333-444455556666"
CONTAINER = "0123456789abcdef" * 4
BOOT = 1000 * 10**9  # a CLOCK_MONOTONIC of the fake machine, which never slept
TICK_NS = 10_000_000


PATHS = [json.loads(line) for line in (TESTDATA / "cgroups" / "paths.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", PATHS, ids=[row["name"] for row in PATHS])
def test_cgroup_paths(row: dict[str, str]) -> None:
    """v1, v2, hybrid, nested and private cgroup paths of the known runtimes give pod, container and unit."""
    assert parse_cgroup(row["text"]) == CgroupPlace(row["pod_uid"], row["container_id"], row["unit"])


def test_environ() -> None:
    """OTEL_SERVICE_NAME wins, values are percent-decoded, malformed pairs are left out."""
    pairs = b"service.name=x,k8s.pod.name=chat%2D1, k8s.namespace.name =prod,broken,e=a%3Db"
    block = b"A=1\0OTEL_RESOURCE_ATTRIBUTES=" + pairs + b"\0OTEL_SERVICE_NAME=chat\0"
    assert parse_environ(block) == {"service.name": "chat", "k8s.pod.name": "chat-1", "k8s.namespace.name": "prod", "e": "a=b"}
    assert parse_environ(b"PATH=/bin\0") == {}


def test_start_ticks_survive_an_odd_command() -> None:
    """The start time is found behind a command with blanks and brackets."""
    assert parse_start_ticks("12 (a ) b) S " + " ".join(str(number) for number in range(4, 53))) == 22


def test_cgroup2_is_found_in_both_layouts() -> None:
    """The cgroup2 mount is found alone and beside v1."""
    assert cgroup2_mount("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n") == Path("/sys/fs/cgroup")
    assert cgroup2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n") == Path(
        "/sys/fs/cgroup/unified"
    )
    assert cgroup2_mount("proc /proc proc rw 0 0\n") is None


class FakeProc:
    """A procfs in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def spawn(self, pid: int, start_ns: int, environ: bytes = b"", cgroup: str = "0::/\n") -> None:
        place = self.root / str(pid)
        place.mkdir(exist_ok=True)
        (place / "stat").write_text(f"{pid} (x) S " + "0 " * 18 + str(start_ns // TICK_NS) + " 0\n")
        (place / "environ").write_bytes(environ)
        (place / "cgroup").write_text(cgroup)

    def end(self, pid: int) -> None:
        for file in (self.root / str(pid)).iterdir():
            file.unlink()
        (self.root / str(pid)).rmdir()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def resolver(proc: FakeProc, **sources: Any) -> IdentityResolver:
    nothing = CgroupPaths(proc.root / "no-cgroups", handles=False)
    return IdentityResolver(proc=proc.root, node="n", ticks_per_second=100, boot_offset_ns=0, **{"cgroups": nothing, **sources})


def test_what_a_process_says_of_itself(proc: FakeProc) -> None:
    """Resource attributes name node, namespace, pod, container, service and workload."""
    attributes = (
        "service.name=chat,k8s.pod.name=chat-1,k8s.namespace.name=prod,k8s.container.name=app,k8s.node.name=k1,k8s.deployment.name=chat-d"
    )
    proc.spawn(5, BOOT, f"OTEL_RESOURCE_ATTRIBUTES={attributes}\0".encode())
    assert resolver(proc).resolve(5, 99, "python", BOOT + TICK_NS, BOOT + TICK_NS) == Identity(
        "n", "prod", "chat-1", "app", "chat", "chat-d", True
    )


def test_without_a_word_the_cgroup_and_the_command_tell(proc: FakeProc) -> None:
    """Container and pod uid come from the cgroup path, the unit names a service, else the command does."""
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    proc.spawn(6, BOOT, cgroup="0::/system.slice/nginx.service\n")
    proc.spawn(7, BOOT)
    found = resolver(proc)
    assert found.resolve(5, 99, "python", 0, BOOT) == Identity("n", "", UID, CONTAINER[:12], "python", "", True)
    assert found.resolve(6, 98, "nginx", 0, BOOT) == Identity("n", "", "", "", "nginx", "nginx")
    assert found.resolve(7, 97, "curl", 0, BOOT) == Identity("n", service="curl")


def test_a_process_that_is_gone_keeps_its_name(proc: FakeProc) -> None:
    """Once seen, a process is still named after it has ended."""
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0")
    found = resolver(proc)
    assert found.resolve(5, 99, "c", BOOT, BOOT).service == "chat"
    proc.end(5)
    assert found.resolve(5, 99, "c", BOOT, BOOT + 10**9).service == "chat"
    assert found.resolve(5, 1, "c", BOOT, BOOT + 3600 * 10**9).service == "c"


def test_who_came_and_went_is_forgotten_and_who_lives_is_not(proc: FakeProc) -> None:
    """After thousands of short lives the table holds about one minute of them; a quiet process whose environ closed keeps its name."""
    found = resolver(proc)
    proc.spawn(1, BOOT, b"OTEL_SERVICE_NAME=chat\0")
    assert found.resolve(1, 99, "c", BOOT, BOOT).service == "chat"
    (proc.root / "1" / "environ").write_bytes(b"")
    for number in range(2, 3002):
        proc.spawn(number, BOOT)
        now_ns = BOOT + number * 10**8  # ten a second
        found.resolve(number, 99, "c", now_ns, now_ns)
        proc.end(number)
    assert 600 <= len(found._processes) <= 700
    assert found.resolve(1, 99, "c", BOOT, now_ns).service == "chat"


def test_a_process_never_seen_is_charged_to_its_cgroups_last_identity(proc: FakeProc) -> None:
    """A process that ended before it could be asked takes the identity last seen in its cgroup, but never the root's."""
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0")
    found = resolver(proc)
    found.resolve(5, 99, "c", BOOT, BOOT)
    found.resolve(5, 1, "c", BOOT, BOOT)
    assert found.resolve(77, 99, "curl", BOOT, BOOT).service == "chat"
    assert found.resolve(78, 98, "curl", BOOT, BOOT).service == "curl"
    assert found.resolve(79, 1, "curl", BOOT, BOOT).service == "curl"


def test_a_reused_pid_is_not_mistaken(proc: FakeProc) -> None:
    """Events from before a process began are not its own, and a new process with an old number is asked anew."""
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=old\0")
    found = resolver(proc)
    assert found.resolve(5, 99, "c", BOOT, BOOT).service == "old"
    proc.spawn(5, BOOT + 10**9, b"OTEL_SERVICE_NAME=new\0")
    assert found.resolve(5, 99, "c", BOOT + 2 * 10**9, BOOT + 2 * 10**9).service == "new"
    assert found.resolve(5, 50, "c", BOOT + 5 * 10**8, BOOT + 2 * 10**9).service == "c"


def test_a_silent_process_is_asked_again_for_a_while(proc: FakeProc) -> None:
    """A process seen before its exec is asked again a second later; one that told is not."""
    proc.spawn(5, BOOT)
    found = resolver(proc)
    assert found.resolve(5, 99, "sh", BOOT, BOOT).service == "sh"
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0")
    assert found.resolve(5, 99, "sh", BOOT, BOOT + 10**8).service == "sh"
    assert found.resolve(5, 99, "sh", BOOT, BOOT + 2 * 10**9).service == "chat"


def test_the_caches_are_bounded(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes come and go, only so many are remembered."""
    from libslo.kernel import identity

    monkeypatch.setattr(identity, "_MAX_PROCESSES", 10)
    monkeypatch.setattr(identity, "_MAX_CGROUPS", 10)
    found = resolver(proc)
    for pid in range(100, 150):
        proc.spawn(pid, BOOT, b"OTEL_SERVICE_NAME=x\0")
        found.resolve(pid, pid, "c", BOOT, BOOT)
    assert len(found._processes) == len(found._cgroups) == 10


class Pods:
    """A source of pods that knows what a test tells it."""

    def __init__(self) -> None:
        self.known: dict[str, PodIdentity] = {}
        self.asked: list[tuple[str, str]] = []

    def lookup(self, pod_uid: str, container_id: str) -> PodIdentity | None:
        self.asked.append((pod_uid, container_id))
        return self.known.get(container_id)

    def learn(self, container: str = "app") -> None:
        self.known[CONTAINER] = PodIdentity(UID, "prod", "chat-1", container, "chat-d", "chat")


def test_kubernetes_names_what_it_knows(proc: FakeProc) -> None:
    """Namespace, pod, container and workload come from Kubernetes; the service from the process's own word, else from Kubernetes."""
    pods = Pods()
    pods.learn()
    said = b"OTEL_RESOURCE_ATTRIBUTES=service.name=mine,k8s.pod.name=wrong,k8s.namespace.name=wrong,k8s.deployment.name=wrong\0"
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    proc.spawn(6, BOOT, said, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    proc.spawn(7, BOOT)
    found = resolver(proc, pods=pods)
    assert found.resolve(5, 99, "python", 0, BOOT) == Identity("n", "prod", "chat-1", "app", "chat", "chat-d", True)
    assert found.resolve(6, 99, "python", 0, BOOT) == Identity("n", "prod", "chat-1", "app", "mine", "chat-d", True)
    assert found.resolve(7, 1, "curl", 0, BOOT).service == "curl"
    asked = len(pods.asked)
    found.resolve(5, 99, "python", 0, BOOT + 10**8)
    assert len(pods.asked) == asked, "what is known is not asked for again"


def test_nothing_waits_for_kubernetes(proc: FakeProc) -> None:
    """An event of a pod that is not known yet keeps its uid and container id; the next one is named, step by step."""
    pods = Pods()
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    found = resolver(proc, pods=pods)
    first = found.resolve(5, 99, "python", 0, BOOT)
    assert (first.namespace, first.pod, first.container, first.service) == ("", UID, CONTAINER[:12], "python")
    pods.learn(container="")
    second = found.resolve(5, 99, "python", 0, BOOT)
    assert (second.pod, second.container, second.service) == ("chat-1", CONTAINER[:12], "chat")
    pods.learn()
    assert found.resolve(5, 99, "python", 0, BOOT).container == "app"
    proc.end(5)
    assert found.resolve(5, 99, "python", 0, BOOT + 10**9).container == "app"


def test_a_pod_that_was_unknown_while_its_process_lived_is_named_later(proc: FakeProc) -> None:
    """Events that come after the process and the answer of Kubernetes are named, by pid and by cgroup."""
    pods = Pods()
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    found = resolver(proc, pods=pods)
    found.resolve(5, 99, "python", 0, BOOT)
    proc.end(5)
    pods.learn()
    assert found.resolve(5, 99, "python", 0, BOOT + 10**9).pod == "chat-1"
    assert found.resolve(77, 99, "curl", 0, BOOT + 10**9).pod == "chat-1"


@pytest.fixture
def hierarchy(tmp_path: Path) -> Path:
    root = tmp_path / "cgroups"
    (root / "kubepods" / f"pod{UID}" / CONTAINER).mkdir(parents=True)
    (root / "system.slice" / "nginx.service").mkdir(parents=True)
    return root


def test_the_cgroup_alone_names_the_pod(proc: FakeProc, hierarchy: Path) -> None:
    """A process that could never be read is named by the path of its cgroup, by the command that acted, and after the cgroup is gone."""
    place = hierarchy / "kubepods" / f"pod{UID}" / CONTAINER
    unit = hierarchy / "system.slice" / "nginx.service"
    cgroup_id, unit_id, root_id = place.stat().st_ino, unit.stat().st_ino, (hierarchy / "system.slice").stat().st_ino
    found = resolver(proc, cgroups=CgroupPaths(hierarchy, handles=False))
    assert found.resolve(5, cgroup_id, "curl", 0, BOOT) == Identity("n", "", UID, CONTAINER[:12], "curl", "", True)
    assert found.resolve(6, cgroup_id, "wget", 0, BOOT).service == "wget"
    assert found.resolve(0, unit_id, "", 0, BOOT).service == "nginx"
    assert found.resolve(7, root_id, "sh", 0, BOOT) == Identity("n", service="sh")
    place.rmdir()
    assert found.resolve(8, cgroup_id, "curl", 0, BOOT).pod == UID
    pods = Pods()
    pods.learn()
    found = resolver(proc, cgroups=found._paths, pods=pods)
    assert found.resolve(9, cgroup_id, "curl", 0, BOOT) == Identity("n", "prod", "chat-1", "app", "chat", "chat-d", True)


def test_a_sibling_lends_its_pod_but_not_itself(proc: FakeProc) -> None:
    """A gone process takes pod and service of its cgroup, but neither the pid nor the command of the one who told them."""
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    (proc.root / "5" / "status").write_text("NSpid:\t5\t1\n")
    found = resolver(proc)
    assert found.resolve(5, 99, "python", 0, BOOT) == Identity("n", "", UID, CONTAINER[:12], "python", "", True, 1)
    assert found.resolve(77, 99, "curl", 0, BOOT) == Identity("n", "", UID, CONTAINER[:12], "curl", "", True)


class Locked(IdentityResolver):
    """A resolver that may not read the environment of some processes."""

    locked: frozenset[int] = frozenset()

    def _read(self, pid: int, name: str) -> bytes:
        if name == "environ" and pid in self.locked:
            raise PermissionError(13, "Permission denied")
        return super()._read(pid, name)


def locked_resolver(proc: FakeProc, *pids: int) -> Locked:
    nothing = CgroupPaths(proc.root / "no-cgroups", handles=False)
    found = Locked(proc=proc.root, node="n", ticks_per_second=100, boot_offset_ns=0, cgroups=nothing)
    found.locked = frozenset(pids)
    return found


def test_an_unreadable_process_takes_what_its_cgroup_agrees_on(proc: FakeProc) -> None:
    """Read before, or of one mind with all that were read in its cgroup: named; otherwise by its command. Each is counted once."""
    chat, web, shared = "0::/system.slice/a.scope/x\n", "4:memory:/pool/7\n0::/\n", "0::/shared\n"
    for pid, environ, cgroup in (
        (5, b"OTEL_SERVICE_NAME=chat\0", chat), (6, b"OTEL_SERVICE_NAME=chat\0", chat), (7, b"OTEL_SERVICE_NAME=web\0", web),
        (8, b"OTEL_SERVICE_NAME=one\0", shared), (9, b"OTEL_SERVICE_NAME=two\0", shared),
        (10, b"OTEL_SERVICE_NAME=alone\0", "0::/half\n"), (11, b"PATH=/bin\0", "0::/half\n"),
        (12, b"OTEL_SERVICE_NAME=root\0", "4:memory:/\n0::/\n"),
    ):  # fmt: skip
        proc.spawn(pid, BOOT, environ, cgroup)
    found = locked_resolver(proc)
    assert found.prime(BOOT) == 8
    found.locked = frozenset(range(5, 40))
    for pid, cgroup in ((20, chat), (21, web), (22, shared), (23, "0::/half\n"), (24, "4:memory:/\n0::/\n"), (25, "0::/other\n")):
        proc.spawn(pid, BOOT, b"OTEL_SERVICE_NAME=secret\0", cgroup)
    found.resolve(11, 0, "comm", 0, BOOT + 10**9)
    names = [found.resolve(pid, 0, "comm", 0, BOOT + 10**9).service for pid in (5, 20, 21, 22, 23, 24, 25)]
    assert names == ["chat", "chat", "web", "comm", "comm", "comm", "comm"]
    for pid in (20, 21, 22, 23, 24, 25):
        found.resolve(pid, 0, "comm", 0, BOOT + 5 * 10**9)
    assert found.unreadable == 6
    assert found.status() == {"unreadable_processes": 6}


def test_a_cgroup_whose_process_is_gone_takes_what_was_agreed_on(proc: FakeProc, hierarchy: Path) -> None:
    """The service that a cgroup's processes named before is also that of one that could never be read."""
    place = hierarchy / "kubepods" / f"pod{UID}" / CONTAINER
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0", f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    found = resolver(proc, cgroups=CgroupPaths(hierarchy, handles=False))
    found.prime(BOOT)
    assert found.resolve(77, place.stat().st_ino, "curl", 0, BOOT).service == "chat"


def test_a_process_that_is_ending_loses_nothing(proc: FakeProc) -> None:
    """Without an environment, or in the root of v1, a process that is ending keeps its pod, and has no vote in its cgroup."""
    cgroup = f"4:memory:/kubepods/pod{UID}/{CONTAINER}\n0::/\n"
    proc.spawn(5, BOOT, b"PATH=/bin\0", cgroup)
    found = resolver(proc)
    found.resolve(5, 0, "python", 0, BOOT)
    proc.spawn(5, BOOT, b"", "4:memory:/\n0::/\n")
    assert found.resolve(5, 0, "python", 0, BOOT + 2 * 10**9).pod == UID
    proc.spawn(6, BOOT, b"OTEL_SERVICE_NAME=chat\0", "0::/x\n")
    proc.spawn(7, BOOT, b"", "0::/x\n")
    found.prime(BOOT)
    proc.spawn(8, BOOT, b"", "0::/x\n")
    assert found.resolve(8, 0, "python", 0, BOOT).service == "chat"


def test_a_process_that_ends_while_it_is_read_is_named_by_its_cgroup(proc: FakeProc, hierarchy: Path) -> None:
    """Gone between two reads: the cgroup of the event tells, as if it had been gone before."""
    place = hierarchy / "kubepods" / f"pod{UID}" / CONTAINER
    proc.spawn(5, BOOT)
    (proc.root / "5" / "cgroup").unlink()
    found = resolver(proc, cgroups=CgroupPaths(hierarchy, handles=False))
    assert found.resolve(5, place.stat().st_ino, "curl", 0, BOOT).pod == UID


def test_priming_needs_no_proc(tmp_path: Path) -> None:
    """Where no procfs can be read there is nothing to find, and nothing to fail about."""
    assert IdentityResolver(proc=tmp_path / "none", node="n", cgroups=CgroupPaths(tmp_path, handles=False)).prime() == 0


def test_who_is_forgotten_has_no_vote(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reused pid and a process pushed out of memory do not count among those that agree, and no cgroup is remembered for ever."""
    from libslo.kernel import identity

    monkeypatch.setattr(identity, "_MAX_PROCESSES", 4)
    found = locked_resolver(proc, 9)
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=old\0", "0::/a\n")
    found.resolve(5, 0, "c", 0, BOOT)
    proc.spawn(5, BOOT + 10**9, b"OTEL_SERVICE_NAME=new\0", "0::/a\n")
    found.resolve(5, 0, "c", 0, BOOT + 2 * 10**9)
    proc.spawn(9, BOOT, cgroup="0::/a\n")
    assert found.resolve(9, 0, "c", 0, BOOT + 2 * 10**9).service == "new"
    proc.spawn(5, BOOT + 2 * 10**9, b"OTEL_SERVICE_NAME=moved\0", "0::/c\n")
    found.resolve(5, 0, "c", 0, BOOT + 3 * 10**9)
    assert found._groups.services == {"/c": {5: "moved"}}
    for pid in range(100, 150):
        proc.spawn(pid, BOOT, b"OTEL_SERVICE_NAME=x\0", f"0::/b{pid}\n")
        found.resolve(pid, 0, "c", 0, BOOT + 3 * 10**9)
    assert sorted(found._groups.services) == ["/b146", "/b147", "/b148", "/b149"]


def test_a_process_in_a_pod_is_asked_again_after_its_exec(proc: FakeProc) -> None:
    """In a container as well, a process that was seen before its exec tells its service a second later."""
    proc.spawn(5, BOOT, cgroup=f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    found = resolver(proc)
    assert found.resolve(5, 99, "runc:[2:INIT]", 0, BOOT).service == "runc:[2:INIT]"
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0", f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    assert found.resolve(5, 99, "python", 0, BOOT + 2 * 10**9).service == "chat"


def test_a_process_that_was_quiet_is_asked_again(proc: FakeProc) -> None:
    """Seen before its exec and then not for a minute: its next event asks once more; then it has had its time."""
    proc.spawn(5, BOOT)
    found = resolver(proc)
    assert found.resolve(5, 99, "sh", BOOT, BOOT).service == "sh"
    proc.spawn(5, BOOT, b"OTEL_SERVICE_NAME=chat\0")
    assert found.resolve(5, 99, "python", BOOT + 60 * 10**9, BOOT + 60 * 10**9).service == "chat"
    proc.spawn(6, BOOT)
    found.resolve(6, 98, "sh", BOOT, BOOT)
    found.resolve(6, 98, "sh", BOOT + 60 * 10**9, BOOT + 60 * 10**9)
    proc.spawn(6, BOOT, b"OTEL_SERVICE_NAME=late\0")
    assert found.resolve(6, 98, "sh", BOOT + 70 * 10**9, BOOT + 70 * 10**9).service == "sh"


def test_a_suspend_makes_nobody_younger(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start times count the time asleep and the clock of events does not: the difference is that of now."""
    found = IdentityResolver(proc=proc.root, node="n")
    asleep_ns = 3600 * 10**9
    boottime = time.clock_gettime_ns
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: boottime(clock) + asleep_ns * (clock == time.CLOCK_BOOTTIME))
    now_ns = time.monotonic_ns()
    started_ns = now_ns + asleep_ns + boottime(time.CLOCK_BOOTTIME) - boottime(time.CLOCK_MONOTONIC) - 10**9
    proc.spawn(5, started_ns, b"OTEL_SERVICE_NAME=chat\0")
    assert found.resolve(5, 99, "python", now_ns, now_ns).service == "chat"


def test_a_live_process_is_named(namespace: Namespace) -> None:
    """Events of a real process carry what its environment says."""
    env = {"OTEL_SERVICE_NAME": "chat", "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=chat-1,k8s.namespace.name=prod"}
    with Recording(signals=("connect_errors_total",)) as recording:
        client = namespace.start("tcp_client.py", env=env)
        assert client.stdin is not None
        client.stdin.write(json.dumps([{"host": "127.0.0.1", "port": port} for port in (9, 10)]) + "\ngo\n")
        client.stdin.flush()
        eventually(lambda: len(recording.of("connect_errors_total", client.pid)) == 2)
        client.communicate(timeout=20)
    events = recording.of("connect_errors_total", client.pid)
    assert [(event["service"], event["pod"], event["namespace"]) for event in events] == [("chat", "chat-1", "prod")] * 2


def test_a_process_that_lives_80_ms_is_named(namespace: Namespace) -> None:
    """A process that ends soon after its event is still named by its environment."""
    script = ": 3<>/dev/tcp/127.0.0.1/9; sleep 0.08"
    env = {**os.environ, "OTEL_SERVICE_NAME": "short"}
    with Recording(signals=("connect_errors_total",)) as recording:
        process = subprocess.Popen(["nsenter", f"--net={namespace.path}", "--", "bash", "-c", script], env=env, stderr=subprocess.DEVNULL)
        process.wait()
        time.sleep(0.1)
    event = recording.only("connect_errors_total", process.pid)
    assert event["service"] == "short"


def test_pid_of_its_own_namespace(tmp_path: Path) -> None:
    """A process in a pid namespace is known by the kernel's pid and by its own; without one there is only the kernel's."""
    for pid, line, expected in ((7, "NSpid:\t7\t1", 1), (8, "NSpid:\t8", 0), (9, "Pid:\t9", 0)):
        home = tmp_path / str(pid)
        home.mkdir()
        (home / "stat").write_text(f"{pid} (x) S " + " ".join(str(number) for number in range(4, 53)))
        (home / "cgroup").write_text("0::/\n")
        (home / "environ").write_bytes(b"")
        (home / "status").write_text(f"Name:\tx\n{line}\n")
        resolver = IdentityResolver(proc=tmp_path, node="n", boot_offset_ns=0)
        assert resolver.resolve(pid, 0, "x", 0, 10**12).ns_pid == expected
