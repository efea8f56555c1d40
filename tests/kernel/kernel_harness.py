"""What the kernel tests share: namespaces, traffic scripts, a capture in a thread."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NETWORK_SIGNALS = ("dns_latency_ms", "connect_latency_ms", "connect_errors_total", "tcp_retransmits_total")
AGENT = [sys.executable, "-c", "from slotools.agent import main; main()"]


# What a script sees of its own waits is late by the time that its own code takes, which is long where it is interpreted (qemu, TCG).
INTERPRETED = "TCG" in Path("/proc/cpuinfo").read_text()
CLOCK_SLACK_MS = 4.0 if INTERPRETED else 1.0


def obstacle() -> str:
    if os.geteuid() != 0:
        return "not root"
    if not Path("/sys/kernel/btf/vmlinux").is_file():
        return "no BTF"
    try:
        from libslo.kernel.probes import machine_obstacle

        found = machine_obstacle()
    except ImportError as error:
        return str(error)
    return str(found) if found else ""


@cache
def refusal(signal: str, variant: str) -> str:
    """Why this kernel does not take a variant, "" when it does: for those that no set-up could make it take."""
    from libslo.kernel.capture import check_report
    from libslo.kernel.settings import CaptureSettings

    (state,) = check_report(CaptureSettings(signals=(signal,), variants={signal: variant}))["signals"]
    return "" if state["attached"] else f"this kernel refuses {variant}: {state['reason']}"


class Namespace:
    """A network namespace that dies with this process, its loopback up."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo up; exec sleep 3600"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.run("ip", "link", "set", "lo", "up")

    @property
    def inum(self) -> int:
        return Path(self.path).stat().st_ino

    def run(self, *command: str) -> str:
        return subprocess.run(["nsenter", f"--net={self.path}", "--", *command], check=True, capture_output=True, text=True).stdout

    def start(
        self, script: str, *arguments: object, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """Start a traffic script inside; its pid is the pid of the process that makes the traffic."""
        return subprocess.Popen(
            ["nsenter", f"--net={self.path}", "--", *prefix, sys.executable, str(HERE / script), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def tcp_counter(self, name: str) -> int:
        """A counter of the Tcp line of /proc/net/snmp."""
        lines = [line.split() for line in self.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
        return int(dict(zip(lines[0], lines[1], strict=True))[name])

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


def finish(process: subprocess.Popen[str], line: str = "") -> Any:
    """Let a waiting script go and return the JSON it prints."""
    output, _ = process.communicate(line + "\n", timeout=60)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process that ends by itself still writes to stdout and stderr, after lines of it have been read.

    Popen.communicate() reads past the file object, and what that one has read ahead would be lost.
    """
    assert process.stdout is not None and process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    process.wait(20)
    return output, errors


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def server(namespace: Namespace, script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A server script that says when it listens and ends when its stdin closes."""
    process = namespace.start(script, *arguments)
    assert first_line(process) == "listening"
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


class Recording:
    """A capture running in a thread; `events` and `reports` are whole after the `with`."""

    def __init__(self, *, resolver: Any = None, patience_s: float = 20, **settings: Any) -> None:
        """patience_s: until it has attached."""
        from libslo.kernel.capture import capture
        from libslo.kernel.settings import CaptureSettings

        self.events: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.histograms: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._patience_s = patience_s
        chosen = CaptureSettings(**{"signals": NETWORK_SIGNALS, **settings})

        def run() -> None:
            try:
                for batch in capture(chosen, self._stop.is_set, resolver):
                    self.events += batch.events
                    self.reports += batch.reports
                    self.histograms += batch.histograms
                    self._ready.set()
            except BaseException as error:
                self._error = error
                self._ready.set()

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> Recording:
        self._thread.start()
        assert self._ready.wait(self._patience_s)
        if self._error:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def of(self, signal: str, *pids: int) -> list[dict[str, Any]]:
        return [event for event in self.events if event["signal"] == signal and event["pid"] in pids]

    def only(self, signal: str, *pids: int) -> dict[str, Any]:
        """The one event of a signal; what else was seen, and the account, when it is not one."""
        events = self.of(signal, *pids)
        assert len(events) == 1, {"events": self.events, "pids": pids, "account": self.reports[-1:]}
        return events[0]

    def account(self, signal: str) -> dict[str, int]:
        """The final account, checked to close and to agree with what was read."""
        entry = next(entry for entry in self.reports[-1]["signals"] if entry["signal"] == signal)
        account: dict[str, int] = entry["account"]
        assert self.reports[-1]["final"]
        assert account["attempts"] == account["emitted"] + account["filtered"] + account["rate_limited"] + account["dropped"]
        assert entry["drained"] == account["emitted"]
        return account


def attachable(signal: str, variant: str) -> None:
    """Skip the test when the variant hangs on kernel functions and this kernel refuses that: no package could help it.

    Any other variant has to attach.
    """
    reason = refusal(signal, variant)
    if reason and variant == "fentry":
        pytest.skip(reason)
    assert not reason, reason


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def start_inline(namespace: Namespace, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python source inside the namespace."""
    return subprocess.Popen(["nsenter", f"--net={namespace.path}", "--", sys.executable, "-c", script, *arguments],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


def run_plan(namespace: Namespace, script: str, plan: Any, **options: Any) -> tuple[int, Any]:
    """Run a plan in a client script: its pid, and what it saw."""
    client = namespace.start(script, **options)
    assert client.stdin is not None
    client.stdin.write(json.dumps(plan) + "\n")
    client.stdin.flush()
    assert first_line(client) == "ready"
    return client.pid, finish(client, "go")


class ControlGroup:
    """A cgroup with one controller, v1 or v2, and a cgroup2 directory for its identity (the same one under v2).

    Leaving it ends what runs inside and removes the directories.
    """

    _made = 0

    def __init__(self, controller: str) -> None:
        from libslo.host import cgroup2_mount, cgroup_mount

        ControlGroup._made += 1
        name = f"slo-test-{os.getpid()}-{ControlGroup._made}"
        found, root = cgroup_mount(controller), cgroup2_mount()
        assert found is not None and root is not None
        mount, self.version = found
        self.path, self.unified = mount / name, root / name
        if self.version == 2:
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
        for path in {self.path, self.unified}:
            path.mkdir()

    @property
    def id(self) -> int:
        return self.unified.stat().st_ino

    def set(self, v1: tuple[str, object], v2: tuple[str, object]) -> None:
        """Write one limit, by the name that this version has for it."""
        name, value = v1 if self.version == 1 else v2
        (self.path / name).write_text(str(value))

    def read(self, v1: str, v2: str) -> dict[str, int]:
        """A flat-keyed file as a dict; a file of one number as {"": number}."""
        rows = [line.split() for line in (self.path / (v1 if self.version == 1 else v2)).read_text().splitlines()]
        return {"" if len(row) == 1 else row[0]: int(row[-1]) for row in rows}

    def prefer(self) -> None:
        """Let what runs inside go before what else the machine has to do, as far as its quota allows."""
        self.set(("cpu.shares", 262_144), ("cpu.weight", 10_000))

    def throttled_ms(self) -> float:
        """How long its CPU quota has held it, summed over CPUs."""
        stat = self.read("cpu.stat", "cpu.stat")
        return stat["throttled_time"] / 1e6 if self.version == 1 else stat["throttled_usec"] / 1e3

    def take(self, pid: int) -> None:
        for path in {self.path, self.unified}:
            (path / "cgroup.procs").write_text(str(pid))

    def __enter__(self) -> ControlGroup:
        return self

    def __exit__(self, *_: object) -> None:
        for path in {self.path, self.unified}:
            eventually(lambda path=path: _removed(path))


def io_group() -> ControlGroup:
    """A cgroup whose I/O can be limited: the controller has a name in each version."""
    from libslo.host import cgroup_mount

    found = cgroup_mount("blkio")
    assert found is not None
    return ControlGroup("blkio" if found[1] == 1 else "io")


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # a process that was just waited for may still be leaving
        return False
    return True


@contextlib.contextmanager
def script(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A script that has said `ready`; it is ended on the way out whatever happened."""
    process = subprocess.Popen([sys.executable, str(HERE / name), *map(str, arguments)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert first_line(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def prefer(process: subprocess.Popen[str]) -> None:
    """Let a script go before the machine's other work: one that compares clocks, or that waits for its CPU on purpose."""
    os.setpriority(os.PRIO_PROCESS, process.pid, -20)


def tell(process: subprocess.Popen[str]) -> None:
    """Let a script go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def between(events: list[dict[str, Any]], told: dict[str, int]) -> list[dict[str, Any]]:
    """Those that ended while a script did what it says it did."""
    return [event for event in events if told["begun_ns"] <= event["ts_unix_nano"] <= told["ended_ns"]]
