"""What a finished run showed, from its recording alone: figures, signals, detection, what must hold, and what the tools cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from libslo.errors import InputError
from libslo.lab.measures import Stretch, check_assertions, load_figures, moves, per_second
from libslo.lab.stack import APP_SERVICE
from libslo.scenarios import Scenario, load_scenario

__all__ = ["VERDICT", "account_closes", "judge_run", "read_stretches", "rows"]

VERDICT = "verdict.json"


def judge_run(directory: Path) -> dict[str, Any]:
    """The verdict of one run, and the same as verdict.json in its directory. InputError when a file is missing or broken."""
    try:
        verdict = _judge(directory)
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise InputError(f"not the files of a whole run ({type(error).__name__}: {error})", source=str(directory)) from error
    (directory / VERDICT).write_text(json.dumps(verdict, indent=1) + "\n")
    return verdict


def read_stretches(directory: Path) -> list[Stretch]:
    """The phases of a finished run."""
    return [Stretch(**{**row, "scenarios": tuple(row["scenarios"])}) for row in json.loads((directory / "phases.json").read_text())]


def _judge(directory: Path) -> dict[str, Any]:
    plan = json.loads((directory / "plan.json").read_text())
    scenario = load_scenario(plan["scenario"])
    stretches = read_stretches(directory)
    requests = list(rows(directory, "load-result"))
    events = [row for row in rows(directory, "probe-event") if row.get("service") == APP_SERVICE]
    incidents = list(rows(directory, "incidents"))
    arrivals = [row["arrival_unix_ns"] for row in rows(directory, "incident-arrivals")]
    figures = []
    for stretch in stretches:
        mine = [at for at in arrivals if stretch.begin_unix_ns <= at < stretch.end_unix_ns]
        figures.append({**load_figures(stretch, requests), "incidents": float(len(mine))})
    signals = list(_signals(scenario, stretches, events))
    checked = check_assertions(scenario.assertions, stretches, figures)
    reports = list(rows(directory, "agent-report"))
    losses: list[dict[str, Any]] = next((row["signals"] for row in reversed(reports) if row.get("final")), [])
    verdict = {
        **plan,
        "stretches": [{**asdict(stretch), "figures": each} for stretch, each in zip(stretches, figures, strict=True)],
        "signals": signals,
        "assertions": [each.as_dict() for each in checked],
        "incidents": [
            {"domain": row["predicted_fault_domain"], "confidence": row["confidence"], "timestamp": row["timestamp"], "arrival_unix_ns": at}
            for row, at in zip(incidents, arrivals, strict=True)
        ],
        "account_closes": bool(losses) and all(account_closes(row) for row in losses if row["attached"]),
        "overhead": _overhead(list(rows(directory, "overhead-sample"))),
    }
    verdict["ok"] = bool(
        all(each.kept for each in checked) and verdict["account_closes"] and not any(row["missing"] or row["unexpected"] for row in signals)
    )
    return verdict


def _signals(scenario: Scenario, stretches: Sequence[Stretch], events: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each fault: what moved against the first baseline, what should have and did not, and what should not have."""
    base = per_second(stretches[0], events, APP_SERVICE)
    for stretch in stretches:
        if stretch.phase != "fault":
            continue
        singles = [load_scenario(name) for name in stretch.scenarios]
        wanted = {name for single in singles for name in single.expected_signals}
        allowed = wanted | {name for single in singles for name in single.side_signals}
        found = moves(base, per_second(stretch, events, APP_SERVICE))
        moved = {name for name, move in found.items() if move.moved}
        yield {
            "step": stretch.step,
            "scenarios": list(stretch.scenarios),
            "moved": sorted(moved),
            "missing": sorted(wanted - moved),
            "unexpected": sorted(moved - allowed),
            "moves": [asdict(move) for name, move in found.items() if name in wanted | moved],
        }


def _overhead(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By tool: CPU in percent of one CPU over the run, and the most resident memory in MB."""
    found = {}
    for name in dict.fromkeys(row["overhead_of"] for row in samples):
        mine = [row for row in samples if row["overhead_of"] == name and row["cpu_s"] is not None]
        if len(mine) < 2:
            continue
        span_s = (mine[-1]["ts_unix_nano"] - mine[0]["ts_unix_nano"]) / 1e9
        found[name] = {
            "cpu_pct": round(100 * (mine[-1]["cpu_s"] - mine[0]["cpu_s"]) / span_s, 2),
            "rss_mb": round(float(np.max([row["rss_bytes"] for row in mine])) / 1e6, 1),
        }
    return found


def rows(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    """The records of one file of a recording, packed or not."""
    import gzip

    packed = directory / f"{name}.jsonl.gz"
    with gzip.open(packed, "rb") if packed.exists() else (directory / f"{name}.jsonl").open("rb") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def account_closes(signal: Mapping[str, Any]) -> bool:
    """Whether a signal's attempts = emitted + filtered + rate_limited + dropped, and all emitted were drained."""
    account = signal["account"]
    parts = account["emitted"] + account["filtered"] + account["rate_limited"] + account["dropped"]
    return bool(account["attempts"] == parts and account["emitted"] == signal["drained"])
