"""DNS waits that nobody answers: taken out of the kernel's table when their time-out is over."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.kernel.account import Account
from libslo.kernel.events import DNS_KEY_DTYPE, DNS_START_DTYPE, EVENT_DTYPE, dns_timeouts
from libslo.kernel.libbpf import BpfObject, map_delete, map_lookup_and_delete, map_lookup_batch, map_update
from libslo.kernel.settings import CaptureSettings

__all__ = ["DnsWaits", "TokenBuckets"]

_MAX_CGROUPS = 4096


class TokenBuckets:
    """One bucket a key, as slo_take_token() in bpf/include/slo_core.h has it, for events that user space makes."""

    def __init__(self, events_per_second: int, burst: int) -> None:
        """events_per_second: 0 lets everything pass. burst: 0 is as many as in a second."""
        self._token_ns = 10**9 // events_per_second if events_per_second else 0
        self._burst_ns = self._token_ns * (burst or max(1, events_per_second))
        self._full_ns: dict[int, int] = {}

    def take(self, key: int, now_ns: int) -> bool:
        """True when there was a token; now_ns: CLOCK_MONOTONIC."""
        if not self._token_ns:
            return True
        after = max(self._full_ns.get(key, 0), now_ns) + self._token_ns
        if after - now_ns > self._burst_ns:
            return False
        self._full_ns[key] = after
        if len(self._full_ns) > _MAX_CGROUPS:  # a full bucket needs no entry
            self._full_ns = {key: full_ns for key, full_ns in self._full_ns.items() if full_ns > now_ns}
        return True


class DnsWaits:
    """The table of open waits of one loaded object."""

    def __init__(self, bpf: BpfObject, settings: CaptureSettings) -> None:
        self._starts_fd = bpf.map_fd("dns_starts")
        self._open_fd = bpf.map_fd("dns_open")
        self.names_fd = bpf.map_fd("dns_names")
        self._entries = bpf.max_entries("dns_starts")
        self._timeout_ns = settings.dns_timeout_ns
        self._buckets = TokenBuckets(settings.rate_limit, settings.burst_limit)
        self.since_ns = 0  # a wait that began before is not known in full and is no attempt

    def sweep(self, now_ns: int) -> tuple[NDArray[Any], Account]:
        """Event records of waits older than the time-out, dtype EVENT_DTYPE, and what became of each. now_ns: CLOCK_MONOTONIC."""
        key_bytes, start_bytes = DNS_KEY_DTYPE.itemsize, DNS_START_DTYPE.itemsize
        raw_keys, raw_starts, _ = map_lookup_batch(self._starts_fd, key_bytes, start_bytes, self._entries)
        keys, starts = np.frombuffer(raw_keys, DNS_KEY_DTYPE), np.frombuffer(raw_starts, DNS_START_DTYPE)
        old = starts["ts_ns"].astype(np.int64) <= now_ns - self._timeout_ns
        self._write_open(starts["cgroup_id"][~old])
        taken = [
            (key, start)
            for key in (keys[index].tobytes() for index in np.flatnonzero(old))
            if (start := map_lookup_and_delete(self._starts_fd, key, start_bytes))
        ]
        if not taken:
            return np.zeros(0, EVENT_DTYPE), Account()
        events = dns_timeouts(
            np.frombuffer(b"".join(key for key, _ in taken), DNS_KEY_DTYPE),
            np.frombuffer(b"".join(start for _, start in taken), DNS_START_DTYPE),
            self._timeout_ns,
        )
        events = events[events["ts_ns"] - np.uint64(self._timeout_ns) > self.since_ns]
        passed = np.array([self._buckets.take(cgroup, now_ns) for cgroup in events["cgroup_id"].tolist()], bool)
        emitted = int(passed.sum())
        return events[passed], Account(attempts=events.size, emitted=emitted, rate_limited=events.size - emitted)

    def _write_open(self, cgroups: NDArray[np.uint64]) -> None:
        """The true number of open waits of each cgroup; what the kernel counted since the table was read is lost for a second."""
        counts = dict(zip(*(part.tolist() for part in np.unique(cgroups, return_counts=True)), strict=True))
        raw_keys, _, known = map_lookup_batch(self._open_fd, 8, 8, _MAX_CGROUPS)
        for cgroup in np.frombuffer(raw_keys, "<u8", count=known).tolist():
            if cgroup not in counts:
                map_delete(self._open_fd, struct.pack("<Q", cgroup))
        for cgroup, count in counts.items():
            map_update(self._open_fd, struct.pack("<Q", cgroup), struct.pack("<q", count))
