"""Everything the agent gives out besides its JSON lines: OTLP logs and metrics, /metrics and health.

Nothing here waits for anyone while the agent runs: what cannot be delivered is counted, by reason and signal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from libslo.export.agent_state import AgentSnapshot, ExportState, HistogramSeries
from libslo.export.counting import DEFAULT_MAX_SERIES, EventCounter

if TYPE_CHECKING:
    from libslo.export.otlp_logs import OtlpLogExporter
    from libslo.export.otlp_metrics import OtlpMetricsExporter
    from libslo.export.prometheus import MetricsServer

__all__ = ["CLOSE_S", "OutputSettings", "Outputs"]

CLOSE_S = 5.0  # well within the ten seconds that Docker gives before it kills
_STALLED_NS = 10_000_000_000
_LOG_CAPACITY = 10_000  # 11 MB of probe events (measured) that wait for a slow endpoint


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Where to. None of the targets is needed."""

    otlp_endpoint: str | None = None
    otlp_interval_s: float = 15.0
    metrics_listen: str | None = None
    metrics_max_series: int = DEFAULT_MAX_SERIES

    @property
    def wanted(self) -> bool:
        """True when there is any target."""
        return bool(self.otlp_endpoint or self.metrics_listen)


class Outputs:
    """The sinks of one agent. A context manager: opens on entry, closes within CLOSE_S.

    Raises CannotError on entry when the metrics port cannot be listened on or a package is missing, InputError for what is no
    address. note: gets sentences for people: where the metrics are, and what was lost. One thread calls `beat` and `publish`;
    scrapes come from others.
    """

    def __init__(self, settings: OutputSettings, note: Callable[[str], None]) -> None:
        self._settings, self._note = settings, note
        self._lock = threading.Lock()  # guards all below, between the capture loop and scrapes
        self._snapshot: AgentSnapshot | None = None
        self._kernel: dict[str, list[HistogramSeries]] = {}
        self._started_unix_ns = time.time_ns()
        self._turned_mono_ns = time.monotonic_ns()
        self._turned_unix_ns = self._started_unix_ns
        self._sent_mono_ns = 0
        self._logs: OtlpLogExporter | None = None
        self._metrics: OtlpMetricsExporter | None = None
        self._server: MetricsServer | None = None
        self._closed = False

    @cached_property
    def _counter(self) -> EventCounter:
        return EventCounter(self._settings.metrics_max_series)  # not before it is used: it reads the vocabulary

    def __enter__(self) -> Outputs:
        try:
            if self._settings.metrics_listen:
                from libslo.export.prometheus import MetricsServer

                self._server = MetricsServer(self._settings.metrics_listen, self.current, self._alive, self._ready)
                self._note(f"metrics on {self._server.url}")
            if self._settings.otlp_endpoint:
                from libslo.export.otlp_logs import OtlpLogExporter
                from libslo.export.otlp_metrics import OtlpMetricsExporter

                self._logs = OtlpLogExporter(self._settings.otlp_endpoint, capacity=_LOG_CAPACITY)
                self._metrics = OtlpMetricsExporter(self._settings.otlp_endpoint)
        except BaseException:
            self.close(0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def beat(self) -> None:
        """The capture loop has turned. Cheap; also what sends the metrics when their time has come."""
        if not self._settings.wanted:
            return
        now_ns = time.monotonic_ns()
        with self._lock:
            self._turned_mono_ns, self._turned_unix_ns = now_ns, time.time_ns()
        if self._metrics and self._snapshot and now_ns - self._sent_mono_ns >= self._settings.otlp_interval_s * 1e9:
            self._sent_mono_ns = now_ns
            self._metrics.submit(self.current())

    def publish(self, events: Sequence[Mapping[str, Any]], snapshot: AgentSnapshot | None = None) -> None:
        """Take probe events (not to be changed any more) and, when there is one, a new state. Never waits for a target.

        A signal without histograms or events_by_status in the snapshot gets those of the events published here.
        """
        if not self._settings.wanted:
            return
        with self._lock:
            self._counter.feed(events)
            if snapshot:
                self._kernel = {
                    name: self._counter.book.merge(name, each.histograms) for name, each in snapshot.signals.items() if each.histograms
                }
                self._snapshot = snapshot
        if self._logs and events:
            self._logs.submit("probe-event", *events)
        self.beat()

    def publish_batch(
        self, events: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]], snapshot: AgentSnapshot | None
    ) -> list[dict[str, Any]]:
        """Publish what one turn of the capture had to say; its agent reports, each with what the targets got so far.

        The final report closes the targets first (within CLOSE_S), so that it can say what was given up.
        """
        self.publish(events, snapshot)
        if reports and reports[-1]["final"]:
            self.close()
        exports = self.exports()
        return [{**report, "exports": exports} if exports else dict(report) for report in reports]

    def current(self) -> AgentSnapshot:
        """The state now: the last snapshot, with what was counted since."""
        with self._lock:
            base = self._snapshot or AgentSnapshot(0, self._started_unix_ns, "", {})
            counts, kernel, turned_unix_ns = self._counter.counts(), self._kernel, self._turned_unix_ns
        signals = {
            name: replace(
                each,
                events_by_status=each.events_by_status or counts.events_by_status(name),
                histograms=kernel.get(name) or (() if each.counted else counts.histograms(name)),
            )
            for name, each in base.signals.items()
        }
        return replace(
            base, ts_unix_ns=time.time_ns(), signals=signals, exports=self._exports(), turned_unix_ns=turned_unix_ns,
            up=base.up and not self._stalled() and any(each.enabled for each in signals.values()),
        )  # fmt: skip

    def exports(self) -> list[dict[str, Any]]:
        """What each target got and did not get, for an agent report."""
        return [state.as_dict() for state in self._exports()]

    def _exports(self) -> list[ExportState]:
        found = []
        for target, sink in (("otlp_logs", self._logs), ("otlp_metrics", self._metrics)):
            if sink:
                stats = sink.stats
                # A snapshot that was lost is no event that was lost: the next one holds its counts.
                lost = dict(stats.lost) if target == "otlp_logs" else {}
                found.append(ExportState(target, stats.delivered, stats.all_reasons(), lost))
        return found

    def _stalled(self) -> bool:
        return time.monotonic_ns() - self._turned_mono_ns > _STALLED_NS

    def _alive(self) -> str:
        return f"the capture loop has not turned for {_STALLED_NS / 1e9:g} s" if self._stalled() else ""

    def _ready(self) -> str:
        with self._lock:
            if self._snapshot is None:
                return "nothing is attached yet"
            attached = any(each.enabled for each in self._snapshot.signals.values())
        return self._alive() if attached else "no signal is attached"

    def close(self, deadline_s: float | None = None) -> None:
        """Send the last metrics and what is queued, within `deadline_s` (CLOSE_S) all together. A second call does nothing."""
        if self._closed:
            return
        deadline_s = CLOSE_S if deadline_s is None else deadline_s
        self._closed = True
        if self._metrics and self._snapshot:
            self._metrics.submit(self.current())
        closing = [threading.Thread(target=sink.close, args=(deadline_s,), daemon=True) for sink in (self._logs, self._metrics) if sink]
        for thread in closing:  # both at once: one that hangs must not take the other's time
            thread.start()
        for thread in closing:
            thread.join()
        if self._server:
            self._server.close()
        for target, sink in (("otlp logs", self._logs), ("otlp metrics", self._metrics)):
            if sink and sink.stats.all_reasons():
                self._note(f"{target}: {sink.stats}")
