"""The Wilson interval against published values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(24, 24, 0.862, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (9, 10, 0.5958, 0.9821), (81, 263, 0.2553, 0.3662)],
)
def test_known_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Values from the literature (81 of 263: Newcombe 1998); 24 of 24 right proves only 0.86."""
    assert wilson_interval(successes, n) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


def test_nothing_tried_says_nothing() -> None:
    """No trials: the whole range."""
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_is_symmetric(case: tuple[int, int]) -> None:
    """The share lies inside, within 0 and 1; successes and failures mirror each other."""
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    assert wilson_interval(n - successes, n) == (pytest.approx(1 - high), pytest.approx(1 - low))
