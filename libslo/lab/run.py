"""One run of the laboratory: a scenario's real faults on a live service under load, watched by agent, collector and attributor.

Everything that happened is kept as a recording (libslo.recordings), the tools' own words in ``logs`` beside it;
`libslo.lab.verdict` judges it from those files alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from libslo.errors import CannotError
from libslo.lab.measures import Stretch
from libslo.lab.pipeline import COLLECTED, Pipeline, end_process, last_line
from libslo.lab.stack import Lab
from libslo.lab.topology import bound_to_me, lab_environment, running_labs
from libslo.recordings import RecordingWriter, Role
from libslo.resources import data_path
from libslo.scenarios import Harness, load_scenario

__all__ = ["LOGS", "Plan", "plan_identity", "run_plan", "tool_path"]

LOGS = "logs"

_WARM_UP_S = 3.0  # load without traces, once agent and collector are up: starting seven programs slows the first requests
_FLUSH_S = 1.0  # spans wait 100 ms in the services, then travel
_SPARE_S = 90.0  # a load is told to stop; this is in case nobody does
# What the recording keeps beside what the collector consumed: file, contract, role.
_KEPT: tuple[tuple[str, str, Role], ...] = (
    ("fault-window", "fault-window", "truth"),
    ("load-result", "load-result", "load"),
    ("slo-event", "slo-event", "output"),
    ("incident-attribution", "incident-attribution", "output"),
    ("incident-episode", "incident-episode", "output"),
    ("incident-arrival", "incident-arrival", "about"),
    ("overhead-sample", "overhead-sample", "about"),
)
_TOOLS = ("agent", "collector", "attributor", "faultinject", "loadgen")


@dataclass(frozen=True)
class Plan:
    """What one run does. durations: seconds of baseline, fault and recovery. only_lab: the agent looks at the lab's cgroup alone.

    objectives: the attributor's, beside the default ones.
    """

    scenario: str = "dns_latency"
    severity: str = "medium"
    durations: Mapping[str, float] = field(default_factory=lambda: {"baseline": 15.0, "fault": 15.0, "recovery": 10.0})
    load: str = "rag_mixed_20rps"
    seed: int = 1
    only_lab: bool = False
    objectives: Sequence[str] = ()
    agent_options: Sequence[str] = ("--signal-set", "all", "--max-overhead-pct", "0")  # what is shed is not measured

    @classmethod
    def of_harness(cls, scenario: str, harness: Harness, *, severity: str, seed: int, durations: str, only_lab: bool) -> Plan:
        """A plan by the names that a scenario's harness knows."""
        return cls(scenario, severity, harness.profiles[durations], harness.load, seed, only_lab, harness.objectives)


def tool_path(name: str) -> str:
    """A console script of this project: beside the interpreter, else in PATH; CannotError when it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise CannotError(f"the tool {name} is not installed", source=str(beside), hint="pip install -e '.[kernel,otel,lab]'")
    return found


def run_plan(plan: Plan, directory: Path, on_incident: Callable[[bytes], None], say: Callable[[str], None]) -> None:
    """Carry out a plan and leave its recording in a new directory; `on_incident` gets each line when it arrives.

    Raises CannotError when a tool is missing, does not come up or ends early; the directory then has logs, but no manifest.
    """
    tools = {name: tool_path(name) for name in _TOOLS}
    steps = load_scenario(plan.scenario).steps
    work = directory / LOGS
    work.mkdir(parents=True)
    with Lab() as lab, ExitStack() as stack:
        _alone(plan)
        scope = ["--cgroup", str(lab.topology.cgroup)] if plan.only_lab else []
        pipeline = Pipeline(
            lab, tools, work, stack, agent_options=[*plan.agent_options, *scope], objectives=plan.objectives, on_incident=on_incident
        )
        load = ["--load", plan.load, "--seed", str(plan.seed), "--duration"]
        warm_up = [f"{_SPARE_S:g}", "--traceparent", "unsampled", "--prefix", "warm"]
        warming = lab.load([*load, *warm_up], subprocess.DEVNULL)
        pipeline.await_ready()
        pipeline.sleep(_WARM_UP_S)
        end_process(warming)
        lasts_s = plan.durations["baseline"] + max(1, len(steps)) * (plan.durations["fault"] + plan.durations["recovery"]) + _SPARE_S
        client = lab.load([*load, f"{lasts_s:g}"], stack.enter_context((work / "load-result.jsonl").open("wb")))
        pipeline.load = client
        stretches = _carry_out(plan, steps, tools["faultinject"], f"lab:{lab.topology.lab_id}", work, pipeline, say)
        pipeline.end_load()
        time.sleep(_FLUSH_S)
        pipeline.shut_down()
        _alone(plan)
    _pack(plan, stretches, work, directory)


def _alone(plan: Plan) -> None:
    """CannotError when another lab is on this machine whose events an agent that sees all of it would take for this one's."""
    if not plan.only_lab and len(running_labs()) > 1:
        raise CannotError("another lab is running: its events would count as this one's", hint="--only-lab, or wait until it has ended")


def plan_identity(plan: Plan) -> dict[str, Any]:
    """What makes a run the same run: its plan and the bytes of its scenarios."""
    members = {name for step in load_scenario(plan.scenario).steps for name in step}
    digest = hashlib.sha256()
    for name in sorted({plan.scenario, *members}):
        digest.update(data_path(f"scenarios/{name}.yaml").read_bytes())
    identity: dict[str, Any] = json.loads(json.dumps({**asdict(plan), "scenario_sha256": digest.hexdigest()}))
    return identity


def _pack(plan: Plan, stretches: Sequence[Stretch], work: Path, directory: Path) -> None:
    """Make the recording of what lies in the working directory, and leave there what only people read."""
    identity = plan_identity(plan)
    phases = [
        {
            "name": stretch.phase,
            "step": stretch.step,
            "scenarios": list(stretch.scenarios),
            "begin_unix_nano": stretch.begin_unix_ns,
            "end_unix_nano": stretch.end_unix_ns,
        }
        for stretch in stretches
    ]
    about = {name: identity[name] for name in ("scenario", "severity", "seed", "load", "scenario_sha256")}
    with (work / "joined.jsonl").open("rb") as joined, (work / "slo-event.jsonl").open("wb") as events:
        events.writelines(line for line in joined if b'"event_id"' in line)
    with RecordingWriter(directory, {**about, "phases": phases, "plan": identity}) as writer:
        writer.adopt(work / COLLECTED)
        for name, contract, role in _KEPT:
            if (work / f"{name}.jsonl").exists():
                writer.add(work / f"{name}.jsonl", contract, role, name, remove=True)


def _carry_out(
    plan: Plan, steps: Sequence[Sequence[str]], faultinject: str, target: str, work: Path, pipeline: Pipeline, say: Callable[[str], None]
) -> list[Stretch]:
    """Baseline, then each step's fault and recovery; a scenario without steps is all baseline."""
    lasts = plan.durations
    begun_ns = time.time_ns()
    baseline_s = lasts["baseline"] if steps else sum(lasts.values())
    say(f"baseline {baseline_s:g} s of {plan.load}, seed {plan.seed}")
    pipeline.sleep(baseline_s)
    stretches = [Stretch("baseline", -1, (), begun_ns, time.time_ns())]
    for number, step in enumerate(steps):
        say(f"fault {' and '.join(step)}, {plan.severity}, {lasts['fault']:g} s")
        begin_ns, end_ns = _inject(plan, step, number, faultinject, target, work, pipeline)
        stretches.append(Stretch("fault", number, tuple(step), begin_ns, end_ns))
        say(f"recovery {lasts['recovery']:g} s")
        pipeline.sleep(lasts["recovery"])
        stretches.append(Stretch("recovery", number, (), end_ns, time.time_ns()))
    return stretches


def _inject(plan: Plan, step: Sequence[str], number: int, faultinject: str, target: str, work: Path, pipeline: Pipeline) -> tuple[int, int]:
    """All scenarios of a step at once; from when to when all of them were on (Unix ns)."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name in step:
            options = ["--real", name, "--severity", plan.severity, "--duration", f"{plan.durations['fault']:g}", "--target", target]
            out = stack.enter_context(_windows_path(work, number, name).open("wb"))
            log = stack.enter_context((work / f"faultinject-{number}-{name}.log").open("wb"))
            command = bound_to_me([faultinject, *options])
            processes[name] = subprocess.Popen(command, stdout=out, stderr=log, env=lab_environment())
            stack.callback(end_process, processes[name])
        while any(process.poll() is None for process in processes.values()):
            pipeline.check()
            time.sleep(0.05)
    for name, process in processes.items():
        if process.returncode != 0:
            log_path = work / f"faultinject-{number}-{name}.log"
            raise CannotError(f"faultinject ended with {process.returncode}: {last_line(log_path)}", source=str(log_path))
    rows = [json.loads(line) for name in step for line in _windows_path(work, number, name).read_text().splitlines()]
    with (work / "fault-window.jsonl").open("a") as all_windows:
        all_windows.writelines(json.dumps(row) + "\n" for row in rows)
    return max(row["begin_unix_nano"] for row in rows), min(row["end_unix_nano"] for row in rows if row["phase"] == "end")


def _windows_path(work: Path, number: int, name: str) -> Path:
    return work / f"fault-{number}-{name}.jsonl"
