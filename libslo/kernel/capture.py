"""The capture loop: attach, drain, name, sweep, report, and let go without losing an event."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.errors import CannotError, InputError
from libslo.host import cgroup2_mount
from libslo.kernel.account import Account, account_from_cpus
from libslo.kernel.events import DNS_KEY_DTYPE, DNS_START_DTYPE, EVENT_DTYPE, KINDS, dns_timeouts, probe_events
from libslo.kernel.identity import Identity, IdentityResolver
from libslo.kernel.libbpf import BpfObject, map_lookup_and_delete, map_lookup_batch, map_lookup_percpu, map_update
from libslo.kernel.listeners import listening_processes, pack_listener
from libslo.kernel.polled import Targets
from libslo.kernel.probes import DEFAULT_BTF, Probe, attach_signals, machine_obstacle, unattached
from libslo.kernel.report import agent_report
from libslo.kernel.ring import Ring, open_ring

__all__ = ["MAX_TARGETS", "Batch", "CaptureSettings", "Session", "capture", "check_report", "pack_config"]

MAX_TARGETS = 16  # SLO_MAX_TARGETS
DNS_TIMEOUT_NS = 5_000_000_000  # what glibc's resolver waits for one server by default (RES_TIMEOUT)
_POLL_S = 0.05
_PACE_S = 0.005  # between two drains: at most 200 wake-ups a second, and still soon enough to name a process that is about to end
_SWEEP_NS = 1_000_000_000
_SETTLE_S = 0.02  # longer than a program that was running on another CPU when its link was destroyed
_COMM_BYTES = 16
_ACCOUNT_BYTES = 40


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What to capture. Targets add up: an event passes when its process AND its cgroup are asked for (none asked: all pass)."""

    signals: tuple[str, ...]
    pids: tuple[int, ...] = ()
    comm: str = ""
    cgroups: tuple[Path, ...] = ()
    min_latency_ms: float = 0.0
    rate_limit: int = 0  # events per second, signal and cgroup; 0 is off
    ring_bytes: int = 1 << 20
    duration_s: float | None = None
    count: int | None = None  # probe events
    report_interval_s: float = 60.0
    btf: Path = DEFAULT_BTF
    dns_timeout_ns: int = DNS_TIMEOUT_NS


@dataclass(slots=True)
class Batch:
    """What one turn of the loop has to say."""

    events: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)


def pack_config(settings: CaptureSettings, wanted: set[str], cgroups: list[tuple[int, int]]) -> bytes:
    """The bytes of struct slo_config. wanted: signals to report. cgroups: (cgroup id, level below the root)."""

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (MAX_TARGETS - len(values))

    return struct.pack(
        f"<2Q{MAX_TARGETS}Q{MAX_TARGETS}I{MAX_TARGETS}I4I{_COMM_BYTES}s",
        round(settings.min_latency_ms * 1e6), settings.rate_limit,
        *padded([identity for identity, _ in cgroups]), *padded([level for _, level in cgroups]), *padded(list(settings.pids)),
        len(cgroups), len(settings.pids), sum(1 << KINDS[name] for name in wanted), bool(settings.comm),
        settings.comm.encode()[: _COMM_BYTES - 1],
    )  # fmt: skip


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a symlink out of the hierarchy that was named


def _cgroup_target(path: Path) -> tuple[int, int]:
    root = cgroup2_mount()
    if root is None:
        raise CannotError("no cgroup2 is mounted", source="--cgroup", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    absolute = _absolute(path)
    if not absolute.is_dir():
        raise InputError("no such cgroup", source=str(path), hint=f"a directory below {root}")
    if not absolute.is_relative_to(root) or absolute.stat().st_dev != root.stat().st_dev:
        raise InputError("not in the cgroup2 hierarchy", source=str(path), hint=f"a directory below {root}")
    # The inode number of a cgroup2 directory is the id that bpf_get_current_cgroup_id() returns.
    return absolute.stat().st_ino, len(absolute.relative_to(root).parts)


class Session:
    """Attached probes and all that belongs to reading them. A context manager; leaving it gives everything back."""

    def __init__(self, settings: CaptureSettings, resolver: IdentityResolver | None = None) -> None:
        """Raises CannotError when nothing could be attached, InputError for a target that does not exist."""
        obstacle = machine_obstacle(settings.btf)
        if obstacle:
            raise obstacle
        if len(settings.pids) > MAX_TARGETS or len(settings.cgroups) > MAX_TARGETS:
            raise InputError(f"more than {MAX_TARGETS} targets of one kind", hint="name a cgroup that holds them all")
        targets = [_cgroup_target(path) for path in settings.cgroups]
        self.settings = settings
        self.resolver = resolver or IdentityResolver()
        self.resolver.prime()  # before there are events to wait for it

        def configure(bpf: BpfObject, *, wanted: set[str]) -> None:
            map_update(bpf.map_fd("slo_config"), struct.pack("<I", 0), pack_config(settings, wanted, targets))

        self.states = attach_signals(
            settings.signals, ring_bytes=settings.ring_bytes, configure=configure, btf=settings.btf,
            targets=Targets(
                pids=settings.pids, comm=settings.comm[: _COMM_BYTES - 1], cgroups=tuple(map(_absolute, settings.cgroups)),
                min_latency_ns=round(settings.min_latency_ms * 1e6),
            ),
        )  # fmt: skip
        self._rings: dict[str, Ring] = {}
        self._poll = select.epoll()
        self._made: dict[str, Account] = {}  # events that user space made: time-outs and readings
        self._drained = dict.fromkeys(KINDS.values(), 0)
        self._accounts: dict[str, Account] = {}
        self._notes: dict[str, str] = {}
        self._dns: Probe | None = None
        try:
            for probe in self._probes():
                self._open(probe)
        except BaseException:
            self.close()
            raise

    def _probes(self) -> list[Probe]:
        return list({state.probe.variant.object_name: state.probe for state in self.states if state.probe}.values())

    def _open(self, probe: Probe) -> None:
        ring_fd = probe.object.map_fd("slo_events")
        self._rings[probe.variant.object_name] = open_ring(ring_fd, probe.object.max_entries("slo_events"), EVENT_DTYPE)
        self._poll.register(ring_fd, select.EPOLLIN)
        if "dns_latency_ms" in probe.variant.signals:
            self._dns = probe
        if "tcp_retransmits_total" in probe.variant.signals:
            self._name_listeners(probe)

    def _name_listeners(self, probe: Probe) -> None:
        """Tell the probe who listened before it; an entry it has made itself meanwhile is newer and stays."""
        root = cgroup2_mount()
        chosen = self.settings
        for listener in listening_processes():
            place = None if root is None else root / listener.cgroup_path.lstrip("/")
            passes = (
                (not chosen.pids or listener.pid in chosen.pids)
                and (not chosen.comm or listener.comm == chosen.comm[: _COMM_BYTES - 1])
                and (not chosen.cgroups or (place is not None and any(place.is_relative_to(_absolute(path)) for path in chosen.cgroups)))
            )
            cgroup_id = place.stat().st_ino if place and place.is_dir() else 0
            key, value = pack_listener(listener, cgroup_id=cgroup_id, seen_ns=time.monotonic_ns(), passes=passes)
            map_update(probe.object.map_fd("listeners"), key, value, only_new=True)

    def wait(self, timeout_s: float = _POLL_S) -> None:
        """Sleep until there is something to read or the time is over, but not for less than the pace of reading."""
        time.sleep(min(_PACE_S, timeout_s))
        self._poll.poll(max(0.0, timeout_s - _PACE_S))

    def drain(self) -> list[dict[str, Any]]:
        """Probe events of everything that is waiting, oldest first within each probe."""
        result: list[dict[str, Any]] = []
        for ring in self._rings.values():
            events = ring.drain()
            if events.size:
                result += self._convert(events)
        return result

    def sweep(self, now_ns: int | None = None) -> list[dict[str, Any]]:
        """Probe events of DNS waits older than the time-out, each taken out of the kernel's map once. now_ns: CLOCK_MONOTONIC."""
        if self._dns is None:
            return []
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        bpf = self._dns.object
        fd = bpf.map_fd("dns_starts")
        key_bytes, start_bytes = DNS_KEY_DTYPE.itemsize, DNS_START_DTYPE.itemsize
        raw_keys, raw_starts, _ = map_lookup_batch(fd, key_bytes, start_bytes, bpf.max_entries("dns_starts"))
        keys, starts = np.frombuffer(raw_keys, DNS_KEY_DTYPE), np.frombuffer(raw_starts, DNS_START_DTYPE)
        old = np.flatnonzero(starts["ts_ns"].astype(np.int64) <= now_ns - self.settings.dns_timeout_ns)
        taken = [(key, start) for key in (keys[index].tobytes() for index in old) if (start := map_lookup_and_delete(fd, key, start_bytes))]
        if not taken:
            return []
        events = dns_timeouts(
            np.frombuffer(b"".join(key for key, _ in taken), DNS_KEY_DTYPE),
            np.frombuffer(b"".join(start for _, start in taken), DNS_START_DTYPE),
            self.settings.dns_timeout_ns,
        )
        self._count("dns_latency_ms", Account(attempts=events.size, emitted=events.size))
        return self._convert(events)

    def poll(self, now_ns: int | None = None) -> list[dict[str, Any]]:
        """Probe events of the sources that are asked instead of attached. now_ns: CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        result: list[dict[str, Any]] = []
        for state in self.states:
            if state.poller:
                readings = state.poller.poll(now_ns)
                self._count(state.signal, readings.account)
                for event, attributes in zip(self._convert(readings.events), readings.attributes, strict=True):
                    event["attributes"].update(attributes)
                    result.append(event)
        return result

    def _count(self, signal: str, account: Account) -> None:
        self._made[signal] = self._made.get(signal, Account()) + account

    def _convert(self, events: NDArray[Any]) -> list[dict[str, Any]]:
        for kind, count in zip(*np.unique(events["kind"], return_counts=True), strict=True):
            self._drained[int(kind)] += int(count)
        now_ns = time.monotonic_ns()
        unix_offset_ns = time.time_ns() - now_ns  # measured each time: a step of the wall clock must not last

        def identify(pid: int, cgroup_id: int, comm: str, seen_ns: int) -> Identity:
            return self.resolver.resolve(pid, cgroup_id, comm, seen_ns, now_ns)

        return probe_events(events, unix_offset_ns, identify)

    def report(self, *, final: bool) -> dict[str, Any]:
        """An agent report (contract v1alpha1) of the state now."""
        for state in self.states:
            if state.poller:
                self._accounts[state.signal] = self._made.get(state.signal, Account())
            if state.probe:
                bpf = state.probe.object
                values = map_lookup_percpu(bpf.map_fd("slo_accounts"), struct.pack("<I", KINDS[state.signal]), _ACCOUNT_BYTES)
                self._accounts[state.signal] = account_from_cpus(values or b"") + self._made.get(state.signal, Account())
                misses = bpf.recursion_misses()
                if misses:
                    self._notes[state.signal] = f"{misses} runs skipped by the kernel's recursion guard"
        return agent_report(
            self.states, node=self.resolver.node, ts_unix_ns=time.time_ns(), accounts=self._accounts, notes=self._notes,
            drained={name: self._drained[kind] for name, kind in KINDS.items()}, identity=self.resolver.status(), final=final,
        )  # fmt: skip

    def detach(self) -> list[dict[str, Any]]:
        """Stop recording and return the probe events that were still on their way."""
        for probe in self._probes():
            probe.object.detach()
        time.sleep(_SETTLE_S)
        return self.drain()

    def close(self) -> None:
        """Give links, maps and programs back."""
        self._poll.close()
        self._rings.clear()
        for probe in self._probes():
            probe.object.close()
        for state in self.states:
            state.probe = state.poller = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_report(settings: CaptureSettings, resolver: IdentityResolver | None = None) -> dict[str, Any]:
    """An agent report of what can be attached here, having tried and let go at once. Never raises CannotError."""
    resolver = resolver or IdentityResolver()
    obstacle = machine_obstacle(settings.btf)
    if obstacle:
        mode = "no_btf" if "BTF" in obstacle.fact else "min_capability" if "capability" in obstacle.fact else "core_partial"
        return agent_report(
            unattached(settings.signals, obstacle), node=resolver.node, ts_unix_ns=time.time_ns(), mode=mode,
            identity=resolver.status(), final=True,
        )  # fmt: skip
    with Session(settings, resolver) as session:
        return session.report(final=True)


def capture(settings: CaptureSettings, stopped: Callable[[], bool], resolver: IdentityResolver | None = None) -> Iterator[Batch]:
    """Batches until `stopped`, the duration or the count; the last one holds the final report, after the last event.

    Raises CannotError when no signal could be attached.
    """
    with Session(settings, resolver) as session:
        if not any(state.attached for state in session.states):
            first = session.states[0]
            raise CannotError(f"no signal could be attached: {first.signal}: {first.reason}", source="kernel", hint="agent --check")
        left = settings.count
        started_ns = swept_ns = reported_ns = time.monotonic_ns()
        yield Batch(reports=[session.report(final=False)])
        while not stopped() and left != 0:
            now_ns = time.monotonic_ns()
            over_s = (now_ns - started_ns) / 1e9
            if settings.duration_s is not None and over_s >= settings.duration_s:
                break
            session.wait(_POLL_S if settings.duration_s is None else min(_POLL_S, settings.duration_s - over_s))
            batch = Batch(events=session.drain())
            if now_ns - swept_ns >= _SWEEP_NS:
                batch.events += session.sweep() + session.poll()
                swept_ns = now_ns
            if now_ns - reported_ns >= settings.report_interval_s * 1e9:
                batch.reports.append(session.report(final=False))
                reported_ns = now_ns
            left = _take(batch, left)
            if batch.events or batch.reports:
                yield batch
        last = Batch(events=session.detach())
        last.events += session.sweep() + session.poll()
        last.reports.append(session.report(final=True))
        _take(last, left)
        yield last


def _take(batch: Batch, left: int | None) -> int | None:
    if left is None:
        return None
    batch.events = batch.events[:left]
    return left - len(batch.events)
