"""What draining the ring costs, next to a bare copy of the same bytes and to a loop in C; and what making lines of events costs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.jsonl import JsonlWriter
from libslo.kernel.events import EVENT_DTYPE, KINDS, probe_events
from libslo.kernel.identity import Identity, IdentityResolver
from libslo.kernel.ring import HEADER_BYTES, Ring

__all__ = ["PathCost", "RingDrainCost", "line_path_cost", "ring_drain_ns_per_event"]

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
    ring, position, data = _ring_of(np.arange(n * EVENT_DTYPE.itemsize, dtype=np.uint64).astype(np.uint8).view(EVENT_DTYPE))

    def drain() -> None:
        position[0] = 0
        if ring.drain().size != n:
            raise AssertionError("the drain lost records")

    def copy() -> None:
        data[: n * _STRIDE].copy()

    return RingDrainCost(n, _best_ns(drain, n, runs), _best_ns(copy, n, runs), _c_ns(data, data.size // 2, n, runs))


def _ring_of(events: NDArray[Any]) -> tuple[Ring, NDArray[np.uint64], NDArray[np.uint8]]:
    """A ring in memory that holds these events, its consumer position, and its data."""
    n = events.size
    size = 1 << (n * _STRIDE - 1).bit_length()
    data = np.zeros(2 * size, np.uint8)
    records = data[: n * _STRIDE].reshape(n, _STRIDE)
    records[:, :4] = np.frombuffer(np.uint32(EVENT_DTYPE.itemsize).tobytes(), np.uint8)
    records[:, HEADER_BYTES:] = events.view(np.uint8).reshape(n, -1)
    position = np.zeros(1, np.uint64)
    return Ring(position, np.array([n * _STRIDE], np.uint64), data, EVENT_DTYPE), position, data


@dataclass(frozen=True, slots=True)
class PathCost:
    """Events per second of CPU time of one core, the median of the runs, each step alone and all of them."""

    events: int
    drain: float
    convert: float
    write: float
    all: float


def line_path_cost(out: str, n: int = 50_000, runs: int = 5) -> PathCost:
    """The agent's own steps on a SYNTHETIC ring of `n` events of this process: drain, name and convert, write JSON lines to `out`.

    The events are of all network signals, run queue and disk, half of them with addresses.
    """
    resolver = IdentityResolver()
    taken = []
    for _ in range(runs):
        now_ns = time.monotonic_ns()
        ring, _, _ = _ring_of(_some_events(n, now_ns))

        def identify(pid: int, cgroup_id: int, comm: str, seen_ns: int, now_ns: int = now_ns) -> Identity:
            return resolver.resolve(pid, cgroup_id, comm, seen_ns, now_ns)

        at = [time.process_time()]
        events = ring.drain()
        at.append(time.process_time())
        converted = probe_events(events, 0, identify)
        at.append(time.process_time())
        with JsonlWriter(out) as writer:
            for event in converted:
                writer.write(event)
        at.append(time.process_time())
        if writer.lines != n:
            raise AssertionError("the path lost events")
        taken.append([*np.diff(at), at[-1] - at[0]])
    return PathCost(n, *(n / np.maximum(np.median(taken, axis=0), 1e-9)).tolist())


def _some_events(n: int, now_ns: int) -> NDArray[Any]:
    generator = np.random.default_rng(1)
    names = (
        "dns_latency_ms",
        "connect_latency_ms",
        "connect_errors_total",
        "tcp_retransmits_total",
        "runqueue_delay_ms",
        "disk_io_latency_ms",
    )
    events = np.zeros(n, EVENT_DTYPE)
    events["kind"] = generator.choice([KINDS[name] for name in names], n)
    events["pid"] = events["tid"] = os.getpid()
    events["comm"] = b"python"
    events["ts_ns"] = events["start_ns"] = now_ns - generator.integers(0, 5_000_000, n).astype(np.uint64)
    events["duration_ns"] = generator.integers(1_000, 50_000_000, n)
    with_address = generator.random(n) < 0.5
    events["family"] = np.where(with_address, 2, 0)  # AF_INET
    events["protocol"] = 6
    events["sport"] = generator.integers(32_768, 61_000, n)
    events["dport"] = 443
    events["netns"] = 1
    return events


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
