"""The trivial detector, to compare with: an alarm at the first request that misses an objective. Pure.

No detector that waits for requests is sooner; what it costs is an alarm in every quiet time in which a single request was bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libslo.bench.burns import missed_objective
from libslo.signals import Objective

__all__ = ["FirstBad", "first_bad"]


@dataclass(frozen=True)
class FirstBad:
    """delays_s: of each fault, until its first bad request had ended; None without any. alarmed: of each quiet time, whether it had one."""

    delays_s: tuple[float | None, ...]
    alarmed: tuple[bool, ...]


def first_bad(
    faults: Sequence[tuple[int, int]],
    quiet: Sequence[tuple[int, int]],
    requests: Iterable[Mapping[str, Any]],
    objectives: Mapping[str, Objective],
) -> FirstBad:
    """faults, quiet: (begin, end) in ns of the time with and without a fault. requests: load-result objects, counted by their end."""
    ends = sorted(each["end_unix_ns"] for each in requests if "end_unix_ns" in each and missed_objective(each, objectives))

    def first(begin_ns: int, end_ns: int) -> int | None:
        return next((end for end in ends if begin_ns <= end < end_ns), None)

    found = [(begin, first(begin, end)) for begin, end in faults]
    return FirstBad(
        tuple(None if end is None else (end - begin) / 1e9 for begin, end in found),
        tuple(first(begin, end) is not None for begin, end in quiet),
    )
