"""Signals that need no program in the kernel: its own counters, read once a second.

Accounts close as those of the probes do: a reading that says something is an attempt, and becomes an event or is filtered.
The rate limit has nothing to do here, because no cgroup gives more than one event a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from libslo.errors import CannotError
from libslo.host import cgroup2_mount, cgroup_mount
from libslo.kernel.account import Account
from libslo.kernel.events import EVENT_DTYPE, KINDS, PCT_SCALE
from libslo.kernel.otel_env import parse_environ

__all__ = ["CpuStat", "Poller", "ProcStat", "Readings", "Targets", "WorkerPoller", "never", "open_poller", "steal_readings"]

_SCAN_NS = 1_000_000_000
_MOST_MEMBERS = 64  # of a cgroup that are asked for their service: once a second, for each that was held
_SCAN_SHARE = 200  # a look at all cgroups is taken so seldom that it costs at most 1/200 of a CPU


@dataclass(frozen=True, slots=True)
class Targets:
    """Whose readings pass; empty is everybody's. cgroups: absolute directories of cgroup2, each standing for those below it."""

    pids: tuple[int, ...] = ()
    comm: str = ""
    cgroups: tuple[Path, ...] = ()
    min_latency_ns: int = 0  # of cfs_throttled_ms
    dns_min_latency_ns: int = 0
    dns_timeout_ns: int = 5_000_000_000
    rate_limit: int = 0  # as in CaptureSettings; the kernel's counters give too few events to need it
    burst_limit: int = 0
    drop_capabilities: bool = False  # as in CaptureSettings, for a source that is a process

    @property
    def all_processes(self) -> bool:
        """True when no process is left out."""
        return not self.pids and not self.comm and not self.cgroups


@dataclass(slots=True)
class Readings:
    """What one poll gave: kernel records, dtype EVENT_DTYPE, further attributes of each, and what became of the readings."""

    events: NDArray[Any] = field(default_factory=lambda: np.zeros(0, EVENT_DTYPE))
    attributes: list[dict[str, str | int | float | bool]] = field(default_factory=list)
    account: Account = field(default_factory=Account)


class Poller(Protocol):
    """A source that is asked; the first reading is taken when it is made."""

    def poll(self, now_ns: int) -> Readings:
        """What has happened since the last time. now_ns: CLOCK_MONOTONIC."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@runtime_checkable
class WorkerPoller(Poller, Protocol):
    """A source that is a process of its own."""

    def cpu_s(self) -> float:
        """CPU time in seconds that its processes have used until now; never less than before."""
        ...

    def pause(self) -> None:
        """End the process."""
        ...

    def resume(self) -> None:
        """Start it anew, without waiting until it measures. Raises CannotError."""
        ...


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    comm: str
    place: Path | None  # in cgroup2


@dataclass(slots=True)
class _Group:
    inode: int
    throttled_ns: int
    read_ns: int
    has_quota: bool


def never() -> bool:
    """For `stopped`, where nobody stops."""
    return False


def open_poller(variant: str, targets: Targets, *, btf_path: Path | None = None, stopped: Callable[[], bool] = never) -> Poller:
    """The source of a signal by its variant's name. Raises CannotError or OSError when this machine does not have it.

    btf_path: types of the running kernel, where it does not show them itself. stopped: asked while a source takes long to open,
    which then gives up with CannotError.
    """
    if variant == "prev_steal_time":
        from libslo.kernel.steal import RunQueueSteal

        return RunQueueSteal(targets, btf_path=btf_path)
    from libslo.kernel.bcc import BCC_SIGNALS, BccPoller

    if variant in BCC_SIGNALS:
        return BccPoller(BCC_SIGNALS[variant], targets, stopped=stopped)
    sources: dict[str, Callable[[Targets], Poller]] = {"cpu_stat": CpuStat, "proc_stat": ProcStat}
    return sources[variant](targets)


def parse_cpu_stat(text: str) -> tuple[int, bool]:
    """Nanoseconds that the CPU quota has held a cgroup (v1 throttled_time, v2 throttled_usec), and whether it ever had a quota."""
    fields = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    throttled_ns = int(fields["throttled_time"]) if "throttled_time" in fields else 1000 * int(fields.get("throttled_usec", 0))
    return throttled_ns, int(fields.get("nr_periods", 0)) > 0


def parse_cpu_times(stat: str) -> tuple[int, int]:
    """Stolen and all clock ticks of all CPUs from the text of ``/proc/stat``; guest time is part of user time (proc(5))."""
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


class _Files:
    """Reads files anew each time: nothing to let go of."""

    def close(self) -> None:
        """Nothing is held."""


class CpuStat(_Files):
    """cfs_throttled_ms: how much longer each cgroup's CPU quota held it, from ``cpu.stat``, summed over CPUs as the kernel does.

    A cgroup is charged to a process in it or below it: of those that pass the first that names its service, else the one with the
    lowest pid. That one is often a shell or an init that starts the service and has no name itself.
    """

    def __init__(self, targets: Targets, *, proc: Path = Path("/proc")) -> None:
        mount = cgroup_mount("cpu")
        if mount is None:
            raise CannotError("no cgroup hierarchy with the cpu controller is mounted", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")
        self._root, self._version = mount
        self._unified = cgroup2_mount()
        self._targets, self._proc = targets, proc
        self._groups: dict[str, _Group] = {}
        self._scan_ns = 0
        self._scanned_ns = now_ns = time.monotonic_ns()
        self._scan(now_ns)
        for path, group in self._groups.items():
            self._advance(path, group, now_ns)

    def _scan(self, now_ns: int) -> None:
        """Find cgroups. Whatever holds a new one has happened since the last scan, so it starts from 0."""
        begun_ns = time.monotonic_ns()
        found: dict[str, _Group] = {}
        for path, inode in _directories(str(self._root)):
            known = self._groups.get(path)
            found[path] = known if known and known.inode == inode else _Group(inode, 0, self._scanned_ns, False)
            found[path].has_quota = found[path].has_quota or parse_cpu_stat(_read(f"{path}/cpu.stat"))[1]
        self._groups, self._scanned_ns = found, now_ns
        self._scan_ns = now_ns + max(_SCAN_NS, _SCAN_SHARE * (time.monotonic_ns() - begun_ns))

    def _advance(self, path: str, group: _Group, now_ns: int) -> tuple[int, int]:
        """How much longer it was held, and since when, both in nanoseconds."""
        throttled_ns, _ = parse_cpu_stat(_read(f"{path}/cpu.stat"))
        held_ns, interval_ns = throttled_ns - group.throttled_ns, now_ns - group.read_ns
        if held_ns < 0:  # gone, or not readable
            return 0, 0
        group.throttled_ns, group.read_ns = throttled_ns, now_ns
        return held_ns, interval_ns

    def poll(self, now_ns: int) -> Readings:
        """One event for each cgroup that its quota has held since the last time."""
        if now_ns >= self._scan_ns:
            self._scan(now_ns)
        rows: list[tuple[int, _Process, int]] = []
        attributes: list[dict[str, str | int | float | bool]] = []
        filtered = 0
        for path, group in self._groups.items():
            if not group.has_quota:
                continue
            held_ns, interval_ns = self._advance(path, group, now_ns)
            if not held_ns:
                continue
            owner = self._owner(path)
            if owner is None or held_ns < self._targets.min_latency_ns:
                filtered += 1
                continue
            rows.append((held_ns, owner, self._cgroup_id(group, owner)))
            attributes.append({"cgroup": "/" + path[len(str(self._root)) :].lstrip("/"), "interval_ms": interval_ns / 1e6})
        events = np.zeros(len(rows), EVENT_DTYPE)
        for event, (held_ns, owner, cgroup_id) in zip(events, rows, strict=True):
            event["duration_ns"], event["cgroup_id"] = held_ns, cgroup_id
            event["pid"] = event["tid"] = owner.pid
            event["comm"] = owner.comm.encode()
        events["ts_ns"] = events["start_ns"] = now_ns
        events["kind"], events["value"] = KINDS["cfs_throttled_ms"], 1
        return Readings(events, attributes, Account(attempts=len(rows) + filtered, emitted=len(rows), filtered=filtered))

    def _owner(self, path: str) -> _Process | None:
        """A process that passes; pid 0 when the cgroup is empty by now and nobody is left out; None when it is filtered."""
        first: _Process | None = None
        for process in islice(self._members(path), _MOST_MEMBERS):
            if self._names_service(process.pid):
                return process
            first = first or process
        if first is not None:
            return first
        return _Process(0, "", None) if self._targets.all_processes else None

    def _members(self, path: str) -> Iterator[_Process]:
        """The processes that pass, of the cgroup itself before those below it, each by pid."""
        for directory, _ in _directories(path):
            for pid in sorted(map(int, _read(f"{directory}/cgroup.procs").split())):
                process = self._process(pid)
                if self._passes(process):
                    yield process

    def _names_service(self, pid: int) -> bool:
        """Whether its environment says which service it is; False when that cannot be read."""
        try:
            return "service.name" in parse_environ((self._proc / str(pid) / "environ").read_bytes())
        except OSError:
            return False

    def _process(self, pid: int) -> _Process:
        lines = _read(f"{self._proc}/{pid}/cgroup").splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        place = self._unified / path.lstrip("/") if self._unified and path is not None else None
        return _Process(pid, _read(f"{self._proc}/{pid}/comm").rstrip("\n"), place)

    def _passes(self, process: _Process) -> bool:
        chosen = self._targets
        return (
            (not chosen.pids or process.pid in chosen.pids)
            and (not chosen.comm or process.comm == chosen.comm)
            and (not chosen.cgroups or (process.place is not None and any(process.place.is_relative_to(path) for path in chosen.cgroups)))
        )

    def _cgroup_id(self, group: _Group, owner: _Process) -> int:
        if self._version == 2:
            return group.inode
        try:
            return owner.place.stat().st_ino if owner.place else 0
        except OSError:
            return 0


class ProcStat(_Files):
    """cpu_steal_pct: the share of all CPUs' time that the hypervisor gave to others. Nobody's in particular: pid 0, filtered by targets."""

    def __init__(self, targets: Targets, *, stat: Path = Path("/proc/stat")) -> None:
        self._targets, self._stat = targets, stat
        self._stolen, self._all = parse_cpu_times(stat.read_text(encoding="ascii"))

    def poll(self, now_ns: int) -> Readings:
        """One event for the time since the last one, unless that is less than a clock tick."""
        stolen, total = parse_cpu_times(self._stat.read_text(encoding="ascii"))
        stolen_ticks, all_ticks = stolen - self._stolen, total - self._all
        if all_ticks <= 0:
            return Readings()
        self._stolen, self._all = stolen, total
        return steal_readings(self._targets, now_ns, stolen_ticks, all_ticks)


def steal_readings(targets: Targets, now_ns: int, stolen_ticks: float, all_ticks: float) -> Readings:
    """The one event of cpu_steal_pct: what part of the CPUs' time was stolen. all_ticks: more than 0."""
    if not targets.all_processes:
        return Readings(account=Account(attempts=1, filtered=1))
    events = np.zeros(1, EVENT_DTYPE)
    events["ts_ns"] = now_ns
    events["kind"] = KINDS["cpu_steal_pct"]
    events["value"] = round(100 * PCT_SCALE * max(0, stolen_ticks) / all_ticks)
    return Readings(events, [{"cpu.ticks": all_ticks}], Account(attempts=1, emitted=1))


def _directories(path: str) -> Iterator[tuple[str, int]]:
    """A cgroup and all below it, with their inode numbers, parents first; what goes meanwhile is left out."""
    try:
        inode = os.stat(path).st_ino  # noqa: PTH116 - thousands a second: strings, not Path objects
        entries = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    yield path, inode
    for entry in sorted(entries):
        yield from _directories(entry)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""
