"""Attached probes and all that belongs to reading them."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.errors import CannotError
from libslo.host import ROOT_CGROUP_ID, cgroup2_mount
from libslo.kernel.account import Account, account_from_cpus, settled_account
from libslo.kernel.dns_waits import DnsWaits
from libslo.kernel.events import EVENT_DTYPE, KINDS, probe_events
from libslo.kernel.files import name_files
from libslo.kernel.histogram import MAX_SERIES, Histograms, SeriesCounts, stripes
from libslo.kernel.identity import Identity, IdentityResolver
from libslo.kernel.libbpf import BpfObject, map_lookup_percpu, map_update
from libslo.kernel.listeners import Listener, listening_processes, pack_listener, pack_socket_owner, take_socket
from libslo.kernel.names import add_names
from libslo.kernel.pace import Pace
from libslo.kernel.polled import WorkerPoller, never
from libslo.kernel.probes import Probe, attach_signals, attached_mode
from libslo.kernel.report import agent_report
from libslo.kernel.ring import Ring, open_ring
from libslo.kernel.settings import CaptureSettings, cgroup_targets, pack_config, polled_targets

__all__ = ["Session"]

_POLL_S = 0.05
_SETTLE_S = 0.02  # longer than a program that was running on another CPU when its link was destroyed
_ACCOUNT_BYTES = 40


class Session:
    """Attached probes and all that belongs to reading them. A context manager; leaving it gives everything back."""

    def __init__(self, settings: CaptureSettings, resolver: IdentityResolver | None = None, *, stopped: Callable[[], bool] = never) -> None:
        """Raises InputError for a target, signal or variant that does not exist. A signal that cannot be attached is a state.

        stopped: asked while attaching; what is left then is not attached.
        """
        self.settings = settings
        self.resolver = resolver or IdentityResolver()
        self._targets = cgroup_targets(settings)
        self._n_stripes = stripes(os.cpu_count() or 1)
        self._histograms: dict[str, Histograms] = {}
        self._rings: dict[str, Ring] = {}
        self._poll = select.epoll()
        self._pace = Pace()
        self._made: dict[str, Account] = {}  # events that user space made: time-outs and readings
        self._drained = dict.fromkeys(KINDS.values(), 0)
        self._accounts: dict[str, Account] = {}
        self._dns: DnsWaits | None = None
        self._shed: set[str] = set()  # signals
        self._children_s: dict[str, float] = {}
        self.poll_s: dict[str, float] = {}  # CPU time that asking for each polled signal has taken
        self.states = attach_signals(
            settings.signals, prepare=self._prepare, targets=polled_targets(settings), btf=settings.btf, mode=settings.mode,
            forced=settings.variants, stopped=stopped,
            sizes={"slo_events": settings.ring_bytes, "slo_histograms": MAX_SERIES * self._n_stripes if settings.histograms else 1}
            | ({} if settings.names else {"dns_names": 1}),
        )  # fmt: skip
        # Said once: what was let in stays, whatever is dropped later.
        self.mode = attached_mode(self.states, asked=settings.mode, btf=settings.btf)
        try:
            self._close_histograms(self._histograms.keys() - {probe.object.path.name for probe in self.probes()})
            for probe in self.probes():
                self._open(probe)
        except BaseException:
            self.close()
            raise

    def probes(self) -> list[Probe]:
        """The attached objects, each once."""
        return list({state.probe.variant.object_name: state.probe for state in self.states if state.probe}.values())

    def _prepare(self, bpf: BpfObject, *, wanted: set[str]) -> None:
        if self.settings.histograms:
            self._histograms[bpf.path.name] = Histograms(bpf, self._n_stripes)
        if bpf.has_map("own_process"):
            map_update(bpf.map_fd("own_process"), struct.pack("<I", 0), struct.pack("<I", os.getpid()))
        self._configure(bpf, wanted)

    def _configure(self, bpf: BpfObject, wanted: set[str] | frozenset[str]) -> None:
        since_ns = time.monotonic_ns()
        config = pack_config(self.settings, wanted, self._targets, since_ns=since_ns, n_stripes=self._n_stripes)
        map_update(bpf.map_fd("slo_config"), struct.pack("<I", 0), config)
        if self._dns and bpf.has_map("dns_starts"):
            self._dns.since_ns = since_ns

    def _open(self, probe: Probe) -> None:
        ring_fd = probe.object.map_fd("slo_events")
        self._rings[probe.variant.object_name] = open_ring(ring_fd, probe.object.max_entries("slo_events"), EVENT_DTYPE)
        self._poll.register(ring_fd, select.EPOLLIN)
        if probe.object.has_map("dns_starts"):
            self._dns = DnsWaits(probe.object, self.settings)
        if probe.object.has_map("listeners") or probe.object.has_map("socket_owners"):
            self._name_listeners(probe)

    def _name_listeners(self, probe: Probe) -> None:
        """Tell the probe who listened before it; an entry it has made itself meanwhile is newer and stays."""
        root = cgroup2_mount()
        chosen = polled_targets(self.settings)
        by_port = probe.object.has_map("listeners")
        for listener in listening_processes():
            place = None if root is None else root / listener.cgroup_path.lstrip("/")
            passes = (
                (not chosen.pids or listener.pid in chosen.pids)
                and (not chosen.comm or listener.comm == chosen.comm)
                and (not chosen.cgroups or (place is not None and any(place.is_relative_to(path) for path in chosen.cgroups)))
            )
            cgroup_id = _inode(place) if place else 0
            if by_port:
                key, value = pack_listener(listener, cgroup_id=cgroup_id, seen_ns=time.monotonic_ns(), passes=passes)
                map_update(probe.object.map_fd("listeners"), key, value, only_new=True)
            else:
                owner = pack_socket_owner(listener, cgroup_id=cgroup_id, seen_ns=time.monotonic_ns(), passes=passes)
                _own_socket(probe, listener, owner)

    def wait(self, timeout_s: float = _POLL_S) -> None:
        """Sleep until there is something to read or the time is over, and keep to the pace of reading."""
        rest_s = min(self._pace.rest_s(time.monotonic()), timeout_s)
        time.sleep(rest_s)
        self._poll.poll(timeout_s - rest_s)

    def drain(self) -> list[dict[str, Any]]:
        """Probe events of everything that is waiting, oldest first within each probe."""
        waiting = self.read()
        return self._convert(np.concatenate(waiting)) if waiting else []

    def read(self) -> list[NDArray[Any]]:
        """Everything that is waiting, one array a probe with news, dtype EVENT_DTYPE: taken, but neither counted nor named."""
        waiting = [events for ring in self._rings.values() if (events := ring.drain()).size]
        self._pace.drained(sum(events.size for events in waiting), time.monotonic())
        return waiting

    def sweep(self, now_ns: int | None = None) -> list[dict[str, Any]]:
        """Probe events of DNS waits older than the time-out, each taken out of the kernel's map once. now_ns: CLOCK_MONOTONIC."""
        if self._dns is None:
            return []
        events, account = self._dns.sweep(time.monotonic_ns() if now_ns is None else now_ns)
        self._count("dns_latency_ms", account)
        return self._convert(events)

    def poll(self, now_ns: int | None = None) -> list[dict[str, Any]]:
        """Probe events of the sources that are asked instead of attached. now_ns: CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        result: list[dict[str, Any]] = []
        for state in self.states:
            if state.poller and state.signal not in self._shed:
                begun_s = time.thread_time()
                try:
                    readings = state.poller.poll(now_ns)
                except CannotError as error:  # the source itself has gone: the others go on
                    state.poller.close()
                    state.poller, state.attached, state.reason = None, False, str(error)
                    continue
                self.poll_s[state.signal] = self.poll_s.get(state.signal, 0.0) + time.thread_time() - begun_s
                self._count(state.signal, readings.account)
                for event, attributes in zip(self._convert(readings.events), readings.attributes, strict=True):
                    event["attributes"].update(attributes)
                    result.append(event)
        return result

    def children_s(self) -> dict[str, float]:
        """CPU time in seconds of the processes that measure a signal for this one, since they began."""
        for state in self.states:
            if isinstance(state.poller, WorkerPoller):
                self._children_s[state.signal] = state.poller.cpu_s()
        return dict(self._children_s)

    def histograms(self) -> list[SeriesCounts]:
        """Waits by length that ended since the last call, one entry a (signal, cgroup)."""
        result = []
        for probe in self.probes():
            found = self._histograms.get(probe.object.path.name)
            if found:
                result += found.read(min(KINDS[name] for name in probe.wanted))
        return result

    def forget_cgroups(self) -> list[SeriesCounts]:
        """Take back the histograms of cgroups that are gone; returns what they had gained since they were last read.

        Only where the whole hierarchy can be seen: in a cgroup namespace of its own, an agent cannot tell what is gone.
        """
        root = cgroup2_mount()
        if root is None or _inode(root) != ROOT_CGROUP_ID:
            return []
        alive = {0} | {_inode(place) for place, _, _ in os.walk(root)}
        return [series for found in self._histograms.values() for series in found.reap(alive.__contains__)]

    def _close_histograms(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._histograms.pop(name).close()

    def shed(self, signal: str, *, detach: bool) -> bool:
        """Stop measuring a signal, and those of the same object; returns whether its programs are off, not only muted.

        detach: take them off. A process that measures for this one ends in either case, and its programs with it.
        """
        for state in self.states:
            if state.signal == signal and state.probe:
                self._shed |= state.probe.wanted
                self._configure(state.probe.object, frozenset())
                if detach:
                    state.probe.object.detach()
            elif state.signal == signal:
                self._shed.add(signal)
                if isinstance(state.poller, WorkerPoller):
                    state.poller.pause()
                    detach = True
        return detach

    def restore(self, signal: str) -> None:
        """Measure a shed signal again. Raises BpfError or CannotError when it cannot be attached any more."""
        for state in self.states:
            if state.signal == signal and state.probe:
                if not state.probe.object.attached:
                    state.probe.attach()
                self._configure(state.probe.object, state.probe.wanted)
                self._shed -= state.probe.wanted
            elif state.signal == signal and isinstance(state.poller, WorkerPoller):
                state.poller.resume()
            elif state.signal == signal and state.poller:
                state.poller.poll(time.monotonic_ns())  # what the pause held is nobody's event
        self._shed.discard(signal)

    @property
    def shed_signals(self) -> frozenset[str]:
        """Signals that are not measured at the moment."""
        return frozenset(self._shed)

    def owner(self, cgroup_id: int | None) -> Identity:
        """Who a cgroup belongs to, as far as it is known; None is nobody in particular."""
        now_ns = time.monotonic_ns()
        return Identity(self.resolver.node) if cgroup_id is None else self.resolver.resolve(0, cgroup_id, "", 0, now_ns)

    def _count(self, signal: str, account: Account) -> None:
        self._made[signal] = self._made.get(signal, Account()) + account

    def _convert(self, events: NDArray[Any]) -> list[dict[str, Any]]:
        if not events.size:
            return []
        for kind, count in enumerate(np.bincount(events["kind"]).tolist()):
            if count:
                self._drained[kind] += count
        now_ns = time.monotonic_ns()
        unix_offset_ns = _unix_offset_ns()  # measured each time: a step of the wall clock must not last

        name_files(events)

        def identify(pid: int, cgroup_id: int, comm: str, seen_ns: int) -> Identity:
            return self.resolver.resolve(pid, cgroup_id, comm, seen_ns, now_ns)

        made = probe_events(events, unix_offset_ns, identify)
        if self.settings.names and self._dns:
            add_names(self._dns.names_fd, events, made)
        return made

    def report(self, *, final: bool, **more: Any) -> dict[str, Any]:
        """An agent report (contract v1alpha1) of the state now. more: further fields of it."""
        notes = {}
        for state in self.states:
            if state.probe and (misses := state.probe.object.recursion_misses()):
                notes[state.signal] = f"{misses} runs skipped by the kernel's recursion guard"
        return agent_report(
            self.states, node=self.resolver.node, ts_unix_ns=time.time_ns(), accounts=self.accounts(), notes=notes,
            drained=self.drained(), shed=self._shed, mode=self.mode, final=final,
            identity=self.resolver.status(), **more,
        )  # fmt: skip

    def hits(self) -> dict[str, int]:
        """Runs of the programs of each attached object until now, by its name."""
        return {
            probe.variant.object_name: sum(struct.unpack(f"<{len(values) // 8}Q", values))
            for probe in self.probes()
            if (values := map_lookup_percpu(probe.object.map_fd("slo_hits"), struct.pack("<I", 0), 8))
        }

    def accounts(self) -> dict[str, Account]:
        """What became of the attempts of each signal until now."""
        for state in self.states:
            self._accounts[state.signal] = self._made.get(state.signal, Account())
            if state.probe:
                fd, key = state.probe.object.map_fd("slo_accounts"), struct.pack("<I", KINDS[state.signal])

                def read(fd: int = fd, key: bytes = key) -> Account:
                    return account_from_cpus(map_lookup_percpu(fd, key, _ACCOUNT_BYTES) or b"")

                self._accounts[state.signal] += settled_account(read)
        return dict(self._accounts)

    def drained(self) -> dict[str, int]:
        """Events of each signal that have been read until now."""
        return {name: self._drained[kind] for name, kind in KINDS.items()}

    def detach(self) -> list[dict[str, Any]]:
        """Stop recording and return the probe events that were still on their way."""
        for probe in self.probes():
            probe.object.detach()
        time.sleep(_SETTLE_S)
        return self.drain()

    def close(self) -> None:
        """Give links, maps and programs back."""
        self._poll.close()
        self._rings.clear()
        self._close_histograms(self._histograms.keys())
        for probe in self.probes():
            probe.object.close()
        for state in self.states:
            if state.poller:
                state.poller.close()
            state.probe = state.poller = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _inode(place: Path | str) -> int:
    """The inode number of a directory, which in cgroup2 is the cgroup's id; 0 when it is gone."""
    try:
        return os.stat(place).st_ino  # noqa: PTH116 - strings of os.walk
    except OSError:
        return 0


def _unix_offset_ns(tries: int = 5) -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC: of several readings the one with the least time around it, lest a preemption lies in it."""
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(tries)]
    before_ns, unix_ns, after_ns = min(readings, key=lambda reading: reading[2] - reading[0])
    return unix_ns - (before_ns + after_ns) // 2


def _own_socket(probe: Probe, listener: Listener, owner: bytes) -> None:
    """Leave the owner with the listening socket itself; without the right to hold that one it has none: a blind spot of the variant."""
    try:
        held = take_socket(listener)
    except OSError:
        return
    try:
        map_update(probe.object.map_fd("socket_owners"), struct.pack("<i", held), owner, only_new=True)
    finally:
        os.close(held)
