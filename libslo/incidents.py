"""Incidents: when a service burns its error budget too fast, and what the evidence then says.

Feed records in order; what comes out depends on their order only, never on how they were cut into batches.
Pure: no clock, no files. Labels are never read here (libslo.evaluation does that, apart).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from libslo.attribution import UNKNOWN, Verdict
from libslo.evidence import Evidence, ServiceSeries
from libslo.signals import Objective, signals, sli
from libslo.slo import BurnPolicy, BurnState, BurnTracker, EventClock, format_timestamp, parse_timestamps

__all__ = ["Incident", "IncidentEngine", "IncidentSettings"]

_EXAMPLES = 20  # request and trace ids listed in an incident
_QUIET_SHARE = 0.5  # an episode ends when the short burn has been below this share of its threshold for a while
_QUIET_NS = 1_000_000_000
_MARGIN_NS = 500_000_000  # an onset is an estimate: this much before it is no baseline either
_MOST_REQUESTS = 5000  # of one SLI, in which an onset is looked for
_MOST_SERVICES = 2000
_LONGEST_MS = 3_600_000.0  # a request's start is not looked for more than an hour back


@dataclass(frozen=True)
class IncidentSettings:
    """policy and objectives decide when; attribute decides what. Times in ns.

    An incident is raised as soon as its verdict reaches `clear_at`, at the latest `settle_ns` after the burn was detected:
    signals come a little later than the requests they slowed down.
    """

    policy: BurnPolicy
    objectives: Mapping[str, Objective]
    attribute: Callable[[Sequence[Evidence]], Verdict]
    lateness_ns: int = 200_000_000
    baseline_ns: int = 60_000_000_000
    settle_ns: int = 1_500_000_000
    clear_at: float = 0.9


@dataclass(frozen=True)
class Incident:
    """An incident-attribution object with what an account wants to know beside it."""

    value: dict[str, Any]
    onset_unix_ns: int
    detected_unix_ns: int
    evidence: tuple[Evidence, ...]
    verdict: Verdict


@dataclass
class _Request:
    ts: int
    began: int
    good: bool
    request_id: str
    trace_id: str


@dataclass
class _Episode:
    """A stretch of time in which a service burns too fast: what opened it, when the trouble began, which SLIs still burn."""

    indicator: str
    state: BurnState
    onset: int
    bad: list[_Request]
    burning: set[str]
    quiet_since: dict[str, int] = field(default_factory=dict)
    raised: bool = False


@dataclass
class _Service:
    series: ServiceSeries
    clock: EventClock = field(default_factory=EventClock)
    cluster: str = ""
    namespace: str = ""
    trackers: dict[str, BurnTracker] = field(default_factory=dict)
    requests: dict[str, deque[_Request]] = field(default_factory=dict)
    request: tuple[str, int] = ("", 0)  # id and start of the request whose latency came last
    episode: _Episode | None = None
    past: list[tuple[int, int]] = field(default_factory=list)  # episodes that are over: no baseline


class IncidentEngine:
    """Feed (contract, object) records with `feed`; it yields an Incident when an episode opens. `finish` closes the last buckets."""

    def __init__(self, settings: IncidentSettings) -> None:
        self._settings = settings
        self._services: dict[str, _Service] = {}
        self._observed: frozenset[str] = frozenset()
        self.unowned = 0  # signals that belong to no service
        self.clock_steps = 0  # times that a service's clock went back and its history was dropped

    @property
    def late(self) -> int:
        """slo-events that came after their bucket was closed."""
        return sum(tracker.late for service in self._services.values() for tracker in service.trackers.values())

    @property
    def latest_ns(self) -> int | None:
        """Latest slo-event time seen of any service."""
        return max((s.clock.latest_ns for s in self._services.values() if s.clock.latest_ns is not None), default=None)

    def evidence_now(self, service: str, window_ns: int) -> list[Evidence]:
        """What the evidence of a service looks like over the last `window_ns`, whether or not anything is wrong."""
        found = self._service(service)
        now = found.clock.latest_ns or 0
        return found.series.evidence(now - window_ns, now, self._healthy(found, now - window_ns), self._observed)

    def feed(self, kind: str, value: Any) -> Iterator[Incident]:
        """Take one record of contract `kind`: the object, or for OTLP spans the list of Span."""
        if kind == "slo-event":
            yield from self._slo_event(value)
        elif kind == "probe-event":
            name = value.get("service")
            if name:
                self._service(name).series.add_probe(value)
            else:
                self.unowned += 1
        elif kind == "otlp-spans":
            for span in value:
                if span.service:
                    self._service(span.service).series.add_span(span)
        elif kind == "agent-report":
            attached = {row["signal"] for row in value["signals"] if row["attached"] and not row.get("shed")}
            self._observed = frozenset(name for name in attached if signals()[name].kind == "count")

    def finish(self) -> Iterator[Incident]:
        """The input has ended: what was held back for lateness is decided."""
        for name, service in self._services.items():
            yield from self._evaluate(
                name, service, service.clock.furthest_ns + max((t.bucket_ns for t in service.trackers.values()), default=0), last=True
            )

    def _service(self, name: str) -> _Service:
        if name not in self._services:
            if len(self._services) >= _MOST_SERVICES:
                self._make_room()
            self._services[name] = self._new_service()
        return self._services[name]

    def _make_room(self) -> None:
        """Forget the service that was heard of longest ago: names may come from anybody who starts a process."""
        quiet = [name for name, service in self._services.items() if service.episode is None] or list(self._services)
        del self._services[min(quiet, key=lambda name: self._services[name].clock.latest_ns or 0)]

    def _new_service(self) -> _Service:
        return _Service(ServiceSeries(self._settings.baseline_ns))

    def _slo_event(self, event: dict[str, Any]) -> Iterator[Incident]:
        name = event["service"]
        service = self._service(name)
        ts = int(parse_timestamps([event["timestamp"]])[0])
        before = service.clock.latest_ns
        if service.clock.see(ts):
            self.clock_steps += 1
            service = self._services[name] = replace(self._new_service(), clock=service.clock)
        service.cluster, service.namespace = event["cluster"], event["namespace"]
        service.series.add_slo_event(event, ts)
        indicator, value, request_id = event["sli_name"], event["sli_value"], event["request_id"]
        if indicator == "request_latency_ms":
            service.request = (request_id, ts - int(min(max(value, 0.0), _LONGEST_MS) * 1e6))
            for requests in service.requests.values():  # its other indicators may have come before it
                if requests and requests[-1].request_id == request_id:
                    requests[-1].began = service.request[1]
        objective = self._settings.objectives.get(indicator)
        if objective is not None:
            if indicator not in service.trackers:
                service.trackers[indicator] = BurnTracker(self._settings.policy, objective)
                service.requests[indicator] = deque(maxlen=_MOST_REQUESTS)
            good = sli(indicator).meets(value, objective.threshold)
            service.trackers[indicator].add(ts, good)
            # Without the request's latency the end of its first-token wait is taken for the end of the request.
            waited_ns = int(min(max(value, 0.0), _LONGEST_MS) * 1e6) if indicator.endswith("_ms") else 0
            began = service.request[1] if service.request[0] == request_id else ts - waited_ns
            service.requests[indicator].append(_Request(ts, began, good, request_id, event.get("trace_id", "")))
        latest = service.clock.latest_ns
        if latest is not None and latest != before:
            service.series.tick(latest)
            yield from self._evaluate(name, service, latest - self._settings.lateness_ns)

    def _evaluate(self, name: str, service: _Service, watermark: int, *, last: bool = False) -> Iterator[Incident]:
        states = [(state, indicator) for indicator, tracker in service.trackers.items() for state in tracker.evaluate(watermark)]
        states.sort(key=lambda pair: (pair[0].ts_unix_ns, pair[1]))
        for state, indicator in states:
            if state.over and service.episode is None:
                service.episode = self._open(service, state, indicator)
            episode = service.episode
            if episode is None:
                continue
            if not episode.raised:
                yield from self._raise(name, service, episode, state.ts_unix_ns, must=False)
            if state.over or state.short_burn > state.pair.burn_rate * _QUIET_SHARE:
                episode.quiet_since.pop(indicator, None)
                episode.burning.add(indicator)
            elif indicator in episode.burning:
                since = episode.quiet_since.setdefault(indicator, state.ts_unix_ns)
                if state.ts_unix_ns - since >= max(_QUIET_NS, int(state.pair.short_s * 1e9)):
                    episode.burning.discard(indicator)
            if not episode.burning:
                yield from self._raise(name, service, episode, state.ts_unix_ns, must=True)
                service.past.append((episode.onset, state.ts_unix_ns))
                del service.past[:-100]
                service.episode = None
        if last and service.episode is not None:
            yield from self._raise(name, service, service.episode, watermark, must=True)

    def _open(self, service: _Service, state: BurnState, indicator: str) -> _Episode:
        now = state.ts_unix_ns
        since = max(now - int(state.pair.long_s * 1e9), service.past[-1][1] if service.past else 0)
        recent = sorted(service.requests[indicator], key=lambda r: (r.ts, r.request_id))
        window = [r for r in recent if since < r.ts <= now]
        onset = _onset(window, 1 - self._settings.objectives[indicator].ratio, state.pair.burn_rate, now)
        return _Episode(indicator, state, onset, [r for r in window if not r.good and r.began >= onset][:_EXAMPLES], {indicator})

    def _raise(self, name: str, service: _Service, episode: _Episode, now: int, *, must: bool) -> Iterator[Incident]:
        """Say what the episode is, once: as soon as the evidence is clear, at the latest when the time to settle is over."""
        if episode.raised:
            return
        state = episode.state
        evidence = service.series.evidence(
            episode.onset, max(now, service.clock.latest_ns or now), self._healthy(service, episode.onset), self._observed
        )
        verdict = self._settings.attribute(evidence)
        clear = verdict.domain != UNKNOWN and verdict.confidence >= self._settings.clear_at
        if not (must or clear or now - state.ts_unix_ns >= self._settings.settle_ns):
            return
        episode.raised = True
        digest = hashlib.sha256(f"{service.cluster}\0{name}\0{episode.indicator}\0{state.ts_unix_ns}".encode()).hexdigest()[:16]
        value: dict[str, Any] = {
            "incident_id": f"inc-{digest}",
            "timestamp": format_timestamp(now),
            "cluster": service.cluster,
            "namespace": service.namespace,
            "service": name,
            "predicted_fault_domain": verdict.domain,
            "confidence": round(verdict.confidence, 4),
            "evidence": list(_evidence_rows(evidence)),
            "slo_impact": {
                "sli": episode.indicator,
                "burn_rate": round(min(state.long_burn, 1e9), 3),
                "window_minutes": max(1, round(state.pair.long_s / 60, 3)),
            },
            "fault_hypotheses": [
                {"domain": h.domain, "posterior": round(h.posterior, 4), "evidence": list(h.evidence)} for h in verdict.hypotheses
            ],
            "request_ids": [r.request_id for r in episode.bad],
            "trace_ids": [r.trace_id for r in episode.bad if r.trace_id],
        }
        yield Incident(value, episode.onset, now, tuple(evidence), verdict)

    def _healthy(self, service: _Service, onset: int) -> list[tuple[int, int]]:
        """The time before the onset, without earlier episodes, and without the moment in which the onset may have been missed."""
        begin, end = (service.series.first_ns or onset) - 1, onset - _MARGIN_NS
        intervals = []
        for past_begin, past_end in service.past:
            if past_end > begin and past_begin < end:
                if past_begin > begin:
                    intervals.append((begin, past_begin))
                begin = max(begin, past_end)
        if begin < end:
            intervals.append((begin, end))
        return intervals


def _onset(window: Sequence[_Request], budget: float, burn: float, now: int) -> int:
    """When the trouble began: the start of the first request of the run that drove the burn.

    The run is found as a cumulative sum of (bad - rate that would just alert): it begins where the sum is lowest.
    """
    expected = min(budget * burn, 0.5)
    total, lowest, first = 0.0, 0.0, 0
    for i, request in enumerate(window):
        total += (not request.good) - expected
        if total < lowest:
            lowest, first = total, i + 1
    began = [request.began for request in window[first:] if not request.good]
    return min(began, default=now)


def _evidence_rows(evidence: Sequence[Evidence]) -> Iterator[dict[str, Any]]:
    """Contract rows: the value of every signal and, as `<signal>.baseline`, what it was before."""
    for each in evidence:
        yield {"signal": each.signal, "value": round(each.value, 4), "source": each.source}
        if each.baseline is not None:
            yield {"signal": f"{each.signal}.baseline", "value": round(each.baseline, 4), "source": each.source}
