"""Recorded runs as cases: what the evidence was, and what was true. For fitting and evaluation; no answer is made from the truth.

A run is replayed through collector and incident engine once; of every incident all the evidence is kept that the engine would have
asked a model about, bucket by bucket until its time to settle is over. Any model can then be judged on it without another replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from libslo.attribution import UNKNOWN, Verdict
from libslo.detection import Injection, judge_detection, judge_requests
from libslo.errors import InputError
from libslo.evidence import Evidence, evidence_kinds, judge
from libslo.incidents import IncidentEngine, IncidentSettings
from libslo.jsonl import decode_lines
from libslo.recordings import Recording
from libslo.replay import collected_records
from libslo.signals import slis
from libslo.slo import burn_policy, parse_objective

__all__ = [
    "Case",
    "Run",
    "change_evidence",
    "find_recordings",
    "read_run",
    "read_runs",
    "recorded",
    "recording_settings",
    "recording_stream",
    "scaled",
]

_QUIET_NS = 3_000_000_000  # length of a window without a fault, about what an incident's evidence covers
_POLICY = "lab"
_LEAD_NS = 3_000_000_000  # of a phase, before its first such window: something to compare with


@dataclass(frozen=True)
class Case:
    """One incident, or one window in which there was none. expected: the domains of the faults that were on, () without a fault.

    evidence: what a model is asked, in order of time; it answers with the first that is clear, at the latest with the last.
    delay_s: from the begin of the fault to the detection, in event time; None where nothing was injected.
    """

    name: str
    expected: tuple[str, ...]
    evidence: tuple[tuple[Evidence, ...], ...]
    delay_s: float | None = None


@dataclass(frozen=True)
class Run:
    """One recorded run. found: injections that were noticed. quiet: windows without a fault. alarms: incidents without one.

    missed: injections that moved an SLI and were not noticed. unmoved: injections that moved none (some of them in `found`).
    """

    name: str
    scenario: str
    severity: str
    seed: int | None
    found: tuple[Case, ...]
    missed: tuple[Injection, ...]
    unmoved: int
    quiet: tuple[Case, ...]
    alarms: tuple[Case, ...]
    injections: tuple[Injection, ...]
    sha256: str  # of the recording's manifest, which has those of its files
    windows: tuple[tuple[float, int], ...] = ()  # time without a fault, as (length in s, number of false alarms)


def change_evidence(case: Case, change: Callable[[Sequence[Evidence]], Sequence[Evidence]]) -> Case:
    """The case with each look at its evidence changed."""
    return replace(case, evidence=tuple(tuple(change(evidence)) for evidence in case.evidence))


def scaled(case: Case, factor: float) -> Case:
    """The case of a service for which everything takes, or happens, `factor` times as much, fault or not. Ratios stay."""
    kinds = evidence_kinds()

    def grow(each: Evidence) -> Evidence:
        kind = kinds[each.signal]
        if kind.unit == "ratio":
            return each
        by = factor if kind.worse == "higher" else 1 / factor
        return judge(kind, each.value * by, None if each.baseline is None else each.baseline * by)

    return change_evidence(case, lambda evidence: sorted(map(grow, evidence), key=lambda each: -each.level))


def find_recordings(places: Sequence[str | Path]) -> list[Path]:
    """The recordings that the places are, or have directly in them, by name. InputError when a place has none."""
    found: list[Path] = []
    for place in map(Path, places):
        here = [place] if (place / "manifest.json").is_file() else sorted(path.parent for path in place.glob("*/manifest.json"))
        if not here:
            raise InputError("no recording in it", source=str(place), hint="a directory with a manifest.json, or one that has such in it")
        found += here
    return found


def read_run(path: Path, service: str = "rag-service") -> Run:
    """Replay what one service of a recording saw, with the objectives that it was recorded with. InputError when it is no whole one."""
    recording = Recording(path)
    asked: list[tuple[Evidence, ...]] = []

    def ask(evidence: Sequence[Evidence]) -> Verdict:
        asked.append(tuple(evidence))
        return Verdict(UNKNOWN, 0.0, ())

    episodes: list[dict[str, Any]] = []
    settings = recording_settings(recording, ask)
    engine = IncidentEngine(settings, episodes.append)
    phases = recording.manifest.get("phases", [])
    due = [(at, begin) for begin, at in _quiet_windows(phases)]
    events: list[dict[str, Any]] = []
    evidence: dict[str, tuple[tuple[Evidence, ...], ...]] = {}
    quiet: list[Case] = []

    def note(incidents: Iterator[Any]) -> None:
        for incident in incidents:
            evidence[incident.value["incident_id"]] = tuple(asked)
            asked.clear()

    for kind, value in recording_stream(recording):
        if kind == "slo-event":
            if value["service"] != service:
                continue  # only one service has episodes, so that what was asked is known to be about it
            events.append(value)
        note(engine.feed(kind, value))
        while due and (engine.latest_ns or 0) >= due[0][0]:
            due.pop(0)
            quiet.append(Case(f"{path.name}/quiet-{len(quiet)}", (), (tuple(engine.evidence_now(service, _QUIET_NS)),)))
    note(engine.finish())
    judged = judge_detection(
        [value for _, value in recorded(recording, "fault-window")],
        episodes,
        (),
        judge_requests(events, settings.objectives, service),
        settings.policy,
        begin_ns=phases[0]["begin_unix_nano"] if phases else 0,
        end_ns=phases[-1]["end_unix_nano"] if phases else engine.latest_ns or 0,
    )
    found = [
        Case(f"{path.name}/{number}", tuple(dict.fromkeys(injection.domains)), evidence[injection.incident_id], injection.delay_event_s)
        for number, injection in enumerate(judged.injections)
        if injection.detected
    ]
    manifest = recording.manifest
    return Run(
        path.name,
        manifest.get("scenario", ""),
        manifest.get("severity", ""),
        manifest.get("seed"),
        tuple(found),
        tuple(each for each in judged.injections if each.moved_sli and not each.detected),
        sum(not each.moved_sli for each in judged.injections),
        tuple(quiet),
        tuple(Case(f"{path.name}/alarm-{i}", (), evidence[each]) for i, each in enumerate(judged.false_alarms)),
        judged.injections,
        _digest(path / "manifest.json"),
        judged.windows,
    )


def read_runs(places: Sequence[str | Path], note: Callable[[str], None]) -> list[tuple[Path, Run]]:
    """Replay the recordings in the places, by name; says how far it is. InputError when there is none, or one without its truth."""
    paths = sorted(find_recordings(places), key=lambda path: path.name)
    runs = []
    for number, path in enumerate(paths, 1):
        Recording(path).check_labelled()
        runs.append((path, read_run(path)))
        if number % 20 == 0 or number == len(paths):
            note(f"{number} of {len(paths)} recordings replayed")
    return runs


def recording_settings(recording: Recording, attribute: Callable[[Sequence[Evidence]], Verdict]) -> IncidentSettings:
    """Settings of an incident engine with the objectives that the recording was made with. attribute: who is asked what the evidence is."""
    objectives = {name: each.objective for name, each in slis().items() if each.objective}
    objectives.update(parse_objective(text) for text in recording.manifest.get("plan", {}).get("objectives", ()))
    return IncidentSettings(burn_policy(_POLICY), objectives, attribute)


def _quiet_windows(phases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """(begin, end) in ns of the windows that fit into the baseline phases."""
    for phase in phases:
        if phase["name"] == "baseline":
            begin = phase["begin_unix_nano"] + _LEAD_NS
            while begin + _QUIET_NS <= phase["end_unix_nano"]:
                yield begin, begin + _QUIET_NS
                begin += _QUIET_NS


def recording_stream(recording: Recording) -> Iterator[tuple[str, Any]]:
    """What the attributor reads; what the agent attached comes first, where its reports were kept beside the stream."""
    if "agent-report" not in recording.kinds("input"):
        yield from islice(recorded(recording, "agent-report"), 1)
    yield from collected_records(recording)


def recorded(recording: Recording, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(contract, object) of each line of one of the recording's files, as they stand in it; nothing when it has no such file."""
    if recording.has(kind):
        for found, value, *_ in decode_lines(recording.lines(kind), (kind,), f"{recording.directory}/{kind}.jsonl.gz"):
            yield found, value


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
