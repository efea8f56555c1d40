"""Ground truth against detection, on cases made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from builders import T0, S, slo_event
from hypothesis import given
from hypothesis import strategies as st

from libslo.detection import RunDetection, judge_detection, judge_requests, summarize_detection
from libslo.signals import Objective
from libslo.slo import burn_policy
from libslo.statistics import wilson_interval

LAB = burn_policy("lab")


def at(seconds: float) -> int:
    return T0 + int(seconds * S)


def window(begin_s: float, end_s: float | None, name: str = "dns_latency", domain: str = "network_dns", ident: str | None = None) -> Any:
    begun = {
        "fault_id": ident or f"{name}-{begin_s}", "scenario": name, "fault": "dns_delay", "mechanism": "m", "target": {}, "parameters": {},
        "phase": "begin", "begin_unix_nano": at(begin_s), "expected_domains": [domain], "synthetic": False,
    }  # fmt: skip
    return [begun] if end_s is None else [begun, {**begun, "phase": "end", "end_unix_nano": at(end_s)}]


def episode(begin_s: float, detected_s: float, ident: str) -> dict[str, Any]:
    return {"incident_id": ident, "begin_unix_nano": at(begin_s), "detected_unix_nano": at(detected_s), "state": "open"}


def incident(ident: str, domain: str = "network_dns") -> dict[str, Any]:
    return {"incident_id": ident, "predicted_fault_domain": domain}


def load(begin_s: float, end_s: float, bad_share: float, rate: int = 20) -> list[tuple[int, bool]]:
    """Requests at a rate, of every ten the first ones bad."""
    return [(at(begin_s + i / rate), i % 10 < bad_share * 10) for i in range(int((end_s - begin_s) * rate))]


def judged(windows: Any, episodes: Any, requests: Any = None, incidents: Any = (), end_s: float = 60, **more: Any) -> RunDetection:
    requests = load(0, end_s, 0) if requests is None else requests
    return judge_detection(windows, episodes, incidents, requests, LAB, begin_ns=at(0), end_ns=at(end_s), **more)


BAD = load(0, 20, 0) + load(20, 32, 1) + load(32, 60, 0)


def test_a_fault_that_was_found() -> None:
    """Delay in event time and on arrival, error of the onset, and whether the cause was named."""
    run = judged(window(20, 32), [episode(19.8, 21.5, "a")], BAD, [incident("a")], arrivals={"a": at(23)})
    (one,) = run.injections
    assert (one.label, one.moved_sli, one.detected, one.duplicates, one.named) == ("dns_latency", True, True, 0, True)
    assert (one.delay_event_s, one.delay_arrival_s) == (1.5, 3.0) and one.onset_error_s == pytest.approx(-0.2)
    assert (one.requests, one.bad_requests) == (240, 240) and run.false_alarms == ()
    assert judged(window(20, 32), [episode(19.8, 21.5, "a")], BAD, [incident("a", "cpu_throttle")]).injections[0].named is False
    assert judged(window(20, 32), [episode(19.8, 21.5, "a")], BAD).injections[0].named is None


def test_both_records_of_an_episode_are_one() -> None:
    """Opening and closing record, in either order."""
    opened = episode(20, 21, "a")
    closed = {**opened, "state": "closed", "end_unix_nano": at(32)}
    for episodes in ([opened, closed], [closed, opened], [closed]):
        assert judged(window(20, 32), episodes, BAD).injections[0].episodes == 1


def test_further_episodes_are_duplicates() -> None:
    """Two more for the same fault, the last one within the grace after its end; beyond the grace it is a false alarm."""
    episodes = [episode(20, 21, "a"), episode(26, 27, "b"), episode(33, 36.9, "c")]
    (one,) = judged(window(20, 32), episodes, BAD).injections
    assert one.duplicates == 2 and one.delay_event_s == 1
    run = judged(window(20, 32), [*episodes[:2], episode(36, 37.1, "c")], BAD)
    assert run.injections[0].duplicates == 1 and run.false_alarms == ("c",)


def test_missed_and_no_violation_are_apart() -> None:
    """Half of the requests bad and nothing said is missed; one in ten is below 15 % and moved nothing; without traffic neither."""
    for share, moved in ((0.5, True), (0.2, True), (0.1, False), (0.0, False)):
        requests = load(0, 20, 0) + load(20, 32, share) + load(32, 60, 0)
        (one,) = judged(window(20, 32), [], requests).injections
        assert (one.moved_sli, one.detected) == (moved, False), share
    assert not judged(window(20, 32), [], []).injections[0].moved_sli
    assert not judged(window(20, 32), [], load(20, 20.9, 1)).injections[0].moved_sli  # eighteen requests are no verdict


def test_an_episode_before_the_fault_is_a_false_alarm() -> None:
    """Detected before the fault came on: nobody's, whatever follows."""
    run = judged(window(20, 32), [episode(10, 19.9, "a")], BAD)
    assert run.false_alarms == ("a",) and not run.injections[0].detected


def test_faults_at_the_same_time_are_one_injection() -> None:
    """Overlapping windows: one injection with both domains, to the later end; those that only touch are two."""
    windows = [*window(20, 30, "dns_latency"), *window(22, 32, "cpu_throttle", "cpu_throttle")]
    (one,) = judged(windows, [episode(20, 31, "a")], BAD, [incident("a", "cpu_throttle")]).injections
    assert (one.label, one.end_ns, one.named) == ("dns_latency+cpu_throttle", at(32), True)
    two = [*window(20, 26), *window(26, 32, "cpu_throttle", "cpu_throttle")]
    assert [each.label for each in judged(two, [], BAD).injections] == ["dns_latency", "cpu_throttle"]


def test_the_grace_of_one_fault_ends_where_the_next_begins() -> None:
    """Faults in sequence: an episode belongs to the later one, unless its trouble began long before that."""
    windows = [*window(20, 26, ident="x"), *window(28, 34, "cpu_throttle", "cpu_throttle", "y")]
    later = judged(windows, [episode(28.2, 29, "a")], BAD)
    assert [each.detected for each in later.injections] == [False, True]
    earlier = judged(windows, [episode(20.2, 29, "a")], BAD)
    assert [each.detected for each in earlier.injections] == [True, False]


def test_a_fault_without_an_end_lasts_to_the_end() -> None:
    """A killed injector writes no end."""
    run = judged(window(20, None), [episode(50, 55, "a")], BAD)
    assert run.injections[0].end_ns == at(60) and run.injections[0].detected and len(run.windows) == 1


def test_time_without_a_fault_is_cut_into_windows() -> None:
    """Before and after the fault and its grace; each false alarm is in one window; hours add up."""
    run = judged(window(130, 140), [episode(1, 2, "a"), episode(3, 4, "b"), episode(299, 300, "c")], end_s=300, window_s=60)
    assert [round(length) for length, _ in run.windows] == [65, 65, 52, 52, 52]
    assert [alarms for _, alarms in run.windows] == [2, 0, 0, 0, 1] and run.false_alarms == ("a", "b", "c")
    total = summarize_detection([run, run])
    assert (total.no_fault_windows, total.alarmed_windows, total.false_alarms) == (10, 4, 6)
    assert total.no_fault_hours == pytest.approx(2 * 285 / 3600) and total.false_alarms_per_hour == pytest.approx(6 / (570 / 3600))
    assert total.alarmed_share == (0.4, *wilson_interval(4, 10))


def test_summary_of_many_runs() -> None:
    """Found and missed are of those that moved an SLI; delays come with n, median and p95."""
    quiet = load(0, 60, 0)
    runs = [judged(window(20, 32), [episode(20, 20 + delay, str(delay))], BAD, [incident(str(delay))]) for delay in (1, 2, 3, 4, 5)]
    runs += [judged(window(20, 32), [], BAD), judged(window(20, 32), [], quiet), judged(window(20, 32), [episode(20, 29, "x")], quiet)]
    total = summarize_detection(runs)
    assert (total.injections, total.violations, total.found, total.missed) == (8, 6, 5, 1)
    assert (total.no_violation, total.found_without_violation, total.named, total.duplicates) == (2, 1, 5, 0)
    assert total.found_share == (5 / 6, *wilson_interval(5, 6))
    assert (total.delay_event.n, total.delay_event.median_s, total.delay_event.p95_s) == (6, 3.5, pytest.approx(8))
    assert total.delay_arrival.n == 0 and total.delay_arrival.median_s is None


def test_nothing_is_a_defined_summary() -> None:
    """No runs, or runs without faults."""
    total = summarize_detection([])
    assert total.found_share == (None, 0.0, 1.0) and total.false_alarms_per_hour is None
    total = summarize_detection([judged([], [])])
    assert (total.injections, total.no_fault_windows, total.false_alarms_per_hour) == (0, 1, 0.0)


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(1, 10)), max_size=4), st.lists(st.integers(0, 60), max_size=8, unique=True))
def test_every_episode_is_counted_once(faults: list[tuple[int, int]], detected: list[int]) -> None:
    """Whatever the windows: an episode is a detection, a duplicate or a false alarm, and each false alarm is in a window."""
    windows = [row for n, (begin, length) in enumerate(faults) for row in window(begin, begin + length, ident=str(n))]
    run = judged(windows, [episode(each, each, str(each)) for each in detected])
    assert sum(each.episodes for each in run.injections) + len(run.false_alarms) == len(detected)
    assert sum(alarms for _, alarms in run.windows) == len(run.false_alarms)
    assert sum(length for length, _ in run.windows) <= 60 + 1e-6


def test_requests_are_judged_by_all_their_indicators() -> None:
    """One entry a request, bad when any indicator with an objective missed it; other services and indicators do not count."""
    errors = {"sli_name": "error_rate", "unit": "ratio"}
    events = [
        slo_event(request_id="a", sli_value=900), slo_event(request_id="a", sli_value=0, **errors),
        slo_event(request_id="b", sli_value=300), slo_event(request_id="b", sli_value=1, **errors),
        slo_event(request_id="c", sli_value=300), slo_event(request_id="d", sli_value=900, service="other"),
        slo_event(request_id="c", sli_value=9e9, sli_name="request_latency_ms"),
    ]  # fmt: skip
    objectives = {"ttft_ms": Objective(800, 0.95), "error_rate": Objective(0.05, 0.95)}
    assert judge_requests(events, objectives, "rag") == [(T0, True), (T0, True), (T0, False)]
