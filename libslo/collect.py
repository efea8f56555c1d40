"""What the collector does with records: samples and spans become slo-events, signals and spans are joined.

`Collector` turns batches of records into lines in an order that depends on the records only. `collect` drives it from
files, stdin and an OTLP receiver.
"""

from __future__ import annotations

import queue
import signal as os_signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from libslo.contracts import OTLP_SPANS
from libslo.errors import InputError
from libslo.jsonl import JsonlWriter, OnBad, ReadStats, Record, Stopper, encode, read_jsonl
from libslo.slo import slo_events_from_samples, slo_events_from_span
from libslo.spans import KIND_SERVER, Span, decode_spans, span_line

if TYPE_CHECKING:
    from libslo.join import Joined, StreamJoin
    from libslo.recordings import Recorder

__all__ = ["EMITS", "CollectSettings", "Collector", "collect"]

EMITS = ("slo-event", "probe-event", "spans", "stream-time")
_CONSUMES = ("raw-sample", "probe-event", OTLP_SPANS, "stream-time")
_LOAD = "load-result"  # consumed only when the service that the load was driven against is named
_MERGED_BATCH = 2000
_STOP_GRACE_S = 2.0
_RETAIN_NS = 15_000_000_000  # three times OpenTelemetry's default delay of a batch of spans
_MOST_WAITING_SPANS = 50_000
_IDLE_NS = 100_000_000  # how often a live run looks at the clock and links signals with spans
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
        return (*_CONSUMES, _LOAD) if self.load_service else _CONSUMES


Sink = Callable[[str, "dict[str, Any] | None", bytes, int], None]
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
        in crumbs. A stream-time record is such an advance: from the first one on the stream is a live one that is replayed.
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
            elif kind == OTLP_SPANS:
                said += self._spans(value)
            elif kind == _LOAD:
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
        self._say(self._spans(spans), [])

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


def collect(settings: CollectSettings, note: Callable[[str], None], report: Callable[[InputError], None]) -> None:
    """Run the collector until its inputs end (or, listening, until SIGINT or SIGTERM), then flush and say what was done."""
    if settings.record is None:
        return _collect(settings, None, note, report)
    from libslo.recordings import Recorder, RecordingWriter

    with RecordingWriter(settings.record) as recording:
        return _collect(settings, Recorder(recording), note, report)


def _collect(
    settings: CollectSettings, recorder: Recorder | None, note: Callable[[str], None], report: Callable[[InputError], None]
) -> None:
    exporter = None
    if settings.otlp_endpoint:
        from libslo.export.otlp_logs import OtlpLogExporter

        exporter = OtlpLogExporter(settings.otlp_endpoint)
    stats = ReadStats()
    with JsonlWriter(settings.out, (*settings.sources, *settings.spans)) as writer:

        def sink(kind: str, value: dict[str, Any] | None, lines: bytes, count: int) -> None:
            writer.write_block(lines, count)
            if exporter is not None and kind in ("slo-event", "probe-event"):
                _export(exporter, kind, value, lines)

        collector = Collector(settings, sink)
        try:
            if settings.otlp_listen:
                _live(settings, collector, recorder, writer, stats, note, report)
            else:
                stop = Stopper()
                stop.on_signals()
                for records in _merged(settings, stats, report, stop):
                    if recorder is not None:
                        recorder.records(records, time.time_ns())
                    collector.feed(records)
                    writer.flush()
            collector.finish()
        except InputError:
            collector.finish()  # the good lines before the bad one are answered
            raise
        finally:
            if exporter is not None:
                account = exporter.close()
                note(f"otlp logs: {account}")
    _account(collector, stats, note)


def _export(exporter: Any, kind: str, value: dict[str, Any] | None, lines: bytes) -> None:
    if value is not None:
        exporter.submit(kind, value)
    else:
        import orjson

        for line in lines.splitlines():
            exporter.submit(kind, orjson.loads(line))


def _account(collector: Collector, stats: ReadStats, note: Callable[[str], None]) -> None:
    note(f"{stats.lines} lines in, {stats.bad} bad, {collector.dropped} not for us and left out; {collector.slo_events} slo-events")
    told, untold = collector.load_results
    if told or untold:
        note(f"{told} load-results gave slo-events, {untold} did not (in the warm-up, not sent, or broken off by the generator)")
    if told and collector.counted_twice:
        note(f"{collector.counted_twice} requests of that service came as spans too and count twice: leave out --load-service or the spans")
    if not collector.joining:
        return
    from libslo.join import summary

    counts = summary(collector.join.stats)
    linked = ", ".join(f"{name} {count}" for name, count in counts["linked"].items() if count) or "none"
    enriched = sum(counts["enriched_spans"].values())
    note(f"{counts['signals']} signals, {counts['spans']} spans ({enriched} enriched); links by tier: {linked}")
    if counts["late"]:
        note(f"{counts['late']} records came later than --lateness-ms allows and were joined with what was left; try a larger value")
    if counts["finished_early"]:
        note(f"{counts['finished_early']} records were finished early because too many were held")
    if counts["clock_steps"]:
        note(f"time went back {counts['clock_steps']} times in the input: what was held was finished each time")


def _merged(
    settings: CollectSettings, stats: ReadStats, report: Callable[[InputError], None], stop: Stopper | None = None
) -> Iterator[list[Record]]:
    """Batches of all sources; two or more are read in step, by event time, so that neither runs ahead of the other."""
    options: dict[str, Any] = {
        "on_bad": settings.on_bad,
        "report": report,
        "stats": stats,
        "stop": stop,
        "convert": {OTLP_SPANS: lambda value: list(decode_spans(value))},
    }
    streams = [read_jsonl(source, settings.consumes, **options) for source in settings.sources]
    streams += [read_jsonl(source, (OTLP_SPANS,), **options) for source in settings.spans]
    if len(streams) == 1:
        yield from streams[0]
        return
    import heapq

    def timed(stream: Iterator[list[Record]]) -> Iterator[tuple[int, Record]]:
        time_ns = 0
        for records in stream:
            for record in records:
                time_ns = max(time_ns, _time_of(record))
                yield time_ns, record

    batch: list[Record] = []
    try:
        for _, record in heapq.merge(*(timed(stream) for stream in streams), key=lambda pair: pair[0]):
            batch.append(record)
            if len(batch) >= _MERGED_BATCH:
                yield batch
                batch = []
    except InputError:
        yield batch
        raise
    yield batch


def _time_of(record: Record) -> int:
    kind, value = record[:2]
    if kind == "probe-event":
        return int(value["ts_unix_nano"])
    if kind == "stream-time":
        return int(value["stream_unix_nano"])
    if kind == _LOAD:
        return int(value.get("end_unix_ns", value["scheduled_unix_ns"]))
    if kind == OTLP_SPANS:
        return max((span.end_unix_ns for span in value), default=0)
    if kind == "raw-sample":
        from libslo.slo import parse_timestamps

        return int(parse_timestamps([value["timestamp"]])[0])
    return 0


class _Inbox:
    """What the receiver's threads and the reading thread hand to the collector; bounded by records and spans, not by lines.

    keep: hand on OTLP requests beside their spans.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self.queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1000)
        self._spans = 0
        self._lock = threading.Lock()

    def accept(self, request: dict[str, Any]) -> bool:
        """Take the spans of one OTLP request; False when too many wait already."""
        spans = list(decode_spans(request))
        with self._lock:
            if self._spans + len(spans) > _MOST_WAITING_SPANS:
                return False
            self._spans += len(spans)
        try:
            self.queue.put(("spans", (spans, request if self._keep else None)), timeout=2)
        except queue.Full:
            self.taken(len(spans))
            return False
        return True

    def taken(self, spans: int) -> None:
        """Say that so many spans were dealt with."""
        with self._lock:
            self._spans -= spans

    def read(self, batches: Iterator[list[Record]]) -> None:
        """Hand over all batches, then the end or the error that ended them (in a thread of its own)."""
        try:
            for records in batches:
                self.queue.put(("records", records))
            self.queue.put(("end", None))
        except BaseException as error:
            self.queue.put(("error", error))

    def next(self, timeout_s: float) -> tuple[str, Any]:
        """What came, or ("tick", None) when nothing did for `timeout_s`."""
        try:
            return self.queue.get(timeout=timeout_s)
        except queue.Empty:
            return "tick", None


def _live(
    settings: CollectSettings,
    collector: Collector,
    recorder: Recorder | None,
    writer: JsonlWriter,
    stats: ReadStats,
    note: Callable[[str], None],
    report: Callable[[InputError], None],
) -> None:
    """Listen for spans and read stdin (or files) at the same time; ends when the input ends or on a signal."""
    from libslo.otlp import OtlpReceiver

    inbox = _Inbox(keep=recorder is not None)
    stopped_at: list[float] = []

    def stop(*_: object) -> None:
        stopped_at.append(time.monotonic())

    def deal_with(what: str, load: Any) -> None:
        if what == "records":
            if recorder is not None:
                recorder.records(load, time.time_ns())
            collector.feed(load, take=False)
        elif what == "spans":
            spans, request = load
            inbox.taken(len(spans))
            if recorder is not None:
                recorder.spans(request, time.time_ns())
            collector.feed_spans(spans)
        elif what == "error":
            raise load

    def let_pass() -> None:
        now_ns = time.time_ns()
        if recorder is not None:
            recorder.time(now_ns)
        collector.advance(now_ns)

    let_pass()
    receiver = OtlpReceiver(settings.otlp_listen or "", inbox.accept)
    for each in (os_signal.SIGINT, os_signal.SIGTERM):
        os_signal.signal(each, stop)
    note(f"listening for OTLP spans on port {receiver.port}")
    has_input = bool(settings.sources or settings.spans)
    if has_input:
        threading.Thread(target=inbox.read, args=(_merged(settings, stats, report),), daemon=True, name="input").start()
    end_at, next_take = float("inf"), 0.0
    try:
        while time.monotonic() < end_at:
            what, load = inbox.next(_IDLE_NS / 1e9)
            deal_with(what, load)
            if what == "end":
                # The kernel's side has ended; spans that are under way may still come, for as long as lateness allows.
                end_at = min(end_at, time.monotonic() + settings.lateness_ms / 1e3)
            if stopped_at:
                # Ctrl-C reaches the whole pipeline: who writes to us is given the time to end; a second signal gives none.
                grace_s = _STOP_GRACE_S if has_input and len(stopped_at) == 1 else 0.0
                end_at = min(end_at, stopped_at[0] + grace_s)
            if time.monotonic() >= next_take:
                next_take = time.monotonic() + _IDLE_NS / 1e9
                let_pass()
            writer.flush()
    finally:
        receiver.close()
    while not inbox.queue.empty():
        deal_with(*inbox.queue.get_nowait())
