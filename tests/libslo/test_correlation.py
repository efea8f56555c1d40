"""Joining signals with spans: equal to comparing all pairs, indifferent to order and to the origin of time."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from builders import MS, T0, S, one_span, probe, span_id, trace_id
from hypothesis import given
from hypothesis import strategies as st

from libslo.correlation import Interner, Links, correlate, covered_ns, enrichment, probe_table, span_table, tiers
from libslo.signals import signal, signals
from libslo.spans import Span

CONN = {"src_ip": "10.0.0.5", "dst_ip": "10.0.9.1", "src_port": 40000, "dst_port": 443, "protocol": "tcp"}
CONN_ATTRS = {
    "network.local.address": "10.0.0.5",
    "network.local.port": 40000,
    "network.peer.address": "10.0.9.1",
    "network.peer.port": 443,
}


def link(probes: list[dict[str, Any]], spans: list[Span], window_ns: int | None = None) -> Links:
    intern = Interner()
    return correlate(probe_table(probes, intern), span_table(spans, intern), window_ns)


def rows(links: Links) -> list[tuple[int, int, int, int, int]]:
    return list(zip(*(c.tolist() for c in (links.probe, links.span, links.tier, links.distance_ns, links.competitors)), strict=True))


# --- the reference


def keys_of_probe(event: dict[str, Any]) -> list[Any]:
    pod = event["pod"] or f"node:{event['node']}"
    conn = event.get("conn_tuple")
    if event.get("trace_id"):
        return [event["trace_id"], None, None, None]  # what it says of itself is not replaced by a guess
    return [
        None,
        (pod, event["pid"]) if event["pid"] else None,
        (pod, conn["src_ip"], conn["src_port"], conn["dst_ip"], conn["dst_port"]) if conn else None,
        (event["service"], event["node"]) if event.get("service") else None,
    ]


def keys_of_span(span: Span) -> list[Any]:
    pod = span.pod or f"node:{span.node}"
    conn = (span.read("local_address"), span.read("local_port"), span.read("peer_address"), span.read("peer_port"))
    return [
        span.trace_id,
        (pod, span.pid) if span.pid else None,
        (pod, *conn) if conn[1] and conn[3] else None,
        (span.service, span.node) if span.service else None,
    ]


def slow_links(probes: list[dict[str, Any]], spans: list[Span], window_ns: int | None = None) -> list[tuple[int, int, int, int, int]]:
    """All pairs; per probe the first tier with a span in its window, and of its spans the smallest by the documented order."""
    out = []
    for p, event in enumerate(probes):
        ts, about = event["ts_unix_nano"], signal(event["signal"])
        began = ts - (int(event["value"] * 1e6) if about.kind == "wait" else 0)
        for level, tier in enumerate(tiers()):
            window = window_ns if level == 0 and window_ns is not None else tier.window_ns
            near = []
            for s, span in enumerate(spans):
                distance = max(span.start_unix_ns - ts, ts - span.end_unix_ns, 0)
                key = keys_of_probe(event)[level]
                if key is None or key != keys_of_span(span)[level] or distance > window:
                    continue
                apart = keys_of_probe(event)[2] is None or keys_of_probe(event)[2] != keys_of_span(span)[2]
                wrong_work = about.work == "network" and not span.does_network_work
                gap = began - span.start_unix_ns
                fixed = (span.end_unix_ns - span.start_unix_ns, span.start_unix_ns, span.trace_id, span.span_id)
                near.append(((apart, distance, wrong_work, gap < 0, abs(gap), *fixed), s, span.trace_id))
            if near:
                best = min(near)
                out.append((p, best[1], level, best[0][1], len({trace for _, _, trace in near})))
                break
    return out


@st.composite
def tables(draw: Any) -> tuple[list[dict[str, Any]], list[Span]]:
    grid = st.integers(0, 60).map(lambda n: T0 + n * 50 * MS)
    maybe = st.booleans()
    probes, spans = [], []
    for _ in range(draw(st.integers(0, 8))):
        name = draw(st.sampled_from(["dns_latency_ms", "connect_latency_ms", "runqueue_delay_ms", "tcp_retransmits_total"]))
        more: dict[str, Any] = {"pid": draw(st.sampled_from([0, 7, 8])), "pod": draw(st.sampled_from(["rag-0", ""]))}
        if draw(maybe):
            more["trace_id"] = trace_id(draw(st.integers(0, 2)))
        if draw(maybe):
            more["conn_tuple"] = {**CONN, "src_port": draw(st.sampled_from([40000, 40001]))}
        if draw(maybe):
            more["service"] = draw(st.sampled_from(["rag", "other"]))
        probes.append(probe(draw(grid), name, draw(st.sampled_from([0, 50, 100.0, 2000])), **more))
    for number in range(draw(st.integers(0, 8))):
        start = draw(grid)
        resource = {"service.name": draw(st.sampled_from(["rag", "other"])), "host.name": "node-a"}
        if draw(maybe):
            resource["k8s.pod.name"] = "rag-0"
        if draw(maybe):
            resource["process.pid"] = draw(st.sampled_from([7, 8]))
        attrs = {**CONN_ATTRS, "network.local.port": draw(st.sampled_from([40000, 40001]))} if draw(maybe) else {}
        spans.append(
            one_span(
                start,
                start + draw(st.sampled_from([0, 1, 50, 100, 1180, 3000])) * MS,
                trace=trace_id(draw(st.integers(0, 2))),
                span=span_id(number),
                kind=draw(st.sampled_from([1, 2, 3])),
                attrs=attrs,
                resource=resource,
            )
        )
    return probes, spans


@given(tables())
def test_equals_comparing_all_pairs(case: tuple[list[dict[str, Any]], list[Span]]) -> None:
    """Tier, span, distance and number of competing traces are what comparing every signal with every span gives."""
    assert rows(link(*case)) == slow_links(*case)


@given(tables(), st.sampled_from([0, 50 * MS, 100 * MS, S]))
def test_window_of_the_trace_tier_can_be_set(case: tuple[list[dict[str, Any]], list[Span]], window_ns: int) -> None:
    """window_ns bounds the first tier only."""
    assert rows(link(*case, window_ns)) == slow_links(*case, window_ns)


@given(tables(), st.randoms(use_true_random=False))
def test_order_of_the_input_changes_nothing(case: tuple[list[dict[str, Any]], list[Span]], rng: random.Random) -> None:
    """Shuffled signals and spans are linked to the same partners."""
    probes, spans = case
    named = {(p, spans[s].span_id, *rest) for p, s, *rest in rows(link(probes, spans))}
    order_p, order_s = rng.sample(range(len(probes)), len(probes)), rng.sample(range(len(spans)), len(spans))
    shuffled = [spans[i] for i in order_s]
    again = {(order_p[p], shuffled[s].span_id, *rest) for p, s, *rest in rows(link([probes[i] for i in order_p], shuffled))}
    assert again == named


@given(tables(), st.integers(-T0 + 10 * S, 2**61 - T0))
def test_shifting_all_times_changes_nothing(case: tuple[list[dict[str, Any]], list[Span]], shift: int) -> None:
    """Only differences of times matter."""
    probes, spans = case
    moved = [{**event, "ts_unix_nano": event["ts_unix_nano"] + shift} for event in probes]
    before = rows(link(probes, spans))
    for span in spans:
        span.start_unix_ns += shift
        span.end_unix_ns += shift
    assert rows(link(moved, spans)) == before


def test_a_large_table_equals_the_reference_on_a_sample() -> None:
    """Hundreds of spans of many lengths and keys, where the binary search has work to do."""
    rng = random.Random(7)
    spans = [
        one_span(
            start := T0 + rng.randrange(60_000) * MS,
            start + int(rng.expovariate(1 / 200)) * MS,
            trace=trace_id(rng.randrange(50)),
            span=span_id(i),
            kind=rng.choice([1, 2, 3]),
            resource={
                "service.name": "rag",
                "host.name": "node-a",
                "k8s.pod.name": f"p{rng.randrange(5)}",
                "process.pid": rng.randrange(1, 4),
            },
        )
        for i in range(400)
    ]
    probes = [
        probe(
            T0 + rng.randrange(60_000) * MS,
            rng.choice(list(signals())),
            rng.random() * 100,
            pod=f"p{rng.randrange(5)}",
            pid=rng.randrange(4),
            **({"service": "rag"} if rng.random() < 0.5 else {}),
        )
        for _ in range(150)
    ]
    assert rows(link(probes, spans)) == slow_links(probes, spans)


# --- single rules, readable


def test_a_long_wait_in_the_middle_of_a_span_belongs_to_it() -> None:
    """A 450 ms DNS wait that ends inside a 1180 ms retrieval span has distance 0, not the distance to its start."""
    retrieval = one_span(T0, T0 + 1180 * MS, name="chat.retrieval", kind=1)
    assert rows(link([probe(T0 + 700 * MS, value=450)], [retrieval])) == [(0, 0, 1, 0, 1)]


@pytest.mark.parametrize(
    ("more", "tier"),
    [
        ({"trace_id": trace_id(1), "conn_tuple": CONN, "service": "rag"}, 0),
        ({"conn_tuple": CONN, "service": "rag"}, 1),
        ({"pid": 0, "conn_tuple": CONN, "service": "rag"}, 2),
        ({"pid": 0, "service": "rag"}, 3),
        ({"pid": 0}, None),
        ({"trace_id": trace_id(2), "pid": 0}, None),
        ({"service": "rag", "pod": "rag-1"}, 3),
        ({"service": "rag", "node": "node-b", "pid": 0}, None),
    ],
)
def test_the_best_tier_whose_key_agrees_wins(more: dict[str, Any], tier: int | None) -> None:
    """Trace, then pod and pid, then pod and connection, then service and node; a missing key is no key."""
    found = rows(link([probe(T0, **more)], [one_span(trace=trace_id(1), kind=3, attrs=CONN_ATTRS)]))
    assert [row[2] for row in found] == ([] if tier is None else [tier])


@pytest.mark.parametrize(
    ("tier", "more"),
    [(0, {"trace_id": trace_id(1), "pid": 0}), (1, {}), (2, {"pid": 0, "conn_tuple": CONN}), (3, {"pid": 0, "service": "rag"})],
)
def test_windows_are_inclusive(tier: int, more: dict[str, Any]) -> None:
    """A signal exactly a window away is linked, one nanosecond further it is not, before and after the span."""
    span = one_span(T0, T0 + S, trace=trace_id(1), kind=3, attrs=CONN_ATTRS)
    window = tiers()[tier].window_ns
    for ts, beyond in ((T0 - window, -1), (T0 + S + window, 1)):
        assert [row[2] for row in rows(link([probe(ts, **more)], [span]))] == [tier]
        assert rows(link([probe(ts + beyond, **more)], [span])) == []


def test_pods_that_are_not_known_fall_back_to_the_node() -> None:
    """Without Kubernetes the node and the pid are the key."""
    span = one_span(resource={"host.name": "node-a", "process.pid": 7})
    assert [row[2] for row in rows(link([probe(T0, pod="")], [span]))] == [1]
    assert rows(link([probe(T0, pod="", node="node-b")], [span])) == []


def test_work_then_containment_then_innermost_decide() -> None:
    """Network waits prefer spans that talk to somebody, then spans that hold the whole wait, then the innermost."""
    spans = [
        one_span(T0, T0 + S, span=span_id(1)),  # server: no network work of its own
        one_span(T0 + 100 * MS, T0 + 900 * MS, span=span_id(2), kind=1, name="chat.retrieval"),
        one_span(T0 + 200 * MS, T0 + 800 * MS, span=span_id(3), kind=3),
        one_span(T0 + 450 * MS, T0 + 550 * MS, span=span_id(4), kind=3),
        one_span(T0 + 300 * MS, T0 + 700 * MS, span=span_id(5), kind=1),
    ]
    assert rows(link([probe(T0 + 500 * MS, value=20)], spans))[0][1] == 3
    assert rows(link([probe(T0 + 500 * MS, value=200)], spans))[0][1] == 2
    assert rows(link([probe(T0 + 500 * MS, "runqueue_delay_ms", 150)], spans))[0][1] == 4


def test_work_comes_before_containment() -> None:
    """A client span that the wait began before is nearer the truth than a server span that holds all of it."""
    spans = [one_span(T0, T0 + S, span=span_id(1)), one_span(T0 + 400 * MS, T0 + 900 * MS, span=span_id(2), kind=3)]
    assert rows(link([probe(T0 + 500 * MS, value=200)], spans))[0][1] == 1
    assert rows(link([probe(T0 + 500 * MS, "disk_io_latency_ms", 200)], spans))[0][1] == 0


def test_spans_that_are_alike_are_told_apart_by_their_ids() -> None:
    """Between spans of the same times the trace id and then the span id decide, in whatever order they come."""
    spans = [one_span(trace=trace_id(t), span=span_id(i), kind=3) for t, i in ((2, 1), (1, 9), (1, 8))]
    for order in itertools.permutations(spans):
        ((_, chosen, *_),) = rows(link([probe(T0)], list(order)))
        assert (order[chosen].trace_id, order[chosen].span_id) == (trace_id(1), span_id(8))


def test_competitors_are_distinct_traces_in_the_window() -> None:
    """Spans of one trace compete as one."""
    spans = [one_span(T0, T0 + S, trace=trace_id(t), span=span_id(i)) for i, t in enumerate((1, 1, 2, 3))]
    assert rows(link([probe(T0)], spans))[0][4] == 3


def test_nothing_to_join() -> None:
    """Empty tables have no links."""
    assert rows(link([], [])) == rows(link([probe()], [])) == rows(link([], [one_span()])) == []


# --- enrichment


def test_at_most_three_signals_enrich_a_span() -> None:
    """By tier, then distance, then catalogue order; the confidence is that of the best."""
    links = [
        (probe(signal="syscall_latency_ms", value=9.0), 1, 0),
        (probe(signal="runqueue_delay_ms", value=3.0), 1, 0),
        (probe(signal="connect_latency_ms", value=5.0), 2, 0),
        (probe(signal="dns_latency_ms", value=4.0), 1, 50),
        (probe(signal="tls_handshake_ms", value=8.0), 0, 90),
    ]
    expected = {
        "llm.ebpf.tls.handshake_ms": 8.0,
        "llm.ebpf.sched.runqueue_delay_ms": 3.0,
        "llm.ebpf.syscall.latency_ms": 9.0,
        "llm.ebpf.correlation_confidence": 1.0,
    }
    assert enrichment(links) == enrichment(links[::-1]) == expected


def test_an_idle_read_enriches_no_span() -> None:
    """A read that waited for its peer says nothing about the span it fell into; one that waited for storage does."""
    events = {what: probe(signal="syscall_latency_ms", value=9.0, attributes={"syscall.waits_for": what}) for what in ("peer", "storage")}
    assert enrichment([(events["peer"], 0, 0)]) == {}
    assert enrichment([(events["storage"], 0, 0)])["llm.ebpf.syscall.latency_ms"] == 9.0


def test_of_one_signal_the_best_link_then_the_largest_value_counts() -> None:
    """A nearer event beats a larger one; at the same distance the larger is kept."""
    near = [(probe(value=1.0), 1, 0), (probe(value=99.0), 1, 5), (probe(value=2.0), 1, 0), (probe(value=50.0), 2, 0)]
    assert enrichment(near)["llm.ebpf.dns.latency_ms"] == 2.0


def test_the_last_tier_enriches_nothing() -> None:
    """A link of confidence 0.65 is for diagnosis only."""
    assert enrichment([(probe(value=9.0), 3, 0)]) == {}
    assert enrichment([]) == {}
    assert set(enrichment([(probe(value=9.0), 3, 0), (probe(signal="runqueue_delay_ms", value=2.0), 2, 9)])) == {
        "llm.ebpf.sched.runqueue_delay_ms",
        "llm.ebpf.correlation_confidence",
    }


# --- coverage


@given(st.lists(st.tuples(st.integers(-20, 60), st.integers(-20, 60)), max_size=6), st.integers(0, 40))
def test_covered_time_is_the_union(pairs: list[tuple[int, int]], end: int) -> None:
    """Parallel waits do not add up, and never more than the span is covered."""
    intervals = [(min(pair), max(pair)) for pair in pairs]
    assert covered_ns(intervals, 0, end) == sum(any(a <= t < b for a, b in intervals) for t in range(end))


def test_a_containers_own_pid_is_the_spans_pid() -> None:
    """In a pid namespace the span knows the inner pid; the signal says both, and the inner one is compared."""
    span = one_span(resource={"process.pid": 1, "k8s.pod.name": "rag-0", "service.name": "rag"})
    outer = probe(T0, pid=4242, attributes={"ns_pid": 1})
    assert rows(link([outer], [span]))[0][2] == 1
    assert not rows(link([probe(T0, pid=4242)], [span])) or rows(link([probe(T0, pid=4242)], [span]))[0][2] != 1


def test_a_signal_that_names_its_trace_is_given_no_other() -> None:
    """A trace id in the signal is a fact; the span of another trace in the same process is no answer."""
    assert rows(link([probe(T0, trace_id=trace_id(99))], [one_span()])) == []
