"""How attribution holds when its evidence is worse than it was when the model was fitted. Pure: cases in, cases out.

`without` takes signals away, `scaled` makes a service slower throughout, `halves` draws which half of the signals is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from libslo.attribution import UNKNOWN
from libslo.cases import Case, Run
from libslo.evaluation import accuracy
from libslo.evidence import Evidence, evidence_kinds, judge
from libslo.predictions import Decide, predict_runs

__all__ = ["halves", "robustness_report", "scaled", "without"]

_SURE = 0.9


def without(case: Case, signals: frozenset[str]) -> Case:
    """The case as it is when nobody reports these signals."""
    return _each(case, lambda evidence: [each for each in evidence if each.signal not in signals])


def scaled(case: Case, factor: float) -> Case:
    """The case of a service for which everything takes, or happens, `factor` times as much, fault or not. Ratios stay."""
    kinds = evidence_kinds()

    def grow(each: Evidence) -> Evidence:
        kind = kinds[each.signal]
        if kind.unit == "ratio":
            return each
        by = factor if kind.worse == "higher" else 1 / factor
        return judge(kind, each.value * by, None if each.baseline is None else each.baseline * by)

    return _each(case, lambda evidence: sorted(map(grow, evidence), key=lambda each: -each.level))


def halves(rng: np.random.Generator, count: int) -> Iterator[frozenset[str]]:
    """`count` draws of one half of all signals."""
    names = sorted(evidence_kinds())
    for _ in range(count):
        yield frozenset(rng.permutation(names)[: len(names) // 2].tolist())


def robustness_report(runs: Sequence[Run], decide: Decide, rng: np.random.Generator, draws: int = 20) -> dict[str, Any]:
    """Accuracy as it is, with each signal missing in turn, with everything 3 times as slow, and answers with half the signals missing.

    With half of them missing the right answers are two: the domain, and `unknown`. wrong_and_sure: neither, at 0.9 or more.
    """

    def right(change: Callable[[Case], Case] = lambda case: case) -> tuple[int, int]:
        share = accuracy(list(predict_runs(runs, decide, change)))
        return share.right, share.n

    as_is, n = right()
    signals = sorted({each.signal for run in runs for case in run.found for each in case.evidence[-1]})
    lost = {name: round((as_is - right(partial(without, signals=frozenset({name})))[0]) / max(n, 1), 4) for name in signals}
    plain = {each.case: each.predicted for each in predict_runs(runs, decide)}
    slower = {each.case: each.predicted for each in predict_runs(runs, decide, partial(scaled, factor=3.0))}
    half = [each for missing in halves(rng, draws) for each in predict_runs(runs, decide, partial(without, signals=missing))]
    mine = [each for each in half if len(each.actual) == 1]
    wrong = [each for each in mine if each.predicted not in (each.actual[0], UNKNOWN)]
    return {
        "n": n,
        "right": as_is,
        "accuracy_lost_without": dict(sorted(lost.items(), key=lambda item: (-item[1], item[0]))),
        "changed_when_scaled_by_3": sum(plain[name] != said for name, said in slower.items()),
        "cases": len(plain),
        "half_missing": {
            "draws": draws,
            "n": len(mine),
            "right": sum(each.predicted == each.actual[0] for each in mine),
            "unknown": sum(each.predicted == UNKNOWN and each.actual[0] != UNKNOWN for each in mine),
            "wrong": len(wrong),
            "wrong_and_sure": sum(each.confidence >= _SURE for each in wrong),
        },
    }


def _each(case: Case, change: Callable[[Sequence[Evidence]], Sequence[Evidence]]) -> Case:
    return replace(case, evidence=tuple(tuple(change(evidence)) for evidence in case.evidence))
