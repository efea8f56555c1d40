"""Windows of load and their ratios."""

from __future__ import annotations

import math

import pytest

from libslo.lab.trial import BARE, Figures, Window, arranged, figures, pair_ratios

S = 1_000_000_000


def request(due_s: float, ttft_ms: float, **more: object) -> dict[str, object]:
    due_ns = round(due_s * S)
    return {"scheduled_unix_ns": due_ns, "status": 200, "first_token_unix_ns": due_ns + round(ttft_ms * 1e6), **more}


def test_rounds_hold_each_kind_once_in_a_repeatable_order() -> None:
    """Every round has every kind, the same seed the same order, and not every round the same."""
    rounds = arranged(["off", "on", "again"], 20, seed=3)
    assert all(sorted(each) == ["again", "off", "on"] for each in rounds)
    assert rounds == arranged(["off", "on", "again"], 20, seed=3) != arranged(["off", "on", "again"], 20, seed=4)
    assert len({tuple(each) for each in rounds}) > 2


def test_a_window_counts_what_was_due_in_it() -> None:
    """Requests belong to the window they were due in; CPU is shared by all of them, TTFT is of those that were answered."""
    window = Window("on", 10 * S, 20 * S, app_cpu_s=0.03, machine_cpu_s=0.06, agent_cpu_s=0.0)
    outside = [request(9.9, 5000), request(20, 5000)]
    failed = {**request(12, 1), "status": 502}
    broken = request(13, 1, error="provider")
    found = figures(window, [*outside, request(10, 100), failed, broken, request(19.9, 200)])
    assert (found.requests, found.failed) == (4, 2)
    assert (found.ttft_p50_ms, found.ttft_p99_ms) == (pytest.approx(150), pytest.approx(199))
    assert (found.app_cpu_ms, found.machine_cpu_ms) == (pytest.approx(7.5), pytest.approx(15))


def test_a_window_without_requests_has_no_figures() -> None:
    """Nothing is made up for an empty window."""
    found = figures(Window("on", 0, S, 1.0, 1.0, 0.0), [])
    assert found.requests == 0
    assert all(math.isnan(value) for value in (found.ttft_p50_ms, found.ttft_p99_ms, found.app_cpu_ms, found.machine_cpu_ms))


def test_ratios_are_to_the_bare_window_of_the_same_round() -> None:
    """Each round gives one ratio, against its own bare window."""

    def one(kind: str, ms: float) -> Figures:
        return Figures(kind, 100, 0, 50.0, ms, 4.0, 8.0)

    rounds = [{BARE: one(BARE, 100), "on": one("on", 102)}, {BARE: one(BARE, 200), "on": one("on", 202)}]
    assert pair_ratios(rounds, "on", "ttft_p99_ms") == [pytest.approx(1.02), pytest.approx(1.01)]
    assert pair_ratios(rounds, BARE, "ttft_p99_ms") == [1.0, 1.0]
    rounds = [{BARE: one(BARE, 100), "again": one("again", 121), "on": one("on", 113.3)}]
    assert pair_ratios(rounds, "on", "ttft_p99_ms", (BARE, "again")) == [pytest.approx(1.03)]
