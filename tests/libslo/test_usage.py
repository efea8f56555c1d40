"""CPU seconds of overhead-samples as shares of a node."""

from __future__ import annotations

from typing import Any

from libslo.usage import Usage, usage

SECOND = 1_000_000_000


def sample(second: float, tool: str, cpu_s: float, pid: int = 7) -> dict[str, Any]:
    return {"ts_unix_nano": int(second * SECOND), "overhead_of": tool, "pid": pid, "cpu_s": cpu_s, "rss_bytes": 1000}


SAMPLES = [
    sample(1, "agent", 5.0), sample(1.5, "collector", 1.0), sample(2, "agent", 5.05), sample(2.5, "collector", 1.2),
    sample(3, "agent", 0.5, pid=8), sample(3.5, "collector", 1.2), sample(4, "agent", 0.6, pid=8),
]  # fmt: skip


def rows(*bounds: int) -> list[tuple[float, float, str, float]]:
    found = list(usage(SAMPLES, 2, *(bound * SECOND for bound in bounds)))
    assert {each.rss_bytes for each in found} <= {1000}
    return [(each.round_unix_ns / SECOND, each.ts_unix_ns / SECOND, each.tool, round(each.node_cpu_pct, 6)) for each in found]


def test_cpu_seconds_become_per_cent_of_the_node() -> None:
    """0.05 s more within a second on two CPUs is 2.5 %; tools of one round have one time; a new process begins anew."""
    assert rows() == [(2, 2, "agent", 2.5), (2, 2.5, "collector", 10.0), (3, 3.5, "collector", 0.0), (4, 4, "agent", 5.0)]
    assert list(usage([], 2)) == []


def test_only_what_lies_between_begin_and_end_counts() -> None:
    """Both samples have to be inside: what was used while a tool started is none of a run's phases."""
    assert rows(1, 3) == [(2, 2, "agent", 2.5), (2, 2.5, "collector", 10.0)]
    assert rows(2) == [(3, 3.5, "collector", 0.0), (4, 4, "agent", 5.0)]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Between two samples at one time, or in the wrong order, nobody knows what a share is of."""
    assert list(usage([sample(2, "agent", 1.0), sample(2, "agent", 2.0), sample(1, "agent", 3.0)], 2)) == []
    back_and_on = [sample(2, "agent", 1.0), sample(1, "agent", 2.0), sample(3, "agent", 2.5)]
    assert list(usage(back_and_on, 1)) == [Usage(3 * SECOND, 3 * SECOND, "agent", 25.0, 1000)]
