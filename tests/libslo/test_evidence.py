"""Evidence: change against the service's own past; what was not seen is missing, never normal."""

from __future__ import annotations

import random
from typing import Any

import pytest
from builders import MS, T0, S, one_span, probe, slo_event
from hypothesis import given
from hypothesis import strategies as st

from libslo.evidence import Evidence, ServiceSeries, evidence_kinds, observed_signals
from libslo.signals import signals, vocabulary

BASE = [(T0, T0 + 10 * S)]
ONSET, NOW = T0 + 10 * S, T0 + 14 * S


def series(*rows: tuple[str, float, float], horizon_s: float = 1000) -> ServiceSeries:
    """Rows are (signal, seconds after T0, value)."""
    found = ServiceSeries(int(horizon_s * S))
    for name, at_s, value in rows:
        found.add(name, T0 + int(at_s * S), value)
    return found


def judged(found: ServiceSeries, observed: frozenset[str] = frozenset(), base: Any = None) -> dict[str, Evidence]:
    return {each.signal: each for each in found.evidence(ONSET, NOW, BASE if base is None else base, observed)}


def before(name: str, value: float, n: int = 10) -> list[tuple[str, float, float]]:
    return [(name, 0.5 + i, value) for i in range(n)]


def test_a_signal_without_events_is_missing() -> None:
    """Nothing seen in the window gives no evidence, however well the baseline is known."""
    assert judged(series(*before("dns_latency_ms", 2.0))) == {}
    assert judged(ServiceSeries(S)) == {}


def test_change_against_the_own_baseline() -> None:
    """The same value is high for one service and usual for another."""
    window = [("dns_latency_ms", 11.0, 200.0), ("dns_latency_ms", 12.0, 200.0)]
    quick = judged(series(*before("dns_latency_ms", 2.0), *window))["dns_latency_ms"]
    slow = judged(series(*before("dns_latency_ms", 200.0), *window))["dns_latency_ms"]
    assert (quick.level, quick.value, quick.baseline, quick.source) == (2, 200.0, 2.0, "ebpf")
    assert slow.level == 0 and slow.score == pytest.approx(0)


def test_next_to_nothing_is_no_change() -> None:
    """Ten times of very little stays below the floor."""
    found = judged(series(*before("dns_latency_ms", 0.1), ("dns_latency_ms", 11, 1.0)))
    assert found["dns_latency_ms"].level == 0


def test_absolute_thresholds_where_there_is_no_baseline() -> None:
    """Without enough of a past, the catalogue's thresholds grade the value."""
    for value, level in ((49, 0), (50, 1), (149, 1), (150, 2)):
        found = judged(series(*before("dns_latency_ms", 1.0, n=4), ("dns_latency_ms", 11, value)))["dns_latency_ms"]
        assert (found.level, found.baseline, found.score) == (level, None, None)


def test_lower_is_worse_for_throughput() -> None:
    """A fall of throughput is raised, a rise is not."""
    name = "token_throughput_tps"
    assert judged(series(*before(name, 60), (name, 11, 10)))[name].level >= 1
    assert judged(series(*before(name, 60), (name, 11, 600)))[name].level == 0
    assert judged(series((name, 11, 9)), base=[])[name].level == 2


def test_counts_are_rates() -> None:
    """A count is a sum per second of the window; where the service was watched, its absence before means zero."""
    name = "tcp_retransmits_total"
    found = judged(series(*before("dns_latency_ms", 1), (name, 11, 10), (name, 12, 6)))[name]
    assert (found.value, found.baseline, found.level) == (4.0, 0.0, 2)


def test_observed_counts_of_zero_are_evidence_of_absence() -> None:
    """A counting signal that the agent watches and that did not happen is a zero; others stay missing."""
    found = judged(series(*before("dns_latency_ms", 1)), observed=frozenset(["tcp_retransmits_total"]))
    assert set(found) == {"tcp_retransmits_total"}
    assert (found["tcp_retransmits_total"].value, found["tcp_retransmits_total"].level) == (0.0, 0)


def test_window_is_open_at_the_onset_and_closed_now() -> None:
    """The baseline ends where the window begins; no event counts for both."""
    found = series(
        *before("dns_latency_ms", 1.0), ("dns_latency_ms", 10.0, 500.0), ("dns_latency_ms", 14.0, 7.0), ("dns_latency_ms", 14.001, 900.0)
    )
    one = judged(found)["dns_latency_ms"]
    assert one.value == 7.0 and one.baseline == pytest.approx(1.0, abs=60)


def test_highest_level_first_then_catalogue_order() -> None:
    """The order of the list is fixed."""
    found = series(
        *before("dns_latency_ms", 1),
        *before("connect_latency_ms", 1),
        *before("runqueue_delay_ms", 1),
        ("runqueue_delay_ms", 11, 1),
        ("connect_latency_ms", 11, 1),
        ("dns_latency_ms", 11, 500),
    )
    assert [e.signal for e in found.evidence(ONSET, NOW, BASE)] == ["dns_latency_ms", "runqueue_delay_ms", "connect_latency_ms"]


@given(
    st.lists(st.tuples(st.sampled_from(["dns_latency_ms", "tcp_retransmits_total"]), st.integers(0, 14), st.floats(0, 500)), max_size=30),
    st.randoms(),
)
def test_order_of_arrival_changes_nothing(rows: list[tuple[str, float, float]], rng: random.Random) -> None:
    """Events of the same times in another order give the same evidence."""
    shuffled = rng.sample(rows, len(rows))
    a, b = judged(series(*rows)), judged(series(*shuffled))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].value == pytest.approx(b[name].value) and a[name].level == b[name].level


def test_old_events_are_forgotten() -> None:
    """A long stream is held for two baselines only, and bounded even when time does not move."""
    found = ServiceSeries(10 * S)
    for i in range(20_000):
        found.add("dns_latency_ms", T0 + i * 10 * MS, 1.0)
        found.tick(T0 + i * 10 * MS)
    times, values = found._series["dns_latency_ms"]
    assert len(times) == len(values) <= 3001 and found.held_from_ns > T0
    for _ in range(60_000):
        found.add("connect_latency_ms", T0, 1.0)
    assert len(found._series["connect_latency_ms"][0]) <= 60_000


def steady(seconds: int, value: float, retransmits: float) -> ServiceSeries:
    """A service with ten waits and a few retransmits a second, from T0 on."""
    found = ServiceSeries(10 * S)
    for i in range(seconds * 10):
        found.add("dns_latency_ms", T0 + i * 100 * MS, value)
        if i % 10 == 0:
            found.add("tcp_retransmits_total", T0 + i * 100 * MS, retransmits)
        found.tick(T0 + i * 100 * MS)
    return found


def test_trouble_noticed_late_still_finds_a_baseline() -> None:
    """When what was before the onset is no longer held, summaries of that time are the baseline, not an invented zero."""
    found = steady(200, 160.0, 8.0)
    onset, now = T0 + 100 * S, T0 + 200 * S
    evidence = {each.signal: each for each in found.evidence(onset, now, [(T0, onset)])}
    assert evidence["dns_latency_ms"].baseline == pytest.approx(160) and evidence["dns_latency_ms"].level == 0
    rate = evidence["tcp_retransmits_total"]
    assert rate.baseline == pytest.approx(8, rel=0.3) and rate.value == pytest.approx(8, rel=0.3) and rate.level == 0


def test_without_any_healthy_time_there_is_no_baseline() -> None:
    """Nothing healthy was seen: the baseline is missing, for rates too."""
    found = steady(60, 160.0, 8.0)
    evidence = {each.signal: each for each in found.evidence(T0 + 1 * S, T0 + 60 * S, [])}
    assert evidence["dns_latency_ms"].baseline is None and evidence["tcp_retransmits_total"].baseline is None


@pytest.mark.parametrize(
    ("name", "value", "code", "throttled", "failed"),
    [
        ("provider_error_rate", 1, "429", 1, 0),
        ("provider_error_rate", 1, "503", 0, 1),
        ("provider_error_rate", 1, "404", 0, 0),
        ("provider_error_rate", 1, "", 0, 1),
        ("provider_error_rate", 0, "200", 0, 0),
    ],
)
def test_http_status_tells_throttled_from_failed(name: str, value: float, code: str, throttled: float, failed: float) -> None:
    """429 is throttling; 5xx and no answer are failures; other client errors are neither."""
    found = ServiceSeries(1000 * S)
    labels = {"http.response.status_code": code} if code else {}
    found.add_slo_event(slo_event(sli_name=name, sli_value=value, labels=labels), T0 + 11 * S)
    values = {each.signal: each.value for each in found.evidence(ONSET, NOW, [])}
    assert values == {"provider_throttled_ratio": throttled, "provider_failed_ratio": failed}


def test_provider_and_own_answers_are_two_pieces_of_evidence() -> None:
    """What the provider answered the service and what the service answered its clients are told apart."""
    found = ServiceSeries(1000 * S)
    found.add_slo_event(slo_event(sli_name="error_rate", sli_value=1, labels={"http.response.status_code": "503"}), T0 + 11 * S)
    assert {e.signal: e.value for e in found.evidence(ONSET, NOW, [])} == {"request_failed_ratio": 1, "request_throttled_ratio": 0}
    found.add_slo_event(slo_event(sli_name="provider_error_rate", sli_value=0), T0 + 11 * S)
    values = {e.signal: e.value for e in found.evidence(ONSET, NOW, [])}
    assert values["provider_failed_ratio"] == 0 and values["request_failed_ratio"] == 1


def test_time_lost_a_second() -> None:
    """Waits that only long ones are told of count by what they cost in all; none of them, where they are watched, is zero."""
    name = "mem_reclaim_latency_ms"
    found = judged(series(*before("dns_latency_ms", 1), (name, 11, 300), (name, 12, 500)))[name]
    assert (found.value, found.baseline, found.level) == (200.0, 0.0, 2)
    assert judged(series(*before("dns_latency_ms", 1)), observed=frozenset([name]))[name].level == 0


def test_an_onset_known_late_does_not_spoil_the_baseline() -> None:
    """With some minutes of the past, the median of what was before is still the healthy service when the last minute was not."""
    found = ServiceSeries(60 * S)
    for i in range(420):
        sick = i >= 300  # the trouble begins here
        found.add("dns_latency_ms", T0 + i * S, 300.0 if sick else 2.0)
        found.tick(T0 + i * S)
    late, now = T0 + 360 * S, T0 + 420 * S
    dns = next(each for each in found.evidence(late, now, [(T0, late)]) if each.signal == "dns_latency_ms")
    assert (dns.value, dns.baseline, dns.level) == (300.0, 2.0, 2)


def test_what_the_service_timed_itself() -> None:
    """Spans of retrieval say what names and connections took."""
    found = ServiceSeries(1000 * S)
    attrs = {"llm.slo.retrieval.dns_ms": 240.0, "llm.slo.retrieval.network_ms": 3.0}
    found.add_span(one_span(T0 + 10 * S, T0 + 11 * S, name="chat.retrieval", kind=1, attrs=attrs))
    assert {e.signal: e.value for e in found.evidence(ONSET, NOW, [])} == {"retrieval_dns_ms": 240.0, "retrieval_network_ms": 3.0}


def test_observed_signals_are_the_attached_ones() -> None:
    """A signal that is not attached, or is shed, is not watched."""
    rows = [
        {"signal": "dns_latency_ms", "attached": True},
        {"signal": "disk_io_latency_ms", "attached": False},
        {"signal": "runqueue_delay_ms", "attached": True, "shed": True},
    ]
    assert observed_signals({"signals": rows}) == {"dns_latency_ms"}


def test_retrieval_that_the_kernel_does_not_explain() -> None:
    """Retrieval time minus what DNS, connect and TLS in it took; never negative; unknown without enrichment."""
    name, explained = "retrieval_unexplained_ms", "llm.ebpf.retrieval.kernel_attributed_ms"
    for attrs, expected in (({explained: 300.0}, 700.0), ({explained: 5000.0}, 0.0), ({}, None)):
        found = ServiceSeries(1000 * S)
        found.add_span(one_span(T0 + 10 * S, T0 + 11 * S, name="chat.retrieval", kind=1, attrs=attrs))
        values = {e.signal: e.value for e in found.evidence(ONSET, NOW, [])}
        assert values.get(name) == expected


def test_evidence_kinds_are_the_catalogue_and_the_otel_rows() -> None:
    """Every kernel signal and every otel row is a kind with a positive floor; nothing names a label."""
    kinds = evidence_kinds()
    assert list(kinds) == [*signals(), *vocabulary("evidence")["otel"]]
    assert all(kind.floor > 0 for kind in kinds.values())
    assert all("label" not in name and "fault" not in name for name in kinds)


@given(st.sampled_from(list(signals())), st.floats(0, 1e15), st.floats(0, 1e15))
def test_any_value_is_graded(name: str, value: float, base: float) -> None:
    """No pair of values that the contract allows breaks the grading."""
    found = judged(series(*before(name, base), (name, 11, value)))[name]
    assert found.level in (0, 1, 2)


def test_probe_events_are_noted_by_signal() -> None:
    """A probe-event counts at its own time with its value."""
    found = ServiceSeries(S)
    found.add_probe(probe(T0 + 11 * S, value=200.0))
    assert judged(found, base=[])["dns_latency_ms"].value == 200.0


def test_an_idle_read_is_no_evidence() -> None:
    """A read that waited for its peer is not noted, one that waited for storage is."""
    found = ServiceSeries(S)
    for what, value in (("peer", 9000.0), ("storage", 80.0)):
        found.add_probe(probe(T0 + 11 * S, "syscall_latency_ms", value, attributes={"syscall.waits_for": what}))
    assert judged(found, base=[])["syscall_latency_ms"].value == 80.0 / 4  # ms a second


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True])
def test_a_number_that_is_none_is_missing(value: float) -> None:
    """What an application divided by zero is no evidence, and spoils none that there is."""
    found = ServiceSeries(1000 * S)
    for name in ("llm.slo.retrieval.dns_ms", "llm.slo.retrieval.network_ms", "llm.ebpf.retrieval.kernel_attributed_ms"):
        span = one_span(T0 + 10 * S, T0 + 11 * S, name="chat.retrieval", kind=1)
        span.attributes[name] = value
        found.add_span(span)
    assert found.evidence(ONSET, NOW, []) == []


def test_sums_beyond_what_a_number_can_be() -> None:
    """Two waits of the largest number that the contract allows still give evidence that JSON can carry."""
    found = series(*[("mem_reclaim_latency_ms", 11.0 + i, 1.7e308) for i in range(3)])
    (each,) = found.evidence(ONSET, NOW, [])
    assert each.value == 1e300 and each.level == 2
