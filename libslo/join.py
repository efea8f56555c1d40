"""Join a stream of signals with a stream of spans on event time, in bounded memory.

A signal waits for spans until the watermark (latest event time seen - lateness) has passed its own time plus the widest
window it can match in; a span likewise waits for signals. What is decided depends on the order of the records only, never
on how they were cut into batches, so a finite input gives the same answer whole or streamed. Pure: no clock; a live driver
may push the watermark on with `advance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from libslo.correlation import Interner, ProbeTable, correlate, covered_ns, enrichment, probe_table, span_table, tiers
from libslo.signals import vocabulary
from libslo.slo import EventClock
from libslo.spans import Span

__all__ = ["JoinStats", "Joined", "StreamJoin", "summary"]

_LONG_AGO = -(1 << 62)
_FAR_AHEAD = 1 << 62


class Joined(NamedTuple):
    """A finished record: the watermark at which it was due, and either the signal with its link or the span with what it gained."""

    due_ns: int
    event: dict[str, Any] | None
    span: Span | None
    extra: dict[str, Any]


@dataclass
class JoinStats:
    """Counts for the account at the end."""

    signals: int = 0
    spans: int = 0
    late: int = 0
    overflowed: int = 0
    clock_steps: int = 0
    links: Counter[str] = field(default_factory=Counter)  # by tier, signals linked
    enriched: Counter[str] = field(default_factory=Counter)  # by tier, spans enriched
    competitors: Counter[str] = field(default_factory=Counter)  # by tier, sum of competing traces


@dataclass(slots=True)
class _Held:
    what: Any
    arrived: int  # latest event time before this record came
    due: int  # the record is finished when the latest event time has reached this
    gone: int  # from here on nothing more is linked to it
    done: bool = False  # handed out already (a span stays a while longer, for signals to find)


class StreamJoin:
    """Feed records in order with `add_event` and `add_span`; `take` returns what is finished, `finish` the rest.

    window_ns: how far a signal with a trace id may lie from its span. lateness_ns: how much later than its time a record
    may come. capacity: records held at most; the oldest are finished early (and counted) beyond it.
    """

    def __init__(self, *, window_ns: int = 2_000_000_000, lateness_ns: int = 500_000_000, capacity: int = 200_000) -> None:
        self.stats = JoinStats()
        self._window = window_ns
        self._lateness = lateness_ns
        self._capacity = capacity
        self._untraced = max(tier.window_ns for tier in tiers()[1:])
        self._clock = EventClock()
        self._latest = _LONG_AGO
        self._stepped: list[Joined] = []
        self._events: list[_Held] = []
        self._spans: list[_Held] = []
        self._linked: dict[int, list[tuple[dict[str, Any], int, int]]] = {}  # id(span) -> (event, tier, distance)
        self._waits: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (trace, span) -> waits in it and below it

    @property
    def latest_ns(self) -> int:
        """Latest event time seen."""
        return self._latest

    @property
    def idle(self) -> bool:
        """True when nothing is held."""
        return not self._events and all(held.done for held in self._spans)

    def add_event(self, event: dict[str, Any]) -> int:
        """Take a probe-event. Returns the latest event time before it."""
        reach = max(self._window, self._untraced) if "trace_id" in event else self._untraced
        self.stats.signals += 1
        return self._add(self._events, event, event["ts_unix_nano"], reach, 0)

    def add_span(self, span: Span) -> int:
        """Take a span. Returns the latest event time before it."""
        self.stats.spans += 1
        reach = max(self._window, self._untraced)
        return self._add(self._spans, span, span.end_unix_ns, reach, reach)

    def _add(self, held: list[_Held], what: Any, time: int, reach: int, stay: int) -> int:
        if self._clock.see(time):
            self.stats.clock_steps += 1
            self._stepped += self._take(_FAR_AHEAD)
            self._latest = _LONG_AGO
        arrived = self._latest
        due = time + reach + self._lateness
        if due <= arrived:
            self.stats.late += 1
        due = max(due, arrived)
        held.append(_Held(what, arrived, due, due + stay))
        self._latest = max(arrived, time)
        return arrived

    def advance(self, latest_ns: int) -> None:
        """Say that time has come this far, when no record says so (a live stream that is quiet)."""
        self._latest = max(self._latest, latest_ns)

    def take(self) -> list[Joined]:
        """The records that are finished by now, in the order they were due."""
        latest = self._latest
        for held in (self._events, self._spans):
            if len(held) > self._capacity:
                excess = len(held) - self._capacity
                self.stats.overflowed += excess
                latest = max(latest, sorted(each.due for each in held)[excess - 1])
        return self._drain_step() + self._take(latest)

    def finish(self) -> list[Joined]:
        """All that is still held: the input has ended."""
        return self._drain_step() + self._take(_FAR_AHEAD)

    def _drain_step(self) -> list[Joined]:
        stepped, self._stepped = self._stepped, []
        return [joined._replace(due_ns=_LONG_AGO) for joined in stepped]

    def _take(self, latest: int) -> list[Joined]:
        ready = [held for held in self._events if held.due <= latest]
        out: list[Joined] = []
        if ready:
            self._events = [held for held in self._events if held.due > latest]
            out += self._link(ready)
        done = [held for held in self._spans if held.due <= latest and not held.done]
        for held in done:
            held.done = True
        self._spans = [held for held in self._spans if held.gone > latest]
        if done:
            done.sort(key=lambda held: (held.due, held.what.end_unix_ns, held.what.trace_id, held.what.span_id))
            out += [Joined(held.due, None, held.what, self._enrich(held.what)) for held in done]
        out.sort(key=lambda joined: joined.due_ns)
        return out

    def _link(self, ready: Sequence[_Held]) -> list[Joined]:
        intern = Interner()
        events = [held.what for held in ready]
        probes = probe_table(events, intern, _column(ready, "arrived"), _column(ready, "due"))
        out = [dict(event) for event in events]
        if self._spans:
            table = span_table([held.what for held in self._spans], intern, _column(self._spans, "arrived"), _column(self._spans, "gone"))
            links = correlate(probes, table, self._window)
            for row in zip(*(c.tolist() for c in (links.probe, links.span, links.tier, links.distance_ns, links.competitors)), strict=True):
                self._note_link(out, probes, ready, *row)
        order = sorted(range(len(ready)), key=lambda i: (ready[i].due, int(probes.rank[i])))
        return [Joined(ready[i].due, out[i], None, {}) for i in order]

    def _note_link(
        self,
        out: list[dict[str, Any]],
        probes: ProbeTable,
        ready: Sequence[_Held],
        p: int,
        s: int,
        level: int,
        distance_ns: int,
        competitors: int,
    ) -> None:
        tier, held, event = tiers()[level], self._spans[s], out[p]
        span: Span = held.what
        self.stats.links[tier.name] += 1
        self.stats.competitors[tier.name] += competitors
        event["confidence"] = tier.confidence
        if tier.confidence < vocabulary("correlation-tiers")["enrich_at"]:
            return
        event.update(trace_id=span.trace_id, span_id=span.span_id)
        if not event.get("service") and span.service:
            event["service"] = span.service
        if ready[p].due > held.due:
            return  # the span has been, or might have been, handed out: it gains nothing more
        self._linked.setdefault(id(span), []).append((event, level, distance_ns))
        if probes.network[p] and probes.wait[p]:
            wait = (int(probes.ts[p] - probes.wait[p]), int(probes.ts[p]))
            self._waits.setdefault((span.trace_id, span.span_id), []).append(wait)

    def _enrich(self, span: Span) -> dict[str, Any]:
        waits = self._waits.pop((span.trace_id, span.span_id), [])
        if waits and span.parent_span_id:
            self._waits.setdefault((span.trace_id, span.parent_span_id), []).extend(waits)
        if len(self._waits) > self._capacity:
            self._waits.pop(next(iter(self._waits)))
        links = self._linked.pop(id(span), [])
        extra = enrichment(links)
        if extra:
            self.stats.enriched[tiers()[min(tier for _, tier, _ in links)].name] += 1
        if span.is_retrieval and waits:
            extra["llm.ebpf.retrieval.kernel_attributed_ms"] = covered_ns(waits, span.start_unix_ns, span.end_unix_ns) / 1e6
        return extra


def _column(held: Sequence[_Held], name: str) -> Any:
    return np.array([getattr(each, name) for each in held], np.int64)


def summary(stats: JoinStats) -> Mapping[str, Any]:
    """The counts as one object."""
    names = [tier.name for tier in tiers()]
    return {
        "signals": stats.signals,
        "spans": stats.spans,
        "late": stats.late,
        "finished_early": stats.overflowed,
        "linked": {name: stats.links[name] for name in names},
        "enriched_spans": {name: stats.enriched[name] for name in names},
        "mean_competing_traces": {name: round(stats.competitors[name] / stats.links[name], 2) for name in names if stats.links[name]},
    }
