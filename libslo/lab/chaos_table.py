"""The table of many runs, for people. Pure: verdicts in, Markdown out."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["markdown", "summary_line"]

_COLUMNS = (
    "scenario", "severity", "runs", "TTFT p95 ms, baseline", "in the fault", "errors in the fault", "signals that should move: moved",
    "others that moved", "detected", "delay s, median", "p95", "named", "false alarms", "what must hold",
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
    delays = [delay for verdict in verdicts for delay in _delays(verdict)]
    quiet_s = sum(_seconds(verdict, "baseline") for verdict in verdicts)
    alarms = sum(_in_phase(verdict, "baseline") for verdict in verdicts)
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
        f"Detection delay over all: {_spread(delays)}. False alarms: {alarms} in {quiet_s:.0f} s without a fault.",
        "",
        *("| " + " | ".join(map(str, row)) + " |" for row in [_COLUMNS, ["---"] * len(_COLUMNS), *table]),
        "",
        "## Do reruns agree?",
        "",
        f"Coefficient of variation over the runs of a row, in the fault (target <= {COV_TARGET:.0%}; three runs or more).",
        "",
        *_reruns(groups),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, severity: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = [row for verdict in runs for row in verdict["signals"]]
    steps = sum(stretch["phase"] == "fault" for verdict in runs for stretch in verdict["stretches"])
    delays = [delay for verdict in runs for delay in _delays(verdict)]
    named = sum(_named(verdict) for verdict in runs)
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
        f"{len(delays)} of {steps}",
        _number(statistics.median(delays)) if delays else "–",  # noqa: RUF001
        _number(float(np.quantile(delays, 0.95))) if len(delays) >= _MIN_FOR_P95 else "–",  # noqa: RUF001
        f"{named} of {steps}",
        str(sum(_in_phase(verdict, "baseline") for verdict in runs)),
        f"{sum(map(bool, kept))} of {len(kept)}",
    ]


def _reruns(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = ["| scenario | severity | runs | " + " | ".join(_COV_FIGURES.values()) + " |", "|" + " --- |" * (3 + len(_COV_FIGURES))]
    for (name, severity), runs in groups.items():
        if len(runs) < 3:
            continue
        phase = "fault" if any(stretch["phase"] == "fault" for stretch in runs[0]["stretches"]) else "baseline"
        cells = [_variation([_figure(verdict, phase, figure) for verdict in runs]) for figure in _COV_FIGURES]
        lines.append(f"| {name} | {severity} | {len(runs)} | {' | '.join(cells)} |")
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


def _delays(verdict: Mapping[str, Any]) -> list[float]:
    """Seconds from the begin of each fault to the first incident that arrived while it was on."""
    found = []
    for stretch in verdict["stretches"]:
        if stretch["phase"] == "fault":
            mine = [at for at in _arrivals(verdict) if stretch["begin_unix_ns"] <= at < stretch["end_unix_ns"]]
            found += [(min(mine) - stretch["begin_unix_ns"]) / 1e9] if mine else []
    return found


def _named(verdict: Mapping[str, Any]) -> int:
    """Faults of which the first incident named an expected domain."""
    from libslo.scenarios import expected_domains

    count = 0
    for stretch in verdict["stretches"]:
        if stretch["phase"] == "fault":
            mine = [each for each in verdict["incidents"] if stretch["begin_unix_ns"] <= each["arrival_unix_ns"] < stretch["end_unix_ns"]]
            count += bool(mine) and mine[0]["domain"] in expected_domains("+".join(stretch["scenarios"]))
    return count


def _arrivals(verdict: Mapping[str, Any]) -> list[int]:
    return [each["arrival_unix_ns"] for each in verdict["incidents"]]


def _in_phase(verdict: Mapping[str, Any], phase: str) -> int:
    spans = [(each["begin_unix_ns"], each["end_unix_ns"]) for each in verdict["stretches"] if each["phase"] == phase]
    return sum(begin <= at < end for at in _arrivals(verdict) for begin, end in spans)


def _seconds(verdict: Mapping[str, Any], phase: str) -> float:
    return float(sum(each["end_unix_ns"] - each["begin_unix_ns"] for each in verdict["stretches"] if each["phase"] == phase)) / 1e9


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


def _spread(delays: Sequence[float]) -> str:
    if not delays:
        return "none detected"
    p95 = f", p95 {np.quantile(delays, 0.95):.2f} s" if len(delays) >= _MIN_FOR_P95 else ""
    return f"median {statistics.median(delays):.2f} s{p95}, n = {len(delays)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"  # noqa: RUF001 (an empty cell)
