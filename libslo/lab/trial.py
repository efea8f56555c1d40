"""What the agent does to the application: the lab under steady load, with and without an agent, in turns.

One client runs through all of it; a window is a stretch of its load. Each round holds one window of every kind, in an order that a seed
draws, and gives one pair a kind: that window over the round's bare ones. Two windows without an agent in each round show what the noise is.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from libslo.errors import CannotError
from libslo.lab.run import tool_path
from libslo.lab.stack import Lab
from libslo.lab.topology import bound_to_me, lab_environment

__all__ = ["BARE", "AgentRun", "Figures", "TrialResult", "TrialSettings", "Window", "arranged", "figures", "pair_ratios", "run_trial"]

BARE = "off"
_SERVICES = ("app", "llm", "retrieval", "dns")  # the client's work is not the application's
_READY_S = 30.0
_SETTLE_S = 1.0  # after an agent has begun or ended, before a window begins
_WARM_UP_S = 5.0
_TAIL_S = 1.5  # the last requests of the last window
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """kinds: by name, the agent's options, or None for no agent; BARE must be one. Durations in seconds, rate in requests a second."""

    kinds: Mapping[str, Sequence[str] | None]
    pairs: int = 10
    window_s: float = 5.0
    rate: float = 40.0
    seed: int = 1
    provider_ttft_ms: float = 50.0


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of load: what was counted. Times in Unix ns; CPU in seconds."""

    kind: str
    begin_unix_ns: int
    end_unix_ns: int
    app_cpu_s: float  # the services' cgroups
    machine_cpu_s: float  # all but idle, waiting for disks, and stolen
    agent_cpu_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A window's figures. ms; NaN without a request."""

    kind: str
    requests: int
    failed: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    app_cpu_ms: float  # a request
    machine_cpu_ms: float  # a request


def arranged(kinds: Iterable[str], rounds: int, seed: int) -> list[list[str]]:
    """The order of the kinds in each round."""
    generator = random.Random(seed)
    names = list(kinds)
    return [generator.sample(names, len(names)) for _ in range(rounds)]


def figures(window: Window, requests: Sequence[Mapping[str, Any]]) -> Figures:
    """What the requests scheduled within a window saw, from the client's records; TTFT counts from when a request was due."""
    mine = [each for each in requests if window.begin_unix_ns <= each["scheduled_unix_ns"] < window.end_unix_ns]
    good = [each for each in mine if each["status"] == 200 and "first_token_unix_ns" in each and "error" not in each]
    ttft_ms = [(each["first_token_unix_ns"] - each["scheduled_unix_ns"]) / 1e6 for each in good]
    p50, p99 = np.quantile(ttft_ms, [0.5, 0.99]).tolist() if ttft_ms else (float("nan"),) * 2
    per = 1e3 / len(mine) if mine else float("nan")
    return Figures(window.kind, len(mine), len(mine) - len(good), p50, p99, window.app_cpu_s * per, window.machine_cpu_s * per)


def pair_ratios(rounds: Sequence[Mapping[str, Figures]], kind: str, figure: str, bare: Sequence[str] = (BARE,)) -> list[float]:
    """By round, a figure of a kind over the geometric mean of the same of the round's bare windows."""

    def one(each: Mapping[str, Figures]) -> float:
        without = math.prod(getattr(each[name], figure) for name in bare) ** (1 / len(bare))
        return float(getattr(each[kind], figure) / without)

    return [one(each) for each in rounds]


class AgentRun:
    """An agent as a process, its lines and reports in files; ready when it says what it attached.

    Raises CannotError when it does not come up.
    """

    def __init__(self, options: Sequence[str], directory: Path) -> None:
        self.events, self.reports = directory / "events.jsonl", directory / "reports.jsonl"
        self._log = directory / "agent.log"
        self.reports.unlink(missing_ok=True)
        command = [tool_path("agent"), "--out", str(self.events), "--report-out", str(self.reports), *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(bound_to_me(command), stderr=log, env=lab_environment(), start_new_session=True)
        deadline_s = time.monotonic() + _READY_S
        while not (self.reports.is_file() and self.reports.stat().st_size):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise CannotError(f"the agent did not come up: {self._log.read_text(errors='replace').strip() or 'it said nothing'}")
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """User and system time until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def memory_bytes(self) -> dict[str, int]:
        """VmRSS and VmHWM."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}

    def stop(self) -> None:
        """SIGTERM, and wait for the last report."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def final_report(self) -> dict[str, Any]:
        """What it said at its end; CannotError when it did not."""
        lines = self.reports.read_text().splitlines()
        report: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if not report.get("final"):
            raise CannotError("the agent ended without a final report", source=str(self._log))
        return report

    def __enter__(self) -> AgentRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class TrialResult:
    """rounds: by kind. reports: final agent reports by kind. after: what it returned."""

    rounds: list[dict[str, Figures]]
    reports: dict[str, list[dict[str, Any]]]
    agent_cpu_pct: dict[str, float]  # of one CPU, while windows were on
    after: Any


def run_trial(settings: TrialSettings, directory: Path, say: Callable[[str], None], after: Callable[[], Any] = lambda: None) -> TrialResult:
    """Carry it out. after: called at the end, while the load is still on. Raises CannotError when lab or agent do not come up."""
    options = ["--ttft-ms", f"{settings.provider_ttft_ms:g}"]
    windows: list[list[Window]] = []
    reports: dict[str, list[dict[str, Any]]] = {}
    path = directory / "requests.jsonl"
    with Lab(provider_options=options) as lab, path.open("wb") as out:
        client = _load(lab, settings, out)
        time.sleep(_WARM_UP_S)
        for number, order in enumerate(arranged(settings.kinds, settings.pairs, settings.seed), 1):
            say(f"round {number} of {settings.pairs}: {', '.join(order)}")
            windows.append([_window(lab, settings, kind, directory, reports) for kind in order])
        result = after()
        time.sleep(_TAIL_S)
        if client.poll() is not None:
            raise CannotError(f"the load ended too early, with {client.returncode}")
        client.terminate()
        client.wait()
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    spent: dict[str, float] = {}
    for window in (window for each in windows for window in each if settings.kinds[window.kind] is not None):
        share = 100 * window.agent_cpu_s / ((window.end_unix_ns - window.begin_unix_ns) / 1e9)
        spent[window.kind] = spent.get(window.kind, 0.0) + share / settings.pairs
    return TrialResult([{window.kind: figures(window, requests) for window in each} for each in windows], reports, spent, result)


def _load(lab: Lab, settings: TrialSettings, out: IO[bytes]) -> subprocess.Popen[bytes]:
    arrivals = ["--load", "chat_short", "--rate", f"{settings.rate:g}", "--duration", "86400", "--seed", str(settings.seed)]
    return lab.load([*arrivals, "--traceparent", "unsampled"], out)  # nobody collects traces here


def _window(lab: Lab, settings: TrialSettings, kind: str, directory: Path, reports: dict[str, list[dict[str, Any]]]) -> Window:
    options = settings.kinds[kind]
    agent = None if options is None else AgentRun(options, directory)
    try:
        time.sleep(_SETTLE_S)
        app_s, machine_s, agent_s = _app_cpu_s(lab), _machine_cpu_s(), agent.cpu_s() if agent else 0.0
        begin_ns = time.time_ns()
        time.sleep(settings.window_s)
        end_ns = time.time_ns()
        window = Window(
            kind, begin_ns, end_ns, _app_cpu_s(lab) - app_s, _machine_cpu_s() - machine_s, (agent.cpu_s() if agent else 0.0) - agent_s
        )
    finally:
        if agent:
            agent.stop()
    if agent:
        reports.setdefault(kind, []).append(agent.final_report())
    return window


def _app_cpu_s(lab: Lab) -> float:
    """usage_usec of the services' cgroups: exact, where ticks of /proc would round each process."""
    texts = [(lab.topology.cgroup / role / "cpu.stat").read_text() for role in _SERVICES]
    return sum(int(text.split()[1]) for text in texts) / 1e6


def _machine_cpu_s() -> float:
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) * _TICK_S
