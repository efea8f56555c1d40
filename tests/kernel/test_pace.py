"""pace.Pace: arithmetic, no kernel needed."""

from __future__ import annotations

import pytest

from libslo.kernel.pace import Pace


@pytest.mark.parametrize(("events", "rest_s"), [(1, 0.02), (499, 0.02), (500, 0.005)])
def test_a_drain_with_news_is_followed_by_a_rest(events: int, rest_s: float) -> None:
    """The next drain keeps its distance, a short one when many events come, and time that has passed counts."""
    pace = Pace()
    pace.drained(events, 100.0)
    assert pace.rest_s(100.0) == pytest.approx(rest_s)
    assert pace.rest_s(100.002) == pytest.approx(rest_s - 0.002)


def test_after_a_quiet_time_there_is_no_rest() -> None:
    """The first event after a pause is read at once, also when drains in between found nothing."""
    pace = Pace()
    assert pace.rest_s(100.0) == 0
    pace.drained(3, 100.0)
    pace.drained(0, 100.015)
    assert pace.rest_s(100.03) == 0
    pace.drained(0, 100.03)
    assert pace.rest_s(100.03) == 0
