"""The table of many runs, for people. Pure: verdicts in, Markdown out."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from libslo.detection import DetectionSummary, Injection, RunDetection, summarize_detection
from libslo.lab.verdict import LEAST_ACHIEVED

__all__ = ["markdown", "summary_line"]

_COLUMNS = (
    "scenario", "severity", "runs", "TTFT p95 ms, baseline", "in the fault", "errors in the fault", "signals that should move: moved",
    "others that moved", "injections that moved an SLI", "detected", "delay s, median", "p95", "named", "twice", "false alarms",
    "what must hold",
)  # fmt: skip
_MIN_FOR_P95 = 20
_COV_FIGURES = {"ttft_p95_ms": "TTFT p95", "tokens_per_s_p50": "tokens/s p50", "error_ratio": "error ratio"}
COV_TARGET = 0.10


def summary_line(verdict: Mapping[str, Any]) -> str:
    """One run in one line."""
    wrong = [
        f"{each['metric']} {each['operator']} {each['value']:g} in the {each['phase']}: {_number(each['found'])}"
        for each in verdict["assertions"]
        if not each["kept"]
    ]
    wrong += [f"{name} did not move" for row in verdict["signals"] for name in row["missing"]]
    wrong += [f"{name} moved, too" for row in verdict["signals"] for name in row["unexpected"]]
    achieved = verdict["load_achieved_ratio"]
    if achieved is None or achieved < LEAST_ACHIEVED:
        wrong.append(f"of the load only {_number(achieved)} was achieved")
    if not verdict["account_closes"]:
        wrong.append("an account does not close")
    said = ", ".join(f"{each['domain']} {each['confidence']:.2f}" for each in verdict["incidents"]) or "no incident"
    return f"{'ok' if verdict['ok'] else 'NOT OK'}: {said}" + "".join(f"; {each}" for each in wrong)


def markdown(verdicts: Sequence[Mapping[str, Any]], command_line: str) -> str:
    """All runs, by scenario and severity, under the command that made them and the machine they were made on."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict["scenario"], verdict["severity"]), []).append(verdict)
    table = [_row(name, severity, mine) for (name, severity), mine in groups.items()]
    found = _detection(verdicts)
    lines = [
        "# The incident lab: real faults, run after run",
        "",
        f"`{command_line}`",
        "",
        (
            f"n = {len(verdicts)} runs, {sum(verdict['ok'] for verdict in verdicts)} with all that must hold;"
            f" Linux {platform.release()} {platform.machine()}."
        ),
        "Delay: from the moment a fault was on to the arrival of the incident's line. A signal moved when its per-second values rose",
        "against the run's own baseline (Mann-Whitney p < 0.001, Cliff's delta >= 0.474, and by a floor).",
        *_detection_lines(found),
        *_missed_lines(found.missed, sum(verdict["missed_in_an_episode"] for verdict in verdicts)),
        *_overhead_lines(verdicts),
        "",
        *("| " + " | ".join(map(str, row)) + " |" for row in [_COLUMNS, ["---"] * len(_COLUMNS), *table]),
        "",
        "## Do reruns agree?",
        "",
        f"Coefficient of variation over the runs of a row, in the fault (target <= {COV_TARGET:.0%}; three runs or more).",
        "By chance: what it would be if the runs were alike, and only the requests of each were others (bootstrap). What is over that is",
        "the fault: lost packets are drawn anew, and near a limit of CPU or memory a queue grows of small differences.",
        "",
        *_reruns(groups),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, severity: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = [row for verdict in runs for row in verdict["signals"]]
    found = _detection(runs)
    kept = [each["kept"] for verdict in runs for each in verdict["assertions"]]
    missing, others = _count(faults, "missing"), _count(faults, "unexpected")
    return [
        name,
        severity,
        str(len(runs)),
        _number(_median(runs, "baseline", "ttft_p95_ms")),
        _number(_median(runs, "fault", "ttft_p95_ms")),
        _number(_median(runs, "fault", "error_ratio")),
        "all" if not missing and faults else ", ".join(f"not {signal} ({count})" for signal, count in missing.items()) or "–",  # noqa: RUF001
        ", ".join(f"{signal} ({count})" for signal, count in others.items()) or "none",
        f"{found.violations} of {found.injections}",
        f"{found.found} of {found.violations}",
        _number(found.delay_arrival.median_s),
        _number(found.delay_arrival.p95_s) if found.delay_arrival.n >= _MIN_FOR_P95 else "–",  # noqa: RUF001
        f"{found.named} of {found.violations}",
        str(found.duplicates),
        str(found.false_alarms),
        f"{sum(map(bool, kept))} of {len(kept)}",
    ]


def _reruns(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[str]:
    columns = ["scenario", "severity", "runs", *_COV_FIGURES.values(), "TTFT p95, by chance"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for (name, severity), runs in groups.items():
        if len(runs) < 3:
            continue
        phase = "fault" if any(stretch["phase"] == "fault" for stretch in runs[0]["stretches"]) else "baseline"
        cells = [_variation([_figure(verdict, phase, figure) for verdict in runs]) for figure in _COV_FIGURES]
        drawn, p95 = ([_figure(verdict, phase, figure) for verdict in runs] for figure in ("ttft_p95_error_ms", "ttft_p95_ms"))
        lines.append(f"| {name} | {severity} | {len(runs)} | {' | '.join(cells)} | {_by_chance(drawn, p95)} |")
    return lines


def _variation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return "–"  # noqa: RUF001
    mean = statistics.fmean(known)
    if mean == 0:
        return "0 in every run"
    cov = statistics.stdev(known) / mean
    return f"{cov:.1%}" + ("" if cov <= COV_TARGET else " (over the target)")


def _by_chance(errors: Sequence[float | None], values: Sequence[float | None]) -> str:
    """The coefficient of variation that the choice of requests alone would give."""
    squares = [error**2 for error in errors if error is not None]
    known = [value for value in values if value is not None]
    return f"{math.sqrt(statistics.fmean(squares)) / statistics.fmean(known):.1%}" if squares and any(known) else "–"  # noqa: RUF001


def _detection(verdicts: Sequence[Mapping[str, Any]]) -> DetectionSummary:
    """Ground truth against episodes, over runs."""
    return summarize_detection(
        RunDetection(
            tuple(Injection(**each) for each in verdict["detection"]["injections"]),
            tuple(verdict["detection"]["false_alarms"]),
            tuple((window[0], window[1]) for window in verdict["detection"]["windows"]),
        )
        for verdict in verdicts
    )


def _detection_lines(found: DetectionSummary) -> list[str]:
    share, low, high = found.found_share
    detected = f"{found.found} of {found.violations}" + ("" if share is None else f" (Wilson 95 %: {low:.3f} to {high:.3f})")
    delay, event = found.delay_arrival, found.delay_event
    p95 = f", p95 {delay.p95_s:.2f} s" if delay.p95_s is not None and delay.n >= _MIN_FOR_P95 else ""
    return [
        f"{found.injections} injections, {found.no_violation} of which moved no SLI",
        f"(of these {found.found_without_violation} were found all the same).",
        f"Of those that did, {detected} were detected, {found.named} named; {found.duplicates} episodes too many.",
        f"Delay: median {_number(delay.median_s)} s{p95}, n = {delay.n}; by the records' own times {_number(event.median_s)} s.",
        f"False alarms: {found.false_alarms} in {found.no_fault_hours * 3600:.0f} s without a fault",
        f"({found.alarmed_windows} of {found.no_fault_windows} windows).",
    ]


def _missed_lines(missed: int, in_an_episode: int) -> list[str]:
    """Why injections that hurt began no episode of their own."""
    if not missed:
        return []
    why = f"Of the {missed} that were not, {in_an_episode} began while the episode of the fault before them was still open:"
    return [
        why,
        "a service has one episode at a time, and recoveries this short do not close it (`attributor --updates` tells the change).",
    ]


def _overhead_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """By tool: means over runs."""
    tools = dict.fromkeys(tool for verdict in verdicts for tool in verdict["overhead"])
    told = []
    for tool in tools:
        mine = [verdict["overhead"][tool] for verdict in verdicts if tool in verdict["overhead"]]
        mean, p95, rss = (statistics.fmean(row[key] for row in mine) for key in ("node_cpu_pct", "node_cpu_pct_p95", "rss_mb"))
        told.append(f"{tool} {mean:.2f} % (p95 of a run's seconds {p95:.2f} %), {rss:.0f} MB")
    return [f"CPU of the node while phases were on, and memory, all signals and no ceiling: {'; '.join(told)}."] if told else []


def _figure(verdict: Mapping[str, Any], phase: str, name: str) -> float | None:
    values = [each["figures"][name] for each in verdict["stretches"] if each["phase"] == phase and each["figures"][name] is not None]
    return float(statistics.fmean(values)) if values else None


def _median(runs: Sequence[Mapping[str, Any]], phase: str, name: str) -> float | None:
    values = [value for verdict in runs if (value := _figure(verdict, phase, name)) is not None]
    return float(statistics.median(values)) if values else None


def _count(faults: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in faults:
        for name in row[key]:
            found[name] = found.get(name, 0) + 1
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"  # noqa: RUF001 (an empty cell)
