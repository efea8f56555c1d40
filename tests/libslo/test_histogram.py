"""Bucket bounds of waits counted by length."""

from __future__ import annotations

import numpy as np

from libslo.kernel.histogram import BUCKETS, bucket_bounds_ms, stripes


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


def test_stripes_are_a_power_of_two_and_few() -> None:
    """One CPU needs one copy, a large machine no more than four."""
    assert [stripes(n) for n in (1, 2, 3, 4, 64)] == [1, 2, 4, 4, 4]
