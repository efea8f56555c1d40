"""What to capture, and the form in which the programs in the kernel are told."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libslo.errors import CannotError, InputError
from libslo.host import cgroup2_mount
from libslo.kernel.events import KINDS
from libslo.kernel.polled import Targets
from libslo.kernel.probes import DEFAULT_BTF
from libslo.signals import signal

__all__ = ["DNS_TIMEOUT_NS", "MAX_TARGETS", "CaptureSettings", "cgroup_targets", "pack_config", "polled_targets"]

MAX_TARGETS = 16  # SLO_MAX_TARGETS
DNS_TIMEOUT_NS = 5_000_000_000  # what glibc's resolver waits for one server by default (RES_TIMEOUT)
_MAX_KINDS = 16  # SLO_KIND_MAX
_COMM_BYTES = 16


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What to capture. Targets add up: an event passes when its process AND its cgroup are asked for (none asked: all pass)."""

    signals: tuple[str, ...]
    mode: str = "auto"  # of catalogue.MODES
    variants: Mapping[str, str] = field(default_factory=dict)  # signal -> the one variant to try
    pids: tuple[int, ...] = ()
    comm: str = ""
    cgroups: tuple[Path, ...] = ()
    min_latency_ms: float = 0.0
    min_latencies_ms: Mapping[str, float] = field(default_factory=dict)  # of single signals, instead of min_latency_ms
    rate_limit: int = 0  # events per second of one cgroup in one signal; 0 is off
    burst_limit: int = 0  # events at once within that limit; 0: as many as in a second
    signal_rate_limit: int = 0  # events per second of one signal; 0 is off
    histograms: bool = True
    names: bool = False  # DNS questions' names are read out of packets
    ring_bytes: int = 1 << 20
    duration_s: float | None = None
    count: int | None = None  # probe events
    report_interval_s: float = 60.0
    btf: Path = DEFAULT_BTF
    dns_timeout_ns: int = DNS_TIMEOUT_NS
    drop_capabilities: bool = False
    max_overhead_pct: float = 0.0  # of the machine's CPU time; 0: nothing is shed
    overhead_interval_s: float = 5.0
    histogram_interval_s: float = 0.0  # between two sets of histogram records; 0: none

    def min_latency_ns(self, name: str) -> int:
        """The threshold of a signal: waits that ended well in less time give no event. 0 for what is no wait."""
        return round(self.min_latencies_ms.get(name, self.min_latency_ms) * 1e6) if signal(name).unit == "ms" else 0


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a symlink out of the hierarchy that was named


def polled_targets(settings: CaptureSettings) -> Targets:
    """The targets as sources outside the kernel's programs see them."""
    return Targets(
        pids=settings.pids, comm=settings.comm[: _COMM_BYTES - 1], cgroups=tuple(map(_absolute, settings.cgroups)),
        min_latency_ns=settings.min_latency_ns("cfs_throttled_ms"), dns_min_latency_ns=settings.min_latency_ns("dns_latency_ms"),
        dns_timeout_ns=settings.dns_timeout_ns, rate_limit=settings.rate_limit, burst_limit=settings.burst_limit,
        drop_capabilities=settings.drop_capabilities,
    )  # fmt: skip


def cgroup_targets(settings: CaptureSettings) -> list[tuple[int, int]]:
    """The cgroups asked for as (cgroup id, level below the root). Raises InputError for what is none, CannotError without cgroup2."""
    if len(settings.pids) > MAX_TARGETS or len(settings.cgroups) > MAX_TARGETS:
        raise InputError(f"more than {MAX_TARGETS} targets of one kind", hint="name a cgroup that holds them all")
    return [_cgroup_target(path) for path in settings.cgroups]


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


def pack_config(
    settings: CaptureSettings, wanted: set[str] | frozenset[str], cgroups: list[tuple[int, int]], *, since_ns: int = 0, n_stripes: int = 1
) -> bytes:
    """The bytes of struct slo_config, bpf/include/slo_core.h.

    wanted: signals to report; none mutes the object. cgroups: (cgroup id, level below the root). since_ns: CLOCK_MONOTONIC.
    n_stripes: of each histogram, a power of two.
    """

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (MAX_TARGETS - len(values))

    latencies = [0] * _MAX_KINDS
    for name, kind in KINDS.items():
        latencies[kind] = settings.min_latency_ns(name)
    waits = sum(1 << KINDS[name] for name in wanted if signal(name).kind == "wait") if settings.histograms else 0
    cgroup_token_ns, cgroup_burst_ns = _bucket(settings.rate_limit, settings.burst_limit)
    signal_token_ns, signal_burst_ns = _bucket(settings.signal_rate_limit, 0)
    return struct.pack(
        f"<{_MAX_KINDS}Q5Q{MAX_TARGETS}Q{MAX_TARGETS}I{MAX_TARGETS}I8I{_COMM_BYTES}s",
        *latencies, cgroup_token_ns, cgroup_burst_ns, signal_token_ns, signal_burst_ns, since_ns,
        *padded([identity for identity, _ in cgroups]), *padded([level for _, level in cgroups]), *padded(list(settings.pids)),
        len(cgroups), len(settings.pids), sum(1 << KINDS[name] for name in wanted), waits, n_stripes - 1,
        bool(settings.comm), settings.names, 0, settings.comm.encode()[: _COMM_BYTES - 1],
    )  # fmt: skip


def _bucket(events_per_second: int, burst: int) -> tuple[int, int]:
    """Nanoseconds that one token takes to come back, and that all of them take; a limit above 1 GHz is none."""
    token_ns = 10**9 // events_per_second if events_per_second else 0
    return token_ns, token_ns * (burst or max(1, events_per_second))
