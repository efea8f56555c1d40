"""What one hit costs: fixed work timed bare, under a peer that does the same job, and under our probe, in turns."""

from __future__ import annotations

import os
import random
import selectors
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libslo.lab.topology import bound_to_me

ROUNDS = 10
PACKAGES = {"bpftrace": "bpftrace", "runqlat": "libbpf-tools"}
NONE = "none"
HEAD = ("operation", "bare", "with", "added an operation", "[quartiles]", "ours / this one", "n")
_READY_S = 15.0
_REPEATS = 3  # the least counts: neighbours only ever add
_SYSCALLS = (
    "tracepoint:raw_syscalls:sys_enter { @s[tid] = nsecs; } "
    "tracepoint:raw_syscalls:sys_exit /@s[tid]/ { @us = hist((nsecs - @s[tid]) / 1000); delete(@s[tid]); }"
)
_SWITCHES = (
    "tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @q[args->pid] = nsecs; } "
    "tracepoint:sched:sched_switch { if (args->prev_state == 0) { @q[args->prev_pid] = nsecs; } $at = @q[args->next_pid]; "
    "if ($at) { @us = hist((nsecs - $at) / 1000); delete(@q[args->next_pid]); } }"
)
_DISK = (
    "tracepoint:block:block_rq_issue { @s[args->dev, args->sector] = nsecs; } tracepoint:block:block_rq_complete "
    "/@s[args->dev, args->sector]/ { @us = hist((nsecs - @s[args->dev, args->sector]) / 1000); delete(@s[args->dev, args->sector]); }"
)


class Refused(Exception):  # noqa: N818 - a state, not an error
    """Why something cannot run here, in its own words."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's tool. command: for tools; a bpftrace program instead otherwise."""

    name: str
    command: tuple[str, ...] = ()
    program: str = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Attached on entry, ended on exit. Raises Refused."""
        command = (
            ["bpftrace", "-B", "line", "-e", f'{self.program} interval:ms:100 {{ printf("on\\n"); }}'] if self.program else self.command
        )
        if shutil.which(command[0]) is None:
            raise Refused(f"{command[0]} is not installed (Debian package {PACKAGES.get(command[0], 'libbpf-tools')})")
        line_buffered = [] if self.program else ["stdbuf", "-oL"]
        process = subprocess.Popen(
            bound_to_me([*line_buffered, *command]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            self._await(process)
            yield
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None and process.stderr is not None
        marks = (b"on\n",) if self.program else (b"Tracing", b"Ctrl-C", b"TIME")
        deadline_s = time.monotonic() + _READY_S
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not any(mark in said for mark in marks):
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise Refused(f"silent for {_READY_S:g} s")
                read = os.read(process.stdout.fileno(), 4096)
                if not read:
                    process.wait()
                    lines = process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise Refused(f"exit {process.returncode}: {next((line for line in lines if 'failed' in line), lines[0])}")
                said += read


@dataclass(frozen=True)
class Work:
    """An operation, how often, the signal of ours that its hits belong to, and the peers."""

    name: str
    arguments: tuple[str, ...]
    signal: str
    peers: tuple[Peer, ...]


@dataclass
class Timings:
    """Nanoseconds an operation by round, and reasons, both by who was attached."""

    ns: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def added_ns(self, who: str) -> list[float]:
        """By round, against the bare time of the same round."""
        return [with_ns - bare_ns for with_ns, bare_ns in zip(self.ns[who], self.ns[NONE], strict=True)]


def works(file: Path) -> list[Work]:
    """What is measured. file: on a block device, for reads past the page cache."""
    syscalls = (Peer("bpftrace, raw_syscalls enter/exit, histogram", program=_SYSCALLS),)
    return [
        Work("getppid", ("getppid", "200000"), "syscall_latency_ms", syscalls),
        Work("read of a byte of /dev/zero", ("read", "200000"), "syscall_latency_ms", syscalls),
        Work("pipe round trip, 2 switches", ("pingpong", "20000"), "runqueue_delay_ms",
             (Peer("bpftrace, sched tracepoints, histogram", program=_SWITCHES), Peer("libbpf-tools runqlat", ("runqlat", "3600")),
              Peer("libbpf-tools runqslower 5000", ("runqslower", "5000")))),
        Work("O_DIRECT read of 4 KiB", ("direct", "3000", str(file)), "disk_io_latency_ms",
             (Peer("bpftrace, block tracepoints, histogram", program=_DISK), Peer("libbpf-tools biolatency", ("biolatency", "3600")),
              Peer("libbpf-tools biosnoop", ("biosnoop",)))),
    ]  # fmt: skip


@contextmanager
def ours(signal: str) -> Iterator[None]:
    """Our probe with the agent's default thresholds, limits and histograms. Raises Refused."""
    from libslo.kernel.catalogue import known_signals
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings
    from libslo.signals import signal as about

    if signal not in known_signals():
        raise Refused("this build has no probe for it")
    settings = CaptureSettings(
        signals=(signal,), min_latencies_ms={signal: about(signal).min_latency_ms}, rate_limit=1000, burst_limit=2000
    )
    with Session(settings) as session:
        if not session.states[0].attached:
            raise Refused(session.states[0].reason)
        yield


@contextmanager
def _bare() -> Iterator[None]:
    yield


def measure(ops: Path, work: Work, rounds: int, seed: int = 1) -> Timings:
    """Time it bare, under each peer and under ours, in an order drawn for each round; who is refused once is not asked again."""
    generator = random.Random(seed)
    result = Timings()
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {NONE: _bare, **{peer.name: peer.running for peer in work.peers}}
    contexts["ours"] = lambda: ours(work.signal)
    for _ in range(rounds):
        for who in generator.sample(list(contexts), len(contexts)):
            try:
                with contexts[who]():
                    least = min(_time_ns(ops, work) for _ in range(_REPEATS))
            except Refused as reason:
                result.refused[who] = str(reason)
                del contexts[who]
            else:
                result.ns.setdefault(who, []).append(least)
    return result


def _time_ns(ops: Path, work: Work) -> float:
    return float(subprocess.run([str(ops), *work.arguments], check=True, capture_output=True, text=True).stdout)


def ratio_to(timings: Timings, who: str) -> str:
    """Ours over a peer's, of the medians of what they add; nothing where less than three quarters of the rounds lie above zero."""
    if who == "ours" or "ours" not in timings.ns:
        return ""
    quartiles = [statistics.quantiles(timings.added_ns(each), n=4) for each in ("ours", who)]
    if any(low <= 0 for low, _, _ in quartiles):
        return "within the noise"
    return f"{quartiles[0][1] / quartiles[1][1]:.2f}"


def rows_of(work: Work, timings: Timings) -> list[Sequence[str]]:
    """Lines of the table: medians over the rounds."""
    bare = f"{statistics.median(timings.ns[NONE]):,.0f} ns"
    rows: list[Sequence[str]] = []
    for who in ("ours", *(peer.name for peer in work.peers)):
        label = f"ours, {work.signal}" if who == "ours" else who
        if who in timings.refused:
            rows.append((work.name, bare, label, f"cannot run here: {timings.refused[who]}", "", "", ""))
            continue
        low, middle, high = statistics.quantiles(timings.added_ns(who), n=4)
        spread = f"[{low:+,.0f}, {high:+,.0f}]"
        rows.append((work.name, bare, label, f"{middle:+,.0f} ns", spread, ratio_to(timings, who), str(len(timings.ns[who]))))
    return rows


def install_peers(say: Callable[[str], None]) -> None:
    """Debian's packages, when root and apt is there; what is still missing is a row that says so."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {', '.join(missing)}")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, check=False)


def bench_peers(ops: Path, directory: Path, rounds: int, say: Callable[[str], None]) -> list[Sequence[str]]:
    """All rows."""
    install_peers(say)
    file = directory / "blocks"
    with file.open("wb") as out:
        out.write(os.urandom(32 << 20))
        out.flush()
        os.fsync(out.fileno())
    rows: list[Sequence[str]] = []
    for work in works(file):
        say(f"per hit: {work.name}, {rounds} rounds")
        rows += rows_of(work, measure(ops, work, rounds))
    file.unlink()
    return rows
