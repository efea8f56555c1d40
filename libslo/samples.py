"""Labelled samples: what the indicators and signals of a service were in one window, and which fault was on.

The label goes into a sample for evaluation and fitting; nothing that is measured depends on it. Pure: no clock, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from libslo.clock import EventClock
from libslo.contracts import OTLP_SPANS
from libslo.evidence import ServiceSeries, observed_signals
from libslo.signals import sli
from libslo.slo import format_timestamp, parse_timestamps

__all__ = ["FaultInterval", "SampleStats", "fault_intervals", "fault_samples", "sample_fault"]

_LATE_NS = 60_000_000_000  # how much later than its own time a record may come and still be in its window


@dataclass(frozen=True)
class FaultInterval:
    """A fault was on from begin (ns) to end; None: to the end of the run."""

    begin_ns: int
    end_ns: int | None
    label: str
    domains: tuple[str, ...]

    def covers(self, begin_ns: int, end_ns: int) -> bool | None:
        """Whether it was on in the whole of a window (True), in none of it (False), or its edge is inside (None)."""
        if self.begin_ns >= end_ns or (self.end_ns is not None and self.end_ns <= begin_ns):
            return False
        return True if self.begin_ns <= begin_ns and (self.end_ns is None or self.end_ns >= end_ns) else None


@dataclass
class SampleStats:
    """What became of the windows."""

    samples: int = 0
    across_edges: int = 0
    late: int = 0


def fault_intervals(windows: Iterable[Mapping[str, Any]]) -> list[FaultInterval]:
    """The intervals of fault-window objects, in order of begin. Synthetic faults are named by their parts, real ones by their scenario."""
    found: dict[str, FaultInterval] = {}
    for window in windows:
        label = window["fault"] if window["synthetic"] else window["scenario"]
        begin, end = window["begin_unix_nano"], window.get("end_unix_nano")
        if end is not None or window["fault_id"] not in found:
            found[window["fault_id"]] = FaultInterval(begin, end, label, tuple(window["expected_domains"]))
    return sorted(found.values(), key=lambda each: (each.begin_ns, each.label))


@dataclass
class _Window:
    series: ServiceSeries
    slis: dict[str, list[float]] = field(default_factory=dict)


def sample_fault(sample: Mapping[str, Any]) -> str:
    """What is wrong with a fault-sample though it keeps its schema: more bad requests than requests; or nothing."""
    for row in sample["slis"]:
        if row.get("bad", 0) > row["requests"]:
            return f"not a valid fault-sample: {row['bad']} of {row['requests']} requests are bad"
    return ""


def fault_samples(
    records: Iterable[tuple[str, Any]],
    faults: Iterable[FaultInterval],
    *,
    window_ns: int,
    about: Mapping[str, Any],
    stats: SampleStats,
) -> Iterator[dict[str, Any]]:
    """A fault-sample for every window and service with a record in it; windows begin at the first slo-event.

    records: (contract, object) as the collector writes them; of OTLP spans the list of Span. about: `synthetic`, and `scenario`
    and `severity` where known. A window in which a fault comes on or goes off is neither: it is left out, and counted.
    """
    faults = list(faults)
    origin: int | None = None
    clock = EventClock()
    held: dict[tuple[int, str], _Window] = {}
    done = -1  # windows up to this one are given out
    before: list[tuple[str, Any, int, str]] = []  # what came before the first slo-event
    observed: frozenset[str] = frozenset()
    for kind, value in records:
        if kind == "agent-report":
            observed = observed_signals(value)
            continue
        for service, ts, each in _timed(kind, value):
            if origin is None:
                before.append((kind, each, ts, service))
                if kind != "slo-event":
                    continue
                origin = ts
            rows, before = (before, []) if before else ([(kind, each, ts, service)], before)
            for row in rows:
                number = (row[2] - origin) // window_ns
                if 0 <= number <= done:
                    stats.late += 1
                elif number >= 0:
                    _add(held.setdefault((number, row[3]), _Window(ServiceSeries(window_ns))), *row[:3])
            clock.see(ts)
            ended = ((clock.latest_ns or 0) - _LATE_NS - origin) // window_ns - 1
            if ended > done:
                yield from _samples(held, ended, origin, faults, window_ns, about, stats, observed)
                done = ended
    if held and origin is not None:
        yield from _samples(held, max(number for number, _ in held), origin, faults, window_ns, about, stats, observed)


def _timed(kind: str, value: Any) -> Iterator[tuple[str, int, Any]]:
    """(service, time in ns, object) of what a record holds."""
    if kind == "slo-event":
        yield value["service"], int(parse_timestamps([value["timestamp"]])[0]), value
    elif kind == "probe-event" and value.get("service"):
        yield value["service"], value["ts_unix_nano"], value
    elif kind == OTLP_SPANS:
        for span in value:
            if span.service:
                yield span.service, span.end_unix_ns, span


def _add(window: _Window, kind: str, value: Any, ts_unix_ns: int) -> None:
    if kind == "slo-event":
        window.series.add_slo_event(value, ts_unix_ns)
        window.slis.setdefault(value["sli_name"], []).append(value["sli_value"])
    elif kind == "probe-event":
        window.series.add_probe(value)
    else:
        window.series.add_span(value)


def _samples(
    held: dict[tuple[int, str], _Window],
    last: int,
    origin: int,
    faults: list[FaultInterval],
    window_ns: int,
    about: Mapping[str, Any],
    stats: SampleStats,
    observed: frozenset[str],
) -> Iterator[dict[str, Any]]:
    for number, service in sorted(key for key in held if key[0] <= last):
        window = held.pop((number, service))
        begin = origin + number * window_ns
        end = begin + window_ns
        on = [(fault, fault.covers(begin, end)) for fault in faults]
        if any(covered is None for _, covered in on):
            stats.across_edges += 1
            continue
        active = [fault for fault, covered in on if covered]
        stats.samples += 1
        yield {
            "timestamp": format_timestamp(end),
            "window_ms": window_ns / 1e6,
            "service": service,
            "slis": [_sli_row(name, values) for name, values in sorted(window.slis.items())],
            "signals": [
                {"signal": each.signal, "source": each.source, "value": round(each.value, 4)}
                for each in sorted(window.series.evidence(begin - 1, end - 1, [], observed), key=lambda each: each.signal)
            ],
            "expected_domains": list(dict.fromkeys(domain for fault in active for domain in fault.domains)),
            "fault_label": "+".join(dict.fromkeys(fault.label for fault in active)) or "baseline",
            **about,
        }


def _sli_row(name: str, values: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sli": name,
        "requests": len(values),
        "mean": round(float(np.mean(values)), 4),
        "p95": round(float(np.percentile(values, 95)), 4),
    }
    objective = sli(name).objective
    if objective is not None:
        row["bad"] = sum(not sli(name).meets(value, objective.threshold) for value in values)
    return row
