"""Evidence: how each signal of a service changed against that service's own recent past.

Pure: series in, evidence out. A signal without events in the window is missing, never "normal", unless its absence was
observed (a counting signal that the agent says is attached).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from libslo.signals import slis, vocabulary, waits_for_peer
from libslo.spans import Span, finite

__all__ = ["Evidence", "EvidenceKind", "ServiceSeries", "evidence_kinds", "judge", "observed_signals"]

_MIN_SECONDS = 0.5  # a rate over less than this is noise
_MIN_BASELINE = 5  # events before a baseline of waits or means is believed
_MOST_EVENTS = 50_000  # of one signal, held at once
_SUMMARIES = 600
_MOST = 1e300  # sums of what a contract allows go beyond what a number can be
_SUMMARIES_USED = 5


@dataclass(frozen=True, slots=True)
class EvidenceKind:
    """What one piece of evidence is made of; see vocabulary/evidence.json."""

    signal: str
    source: Literal["ebpf", "otel"]
    stat: Literal["p90", "p10", "mean", "rate"]
    unit: str
    floor: float
    worse: Literal["higher", "lower"]
    warning: float
    error: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal in the window of an incident. score: log2 change against the baseline, positive is worse (None: no baseline).

    level: 0 as before, 1 raised, 2 high.
    """

    signal: str
    source: str
    value: float
    baseline: float | None
    score: float | None
    level: int


@cache
def evidence_kinds() -> dict[str, EvidenceKind]:
    """All kinds of evidence by signal, kernel signals first."""
    kinds = {}
    for source in ("ebpf", "otel"):
        for name, row in vocabulary("evidence")[source].items():
            kinds[name] = EvidenceKind(name, source, **{key: value for key, value in row.items() if key != "meaning"})
    return kinds


def observed_signals(report: Mapping[str, Any]) -> frozenset[str]:
    """The signals that an agent-report says are watched now: of these, no event means that nothing happened."""
    return frozenset(row["signal"] for row in report["signals"] if row["attached"] and not row.get("shed"))


class ServiceSeries:
    """The recent events of one service by signal: times (ns) and values, sorted by time.

    Events older than twice `baseline_ns` are forgotten; what they were like is kept as one summary per `baseline_ns`, so that
    trouble which is noticed late still finds a baseline.
    """

    def __init__(self, baseline_ns: int) -> None:
        self._baseline_ns = baseline_ns
        self._series: dict[str, tuple[list[int], list[float]]] = {}
        self._summaries: deque[tuple[int, int, dict[str, float]]] = deque(maxlen=_SUMMARIES)
        self._summed_to: int | None = None
        self.first_ns: int | None = None
        self.held_from_ns = 0

    def add(self, name: str, ts_unix_ns: int, value: float) -> None:
        """Note one event."""
        times, values = self._series.setdefault(name, ([], []))
        at = len(times) if not times or times[-1] <= ts_unix_ns else bisect_right(times, ts_unix_ns)
        times.insert(at, ts_unix_ns)
        values.insert(at, value)
        if self.first_ns is None or ts_unix_ns < self.first_ns:
            self.first_ns = ts_unix_ns
        if len(times) > _MOST_EVENTS:
            self._forget(times[_MOST_EVENTS // 2])

    def tick(self, now_ns: int) -> None:
        """Let time pass: sums up what has become old enough, and forgets it when it has become older still."""
        if self._summed_to is None:
            self._summed_to = now_ns
        if now_ns - self._summed_to < self._baseline_ns:
            return
        interval = (max(self._summed_to, now_ns - self._baseline_ns), now_ns)
        watched = any(self._between(name, [interval]) for name in self._series)
        stats = {}
        for name, kind in evidence_kinds().items():
            value = self._stat(kind, name, [interval], _MIN_BASELINE)
            if value is None and kind.stat == "rate" and watched:
                value = 0.0
            if value is not None:
                stats[name] = value
        self._summaries.append((*interval, stats))
        self._summed_to = now_ns
        self._forget(now_ns - 2 * self._baseline_ns)

    def _forget(self, before_ns: int) -> None:
        for times, values in self._series.values():
            old = bisect_left(times, before_ns)
            del times[:old], values[:old]
        self.held_from_ns = max(self.held_from_ns, before_ns)

    def add_probe(self, event: dict[str, Any]) -> None:
        """Note a probe-event; an idle connection is no evidence."""
        if not waits_for_peer(event):
            self.add(event["signal"], event["ts_unix_nano"], event["value"])

    def add_slo_event(self, event: dict[str, Any], ts_unix_ns: int) -> None:
        """Note what an slo-event says about provider and retrieval. Reads no label that names a fault."""
        name, value = event["sli_name"], event["sli_value"]
        if name in ("provider_error_rate", "error_rate"):
            code = (event.get("labels") or {}).get("http.response.status_code", "")
            of = "request" if name == "error_rate" else "provider"
            self.add(f"{of}_throttled_ratio", ts_unix_ns, float(code == "429"))
            failed = value > 0 and code != "429" and (code == "" or code.startswith("5"))
            self.add(f"{of}_failed_ratio", ts_unix_ns, float(failed))
        elif name in evidence_kinds() and name in slis():
            self.add(name, ts_unix_ns, value)

    def add_span(self, span: Span) -> None:
        """Note what an enriched span says that slo-events cannot."""
        if span.is_retrieval:
            for part in ("dns", "network"):
                own = finite(span.attributes.get(f"llm.slo.retrieval.{part}_ms"))
                if own is not None:
                    self.add(f"retrieval_{part}_ms", span.end_unix_ns, own)
            explained = finite(span.attributes.get("llm.ebpf.retrieval.kernel_attributed_ms"))
            if explained is not None:
                self.add("retrieval_unexplained_ms", span.end_unix_ns, max(span.duration_ms - explained, 0.0))
        elif span.is_generation and (wait := span.number("ttft_ms")) is not None:
            self.add("provider_wait_ms", span.end_unix_ns, wait)

    def evidence(
        self, onset_ns: int, now_ns: int, healthy: Sequence[tuple[int, int]], observed: frozenset[str] = frozenset()
    ) -> list[Evidence]:
        """Evidence for the window (onset, now] against the healthy intervals before it; highest level first, then catalogue order.

        healthy: in order of time. The baseline is the median of the last `baseline_ns` of it that are still held and of the latest
        summaries inside it: an onset that is known late spoils one or two of them, and not the median.
        observed: signals that are watched, and whose absence means zero where their statistic is a rate.
        """
        window = [(max(onset_ns, self.held_from_ns), now_ns)]
        held = self._held(healthy)
        found = []
        for name, kind in evidence_kinds().items():
            value = self._stat(kind, name, window, 1)
            if value is None and kind.stat == "rate" and name in observed:
                value = 0.0
            if value is None:
                continue
            past = self._summary(name, healthy)
            if held:
                recent = self._stat(kind, name, held, _MIN_BASELINE)
                if recent is None and kind.stat == "rate" and (name in observed or self._series):
                    recent = 0.0  # the service was watched and the signal did not happen
                past += [] if recent is None else [recent]
            found.append(judge(kind, value, float(np.median(past)) if past else None))
        return sorted(found, key=lambda each: -each.level)

    def _held(self, healthy: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The last `baseline_ns` of healthy time, when at least half of it is still held."""
        wanted = min(self._baseline_ns, sum(end - begin for begin, end in healthy))
        missing, held = wanted, []
        for begin, end in reversed(healthy):
            begin = max(begin, end - missing, self.held_from_ns)
            if begin < end:
                held.append((begin, end))
                missing -= end - begin
            if missing <= 0:
                break
        return held[::-1] if missing <= wanted / 2 else []

    def _summary(self, name: str, healthy: Sequence[tuple[int, int]]) -> list[float]:
        """What the signal was in the latest intervals that are summed up and healthy throughout."""
        inside = [
            stats[name] for begin, end, stats in self._summaries if name in stats and any(a <= begin and end <= b for a, b in healthy)
        ]
        return inside[-_SUMMARIES_USED:]

    def _between(self, key: str, intervals: Sequence[tuple[int, int]]) -> list[float]:
        times, values = self._series.get(key, ([], []))
        chosen: list[float] = []
        for begin, end in intervals:
            chosen += values[bisect_right(times, begin) : bisect_right(times, end)]
        return chosen

    def _stat(self, kind: EvidenceKind, key: str, intervals: Sequence[tuple[int, int]], least: int) -> float | None:
        chosen = self._between(key, intervals)
        if kind.stat == "rate":
            seconds = sum(end - begin for begin, end in intervals) / 1e9
            return sum(chosen) / max(seconds, _MIN_SECONDS) if chosen else None
        if len(chosen) < least:
            return None
        if kind.stat == "mean":
            return float(np.mean(chosen))
        return float(np.percentile(chosen, 90 if kind.stat == "p90" else 10))


def judge(kind: EvidenceKind, value: float, baseline: float | None) -> Evidence:
    """Grade a value (in the kind's unit) by its change against the baseline, or by the kind's thresholds where there is none."""
    raised, high = vocabulary("evidence")["cuts"]
    value = min(max(value, 0.0), _MOST)
    baseline = None if baseline is None else min(max(baseline, 0.0), _MOST)
    if baseline is None:
        sign = 1 if kind.worse == "higher" else -1
        level = 2 if value * sign >= kind.error * sign else 1 if value * sign >= kind.warning * sign else 0
        return Evidence(kind.signal, kind.source, value, None, None, level)
    score = float(np.log2((value + kind.floor) / (baseline + kind.floor))) * (1 if kind.worse == "higher" else -1)
    return Evidence(kind.signal, kind.source, value, baseline, score, 2 if score >= high else 1 if score >= raised else 0)
