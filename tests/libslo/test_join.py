"""Joining streams: the same answer however the records are cut into batches, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
from builders import MS, T0, S, one_span, probe, span_id, trace_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libslo.join import Joined, StreamJoin, summary
from libslo.spans import Span

Record = dict[str, Any] | Span


def add(join: StreamJoin, record: Record) -> None:
    if isinstance(record, Span):
        join.add_span(record)
    else:
        join.add_event(record)


def said(joined: list[Joined]) -> list[Any]:
    return [(each.event, each.span.span_id if each.span else None, each.extra) for each in joined]


def run(records: list[Record], sizes: list[int] | None = None, **options: Any) -> tuple[list[Any], StreamJoin]:
    """Feed in batches of these sizes (the last goes on; None: all at once)."""
    join, out, left, turn = StreamJoin(**options), [], list(records), 0
    while left:
        size = len(left) if sizes is None else sizes[min(turn, len(sizes) - 1)]
        for record in left[:size]:
            add(join, record)
        del left[:size]
        out += join.take()
        turn += 1
    return said(out + join.finish()), join


@st.composite
def streams(draw: Any) -> list[Record]:
    """Records on a coarse grid of times, so that equal times are common; some late, some far back."""
    records: list[Record] = []
    now = T0 + 4000 * S
    for number in range(draw(st.integers(0, 25))):
        now += draw(st.sampled_from([0, 0, 100, 500, 1000, 3000])) * MS
        at = now - draw(st.sampled_from([0, 0, 0, 500, 1000, 6000])) * MS
        if draw(st.integers(0, 12)) == 0:
            at = now - 3600 * S
        if draw(st.booleans()):
            more = {"trace_id": trace_id(draw(st.integers(0, 2)))} if draw(st.booleans()) else {}
            records.append(probe(at, value=draw(st.sampled_from([1, 100.0])), tid=number, **more))
        else:
            length = draw(st.sampled_from([0, 100, 1000])) * MS
            parent = span_id(draw(st.integers(0, 25)))
            records.append(
                one_span(
                    at - length,
                    at,
                    trace=trace_id(draw(st.integers(0, 2))),
                    span=span_id(number),
                    parent=parent,
                    name=draw(st.sampled_from(["x", "chat.retrieval"])),
                    kind=3,
                )
            )
    return records


SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=8)


@settings(max_examples=200)
@given(streams(), SIZES)
def test_batches_do_not_matter(records: list[Record], sizes: list[int]) -> None:
    """One by one, cut anywhere, and all at once: the same records with the same links, in the same order, and the same account."""
    whole, join = run(records)
    for cut in ([1], sizes):
        again, other = run(records, cut)
        assert again == whole
        assert other.stats == join.stats


@given(streams(), SIZES, st.integers(1, 5))
def test_batches_do_not_matter_at_capacity(records: list[Record], sizes: list[int], capacity: int) -> None:
    """What is finished early because too much is held depends on the records only."""

    def answer(cut: list[int] | None) -> Any:
        out, join = run(records, cut, capacity=capacity)
        for _, _, extra in out:  # sums of waits are bounded apart, by batches; at capacities that are not as tiny it never shows
            extra.pop("llm.ebpf.retrieval.kernel_attributed_ms", None)
        return out, join.stats

    assert answer(sizes) == answer(None) == answer([1])


@given(streams())
def test_nothing_is_lost_or_doubled(records: list[Record]) -> None:
    """Every record that goes in comes out exactly once."""
    out, join = run(records, [1])
    assert len(out) == len(records)
    assert sorted(event["tid"] for event, _, _ in out if event) == sorted(r["tid"] for r in records if not isinstance(r, Span))
    assert join.idle
    assert join.stats.signals + join.stats.spans == len(records)


@given(streams())
@example([])
def test_times_in_order_need_no_lateness(records: list[Record]) -> None:
    """Sorted input is never late."""

    def time(record: Record) -> int:
        return record.end_unix_ns if isinstance(record, Span) else int(record["ts_unix_nano"])

    _, join = run(sorted(records, key=time))
    assert join.stats.late == 0


def test_a_signal_before_and_after_its_span() -> None:
    """A span comes after the waits in it (it ends later) or before a signal that is reported late: both are joined."""
    span = one_span(T0, T0 + S, name="chat.retrieval", kind=1)
    for order in ([probe(T0 + 500 * MS, value=450), span], [span, probe(T0 + 500 * MS, value=450)]):
        out, join = run(order, [1])
        event = next(event for event, _, _ in out if event)
        assert (event["trace_id"], event["span_id"], event["confidence"]) == (span.trace_id, span.span_id, 0.9)
        extra = next(extra for _, sid, extra in out if sid)
        assert extra == {
            "llm.ebpf.dns.latency_ms": 450.0,
            "llm.ebpf.correlation_confidence": 0.9,
            "llm.ebpf.retrieval.kernel_attributed_ms": 450.0,
        }
        assert join.stats.links == {"pod_pid_100ms": 1} and join.stats.enriched == {"pod_pid_100ms": 1}


def test_the_input_is_not_changed() -> None:
    """A linked signal is a new object."""
    event = probe(T0)
    run([event, one_span()])
    assert event == probe(T0)


def test_the_last_tier_is_counted_and_enriches_nothing() -> None:
    """A 0.65 link gives the signal its confidence, no ids, and the span nothing."""
    out, join = run([probe(T0, pid=0, service="rag"), one_span()])
    event = next(event for event, _, _ in out if event)
    assert event["confidence"] == 0.65 and "trace_id" not in event and "span_id" not in event
    assert [extra for _, sid, extra in out if sid] == [{}]
    assert join.stats.links == {"service_node_500ms": 1} and not join.stats.enriched


def test_unlinked_signals_have_no_confidence() -> None:
    """A signal without a span stays as it was."""
    out, _ = run([probe(T0, pid=99), one_span()])
    assert out[0][0] == probe(T0, pid=99)


def test_a_signal_is_of_its_span_s_service() -> None:
    """What the agent could only guess, the span says; a signal that has no span, or none that enriches, stays as it is."""
    out, _ = run([probe(T0), probe(T0, service="python3"), probe(T0, service="cron", pid=99), one_span()])
    assert sorted(event["service"] for event, _, _ in out if event) == ["cron", "rag", "rag"]


def test_waits_below_retrieval_are_attributed_to_it_once() -> None:
    """Parallel waits in a child span of retrieval count once, also when both spans end together, whatever their ids."""
    for outer, inner in ((span_id(1), span_id(2)), (span_id(2), span_id(1))):
        retrieval = one_span(T0, T0 + S, span=outer, name="chat.retrieval", kind=1)
        child = one_span(T0 + 100 * MS, T0 + S, span=inner, parent=outer, kind=3, name="GET")
        waits = [probe(T0 + 500 * MS, value=300), probe(T0 + 450 * MS, "connect_latency_ms", 200), probe(T0 + 900 * MS, value=100)]
        out, _ = run([*waits, child, retrieval])
        extras = {sid: extra for _, sid, extra in out if sid}
        assert extras[outer]["llm.ebpf.retrieval.kernel_attributed_ms"] == 400.0
        assert "llm.ebpf.retrieval.kernel_attributed_ms" not in extras[inner]
        assert extras[inner]["llm.ebpf.dns.latency_ms"] == 300.0


def test_attributed_time_is_never_more_than_the_span() -> None:
    """A wait that began before the span counts for its part inside."""
    out, _ = run([probe(T0 + 80 * MS, value=5000), one_span(T0, T0 + 100 * MS, name="chat.retrieval", kind=3)])
    assert [extra["llm.ebpf.retrieval.kernel_attributed_ms"] for _, sid, extra in out if sid] == [80.0]


def test_records_wait_for_each_other_no_longer_than_needed() -> None:
    """A signal is handed out once the watermark has passed its widest window; nothing waits for the end of the input."""
    join = StreamJoin(window_ns=2 * S, lateness_ns=500 * MS)
    join.add_event(probe(T0))
    join.add_event(probe(T0 + 999 * MS))
    assert join.take() == []
    join.add_event(probe(T0 + 1000 * MS))
    assert [each.event["ts_unix_nano"] for each in join.take() if each.event] == [T0]


def test_late_records_are_counted_and_joined_with_what_is_left() -> None:
    """A record that comes after its window has been decided is counted, and handed out all the same."""
    out, join = run([probe(T0 + 10 * S), probe(T0), one_span(T0 - S, T0)], [1])
    assert join.stats.late == 2 and len(out) == 3


def test_time_can_be_pushed_on() -> None:
    """advance finishes what is due on a quiet stream; it never turns time back."""
    join = StreamJoin()
    join.add_event(probe(T0))
    join.advance(T0 - S)
    assert join.take() == []
    join.advance(T0 + 10 * S)
    assert len(join.take()) == 1 and join.idle


def test_clock_that_steps_back_starts_anew() -> None:
    """After a step back what was held is finished and the new time is joined as usual."""
    back = T0 - 3600 * S
    records: list[Record] = [probe(T0), *(probe(back + i * MS, tid=i) for i in range(5)), one_span(back, back + S)]
    out, join = run(records)
    assert join.stats.clock_steps == 1 and len(out) == 7
    assert sum("span_id" in event for event, _, _ in out if event) >= 3


def test_memory_is_bounded_by_the_capacity() -> None:
    """However many records fall into one window, no more than the capacity are held, and each is counted once."""
    join = StreamJoin(capacity=10)
    count = 0
    for i in range(500):
        join.add_span(one_span(T0 + i * MS, T0 + i * MS + 1, trace=trace_id(i), span=span_id(i)))
        join.add_event(probe(T0 + i * MS, tid=i))
        count += len(join.take())
        held = sum(len(value) for value in vars(join).values() if isinstance(value, list | dict))
        assert held <= 60
    assert count >= 970
    assert 900 <= join.stats.overflowed <= 1000
    assert count + len(join.finish()) == 1000


def test_one_by_one_is_not_slow() -> None:
    """Ten thousand signals at a thousand a second, fed one at a time, take a few seconds at most."""
    import time

    join, began = StreamJoin(), time.perf_counter()
    for i in range(10_000):
        join.add_event(probe(T0 + i * MS, pid=5))
        if i % 20 == 0:
            join.add_span(one_span(T0 + i * MS - 10 * MS, T0 + i * MS, trace=trace_id(i), span=span_id(i)))
        join.take()
    assert time.perf_counter() - began < 15


@pytest.mark.parametrize("end", [2**62 - 1, T0])
def test_the_largest_times_are_taken(end: int) -> None:
    """The last nanosecond that the contracts allow overflows nothing."""
    out, _ = run([probe(2**62 - 1, trace_id=trace_id(1)), one_span(T0, end, trace=trace_id(1)), probe(T0)])
    assert len(out) == 3


def test_summary_has_all_tiers() -> None:
    """The account names every tier, also those without a link."""
    _, join = run([probe(T0), one_span()])
    counts = summary(join.stats)
    assert counts["linked"] == {"trace_id_exact": 0, "pod_pid_100ms": 1, "pod_conn_250ms": 0, "service_node_500ms": 0}
    assert counts["mean_competing_traces"] == {"pod_pid_100ms": 1.0}
    assert (counts["signals"], counts["spans"], counts["late"], counts["finished_early"]) == (1, 1, 0, 0)


def test_a_live_span_that_comes_late_is_enriched_all_the_same() -> None:
    """With retain_ns a signal that was handed out without a span still enriches one that its exporter held back."""
    for retain_ns, gained in ((0, False), (15 * S, True)):
        join = StreamJoin(retain_ns=retain_ns)
        join.add_event(probe(T0, value=200))
        join.advance(T0 + 5 * S)
        (handed_out,) = join.take()
        assert handed_out.event is not None and "trace_id" not in handed_out.event
        join.add_span(one_span(start=T0 - 300 * MS, end=T0 + 100 * MS))
        join.advance(T0 + 6 * S)
        (late,) = join.take()
        assert ("llm.ebpf.dns.latency_ms" in late.extra) is gained, retain_ns


def test_a_retained_signal_enriches_one_span_once() -> None:
    """A late link is made once; what is older than retain_ns is forgotten."""
    join = StreamJoin(retain_ns=15 * S)
    join.add_event(probe(T0, value=200))
    join.advance(T0 + 5 * S)
    join.take()
    for start in (T0 - 300 * MS, T0 - 290 * MS):
        join.add_span(one_span(start=start, end=T0 + 100 * MS))
        join.advance(T0 + 6 * S)
    enriched = [joined for joined in join.take() if joined.extra]
    assert len(enriched) == 1
    join.add_event(probe(T0 + 7 * S, value=200))
    join.advance(T0 + 40 * S)
    join.take()
    join.add_span(one_span(start=T0 + 6 * S, end=T0 + 8 * S))
    join.advance(T0 + 41 * S)
    assert [joined.extra for joined in join.take()] == [{}]


def test_unlinked_signals_are_forgotten_without_a_late_span() -> None:
    """On a live stream that no span comes late to, or none at all, what is remembered for one is no more than retain_ns holds."""
    join, most = StreamJoin(retain_ns=15 * S), 0
    for second in range(2000):
        for i in range(20):
            join.add_event(probe(T0 + second * S + i * MS, tid=i))
        join.take()
        most = max(most, len(join._unlinked))
    assert 15 * 20 <= most <= 1200


def test_a_clock_that_was_wrong_for_a_moment_costs_no_link() -> None:
    """Told that five minutes have passed, and then that they have not: signals and spans find each other as before."""
    join = StreamJoin(retain_ns=15 * S)
    join.add_event(probe(T0))
    join.advance(T0 + S)
    join.advance(T0 + 300 * S)
    join.advance(T0 + 2 * S)
    for i in range(3, 20):
        join.add_event(probe(T0 + i * S, value=20.0))
        join.add_span(one_span(T0 + i * S - 100 * MS, T0 + i * S + 50 * MS, trace=trace_id(i), span=span_id(i)))
        join.advance(T0 + i * S + 200 * MS)
        join.take()
    join.finish()
    assert join.stats.clock_steps == 1 and join.stats.late == 0
    assert sum(join.stats.links.values()) == 17
    join.advance(T0 + 20 * S)
    join.advance(T0 + 19 * S)  # set back a little, as clocks are
    assert join.stats.clock_steps == 1


@pytest.mark.parametrize("ports", [([1], 443), (True, 443), ("x", 443), (1, {"a": 1}), (float("nan"), 443), (10**400, 443)])
def test_a_port_that_is_none_links_nothing(ports: tuple[Any, Any]) -> None:
    """Whatever an application writes into its attributes: the span is joined by what else is known of it."""
    span = one_span(T0 - 100 * MS, T0 + 100 * MS)
    span.attributes.update({"network.local.port": ports[0], "network.peer.port": ports[1], "network.local.address": ["::1"]})
    conn = {"src_ip": "::1", "src_port": 1, "dst_ip": "::2", "dst_port": 443, "protocol": "tcp"}
    out, join = run([probe(T0, value=20.0, conn_tuple=conn), span])
    assert len(out) == 2 and join.stats.links["pod_conn_250ms"] == 0
