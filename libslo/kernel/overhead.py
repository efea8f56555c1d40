"""What the agent costs here: its own CPU time and its children's, and the runs of its programs times what a run was measured to cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libslo.errors import CannotError
from libslo.kernel.libbpf import BpfError, BpfObject, ProgramRuns, enable_statistics
from libslo.resources import data_path

__all__ = ["Overhead", "OverheadMeter", "calibrate_hit_ns", "hit_cost_ns", "rss_bytes"]

_WINDOW_S = 0.05  # statistics cost something themselves, so they are on for a short time only
_CALLS = 20_000
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Overhead:
    """Shares of the whole machine's CPU time in percent. kernel_pct: by object name. method: how runs were counted.

    "sampled": by the kernel in a short window. "estimated", where the kernel may not be asked any more: as many as in the last
    window, or as the accounts have attempts, whichever is more; a lower bound.
    """

    agent_pct: float
    kernel_pct: dict[str, float]
    method: str

    @property
    def total_pct(self) -> float:
        """All of it."""
        return self.agent_pct + sum(self.kernel_pct.values())


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def calibrate_hit_ns() -> float:
    """What a run costs beyond the time that the kernel's statistics show for it, in ns, measured here and now.

    A program that does nothing hangs at the entry of system calls while this process makes some: the difference that it
    makes to them, less what the statistics say of it. Raises BpfError or CannotError where that cannot be loaded.
    """
    bpf = BpfObject(data_path("bpf/build/calibration.raw_tp.bpf.o"))
    try:
        bpf.load()
        base = _call_ns()
        bpf.attach()
        hit = _call_ns() - base
        fd = enable_statistics()
        try:
            before = bpf.program_runs()
            _call_ns()
            after = bpf.program_runs()
        finally:
            os.close(fd)
        shown = _mean_ns(before, after)
        return max(0.0, hit - shown)
    finally:
        bpf.close()


def hit_cost_ns() -> float:
    """calibrate_hit_ns(), or 0 where it cannot be measured: the statistics' own figure then stands alone."""
    try:
        return calibrate_hit_ns()
    except (BpfError, CannotError):
        return 0.0


def _call_ns() -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter_ns()
        for _ in range(_CALLS):
            os.getppid()
        best = min(best, (time.perf_counter_ns() - begun) / _CALLS)
    return best


def _mean_ns(before: list[ProgramRuns], after: list[ProgramRuns]) -> float:
    runs = sum(late.runs - early.runs for early, late in zip(before, after, strict=True))
    return sum(late.time_ns - early.time_ns for early, late in zip(before, after, strict=True)) / runs if runs else 0.0


@dataclass(slots=True)
class OverheadMeter:
    """Measures from one reading to the next. hit_ns: from calibrate_hit_ns(). children_s: CPU time of children until now, in seconds."""

    hit_ns: float
    children_s: Callable[[], float] = float
    _cpu_s: float = field(default_factory=time.process_time)
    _at_s: float = field(default_factory=time.monotonic)
    _run_ns: dict[str, float] = field(default_factory=dict)  # the last mean cost of a run, by object
    _idle_rate: dict[str, float] = field(default_factory=dict)  # runs a second in the last window
    _attempts: dict[str, int] = field(default_factory=dict)

    def read(self, objects: Mapping[str, BpfObject], attempts: Mapping[str, int]) -> Overhead:
        """What everything cost since the last reading. objects: those that are attached, by name. attempts: their accounts' counts."""
        cpu_s, at_s = time.process_time() + self.children_s(), time.monotonic()
        wall_s = max(at_s - self._at_s, 1e-9)
        n_cpus = os.cpu_count() or 1
        agent_pct = 100 * (cpu_s - self._cpu_s) / wall_s / n_cpus
        attempted = {name: (attempts.get(name, 0) - self._attempts.get(name, attempts.get(name, 0))) / wall_s for name in objects}
        rates = self._sample(objects)
        method = "sampled"
        if rates is None:
            method = "estimated"
            rates = {name: max(self._idle_rate.get(name, 0.0), attempted[name]) for name in objects}
        else:
            self._idle_rate = rates
        kernel = {name: 100 * rate * (self._run_ns.get(name, 0.0) + self.hit_ns) / 1e9 / n_cpus for name, rate in rates.items()}
        self._cpu_s, self._at_s = time.process_time() + self.children_s(), time.monotonic()
        self._attempts = dict(attempts)
        return Overhead(agent_pct, kernel, method)

    def _sample(self, objects: Mapping[str, BpfObject]) -> dict[str, float] | None:
        """Runs a second of each object, from a short window; None when this process may not ask."""
        try:
            fd = enable_statistics()
        except (BpfError, CannotError):
            return None
        try:
            before = {name: bpf.program_runs() for name, bpf in objects.items()}
            begun = time.monotonic()
            time.sleep(_WINDOW_S)
            after = {name: bpf.program_runs() for name, bpf in objects.items()}
            window_s = time.monotonic() - begun
        finally:
            os.close(fd)
        rates = {}
        for name in objects:
            runs = sum(late.runs - early.runs for early, late in zip(before[name], after[name], strict=True))
            if runs:
                self._run_ns[name] = _mean_ns(before[name], after[name])
            rates[name] = runs / window_s
        return rates
