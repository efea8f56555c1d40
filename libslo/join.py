"""Join a stream of signals with a stream of spans on event time, in bounded memory.

A signal waits for spans until the watermark (latest event time seen - lateness) has passed its own time plus the widest
window it can match in; a span likewise waits for signals, and stays a while longer for signals to find. Every decision is
tied to the number of the record that brought it about, never to how the records were cut into batches, so a finite input
gives the same answer whole or streamed. Pure: no clock; a live driver may push the watermark on with `advance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from libslo.clock import EventClock
from libslo.correlation import Interner, correlate, covered_ns, enrichment, probe_table, span_table, tiers
from libslo.signals import vocabulary
from libslo.spans import Span

__all__ = ["JoinStats", "Joined", "StreamJoin", "summary"]

_LONG_AGO = -(1 << 62)
_NOT_YET = (1 << 63) - 1
_STEP_BACK_NS = 2_000_000_000  # less is the unrest of a clock that is set now and then
_OVERDUE_NS = 1_000_000_000  # so much further than at the last `take`, and it is time for another
_FEW_UNLINKED = 1000  # up to here nobody looks which of them are too old
_WAITS_HELD = 100_000  # spans whose waits are remembered for a parent that may never come


class Joined(NamedTuple):
    """A finished record: the number of the record that finished it, and the signal with its link or the span with what it gained."""

    step: int
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


@dataclass(slots=True, eq=False)
class _Held:
    """A record that waits. All three are record numbers: when it came, was finished, and could no longer be linked to."""

    what: Any
    arrived: int
    finished: int = _NOT_YET
    gone: int = _NOT_YET
    late: bool = False  # of a span: when it came, signals inside it may have been handed out already
    links: list[tuple[dict[str, Any], int, int]] = field(default_factory=list)  # of a span: (event, tier, distance in ns)


class StreamJoin:
    """Feed records in order with `add_event` and `add_span`; `take` returns what is finished, `finish` the rest.

    window_ns: how far a signal with a trace id may lie from its span. lateness_ns: how much later than its time a record
    may come. capacity: signals, and spans, held at most; beyond it the oldest are finished early (and counted).
    retain_ns: for live streams, whose exporters hold spans back for seconds: how long a signal that was handed out without
    a span can still enrich one that comes late (the signal's own line has gone out without it).
    """

    def __init__(
        self, *, window_ns: int = 2_000_000_000, lateness_ns: int = 500_000_000, capacity: int = 50_000, retain_ns: int = 0
    ) -> None:
        self.stats = JoinStats()
        self.step = 0  # number of the record that came last
        self._window = window_ns
        self._lateness = lateness_ns
        self._capacity = capacity
        self._retain = retain_ns
        self._unlinked: list[dict[str, Any]] = []  # handed out without a span, oldest first; only with retain_ns
        self._most_unlinked = _FEW_UNLINKED  # before the old ones are looked for
        self._untraced = max(tier.window_ns for tier in tiers()[1:])
        self._clock = EventClock()
        self._latest = self._taken_at = self._told = _LONG_AGO  # event time now and at the last `take`; what `advance` said last
        # Heaps of (time, record number, record): what the watermark will finish next, and which spans it will let go.
        self._events: list[tuple[int, int, _Held]] = []
        self._spans: list[tuple[int, int, _Held]] = []
        self._stay: list[tuple[int, int, _Held]] = []
        self._ready: list[_Held] = []  # signals and spans that are finished and were not taken yet
        self._let_go: list[_Held] = []  # spans that signals in _ready may still be linked to
        self._waits: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (trace, span) -> waits in it and below it

    @property
    def overdue(self) -> bool:
        """True when event time has gone on for a second since the last `take`: who waits for a better moment should not any more."""
        return self._latest - self._taken_at >= _OVERDUE_NS

    @property
    def idle(self) -> bool:
        """True when nothing is held."""
        return not (self._events or self._spans or self._ready)

    def add_event(self, event: dict[str, Any]) -> None:
        """Take a probe-event."""
        self.stats.signals += 1
        reach = max(self._window, self._untraced) if "trace_id" in event else self._untraced
        self._begin_step(event["ts_unix_nano"])
        heappush(self._events, (event["ts_unix_nano"] + reach + self._lateness, self.step, _Held(event, self.step)))
        self._end_step(event["ts_unix_nano"] + reach + self._lateness)

    def add_span(self, span: Span) -> None:
        """Take a span."""
        self.stats.spans += 1
        reach = max(self._window, self._untraced)
        due = span.end_unix_ns + reach + self._lateness
        self._begin_step(span.end_unix_ns)
        held = _Held(span, self.step, late=self._latest >= span.start_unix_ns + self._untraced + self._lateness)
        heappush(self._spans, (due, self.step, held))
        heappush(self._stay, (due + reach, self.step, held))
        self._end_step(due)

    def advance(self, latest_ns: int) -> None:
        """Say that time has come this far, when no record says so (a live stream that is quiet).

        When it says less than before, what it said then was wrong: what is held is finished, and time begins anew.
        """
        if latest_ns < self._told - _STEP_BACK_NS:
            self.stats.clock_steps += 1
            self._finish_all()
            self._clock, self._latest = EventClock(), _LONG_AGO
        self._told = latest_ns
        if latest_ns > self._latest:
            self._latest = latest_ns
            self._sweep()

    def _begin_step(self, time: int) -> None:
        self.step += 1
        if self._clock.see(time):
            self.stats.clock_steps += 1
            self._finish_all()
            self._latest = _LONG_AGO

    def _end_step(self, due: int) -> None:
        self.stats.late += due <= self._latest
        if self._clock.latest_ns is not None:
            self._latest = max(self._latest, self._clock.latest_ns)
        self._sweep()
        while len(self._events) > self._capacity:
            self.stats.overflowed += 1
            self._finish(heappop(self._events)[2])
        while len(self._stay) > self._capacity:
            held = heappop(self._stay)[2]
            self.stats.overflowed += held.finished == _NOT_YET
            self._finish(held)
            self._release(held)
        if len(self._spans) > 2 * self._capacity:  # those finished early are still in this heap
            self._spans = [entry for entry in self._spans if entry[2].finished == _NOT_YET]
            heapify(self._spans)

    def _sweep(self) -> None:
        while self._events and self._events[0][0] <= self._latest:
            self._finish(heappop(self._events)[2])
        while self._spans and self._spans[0][0] <= self._latest:
            self._finish(heappop(self._spans)[2])
        while self._stay and self._stay[0][0] <= self._latest:
            self._release(heappop(self._stay)[2])

    def _finish(self, held: _Held) -> None:
        if held.finished == _NOT_YET:
            held.finished = self.step
            self._ready.append(held)

    def _release(self, held: _Held) -> None:
        held.gone = self.step
        self._let_go.append(held)

    def _finish_all(self) -> None:
        for heap in (self._events, self._spans):
            while heap:
                self._finish(heappop(heap)[2])
        while self._stay:
            self._release(heappop(self._stay)[2])

    def take(self) -> list[Joined]:
        """The records that are finished by now, in an order that the records alone decide."""
        self._taken_at = self._latest
        if not self._ready:
            self._let_go.clear()
            return []
        ready, self._ready = self._ready, []
        spans = [held for _, _, held in self._stay] + self._let_go
        self._let_go = []
        events = [held for held in ready if isinstance(held.what, dict)]
        out = self._link(events, spans)
        done = [held for held in ready if not isinstance(held.what, dict)]
        # Of spans that end together the inner one comes first, so that its waits reach the outer one.
        if late := [held for held in done if held.late and self._retain]:
            self._link_late(late)
        done.sort(key=lambda held: (held.finished, held.what.end_unix_ns, -held.what.start_unix_ns, held.what.trace_id, held.what.span_id))
        out += [Joined(held.finished, None, held.what, self._enrich(held)) for held in done]
        out.sort(key=lambda joined: joined.step)
        return out

    def finish(self) -> list[Joined]:
        """All that is still held: the input has ended."""
        self._finish_all()
        return self.take()

    def _link(self, ready: Sequence[_Held], spans: Sequence[_Held]) -> list[Joined]:
        if not ready:
            return []
        intern = Interner()
        events = [held.what for held in ready]
        # A signal sees the spans that came before it was finished and had not been let go by then.
        finished = _column(ready, "finished")
        probes = probe_table(events, intern, finished, finished)
        out = [dict(event) for event in events]
        if spans:
            table = span_table([held.what for held in spans], intern, _column(spans, "arrived"), _column(spans, "gone"))
            links = correlate(probes, table, self._window)
            for p, s, *rest in zip(
                *(c.tolist() for c in (links.probe, links.span, links.tier, links.distance_ns, links.competitors)), strict=True
            ):
                wait = (int(probes.ts[p] - probes.wait[p]), int(probes.ts[p])) if probes.network[p] and probes.wait[p] else None
                self._note_link(out[p], ready[p].finished, spans[s], wait, *rest)
        if self._retain:
            self._unlinked += [event for event in out if "confidence" not in event]
            if len(self._unlinked) > self._most_unlinked:
                self._forget_unlinked()
        order = sorted(range(len(ready)), key=lambda i: (ready[i].finished, int(probes.rank[i])))
        return [Joined(ready[i].finished, out[i], None, {}) for i in order]

    def _link_late(self, done: Sequence[_Held]) -> None:
        """Let spans that came late find the signals that were handed out before them."""
        self._forget_unlinked()
        if not self._unlinked:
            return
        intern = Interner()
        events = [dict(event) for event in self._unlinked]
        probes = probe_table(events, intern)
        links = correlate(probes, span_table([held.what for held in done], intern), self._window)
        for p, s, *rest in zip(
            *(c.tolist() for c in (links.probe, links.span, links.tier, links.distance_ns, links.competitors)), strict=True
        ):
            wait = (int(probes.ts[p] - probes.wait[p]), int(probes.ts[p])) if probes.network[p] and probes.wait[p] else None
            self._note_link(events[p], done[s].finished, done[s], wait, *rest)
        taken = set(links.probe.tolist())
        self._unlinked = [event for i, event in enumerate(self._unlinked) if i not in taken]

    def _forget_unlinked(self) -> None:
        oldest = self._latest - self._retain
        self._unlinked = [event for event in self._unlinked[-self._capacity :] if event["ts_unix_nano"] >= oldest]
        self._most_unlinked = max(2 * len(self._unlinked), _FEW_UNLINKED)

    def _note_link(
        self,
        event: dict[str, Any],
        finished: int,
        held: _Held,
        wait: tuple[int, int] | None,
        level: int,
        distance_ns: int,
        competitors: int,
    ) -> None:
        tier, span = tiers()[level], held.what
        self.stats.links[tier.name] += 1
        self.stats.competitors[tier.name] += competitors
        event["confidence"] = tier.confidence
        if tier.confidence < vocabulary("correlation-tiers")["enrich_at"]:
            return
        event.update(trace_id=span.trace_id, span_id=span.span_id)
        if span.service:
            event["service"] = span.service  # the agent knows what the environment says; an application may name itself in its code
        if finished > held.finished:
            return  # the span was handed out before: it gains nothing more
        held.links.append((event, level, distance_ns))
        if wait is not None:
            self._waits.setdefault((span.trace_id, span.span_id), []).append(wait)

    def _enrich(self, held: _Held) -> dict[str, Any]:
        span: Span = held.what
        waits = self._waits.pop((span.trace_id, span.span_id), [])
        if waits and span.parent_span_id:
            self._waits.setdefault((span.trace_id, span.parent_span_id), []).extend(waits)
        while len(self._waits) > _WAITS_HELD:
            self._waits.pop(next(iter(self._waits)))
        extra = enrichment(held.links)
        if extra:
            self.stats.enriched[tiers()[min(level for _, level, _ in held.links)].name] += 1
        if span.is_retrieval and waits:
            extra["llm.ebpf.retrieval.kernel_attributed_ms"] = covered_ns(waits, span.start_unix_ns, span.end_unix_ns) / 1e6
        held.links = []
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
        "clock_steps": stats.clock_steps,
        "linked": {name: stats.links[name] for name in names},
        "enriched_spans": {name: stats.enriched[name] for name in names},
        "mean_competing_traces": {name: round(stats.competitors[name] / stats.links[name], 2) for name in names if stats.links[name]},
    }
