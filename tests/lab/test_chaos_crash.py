"""kill -9 of whoever takes part in a run, at many moments: the next start finds and removes what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab_traces import Traces

from libslo.lab.topology import importable

pytestmark = pytest.mark.slow

_COMMAND = [sys.executable, "-m", "libslo.lab.chaos", "--runs", "1", "--profile", "brief", "--only-lab"]
_RECOVER = [sys.executable, "-c", "from slotools.faultinject import main; main(['--recover'])"]


def _start(directory: Path, scenario: str) -> subprocess.Popen[bytes]:
    log = (directory / "run.log").open("wb")
    return subprocess.Popen(
        [*_COMMAND, "--scenario", scenario, "--artifacts", str(directory / "runs")],
        stdout=subprocess.DEVNULL,
        stderr=log,
        env={**os.environ, **importable()},
    )


def _until(condition: object, timeout_s: float = 40) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "it did not come so far"
        time.sleep(0.05)


def _said(directory: Path, text: str) -> bool:
    return text in (directory / "run.log").read_text(errors="replace")


def _before(traces: Traces) -> tuple[object, object, set[str]]:
    return traces.mounts(), traces.links(), traces.cgroups()


def _nothing_left(traces: Traces, before: tuple[object, object, set[str]]) -> None:
    done = subprocess.run(_RECOVER, capture_output=True, text=True, env={**os.environ, **importable()}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    _until(lambda: not traces.processes(), 10)
    assert traces.files() == []
    assert _before(traces) == before


@pytest.mark.parametrize("after_s", [0.05, 0.4, 1.0, 2.0, 4.0, 7.0])
def test_the_runner_is_killed(traces: Traces, tmp_path: Path, after_s: float) -> None:
    """Killed while it makes the lab, waits for the tools or warms up, the runner leaves nothing that the next start does not remove."""
    before = _before(traces)
    process = _start(tmp_path, "dns_latency")
    time.sleep(after_s)
    process.kill()
    process.wait()
    _nothing_left(traces, before)


@pytest.mark.parametrize("scenario", ["dns_latency", "cpu_throttle", "memory_pressure", "network_partition"])
def test_the_runner_is_killed_while_a_fault_is_on(traces: Traces, tmp_path: Path, scenario: str) -> None:
    """A fault that was on when its runner was killed is off after the next start, whatever it was made of."""
    before = _before(traces)
    process = _start(tmp_path, scenario)
    try:
        _until(lambda: _fault_on(tmp_path))
    finally:
        process.kill()
        process.wait()
    _nothing_left(traces, before)


def _fault_on(directory: Path) -> bool:
    return any(path.stat().st_size for path in (directory / "runs").glob("*/*/run-1/logs/fault-0-*.jsonl"))


@pytest.mark.parametrize("victim", ["libslo.lab.rag_service", "libslo.lab.provider", "faultinject", "collector", "attributor", "agent"])
def test_one_of_the_others_is_killed(traces: Traces, tmp_path: Path, victim: str) -> None:
    """A run whose service or tool was killed ends by itself, says who it was, and leaves nothing."""
    before = _before(traces)
    process = _start(tmp_path, "dns_latency")
    try:
        _until(lambda: _fault_on(tmp_path))
        (pid,) = _descendants(process.pid, victim)
        os.kill(pid, signal.SIGKILL)
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.wait()
    assert "ended with -9" in (tmp_path / "run.log").read_text(), (tmp_path / "run.log").read_text()
    _nothing_left(traces, before)


def _descendants(pid: int, word: str) -> list[int]:
    """Processes below one whose command line names a program."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(each == word or each.endswith(f"/{word}") for each in words):
                found.append(child)
    return found
