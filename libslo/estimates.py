"""Figures with their uncertainty: a share with its Wilson interval, any other statistic with a bootstrap interval. Pure.

What was counted as right and wrong gets Wilson's interval; what has no such form (a mean, a median, macro-F1) gets the 2.5th to
97.5th percentile over resamples. Values are sorted before they are resampled, so that no figure depends on the order of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from libslo.statistics import wilson_interval

__all__ = ["RESAMPLES", "Estimate", "Share", "mean_estimate", "median_estimate", "percentile_band"]

RESAMPLES = 1000
_CELLS = 1_000_000  # drawn at once
_DIGITS = 6

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """right of n. The share of none is None, and its interval everything."""

    right: int
    n: int

    @property
    def share(self) -> float | None:
        """right / n."""
        return self.right / self.n if self.n else None

    @property
    def wilson95(self) -> tuple[float, float]:
        """The Wilson 95 % interval."""
        return wilson_interval(self.right, self.n)

    def as_dict(self) -> dict[str, Any]:
        """n, right, share, wilson95."""
        low, high = self.wilson95
        return {"n": self.n, "right": self.right, "share": rounded(self.share), "wilson95": [rounded(low), rounded(high)]}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of n values with its bootstrap 95 % interval; None of none."""

    n: int
    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """n, value, bootstrap95."""
        return {"n": self.n, "value": rounded(self.value), "bootstrap95": [rounded(self.low), rounded(self.high)]}


def rounded(value: float | None) -> float | None:
    """The number as summaries print it."""
    return None if value is None else round(float(value), _DIGITS)


def mean_estimate(values: Sequence[float] | Floats, rng: np.random.Generator) -> Estimate:
    """The mean."""
    return _estimate(values, lambda rows: rows.mean(axis=-1), rng)


def median_estimate(values: Sequence[float] | Floats, rng: np.random.Generator) -> Estimate:
    """The median."""
    return _estimate(values, lambda rows: np.median(rows, axis=-1), rng)


def _estimate(values: Sequence[float] | Floats, statistic: Callable[[Floats], Floats], rng: np.random.Generator) -> Estimate:
    ordered = np.sort(np.asarray(values, np.float64))
    if not ordered.size:
        return Estimate(0, None, None, None)
    drawn = np.concatenate([statistic(ordered[rng.integers(0, ordered.size, (rows, ordered.size))]) for rows in batches(ordered.size)])
    return Estimate(ordered.size, float(statistic(ordered)), *percentile_band(drawn))


def batches(n: int) -> Iterator[int]:
    """RESAMPLES cut into numbers of rows of n values that fit into memory."""
    rows = max(_CELLS // max(n, 1), 1)
    yield from (min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows))


def percentile_band(drawn: Floats) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
