"""Bucket bounds and quantiles of waits counted by length."""

from __future__ import annotations

import numpy as np
import pytest

from libslo.kernel.histogram import BUCKETS, bucket_bounds_ms, quantile_ms, stripes


def slow_bucket(duration_ns: int) -> int:
    """The first bucket whose bound in whole microseconds is above the duration in whole microseconds."""
    return next(index for index, bound in enumerate(bucket_bounds_ms() * 1000) if duration_ns // 1000 < bound)


def test_bounds_grow_in_four_steps_a_power_of_two() -> None:
    """125 bounds: 1 to 4 µs, then quarters of each power of two up to 2^32 µs, then no end."""
    bounds = bucket_bounds_ms() * 1000
    assert bounds.size == BUCKETS
    assert bounds[:9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert bounds[-2] == 2**32 and np.isinf(bounds[-1])
    assert (np.diff(bounds[:-1]) > 0).all()
    assert all(2.0**power in bounds for power in range(33))


def test_no_bucket_is_wider_than_a_quarter_of_its_start() -> None:
    """From 4 µs on a bucket is at most 25 % wide, which bounds the error of a quantile."""
    bounds = bucket_bounds_ms()[3:-1]
    assert (np.diff(bounds) / bounds[:-1] <= 0.25 + 1e-12).all()


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99])
def test_quantiles_are_within_a_bucket(q: float) -> None:
    """A quantile of log-normal waits is within 25 % of the exact one."""
    rng = np.random.default_rng(7)
    durations_ns = (rng.lognormal(1.0, 1.5, 20_000) * 1e6).astype(np.int64)
    counts = np.bincount([slow_bucket(int(value)) for value in durations_ns], minlength=BUCKETS).astype(np.uint64)
    assert quantile_ms(counts, q) == pytest.approx(np.quantile(durations_ns, q) / 1e6, rel=0.25)


def test_quantile_of_nothing_and_of_what_has_no_end() -> None:
    """No waits have no quantile; those in the last bucket are at least its beginning."""
    counts = np.zeros(BUCKETS, np.uint64)
    assert np.isnan(quantile_ms(counts, 0.5))
    counts[-1] = 3
    assert quantile_ms(counts, 0.5) == 2**32 / 1000


def test_stripes_are_a_power_of_two_and_few() -> None:
    """One CPU needs one copy, a large machine no more than four."""
    assert [stripes(n) for n in (1, 2, 3, 4, 64)] == [1, 2, 4, 4, 4]
