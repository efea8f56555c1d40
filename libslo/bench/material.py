"""What a bundle is made of: answers to known faults, what was detected, what the tools cost, and what an incident looked like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libslo.evaluation import Prediction

__all__ = ["Answer", "Material", "OverheadRow", "Timeline", "TruthRow", "runs_per_domain"]


@dataclass(frozen=True)
class Answer:
    """A prediction and where it is from."""

    prediction: Prediction
    run: str
    scenario: str
    severity: str


@dataclass(frozen=True)
class TruthRow:
    """One stretch of a run: a fault was on (or several), or none. Times in ns since the epoch, lengths and delays in s.

    moved_sli: whether the fault hurt enough to be called a violation, see libslo.detection. episodes: how many were opened in it.
    """

    run: str
    scenario: str
    severity: str
    label: str  # "" without a fault
    begin_unix_ns: int | None
    length_s: float
    moved_sli: bool
    episodes: int
    delay_s: float | None = None


@dataclass(frozen=True)
class OverheadRow:
    """What a tool used since the sample before: CPU in percent of all CPUs of its node, and its resident memory now."""

    run: str
    scenario: str
    tool: str
    ts_unix_ns: int
    node_cpu_pct: float
    rss_bytes: int


@dataclass(frozen=True)
class Timeline:
    """One incident second by second (or window by window): t_s is the middle of each, counted from the fault's begin.

    series: (signal, unit, value at each t_s or None). ends_s, detected_s: when the fault went off, and when it was noticed.
    """

    domain: str
    case: str
    t_s: tuple[float, ...]
    series: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    ends_s: float | None
    detected_s: float | None


@dataclass(frozen=True)
class Material:
    """Everything that a bundle is made of.

    no_overhead: why there is no overhead table, "" when there is one. datasets: name to sha256. provenance: facts about
    recordings, model and settings, as they go into provenance.json. left_out: what gave no answer, counted by reason.
    """

    answers: tuple[Answer, ...]
    truth: tuple[TruthRow, ...]
    overhead: tuple[OverheadRow, ...]
    no_overhead: str
    timelines: tuple[Timeline, ...]
    datasets: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def predictions(self) -> list[Prediction]:
        """The predictions of all answers."""
        return [answer.prediction for answer in self.answers]


def runs_per_domain(answers: Sequence[Answer]) -> dict[str, int]:
    """In how many runs each domain was the only one that was actual."""
    pairs = {(answer.run, answer.prediction.actual[0]) for answer in answers if len(answer.prediction.actual) == 1}
    return dict(sorted(Counter(domain for _, domain in pairs).items()))
