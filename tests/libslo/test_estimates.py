"""Figures with their uncertainty: the right value, an interval that holds what it should, the same bytes for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.estimates import RESAMPLES, Estimate, Share, batches, mean_estimate, median_estimate

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=30)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_share_of_none_is_none() -> None:
    """Nothing of nothing: no share, and an interval that says nothing."""
    assert Share(0, 0).as_dict() == {"n": 0, "right": 0, "share": None, "wilson95": [0.0, 1.0]}


def test_all_of_a_few_prove_little() -> None:
    """24 of 24 right proves only 0.86."""
    assert Share(24, 24).as_dict() == {"n": 24, "right": 24, "share": 1.0, "wilson95": [pytest.approx(0.862, abs=1e-3), 1.0]}


def test_estimates_of_none_and_one() -> None:
    """Of none None, of one value that value thrice."""
    for estimate in (mean_estimate, median_estimate):
        assert estimate([], rng()) == Estimate(0, None, None, None)
        assert estimate([2.5], rng()) == Estimate(1, 2.5, 2.5, 2.5)
        assert estimate([3.0] * 9, rng()) == Estimate(9, 3.0, 3.0, 3.0)


@given(VALUES.filter(bool), st.randoms(use_true_random=False))
def test_order_does_not_matter(values: list[float], shuffle: np.random.Generator) -> None:
    """Values in another order: the same value and the same interval, which lies between the least and the most."""
    other = list(values)
    shuffle.shuffle(other)  # type: ignore[arg-type]
    for estimate, plain in ((mean_estimate, np.mean), (median_estimate, np.median)):
        found = estimate(values, rng())
        assert found == estimate(other, rng())
        assert found.value == pytest.approx(float(plain(values)))
        assert found.low is not None and found.high is not None
        assert min(values) - 1e-6 <= found.low <= found.high <= max(values) + 1e-6


def test_the_interval_holds_the_true_mean_nineteen_times_of_twenty() -> None:
    """Of 400 samples of 40 values of a skewed law, 90 to 97 % of the intervals hold its mean."""
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        found = mean_estimate(draw.exponential(1.0, 40), draw)
        held += found.low is not None and found.high is not None and found.low <= 1.0 <= found.high
    assert 0.90 <= held / 400 <= 0.97


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 30_000, 10_000_000])
def test_batches_add_up(n: int) -> None:
    """However many values: all resamples, a bounded number of cells at once."""
    rows = list(batches(n))
    assert sum(rows) == RESAMPLES and max(rows) * n <= max(1_000_000, n)
