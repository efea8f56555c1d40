"""How well the burn rate that was said when an episode opened foretold the one that clients felt while the fault was on. Pure.

The truth is the clients': of the requests sent while the fault was on, the share that missed the indicator's objective, over the
objective's budget. Two predictions are judged, both as they were said at the detection: the incident's `slo_impact.burn_rate`, which
is that of the alert's long window, and the episode's bad requests over its requests since the trouble began, over the same budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libslo.signals import Objective, sli

__all__ = ["BurnPrediction", "burn_predictions", "felt_burn_rate", "missed_objective", "relative_errors"]

_GRACE_NS = 5_000_000_000  # as libslo.detection: an episode of a fault may be detected this long after it


@dataclass(frozen=True)
class BurnPrediction:
    """Burn rates of one episode: of the alert's window, since the trouble began, and what the clients felt."""

    incident_id: str
    said: float
    since_onset: float | None
    felt: float


def burn_predictions(
    faults: Sequence[tuple[int, int]],
    episodes: Iterable[Mapping[str, Any]],
    incidents: Iterable[Mapping[str, Any]],
    requests: Sequence[Mapping[str, Any]],
    objectives: Mapping[str, Objective],
) -> Iterator[BurnPrediction]:
    """One for each fault whose first episode has an incident and whose clients felt anything.

    faults: (begin, end) in ns. episodes, incidents, requests: incident-episode, incident-attribution and load-result objects.
    """
    said = {each["incident_id"]: each["slo_impact"]["burn_rate"] for each in reversed(list(incidents))}
    opened = sorted((each for each in episodes if each["state"] == "open"), key=lambda each: each["detected_unix_nano"])
    for begin_ns, end_ns in faults:
        episode = next((each for each in opened if begin_ns <= each["detected_unix_nano"] <= end_ns + _GRACE_NS), None)
        if episode is None or episode["incident_id"] not in said or episode["sli"] not in objectives:
            continue
        objective = objectives[episode["sli"]]
        felt = felt_burn_rate(requests, episode["sli"], objective, begin_ns, end_ns)
        if felt:
            counted = episode["requests"]
            since = episode["bad_requests"] / counted / (1 - objective.ratio) if counted else None
            yield BurnPrediction(episode["incident_id"], said[episode["incident_id"]], since, felt)


def relative_errors(predicted: Iterable[float | None], felt: Iterable[float]) -> list[float]:
    """|predicted - felt| / felt of each pair that has a prediction."""
    return [abs(value - truth) / truth for value, truth in zip(predicted, felt, strict=True) if value is not None]


def felt_burn_rate(requests: Iterable[Mapping[str, Any]], indicator: str, objective: Objective, begin_ns: int, end_ns: int) -> float | None:
    """Bad share of the requests sent between the two times over the budget; None without any, or for an indicator clients cannot see."""
    values = [value for each in requests if begin_ns <= each.get("sent_unix_ns", 0) < end_ns for value in _felt(each, indicator)]
    if not values or objective.ratio >= 1:
        return None
    bad = sum(not sli(indicator).meets(value, objective.threshold) for value in values)
    return bad / len(values) / (1 - objective.ratio)


def missed_objective(request: Mapping[str, Any], objectives: Mapping[str, Objective]) -> bool:
    """Whether a client saw any objective missed."""
    return any(not sli(name).meets(value, objective.threshold) for name, objective in objectives.items() for value in _felt(request, name))


def _felt(request: Mapping[str, Any], indicator: str) -> Iterator[float]:
    """What a client saw of an indicator: of ttft_ms only requests with a token, of error_rate 1 for a failure."""
    if indicator == "error_rate":
        yield float(bool(request.get("error")) or request.get("status", 0) >= 400)
    elif indicator == "ttft_ms" and "first_token_unix_ns" in request:
        yield (request["first_token_unix_ns"] - request["sent_unix_ns"]) / 1e6
