"""Statistics that the project's figures are published with. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["RatioSummary", "ratio_summary", "theil_sen_slope", "wilson_interval"]

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
