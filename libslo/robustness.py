"""How attribution holds when its evidence is worse than it was when the model was fitted. Pure: cases in, cases out.

`without` takes signals away, `scaled` makes a service slower throughout, `halves` draws which half of the signals is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from libslo.cases import Case
from libslo.evidence import Evidence, evidence_kinds, judge

__all__ = ["halves", "scaled", "without"]


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


def _each(case: Case, change: Callable[[Sequence[Evidence]], Sequence[Evidence]]) -> Case:
    return replace(case, evidence=tuple(tuple(change(evidence)) for evidence in case.evidence))
