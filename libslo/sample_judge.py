"""Incidents from fault-samples: windows of a service that are summed up already. Reads no label.

A window in which an indicator surely (by the lower bound of the bad requests' share) burns its error budget at the policy's lowest
rate or faster begins an episode, and one that does not ends it. The evidence of a window is its signals against the median of the
service's latest windows outside episodes.
Pure: no clock, no files.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libslo.answers import Incident, incident_record, update_rule, what_changed
from libslo.episodes import EpisodeFacts, Recovery
from libslo.evidence import Evidence, evidence_kinds, judge
from libslo.incidents import IncidentSettings
from libslo.slo import BurnState, parse_timestamps
from libslo.statistics import wilson_interval

__all__ = ["SampleJudge"]

_BASELINE_WINDOWS = 12
_LEAST_WINDOWS = 2  # fewer are no baseline
_MOST_SERVICES = 2000
_NO_CHANCE = 1 - 1e-9  # the lower bound of a share is below the share itself, by more than rounding
_CLUSTER = "unknown"  # a fault-sample does not say


@dataclass
class _Service:
    healthy: deque[Sequence[Mapping[str, Any]]] = field(default_factory=lambda: deque(maxlen=_BASELINE_WINDOWS))
    said: Incident | None = None
    judged_ns: int = 0


class SampleJudge:
    """Feed fault-sample objects in order of time; `feed` gives an Incident when an episode opens, and updates where they are asked for."""

    def __init__(self, settings: IncidentSettings) -> None:
        self._settings = settings
        self._burn_rate = min(pair.burn_rate for pair in settings.policy.pairs)
        self._budgets = {name: 1 - objective.ratio for name, objective in settings.objectives.items()}
        self._least = {name: budget * self._burn_rate for name, budget in self._budgets.items()}  # a bad share that burns
        self._services: OrderedDict[str, _Service] = OrderedDict()

    def feed(self, sample: Mapping[str, Any]) -> Incident | None:
        """Take one sample."""
        service = self._services.get(sample["service"]) or self._new_service(sample["service"])
        self._services.move_to_end(sample["service"])
        burning = self._burning(sample["slis"])
        if burning is None:
            service.healthy.append(sample["signals"])
            service.said = None
        elif service.said is None:
            return self._judge(service, sample, *burning)
        elif self._settings.update_interval_ns is not None:
            return self._update(service, sample, burning)
        return None

    def _new_service(self, name: str) -> _Service:
        while len(self._services) >= _MOST_SERVICES:
            self._services.popitem(last=False)
        service = self._services[name] = _Service()
        return service

    def _burning(self, slis: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
        """The indicator that burns hottest, and its burn rate, when that is enough for an episode."""
        worst, name = 0.0, ""
        for row in slis:
            bad = row.get("bad")
            if bad and (least := self._least.get(row["sli"])) is not None:
                share = bad / row["requests"]
                if share < least * _NO_CHANCE:
                    continue
                budget = self._budgets[row["sli"]]
                rate = share / budget if budget > 0 else float("inf")
                if rate > worst and wilson_interval(bad, row["requests"])[0] >= least:
                    worst, name = rate, row["sli"]
        return (name, worst) if name else None

    def _judge(self, service: _Service, sample: Mapping[str, Any], indicator: str, burn: float) -> Incident:
        end_ns = int(parse_timestamps([sample["timestamp"]])[0])
        begin_ns = end_ns - int(sample["window_ms"] * 1e6)
        evidence = self._evidence(service, sample["signals"])
        verdict = self._settings.attribute(evidence)
        pair = min(self._settings.policy.pairs, key=lambda pair: pair.burn_rate)
        state = BurnState(end_ns, True, pair, burn, burn)
        digest = hashlib.sha256(f"{sample['service']}\0{indicator}\0{end_ns}".encode()).hexdigest()[:16]
        facts = EpisodeFacts(
            f"inc-{digest}", sample["service"], _CLUSTER, "", indicator, begin_ns, state, state, Recovery(self._settings.policy.closing, 0)
        )
        value = incident_record(facts, state, end_ns, evidence, verdict, ())
        del value["namespace"]
        service.said = Incident(value, begin_ns, end_ns, tuple(evidence), verdict)
        service.judged_ns = end_ns
        return service.said

    def _update(self, service: _Service, sample: Mapping[str, Any], burning: tuple[str, float]) -> Incident | None:
        before, judged_ns = service.said, service.judged_ns
        if before is None or int(parse_timestamps([sample["timestamp"]])[0]) - judged_ns < (self._settings.update_interval_ns or 0):
            return None
        now = self._judge(service, sample, *burning)
        changes = what_changed(before, now.verdict, now.evidence, update_rule())
        if not changes:
            service.said = before
            return None
        value = {**now.value, "incident_id": before.value["incident_id"]}
        service.said = Incident(value, before.onset_unix_ns, before.detected_unix_ns, now.evidence, now.verdict, changes)
        return service.said

    def _evidence(self, service: _Service, signals: Sequence[Mapping[str, Any]]) -> list[Evidence]:
        kinds = evidence_kinds()
        past: dict[str, list[float]] = {}
        for rows in service.healthy:
            for row in rows:
                past.setdefault(row["signal"], []).append(row["value"])
        found = {}
        for row in signals:
            kind = kinds.get(row["signal"])
            if kind is not None:
                before = past.get(kind.signal, [])
                baseline = statistics.median(before) if len(before) >= _LEAST_WINDOWS else None
                found[kind.signal] = judge(kind, row["value"], baseline)
        return sorted((found[name] for name in kinds if name in found), key=lambda each: -each.level)
