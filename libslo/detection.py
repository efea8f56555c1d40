"""Ground truth against detection: what was injected, what was noticed, how soon, and what was noticed without a cause. Pure.

Reads fault labels, as libslo.evaluation does, and decides nothing.

An injection is a stretch of time in which faults were on (faults that overlap are one). It moved an SLI when of the requests that
ended in it at least `min_events` there were, and the share of bad ones reached the objective's budget x the policy's lowest burn
rate: with an objective of 95 % and a burn rate of 3, 15 %. One that did not is neither found nor missed: it is counted apart.
An episode belongs to the injection in which, or within `grace_s` of whose end, it was detected; the first one is its detection,
every further one a duplicate; one that belongs to none is a false alarm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libslo.samples import fault_intervals
from libslo.signals import Objective, sli
from libslo.slo import BurnPolicy, parse_timestamps
from libslo.statistics import wilson_interval

__all__ = ["DelaySummary", "DetectionSummary", "Injection", "RunDetection", "judge_detection", "judge_requests", "summarize_detection"]


@dataclass(frozen=True)
class Injection:
    """One injection and what became of it. Times in ns since the epoch, delays in s from its begin.

    moved_sli: see the module. delay_event_s: to the episode's detection in event time; delay_arrival_s: to the arrival of its
    incident's line, where that is known. onset_error_s: how much later (or, negative, sooner) than the truth the onset was put.
    named: whether the incident named an expected domain; None without an incident. domains: the expected ones.
    incident_id: of the episode that counts as its detection, "" without one.
    """

    label: str
    begin_ns: int
    end_ns: int
    requests: int
    bad_requests: int
    moved_sli: bool
    episodes: int
    delay_event_s: float | None = None
    delay_arrival_s: float | None = None
    onset_error_s: float | None = None
    named: bool | None = None
    domains: tuple[str, ...] = ()
    incident_id: str = ""

    @property
    def detected(self) -> bool:
        """Whether any episode belongs to it."""
        return self.episodes > 0

    @property
    def duplicates(self) -> int:
        """Episodes beyond the first."""
        return max(self.episodes - 1, 0)


@dataclass(frozen=True)
class RunDetection:
    """One run: its injections, and the time without a fault with the ids of the false alarms raised in it.

    windows: no-fault windows, as (length in s, number of false alarms).
    """

    injections: tuple[Injection, ...]
    false_alarms: tuple[str, ...]
    windows: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class DelaySummary:
    """Delays in s: how many, their median and 95th percentile (linear between neighbours); None of none."""

    n: int
    median_s: float | None
    p95_s: float | None


@dataclass(frozen=True)
class DetectionSummary:
    """Many runs. Shares come with n and their Wilson 95 % interval as (share, low, high); share None when n is 0.

    Found and missed are of the injections that moved an SLI; those that did not are `no_violation`, of which
    `found_without_violation` were found all the same. Delays are of all that were found.
    """

    injections: int
    no_violation: int
    found_without_violation: int
    violations: int
    found: int
    missed: int
    found_share: tuple[float | None, float, float]
    named: int
    duplicates: int
    delay_event: DelaySummary
    delay_arrival: DelaySummary
    onset_error: DelaySummary
    false_alarms: int
    no_fault_windows: int
    alarmed_windows: int
    alarmed_share: tuple[float | None, float, float]
    no_fault_hours: float
    false_alarms_per_hour: float | None


def judge_requests(events: Iterable[Mapping[str, Any]], objectives: Mapping[str, Objective], service: str) -> list[tuple[int, bool]]:
    """(time at which it ended in ns, whether it missed any objective) of each request of a service, from its slo-events."""
    found: dict[str, tuple[int, bool]] = {}
    for event in events:
        objective = objectives.get(event["sli_name"])
        if event["service"] != service or objective is None:
            continue
        bad = not sli(event["sli_name"]).meets(event["sli_value"], objective.threshold)
        _, bad_before = found.get(event["request_id"], (0, False))
        found[event["request_id"]] = (int(parse_timestamps([event["timestamp"]])[0]), bad or bad_before)
    return list(found.values())


def judge_detection(
    windows: Iterable[Mapping[str, Any]],
    episodes: Iterable[Mapping[str, Any]],
    incidents: Iterable[Mapping[str, Any]],
    requests: Iterable[tuple[int, bool]],
    policy: BurnPolicy,
    *,
    begin_ns: int,
    end_ns: int,
    budget: float = 0.05,
    grace_s: float = 5.0,
    window_s: float = 60.0,
    arrivals: Mapping[str, int] | None = None,
) -> RunDetection:
    """Judge one run of one service, observed from begin_ns to end_ns.

    windows, episodes, incidents: fault-window, incident-episode and incident-attribution objects in any order (of an episode both
    records or either). requests: (time at which it ended in ns, whether it missed an objective). budget: the share of bad requests
    that the objective allows. grace_s: requests that began in a fault end after it, and are noticed later still. window_s: the time
    without a fault is cut into windows of about this length. arrivals: by incident_id, when the incident's line arrived (ns).
    """
    ends = np.array(sorted(requests, key=lambda pair: pair[0]) or np.empty((0, 2)), np.int64)
    found = {episode["incident_id"]: episode for episode in episodes if begin_ns <= episode["detected_unix_nano"] <= end_ns}
    domains = {incident["incident_id"]: incident["predicted_fault_domain"] for incident in incidents}
    grace_ns = int(grace_s * 1e9)
    stretches = _stretches(windows, end_ns)
    owned: list[list[Mapping[str, Any]]] = [[] for _ in stretches]
    alarms: list[Mapping[str, Any]] = []
    for episode in sorted(found.values(), key=lambda each: (each["detected_unix_nano"], each["incident_id"])):
        at = episode["detected_unix_nano"]
        owners = [i for i, stretch in enumerate(stretches) if stretch.begin_ns <= at <= stretch.end_ns + grace_ns]
        # In the grace of one fault and in the next: the next one's, unless the trouble began before that came on.
        while len(owners) > 1 and episode["begin_unix_nano"] < stretches[owners[-1]].begin_ns - grace_ns:
            owners.pop()
        (owned[owners[-1]] if owners else alarms).append(episode)
    share = min(budget * min(pair.burn_rate for pair in policy.pairs), 1.0)
    injections = []
    for stretch, mine in zip(stretches, owned, strict=True):
        inside = ends[(ends[:, 0] >= stretch.begin_ns) & (ends[:, 0] < stretch.end_ns), 1]
        moved = inside.size >= policy.min_events and float(inside.mean()) >= share
        injections.append(_injection(stretch, mine, inside.size, int(inside.sum()), moved, domains, arrivals or {}))
    return RunDetection(
        tuple(injections),
        tuple(str(episode["incident_id"]) for episode in alarms),
        tuple(_quiet_windows(stretches, alarms, begin_ns, end_ns, grace_ns, window_s)),
    )


@dataclass(frozen=True)
class _Stretch:
    label: str
    begin_ns: int
    end_ns: int
    domains: tuple[str, ...]


def _stretches(windows: Iterable[Mapping[str, Any]], end_ns: int) -> list[_Stretch]:
    """The faults in order of time, those that overlap taken together; one whose end is not told lasts to the end."""
    merged: list[_Stretch] = []
    for fault in fault_intervals(windows):
        end = end_ns if fault.end_ns is None else fault.end_ns
        if merged and fault.begin_ns < merged[-1].end_ns:
            last = merged.pop()
            names = dict.fromkeys([*last.label.split("+"), *fault.label.split("+")])
            merged.append(_Stretch("+".join(names), last.begin_ns, max(last.end_ns, end), last.domains + fault.domains))
        else:
            merged.append(_Stretch(fault.label, fault.begin_ns, end, fault.domains))
    return merged


def _injection(
    stretch: _Stretch,
    episodes: Sequence[Mapping[str, Any]],
    requests: int,
    bad: int,
    moved: bool,
    domains: Mapping[str, str],
    arrivals: Mapping[str, int],
) -> Injection:
    facts = (stretch.label, stretch.begin_ns, stretch.end_ns, requests, bad, moved, len(episodes))
    if not episodes:
        return Injection(*facts, domains=stretch.domains)
    first = episodes[0]
    arrival = arrivals.get(first["incident_id"])
    domain = domains.get(first["incident_id"])
    return Injection(
        *facts,
        delay_event_s=(first["detected_unix_nano"] - stretch.begin_ns) / 1e9,
        delay_arrival_s=None if arrival is None else (arrival - stretch.begin_ns) / 1e9,
        onset_error_s=(first["begin_unix_nano"] - stretch.begin_ns) / 1e9,
        named=None if domain is None else domain in stretch.domains,
        domains=stretch.domains,
        incident_id=str(first["incident_id"]),
    )


def _quiet_windows(
    stretches: Sequence[_Stretch], alarms: Sequence[Mapping[str, Any]], begin_ns: int, end_ns: int, grace_ns: int, window_s: float
) -> Iterable[tuple[float, int]]:
    edges = [begin_ns, *(edge for each in stretches for edge in (each.begin_ns, each.end_ns + grace_ns)), end_ns]
    times = [episode["detected_unix_nano"] for episode in alarms]
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end <= begin:
            continue
        count = max(1, round((end - begin) / 1e9 / window_s))
        borders = [begin + (end - begin) * i // count for i in range(count + 1)]
        for i, (low, high) in enumerate(itertools.pairwise(borders)):
            last = i == count - 1
            yield (high - low) / 1e9, sum(low <= at < high or (last and at == high) for at in times)


def summarize_detection(runs: Iterable[RunDetection]) -> DetectionSummary:
    """The figures of many runs together."""
    runs = list(runs)
    injections = [injection for run in runs for injection in run.injections]
    moved = [injection for injection in injections if injection.moved_sli]
    unmoved = [injection for injection in injections if not injection.moved_sli]
    found = sum(injection.detected for injection in moved)
    windows = [window for run in runs for window in run.windows]
    alarmed = sum(alarms > 0 for _, alarms in windows)
    false_alarms = sum(len(run.false_alarms) for run in runs)
    hours = sum(length_s for length_s, _ in windows) / 3600
    return DetectionSummary(
        injections=len(injections),
        no_violation=len(unmoved),
        found_without_violation=sum(injection.detected for injection in unmoved),
        violations=len(moved),
        found=found,
        missed=len(moved) - found,
        found_share=_share(found, len(moved)),
        named=sum(injection.named is True for injection in moved),
        duplicates=sum(injection.duplicates for injection in injections),
        delay_event=_delays([injection.delay_event_s for injection in injections]),
        delay_arrival=_delays([injection.delay_arrival_s for injection in injections]),
        onset_error=_delays([injection.onset_error_s for injection in injections]),
        false_alarms=false_alarms,
        no_fault_windows=len(windows),
        alarmed_windows=alarmed,
        alarmed_share=_share(alarmed, len(windows)),
        no_fault_hours=hours,
        false_alarms_per_hour=false_alarms / hours if hours else None,
    )


def _share(successes: int, n: int) -> tuple[float | None, float, float]:
    return (successes / n if n else None, *wilson_interval(successes, n))


def _delays(values: Iterable[float | None]) -> DelaySummary:
    known = [value for value in values if value is not None]
    if not known:
        return DelaySummary(0, None, None)
    return DelaySummary(len(known), float(np.median(known)), float(np.percentile(known, 95)))
