"""Incidents: when a service burns its error budget too fast, and what the evidence then says.

Feed records in order; what comes out depends on their order only, never on how they were cut into batches. A service that
falls silent is judged by the event time of the rest of the stream: there is no clock here.
Pure: no clock, no files. Labels are never read here (libslo.evaluation does that, apart).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libslo.answers import Incident, incident_record, update_rule, what_changed
from libslo.attribution import UNKNOWN, Verdict
from libslo.clock import StreamClock
from libslo.episodes import EpisodeFacts, Recovery, RequestTally, episode_record
from libslo.evidence import Evidence, ServiceSeries, observed_signals
from libslo.service_state import MOST_REQUESTS, Episode, Request, Service, burning_run
from libslo.signals import Objective, sli
from libslo.slo import BurnPolicy, BurnState, BurnTracker, parse_timestamps

__all__ = ["Incident", "IncidentEngine", "IncidentSettings"]

_EXAMPLES = 20  # request and trace ids listed in an incident
_MOST_SERVICES = 2000
_LONGEST_MS = 3_600_000.0  # a request's start is not looked for more than an hour back


@dataclass(frozen=True)
class IncidentSettings:
    """policy and objectives decide when; attribute decides what. Times in ns.

    An incident is raised as soon as its verdict reaches `clear_at`, at the latest `settle_ns` after the burn was detected:
    signals come a little later than the requests they slowed down. update_interval_ns: how often an open episode is judged again, at
    most; None is never.
    """

    policy: BurnPolicy
    objectives: Mapping[str, Objective]
    attribute: Callable[[Sequence[Evidence]], Verdict]
    lateness_ns: int = 200_000_000
    baseline_ns: int = 60_000_000_000
    settle_ns: int = 1_500_000_000
    clear_at: float = 0.9
    update_interval_ns: int | None = None


class IncidentEngine:
    """Feed (contract, object) records with `feed`; it yields an Incident when an episode opens, and with updates another one under
    the same id when the answer has changed. `finish` closes the last buckets.

    on_episode: called with an incident-episode object when an episode opens, and again when it is over.
    """

    def __init__(self, settings: IncidentSettings, on_episode: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self._settings = settings
        self._on_episode = on_episode
        self._bucket_ns = settings.policy.bucket_ns
        self._services: dict[str, Service] = {}
        self._observed: frozenset[str] = frozenset()
        self._unmeasured: dict[str, str] | None = None
        self._stream = StreamClock()
        self._heard: OrderedDict[str, int] = OrderedDict()  # by service, the stream's progress at its last slo-event, oldest first
        self._tick = 0
        self.unowned = 0  # signals that belong to no service
        self.stragglers = 0  # indicators of requests that began in an episode and ended after it was closed
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
        return found.series.evidence(now - window_ns, now, found.healthy_before(now - window_ns), self._observed)

    def feed(self, kind: str, value: Any) -> Iterator[Incident]:
        """Take one record of contract `kind`: the object, or for OTLP spans the list of Span."""
        if kind == "slo-event":
            yield from self._slo_event(value)
        elif kind == "probe-event":
            self._stream.see(value["ts_unix_nano"])
            name = value.get("service")
            if name:
                self._series(name).add_probe(value)
            else:
                self.unowned += 1
        elif kind == "otlp-spans":
            for span in value:
                self._stream.see(span.end_unix_ns)
                if span.service:
                    self._series(span.service).add_span(span)
        elif kind == "stream-time":
            self._stream.see(value["stream_unix_nano"])
        elif kind == "agent-report":
            self._stream.see(value["ts_unix_nano"])
            self._observed = observed_signals(value)
            self._unmeasured = {row["signal"]: _why_not(row) for row in value["signals"] if row["signal"] not in self._observed}
        if self._stream.progress_ns // self._bucket_ns != self._tick:
            yield from self._judge_silent()

    def finish(self) -> Iterator[Incident]:
        """The input has ended: what was held back for lateness is decided."""
        for name, service in self._services.items():
            yield from self._evaluate(name, service, service.clock.furthest_ns + self._bucket_ns, last=True)

    def _service(self, name: str) -> Service:
        if name not in self._services:
            if len(self._services) >= _MOST_SERVICES:
                self._make_room()
            self._services[name] = self._new_service()
        return self._services[name]

    def _series(self, name: str) -> ServiceSeries:
        """The series of a service, for evidence; where no slo-event lets time pass for it, the stream does."""
        service = self._service(name)
        if name not in self._heard and service.episode is None and self._stream.latest_ns is not None:
            service.series.tick(self._stream.latest_ns)
        return service.series

    def _make_room(self) -> None:
        """Forget the service that was heard of longest ago: names may come from anybody who starts a process."""
        quiet = [name for name, service in self._services.items() if service.episode is None] or list(self._services)
        name = min(quiet, key=lambda name: self._services[name].clock.latest_ns or 0)
        service = self._services.pop(name)
        self._heard.pop(name, None)
        if service.episode is not None:
            self._say(service.episode, service.clock.latest_ns or 0, "forgotten")

    def _new_service(self) -> Service:
        policy = self._settings.policy
        return Service(ServiceSeries(self._settings.baseline_ns), RequestTally(policy.bucket_ns, policy.longest_ns))

    def _judge_silent(self) -> Iterator[Incident]:
        """Let time pass for the services of which nothing was heard while the rest of the stream went on."""
        self._tick = self._stream.progress_ns // self._bucket_ns
        lateness_ns = int(self._settings.policy.stream_lateness_ms * 1e6)
        silent: list[tuple[str, int]] = []
        for name, progress_ns in self._heard.items():
            behind_ns = self._stream.progress_ns - progress_ns - lateness_ns
            if behind_ns <= 0:
                break
            silent.append((name, behind_ns))
        for name, behind_ns in silent:
            service = self._services[name]
            yield from self._evaluate(name, service, (service.clock.latest_ns or 0) + behind_ns)
            if service.is_empty:
                del self._heard[name]

    def _slo_event(self, event: dict[str, Any]) -> Iterator[Incident]:
        name = event["service"]
        service = self._service(name)
        ts = int(parse_timestamps([event["timestamp"]])[0])
        before = service.clock.latest_ns
        self._stream.see(ts)
        self._heard[name] = self._stream.progress_ns
        self._heard.move_to_end(name)
        if service.clock.see(ts):
            self.clock_steps += 1
            if service.episode is not None:
                yield from self._close(name, service, before or ts, "clock_step")
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
            # Without the request's latency the end of its first-token wait is taken for the end of the request.
            waited_ns = int(min(max(value, 0.0), _LONGEST_MS) * 1e6) if indicator.endswith("_ms") else 0
            began = service.request[1] if service.request[0] == request_id else ts - waited_ns
            good = sli(indicator).meets(value, objective.threshold)
            self._count(service, indicator, Request(ts, began, good, request_id, event.get("trace_id", "")))
        latest = service.clock.latest_ns
        if latest is not None and latest != before:
            if not self._keeps(service, latest):
                service.series.tick(latest)
            yield from self._evaluate(name, service, latest - self._settings.lateness_ns)

    def _count(self, service: Service, indicator: str, request: Request) -> None:
        if service.episode is None and request.began < service.ended_ns:
            self.stragglers += 1  # it suffered in an episode that is over: no sign of a new one
            return
        if indicator not in service.trackers:
            service.trackers[indicator] = BurnTracker(self._settings.policy, self._settings.objectives[indicator])
            service.requests[indicator] = deque(maxlen=MOST_REQUESTS)
        if service.trackers[indicator].add(request.ts, request.good):
            service.tally.add(request.ts, request.request_id, request.good)
        service.requests[indicator].append(request)

    def _evaluate(self, name: str, service: Service, watermark: int, *, last: bool = False) -> Iterator[Incident]:
        while (due := self._due(service, watermark)) is not None:
            yield from self._judge_silence(name, service, due)
            states = {name: tracker.close_next() for name, tracker in service.trackers.items() if tracker.due_ns(watermark) == due}
            yield from self._judge(name, service, due, states)
        yield from self._judge_silence(name, service, watermark)
        if last and service.episode is not None:
            yield from self._answer(service, service.episode, watermark, must=True)
            self._say(service.episode, watermark, "end_of_input")

    def _due(self, service: Service, watermark: int) -> int | None:
        """The end of the earliest bucket that the watermark closes."""
        ends = (tracker.due_ns(watermark) for tracker in service.trackers.values())
        return min((end for end in ends if end is not None), default=None)

    def _judge(self, name: str, service: Service, now: int, states: Mapping[str, BurnState]) -> Iterator[Incident]:
        """Open, raise or close the service's episode by the states of its indicators at the end of a bucket."""
        if service.episode is None:
            over = min((indicator for indicator, state in states.items() if state.over), default=None)
            if over is None:
                return
            service.episode = self._open(name, service, states[over], over)
            self._say(service.episode)
        else:
            service.episode.facts.recovery.feed(now, *service.tally.at(now))
        episode = service.episode
        facts = episode.facts
        facts.recovery.burns(any(state.over for state in states.values()))
        own = states.get(facts.sli)
        if own is not None and own.long_burn / own.pair.burn_rate > facts.peak.long_burn / facts.peak.pair.burn_rate:
            facts.peak = own
        yield from self._answer(service, episode, now)
        if facts.recovery.is_over(now):
            yield from self._close(name, service, now, "recovery")

    def _judge_silence(self, name: str, service: Service, watermark: int) -> Iterator[Incident]:
        if service.episode is not None and (silent_at := service.episode.facts.recovery.silent_at_ns) <= watermark:
            yield from self._close(name, service, silent_at, "silence")

    def _close(self, name: str, service: Service, now: int, by: str) -> Iterator[Incident]:
        episode = service.episode
        if episode is None:
            return
        yield from self._answer(service, episode, now, must=True)
        self._say(episode, now, by)
        service.past.append((episode.facts.onset_ns, now))
        del service.past[:-100]
        service.ended_ns = episode.facts.recovery.since_ns
        for tracker in service.trackers.values():
            tracker.restart(service.ended_ns)
        service.episode = None

    def _say(self, episode: Episode, closed_ns: int | None = None, by: str = "") -> None:
        self._on_episode(episode_record(episode.facts, self._settings.policy, closed_ns, by))

    def _open(self, name: str, service: Service, state: BurnState, indicator: str) -> Episode:
        now = state.ts_unix_ns
        since = max(now - int(state.pair.long_s * 1e9), service.ended_ns)
        recent = sorted(service.requests[indicator], key=lambda r: (r.ts, r.request_id))
        budget = 1 - self._settings.objectives[indicator].ratio
        run = burning_run([r for r in recent if since < r.ts <= now], budget, state.pair.burn_rate)
        bad = [request for request in run if not request.good]
        onset = min((request.began for request in bad), default=now)
        recovery = Recovery(self._settings.policy.closing, budget)
        for bucket in service.tally.between(min((request.ts for request in bad), default=now), now):
            recovery.feed(*bucket)
        recovery.begin(now)
        digest = hashlib.sha256(f"{service.cluster}\0{name}\0{indicator}\0{now}".encode()).hexdigest()[:16]
        facts = EpisodeFacts(f"inc-{digest}", name, service.cluster, service.namespace, indicator, onset, state, state, recovery)
        return Episode(facts, bad[:_EXAMPLES])

    def _answer(self, service: Service, episode: Episode, now: int, *, must: bool = False) -> Iterator[Incident]:
        """Raise the episode's incident, or say it again; must: it is the last time."""
        if episode.said is None:
            yield from self._raise(service, episode, now, must)
        elif self._settings.update_interval_ns is not None:
            yield from self._update(service, episode, episode.said, now, 0 if must else self._settings.update_interval_ns)

    def _raise(self, service: Service, episode: Episode, now: int, must: bool) -> Iterator[Incident]:
        """Say what the episode is: as soon as the evidence is clear, at the latest when the time to settle is over."""
        facts = episode.facts
        until = max(now, service.clock.latest_ns or now)
        evidence = self._evidence(service, facts.onset_ns, until)
        verdict = self._settings.attribute(evidence)
        clear = verdict.domain != UNKNOWN and verdict.confidence >= self._settings.clear_at
        if not (must or clear or now - facts.opening.ts_unix_ns >= self._settings.settle_ns):
            return
        episode.judged_ns, episode.said_until_ns = now, until
        value = incident_record(facts, facts.opening, now, evidence, verdict, episode.examples)
        episode.said = Incident(value, facts.onset_ns, now, tuple(evidence), verdict, (), self._unmeasured)
        yield episode.said

    def _update(self, service: Service, episode: Episode, said: Incident, now: int, interval_ns: int) -> Iterator[Incident]:
        """Say the incident again when the evidence of the episode so far gives another answer.

        What has been forgotten meanwhile is no news: without the baseline that it was said with nothing is said. Nor does silence take
        an answer back; where there is none yet, what was seen in it may give one.
        """
        facts = episode.facts
        if now <= episode.judged_ns or now - episode.judged_ns < interval_ns:
            return
        episode.judged_ns = now
        answered = said.verdict.domain != UNKNOWN
        until = facts.recovery.lasts_until(now, silence=not answered)
        if answered and until < episode.said_until_ns:
            return
        evidence = self._evidence(service, facts.onset_ns, until)
        compared = {each.signal for each in said.evidence if each.baseline is not None}
        if any(each.baseline is None for each in evidence if each.signal in compared):
            return
        verdict = self._settings.attribute(evidence)
        changes = what_changed(said, verdict, evidence, update_rule())
        if changes:
            episode.said_until_ns = until
            value = incident_record(facts, facts.peak, now, evidence, verdict, episode.examples)
            episode.said = Incident(value, facts.onset_ns, said.detected_unix_ns, tuple(evidence), verdict, changes, self._unmeasured)
            yield episode.said

    def _evidence(self, service: Service, onset: int, until: int) -> list[Evidence]:
        return service.series.evidence(onset, until, service.healthy_before(onset), self._observed)

    def _keeps(self, service: Service, now: int) -> bool:
        """Whether nothing may be forgotten: an open episode will be judged again."""
        if self._settings.update_interval_ns is None or service.episode is None:
            return False
        return now - service.episode.facts.opening.ts_unix_ns < update_rule().hold_ns


def _why_not(row: Mapping[str, Any]) -> str:
    """Why the agent does not measure a signal, from its row in an agent-report."""
    return "shed by the overhead guard" if row.get("shed") else row.get("reason", "not attached")
