"""The collector's run: a `Collector` driven from files, stdin and an OTLP receiver, recorded, delivered and accounted for."""

from __future__ import annotations

import queue
import signal as os_signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from libslo.clock import EventClock
from libslo.collector import EMITS, LOAD_RESULT, Collector, CollectSettings
from libslo.contracts import OTLP_SPANS
from libslo.errors import InputError
from libslo.jsonl import JsonlWriter, ReadStats, Record, Stopper, encode, read_jsonl
from libslo.spans import Span, decode_spans

if TYPE_CHECKING:
    from libslo.recordings import Recorder

__all__ = ["EMITS", "CollectSettings", "Collector", "collect"]

_MERGED_BATCH = 2000
_STOP_GRACE_S = 2.0
_MOST_WAITING_SPANS = 50_000
_IDLE_NS = 250_000_000  # how often a live run looks at the clock and links signals with spans: each time costs some milliseconds


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
        "convert": {OTLP_SPANS: _spans_of},
    }
    streams = [read_jsonl(source, settings.consumes, **options) for source in settings.sources]
    streams += [read_jsonl(source, (OTLP_SPANS,), **options) for source in settings.spans]
    if len(streams) == 1:
        yield from streams[0]
        return
    import heapq

    def timed(stream: Iterator[list[Record]]) -> Iterator[tuple[int, Record]]:
        clock = EventClock()  # one record from the future does not put all that come after it behind the other stream
        for records in stream:
            for record in records:
                if time_ns := _time_of(record):
                    clock.see(time_ns)
                yield clock.latest_ns or 0, record

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


def _spans_of(request: dict[str, Any]) -> list[Span]:
    """The spans of an OTLP request, all of which can be written again. InputError when it is none."""
    spans = list(decode_spans(request))
    encode(request)  # what is nested too deep can be read, but not written: better said to who sent it than when it is too late
    return spans


def _time_of(record: Record) -> int:
    kind, value = record[:2]
    if kind == "probe-event":
        return int(value["ts_unix_nano"])
    if kind == "stream-time":
        return int(value["stream_unix_nano"])
    if kind == LOAD_RESULT:
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
        self._closed = False

    def accept(self, request: dict[str, Any]) -> bool:
        """Take the spans of one OTLP request; False when too many wait already, or nobody will deal with them any more."""
        spans = _spans_of(request)
        with self._lock:
            if self._closed or self._spans + len(spans) > _MOST_WAITING_SPANS:
                return False
            try:
                self.queue.put_nowait(("spans", (spans, request if self._keep else None)))
            except queue.Full:
                return False
            self._spans += len(spans)
        return True

    def close(self) -> None:
        """Take nothing more: what has been taken by now is all that will ever be in the queue."""
        with self._lock:
            self._closed = True

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
        inbox.close()
        receiver.close()
        while not inbox.queue.empty():  # what was acknowledged is dealt with, also when a bad line ended the run
            deal_with(*inbox.queue.get_nowait())
