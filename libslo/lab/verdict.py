"""What a finished run showed, from its recording alone: figures, signals, detection, what must hold, and what the tools cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from libslo.detection import RunDetection, judge_detection, judge_requests
from libslo.errors import InputError
from libslo.lab.measures import Stretch, check_assertions, load_figures, moves, per_second
from libslo.lab.stack import APP_SERVICE
from libslo.load.summary import achieved_ratio
from libslo.recordings import Recording
from libslo.scenarios import Scenario, load_scenario
from libslo.signals import slis
from libslo.slo import burn_policy, parse_objective
from libslo.usage import Usage, usage

__all__ = ["LEAST_ACHIEVED", "VERDICT", "account_closes", "judge_run", "read_stretches", "rows"]

VERDICT = "verdict.json"
_POLICY = "lab"
LEAST_ACHIEVED = 0.99  # below it the load was another than the one that was asked for


def judge_run(directory: Path) -> dict[str, Any]:
    """The verdict of one run, and the same as verdict.json in its directory. InputError when a file is missing or broken."""
    try:
        verdict = _judge(directory)
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise InputError(f"not the files of a whole run ({type(error).__name__}: {error})", source=str(directory)) from error
    (directory / VERDICT).write_text(json.dumps(verdict, indent=1) + "\n")
    return verdict


def read_stretches(recording: Recording) -> list[Stretch]:
    """The phases of a finished run."""
    return [
        Stretch(row["name"], row["step"], tuple(row["scenarios"]), row["begin_unix_nano"], row["end_unix_nano"])
        for row in recording.manifest["phases"]
    ]


def _judge(directory: Path) -> dict[str, Any]:
    recording = Recording(directory)
    plan, cpus = recording.manifest["plan"], recording.manifest["machine"]["cpus"]
    scenario = load_scenario(plan["scenario"])
    stretches = read_stretches(recording)
    requests, incidents = rows(recording, "load-result"), rows(recording, "incident-attribution")
    events = [row for row in rows(recording, "probe-event") if row.get("service") == APP_SERVICE]
    arrivals = {row["incident_id"]: row["incident_arrival_unix_nano"] for row in rows(recording, "incident-arrival")}
    figures = []
    for stretch in stretches:
        mine = [at for at in arrivals.values() if stretch.begin_unix_ns <= at < stretch.end_unix_ns]
        figures.append({**load_figures(stretch, requests), "incidents": float(len(mine))})
    signals = list(_signals(scenario, stretches, events))
    achieved = _achieved(requests, stretches[0].begin_unix_ns, stretches[-1].end_unix_ns)
    checked = check_assertions(scenario.assertions, stretches, figures)
    losses: list[dict[str, Any]] = next((row["signals"] for row in reversed(rows(recording, "agent-report")) if row.get("final")), [])
    detection = _detection(recording, stretches, incidents, arrivals)
    verdict = {
        **plan,
        "stretches": [{**asdict(stretch), "figures": each} for stretch, each in zip(stretches, figures, strict=True)],
        "signals": signals,
        "assertions": [each.as_dict() for each in checked],
        "incidents": [
            {
                "domain": row["predicted_fault_domain"],
                "confidence": row["confidence"],
                "timestamp": row["timestamp"],
                "arrival_unix_ns": arrivals[row["incident_id"]],
            }
            for row in incidents
        ],
        "detection": asdict(detection),
        "missed_in_an_episode": _missed_in_an_episode(detection, rows(recording, "incident-episode")),
        "load_achieved_ratio": None if achieved is None else round(achieved, 4),
        "account_closes": bool(losses) and all(account_closes(row) for row in losses if row["attached"]),
        "overhead": _overhead(list(usage(rows(recording, "overhead-sample"), cpus, stretches[0].begin_unix_ns, stretches[-1].end_unix_ns))),
    }
    verdict["ok"] = bool(
        all(each.kept for each in checked)
        and verdict["account_closes"]
        and (achieved or 0.0) >= LEAST_ACHIEVED
        and not any(row["missing"] or row["unexpected"] for row in signals)
    )
    return verdict


def _achieved(requests: Sequence[Mapping[str, Any]], begin_ns: int, end_ns: int) -> float | None:
    """Of the requests due within the phases: the rate at which they left over the rate at which they were due."""
    mine = [row for row in requests if begin_ns <= row["scheduled_unix_ns"] < end_ns]
    due, sent = (np.array([row.get(key, np.nan) for row in mine], np.float64) for key in ("scheduled_unix_ns", "sent_unix_ns"))
    return achieved_ratio((due - begin_ns) / 1e9, (sent - begin_ns) / 1e9)


def _detection(
    recording: Recording, stretches: Sequence[Stretch], incidents: Sequence[Mapping[str, Any]], arrivals: Mapping[str, int]
) -> RunDetection:
    """Ground truth against episodes of the application, over the whole run."""
    of_app = {row["incident_id"] for row in incidents if row["service"] == APP_SERVICE}
    episodes = [row for row in rows(recording, "incident-episode") if row["incident_id"] in of_app]
    objectives = {name: about.objective for name, about in slis().items() if about.objective}
    objectives.update(parse_objective(text) for text in recording.manifest["plan"]["objectives"])
    return judge_detection(
        rows(recording, "fault-window"),
        episodes,
        incidents,
        judge_requests(rows(recording, "slo-event"), objectives, APP_SERVICE),
        burn_policy(_POLICY),
        begin_ns=stretches[0].begin_unix_ns,
        end_ns=stretches[-1].end_unix_ns,
        arrivals=arrivals,
    )


def _missed_in_an_episode(detection: RunDetection, episodes: Sequence[Mapping[str, Any]]) -> int:
    """Injections that hurt and have no episode, but began in the one of a fault before them: a service has one at a time."""
    last = {row["incident_id"]: row for row in episodes}.values()  # of each the line that says most
    spans = [(row["detected_unix_nano"], row.get("end_unix_nano")) for row in last]
    missed = [each.begin_ns for each in detection.injections if each.moved_sli and not each.detected]
    return sum(any(begin <= at and (end is None or at < end) for begin, end in spans) for at in missed)


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


def _overhead(used: Sequence[Usage]) -> dict[str, dict[str, float]]:
    """By tool: CPU in percent of the node, mean and p95 of seconds, and the most resident memory in MB."""
    found = {}
    for tool in dict.fromkeys(each.tool for each in used):
        pct = [each.node_cpu_pct for each in used if each.tool == tool]
        found[tool] = {
            "node_cpu_pct": round(float(np.mean(pct)), 3),
            "node_cpu_pct_p95": round(float(np.quantile(pct, 0.95)), 3),
            "rss_mb": round(max(each.rss_bytes for each in used if each.tool == tool) / 1e6, 1),
        }
    return found


def rows(recording: Recording, kind: str) -> list[dict[str, Any]]:
    """The records of one file of a recording; none when it was never written, as that of faults in a run without one."""
    return [json.loads(line) for line in recording.lines(kind)] if recording.has(kind) else []


def account_closes(signal: Mapping[str, Any]) -> bool:
    """Whether a signal's attempts = emitted + filtered + rate_limited + dropped, and all emitted were drained."""
    account = signal["account"]
    parts = account["emitted"] + account["filtered"] + account["rate_limited"] + account["dropped"]
    return bool(account["attempts"] == parts and account["emitted"] == signal["drained"])
