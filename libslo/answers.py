"""What is said of an episode: the incident object, and whether a later answer is another one.

Pure: no clock, no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from libslo.attribution import UNKNOWN, Verdict
from libslo.episodes import EpisodeFacts
from libslo.evidence import Evidence
from libslo.signals import vocabulary
from libslo.slo import BurnState, format_timestamp

__all__ = ["Incident", "UpdateRule", "incident_record", "update_rule", "what_changed"]

_MOST_BURN = 1e9  # JSON has no infinity
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Incident:
    """An incident-attribution object with what an account wants to know beside it.

    detected_unix_ns: when it was said first. changes: what is new in an update, in words; () the first time.
    unmeasured: signals that the last agent report calls not measured, with its reason; None without any report.
    """

    value: dict[str, Any]
    onset_unix_ns: int
    detected_unix_ns: int
    evidence: tuple[Evidence, ...]
    verdict: Verdict
    changes: tuple[str, ...] = ()
    unmeasured: Mapping[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """What makes an answer another one; see vocabulary/incident-updates.json."""

    named_at: float
    confidence_step: float
    level_step: int
    hold_s: float

    @property
    def hold_ns(self) -> int:
        """hold_s in ns."""
        return int(self.hold_s * 1e9)


@cache
def update_rule() -> UpdateRule:
    """The rule of the vocabulary."""
    row = vocabulary("incident-updates")
    return UpdateRule(row["named_at"], row["confidence_step"], row["level_step"], row["hold_s"])


def what_changed(said: Incident, verdict: Verdict, evidence: Sequence[Evidence], rule: UpdateRule) -> tuple[str, ...]:
    """What of a new answer differs from the one said last, in words; () when nothing that matters does."""
    return tuple(_changes(said, verdict, evidence, rule))


def _changes(said: Incident, verdict: Verdict, evidence: Sequence[Evidence], rule: UpdateRule) -> Iterator[str]:
    before = said.verdict
    if verdict.domain != before.domain:
        yield f"{verdict.domain}, no longer {before.domain}"
    elif abs(verdict.confidence - before.confidence) >= rule.confidence_step - _ROUNDING:
        yield f"confidence {before.confidence:.2f} to {verdict.confidence:.2f}"
    were, are = _named(before, rule), _named(verdict, rule)
    answers = {verdict.domain, before.domain}
    yield from (f"{domain} too" for domain in sorted(are - were - answers))
    yield from (f"{domain} no longer" for domain in sorted(were - are - answers))
    levels = {each.signal: each.level for each in said.evidence}
    now = {each.signal: each.level for each in evidence}
    for name in sorted(levels.keys() | now.keys()):
        step = now.get(name, 0) - levels.get(name, 0)
        if abs(step) >= rule.level_step:
            yield f"{name} {'rose' if step > 0 else 'fell'}"


def _named(verdict: Verdict, rule: UpdateRule) -> set[str]:
    return {h.domain for h in verdict.hypotheses if h.domain != UNKNOWN and h.posterior >= rule.named_at - _ROUNDING}


def incident_record(
    facts: EpisodeFacts, burn: BurnState, now_ns: int, evidence: Sequence[Evidence], verdict: Verdict, examples: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """An incident-attribution object. burn: what it did to the objective; examples: (request id, trace id or "") of bad requests."""
    return {
        "incident_id": facts.incident_id,
        "timestamp": format_timestamp(now_ns),
        "cluster": facts.cluster,
        "namespace": facts.namespace,
        "service": facts.service,
        "predicted_fault_domain": verdict.domain,
        "confidence": round(verdict.confidence, 4),
        "evidence": list(_evidence_rows(evidence)),
        "slo_impact": {
            "sli": facts.sli,
            "burn_rate": round(min(burn.long_burn, _MOST_BURN), 3),
            "window_minutes": max(1, round(burn.pair.long_s / 60, 3)),
        },
        "fault_hypotheses": [
            {"domain": h.domain, "posterior": round(h.posterior, 4), "evidence": list(h.evidence)} for h in verdict.hypotheses
        ],
        "request_ids": [request_id for request_id, _ in examples],
        "trace_ids": [trace_id for _, trace_id in examples if trace_id],
    }


def _evidence_rows(evidence: Sequence[Evidence]) -> Iterator[dict[str, Any]]:
    """Contract rows: the value of every signal and, as `<signal>.baseline`, what it was before."""
    for each in evidence:
        yield {"signal": each.signal, "value": round(each.value, 4), "source": each.source}
        if each.baseline is not None:
            yield {"signal": f"{each.signal}.baseline", "value": round(each.baseline, 4), "source": each.source}
