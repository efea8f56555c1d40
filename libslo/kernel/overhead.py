"""What the agent costs here: its own CPU time and its children's, and the runs of its programs times what a run was measured to cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from libslo.errors import CannotError
from libslo.kernel.libbpf import BpfError, BpfObject, ProgramRuns, enable_statistics
from libslo.resources import data_path

__all__ = ["HitCost", "Overhead", "OverheadMeter", "calibrate_hit", "hit_cost", "rss_bytes"]

_WINDOW_S = 0.05  # statistics cost something themselves, so they are on for a short time only
_CALLS = 2_000  # a fraction of a millisecond: the best of many short rounds is undisturbed even on a busy machine
_ROUNDS = 20
_TURNS = 3


@dataclass(frozen=True, slots=True)
class Overhead:
    """Shares of the whole machine's CPU time in percent. kernel_pct: by object name; runs are counted by the programs themselves.

    method: "sampled" when what a run costs was asked of the kernel just now, "estimated" when it is as in the last sample.
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


@dataclass(frozen=True, slots=True)
class HitCost:
    """What a run costs before the program's own code, in ns: all of it, and how much of that the kernel's statistics show."""

    whole_ns: float
    shown_ns: float

    @property
    def hidden_ns(self) -> float:
        """What statistics do not see of each run."""
        return max(0.0, self.whole_ns - self.shown_ns)


def calibrate_hit() -> HitCost:
    """Measure it here and now: a program that does nothing hangs at the entry of system calls while this process makes some.

    Without the right to switch statistics on, shown_ns is 0. Raises BpfError or CannotError where the program cannot be loaded.
    """
    bpf = BpfObject(data_path("bpf/build/calibration.raw_tp.bpf.o"))
    try:
        bpf.load()
        free, hit = [], []
        for _ in range(_TURNS):
            free.append(_call_ns())
            bpf.attach()
            hit.append(_call_ns())
            bpf.detach()
        bpf.attach()
        return HitCost(max(0.0, min(hit) - min(free)), _shown_ns(bpf))
    finally:
        bpf.close()


def _shown_ns(bpf: BpfObject) -> float:
    try:
        fd = enable_statistics()
    except BpfError:
        return 0.0
    try:
        before = bpf.program_runs()
        _call_ns()
        return _mean_ns(before, bpf.program_runs()) or 0.0
    finally:
        os.close(fd)


def hit_cost() -> HitCost:
    """calibrate_hit(), or nothing where it cannot be measured: the statistics' own figure then stands alone."""
    try:
        return calibrate_hit()
    except (BpfError, CannotError):
        return HitCost(0.0, 0.0)


def _call_ns() -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter_ns()
        for _ in range(_CALLS):
            os.getppid()
        best = min(best, (time.perf_counter_ns() - begun) / _CALLS)
    return best


def _mean_ns(before: list[ProgramRuns], after: list[ProgramRuns]) -> float | None:
    runs = sum(late.runs - early.runs for early, late in zip(before, after, strict=True))
    return sum(late.time_ns - early.time_ns for early, late in zip(before, after, strict=True)) / runs if runs else None


class OverheadMeter:
    """Measures from one reading to the next."""

    def __init__(
        self, hit: HitCost, objects: Mapping[str, BpfObject], runs: Mapping[str, int], children_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Takes the first sample, so it belongs before capabilities are dropped. runs: those of each object until now.

        children_s: CPU time of processes that measure for this one, in seconds.
        """
        self._children_s = children_s
        self._hit = hit
        self._run_ns: dict[str, float] = {}
        self._sample(objects)
        self._cpu_s, self._at_s, self._runs = time.process_time() + self._children_s(), time.monotonic(), dict(runs)

    def run_ns(self, name: str) -> float:
        """What a run of an object costs, in ns: as sampled last; of one that has never run in a sample, as those that have."""
        if not self._run_ns:
            return self._hit.whole_ns
        return self._hit.hidden_ns + self._run_ns.get(name, sum(self._run_ns.values()) / len(self._run_ns))

    def read(self, objects: Mapping[str, BpfObject], runs: Mapping[str, int], muted: Collection[str] = ()) -> Overhead:
        """What everything cost since the last reading. objects: those that are attached, by name. runs: of each until now.

        muted: objects whose programs return at once, and cost what a program that does nothing costs.
        """
        wall_ns = max(time.monotonic() - self._at_s, 1e-9) * 1e9 * (os.cpu_count() or 1)
        agent_pct = 100 * (time.process_time() + self._children_s() - self._cpu_s) * 1e9 / wall_ns
        ran = {name: runs[name] - self._runs.get(name, 0) for name in objects}
        sampled = self._sample(objects)
        cost_ns = {name: self._hit.whole_ns if name in muted else self.run_ns(name) for name in objects}
        kernel_pct = {name: 100 * count * cost_ns[name] / wall_ns for name, count in ran.items()}
        self._cpu_s, self._at_s, self._runs = time.process_time() + self._children_s(), time.monotonic(), dict(runs)
        return Overhead(agent_pct, kernel_pct, "sampled" if sampled else "estimated")

    def _sample(self, objects: Mapping[str, BpfObject]) -> bool:
        """See in a short window what a run of each object costs; False when this process may not ask."""
        try:
            fd = enable_statistics()
        except (BpfError, CannotError):
            return False
        try:
            before = {name: bpf.program_runs() for name, bpf in objects.items()}
            time.sleep(_WINDOW_S)
            for name, bpf in objects.items():
                mean_ns = _mean_ns(before[name], bpf.program_runs())
                if mean_ns is not None:
                    self._run_ns[name] = mean_ns
        finally:
            os.close(fd)
        return True
