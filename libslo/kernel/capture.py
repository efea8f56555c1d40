"""The capture loop: attach, drain, name, sweep, report, and let go without losing an event."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from libslo.errors import CannotError
from libslo.host import keep_heap_small
from libslo.kernel.abilities import tried_abilities
from libslo.kernel.guard import Guard
from libslo.kernel.histogram import SeriesCounts
from libslo.kernel.histogram_records import HistogramRecords
from libslo.kernel.identity import Identity, IdentityResolver
from libslo.kernel.polled import never
from libslo.kernel.privileges import check_dropped, drop_capabilities
from libslo.kernel.probes import machine_obstacle
from libslo.kernel.session import Session
from libslo.kernel.settings import CaptureSettings

__all__ = ["Batch", "capture", "check_report"]

_POLL_S = 0.05
_SWEEP_NS = 1_000_000_000
_FORGET_NS = 30_000_000_000


@dataclass(slots=True)
class Batch:
    """What one turn of the loop has to say."""

    events: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    histograms: list[dict[str, Any]] = field(default_factory=list)  # signal-histogram records
    counts: list[tuple[SeriesCounts, Identity]] = field(default_factory=list)  # what the kernel's histograms gained, and whose
    state: dict[str, Any] | None = None  # an agent report that nobody asked to have written


def check_report(
    settings: CaptureSettings, resolver: IdentityResolver | None = None, stopped: Callable[[], bool] = never
) -> dict[str, Any]:
    """An agent report of what can be attached here, having tried and let go at once. Never raises CannotError.

    stopped: the rest is not tried any more.
    """
    with Session(settings, resolver, stopped=stopped) as session:
        return session.report(final=True, abilities=tried_abilities())


def capture(
    settings: CaptureSettings, stopped: Callable[[], bool], resolver: IdentityResolver | None = None
) -> Generator[Batch, None, None]:
    """Batches until `stopped`, the duration or the count; the last one holds the final report, after the last event.
    None at all when `stopped` comes before all is attached.

    Raises CannotError when no signal could be attached.
    """
    with Session(settings, resolver, stopped=stopped) as session:
        if stopped():
            return
        if not any(state.attached for state in session.states):
            first = session.states[0]
            obstacle = machine_obstacle(settings.btf)
            if obstacle:
                raise obstacle
            raise CannotError(f"no signal could be attached: {first.signal}: {first.reason}", source="kernel", hint="agent --check")
        session.resolver.prime()  # while it may still read every process
        guard = Guard(session, ceiling_pct=settings.max_overhead_pct)
        if settings.drop_capabilities:
            drop_capabilities()  # after everything that needs one
            check_dropped()
        keep_heap_small()
        left = settings.count
        records = HistogramRecords()
        started_ns = swept_ns = reported_ns = forgot_ns = guarded_ns = written_ns = time.monotonic_ns()
        yield Batch(reports=[session.report(final=False)])
        while not stopped() and left != 0:
            now_ns = time.monotonic_ns()
            over_s = (now_ns - started_ns) / 1e9
            if settings.duration_s is not None and over_s >= settings.duration_s:
                break
            session.wait(_POLL_S if settings.duration_s is None else min(_POLL_S, settings.duration_s - over_s))
            batch = Batch(events=session.drain())
            if now_ns - swept_ns >= _SWEEP_NS:
                batch.events += session.sweep() + session.poll()
                batch.counts = _owned(session, session.histograms())
                swept_ns = now_ns
                if settings.histogram_interval_s:
                    records.add([series for series, _ in batch.counts])
                if 0 < settings.histogram_interval_s * 1e9 <= now_ns - written_ns:
                    batch.histograms = records.take(time.time_ns(), (now_ns - written_ns) / 1e6, session.owner)
                    written_ns = now_ns
                if now_ns - forgot_ns >= _FORGET_NS:
                    batch.counts += _owned(session, session.forget_cgroups())
                    forgot_ns = now_ns
            decisions, guarded = [], False
            if now_ns - guarded_ns >= settings.overhead_interval_s * 1e9:
                decisions = guard.turn()
                guarded_ns, guarded = time.monotonic_ns(), True
            if decisions or now_ns - reported_ns >= settings.report_interval_s * 1e9:
                batch.reports.append(session.report(final=False, **_guarded(guard, decisions)))
                reported_ns = now_ns
            elif guarded:
                batch.state = session.report(final=False, **_guarded(guard, []))
            left = _take(batch, left)
            if batch.events or batch.reports or batch.counts or batch.state or batch.histograms:
                yield batch
        last = Batch(events=session.detach())
        last.events += session.sweep() + session.poll()
        last.counts = _owned(session, session.histograms())
        if settings.histogram_interval_s:
            records.add([series for series, _ in last.counts])
            last.histograms = records.take(time.time_ns(), (time.monotonic_ns() - written_ns) / 1e6, session.owner)
        last.reports.append(session.report(final=True, **_guarded(guard, [])))
        _take(last, left)
        yield last


def _owned(session: Session, counts: list[SeriesCounts]) -> list[tuple[SeriesCounts, Identity]]:
    return [(series, session.owner(series.cgroup_id)) for series in counts]


def _guarded(guard: Guard, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    """What a report says of the overhead guard."""
    return ({"overhead": guard.overhead} if guard.overhead else {}) | ({"decisions": decisions} if decisions else {})


def _take(batch: Batch, left: int | None) -> int | None:
    if left is None:
        return None
    batch.events = batch.events[:left]
    return left - len(batch.events)
