"""SLI events and burn rates: equal to slow references, with every edge defined."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from builders import MS, T0, S, one_span, raw_sample
from hypothesis import given
from hypothesis import strategies as st

from libslo.clock import EventClock
from libslo.contracts import contract
from libslo.errors import InputError
from libslo.jsonl import decode_lines
from libslo.signals import Objective, sli
from libslo.slo import (
    BurnPair,
    BurnPolicy,
    BurnTracker,
    ClosingRule,
    burn_policy,
    burn_rate,
    format_timestamp,
    parse_objective,
    parse_timestamps,
    slo_events_from_samples,
    slo_events_from_span,
)

ODD = st.one_of(
    st.sampled_from(['"', "\\", '\\"', '"request_id":', ',"request_id":"x"', "é✓\u2028", "a,b,c,d", "}", "\t\n", "null", "\x00"]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
)
NUMBER = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6), st.sampled_from([0, 0.0, 10, 30, 500, 1000, 700, 1500, 1e-9, 1e22]))
SHARE = st.one_of(st.floats(0, 1), st.sampled_from([0, 1, 0.02, 0.05]))
SAMPLE = st.fixed_dictionaries(
    {
        "timestamp": st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T05:30:00.5+05:30"]),
        "cluster": ODD,
        "namespace": ODD,
        "workload": ODD,
        "service": ODD,
        "request_id": ODD,
        "ttft_ms": NUMBER,
        "request_latency_ms": NUMBER,
        "token_throughput_tps": NUMBER,
        "error_rate": SHARE,
    },
    optional={
        "retrieval_latency_ms": NUMBER,
        "provider_error_rate": SHARE,
        "fault_label": ODD,
        "trace_id": st.just("0" * 32),
        "labels": st.dictionaries(st.one_of(ODD, st.just("request_id")), ODD, max_size=3),
        "node": ODD,
    },
)


def slow_events(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The reference: one dictionary per SLI."""
    names = ["ttft_ms", "request_latency_ms", "token_throughput_tps", "error_rate", "retrieval_latency_ms", "provider_error_rate"]
    shared = {
        key: sample[key] for key in ("timestamp", "cluster", "namespace", "workload", "service", "trace_id", "request_id") if key in sample
    }
    labels = {**sample.get("labels", {}), **({"fault_label": sample["fault_label"]} if "fault_label" in sample else {})}
    if "labels" in sample or "fault_label" in sample:
        shared["labels"] = labels
    return [
        {
            **shared,
            "event_id": f"{sample['request_id']}/{name}",
            "sli_name": name,
            "sli_value": sample[name],
            "unit": sli(name).unit,
            "status": sli(name).status(sample[name]),
        }
        for name in names
        if name in sample
    ]


@given(st.lists(SAMPLE, max_size=4))
def test_events_from_samples_equal_the_slow_reference(samples: list[dict[str, Any]]) -> None:
    """The spliced bytes decode to exactly the events a loop over dictionaries builds, whatever the texts contain."""
    block, count = slo_events_from_samples(samples)
    records = decode_lines(block.splitlines(), ["slo-event"]) if block else []
    expected = [event for sample in samples for event in slow_events(sample)]
    assert [record[1] for record in records] == expected
    assert count == len(expected) == block.count(b"\n")
    assert all(record[0] == "slo-event" for record in records)


@pytest.mark.parametrize(
    "name", ["ttft_ms", "request_latency_ms", "token_throughput_tps", "error_rate", "retrieval_latency_ms", "provider_error_rate"]
)
def test_events_from_samples_grade_at_the_thresholds(name: str) -> None:
    """Just below, at and just above each threshold the spliced status is the one that the SLI itself gives."""
    values = [at + step for at in (sli(name).warning, sli(name).breach) for step in (-1e-6, 0, 1e-6)]
    block, _ = slo_events_from_samples([raw_sample(**{name: value}) for value in values])
    found = [record[1] for record in decode_lines(block.splitlines(), ["slo-event"]) if record[1]["sli_name"] == name]
    assert [event["status"] for event in found] == [sli(name).status(value) for value in values]


def test_events_from_samples_keep_the_number_as_it_was() -> None:
    """1 stays 1 and 0.1 stays 0.1 on the wire."""
    block, _ = slo_events_from_samples([raw_sample(ttft_ms=1, error_rate=0.1)])
    assert b'"sli_value":1,' in block and b'"sli_value":0.1,' in block


# --- burn rate


@pytest.mark.parametrize(
    ("bad", "valid", "objective", "expected"),
    [
        (0, 0, 0.95, 0),
        (0, 0, 1, 0),
        (5, 0, 0.95, 0),
        (0, 10, 0.95, 0),
        (5, 100, 0.95, 1),
        (10, 100, 0.95, 2),
        (100, 100, 0.999, 1000),
        (0, 10, 1, 0),
        (1, 10, 1, math.inf),
        (5, 10, 0, 0.5),
    ],
)
def test_burn_rate_is_defined_everywhere(bad: float, valid: float, objective: float, expected: float) -> None:
    """No traffic burns nothing; at an objective of 1 any bad request burns infinitely fast."""
    assert burn_rate(bad, valid, objective) == pytest.approx(expected)


def slow_states(policy: BurnPolicy, objective: Objective, events: list[tuple[int, bool]], watermarks: list[int]) -> list[tuple[Any, ...]]:
    """The reference: for every closed bucket, count the events in each window from scratch."""
    bucket = max(int(min(pair.short_s for pair in policy.pairs) / 5 * 1e9), 1)
    first = events[0][0] // bucket
    kept = [(ts // bucket, good) for ts, good in events if ts // bucket >= first]
    longest = max(round(pair.long_s * 1e9 / bucket) for pair in policy.pairs)
    out = []
    for at in range(first, max(watermarks) // bucket):
        if not any(at - longest < b <= at for b, _ in kept) and not any(at - 1 - longest < b <= at - 1 for b, _ in kept):
            continue  # nothing in any window, and nothing leaves one
        rows = []
        for pair in policy.pairs:
            burns, volumes = [], []
            for seconds in (pair.long_s, pair.short_s):
                length = round(seconds * 1e9 / bucket)
                inside = [good for b, good in kept if at - length < b <= at]
                burns.append(burn_rate(inside.count(False), len(inside), objective.ratio))
                volumes.append(len(inside))
            over = volumes[0] >= policy.min_events and min(burns) >= pair.burn_rate
            rows.append(((at + 1) * bucket, over, pair, burns[0], burns[1]))
        out.append(max(rows, key=lambda row: (row[1], row[3] / row[2].burn_rate)))
    return out


POLICY = BurnPolicy("t", (BurnPair("page", 6, 0.5, 3), BurnPair("ticket", 12, 1, 1.5)), 4, 200, 5000, ClosingRule(2, 1e-3, 1e-6, 30))


@given(
    st.lists(st.tuples(st.one_of(st.integers(0, 300), st.just(3000), st.just(40_000)), st.booleans()), min_size=1, max_size=40),
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
)
def test_burn_tracker_equals_the_slow_reference(steps: list[tuple[int, bool]], cuts: list[int]) -> None:
    """Running sums over buckets give what counting every window from scratch gives, gaps included, however often it is asked."""
    ts, events = T0, []
    for step, good in steps:
        ts += step * MS
        events.append((ts, good))
    tracker, objective = BurnTracker(POLICY, Objective(800, 0.95)), Objective(800, 0.95)
    states, marks = [], []
    for i, (at, good) in enumerate(events):
        tracker.add(at, good)
        if i % 5 in cuts:
            marks.append(at)
            states += tracker.evaluate(at)
    marks.append(ts + 20 * S)
    states += tracker.evaluate(marks[-1])
    got = [(s.ts_unix_ns, s.over, s.pair, pytest.approx(s.long_burn), pytest.approx(s.short_burn)) for s in states]
    assert got == slow_states(POLICY, objective, events, marks)
    assert tracker.late == 0


def test_late_requests_are_counted_and_not_used() -> None:
    """A request whose bucket is closed changes no state."""
    tracker = BurnTracker(POLICY, Objective(800, 0.95))
    tracker.add(T0, True)
    tracker.evaluate(T0 + S)
    tracker.add(T0 + 100 * MS, False)
    assert tracker.late == 1
    assert all(state.long_burn == 0 for state in tracker.evaluate(T0 + 2 * S))


@pytest.mark.parametrize("name", ["lab", "page", "ticket", "all"])
def test_a_far_future_request_does_not_hang(name: str) -> None:
    """A timestamp a century ahead is walked to in no time, and back at work the tracker still answers."""
    tracker = BurnTracker(burn_policy(name), Objective(800, 0.95))
    tracker.add(T0, False)
    began = time.perf_counter()
    far = T0 + 80 * 365 * 86400 * S
    tracker.add(far, True)
    states = tracker.evaluate(far)
    assert time.perf_counter() - began < 2 and len(states) < 20_000


def test_minimum_volume_before_a_verdict() -> None:
    """Nineteen bad requests are no verdict under the lab policy; twenty are."""
    for count, over in ((19, False), (20, True)):
        tracker = BurnTracker(burn_policy("lab"), Objective(800, 0.95))
        for i in range(count):
            tracker.add(T0 + i * MS, False)
        assert any(state.over for state in tracker.evaluate(T0 + S)) is over


def test_both_windows_must_burn() -> None:
    """Trouble that has just ended is over in the short window, so the pair is not over although the long one still burns."""
    tracker = BurnTracker(burn_policy("lab"), Objective(800, 0.95))
    for i in range(60):
        tracker.add(T0 + i * 50 * MS, i >= 30)
    last = tracker.evaluate(T0 + 3 * S)[-1]
    assert last.long_burn >= 3 and last.short_burn == 0 and not last.over


def test_event_clock_steps_back_only_when_three_agree() -> None:
    """One old time is late, three in a row more than ten minutes back are a new one; small disorder is nothing, and no repetition."""
    clock = EventClock()
    hour = 3600 * S
    old = (T0 - hour, T0 - hour + 1, T0 - hour + 2)
    assert [clock.see(t) for t in (T0, T0 + S, T0 - 599 * S, *old[:2], T0, old[0], old[0], old[0], old[1])] == [False] * 10
    assert clock.see(old[2]) is True and clock.latest_ns == old[2]


def test_event_clock_believes_the_future_when_three_agree() -> None:
    """One record from the future moves nothing; three in a row move time to the first of them; the furthest claim is known."""
    clock = EventClock()
    for t in (T0, T0 + 540 * S, T0 + S):
        assert clock.see(t) is False
    assert clock.latest_ns == T0 + S
    for t in (T0 + 70 * S, T0 + 60 * S, T0 + 70 * S):
        clock.see(t)
    assert clock.latest_ns == T0 + S and clock.furthest_ns == T0 + 70 * S
    clock.see(T0 + 80 * S)
    assert clock.latest_ns == T0 + 60 * S


# --- policies and objectives


def test_burn_policies_are_those_of_the_workbook() -> None:
    """Page and ticket pairs with their burn rates; short is a twelfth of long."""
    rows = {name: [(p.burn_rate, p.long_s, p.short_s) for p in burn_policy(name).pairs] for name in ("page", "ticket", "all", "lab")}
    assert rows["page"] == [(14.4, 3600, 300), (6, 21600, 1800)]
    assert rows["ticket"] == [(3, 86400, 7200), (1, 259200, 21600)]
    assert rows["all"] == rows["page"] + rows["ticket"]
    assert all(long / short == 12 for pairs in rows.values() for _, long, short in pairs)


def test_unknown_burn_policy_lists_the_known() -> None:
    """The cure names what there is."""
    with pytest.raises(InputError) as caught:
        burn_policy("fast")
    assert "lab, page, ticket, all" in str(caught.value.hint)


def test_parse_objective() -> None:
    """SLI=THRESHOLD@RATIO in plain and odd numbers."""
    assert parse_objective("ttft_ms=800@0.95") == ("ttft_ms", Objective(800, 0.95))
    assert parse_objective("error_rate=5e-2@1") == ("error_rate", Objective(0.05, 1.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ttft_ms",
        "ttft_ms=800",
        "ttft_ms=@0.9",
        "ttft_ms=800@",
        "ttft_ms=x@0.9",
        "ttft_ms=800@0",
        "ttft_ms=800@1.01",
        "ttft=1@0.9",
        "ttft_ms=nan@0.9",
        "ttft_ms=800@nan",
        "ttft_ms=inf@0.9",
        "ttft_ms=800@95",
    ],
)
def test_what_is_no_objective_says_the_right_form(text: str) -> None:
    """Every wrong form is an input error with an example to copy."""
    with pytest.raises(InputError) as caught:
        parse_objective(text)
    assert "ttft_ms=800@0.95" in str(caught.value.hint)


# --- timestamps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", T0),
        ("2026-01-01T00:00:00.000000001Z", T0 + 1),
        ("2026-01-01T00:00:00.5Z", T0 + S // 2),
        ("2026-01-01t00:00:00z", T0),
        ("2026-01-01t00:00:00Z", T0),
        ("2026-01-01T00:00:00.0000000019999999999999Z", T0 + 1),
        ("2026-01-01T05:30:00+05:30", T0),
        ("2025-12-31T16:00:00.25-08:00", T0 + S // 4),
        ("2026-01-01T00:00:00+00:00", T0),
        ("2026-01-01T00:00:00-00:00", T0),
        ("1970-01-01T00:00:00Z", 0),
        ("2016-12-31T23:59:60Z", 1483228799 * S),
    ],
)
def test_parse_timestamps(text: str, expected: int) -> None:
    """RFC 3339 with fractions, offsets, small letters and leap seconds, alone and among others."""
    assert parse_timestamps([text]).tolist() == [expected]
    assert parse_timestamps(["2026-01-01T00:00:00Z", text, "2026-01-01T00:00:00Z"]).tolist() == [T0, expected, T0]


@pytest.mark.parametrize("text", ["", "Z", "now", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00+0530"])
def test_bad_timestamps_are_input_errors(text: str) -> None:
    """What is no RFC 3339 time is refused, never guessed."""
    with pytest.raises(InputError):
        parse_timestamps([text])


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "9996-02-29T00:00:00Z", "0004-02-29T12:00:00+01:00"])
def test_times_that_64_bits_cannot_hold_do_not_wrap(text: str) -> None:
    """A valid time far outside is taken as the edge of what can be held, on the right side."""
    assert contract("slo-event").is_valid({**next(slo_events_from_span(one_span(), "c")), "timestamp": text})
    (value,) = parse_timestamps([text]).tolist()
    assert value > T0 + 10**18 if text.startswith("9") else value < -(10**18)


@given(st.integers(0, 2**62))
def test_format_timestamp_is_read_back_to_the_microsecond(ts: int) -> None:
    """A formatted time is RFC 3339 and reads back as the same microsecond."""
    assert parse_timestamps([format_timestamp(ts)]).tolist() == [ts // 1000 * 1000]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_timestamps_in_a_batch_equal_timestamps_one_by_one(times: list[int]) -> None:
    """The fast path for many gives what one at a time gives."""
    texts = [format_timestamp(ts) for ts in times]
    assert parse_timestamps(texts).tolist() == [parse_timestamps([text]).tolist()[0] for text in texts]


# --- spans


def test_server_span_gives_four_slis() -> None:
    """A server span with TTFT and tokens gives latency, TTFT, throughput over the streaming time, and errors."""
    span = one_span(T0, T0 + 1300 * MS, attrs={"llm.slo.ttft_ms": 300.0, "gen_ai.usage.output_tokens": 50, "llm.request_id": "r9"})
    events = {event["sli_name"]: event for event in slo_events_from_span(span, "lab")}
    assert {name: event["sli_value"] for name, event in events.items()} == {
        "ttft_ms": 300.0,
        "request_latency_ms": 1300.0,
        "token_throughput_tps": 50.0,
        "error_rate": 0.0,
    }
    assert all(contract("slo-event").is_valid(event) for event in events.values())
    one = events["ttft_ms"]
    assert (one["event_id"], one["request_id"], one["cluster"], one["timestamp"]) == (
        f"{span.span_id}/ttft_ms",
        "r9",
        "lab",
        "2026-01-01T00:00:01.300000Z",
    )


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"kind": 2, "error": True}, {"request_latency_ms": 1000.0, "error_rate": 1.0}),
        ({"kind": 1, "name": "chat.retrieval"}, {"retrieval_latency_ms": 1000.0}),
        ({"kind": 3, "attrs": {"gen_ai.operation.name": "chat"}, "error": True}, {"provider_error_rate": 1.0}),
        ({"kind": 3, "name": "GET /"}, {}),
        ({"kind": 1}, {}),
        (
            {"kind": 2, "attrs": {"llm.slo.ttft_ms": 2000.0, "gen_ai.usage.output_tokens": 5}},
            {"ttft_ms": 2000.0, "request_latency_ms": 1000.0, "error_rate": 0.0},
        ),
        (
            {"kind": 2, "attrs": {"llm.slo.tokens_per_sec": 12.5}},
            {"request_latency_ms": 1000.0, "token_throughput_tps": 12.5, "error_rate": 0.0},
        ),
    ],
)
def test_which_span_gives_which_sli(kwargs: dict[str, Any], expected: dict[str, float]) -> None:
    """Only spans that stand for a request, its retrieval or its provider call give SLIs; nothing is made up."""
    assert {e["sli_name"]: e["sli_value"] for e in slo_events_from_span(one_span(**kwargs), "c")} == expected


def test_labels_say_status_and_error() -> None:
    """HTTP status and error type travel as text labels; a span of no service is valid all the same."""
    (event, *_) = slo_events_from_span(one_span(attrs={"http.status_code": 503, "error.type": "timeout"}, resource={}), "c")
    assert event["labels"] == {"http.response.status_code": "503", "error.type": "timeout"}
    assert contract("slo-event").is_valid(event) and event["service"] == "unknown"
