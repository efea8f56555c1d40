"""``agent | collector | attributor`` as real processes around a lab, everything that passes between them kept in a directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from libslo.errors import EXIT_NO, EXIT_OK, CannotError
from libslo.host import process_cpu_s
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.stack import OTLP_PORT, Lab
from libslo.lab.topology import ADDRESSES, bound_to_me, lab_environment

__all__ = ["COLLECTED", "Pipeline", "end_process", "last_line"]

COLLECTED = "collected"  # what the collector consumed, as a recording

_AGENT = "agent.jsonl"  # what the agent said
_END_S = 20.0
_SAMPLE_S = 1.0
_REQUEST_S = 25.0  # a request is given up after 20


class Pipeline:
    """Started on creation, in the lab's directory of a run; ``shut_down`` ends it in order, the stack ends it in any case.

    tools: paths of agent, collector and attributor. Raises CannotError with the words of a tool that ends although nobody asked it to.
    """

    def __init__(
        self,
        lab: Lab,
        tools: dict[str, str],
        directory: Path,
        stack: ExitStack,
        *,
        agent_options: Sequence[str] = (),
        objectives: Sequence[str] = (),
        on_incident: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._lab = lab
        self._directory = directory
        self._stack = stack
        self.tools: dict[str, subprocess.Popen[bytes]] = {}
        self.load: subprocess.Popen[bytes] | None = None  # that must not end by itself
        agent = self._start("agent", [tools["agent"], *agent_options], None)
        observed = self._tee(_AGENT, agent)
        log = stack.enter_context((directory / "collector.log").open("wb"))
        listen = ["--otlp-listen", f"0.0.0.0:{OTLP_PORT}"]  # every address of a namespace that nobody else is in
        collect = [tools["collector"], *listen, "--record", str(directory / COLLECTED)]
        collector = lab.topology.spawn("obs", collect, stdin=observed, stdout=subprocess.PIPE, stderr=log)
        observed.close()
        self.tools["collector"] = collector
        joined = self._tee("joined.jsonl", collector)
        attribute = [tools["attributor"], "--episodes-out", str(directory / "incident-episode.jsonl")]
        attribute += [word for text in objectives for word in ("--slo", text)]
        attributor = self._start("attributor", attribute, joined)
        joined.close()
        self._reader = threading.Thread(target=_keep_incidents, args=(_stdout(attributor), directory, on_incident), daemon=True)
        self._reader.start()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        stack.callback(self._stop.set)

    def await_ready(self) -> None:
        """Until the collector listens and the agent has said what it attached."""
        self._wait_for(lambda: _listens(self._lab), "collector")
        self._wait_for(self._agent_has_reported, "agent")

    def sleep(self, duration_s: float) -> None:
        """Wait, and look meanwhile whether all tools still run."""
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(0.5, left_s))

    def end_load(self) -> None:
        """End the load and wait for the requests that are under way. CannotError when it had ended, or does not end well."""
        client, results = self.load, str(self._directory / "load-result.jsonl")
        if client is None:
            return
        self.load = None
        if client.poll() is not None:
            raise CannotError(f"the load ended too early, with {client.returncode}", source=results)
        client.terminate()
        try:
            client.wait(_REQUEST_S)
        except subprocess.TimeoutExpired:
            raise CannotError(f"the load did not end within {_REQUEST_S:g} s of SIGTERM", source=results) from None
        if client.returncode not in (EXIT_OK, EXIT_NO):  # no: less than asked for was sent; the verdict of the run tells
            raise CannotError(f"the load ended with {client.returncode}", source=results)

    def check(self) -> None:
        """CannotError with the words of a service or a tool that has ended, or of the load.

        When several tools have, it is the last of the pipe: those before it ended because their reader was gone.
        """
        self._lab.check()
        if self.load is not None and self.load.poll() is not None:
            raise CannotError(f"the load ended too early, with {self.load.returncode}", source=str(self._directory / "load-result.jsonl"))
        if all(process.poll() is None for process in self.tools.values()):
            return
        time.sleep(0.2)  # until the others have noticed
        for name, process in reversed(self.tools.items()):
            if process.poll() not in (None, 0):
                raise self._ended(name)
        ended = ", ".join(name for name, process in self.tools.items() if process.poll() is not None)
        raise CannotError(f"{ended} ended too early", source=str(self._directory))

    def shut_down(self) -> None:
        """SIGTERM to the agent; the others end when their input does (the collector is told, should it still listen)."""
        self._stop.set()
        self._sampler.join()
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
            if process.returncode:
                raise self._ended(name)
        self._reader.join(_END_S)
        if self._reader.is_alive():
            raise CannotError(f"incidents still came {_END_S:g} s after the attributor had ended", source=str(self._directory))
        (self._directory / _AGENT).unlink()  # the collector's recording has it

    def _ended(self, name: str) -> CannotError:
        log = self._directory / f"{name}.log"
        return CannotError(f"{name} ended with {self.tools[name].returncode}: {last_line(log)}", source=str(log))

    def _agent_has_reported(self) -> bool:
        with (self._directory / _AGENT).open("rb") as lines:
            return any(b'"agent_version"' in line for line in lines)

    def _start(self, name: str, command: Sequence[str], stdin: IO[bytes] | None) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._directory / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            bound_to_me(command),
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=lab_environment(),
            start_new_session=True,
        )
        self.tools[name] = process
        self._stack.callback(end_process, process)
        return process

    def _tee(self, name: str, source: subprocess.Popen[bytes]) -> IO[bytes]:
        path = self._directory / name
        path.touch()
        stdout = _stdout(source)
        process = subprocess.Popen(bound_to_me(["tee", str(path)]), stdin=stdout, stdout=subprocess.PIPE, start_new_session=True)
        stdout.close()
        self._stack.callback(end_process, process)
        return _stdout(process)

    def _sample(self) -> None:
        """One overhead-sample a tool and second."""
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        with (self._directory / "overhead-sample.jsonl").open("w") as out:
            while not self._stop.wait(_SAMPLE_S):
                for name, process in self.tools.items():
                    try:
                        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                    except (OSError, IndexError):
                        continue  # it has ended
                    cpu_s = process_cpu_s(process.pid)
                    if cpu_s is None:
                        continue
                    row = {
                        "ts_unix_nano": time.time_ns(),
                        "overhead_of": name,
                        "pid": process.pid,
                        "cpu_s": cpu_s,
                        "rss_bytes": resident * page_bytes,
                    }
                    out.write(json.dumps(row) + "\n")
                out.flush()

    def _wait_for(self, condition: Callable[[], bool], tool: str, timeout_s: float = 30) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline_s:
                raise CannotError(f"{tool} was not ready within {timeout_s:g} s")
            time.sleep(0.05)


def last_line(log: Path) -> str:
    """What a tool said last, without what to try: that is in its log."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("  try:")]
    return said[-1].strip() if said else "it said nothing"


def end_process(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL after three seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101 (started with a pipe)
    return process.stdout


def _keep_incidents(lines: IO[bytes], directory: Path, on_incident: Callable[[bytes], None]) -> None:
    with (directory / "incident-attribution.jsonl").open("wb") as kept, (directory / "incident-arrival.jsonl").open("w") as arrivals:
        for line in lines:
            row = {"incident_arrival_unix_nano": time.time_ns(), "incident_id": json.loads(line)["incident_id"]}
            arrivals.write(json.dumps(row) + "\n")
            kept.write(line)
            try:
                on_incident(line)
            except OSError:  # nobody reads it any more: what is kept is whole all the same
                on_incident = _nobody


def _nobody(_line: bytes) -> None: ...


def _listens(lab: Lab) -> bool:
    def knock() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESSES["obs"], OTLP_PORT)) == 0

    return call_in_netns(netns_of(lab.topology.pids["obs"]), knock)
