"""Waits by length, as the programs in the kernel count them for each (signal, cgroup): bounds, and reading them through mmap."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from libslo.kernel.libbpf import BpfObject, map_delete, map_lookup_batch, map_push

__all__ = ["BUCKETS", "MAX_SERIES", "Histograms", "SeriesCounts", "bucket_bounds_ms", "stripes"]

# bpf/include/slo_core.h
MAX_SERIES = 512
BUCKETS = 125
_STEPS = 4
_MAX_STRIPES = 4
_KEY = struct.Struct("<2Q")
_REST = (0, 0)


def bucket_bounds_ms() -> NDArray[np.float64]:
    """Upper bounds in milliseconds, shape (BUCKETS,), the last one infinite: 0.001 to 0.004, then four steps a power of two.

    A wait of exactly a bound lies in the next bucket, because the kernel counts whole microseconds.
    """
    small = np.arange(1, _STEPS + 1, dtype=np.float64)
    exponents = np.repeat(np.arange(2, 32), _STEPS)
    steps = np.tile(np.arange(1, _STEPS + 1), 30)
    large = np.exp2(exponents) * (1 + steps / _STEPS)
    return np.concatenate([small, large, [np.inf]]) / 1000


def stripes(n_cpus: int) -> int:
    """How many copies of each histogram a machine has: a power of two, so that CPUs do not all write to the same lines."""
    return min(_MAX_STRIPES, 1 << max(0, n_cpus - 1).bit_length())


@dataclass(frozen=True, slots=True)
class SeriesCounts:
    """Waits of one cgroup that ended since the last reading. cgroup_id is None for those that found no room of their own.

    counts: uint64 of shape (BUCKETS,).
    """

    kind: int
    cgroup_id: int | None
    counts: NDArray[np.uint64]
    sum_ns: int


class Histograms:
    """The histograms of one loaded object, as what was added between two readings."""

    def __init__(self, bpf: BpfObject, n_stripes: int) -> None:
        """Hands the free numbers out, so it must come before the attach."""
        self._slots_fd = bpf.map_fd("slo_series_slots")
        self._free_fd = bpf.map_fd("slo_free_slots")
        self._key_bytes = _KEY.size
        self._n = bpf.max_entries("slo_histograms") // n_stripes
        width = 8 * (BUCKETS + 1)
        length = self._n * n_stripes * width
        pages = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(bpf.map_fd("slo_histograms"), pages, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._live: NDArray[np.uint64] = np.frombuffer(self._memory, np.uint64, count=length // 8)
        self._live = self._live.reshape(self._n, n_stripes, BUCKETS + 1)
        self._seen: dict[int, NDArray[np.uint64]] = {}
        for slot in range(self._n - 1, 0, -1):
            map_push(self._free_fd, struct.pack("<I", slot))

    def _series(self) -> dict[tuple[int, int], int]:
        keys, values, count = map_lookup_batch(self._slots_fd, self._key_bytes, 4, MAX_SERIES)
        slots = np.frombuffer(values, "<u4", count=count).tolist()
        return {_KEY.unpack_from(keys, index * self._key_bytes): slots[index] for index in range(count)}

    def read(self, kind_of_rest: int) -> list[SeriesCounts]:
        """What was added since the last time, one entry a series with news. kind_of_rest: the signal of those without room."""
        result = []
        for (cgroup_id, kind), slot in [*self._series().items(), (_REST, 0)]:
            now = self._live[slot].sum(axis=0, dtype=np.uint64)
            before = self._seen.get(slot)
            added = now if before is None else now - before
            if added[:-1].any():
                self._seen[slot] = now
                result.append(SeriesCounts(kind if slot else kind_of_rest, cgroup_id if slot else None, added[:-1], int(added[-1])))
        return result

    def reap(self, exists: Callable[[int], bool]) -> list[SeriesCounts]:
        """Take the histograms of cgroups that are gone back; returns the last of them, one entry a series that is gone."""
        result = []
        for (cgroup_id, kind), slot in self._series().items():
            if exists(cgroup_id):
                continue
            map_delete(self._slots_fd, _KEY.pack(cgroup_id, kind))
            added = self._live[slot].sum(axis=0, dtype=np.uint64) - self._seen.pop(slot, np.uint64(0))
            result.append(SeriesCounts(kind, cgroup_id, added[:-1], int(added[-1])))
            self._live[slot] = 0
            map_push(self._free_fd, struct.pack("<I", slot))
        return result

    def close(self) -> None:
        """Let the memory go."""
        self._live = np.zeros((0, 0, 0), np.uint64)
        self._memory.close()
