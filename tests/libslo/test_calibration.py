"""Calibration: the table, the error and the curve against slow references; what a perfect one shows; ties and nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.calibration import calibration_error, calibration_error_null, kept_at, reliability, risk_coverage
from libslo.estimates import Estimate

# Sixty-fourths: exact in floating point, on the borders of bins too, and with ties.
PAIRS = st.lists(st.tuples(st.integers(0, 64).map(lambda k: k / 64), st.booleans()), max_size=40)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in pairs], np.float64), np.array([r for _, r in pairs], np.bool_)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def slow_bins(pairs: list[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    return [[pair for pair in pairs if low / 10 <= pair[0] < (low + 1) / 10 or (low == 9 and pair[0] == 1)] for low in range(10)]


@given(PAIRS)
def test_the_table(pairs: list[tuple[float, bool]]) -> None:
    """Ten bins: every answer in one of them, with its mean confidence and the number right."""
    table = reliability(*arrays(pairs))
    assert [(each.right.n, each.right.right) for each in table] == [(len(b), sum(r for _, r in b)) for b in slow_bins(pairs)]
    for each, mine in zip(table, slow_bins(pairs), strict=True):
        assert each.confidence == (pytest.approx(sum(p for p, _ in mine) / len(mine)) if mine else None)


@given(PAIRS.filter(bool), st.randoms(use_true_random=False))
def test_the_error(pairs: list[tuple[float, bool]], shuffle: np.random.Generator) -> None:
    """The sum over bins of n_bin/n |right - confidence|, whatever the order; the interval too."""
    slow = sum(abs(sum(r - p for p, r in mine)) for mine in slow_bins(pairs)) / len(pairs)
    found = calibration_error(*arrays(pairs), rng())
    assert found.value == pytest.approx(slow)
    other = list(pairs)
    shuffle.shuffle(other)  # type: ignore[arg-type]
    assert calibration_error(*arrays(other), rng()) == found


@given(PAIRS)
def test_the_curve(pairs: list[tuple[float, bool]]) -> None:
    """Every threshold that occurs once, the answers at or above it; the last one keeps all."""
    curve = risk_coverage(*arrays(pairs))
    assert [each.threshold for each in curve] == sorted({p for p, _ in pairs}, reverse=True)
    for each in curve:
        kept = [r for p, r in pairs if p >= each.threshold]
        assert (each.right.n, each.right.right, each.coverage) == (len(kept), sum(kept), len(kept) / len(pairs))
    assert not curve or curve[-1].coverage == 1


def test_answers_of_one_confidence_stay_together() -> None:
    """At 0.80 of five answers, of which three share the lowest kept confidence, all five are kept."""
    pairs = [(0.9, True), (0.8, True), (0.5, False), (0.5, True), (0.5, True)]
    kept = kept_at(risk_coverage(*arrays(pairs)), 0.8)
    assert kept is not None and (kept.threshold, kept.coverage, kept.right.n, kept.right.right) == (0.5, 1.0, 5, 4)
    kept = kept_at(risk_coverage(*arrays(pairs)), 0.4)
    assert kept is not None and (kept.threshold, kept.right.n, kept.right.right) == (0.8, 2, 2)


def test_the_surest_eight_of_ten() -> None:
    """Ten answers of different confidence: at 0.80 the eight surest, at 0.75 also eight, at 0.90 nine, at 1.00 all."""
    curve = risk_coverage(*arrays([(k / 64, k > 11) for k in range(10, 20)]))
    kept = [kept_at(curve, coverage) for coverage in (0.8, 0.75, 0.9, 1.0)]
    assert [(each.right.n, each.right.right) for each in kept if each] == [(8, 8), (8, 8), (9, 8), (10, 8)]


def test_nothing_is_defined() -> None:
    """No answers: an empty table, no error, no band, no curve."""
    none = arrays([])
    assert [each.right.n for each in reliability(*none)] == [0] * 10
    assert calibration_error(*none, rng()) == Estimate(0, None, None, None)
    assert calibration_error_null(none[0], rng()) is None
    assert risk_coverage(*none) == [] and kept_at([], 0.8) is None


def test_a_perfect_one_is_inside_its_band_and_a_boastful_one_is_not() -> None:
    """Calibrated answers pass in 93 to 99 % of 200 draws at n = 50 (their band reaches to about 0.10); at 0.9 for 0.6 nearly none does."""
    draw = np.random.default_rng(11)
    inside, boasts, ends = 0, 0, []
    for _ in range(200):
        confidence = draw.uniform(0.5, 1, 50)
        band = calibration_error_null(confidence, draw)
        assert band is not None
        found = calibration_error(confidence, draw.random(50) < confidence, draw).value
        boast = calibration_error(np.full(50, 0.9), draw.random(50) < 0.6, draw).value
        boast_band = calibration_error_null(np.full(50, 0.9), draw)
        assert found is not None and boast is not None and boast_band is not None
        inside, boasts = inside + (found <= band[1]), boasts + (boast <= boast_band[1])
        ends.append(band[1])
    assert 186 <= inside <= 199 and boasts <= 4
    assert 0.10 < np.median(ends) < 0.25


def test_confidence_of_zero_and_one() -> None:
    """Sure and right, sure and wrong: no error and a whole one; the perfect band is a point."""
    sure = np.ones(6)
    assert calibration_error(sure, np.ones(6, np.bool_), rng()).value == 0
    assert calibration_error(sure, np.zeros(6, np.bool_), rng()).value == 1
    assert calibration_error_null(sure, rng()) == (0, 0)
