"""The Wilson interval, bounds of ratios and the robust slope against published or hand-made values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.statistics import ratio_summary, theil_sen_slope, wilson_interval


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


def test_ratio_bounds() -> None:
    """The bound is the t bound of the logarithms by hand: n = 4, t(0.95, 3) = 2.3534."""
    logs = np.array([0.0, 0.02, 0.04, 0.02])
    found = ratio_summary(np.exp(logs).tolist(), np.random.default_rng(1))
    assert (found.n, found.mean) == (4, pytest.approx(np.exp(0.02)))
    assert np.log(found.upper_t) == pytest.approx(0.02 + 2.3534 * logs.std(ddof=1) / 2, abs=1e-5)
    assert found.mean < found.upper_bootstrap <= found.upper == found.upper_t
    assert (found.least, found.most) == (1.0, pytest.approx(np.exp(0.04)))


def test_ratio_bounds_cover() -> None:
    """In 19 of 20 experiments the t bound lies above the true ratio."""
    rng = np.random.default_rng(7)
    above = [ratio_summary(np.exp(rng.normal(0.01, 0.03, 10)).tolist(), rng).upper_t > np.exp(0.01) for _ in range(400)]
    assert 0.92 < np.mean(above) < 0.98


@pytest.mark.parametrize("ratios", [[], [1.0], [1.0, 0.0], [1.0, -1.0]])
def test_no_bound_of_too_little(ratios: list[float]) -> None:
    """Fewer than two pairs, or a ratio that has no logarithm, has no bound."""
    with pytest.raises(ValueError, match="two positive"):
        ratio_summary(ratios, np.random.default_rng(1))


def test_slope_is_robust() -> None:
    """A quarter of wild points does not move the slope; one point alone has none."""
    x = list(range(20))
    y = [3.0 * at + (500.0 if at % 5 == 0 else 0.0) for at in x]
    assert theil_sen_slope(x, y) == pytest.approx(3.0)
    assert theil_sen_slope([1.0], [5.0]) == 0.0 == theil_sen_slope([1.0, 1.0], [2.0, 5.0])
