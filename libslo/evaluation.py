"""How right the attributor was. The only code that reads fault labels.

A label is what the injector says was on when a request ran. What an incident should have said is the label that most of
the bad requests in its window carry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from libslo.attribution import UNKNOWN
from libslo.incidents import Incident
from libslo.scenarios import expected_domains
from libslo.slo import parse_timestamps
from libslo.statistics import wilson_interval

__all__ = ["Evaluation", "LabelBook"]

_COVERED_AT = 0.10  # an expected domain counts as found from this posterior on


class LabelBook:
    """The labels of a stream's slo-events by service and time."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, str, str]]] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """Note one slo-event; one without a fault_label is passed over."""
        label = (event.get("labels") or {}).get("fault_label")
        if label:
            ts = int(parse_timestamps([event["timestamp"]])[0])
            self._rows.setdefault(event["service"], []).append((ts, label, event["status"]))

    @property
    def labelled(self) -> bool:
        """True when any event had a label."""
        return bool(self._rows)

    def label(self, service: str, begin_ns: int, end_ns: int) -> str:
        """The most frequent label between the two times, bad requests first; "" when there is none."""
        rows = self._rows.get(service, [])
        rows.sort()
        times = [row[0] for row in rows]
        window = rows[bisect_left(times, begin_ns) : bisect_right(times, end_ns)]
        counts = Counter(label for _, label, status in window if status != "ok" and label != "baseline") or Counter(
            label for _, label, _ in window
        )
        return max(sorted(counts), key=lambda label: counts[label], default="")

    def labels(self, service: str) -> set[str]:
        """All labels of a service."""
        return {label for _, label, _ in self._rows.get(service, [])}


@dataclass
class Evaluation:
    """Collects (expected domains, incident) pairs and says how many were right."""

    pairs: list[tuple[tuple[str, ...], Incident]] = field(default_factory=list)

    def note(self, label: str, incident: Incident) -> None:
        """Note an incident and the label that was true in its window."""
        self.pairs.append((expected_domains(label), incident))

    def confusion(self) -> Iterator[tuple[str, str, int]]:
        """Rows (actual, predicted, count); several actual domains are joined with +, none is "none"."""
        counts = Counter(("+".join(expected) or "none", incident.verdict.domain) for expected, incident in self.pairs)
        for (actual, predicted), count in sorted(counts.items()):
            yield actual, predicted, count

    def summary(self) -> dict[str, Any]:
        """Accuracy with its Wilson 95 % interval, partial and coverage accuracy, false accusations, and the majority baseline."""
        faulty = [(expected, incident) for expected, incident in self.pairs if expected]
        quiet = [incident for expected, incident in self.pairs if not expected]
        single = [(expected[0], incident.verdict.domain) for expected, incident in faulty if len(expected) == 1]
        correct = sum(actual == predicted for actual, predicted in single)
        partial = sum(incident.verdict.domain in expected for expected, incident in faulty)
        wanted = [
            (domain, {h.domain: h.posterior for h in incident.verdict.hypotheses}) for expected, incident in faulty for domain in expected
        ]
        covered = sum(found.get(domain, 0.0) >= _COVERED_AT for domain, found in wanted)
        majority = max(Counter(actual for actual, _ in single).values(), default=0)
        return {
            "incidents": len(self.pairs),
            "single_fault": _proportion(correct, len(single)),
            "single_fault_always_majority": _proportion(majority, len(single)),
            "partial": _proportion(partial, len(faulty)),
            "coverage": _proportion(covered, len(wanted)),
            "abstained": sum(incident.verdict.domain == UNKNOWN for _, incident in faulty),
            "accused_without_fault": sum(incident.verdict.domain != UNKNOWN for incident in quiet),
            "incidents_without_fault": len(quiet),
        }


def _proportion(successes: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(successes, n)
    return {"n": n, "right": successes, "share": round(successes / n, 4) if n else None, "wilson95": [round(low, 4), round(high, 4)]}
