"""The collector's work: samples, spans and load-results become slo-events, signals and spans are joined.

`Collector` turns batches of records into lines in an order that depends on the records only. It opens nothing and has no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from libslo.contracts import OTLP_SPANS
from libslo.jsonl import OnBad, Record, encode
from libslo.slo import slo_events_from_samples, slo_events_from_span
from libslo.spans import KIND_SERVER, Span, span_line

if TYPE_CHECKING:
    from libslo.join import Joined, StreamJoin

__all__ = ["EMITS", "LOAD_RESULT", "CollectSettings", "Collector", "Sink"]

EMITS = ("slo-event", "probe-event", "spans", "stream-time")
_CONSUMES = ("raw-sample", "probe-event", OTLP_SPANS, "stream-time")
LOAD_RESULT = "load-result"  # consumed only when the service that the load was driven against is named
_RETAIN_NS = 15_000_000_000  # three times OpenTelemetry's default delay of a batch of spans
_QUIET_NS = 1_000_000_000  # so long without a word, and a live run says how far time has come


@dataclass(frozen=True)
class CollectSettings:
    """What the collector was asked to do; times in ms. load_service: whose requests load-results are; None leaves them to others."""

    sources: tuple[str, ...] = ("-",)
    spans: tuple[str, ...] = ()
    out: str = "-"
    record: str | None = None
    otlp_listen: str | None = None
    otlp_endpoint: str | None = None
    cluster: str = "local"
    load_service: str | None = None
    window_ms: float = 2000.0
    lateness_ms: float = 500.0
    emit: frozenset[str] = frozenset(EMITS)
    pass_through: bool = True
    on_bad: OnBad = "fail"

    @property
    def consumes(self) -> tuple[str, ...]:
        """The contracts that are read."""
        return (*_CONSUMES, LOAD_RESULT) if self.load_service else _CONSUMES


Sink = Callable[[str, "dict[str, Any] | None", bytes, int], None]  # contract, object or None, lines, how many
_Said = tuple[int, Callable[[], None]]


class Collector:
    """Feed it records in order; it calls `sink(contract, object or None, lines, count)` for everything it has to say.

    The object is given for single lines only; a block of slo-events from raw-samples comes as bytes.
    """

    def __init__(self, settings: CollectSettings, sink: Sink) -> None:
        self._settings = settings
        self._write = sink
        self._live = settings.otlp_listen is not None
        self._speaking = False  # since the last look at the time
        self._quiet_since_ns: int | None = None  # None before the first word: until then time is of no use to anybody
        self.slo_events = 0
        self.dropped = 0
        self.load_results = [0, 0]  # that gave slo-events, that gave none
        self.counted_twice = 0  # requests of the load's service that its spans told of too

    @cached_property
    def join(self) -> StreamJoin:
        """The join of signals and spans; made (and numpy loaded) when the first of them comes."""
        from libslo.join import StreamJoin

        window_ns, lateness_ns = int(self._settings.window_ms * 1e6), int(self._settings.lateness_ms * 1e6)
        retain_ns = _RETAIN_NS if self._live else 0
        return StreamJoin(window_ns=window_ns, lateness_ns=lateness_ns, retain_ns=retain_ns)

    def feed(self, records: Sequence[Record], *, take: bool = True) -> None:
        """Take one batch; the objects of OTLP lines are lists of spans already.

        take=False leaves what the batch finished to the next `advance`: linking costs by the call, and a live stream comes
        in crumbs. A stream-time record is such an advance: from the first one on the stream is a live one that is replayed, or read
        at second hand, where they come in quiet moments only.
        """
        if {record[0] for record in records} == {"raw-sample"}:
            return self._samples([record[1] for record in records])
        said: list[_Said] = []  # (number of the record, what to say), numbers not decreasing
        run: list[dict[str, Any]] = []
        for kind, value, raw, _ in records:
            if kind == "raw-sample":
                run.append(value)
                continue
            if run:
                said.append((self._step, partial(self._samples, run)))
                run = []
            if kind == "probe-event":
                self.join.add_event(value)
                said = self._if_overdue(said)
            elif kind == OTLP_SPANS:
                said = self._if_overdue(said + self._spans(value))
            elif kind == LOAD_RESULT:
                said += self._load(value)
            elif kind == "stream-time":
                self._say(said, self.join.take() if not self._live and self.joining else [])
                said, self._live = [], True
                self.advance(value["stream_unix_nano"])
            elif self._settings.pass_through:
                said.append((self._step, partial(self._sink, "", None, raw + b"\n", 1)))
            else:
                self.dropped += 1
        if run:
            said.append((self._step, partial(self._samples, run)))
        self._say(said, self.join.take() if take and not self._live and self.joining else [])
        return None

    def feed_spans(self, spans: Sequence[Span]) -> None:
        """Take decoded spans (from the OTLP receiver); what they finish comes with the next `advance`."""
        self._say(self._if_overdue(self._spans(spans)), [])

    def advance(self, now_unix_ns: int) -> None:
        """Let time pass on a live stream that is quiet; when nothing was said for a second, say how far time has come."""
        if self.joining:
            self.join.advance(now_unix_ns)
            self._say([], self.join.take())
        since_ns = self._quiet_since_ns
        if self._speaking or (since_ns is not None and now_unix_ns < since_ns):
            self._speaking, self._quiet_since_ns = False, now_unix_ns
        elif since_ns is not None and now_unix_ns - since_ns >= _QUIET_NS and "stream-time" in self._settings.emit:
            value = {"stream_unix_nano": now_unix_ns}
            self._write("stream-time", value, encode(value), 1)
            self._quiet_since_ns = now_unix_ns

    def _if_overdue(self, said: list[_Said]) -> list[_Said]:
        """On a live stream: say this and what is finished, when nobody lets time pass (a stream at second hand that is never quiet)."""
        if not (self._live and self.join.overdue):
            return said
        self._say(said, [])
        self._say([], self.join.take())
        return []

    def _sink(self, kind: str, value: dict[str, Any] | None, lines: bytes, count: int) -> None:
        self._speaking = True
        self._write(kind, value, lines, count)

    def finish(self) -> None:
        """The input has ended: say the rest."""
        if self.joining:
            self._say([], self.join.finish())

    @property
    def joining(self) -> bool:
        """True once there was anything to join."""
        return "join" in self.__dict__

    @property
    def _step(self) -> int:
        return self.join.step if self.joining else 0

    def _spans(self, spans: Sequence[Span]) -> list[_Said]:
        said: list[_Said] = []
        for span in spans:
            self.join.add_span(span)
            events = list(slo_events_from_span(span, self._settings.cluster))
            if events:
                said.append((self.join.step, partial(self._events, events)))
                self.counted_twice += self._settings.load_service == span.service and span.kind == KIND_SERVER
        return said

    def _load(self, result: dict[str, Any]) -> list[_Said]:
        from libslo.load_slis import slo_events_from_load_result

        events = slo_events_from_load_result(result, self._settings.load_service or "", self._settings.cluster)
        self.load_results[not events] += 1
        return [(self._step, partial(self._events, events))] if events else []

    def _say(self, said: list[_Said], joined: Sequence[Joined]) -> None:
        """Say both in the order of the records: what a record finished comes before what it gave itself."""
        at = 0
        for each in joined:
            while at < len(said) and said[at][0] < each.step:
                said[at][1]()
                at += 1
            self._joined(each)
        for _, speak in said[at:]:
            speak()

    def _samples(self, samples: list[dict[str, Any]]) -> None:
        block, lines = slo_events_from_samples(samples)
        self.slo_events += lines
        if "slo-event" in self._settings.emit:
            self._sink("slo-event", None, block, lines)

    def _events(self, events: list[dict[str, Any]]) -> None:
        self.slo_events += len(events)
        if "slo-event" in self._settings.emit:
            for event in events:
                self._sink("slo-event", event, encode(event), 1)

    def _joined(self, joined: Joined) -> None:
        if joined.event is not None:
            if "probe-event" in self._settings.emit:
                self._sink("probe-event", joined.event, encode(joined.event), 1)
        elif joined.span is not None and "spans" in self._settings.emit:
            value = span_line(joined.span, joined.extra)
            self._sink("spans", None, encode(value), 1)
