"""What draining the ring costs: our reader next to a bare copy of the same bytes, and to a loop in C."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libslo.kernel.events import EVENT_DTYPE
from libslo.kernel.ring import HEADER_BYTES, Ring

__all__ = ["RingDrainCost", "ring_drain_ns_per_event"]

_STRIDE = HEADER_BYTES + EVENT_DTYPE.itemsize
# A consumer as libbpf's ring_buffer__consume is built: read a header, hand the record over, move on.
_C_CONSUMER = """
#include <stdint.h>
#include <string.h>
uint64_t drain(const uint8_t *data, uint64_t mask, uint64_t position, uint64_t end, uint8_t *out)
{
	uint64_t count = 0;
	while (position < end) {
		const uint8_t *record = data + (position & mask);
		uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t length = header & 0x3fffffffu;
		if (header & 0x80000000u)
			break;
		if (!(header & 0x40000000u))
			memcpy(out + 128 * count++, record + 8, length);
		position += (length + 8 + 7) & ~7ull;
	}
	return count;
}
"""


@dataclass(frozen=True, slots=True)
class RingDrainCost:
    """Nanoseconds an event, the best of several runs each; c_ns is None without a C compiler."""

    events: int
    drain_ns: float
    copy_ns: float
    c_ns: float | None

    @property
    def ratio_to_copy(self) -> float:
        """Our drain over a bare copy."""
        return self.drain_ns / self.copy_ns

    @property
    def ratio_to_c(self) -> float | None:
        """Our drain over the C consumer."""
        return self.drain_ns / self.c_ns if self.c_ns else None


def ring_drain_ns_per_event(n: int = 100_000, runs: int = 7) -> RingDrainCost:
    """Measure on `n` full records in memory, `runs` times each, keeping the fastest."""
    size = 1 << (n * _STRIDE - 1).bit_length()
    data = np.zeros(2 * size, np.uint8)
    records = data[: n * _STRIDE].reshape(n, _STRIDE)
    records[:, :4] = np.frombuffer(np.uint32(EVENT_DTYPE.itemsize).tobytes(), np.uint8)
    records[:, HEADER_BYTES:] = np.arange(n * EVENT_DTYPE.itemsize, dtype=np.uint64).astype(np.uint8).reshape(n, -1)
    position = np.zeros(1, np.uint64)
    ring = Ring(position, np.array([n * _STRIDE], np.uint64), data, EVENT_DTYPE)

    def drain() -> None:
        position[0] = 0
        if ring.drain().size != n:
            raise AssertionError("the drain lost records")

    def copy() -> None:
        data[: n * _STRIDE].copy()

    return RingDrainCost(n, _best_ns(drain, n, runs), _best_ns(copy, n, runs), _c_ns(data, size, n, runs))


def _best_ns(action: Callable[[], None], n: int, runs: int) -> float:
    times = []
    for _ in range(runs):
        begun_ns = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - begun_ns)
    return min(times) / n


def _c_ns(data: np.ndarray[tuple[int], np.dtype[np.uint8]], size: int, n: int, runs: int) -> float | None:
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "drain.c"), Path(directory, "drain.so")
        source.write_text(_C_CONSUMER, encoding="utf-8")
        for compiler in ("clang", "cc"):
            try:
                subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, capture_output=True)
                break
            except (OSError, subprocess.CalledProcessError):
                continue
        else:
            return None
        function = ctypes.CDLL(str(library)).drain
        function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
        function.restype = ctypes.c_uint64

        def consume() -> None:
            out = np.empty(n * EVENT_DTYPE.itemsize, np.uint8)  # as our drain does: fresh memory for each backlog
            if function(data.ctypes.data, size - 1, 0, n * _STRIDE, out.ctypes.data) != n:
                raise AssertionError("the C consumer lost records")

        return _best_ns(consume, n, runs)
