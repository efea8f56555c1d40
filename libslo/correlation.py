"""Join kernel signals with spans: four confidence tiers, against span intervals, order-independent.

Pure: tables of arrays in, links out. For every signal the one best span; for every span at most three signals.

Cost: spans are sorted by key and start time, and classed by duration (powers of two), so that a binary search
per class finds the few spans that can be near; never spans times signals.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from libslo.signals import signal, signals, vocabulary, waits_for_peer
from libslo.spans import Span

__all__ = [
    "Interner",
    "Links",
    "ProbeTable",
    "SpanTable",
    "Tier",
    "correlate",
    "covered_ns",
    "enrichment",
    "probe_table",
    "span_table",
    "tiers",
]

I64 = NDArray[np.int64]
_CONNECTION = 2  # the tier whose key is the connection
_NEVER = np.iinfo(np.int64).max
_MAX_CANDIDATES = 4_000_000  # pairs held at once
_LONGEST_WAIT_MS = 1e9  # eleven days; keeps the arithmetic in 64 bits


class Tier(NamedTuple):
    """One way of joining: its name, the confidence written on the wire, how far apart the two may be."""

    name: str
    confidence: float
    window_ns: int


@cache
def tiers() -> tuple[Tier, ...]:
    """The tiers, best first, from vocabulary/correlation-tiers.json."""
    rows = vocabulary("correlation-tiers")["tiers"]
    return tuple(Tier(row["name"], row["confidence"], int(row["window_ms"] * 1e6)) for row in rows)


class Interner(dict[Any, int]):
    """Small integers for keys of any kind; the same key, the same integer."""

    def __missing__(self, key: Any) -> int:
        self[key] = code = len(self)
        return code


@dataclass(frozen=True)
class ProbeTable:
    """Signals as arrays of length n; keys are -1 where a tier's key is not known. Times in ns since the epoch.

    ts: end of the wait. wait: its length. network: 1 where the signal is network work.
    rank: order by content, for ties. A pair can only be linked when the span's arrived <= the signal's deadline and the
    signal's arrived <= the span's deadline (record numbers of a stream, see libslo.join; 0 and never for a whole table).
    """

    ts: I64
    wait: I64
    network: I64
    keys: I64  # (tiers, n)
    rank: I64
    arrived: I64
    deadline: I64

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True)
class SpanTable:
    """Spans as arrays of length m; keys as in ProbeTable. trace: integer of the trace, for counting competitors."""

    start: I64
    end: I64
    network: I64
    trace: I64
    keys: I64  # (tiers, m)
    rank: I64
    arrived: I64
    deadline: I64

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Links:
    """The best span of every signal that has one, ordered by signal index. competitors: traces that were in the window."""

    probe: I64
    span: I64
    tier: I64
    distance_ns: I64
    competitors: I64


def probe_table(
    events: Sequence[Mapping[str, Any]], intern: Interner, arrived: I64 | None = None, deadline: I64 | None = None
) -> ProbeTable:
    """The table of probe-event objects."""
    n = len(events)
    keys = np.full((4, n), -1, np.int64)
    wait = np.zeros(n, np.int64)
    network = np.zeros(n, np.int64)
    order: list[tuple[Any, ...]] = []
    for i, event in enumerate(events):
        about = signal(event["signal"])
        pod = event["pod"] or f"node:{event['node']}"
        if about.kind == "wait":
            wait[i] = int(min(event["value"], _LONGEST_WAIT_MS) * 1e6)
        network[i] = about.work == "network"
        order.append(
            (
                event["ts_unix_nano"],
                event["signal"],
                event["pid"],
                event["tid"],
                event["value"],
                repr(sorted((event.get("conn_tuple") or {}).items())),
            )
        )
        if trace := event.get("trace_id"):
            keys[0, i] = intern["trace", trace]
            continue  # what it says of itself is not replaced by a guess
        if event["pid"]:
            # A span knows the pid of its own pid namespace; the kernel's is the outermost one.
            keys[1, i] = intern["pid", pod, (event.get("attributes") or {}).get("ns_pid", event["pid"])]
        if conn := event.get("conn_tuple"):
            keys[2, i] = intern["conn", pod, conn["src_ip"], conn["src_port"], conn["dst_ip"], conn["dst_port"]]
        if service := event.get("service"):
            keys[3, i] = intern["service", service, event["node"]]
    return ProbeTable(
        np.array([event["ts_unix_nano"] for event in events], np.int64),
        wait,
        network,
        keys,
        _ranks(order),
        np.zeros(n, np.int64) if arrived is None else arrived,
        np.full(n, _NEVER) if deadline is None else deadline,
    )


def span_table(spans: Sequence[Span], intern: Interner, arrived: I64 | None = None, deadline: I64 | None = None) -> SpanTable:
    """The table of spans."""
    m = len(spans)
    keys = np.full((4, m), -1, np.int64)
    network = np.zeros(m, np.int64)
    for i, span in enumerate(spans):
        if span.join_keys is None:  # a stream asks for the same span many times
            span.join_keys = _span_keys(span)
        *known, network[i] = span.join_keys
        for level, key in enumerate(known):
            if key is not None:
                keys[level, i] = intern[key]
    return SpanTable(
        np.array([span.start_unix_ns for span in spans], np.int64),
        np.array([span.end_unix_ns for span in spans], np.int64),
        network,
        keys[0].copy(),
        keys,
        _ranks([(span.start_unix_ns, span.trace_id, span.span_id) for span in spans]),
        np.zeros(m, np.int64) if arrived is None else arrived,
        np.full(m, _NEVER) if deadline is None else deadline,
    )


def _span_keys(span: Span) -> tuple[Any, ...]:
    """What a signal must have in common with the span, by tier (None: not known), and whether the span does network work."""
    pod = span.pod or f"node:{span.node}"
    local, peer = span.number("local_port"), span.number("peer_port")
    addresses = [address if isinstance(address := span.read(end), str) else "" for end in ("local_address", "peer_address")]
    return (
        ("trace", span.trace_id),
        ("pid", pod, span.pid) if span.pid else None,
        ("conn", pod, addresses[0], local, addresses[1], peer) if local and peer else None,
        ("service", span.service, span.node) if span.service else None,
        span.does_network_work,
    )


def _ranks(order: list[tuple[Any, ...]]) -> I64:
    ranks = np.empty(len(order), np.int64)
    ranks[sorted(range(len(order)), key=order.__getitem__)] = np.arange(len(order))
    return ranks


def correlate(probes: ProbeTable, spans: SpanTable, window_ns: int | None = None) -> Links:
    """The best span of every signal: best tier first, then the span of the same connection, then time distance to the span's
    interval, then the span that does that kind of work, then the one that holds the whole wait, then the innermost (the last to
    start), then a fixed order.

    window_ns replaces the window of the trace_id_exact tier. Signals without a span within their window have no link.
    """
    n = len(probes)
    best_span = np.full(n, -1, np.int64)
    best_tier = np.zeros(n, np.int64)
    distance = np.zeros(n, np.int64)
    competitors = np.zeros(n, np.int64)
    for level, tier in enumerate(tiers()):
        window = window_ns if window_ns is not None and level == 0 else tier.window_ns
        open_probes = np.flatnonzero((best_span < 0) & (probes.keys[level] >= 0))
        usable = np.flatnonzero(spans.keys[level] >= 0)
        if not len(open_probes) or not len(usable):
            continue
        for p, s in _near(probes, open_probes, spans, usable, level, window):
            found = _best(probes, spans, p, s)
            where = found.probe
            best_span[where], best_tier[where] = found.span, level
            distance[where], competitors[where] = found.distance_ns, found.competitors
    linked = np.flatnonzero(best_span >= 0)
    return Links(linked, best_span[linked], best_tier[linked], distance[linked], competitors[linked])


def _near(probes: ProbeTable, p_index: I64, spans: SpanTable, s_index: I64, level: int, window: int) -> Any:
    """Pairs (probe, span) of the same key within the window; one signal's pairs always come together."""
    s_key, s_start, s_end = spans.keys[level][s_index], spans.start[s_index], spans.end[s_index]
    p_key, p_ts = probes.keys[level][p_index], probes.ts[p_index]
    names, key_rank = np.unique(s_key, return_inverse=True)
    place = np.searchsorted(names, p_key)
    place[place == len(names)] = 0
    known = names[place] == p_key
    p_index, p_ts, p_rank = p_index[known], p_ts[known], place[known]
    if not len(p_index):
        return
    # One number per (key, time): key * range + time, coarsened until it fits 63 bits; coarse hits are filtered exactly below.
    origin = min(int(s_start.min()), int(p_ts.min())) - window
    reach = max(int(s_end.max()), int(p_ts.max())) + window - origin + 2
    shift = max(0, (len(names) * reach).bit_length() - 62)
    stride = (reach >> shift) + 2

    def code(rank: I64, time: I64) -> I64:
        return rank * stride + (np.clip(time - origin, 0, reach) >> shift)

    duration_class = np.frexp((s_end - s_start).astype(np.float64))[1]
    hits: list[tuple[I64, I64, I64]] = []
    for each in np.unique(duration_class):
        members = np.flatnonzero(duration_class == each)
        codes = code(key_rank[members], s_start[members])
        members = members[np.argsort(codes, kind="stable")]
        codes = np.sort(codes)
        longest = int((s_end[members] - s_start[members]).max())
        low = np.searchsorted(codes, code(p_rank, p_ts - window - longest), "left")
        high = np.searchsorted(codes, code(p_rank, p_ts + window) + 1, "left")
        hits.append((s_index[members], low, np.maximum(high, low)))
    counts = sum((high - low for _, low, high in hits), np.zeros(len(p_index), np.int64))
    edges = np.searchsorted(np.cumsum(counts), np.arange(0, int(counts.sum()) + 1, _MAX_CANDIDATES), "left")
    cuts = sorted({0, *edges.tolist(), len(p_index)})
    for begin, end in itertools.pairwise(cuts):
        pairs_p, pairs_s = [], []
        for members, low, high in hits:
            size = (high - low)[begin:end]
            total = int(size.sum())
            offset = np.arange(total) - np.repeat(np.cumsum(size) - size, size)
            pairs_s.append(members[np.repeat(low[begin:end], size) + offset])
            pairs_p.append(np.repeat(p_index[begin:end], size))
        p, s = np.concatenate(pairs_p), np.concatenate(pairs_s)
        keep = (probes.keys[level][p] == spans.keys[level][s]) & (_distance(probes, spans, p, s) <= window)
        keep &= (spans.arrived[s] <= probes.deadline[p]) & (probes.arrived[p] <= spans.deadline[s])
        yield p[keep], s[keep]


def _distance(probes: ProbeTable, spans: SpanTable, p: I64, s: I64) -> I64:
    distance: I64 = np.maximum(np.maximum(spans.start[s] - probes.ts[p], probes.ts[p] - spans.end[s]), 0)
    return distance


class _Best(NamedTuple):
    probe: I64
    span: I64
    distance_ns: I64
    competitors: I64


def _best(probes: ProbeTable, spans: SpanTable, p: I64, s: I64) -> _Best:
    distance = _distance(probes, spans, p, s)
    wrong_work = probes.network[p] & ~spans.network[s] & 1
    apart = (probes.keys[_CONNECTION][p] < 0) | (probes.keys[_CONNECTION][p] != spans.keys[_CONNECTION][s])
    gap = probes.ts[p] - probes.wait[p] - spans.start[s]  # from the span's start to the wait's: the innermost has the smallest
    cut = gap < 0  # the wait began before the span
    order = np.lexsort((spans.rank[s], spans.end[s] - spans.start[s], np.abs(gap), cut, wrong_work, distance, apart, p))
    p, s, distance = p[order], s[order], distance[order]
    first = np.flatnonzero(np.diff(p, prepend=-1))
    pairs = np.unique(np.stack([p, spans.trace[s]]), axis=1)[0]
    owner, traces = np.unique(pairs, return_counts=True)
    return _Best(p[first], s[first], distance[first], traces[np.searchsorted(owner, p[first])])


def enrichment(links: Sequence[tuple[Mapping[str, Any], int, int]]) -> dict[str, Any]:
    """The ``llm.ebpf.*`` attributes that a span gains from its links (event, tier index, distance in ns).

    At most `fanout` signals enrich a span, by confidence, then time distance, then catalogue order; of several events of
    one signal the best link counts, then the largest value. Links below `enrich_at` enrich nothing.
    """
    rules = vocabulary("correlation-tiers")
    best: dict[str, tuple[float, int, float]] = {}
    for event, level, distance in links:
        confidence = tiers()[level].confidence
        if confidence >= rules["enrich_at"] and not waits_for_peer(event):
            row = (-confidence, distance, -float(event["value"]))
            best[event["signal"]] = min(row, best.get(event["signal"], row))
    catalogue = list(signals())
    chosen = sorted(best, key=lambda name: (best[name][:2], catalogue.index(name)))[: rules["fanout"]]
    extra: dict[str, Any] = {signal(name).attribute: -best[name][2] for name in chosen}
    if chosen:
        extra["llm.ebpf.correlation_confidence"] = -best[chosen[0]][0]
    return extra


def covered_ns(intervals: Sequence[tuple[int, int]], start: int, end: int) -> int:
    """How much of [start, end] the intervals cover, overlaps counted once: parallel waits do not add up."""
    covered, reached = 0, start
    for begin, stop in sorted(intervals):
        begin, stop = max(begin, reached), min(stop, end)
        if stop > begin:
            covered += stop - begin
            reached = stop
    return covered
