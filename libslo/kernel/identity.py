"""Whose process is it: pid to node, namespace, pod, container, service and workload.

The service: what the process says of itself (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) first, because its spans say the same;
then what Kubernetes says of its container, where there is a source of pods; then what its cgroup path tells (container runtimes,
systemd units); then its command name. Namespace, pod, container and workload: Kubernetes first, because it gives the names.
"""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from libslo.host import ROOT_CGROUP_ID, parse_start_ticks
from libslo.kernel.cgroups import CgroupPaths, CgroupPlace, group_key, parse_cgroup
from libslo.kernel.otel_env import parse_environ

if TYPE_CHECKING:
    from libslo.kernel.kube import PodIdentity
    from libslo.kernel.kube_source import PodSource

__all__ = ["Identity", "IdentityResolver", "default_node", "identity_from"]

_T = TypeVar("_T")

_MAX_PROCESSES = 8192
_FEW_PROCESSES = 512  # up to here nobody looks which of them have ended
_MAX_CGROUPS = 4096
_RECHECK_NS = 250_000_000  # within this time a pid is taken to be the process it was: no machine forks through all numbers so fast
_REASK_NS = 1_000_000_000  # how often a process that told nothing is asked again,
_REASK_FOR_NS = 10_000_000_000  # and for how long: it may not have reached its exec yet when first seen
_GONE_NS = 60_000_000_000  # how long a process that ended keeps its name; its number is not given away that soon


@dataclass(frozen=True, slots=True)
class Identity:
    """The owner of an event; "" is unknown."""

    node: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    service: str = ""
    workload: str = ""
    told: bool = False  # the process, its cgroup or Kubernetes said so; False: only the command name is known
    ns_pid: int = 0  # its pid in its own pid namespace, 0 when that is the one the kernel says


def default_node(given: str | None = None) -> str:
    """This machine's name: what is given, else what the environment says (SLO_NODE_NAME, SLO_NODE, NODE_NAME), else the host name."""
    names = (given, *(os.environ.get(name) for name in ("SLO_NODE_NAME", "SLO_NODE", "NODE_NAME")))
    return next((name for name in names if name), socket.gethostname())


def identity_from(node: str, attributes: Mapping[str, str], place: CgroupPlace, comm: str, pod: PodIdentity | None = None) -> Identity:
    """Put together what is known, best source first. attributes: what the process says. pod: what Kubernetes says."""
    said = attributes.get("service.name", "")
    unit = "" if place.contained else place.unit
    service = said or (pod.service if pod else "")
    return Identity(
        node=node,  # never what a process says of itself: it runs where this agent runs
        namespace=(pod.namespace if pod else "") or attributes.get("k8s.namespace.name") or attributes.get("service.namespace", ""),
        pod=(pod.pod if pod else "") or attributes.get("k8s.pod.name") or place.pod_uid,
        container=(pod.container if pod else "") or attributes.get("k8s.container.name") or place.container_id[:12],
        service=service or unit or comm,
        workload=(pod.workload if pod else "") or attributes.get("k8s.deployment.name") or service or unit,
        told=bool(attributes) or place.contained,
    )


@dataclass(slots=True)
class _Owner:
    """What is known of a process, or of a cgroup whose process could not be asked, before Kubernetes is asked."""

    attributes: Mapping[str, str]
    place: CgroupPlace
    comm: str
    ns_pid: int = 0
    nameless: bool = False  # nothing but a command name says what its service is
    identity: Identity | None = None  # kept once it cannot get better


@dataclass(slots=True)
class _Process:
    start_ticks: int
    owner: _Owner
    group: str
    checked_ns: int
    asked_ns: int
    first_ns: int
    readable: bool | None = None  # None: not asked yet


@dataclass(slots=True)
class _Groups:
    """What the processes of each cgroup say their service is, so that one that cannot be read takes what all others agree on."""

    services: dict[str, dict[int, str]] = field(default_factory=dict)

    def say(self, group: str, pid: int, service: str) -> None:
        if group:
            self.services.setdefault(group, {})[pid] = service

    def forget(self, group: str, pid: int) -> None:
        members = self.services.get(group)
        if members:
            members.pop(pid, None)
            if not members:
                del self.services[group]

    def agreed(self, group: str) -> dict[str, str]:
        """Resource attributes: the service that every known process of the cgroup names, or nothing."""
        services = set(self.services.get(group, {}).values())
        return {"service.name": services.pop()} if len(services) == 1 and "" not in services else {}


class IdentityResolver:
    """Resolves owners, remembering processes by (pid, start time) and the last identity seen in each cgroup.

    proc: root of procfs. node: this machine's name unless the environment says otherwise. pods: names from Kubernetes.
    cgroups: finds the path of a cgroup whose process is gone. boot_offset_ns: CLOCK_BOOTTIME minus CLOCK_MONOTONIC (None: as
    it is), because procfs counts start times through suspends.

    unreadable: processes whose environment could not be read for lack of privilege.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        node: str | None = None,
        ticks_per_second: int | None = None,
        boot_offset_ns: int | None = None,
        pods: PodSource | None = None,
        cgroups: CgroupPaths | None = None,
    ) -> None:
        self.node = default_node(node)
        self.unreadable = 0
        self._proc = proc
        self._tick_ns = 1_000_000_000 // (ticks_per_second or os.sysconf("SC_CLK_TCK"))
        self._boot_offset_ns = boot_offset_ns
        self._pods = pods
        self._paths = cgroups or CgroupPaths()
        self._processes: OrderedDict[int, _Process] = OrderedDict()
        self._cgroups: OrderedDict[int, _Owner] = OrderedDict()
        self._groups = _Groups()

    def prime(self, now_ns: int | None = None) -> int:
        """Ask every process there is now, and list the cgroups: before privileges are dropped. Returns how many were found.

        now_ns: CLOCK_MONOTONIC.
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        try:
            pids = sorted(int(entry.name) for entry in self._proc.iterdir() if entry.name.isdigit())
        except OSError:
            pids = []
        found = [process for pid in pids[-_MAX_PROCESSES:] if (process := self._process(pid, self._comm(pid), now_ns))]
        self._paths.scan()
        return len(found)

    def status(self) -> dict[str, Any]:
        """How naming fares, as it stands in an agent report."""
        pods = {"pods": self._pods.status().as_dict()} if self._pods else {}
        return {"unreadable_processes": self.unreadable, **pods}

    def resolve(self, pid: int, cgroup_id: int, comm: str, seen_ns: int, now_ns: int) -> Identity:
        """The owner of an event.

        seen_ns: CLOCK_MONOTONIC when the kernel saw this pid act (0: not known). A process that started later only reuses the
        number; the event is then charged to what its cgroup was last known as, else to what the cgroup's path tells, else to the
        command name alone.
        """
        process = self._process(pid, comm, now_ns) if pid else None
        if process and not self._is_younger(process, seen_ns):
            identity = self._named(process.owner)
            if identity.told and cgroup_id > ROOT_CGROUP_ID and self._cgroups.get(cgroup_id) is not process.owner:
                _remember(self._cgroups, cgroup_id, process.owner, _MAX_CGROUPS)
            return identity
        owner = self._cgroups.get(cgroup_id)
        if owner:
            self._cgroups.move_to_end(cgroup_id)
        else:
            owner = self._ask_cgroup(cgroup_id)
        if owner is None:
            return Identity(self.node, service=comm)
        identity = self._named(owner)
        # Another process of the same cgroup: its own pid is not this one's, and its command is not this one's service.
        return replace(identity, ns_pid=0, service=comm if owner.nameless else identity.service)

    def _named(self, owner: _Owner) -> Identity:
        if owner.identity:
            return owner.identity
        place, pod = owner.place, None
        if self._pods and place.contained:
            pod = self._pods.lookup(place.pod_uid, place.container_id)
        known = identity_from(self.node, owner.attributes, place, "", pod)
        owner.nameless = not known.service
        identity = replace(known, service=known.service or owner.comm, ns_pid=owner.ns_pid)
        if self._pods is None or not place.contained or (pod and pod.container):
            owner.identity = identity
        return identity

    def _is_younger(self, process: _Process, seen_ns: int) -> bool:
        # A start time is cut to whole ticks, so an honest owner never looks younger than it is.
        boot_offset_ns = self._boot_offset_ns
        if boot_offset_ns is None:  # asked each time: a suspend makes it larger
            boot_offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        return bool(seen_ns) and process.start_ticks * self._tick_ns - boot_offset_ns > seen_ns

    def _process(self, pid: int, comm: str, now_ns: int) -> _Process | None:
        known = self._processes.get(pid)
        if known:
            self._processes.move_to_end(pid)
            if now_ns - known.checked_ns < _RECHECK_NS:
                return known
        start_ticks = self._start_ticks(pid)
        if start_ticks is None:
            return known if known and now_ns - known.checked_ns < _GONE_NS else None
        if known and known.start_ticks == start_ticks:
            known.checked_ns = now_ns
            if not (known.owner.attributes or now_ns - known.asked_ns < _REASK_NS or known.asked_ns - known.first_ns > _REASK_FOR_NS):
                self._ask(pid, comm, known)
                known.asked_ns = now_ns
            return known
        if known:
            self._groups.forget(known.group, pid)
        process = _Process(start_ticks, _Owner({}, CgroupPlace(), comm), "", now_ns, now_ns, now_ns)
        if not self._ask(pid, comm, process):
            return None
        for gone_pid, gone in _remember(self._processes, pid, process, _MAX_PROCESSES):
            self._groups.forget(gone.group, gone_pid)
        self._forget_ended(now_ns)
        return process

    def _forget_ended(self, now_ns: int) -> None:
        """Look at the two that were asked for longest ago, for each new one: the ended go, so that the living stay.

        Those cannot be asked again once privileges are dropped.
        """
        for _ in range(2):
            pid, process = next(iter(self._processes.items()))
            if len(self._processes) <= _FEW_PROCESSES or now_ns - process.checked_ns < _GONE_NS:
                return
            if self._start_ticks(pid) == process.start_ticks:
                process.checked_ns = now_ns
                self._processes.move_to_end(pid)
            else:
                del self._processes[pid]
                self._groups.forget(process.group, pid)

    def _start_ticks(self, pid: int) -> int | None:
        try:
            return parse_start_ticks(self._read(pid, "stat").decode("utf-8", "replace"))
        except (OSError, ValueError, IndexError):
            return None

    def _ask(self, pid: int, comm: str, process: _Process) -> bool:
        """Read what a process says of itself, and where it is; False when it was gone before."""
        try:
            text = self._read(pid, "cgroup").decode("utf-8", "replace")
        except OSError:
            return False
        said: Mapping[str, str] = {}
        agreed: Mapping[str, str] = {}
        self._groups.forget(process.group, pid)
        process.group = group_key(text)
        try:
            block = self._read(pid, "environ")
            said = parse_environ(block)
            process.readable = process.readable or bool(block) or None  # one that is ending has none any more
        except PermissionError:  # of another user, or more privileged than this agent
            self.unreadable += process.readable is None
            process.readable = process.readable or False
        except OSError:
            pass
        if process.readable:
            said = said or process.owner.attributes  # it may have been asked with more privileges before
            self._groups.say(process.group, pid, said.get("service.name", ""))
        else:
            agreed = self._groups.agreed(process.group)
        place, before = parse_cgroup(text), process.owner.place
        if before.contained and not place.contained:
            place = before  # cgroup v1 shows a process that is ending in the root
        process.owner = _Owner(said or agreed, place, comm, self._ns_pid(pid))
        return True

    def _ask_cgroup(self, cgroup_id: int) -> _Owner | None:
        """What the path of a cgroup tells, for a process that was never read; None when that is nothing."""
        path = self._paths.path(cgroup_id)
        place, attributes = parse_cgroup(f"0::{path}"), self._groups.agreed(path)
        if not path or (place == CgroupPlace() and not attributes):
            return None
        owner = _Owner(attributes, place, "")
        _remember(self._cgroups, cgroup_id, owner, _MAX_CGROUPS)
        return owner

    def _comm(self, pid: int) -> str:
        try:
            return self._read(pid, "comm").decode("utf-8", "replace").rstrip("\n")
        except OSError:
            return ""

    def _ns_pid(self, pid: int) -> int:
        try:
            status = self._read(pid, "status").decode("utf-8", "replace")
        except OSError:
            return 0
        pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        return int(pids[-1]) if len(pids) > 1 else 0

    def _read(self, pid: int, name: str) -> bytes:
        with open(f"{self._proc}/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - hundreds a second: strings, not Path objects
            return file.readall()


def _remember(table: OrderedDict[int, _T], key: int, value: _T, limit: int) -> list[tuple[int, _T]]:
    """Put a value at the young end of a table; returns what had to go at the old end."""
    table[key] = value
    table.move_to_end(key)
    return [table.popitem(last=False) for _ in range(len(table) - limit)]
