"""Statistics that the project's figures are published with. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RatioSummary",
    "cliffs_delta",
    "coefficient_of_variation",
    "hodges_lehmann_shift",
    "mann_whitney_p",
    "ratio_summary",
    "resampled_quantiles",
    "theil_sen_slope",
    "wilson_interval",
]

Numbers = NDArray[np.float64]

_RESAMPLES = 10_000


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a proportion (95 % by default); (0, 1) when n is 0.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True, slots=True)
class RatioSummary:
    """Ratios of pairs: geometric mean, and the bounds that the true one lies below with the given confidence."""

    n: int
    mean: float
    upper_t: float  # Student's t on the logarithms
    upper_bootstrap: float  # percentile bootstrap of the mean of the logarithms
    least: float
    most: float

    @property
    def upper(self) -> float:
        """The greater of both bounds."""
        return max(self.upper_t, self.upper_bootstrap)


def ratio_summary(ratios: Sequence[float], rng: np.random.Generator, confidence: float = 0.95) -> RatioSummary:
    """One-sided upper bounds of the mean ratio of independent pairs; ValueError with less than two, or one that is not positive."""
    from scipy.stats import t

    logs = np.log(np.asarray(ratios, np.float64)) if min(ratios, default=0) > 0 else np.empty(0)
    if logs.size < 2:
        raise ValueError("a bound needs two positive ratios or more")
    mean = float(logs.mean())
    error = float(logs.std(ddof=1)) / math.sqrt(logs.size)
    upper_t = mean + float(t.ppf(confidence, logs.size - 1)) * error
    means = logs[rng.integers(0, logs.size, (_RESAMPLES, logs.size))].mean(axis=1)
    return RatioSummary(
        logs.size, math.exp(mean), math.exp(upper_t), math.exp(float(np.quantile(means, confidence))), min(ratios), max(ratios)
    )


def theil_sen_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points, which up to 29 % of wild points cannot move far; 0 with less than two.

    Source: P. K. Sen, JASA 63 (1968).
    """
    at, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = np.triu_indices(at.size, 1)
    apart = at[second] - at[first]
    kept = apart != 0
    return float(np.median((values[second] - values[first])[kept] / apart[kept])) if kept.any() else 0.0


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over the mean; 0 when all values are equal, zeros too; infinite around a mean of 0.

    NaN with less than two values, or one that is not finite.
    """
    found = np.asarray(values, np.float64)
    if found.size < 2 or not np.isfinite(found).all():
        return math.nan
    if (found == found[0]).all():
        return 0.0
    mean = abs(float(found.mean()))
    return float(found.std(ddof=1)) / mean if mean else math.inf


def cliffs_delta(first: Numbers, second: Numbers) -> float:
    """P(first > second) - P(first < second) for values drawn from each: -1 to 1. O(n log n). NaN when one side is empty.

    Source: N. Cliff, Psychological Bulletin 114 (1993).
    """
    if not first.size or not second.size:
        return math.nan
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left")
    above = second.size - np.searchsorted(ordered, first, "right")
    return float((below - above).sum() / (first.size * second.size))


def mann_whitney_p(first: Numbers, second: Numbers) -> float:
    """Two-sided p that both are of one distribution; 1 when all values are the same; NaN when one side is empty."""
    from scipy.stats import mannwhitneyu

    if not first.size or not second.size:
        return math.nan
    if first.min() == first.max() == second.min() == second.max():
        return 1.0  # nothing to rank
    return float(mannwhitneyu(first, second, alternative="two-sided").pvalue)


def hodges_lehmann_shift(first: Numbers, second: Numbers) -> Numbers:
    """The median of all differences first - second along the last axis, which less than 29 % of wild values cannot move far.

    Shapes (..., n) and (..., m) give (...). Source: J. L. Hodges, E. L. Lehmann, Annals of Mathematical Statistics 34 (1963).
    """
    differences = first[..., :, None] - second[..., None, :]
    return np.asarray(np.median(differences.reshape(*differences.shape[:-2], -1), axis=-1), np.float64)


def resampled_quantiles(runs: Sequence[Numbers], quantile: float, iterations: int, rng: np.random.Generator) -> Numbers:
    """Bootstrap in two stages, shape (iterations, runs): runs drawn with replacement, and of each the quantile of values drawn anew.

    Requests of one run share its luck, so runs are the unit of resampling (A. C. Davison, D. V. Hinkley, Bootstrap Methods, 1997,
    section 3.8). The quantile of n values drawn with replacement is not found by drawing them: the ranks that it falls on are order
    statistics of n uniform numbers, which are Beta distributed. So the cost does not grow with n. Interpolated as np.quantile does.
    """
    ordered = np.concatenate([np.sort(run) for run in runs])
    sizes = np.array([run.size for run in runs])
    begins = np.cumsum(sizes) - sizes
    picked = rng.integers(0, len(runs), (iterations, len(runs)))
    n, begin = sizes[picked], begins[picked]
    place = quantile * (n - 1)
    rank = np.floor(place).astype(np.int64) + 1  # of the lower neighbour, from 1
    low = rng.beta(rank, n + 1 - rank)
    high = np.where(rank < n, low + (1 - low) * rng.beta(1, np.maximum(n - rank, 1)), low)
    lower, upper = (ordered[begin + np.minimum((share * n).astype(np.int64), n - 1)] for share in (low, high))
    return np.asarray(lower + (upper - lower) * (place - rank + 1), np.float64)
