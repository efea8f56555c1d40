"""What the agent costs, and what it can take: `make bench-agent`.

The application with and without the agent, its memory, events a second without a loss, and the price of one hit beside named peers.
Needs root. Exit 1 when a target is not kept, 3 when the machine cannot run it.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The directory of this file comes first otherwise, and its libslo/ and tools/ would be taken for the packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_flood
import bench_peers
import click
import numpy as np
from bench_table import machine, table, write_page

from libslo.errors import CannotError
from libslo.lab.trial import BARE, AgentRun, TrialResult, TrialSettings, pair_ratios, run_trial
from libslo.statistics import ratio_summary

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
CONTROL = "off again"
DEFAULT, ALL = "default set", "--signal-set all"
KINDS: dict[str, Sequence[str] | None] = {BARE: None, CONTROL: None, DEFAULT: (), ALL: ("--signal-set", "all")}
RATIO_TARGET, RATIO_AIM = 1.03, 1.01
RSS_TARGET_MB = 80
MINUTE_S = 60.0
FIGURES = {
    "app_cpu_ms": "CPU of the application, ms a request",
    "machine_cpu_ms": "CPU of the whole machine, ms a request",
    "ttft_p50_ms": "TTFT p50, ms",
    "ttft_p99_ms": "TTFT p99, ms",
}
TRIAL_HEAD = ("figure", "agent", "without", "with", "mean ratio", "bound (t)", "bound (bootstrap)", "[least, most]", "n", "target")
TARGETED = ("app_cpu_ms", "ttft_p99_ms")
SATURATED = 0.9
ENOUGH_FOR_P99 = 100  # requests, so that the 99th percentile is not the longest one
PARTS = ("trial", "flood", "peers")


def say(text: str) -> None:
    """For people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def compiled(directory: Path) -> Path:
    """The fixed work, as a program. Raises CannotError without a compiler."""
    program = directory / bench_flood.COMM
    source = Path(__file__).with_name("bench_ops.c")
    try:
        subprocess.run(["clang", "-O2", "-o", str(program), str(source)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotError(f"cannot compile {source.name}: {error}", hint="make setup") from error
    return program


def minute(directory: Path, seconds: float) -> dict[str, float]:
    """An agent with all signals and metrics for a minute of the load: memory in MB, its own CPU in percent of one."""
    say(f"memory: {ALL} for {seconds:g} s")
    with AgentRun(["--signal-set", "all", "--metrics-listen", "127.0.0.1:0"], directory) as agent:
        time.sleep(1)
        cpu_s, begun_s = agent.cpu_s(), time.monotonic()
        time.sleep(seconds)
        cpu_pct = 100 * (agent.cpu_s() - cpu_s) / (time.monotonic() - begun_s)
        memory = agent.memory_bytes()
    return {"rss_mb": memory["VmRSS"] / 1e6, "most_mb": memory["VmHWM"] / 1e6, "cpu_pct": cpu_pct, "seconds": seconds}


def judged(upper: float, noise: float) -> str:
    """What a bound says of the target. noise: the same bound of the control, where the truth is 1."""
    if upper <= RATIO_TARGET:
        return "kept" + (", and the aim" if upper <= RATIO_AIM else "")
    return "NOT KEPT" if noise <= RATIO_TARGET else f"NOT SHOWN: the noise alone has {noise:.4f}"


def trial_page(settings: TrialSettings, result: TrialResult) -> tuple[list[str], bool]:
    """The A/B part of the page, and whether the targets are kept."""
    rows: list[Sequence[object]] = []
    kept = True
    for figure, label in FIGURES.items():
        noise = math.inf
        for kind, bare in ((CONTROL, (BARE,)), (DEFAULT, (BARE, CONTROL)), (ALL, (BARE, CONTROL))):
            summary = ratio_summary(pair_ratios(result.rounds, kind, figure, bare), np.random.default_rng(settings.seed))
            without, with_it = (
                statistics.fmean(getattr(each[n], figure) for each in result.rounds for n in names) for names in (bare, (kind,))
            )
            verdict = ""
            if kind == CONTROL:
                noise, verdict = summary.upper, "the noise"
            elif figure in TARGETED:
                verdict = judged(summary.upper, noise)
                kept &= summary.upper <= RATIO_TARGET
            bounds = (f"{value:.4f}" for value in (summary.mean, summary.upper_t, summary.upper_bootstrap))
            spread = f"[{summary.least:.3f}, {summary.most:.3f}]"
            rows.append((label, kind, f"{without:.2f}", f"{with_it:.2f}", *bounds, spread, summary.n, verdict))
    windows = [window for each in result.rounds for window in each.values()]
    least = min(window.requests for window in windows)
    failed = sum(window.failed for window in windows)
    busy = np.median([each[BARE].machine_cpu_ms for each in result.rounds]) * settings.rate / 1e3 / (os.cpu_count() or 1)
    memory = result.after
    shares = ", ".join(f"{kind} {pct:.2f} %" for kind, pct in result.agent_cpu_pct.items())
    lines = [
        "## The application with and without the agent\n",
        f"The lab's RAG service at {settings.rate:g} constant requests a second, provider's TTFT {settings.provider_ttft_ms:g} ms.",
        f"{settings.pairs} rounds of windows of {settings.window_s:g} s ({least} requests or more each; {failed} of all failed): one",
        f"window of every kind a round, in an order drawn with seed {settings.seed}. Ratio: a window over the geometric mean of both",
        f'bare ones of its round; of "{CONTROL}", which has no agent, over the other bare one: that is the noise.',
        f"Bounds: one-sided, 95 %, of the mean ratio; the target is both <= {RATIO_TARGET}.",
        "The application is its four services without the client; CPU of the machine holds the agent's and everybody else's.",
        f"Without an agent the machine was {100 * busy:.0f} % busy.\n",
        *table(
            ("agent", "figure", "without", "with", "mean ratio", "bound (t)", "bound (bootstrap)", "[least, most]", "n", "target"), rows
        ),
        "",
    ]
    if least < ENOUGH_FOR_P99:
        lines.append(f"A window of {least} requests has no 99th percentile but its longest request: take these ratios for what they are.\n")
    if busy > SATURATED:
        lines.append("The machine was SATURATED: times to first token are waits for a CPU here, and these ratios say little.\n")
    lines += [
        f"The agent's own CPU meanwhile: {shares} of one CPU. {_shed(result)}\n",
        "## Memory\n",
        f"After {memory['seconds']:g} s of that load with {ALL} and the metrics endpoint: RSS {memory['rss_mb']:.1f} MB (most",
        f"{memory['most_mb']:.1f} MB), own CPU {memory['cpu_pct']:.2f} % of one CPU. Target: RSS <= {RSS_TARGET_MB} MB:",
        f"{'kept' if memory['rss_mb'] <= RSS_TARGET_MB else 'NOT KEPT'}.\n",
    ]
    return lines, kept and memory["rss_mb"] <= RSS_TARGET_MB


def _shed(result: TrialResult) -> str:
    """What the agents' final reports say of their completeness."""
    reports = [report for each in result.reports.values() for report in each]
    shed = sum(any(signal.get("shed") for signal in report["signals"]) for report in reports)
    missing = sorted({signal["signal"] for report in reports for signal in report["signals"] if not signal["attached"]})
    dropped = sum(signal["account"]["dropped"] for report in reports for signal in report["signals"])
    return (
        f"Of {len(reports)} agents {shed} had shed a signal, {dropped} events were dropped, not attached: {', '.join(missing) or 'none'}."
    )


def flood_page(ops: Path, directory: Path) -> tuple[list[str], bool]:
    """The part about events a second."""
    rows, said, kept = bench_flood.bench_floods(ops, directory, say)
    lines = [
        "## Events a second without a loss\n",
        f"Kernel: a storm of switches between two processes on CPU 0, `{bench_flood.SIGNAL}`, threshold 0, no limits, ring of",
        f"{bench_flood.RING_BYTES >> 20} MiB; the agent has the other CPUs and writes a file, from which the lines are counted.",
        "Synthetic: events in memory, through the same code, per second of CPU time.\n",
        *table(bench_flood.HEAD, rows),
        "",
        *(line + "\n" for line in said),
    ]
    return lines, kept


def peers_page(ops: Path, directory: Path, rounds: int) -> list[str]:
    """The part about the price of a hit."""
    return [
        "## One hit beside peers that do the same job\n",
        f"Added time an operation, median of {rounds} rounds and their quartiles; each round runs all in an order drawn for it, each",
        "the least of three runs. CPU time of the work, for reads the median by wall clock. Ours with the agent's default thresholds,",
        "limits and histograms.\n",
        *table(bench_peers.HEAD, bench_peers.bench_peers(ops, directory, rounds, say)),
    ]


@click.command()
@click.option("--pairs", type=click.IntRange(2), default=10, show_default=True, help="Rounds with and without the agent.")
@click.option("--seconds", type=click.FloatRange(1), default=5.0, show_default=True, help="Of one window.")
@click.option("--rate", type=click.FloatRange(1), default=40.0, show_default=True, help="Requests a second.")
@click.option("--rounds", type=click.IntRange(2), default=bench_peers.ROUNDS, show_default=True, help="Of the comparison with peers.")
@click.option("--minute", "minute_s", type=click.FloatRange(1), default=MINUTE_S, show_default=True, help="Seconds before memory is read.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only this part (repeatable).")
@click.option("--table", "path", type=click.Path(path_type=Path), help="Write the page here as well.")
def main(
    pairs: int, seconds: float, rate: float, rounds: int, minute_s: float, seed: int, only: tuple[str, ...], path: Path | None
) -> None:
    """Measure what the agent costs and what it can take."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is taken down in order
    parts = only or PARTS
    kept = True
    lines = [
        "# What the agent costs\n",
        "`make bench-agent-table` wrote this page. Times on a shared machine are noisy: ratios within a round hold better, and the control",
        f"says how well. {machine()}",
        f"Load average when it began: {os.getloadavg()[0]:.2f}.\n",
    ]
    try:
        if os.geteuid() != 0:
            raise CannotError("not root", hint="sudo make bench-agent")
        ARTIFACTS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ARTIFACTS) as folder:  # on a disk: /tmp may be none, and reads past the page cache need one
            directory = Path(folder)
            ops = compiled(directory)
            if "trial" in parts:
                settings = TrialSettings(KINDS, pairs, seconds, rate, seed)
                result: Any = run_trial(settings, directory, say, lambda: minute(directory, minute_s))
                page, good = trial_page(settings, result)
                lines, kept = lines + page, kept and good
            if "flood" in parts:
                page, good = flood_page(ops, directory)
                lines, kept = lines + page, kept and good
            if "peers" in parts:
                lines += peers_page(ops, directory, rounds)
    except CannotError as error:
        say(f"cannot: {error}")
        sys.exit(3)
    print("\n".join(lines))
    if path:
        write_page(path, lines)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
