"""identity on the real kernel: pods by cgroup, through a fake kubelet; no Kubernetes is part of this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_kube import CONTAINER, UID, FakeServer, pod, pod_list
from kernel_harness import AGENT, Namespace, Recording, eventually

from libslo.host import cgroup2_mount
from libslo.kernel.cgroups import CgroupPaths
from libslo.kernel.identity import IdentityResolver
from libslo.kernel.kube_http import Place
from libslo.kernel.kube_source import KubeletSource

POD = pod(env=[{"name": "OTEL_SERVICE_NAME", "value": "chat"}])
NAMED = {"namespace": "prod", "pod": "chat-7d4b9c-x2x9z", "container": "app", "service": "chat", "workload": "chat"}
DROPPED = """
import json, os, sys, time
from libslo.kernel.identity import IdentityResolver
found = IdentityResolver(node="n")
found.prime()
before = found.unreadable
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print("ready", flush=True)
pids = json.loads(sys.stdin.readline())
services = [found.resolve(pid, 0, "comm", 0, time.monotonic_ns()).service for pid in pids]
print(json.dumps([services, found.unreadable - before]))
"""


@contextmanager
def pod_cgroup(container: str = CONTAINER) -> Iterator[Path]:
    """A cgroup2 directory as a kubelet would make it for a container, below one of ours."""
    root = cgroup2_mount()
    assert root is not None
    top = root / f"slo-test-{os.getpid()}-pods"
    leaf = top / "kubepods" / "burstable" / f"pod{UID}" / container
    leaf.mkdir(parents=True)
    try:
        yield leaf
    finally:
        for place in (leaf, *list(leaf.parents)[:4]):
            eventually(lambda place=place: removed(place))


def removed(place: Path) -> bool:
    try:
        place.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # a process that was just waited for may still be leaving
        return False
    return True


def refused(namespace: Namespace, cgroup: Path, rest: str = "") -> tuple[int, float]:
    """A process that enters a cgroup, is refused a connection, and ends: its pid, and how long it lived in seconds."""
    script = f"echo $$ > {cgroup}/cgroup.procs; : 3<>/dev/tcp/127.0.0.1/9; {rest}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    begun_s = time.monotonic()
    process = subprocess.Popen(["nsenter", f"--net={namespace.path}", "--", "bash", "-c", script], env=env, stderr=subprocess.DEVNULL)
    process.wait()
    return process.pid, time.monotonic() - begun_s


def told(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event.get(name, "") for name in NAMED}


def test_the_id_of_a_cgroup_leads_to_its_path(kernel: None) -> None:
    """On this kernel, opened as a handle or listed, the id of a cgroup gives its path; one that is gone and was never seen none."""
    for handles in (True, False):
        paths = CgroupPaths(handles=handles)
        with pod_cgroup() as cgroup:
            number, parent = cgroup.stat().st_ino, cgroup.parent.stat().st_ino
            assert paths.path(number).endswith(f"/kubepods/burstable/pod{UID}/{CONTAINER}")
            assert paths._handles is handles
        assert paths.path(number).endswith(CONTAINER)
        if handles:
            assert paths.path(parent) == ""
        assert paths.path(2**50) == ""


def test_a_process_that_lives_50_ms_is_named_by_the_kubelet(namespace: Namespace) -> None:
    """A short process in a pod's cgroup is named with pod, container, workload and service."""
    with FakeServer(lambda ask: ask.send(pod_list(POD))) as server, pod_cgroup() as cgroup:
        source = KubeletSource(Place(server.url))
        try:
            assert source.wait_first(5)
            with Recording(signals=("connect_errors_total",), resolver=IdentityResolver(pods=source)) as recording:
                lives = [refused(namespace, cgroup, "sleep 0.03") for _ in range(5)]
                time.sleep(0.2)
        finally:
            source.close()
    assert min(life_s for _, life_s in lives) < 0.1
    for pid, _ in lives:
        event = recording.only("connect_errors_total", pid)
        assert told(event) == NAMED


def test_a_process_that_was_never_readable_is_named_by_its_cgroup(namespace: Namespace, tmp_path: Path) -> None:
    """Without a /proc to read, the cgroup id of the kernel's event leads to the pod; by handle, and by listing the hierarchy."""
    with FakeServer(lambda ask: ask.send(pod_list(POD))) as server:
        for handles in (True, False):
            source = KubeletSource(Place(server.url))
            resolver = IdentityResolver(proc=tmp_path, pods=source, cgroups=CgroupPaths(handles=handles))
            try:
                assert source.wait_first(5)
                with pod_cgroup() as cgroup, Recording(signals=("connect_errors_total",), resolver=resolver) as recording:
                    pid, _ = refused(namespace, cgroup)
                    time.sleep(0.2)
            finally:
                source.close()
            event = recording.only("connect_errors_total", pid)
            assert told(event) == NAMED


def test_an_event_of_an_unknown_pod_does_not_wait(namespace: Namespace) -> None:
    """While the kubelet does not know the pod its events carry uid and container id; once it does, the next one is named."""
    there: list[dict[str, Any]] = []
    with FakeServer(lambda ask: ask.send(pod_list(*there))) as server, pod_cgroup() as cgroup:
        source = KubeletSource(Place(server.url), interval_s=600, gap_s=0.05)
        try:
            assert source.wait_first(5)
            with Recording(signals=("connect_errors_total",), resolver=IdentityResolver(pods=source)) as recording:
                first, _ = refused(namespace, cgroup, "sleep 0.03")
                eventually(lambda: bool(recording.of("connect_errors_total", first)))
                there.append(POD)
                eventually(lambda: source.lookup(UID, CONTAINER) is not None)
                second, _ = refused(namespace, cgroup, "sleep 0.03")
        finally:
            source.close()
    (before,) = recording.of("connect_errors_total", first)
    assert (before["pod"], before["container"], before["namespace"]) == (UID, CONTAINER[:12], "")
    (after,) = recording.of("connect_errors_total", second)
    assert told(after) == NAMED


def test_a_deleted_pod_is_still_named(namespace: Namespace) -> None:
    """A process that goes on after its pod was deleted is named for the time of grace."""
    there = [POD]
    with FakeServer(lambda ask: ask.send(pod_list(*there))) as server, pod_cgroup() as cgroup:
        source = KubeletSource(Place(server.url), interval_s=0.05)
        try:
            assert source.wait_first(5)
            there.clear()
            asked = len(server.asked)
            eventually(lambda: len(server.asked) > asked + 2)
            with Recording(signals=("connect_errors_total",), resolver=IdentityResolver(pods=source)) as recording:
                pid, _ = refused(namespace, cgroup, "sleep 0.03")
                time.sleep(0.1)
        finally:
            source.close()
    event = recording.only("connect_errors_total", pid)
    assert told(event) == NAMED


def test_after_the_privileges_are_gone_a_cgroup_lends_its_service(kernel: None) -> None:
    """What was read before stays known; a later process in the same cgroup takes the service all agree on; the rest is counted."""
    with pod_cgroup() as cgroup:
        started: list[subprocess.Popen[Any]] = []

        def start(service: str, place: Path) -> int:
            started.append(subprocess.Popen(["sleep", "60"], env={**os.environ, "OTEL_SERVICE_NAME": service}))
            (place / "cgroup.procs").write_text(str(started[-1].pid))
            return started[-1].pid

        try:
            early = start("chat", cgroup)
            time.sleep(0.1)
            agent = subprocess.Popen([sys.executable, "-c", DROPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.append(agent)
            assert agent.stdout is not None and agent.stdout.readline() == "ready\n"
            pids = [early, start("hidden", cgroup), start("hidden", cgroup.parent)]
            output, _ = agent.communicate(json.dumps(pids) + "\n", timeout=20)
        finally:
            for process in started:
                process.kill()
                process.wait()
    assert json.loads(output) == [["chat", "chat", "comm"], 2]


def test_the_agent_names_pods(namespace: Namespace) -> None:
    """agent --kubelet writes named events, and how the kubelet answers into its reports."""
    with FakeServer(lambda ask: ask.send(pod_list(POD))) as server, pod_cgroup() as cgroup:
        agent = subprocess.Popen(
            [*AGENT, "--signals", "connect_errors_total", "--kubelet", server.url, "--node-name", "node-a", "--cgroup", str(cgroup),
             "--count", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert agent.stdout is not None
        report = json.loads(agent.stdout.readline())
        refused(namespace, cgroup, "sleep 0.03")
        output, errors = agent.communicate(timeout=30)
    assert report["identity"]["pods"]["pods"] == 1 and report["identity"]["pods"]["last_success_unix_nano"] > 0
    event = next(line for line in map(json.loads, output.splitlines()) if "signal" in line)
    assert (agent.returncode, errors) == (0, "")
    assert told(event) == NAMED and event["node"] == "node-a"


def test_the_thread_that_asks_holds_no_capability(kernel: None) -> None:
    """The thread that talks to the kubelet has given up everything; the others have what they had."""
    before = capabilities(threading.get_native_id())
    with FakeServer(lambda ask: ask.send(pod_list(POD))) as server:
        source = KubeletSource(Place(server.url))
        try:
            assert source.wait_first(5)
            assert capabilities(source._thread.native_id) == 0
        finally:
            source.close()
    assert capabilities(threading.get_native_id()) == before != 0


def capabilities(tid: int | None) -> int:
    lines = Path(f"/proc/self/task/{tid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)


@pytest.mark.parametrize("option", ["--kubelet", "--kube-api"])
def test_the_agent_goes_on_without_its_kubelet(kernel: None, option: str) -> None:
    """Nobody there: a note, and capturing goes on; the reports and the table say so."""
    arguments = ["--signals", "connect_errors_total", option, "http://127.0.0.1:1"]
    done = subprocess.run([*AGENT, *arguments, "--duration", "0.2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.startswith("agent: http://127.0.0.1:1: unreachable: ") and "going on without pod names" in done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["final"] and report["signals"][0]["attached"]
    assert report["identity"]["pods"]["errors"]["unreachable"] >= 1
    checked = subprocess.run([*AGENT, *arguments, "--check"], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0 and "at http://127.0.0.1:1: no answer: unreachable" in checked.stdout
