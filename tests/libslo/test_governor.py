"""The overhead guard's decisions: what goes, when, and when it comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from libslo.kernel.governor import Governor

CHEAP, DEAR, PAIR = ("dns_latency_ms",), ("runqueue_delay_ms",), ("connect_errors_total", "connect_latency_ms")


def test_the_dearest_goes_after_two_readings_above() -> None:
    """One reading above the ceiling is no reason; the second sheds the group that was measured to cost most."""
    governor = Governor(3.0)
    costs = {CHEAP: 0.5, DEAR: 3.0, PAIR: 1.0}
    assert governor.decide(4.5, costs) is None
    decision = governor.decide(4.6, costs)
    assert decision is not None
    assert (decision.action, decision.signals, decision.overhead_pct, decision.cost_pct) == ("shed", DEAR, 4.6, 3.0)


def test_a_reading_below_begins_the_count_anew() -> None:
    """Readings above the ceiling count only in a row."""
    governor = Governor(3.0)
    costs = {DEAR: 3.0}
    assert [governor.decide(pct, costs) for pct in (4.0, 2.0, 4.0)] == [None] * 3
    assert governor.decide(4.0, costs) is not None


def test_it_goes_on_until_the_ceiling_holds() -> None:
    """When the first was not enough, the next dearest follows, and nothing is shed when nothing is left."""
    governor = Governor(3.0, shed_after=1)
    assert governor.decide(9.0, {CHEAP: 1.0, DEAR: 3.0}).signals == DEAR  # type: ignore[union-attr]
    assert governor.decide(6.0, {CHEAP: 1.0}).signals == CHEAP  # type: ignore[union-attr]
    assert governor.decide(5.0, {}) is None


def test_it_comes_back_when_there_is_room_for_it() -> None:
    """The last one shed returns when what it cost fits below 80 % of the ceiling, for six readings in a row; the others wait."""
    governor = Governor(3.0, shed_after=1)
    governor.decide(9.0, {CHEAP: 1.0, DEAR: 1.5})
    governor.decide(6.0, {CHEAP: 1.0})
    too_full = [governor.decide(1.5, {}) for _ in range(20)]  # 1.5 + 1.0 is above 2.4
    assert too_full == [None] * 20
    readings = [governor.decide(1.0, {}) for _ in range(6)]
    assert readings[:5] == [None] * 5
    assert readings[5] is not None and (readings[5].action, readings[5].signals) == ("restore", CHEAP)
    assert governor.decide(0.5, {CHEAP: 0.4}) is None


def test_what_has_to_go_again_stays_away_twice_as_long() -> None:
    """Each time the same group is shed, its way back doubles."""
    governor = Governor(3.0, shed_after=1)
    waits = []
    for _ in range(3):
        assert governor.decide(4.0, {DEAR: 2.0}) is not None
        waits.append(next(n for n in range(1, 1000) if governor.decide(0.1, {})))
    assert waits == [6, 12, 24]


def test_what_costs_nothing_stays() -> None:
    """When the agent itself is what is too dear, signals are not thrown after it."""
    governor = Governor(3.0, shed_after=1)
    assert governor.decide(9.0, {PAIR: 0.0, CHEAP: 0.01}) is None
    assert governor.decide(9.0, {PAIR: 0.0, CHEAP: 0.1}).signals == CHEAP  # type: ignore[union-attr]


def test_a_restore_that_failed_is_tried_again_later() -> None:
    """What could not be attached again is still away, and is tried after twice the time."""
    governor = Governor(3.0, shed_after=1)
    governor.decide(4.0, {DEAR: 2.0})
    decision = next(filter(None, (governor.decide(0.1, {}) for _ in range(6))))
    governor.not_restored(decision)
    waits = next(n for n in range(1, 1000) if governor.decide(0.1, {}))
    assert waits == 12


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 10), st.floats(0, 10)), max_size=200))
def test_nothing_is_shed_twice_nor_restored_unshed(readings: list[tuple[float, float, float]]) -> None:
    """Whatever is measured, sheds and restores of a group alternate, and a shed needs a reading above the ceiling."""
    governor = Governor(3.0)
    active = {CHEAP, DEAR}
    for total, first, second in readings:
        decision = governor.decide(total, {group: cost for group, cost in ((CHEAP, first), (DEAR, second)) if group in active})
        if decision and decision.action == "shed":
            assert decision.signals in active and total > 3.0
            active.remove(decision.signals)
        elif decision:
            assert decision.signals not in active and total <= 3.0
            active.add(decision.signals)
