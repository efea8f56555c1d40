"""How many events a second go from the kernel's ring to numpy arrays, and through the whole agent to JSON lines, without a loss."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libslo.kernel.benchmark import line_path_cost, ring_drain_ns_per_event
from libslo.lab.trial import AgentRun

SIGNAL = "runqueue_delay_ms"
RAW_TARGET, LINES_TARGET = 200_000, 50_000
EVENTS_A_TRIP = 2  # each of both processes waits once for the CPU
STEPS = (15_000, 30_000, 45_000, 60_000, 0)  # round trips a second; 0: as many as go
STORM_S = 3.0
_STILL_S = 0.3
_LATE_S = 0.2
RING_BYTES = 1 << 24
COMM = "bench_ops"  # of the storm: other switches of the machine are filtered
_NO_LIMITS = [
    "--min-latency",
    "0",
    "--rate-limit",
    "0",
    "--signal-rate-limit",
    "0",
    "--max-overhead-pct",
    "0",
    "--ring-bytes",
    str(RING_BYTES),
]
HEAD = ("path", "fed by", "asked, events/s", "reached, events/s", "emitted", "read or written", "dropped", "what limited it")


@dataclass(frozen=True)
class Flood:
    """One flood. lines: of probe events, read back from the file (raw: records read)."""

    asked: int
    seconds: float
    emitted: int
    lines: int
    dropped: int
    closes: bool
    cpu_pct: float  # of one CPU, the agent

    @property
    def rate(self) -> float:
        return self.lines / self.seconds

    @property
    def lossless(self) -> bool:
        return self.dropped == 0 and self.emitted == self.lines and self.closes


def storm(ops: Path, per_second: int) -> None:
    """Run a storm of switches on CPU 0."""
    subprocess.run([str(ops), "storm", str(per_second), str(STORM_S)], check=True, capture_output=True)


def settled_s(file: Path) -> float:
    """CLOCK_MONOTONIC in seconds when a file grew for the last time, once it has been still for a while."""
    size, grew_s = -1, time.monotonic()
    while time.monotonic() - grew_s < _STILL_S:
        if (now := file.stat().st_size) != size:
            size, grew_s = now, time.monotonic()
        time.sleep(0.01)
    return grew_s


def flood_lines(ops: Path, directory: Path, per_second: int) -> Flood:
    """A storm under a real agent process: from the kernel to lines in a file, those counted from the file."""
    n_cpus = os.cpu_count() or 1
    with AgentRun(["--signals", SIGNAL, "--comm", COMM, *_NO_LIMITS], directory) as agent:
        os.sched_setaffinity(agent.process.pid, range(min(1, n_cpus - 1), n_cpus))  # the storm has CPU 0
        time.sleep(0.3)
        before_s = agent.cpu_s()
        begun_s = time.monotonic()
        storm(ops, per_second)
        seconds = settled_s(agent.events) - begun_s  # until the last line: what still waits in the ring is not written yet
        cpu_s = agent.cpu_s() - before_s
        agent.stop()
        entry = next(each for each in agent.final_report()["signals"] if each["signal"] == SIGNAL)
        with agent.events.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        agent.events.unlink()
    account = entry["account"]
    closes = account["attempts"] == sum(account[name] for name in ("emitted", "filtered", "rate_limited", "dropped"))
    return Flood(
        per_second * EVENTS_A_TRIP, seconds, account["emitted"], lines, account["dropped"],
        closes and entry["drained"] == account["emitted"], 100 * cpu_s / seconds,
    )  # fmt: skip


def flood_raw(ops: Path) -> Flood:
    """A storm without a limit, its records only taken out of the ring as arrays."""
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    n_cpus, everywhere = os.cpu_count() or 1, os.sched_getaffinity(0)
    count = 0
    with Session(CaptureSettings(signals=(SIGNAL,), comm=COMM, ring_bytes=RING_BYTES)) as session:
        os.sched_setaffinity(0, range(min(1, n_cpus - 1), n_cpus))
        try:
            with subprocess.Popen([str(ops), "storm", "0", str(STORM_S)], stdout=subprocess.PIPE) as process:
                begun_s, cpu_s = time.monotonic(), time.process_time()
                while process.poll() is None:
                    session.wait()
                    count += sum(events.size for events in session.read())
                seconds, cpu_s = time.monotonic() - begun_s, time.process_time() - cpu_s
        finally:
            os.sched_setaffinity(0, everywhere)
        for probe in session.probes():
            probe.object.detach()
        time.sleep(0.05)
        count += sum(events.size for events in session.read())
        account = session.accounts()[SIGNAL]
    return Flood(0, seconds, account.emitted, count, account.dropped, account.closes, 100 * cpu_s / seconds)


def limited_by(flood: Flood) -> str:
    """What kept a flood from being more."""
    if not flood.lossless:
        return f"the agent (it got {flood.cpu_pct:.0f} % of a CPU)"
    if flood.seconds > STORM_S + _LATE_S:
        return f"the agent: {flood.seconds - STORM_S:.1f} s behind at the end ({flood.cpu_pct:.0f} % of a CPU)"
    if flood.asked and flood.rate >= 0.95 * flood.asked:
        return f"what was asked for (agent: {flood.cpu_pct:.0f} % of a CPU)"
    return f"the storm's own CPU (agent: {flood.cpu_pct:.0f} % of a CPU)"


def row(path: str, flood: Flood) -> tuple[str, ...]:
    """A line of the table."""
    asked = f"{flood.asked:,}" if flood.asked else "no limit"
    numbers = (f"{flood.emitted:,}", f"{flood.lines:,}", f"{flood.dropped:,}")
    return (path, "kernel", asked, f"{flood.rate:,.0f}", *numbers, limited_by(flood))


def bench_floods(ops: Path, directory: Path, say: Callable[[str], None]) -> tuple[list[Sequence[str]], list[str], bool]:
    """Rows of the table, sentences about the targets, and whether both were met."""
    rows: list[Sequence[str]] = []
    say("flood: ring to arrays")
    raw = flood_raw(ops)
    rows.append(row("ring to arrays", raw))
    ceiling = statistics.median(1e9 / ring_drain_ns_per_event(runs=3).drain_ns for _ in range(5))
    rows.append(("ring to arrays", "synthetic ring", "no limit", f"{ceiling:,.0f}", "", "", "", "one CPU, a full ring each time"))
    floods = []
    for step in STEPS:
        say(f"flood: agent to JSON lines, {step or 'all the'} round trips/s")
        floods.append(flood_lines(ops, directory, step))
        rows.append(row("agent to JSON lines", floods[-1]))
    path = line_path_cost(str(directory / "lines.jsonl"))
    for name, rate in (
        ("drain", path.drain),
        ("name and convert", path.convert),
        ("encode and write", path.write),
        ("all three", path.all),
    ):
        rows.append((f"lines: {name}", "synthetic ring", "no limit", f"{rate:,.0f}", "", "", "", f"one CPU, {path.events:,} events"))
    best = max((flood.rate for flood in floods if flood.lossless), default=0.0)
    raw_rate = raw.rate if raw.lossless else 0.0
    raw_kept, lines_kept = max(raw_rate, ceiling) >= RAW_TARGET, best >= LINES_TARGET
    verdicts = ["kept" if good else "NOT KEPT" for good in (raw_kept, lines_kept)]
    raw_fact = f"{raw_rate:,.0f} of the kernel without loss, {ceiling:,.0f} of a synthetic ring"
    said = [
        f"Ring to arrays, target {RAW_TARGET:,} events/s: {raw_fact}: {verdicts[0]}.",
        f"JSON lines, target {LINES_TARGET:,} events/s of the kernel without loss: {best:,.0f}: {verdicts[1]}.",
    ]
    (directory / "lines.jsonl").unlink(missing_ok=True)
    return rows, said, raw_kept and lines_kept
