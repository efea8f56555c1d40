"""cpu_steal_pct out of the kernel's run queues: a program that user space runs on each CPU once a second."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

from libslo.errors import CannotError
from libslo.kernel.libbpf import BpfError, BpfObject, map_lookup, possible_cpus
from libslo.kernel.polled import Readings, Targets, steal_readings
from libslo.resources import data_path

__all__ = ["RunQueueSteal"]


class RunQueueSteal:
    """The share of the online CPUs' time that the hypervisor gave to others, without a look at /proc. Nobody's in particular: pid 0."""

    def __init__(self, targets: Targets, *, btf_path: Path | None = None) -> None:
        """Raises BpfError or CannotError when this kernel does not have it."""
        self._targets = targets
        self._ns_per_tick = 10**9 // os.sysconf("SC_CLK_TCK")
        self._object = BpfObject(data_path("bpf/build/cpu_steal_pct.prev_steal_time.bpf.o"), btf_path=btf_path)
        try:
            self._object.set_max_entries("stolen_ns", possible_cpus())
            self._object.load()
            self._read_ns = time.monotonic_ns()
            self._stolen_ns = self._read()
        except BaseException:
            self._object.close()
            raise

    def _read(self) -> dict[int, int]:
        """Nanoseconds stolen since boot, by CPU that is online."""
        found = {}
        for cpu in range(possible_cpus()):
            try:
                if self._object.run_on(cpu):
                    raise CannotError("the scheduler has no run queue to show", source="kernel", hint="use the variant proc_stat")
            except BpfError as error:
                if error.errno == errno.ENXIO:  # offline
                    continue
                raise
            (found[cpu],) = struct.unpack("<Q", map_lookup(self._object.map_fd("stolen_ns"), struct.pack("<I", cpu), 8) or bytes(8))
        return found

    def poll(self, now_ns: int) -> Readings:
        """One event for the time since the last one, unless that is less than a clock tick. now_ns: CLOCK_MONOTONIC."""
        elapsed_ns = now_ns - self._read_ns
        if elapsed_ns < self._ns_per_tick:
            return Readings()
        before, now = self._stolen_ns, self._read()
        self._stolen_ns, self._read_ns = now, now_ns
        both = before.keys() & now.keys()  # one that has come meanwhile has no beginning
        if not both:
            return Readings()
        stolen_ns = sum(max(0, now[cpu] - before[cpu]) for cpu in both)
        return steal_readings(self._targets, now_ns, stolen_ns / self._ns_per_tick, len(both) * elapsed_ns / self._ns_per_tick)

    def close(self) -> None:
        """Give the program back."""
        self._object.close()
