"""Whose process is it: pid to node, namespace, pod, container, service and workload, without asking Kubernetes.

What the process says of itself (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) comes first, because its spans say the same;
then what its cgroup path tells (container runtimes, systemd units); then its command name.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from libslo.host import ROOT_CGROUP_ID, parse_start_ticks

__all__ = [
    "CgroupPlace",
    "Identity",
    "IdentityResolver",
    "identity_from",
    "parse_cgroup",
    "parse_environ",
]

_T = TypeVar("_T")

_MAX_PROCESSES = 8192
_MAX_CGROUPS = 4096
_RECHECK_NS = 20_000_000  # within this time a pid is taken to be the process it was
_REASK_NS = 1_000_000_000  # how often a process that told nothing is asked again,
_REASK_FOR_NS = 10_000_000_000  # and for how long: it may not have reached its exec yet when first seen
_GONE_NS = 60_000_000_000  # how long a process that ended keeps its name; its number is not given away that soon

_HEX64 = r"[0-9a-f]{64}"
# Path forms: https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/cm/cgroup_manager_linux.go (systemd and cgroupfs drivers)
# and those of containerd, cri-o, docker and podman below the pod.
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?=[/:]|$)")
_CONTAINER = re.compile(rf"(?:^|[-:/])({_HEX64})(?:\.scope)?(?=/|$)")
_UNIT = re.compile(r"([^/]+)\.(?:service|scope)(?=/|$)")


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """What a cgroup path tells; "" for what it does not."""

    pod_uid: str = ""
    container_id: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """The owner of an event; "" is unknown."""

    node: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    service: str = ""
    workload: str = ""
    told: bool = False  # the process or its cgroup said so; False: only the command name is known
    ns_pid: int = 0  # its pid in its own pid namespace, 0 when that is the one the kernel says


def parse_cgroup(text: str) -> CgroupPlace:
    """Read the text of ``/proc/<pid>/cgroup``: v2 (one line), v1 (one a controller) and hybrid.

    The line that tells most wins, so in the hybrid form an empty v2 path does not hide the v1 ones.
    """
    best = CgroupPlace()
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        pod = _POD.search(path)
        containers = [match for match in _CONTAINER.finditer(path) if "conmon" not in path[: match.start(1)].rpartition("/")[2]]
        units = _UNIT.findall(path)
        container_id = containers[-1].group(1) if containers else ""
        place = CgroupPlace(
            pod_uid=pod.group(1).replace("_", "-") if pod else "",
            container_id=container_id,
            unit="" if not units or (container_id and container_id in units[-1]) else units[-1],
        )
        if _told(place) > _told(best):
            best = place
    return best


def _told(place: CgroupPlace) -> tuple[bool, bool, bool]:
    return bool(place.container_id), bool(place.pod_uid), bool(place.unit)


def parse_environ(block: bytes) -> dict[str, str]:
    """Resource attributes from the bytes of ``/proc/<pid>/environ``.

    OTEL_SERVICE_NAME wins over service.name; values of OTEL_RESOURCE_ATTRIBUTES are percent-decoded
    (OpenTelemetry resource SDK specification); a malformed pair is left out.
    """
    wanted = {}
    for entry in block.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name in (b"OTEL_SERVICE_NAME", b"OTEL_RESOURCE_ATTRIBUTES"):
            wanted[name] = value.decode("utf-8", "replace")
    attributes = {}
    for pair in wanted.get(b"OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, separator, value_text = pair.partition("=")
        if separator and key.strip():
            attributes[unquote(key.strip())] = unquote(value_text.strip())
    if wanted.get(b"OTEL_SERVICE_NAME"):
        attributes["service.name"] = wanted[b"OTEL_SERVICE_NAME"]
    return attributes


def identity_from(node: str, attributes: Mapping[str, str], place: CgroupPlace, comm: str) -> Identity:
    """Put together what is known, best source first."""
    service = attributes.get("service.name", "")
    unit = place.unit if not place.container_id else ""
    return Identity(
        node=node,  # never what a process says of itself: it runs where this agent runs
        namespace=attributes.get("k8s.namespace.name") or attributes.get("service.namespace", ""),
        pod=attributes.get("k8s.pod.name") or place.pod_uid,
        container=attributes.get("k8s.container.name") or place.container_id[:12],
        service=service or unit or comm,
        workload=attributes.get("k8s.deployment.name") or service or unit,
        told=bool(attributes or place.container_id or place.pod_uid),
    )


@dataclass(slots=True)
class _Process:
    start_ticks: int
    identity: Identity
    checked_ns: int
    asked_ns: int
    first_ns: int


class IdentityResolver:
    """Resolves owners, remembering processes by (pid, start time) and the last identity seen in each cgroup.

    proc: root of procfs. node: this machine's name unless a process says otherwise. now_ns: CLOCK_MONOTONIC.
    boot_offset_ns: CLOCK_BOOTTIME minus CLOCK_MONOTONIC, because procfs counts start times through suspends.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        node: str | None = None,
        ticks_per_second: int | None = None,
        boot_offset_ns: int | None = None,
    ) -> None:
        self.node = node or os.environ.get("SLO_NODE") or os.environ.get("NODE_NAME") or socket.gethostname()
        self._proc = proc
        self._tick_ns = 1_000_000_000 // (ticks_per_second or os.sysconf("SC_CLK_TCK"))
        if boot_offset_ns is None:
            boot_offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        self._boot_offset_ns = boot_offset_ns
        self._processes: OrderedDict[int, _Process] = OrderedDict()
        self._cgroups: OrderedDict[int, Identity] = OrderedDict()

    def resolve(self, pid: int, cgroup_id: int, comm: str, seen_ns: int, now_ns: int) -> Identity:
        """The owner of an event.

        seen_ns: CLOCK_MONOTONIC when the kernel saw this pid act (0: not known). A process that started later only reuses the
        number; the event is then charged to what its cgroup was last known as, else to the command name alone.
        """
        process = self._process(pid, comm, now_ns) if pid else None
        if process and not self._is_younger(process, seen_ns):
            if process.identity.told and cgroup_id > ROOT_CGROUP_ID:
                _remember(self._cgroups, cgroup_id, process.identity, _MAX_CGROUPS)
            return process.identity
        known = self._cgroups.get(cgroup_id)
        if known:
            self._cgroups.move_to_end(cgroup_id)
            return known
        return Identity(self.node, service=comm)

    def _is_younger(self, process: _Process, seen_ns: int) -> bool:
        # A start time is cut to whole ticks, so an honest owner never looks younger than it is.
        return bool(seen_ns) and process.start_ticks * self._tick_ns - self._boot_offset_ns > seen_ns

    def _process(self, pid: int, comm: str, now_ns: int) -> _Process | None:
        known = self._processes.get(pid)
        if known:
            self._processes.move_to_end(pid)
            if now_ns - known.checked_ns < _RECHECK_NS:
                return known
        try:
            start_ticks = parse_start_ticks(self._read(pid, "stat").decode("utf-8", "replace"))
        except (OSError, ValueError, IndexError):
            return known if known and now_ns - known.checked_ns < _GONE_NS else None
        if known and known.start_ticks == start_ticks:
            known.checked_ns = now_ns
            if known.identity.told or now_ns - known.asked_ns < _REASK_NS or now_ns - known.first_ns > _REASK_FOR_NS:
                return known
            known.identity, known.asked_ns = self._ask(pid, comm), now_ns
            return known
        process = _Process(start_ticks, self._ask(pid, comm), now_ns, now_ns, now_ns)
        _remember(self._processes, pid, process, _MAX_PROCESSES)
        return process

    def _ask(self, pid: int, comm: str) -> Identity:
        try:
            place = parse_cgroup(self._read(pid, "cgroup").decode("utf-8", "replace"))
        except OSError:
            place = CgroupPlace()
        try:
            attributes = parse_environ(self._read(pid, "environ"))
        except OSError:
            attributes = {}  # another user's process, or it is just going
        return replace(identity_from(self.node, attributes, place, comm), ns_pid=self._ns_pid(pid))

    def _ns_pid(self, pid: int) -> int:
        try:
            status = self._read(pid, "status").decode("utf-8", "replace")
        except OSError:
            return 0
        pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        return int(pids[-1]) if len(pids) > 1 else 0

    def _read(self, pid: int, name: str) -> bytes:
        return (self._proc / str(pid) / name).read_bytes()


def _remember(table: OrderedDict[int, _T], key: int, value: _T, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)
