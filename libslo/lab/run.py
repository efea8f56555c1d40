"""One live run: lab, load, a real fault, and ``agent | collector | attributor`` as real processes; everything kept in a directory.

Files of a run: requests.jsonl (the client), probe.jsonl (agent), joined.jsonl (collector), incidents.jsonl (attributor, as written),
arrivals.jsonl (when each incident line arrived), fault.jsonl (ground truth), agent-report.jsonl, and a .log of each tool's stderr.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from libslo.errors import CannotError
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.stack import OTLP_PORT, Lab
from libslo.lab.topology import ADDRESSES, bound_to_me, importable

__all__ = ["Plan", "run_plan", "tool_path"]

_WARM_UP_S = 3.0  # load without traces, once agent and collector are up: starting seven programs slows the first requests
_FLUSH_S = 1.0  # spans wait 100 ms in the services, then travel
_END_S = 20.0


@dataclass(frozen=True)
class Plan:
    """What one run does; durations in seconds."""

    baseline_s: float = 15.0
    fault_s: float = 15.0
    recovery_s: float = 10.0
    rate: float = 20.0
    delay_ms: float = 200.0
    seed: int = 1
    scenario: str = "dns_latency"
    only_lab: bool = False  # the agent looks at the lab's cgroup only, not at the whole machine


def tool_path(name: str) -> str:
    """A console script of this project: beside the interpreter, else in PATH; CannotError when it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise CannotError(f"the tool {name} is not installed", source=str(beside), hint="pip install -e '.[kernel,otel,lab]'")
    return found


def run_plan(plan: Plan, directory: Path, on_incident: Callable[[bytes], None], say: Callable[[str], None]) -> None:
    """Carry out a plan and leave its files in a new directory; `on_incident` gets each line when it arrives.

    Raises CannotError when a tool is missing, does not come up or ends early.
    """
    paths = {name: tool_path(name) for name in ("agent", "collector", "attributor", "faultinject")}
    directory.mkdir(parents=True)
    with Lab() as lab, ExitStack() as stack:
        pipeline = _Pipeline(lab, paths, directory, stack, ["--cgroup", str(lab.topology.cgroup)] if plan.only_lab else [])
        reader = threading.Thread(target=_collect_incidents, args=(pipeline.incidents, directory, on_incident), daemon=True)
        reader.start()
        rate = ["--rate", f"{plan.rate:g}", "--seed", str(plan.seed)]
        warming = lab.load([*rate, "--unsampled", "--prefix", "warm", "--duration", "90"], subprocess.DEVNULL)
        _wait_for(lambda: _listens(lab), pipeline, "collector")
        _wait_for(lambda: (directory / "probe.jsonl").stat().st_size > 0, pipeline, "agent")
        _sleep(_WARM_UP_S, pipeline)
        warming.terminate()
        warming.wait()
        bound_s = plan.baseline_s + plan.fault_s + plan.recovery_s + 90  # it is told to stop; this is in case nobody does
        options = [*rate, "--duration", f"{bound_s:g}", "--prefix", f"s{plan.seed}"]
        client = lab.load(options, stack.enter_context((directory / "requests.jsonl").open("wb")))
        say(f"baseline {plan.baseline_s:g} s at {plan.rate:g} requests/s")
        (directory / "phases.json").write_text(json.dumps({"baseline_unix_ns": time.time_ns()}))
        _sleep(plan.baseline_s, pipeline)
        say(f"fault {plan.scenario}, {plan.delay_ms:g} ms, {plan.fault_s:g} s")
        _inject(plan, paths["faultinject"], directory, pipeline)
        say(f"recovery {plan.recovery_s:g} s")
        _sleep(plan.recovery_s, pipeline)
        client.terminate()
        client.wait()
        time.sleep(_FLUSH_S)
        pipeline.shut_down()
        reader.join(_END_S)


class _Pipeline:
    """agent | tee | collector (in the obs namespace) | tee | attributor."""

    def __init__(self, lab: Lab, paths: dict[str, str], directory: Path, stack: ExitStack, agent_options: Sequence[str]) -> None:
        self._directory = directory
        self._stack = stack
        self.tools: dict[str, subprocess.Popen[bytes]] = {}
        agent = self._start("agent", [paths["agent"], "--report-out", str(directory / "agent-report.jsonl"), *agent_options], None)
        probe = self._tee("probe.jsonl", agent)
        log = stack.enter_context((directory / "collector.log").open("wb"))
        listen = ["--otlp-listen", f"0.0.0.0:{OTLP_PORT}"]  # every address of a namespace that nobody else is in
        collector = lab.topology.spawn("obs", [paths["collector"], *listen], stdin=probe, stdout=subprocess.PIPE, stderr=log)
        probe.close()
        self.tools["collector"] = collector
        joined = self._tee("joined.jsonl", collector)
        attributor = self._start("attributor", [paths["attributor"]], joined)
        joined.close()
        self.incidents = _stdout(attributor)

    def _start(self, name: str, command: Sequence[str], stdin: IO[bytes] | None) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._directory / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            bound_to_me(command),
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **importable()},
            start_new_session=True,
        )
        self.tools[name] = process
        self._stack.callback(_end, process)
        return process

    def _tee(self, name: str, source: subprocess.Popen[bytes]) -> IO[bytes]:
        path = self._directory / name
        path.touch()
        stdout = _stdout(source)
        process = subprocess.Popen(bound_to_me(["tee", str(path)]), stdin=stdout, stdout=subprocess.PIPE, start_new_session=True)
        stdout.close()
        self._stack.callback(_end, process)
        return _stdout(process)

    def check(self) -> None:
        """CannotError with the words of a tool that has ended although nobody asked it to.

        When several have, it is the last of the pipe: those before it ended because their reader was gone.
        """
        if all(process.poll() is None for process in self.tools.values()):
            return
        time.sleep(0.2)  # until the others have noticed
        for name, process in reversed(self.tools.items()):
            log = self._directory / f"{name}.log"
            said = log.read_text(errors="replace").strip()
            if process.poll() not in (None, 0):
                raise CannotError(f"{name} ended with {process.returncode}: {said or 'it said nothing'}", source=str(log))
        ended = ", ".join(name for name, process in self.tools.items() if process.poll() is not None)
        raise CannotError(f"{ended} ended too early", source=str(self._directory))

    def shut_down(self) -> None:
        """SIGTERM to the agent; the others end when their input does (the collector is told, should it still listen)."""
        self.tools["agent"].terminate()
        for name in ("agent", "collector", "attributor"):
            process = self.tools[name]
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    raise CannotError(f"{name} did not end within {_END_S:g} s of SIGTERM") from None


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101 (started with a pipe)
    return process.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _collect_incidents(lines: IO[bytes], directory: Path, on_incident: Callable[[bytes], None]) -> None:
    with (directory / "incidents.jsonl").open("wb") as kept, (directory / "arrivals.jsonl").open("w") as arrivals:
        for line in lines:
            arrivals.write(json.dumps({"arrival_unix_ns": time.time_ns()}) + "\n")
            kept.write(line)
            on_incident(line)


def _listens(lab: Lab) -> bool:
    def knock() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESSES["obs"], OTLP_PORT)) == 0

    return call_in_netns(netns_of(lab.topology.pids["obs"]), knock)


def _wait_for(condition: Callable[[], bool], pipeline: _Pipeline, tool: str, timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        pipeline.check()
        if time.monotonic() > deadline_s:
            raise CannotError(f"{tool} was not ready within {timeout_s:g} s")
        time.sleep(0.05)


def _sleep(duration_s: float, pipeline: _Pipeline) -> None:
    end_s = time.monotonic() + duration_s
    while (left_s := end_s - time.monotonic()) > 0:
        pipeline.check()
        time.sleep(min(0.5, left_s))


def _inject(plan: Plan, faultinject: str, directory: Path, pipeline: _Pipeline) -> None:
    command = [faultinject, "--real", plan.scenario, "--set", f"delay_ms={plan.delay_ms:g}", "--duration", f"{plan.fault_s:g}"]
    with (directory / "fault.jsonl").open("wb") as out, (directory / "faultinject.log").open("wb") as log:
        process: subprocess.Popen[Any] = subprocess.Popen(bound_to_me(command), stdout=out, stderr=log, env={**os.environ, **importable()})
        try:
            while process.poll() is None:
                pipeline.check()
                time.sleep(0.05)
        finally:
            _end(process)
    if process.returncode != 0:
        said = (directory / "faultinject.log").read_text(errors="replace").strip()
        raise CannotError(f"faultinject ended with {process.returncode}: {said}")
