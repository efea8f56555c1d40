"""Whether confidences mean what they say: reliability, calibration error, and accuracy among the surer answers. Pure.

Input is always the same pair of arrays: the confidence of each answer (0 to 1), and whether it was right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from libslo.estimates import Estimate, Floats, Share, batches, percentile_band, rounded

__all__ = ["BINS", "Bin", "Kept", "calibration_error", "calibration_error_null", "kept_at", "reliability", "risk_coverage"]

BINS = 10  # of equal width; the last one includes 1

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers with a confidence from low to high: how many, their mean confidence, how many were right."""

    low: float
    high: float
    confidence: float | None
    right: Share

    def as_dict(self) -> dict[str, Any]:
        """low, high, mean_confidence and the share that was right."""
        return {"low": self.low, "high": self.high, "mean_confidence": rounded(self.confidence), **self.right.as_dict()}


@dataclass(frozen=True, slots=True)
class Kept:
    """The answers at or above a confidence: their share of all, and how many of them were right."""

    threshold: float
    coverage: float
    right: Share

    def as_dict(self) -> dict[str, Any]:
        """threshold, coverage and the share that was right."""
        return {"threshold": rounded(self.threshold), "coverage": rounded(self.coverage), **self.right.as_dict()}


def reliability(confidence: Floats, right: Bools) -> list[Bin]:
    """The reliability table: ten bins, empty ones too."""
    where = _bins(confidence)
    table = []
    for number in range(BINS):
        mine = where == number
        mean = float(np.sort(confidence[mine]).mean()) if mine.any() else None
        table.append(Bin(number / BINS, (number + 1) / BINS, mean, Share(int(right[mine].sum()), int(mine.sum()))))
    return table


def calibration_error(confidence: Floats, right: Bools, rng: np.random.Generator) -> Estimate:
    """Expected calibration error: |share right - mean confidence| of each bin, weighted by its answers.

    Source: Naeini, Cooper, Hauskrecht, AAAI 2015.
    """
    n = confidence.size
    if not n:
        return Estimate(0, None, None, None)
    order = np.lexsort((right, confidence))
    gaps, where = (right.astype(np.float64) - confidence)[order], _bins(confidence[order])
    drawn = []
    for rows in batches(n):
        at = rng.integers(0, n, (rows, n))
        cells = where[at] + BINS * np.arange(rows)[:, None]
        sums = np.bincount(cells.ravel(), gaps[at].ravel(), rows * BINS).reshape(rows, BINS)
        drawn.append(np.abs(sums).sum(axis=1) / n)
    return Estimate(n, float(np.abs(np.bincount(where, gaps, BINS)).sum() / n), *percentile_band(np.concatenate(drawn)))


def calibration_error_null(confidence: Floats, rng: np.random.Generator) -> tuple[float, float] | None:
    """The middle 95 % of the calibration error that perfectly calibrated answers with these confidences would show; None of none."""
    n = confidence.size
    if not n:
        return None
    ordered = np.sort(confidence)
    members = (_bins(ordered)[:, None] == np.arange(BINS)).astype(np.float64)
    drawn = [np.abs(((rng.random((rows, n)) < ordered) - ordered) @ members).sum(axis=1) / n for rows in batches(n)]
    return percentile_band(np.concatenate(drawn))


def risk_coverage(confidence: Floats, right: Bools) -> list[Kept]:
    """Every threshold that keeps another set of answers, the strictest first; answers of one confidence are kept or left together."""
    order = np.argsort(-confidence, kind="stable")
    ordered, correct = confidence[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) if ordered.size else np.empty(0, np.int64)
    return [Kept(float(ordered[end]), (end + 1) / ordered.size, Share(int(correct[end]), end + 1)) for end in ends.tolist()]


def kept_at(curve: list[Kept], coverage: float) -> Kept | None:
    """The strictest threshold that keeps at least this share of the answers; None of none."""
    return next((kept for kept in curve if kept.coverage >= coverage - 1e-12), None)


def _bins(confidence: Floats) -> npt.NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
