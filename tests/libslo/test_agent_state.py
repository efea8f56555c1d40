"""The agent's state as data: re-bucketing loses nothing and guesses nothing; a report becomes a snapshot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.export.agent_state import ExportState, rebucket, snapshot_from_report

FINE = tuple(0.001 * 2 ** (step / 4) for step in range(128))  # four buckets an octave


def test_rebucket_adds_up_whole_fine_buckets() -> None:
    """Each fine count is found in the coarse bucket that contains it, the rest above the last border."""
    counts = np.arange(1, 7, dtype=np.uint64)
    assert rebucket(counts, (1, 2, 3, 4, 5, 6), (2, 5)).tolist() == [1 + 2, 3 + 4 + 5, 6]
    assert rebucket(counts, (1, 2, 3, 4, 5), (2, 5)).tolist() == [3, 12, 6]
    assert rebucket(counts, (1, 2, 3, 4, 5, np.inf), (1, 5)).tolist() == [1, 14, 6]
    assert rebucket(counts, (1, 2, 3, 4, 5, 6), (6, 70)).tolist() == [21, 0, 0]
    assert rebucket(counts, (1, 2, 3, 4, 5, 6), ()).tolist() == [21]


@given(st.lists(st.integers(0, 2**40), min_size=128, max_size=128))
def test_rebucket_is_what_counting_the_coarse_buckets_would_give(numbers: list[int]) -> None:
    """On power-of-two borders the result is the slow reference's, to the last count, computed borders included."""
    counts = np.array(numbers, np.uint64)
    coarse = tuple(0.001 * 2**power for power in range(3, 24))
    expected = [0] * (len(coarse) + 1)
    for bound, number in zip(FINE, numbers, strict=True):
        expected[sum(bound > border * (1 + 1e-6) for border in coarse)] += number
    result = rebucket(counts, FINE, coarse)
    assert result.tolist() == expected and result.dtype == np.uint64


def test_a_border_computed_in_another_way_is_the_same_border() -> None:
    """A difference of rounding, in either direction, moves no count."""
    for border in (np.nextafter(2.0, 0), np.nextafter(2.0, 3)):
        assert rebucket(np.array([1, 2, 3], np.uint64), (1, border, 3), (2.0,)).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("fine", "coarse", "fact"),
    [
        ((1, 2, 3), (1.5,), "1.5 ms is not a border"),
        ((1, 2), (3,), "3 ms is not a border"),
        ((1, 2, np.inf), (3,), "3 ms is not a border"),
        ((1, 2, 3, 4, 5), (1,), "3 counts do not fit 5 bounds"),
        ((1, 3, 2), (1,), "fine bounds do not ascend"),
        ((1, 2, 3), (2, 2), "coarse bounds do not ascend"),
        ((1, np.nan, 3), (1,), "fine bounds do not ascend"),
        ((1, 2, 3), (np.inf,), "coarse bounds are not all finite"),
    ],
)
def test_rebucket_refuses_to_guess(fine: tuple[float, ...], coarse: tuple[float, ...], fact: str) -> None:
    """A border inside a fine bucket, or bounds that are none, are a ValueError."""
    with pytest.raises(ValueError, match=fact):
        rebucket(np.ones(3, np.uint64), fine, coarse)


def test_a_report_becomes_a_snapshot() -> None:
    """Mode, node, account and what is attached are taken over; the rest can be given."""
    account = {"attempts": 9, "emitted": 4, "filtered": 2, "rate_limited": 1, "dropped": 2}
    report = {
        "ts_unix_nano": 7, "node": "n1", "mode": "core_partial",
        "signals": [{"signal": "dns_latency_ms", "variant": "cgroup_skb", "attached": True, "account": account}],
    }  # fmt: skip
    snapshot = snapshot_from_report(report, 3, cpu_overhead_pct=0.5)
    state = snapshot.signals["dns_latency_ms"]
    assert (snapshot.ts_unix_ns, snapshot.started_unix_ns, snapshot.mode, snapshot.node) == (7, 3, "core_partial", "n1")
    assert (snapshot.cpu_overhead_pct, state.enabled, state.variant, state.account) == (0.5, True, "cgroup_skb", account)


def test_an_export_keeps_the_contract() -> None:
    """An entry of `exports` has what the agent-report contract asks for."""
    assert ExportState("otlp_logs", 5, {"http_503": 2}).as_dict() == {"target": "otlp_logs", "sent": 5, "given_up": {"http_503": 2}}
