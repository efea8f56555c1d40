"""The catalogue of probe variants, and trying them: a capability is what loaded AND attached, nothing else."""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from libslo.errors import CannotError, InputError
from libslo.host import ROOT_CGROUP_ID, cgroup2_mount
from libslo.kernel.libbpf import BpfError, BpfObject, library
from libslo.kernel.polled import Poller, Targets, open_poller
from libslo.resources import data_path

__all__ = [
    "DEFAULT_BTF",
    "VARIANTS",
    "Probe",
    "SignalState",
    "Variant",
    "attach_signals",
    "known_signals",
    "machine_obstacle",
    "unattached",
]

DEFAULT_BTF = Path("/sys/kernel/btf/vmlinux")

# include/uapi/linux/capability.h
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 12, 21, 38, 39


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to measure: an object file, the signals it carries, and what it cannot see."""

    name: str
    object_name: str
    signals: tuple[str, ...]
    at_cgroup: bool  # attaches to the root cgroup2
    blind_spots: tuple[str, ...]
    polled: bool = False  # no object: counters that the kernel shows in a file


_AGENT_START = "sockets connected before the agent have no known process: only their cgroup"
_STATE_BLIND = (
    "connects under way when the agent starts",
    "MPTCP connections are seen as their TCP subflows; SCTP and QUIC are not seen",
    "connect() that fails before a SYN can leave (no route, no free port) carries no errno",
)

# In order of preference for each signal.
VARIANTS: tuple[Variant, ...] = (
    Variant(
        "cgroup_skb", "dns_latency_ms.cgroup_skb", ("dns_latency_ms",), True,
        (
            _AGENT_START,
            "DNS on ports other than 53, over TLS or over HTTPS",
            "a message behind IPv6 extension headers, or in a later fragment",
            "over TCP: a message that does not begin its segment, and further ones in the same segment",
            "host-network sockets that are not connected and whose port 53 traffic is redirected (DNAT) show as time-outs",
            "the question's name is not recorded",
            "a query without an answer shows as 5000 ms, however soon its asker gave up",
        ),
    ),
    Variant(
        "inet_sock_set_state", "connect_latency_ms.inet_sock_set_state", ("connect_latency_ms", "connect_errors_total"), False,
        _STATE_BLIND,
    ),
    Variant(
        "tcp_retransmit_skb", "tcp_retransmits_total.tcp_retransmit_skb", ("tcp_retransmits_total",), False,
        (
            _AGENT_START,
            "an accepted socket is charged to the process that listened on its port, even if another one serves it",
            "a socket that listens without bind() has no port yet: its accepted ones are charged to their cgroup",
            "before Linux 6.16 a retransmission that this host itself refused to send is not seen",
        ),
    ),
    Variant(
        "mm_vmscan", "mem_reclaim_latency_ms.mm_vmscan", ("mem_reclaim_latency_ms",), False,
        (
            "a reclaim under way when the agent starts",
            "reclaim in the background (kswapd), on one NUMA node only (zone_reclaim_mode), of a soft limit, or compaction",
            "whoever writes memory.reclaim, or lowers a limit below what is used, is charged like one who ran into it",
            "further waits behind a limit: for another task's reclaim, for swap-in, or for the page itself",
        ),
    ),
    Variant(
        "sched_switch", "runqueue_delay_ms.sched_switch", ("runqueue_delay_ms",), False,
        (
            "waits under way when the agent starts",
            "a wait during which the task's group was held by its CPU quota: it is filtered, cfs_throttled_ms has it",
            "whether the CPU that was waited for was with the hypervisor at the time: cpu_steal_pct",
            "the way of a wake-up from one CPU to another, before the task is queued there",
        ),
    ),
    Variant(
        "block_io", "disk_io_latency_ms.block_io", ("disk_io_latency_ms",), False,
        (
            "requests under way when the agent starts",
            "kernels before 6.5, which have no block_io_start",
            "the time that a cgroup's I/O limit (io.max, blkio.throttle) holds back what is no request yet",
            "writes of the page cache are charged to the kernel thread that writes them back, not to who made the pages dirty",
            "a request that was merged into another one: it is filtered, the other one completes for both",
            "commands that are no file I/O (passthrough), devices whose queue/iostats is 0, file systems without a block device",
        ),
    ),
    Variant(
        "cpu_stat", "cfs_throttled_ms.cpu_stat", ("cfs_throttled_ms",), False,
        (
            "which process of a cgroup was held: it is charged to one of them",
            "a cgroup that is made and removed between two readings, and the last second of one that is removed",
            "cgroups outside the agent's own cgroup namespace or mount",
        ),
        polled=True,
    ),
    Variant(
        "proc_stat", "cpu_steal_pct.proc_stat", ("cpu_steal_pct",), False,
        ("which process the CPU was taken from", "steal that the hypervisor does not tell its guest"),
        polled=True,
    ),
)  # fmt: skip


class Configure(Protocol):
    """Writes an object's configuration map; `wanted` are the signals asked for that it carries."""

    def __call__(self, bpf: BpfObject, *, wanted: set[str]) -> None: ...


@dataclass(slots=True)
class Probe:
    """One attached object."""

    variant: Variant
    object: BpfObject


@dataclass(slots=True)
class SignalState:
    """What became of one signal that was asked for."""

    signal: str
    variant: str
    attached: bool
    blind_spots: tuple[str, ...]
    probe: Probe | None = None
    poller: Poller | None = None
    errno: int | None = None
    reason: str = ""
    verifier_tail: str = ""


def known_signals() -> list[str]:
    """Signals that have at least one variant, in catalogue order."""
    return list(dict.fromkeys(name for variant in VARIANTS for name in variant.signals))


def _effective_capabilities() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


def machine_obstacle(btf: Path = DEFAULT_BTF, *, capabilities: int | None = None) -> CannotError | None:
    """Why this process cannot load any probe at all, or None. capabilities: effective set as a bit mask, of this process when not given."""
    held = _effective_capabilities() if capabilities is None else capabilities
    if not held >> _CAP_SYS_ADMIN & 1:
        missing = [name for name, bit in (("CAP_BPF", _CAP_BPF), ("CAP_PERFMON", _CAP_PERFMON)) if not held >> bit & 1]
        if missing:
            return CannotError(f"missing capability {' and '.join(missing)}", source="kernel",
                               hint="run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")  # fmt: skip
    if not btf.is_file():
        return CannotError("no BTF: the kernel does not describe its types", source=str(btf),
                           hint="use a kernel with CONFIG_DEBUG_INFO_BTF=y, or name its BTF file with --btf")  # fmt: skip
    try:
        library()
    except CannotError as error:
        return error
    return None


def unattached(signals: Iterable[str], obstacle: CannotError) -> list[SignalState]:
    """The states of signals that were not even tried."""
    return [
        SignalState(name, variant.name, False, variant.blind_spots, reason=f"{obstacle} (try: {obstacle.hint})")
        for name in signals
        for variant in [_variants_of(name)[0]]
    ]


def attach_signals(
    signals: Sequence[str],
    *,
    ring_bytes: int,
    configure: Configure,
    targets: Targets,
    btf: Path = DEFAULT_BTF,
) -> list[SignalState]:
    """Load and attach the first variant of each signal that works; one that fails cannot stop another.

    targets: who passes, for the sources that are polled.
    configure: called between load and attach with the object and those of `signals` that it carries, so that no event
    slips past the filters. The caller closes the probes.
    Raises InputError for a signal without variants.
    """
    probes: dict[str, Probe | SignalState] = {}
    cgroup = cgroup2_mount()
    states = []
    for name in signals:
        state = None
        for variant in _variants_of(name):
            if variant.polled:
                state = _try_polled(variant, name, targets)
                if state.attached:
                    break
                continue
            found = probes.get(variant.object_name)
            if found is None:
                wanted = set(variant.signals) & set(signals)
                found = probes[variant.object_name] = _try_variant(
                    variant, name, ring_bytes, btf, cgroup, partial(configure, wanted=wanted)
                )
            if isinstance(found, Probe):
                state = SignalState(name, variant.name, True, variant.blind_spots, probe=found)
                break
            state = SignalState(name, variant.name, False, variant.blind_spots, errno=found.errno, reason=found.reason,
                                verifier_tail=found.verifier_tail)  # fmt: skip
        if state:
            states.append(state)
    return states


def _try_polled(variant: Variant, name: str, targets: Targets) -> SignalState:
    state = SignalState(name, variant.name, False, variant.blind_spots)
    try:
        state.poller = open_poller(name, targets)
        state.attached = True
    except CannotError as error:
        state.reason = f"{error} (try: {error.hint})" if error.hint else str(error)
    except OSError as error:
        state.errno, state.reason = error.errno, str(error)
    return state


def _variants_of(name: str) -> list[Variant]:
    found = [variant for variant in VARIANTS if name in variant.signals]
    if not found:
        raise InputError(f"unknown signal {name!r}", source="--signals", hint=f"one of {', '.join(known_signals())}")
    return found


def _try_variant(
    variant: Variant, name: str, ring_bytes: int, btf: Path, cgroup: Path | None, configure: Callable[[BpfObject], None]
) -> Probe | SignalState:
    failed = SignalState(name, variant.name, False, variant.blind_spots)
    if variant.at_cgroup and cgroup is None:
        failed.errno, failed.reason = errno_names.ENOENT, "no cgroup2 is mounted (try: mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
        return failed
    if variant.at_cgroup and cgroup is not None and cgroup.stat().st_ino != ROOT_CGROUP_ID:
        failed.errno = errno_names.EXDEV
        failed.reason = (
            f"{cgroup} is not the root of cgroup2 (try: give the agent the host's cgroup namespace, or mount its /sys/fs/cgroup)"
        )
        return failed
    bpf = None
    cgroup_fd = None
    try:
        bpf = BpfObject(data_path(f"bpf/build/{variant.object_name}.bpf.o"), btf_path=None if btf == DEFAULT_BTF else btf)
        bpf.set_max_entries("slo_events", ring_bytes)
        bpf.load()
        configure(bpf)
        if variant.at_cgroup:
            cgroup_fd = os.open(str(cgroup), os.O_RDONLY | os.O_DIRECTORY)
        bpf.attach(cgroup_fd)
        return Probe(variant, bpf)
    except BpfError as error:
        failed.errno, failed.verifier_tail = error.errno, error.verifier_tail
        failed.reason = f"{error.what}: {(error.strerror or '').lower()}"
    except CannotError as error:
        failed.reason = f"{error} (try: {error.hint})" if error.hint else str(error)
    except OSError as error:
        failed.errno, failed.reason = error.errno, str(error)
    finally:
        if cgroup_fd is not None:
            os.close(cgroup_fd)
    if bpf:
        bpf.close()
    return failed
