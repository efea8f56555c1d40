"""Answers to recorded cases beside what was true of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from libslo.attribution import UNKNOWN, Verdict, largest_change
from libslo.cases import Case, Run
from libslo.evaluation import Prediction
from libslo.evidence import Evidence

__all__ = ["Decide", "answer", "predict", "predict_runs"]

Decide = Callable[[Sequence[Evidence]], Verdict]


def answer(case: Case, decide: Decide, clear_at: float = 0.9) -> tuple[Verdict, tuple[Evidence, ...]]:
    """What the attributor would have said, and on what: the first verdict that is clear, at the latest the one at the end of its wait."""
    for evidence in case.evidence:
        verdict = decide(evidence)
        if verdict.domain != UNKNOWN and verdict.confidence >= clear_at:
            break
    return verdict, evidence


def predict(case: Case, decide: Decide) -> Prediction:
    """One case."""
    verdict, evidence = answer(case, decide)
    posteriors = {each.domain: each.posterior for each in verdict.hypotheses}
    return Prediction(
        case=case.name,
        actual=case.expected,
        predicted=verdict.domain,
        posteriors=posteriors,
        ranking=tuple(posteriors),
        largest_z=largest_change(evidence),
        delay_s=case.delay_s,
        synthetic=False,
    )


def predict_runs(runs: Iterable[Run], decide: Decide, change: Callable[[Case], Case] = lambda case: case) -> Iterator[Prediction]:
    """Every injection that was noticed, every window without a fault, and every incident without one; each case changed first."""
    for run in runs:
        for case in (*run.found, *run.quiet, *run.alarms):
            yield predict(change(case), decide)
