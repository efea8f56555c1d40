"""The Wilson interval, bounds of ratios and the robust slope against published or hand-made values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.statistics import (
    cliffs_delta,
    coefficient_of_variation,
    hodges_lehmann_shift,
    mann_whitney_p,
    ratio_summary,
    resampled_quantiles,
    theil_sen_slope,
    wilson_interval,
)


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


@pytest.mark.parametrize(
    ("values", "found"),
    [([1, 2, 3], 0.5), ([5, 5, 5], 0.0), ([0, 0, 0], 0.0), ([-1, 1], math.inf), ([1], math.nan), ([], math.nan), ([1, math.nan], math.nan)],
)
def test_coefficient_of_variation(values: list[float], found: float) -> None:
    """By hand: 1 over 2; equal values do not vary, zeros too; one value alone, and NaN, say nothing."""
    assert coefficient_of_variation(values) == pytest.approx(found, nan_ok=True)


numbers = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30).map(np.array)


@given(numbers, numbers)
def test_cliffs_delta_is_that_of_all_pairs(first: np.ndarray, second: np.ndarray) -> None:
    """The fast one equals the share of pairs in which the first is greater, less the share in which it is smaller."""
    pairs = [int(a > b) - int(a < b) for a in first for b in second]
    assert cliffs_delta(first, second) == pytest.approx(sum(pairs) / len(pairs))
    assert cliffs_delta(second, first) == pytest.approx(-cliffs_delta(first, second))


def test_mann_whitney() -> None:
    """Three below three: of 20 orders two are as extreme; what never varies cannot differ; nothing says nothing."""
    low, high, none = np.array([1.0, 2, 3]), np.array([4.0, 5, 6]), np.empty(0)
    assert mann_whitney_p(low, high) == pytest.approx(0.1) == mann_whitney_p(high, low)
    assert mann_whitney_p(np.full(40, 7.0), np.full(30, 7.0)) == 1.0
    assert math.isnan(mann_whitney_p(low, none)) and math.isnan(cliffs_delta(none, low))


def test_shift_of_pairs() -> None:
    """The median of the nine differences by hand; one wild value of three does not move it."""
    assert hodges_lehmann_shift(np.array([11.0, 12, 13]), np.array([1.0, 2, 3])) == 10.0
    assert hodges_lehmann_shift(np.array([11.0, 12, 900]), np.array([1.0, 2, 3])) == 10.0
    stacked = hodges_lehmann_shift(np.array([[1.0, 2], [5, 6]]), np.array([[0.0, 0], [1, 1]]))
    assert stacked.tolist() == [1.5, 4.5]


def slow_quantiles(runs: list[np.ndarray], quantile: float, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """What resampled_quantiles stands for, drawn value by value."""
    return np.array(
        [[np.quantile(rng.choice(run, run.size), quantile) for run in (runs[i] for i in rng.integers(0, len(runs), len(runs)))]
         for _ in range(iterations)]
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(40,), (1, 2), (10, 10, 10), (7, 60, 25)])
def test_resampled_quantiles_are_distributed_as_if_drawn(sizes: tuple[int, ...]) -> None:
    """Kolmogorov and Smirnov do not tell the medians over the runs from those of the slow way (p above 0.001)."""
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(3)
    runs = [rng.lognormal(5, 0.3, n) + 20 * i for i, n in enumerate(sizes)]
    ways = (resampled_quantiles, slow_quantiles)
    fast, slow = (np.median(way(runs, 0.95, 1500, rng), axis=1).round(9) for way in ways)  # ties are ties
    assert ks_2samp(fast, slow).pvalue > 0.001
    assert fast.std() == pytest.approx(slow.std(), rel=0.15)


def test_resampling_covers_the_true_quantile() -> None:
    """Of 300 samples of 60 normal values, the 95 % interval holds the true p90 in 90 to 98 %."""
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(300):
        low, high = np.quantile(resampled_quantiles([rng.normal(size=60)], 0.9, 400, rng), [0.025, 0.975])
        inside += low <= 1.2816 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_same_seed_same_resamples() -> None:
    """All randomness is the generator's."""
    runs = [np.arange(30.0), np.arange(50.0)]
    first, second, other = (resampled_quantiles(runs, 0.95, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any() and first.shape == (50, 2)
