"""How attribution holds when its evidence is worse than it was when the model was fitted. Pure: cases in, cases out.

`without` takes signals away, `halves` draws which half of the signals is missing; how a service is made slower is in cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from libslo.attribution import UNKNOWN
from libslo.cases import Case, Run, change_evidence, scaled
from libslo.evaluation import accuracy, named
from libslo.evidence import evidence_kinds
from libslo.predictions import Decide, predict_runs

__all__ = ["halves", "robustness_report", "without"]

_SURE = 0.9


def without(case: Case, signals: frozenset[str]) -> Case:
    """The case as it is when nobody reports these signals."""
    return change_evidence(case, lambda evidence: [each for each in evidence if each.signal not in signals])


def halves(rng: np.random.Generator, count: int) -> Iterator[frozenset[str]]:
    """`count` draws of one half of all signals."""
    names = sorted(evidence_kinds())
    for _ in range(count):
        yield frozenset(rng.permutation(names)[: len(names) // 2].tolist())


def robustness_report(runs: Sequence[Run], decide: Decide, rng: np.random.Generator, draws: int = 20) -> dict[str, Any]:
    """Accuracy as it is, with each signal missing in turn, with everything 3 times as slow, and answers with half the signals missing.

    Scaled: of two faults at once chance decides which is said first, so changes of that and of all that is named are told apart.
    With half of them missing the right answers are two: the domain, and `unknown`. wrong_and_sure: neither, at 0.9 or more.
    """

    def right(change: Callable[[Case], Case] = lambda case: case) -> tuple[int, int]:
        share = accuracy(list(predict_runs(runs, decide, change)))
        return share.right, share.n

    as_is, n = right()
    signals = sorted({each.signal for run in runs for case in run.found for each in case.evidence[-1]})
    lost = {name: round((as_is - right(partial(without, signals=frozenset({name})))[0]) / max(n, 1), 4) for name in signals}
    slower = list(zip(predict_runs(runs, decide), predict_runs(runs, decide, partial(scaled, factor=3.0)), strict=True))
    half = [each for missing in halves(rng, draws) for each in predict_runs(runs, decide, partial(without, signals=missing))]
    mine = [each for each in half if len(each.actual) == 1]
    wrong = [each for each in mine if each.predicted not in (each.actual[0], UNKNOWN)]
    return {
        "n": n,
        "right": as_is,
        "accuracy_lost_without": dict(sorted(lost.items(), key=lambda item: (-item[1], item[0]))),
        "first_changed_when_scaled_by_3": sum(before.predicted != after.predicted for before, after in slower),
        "named_changed_when_scaled_by_3": sum(named(before) != named(after) for before, after in slower),
        "cases": len(slower),
        "half_missing": {
            "draws": draws,
            "n": len(mine),
            "right": sum(each.predicted == each.actual[0] for each in mine),
            "unknown": sum(each.predicted == UNKNOWN and each.actual[0] != UNKNOWN for each in mine),
            "wrong": len(wrong),
            "wrong_and_sure": sum(each.confidence >= _SURE for each in wrong),
        },
    }
