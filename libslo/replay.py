"""What faultreplay does: a recording as the stream it was, or as labelled samples; a scenario as labelled samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libslo.collect import Collector, CollectSettings
from libslo.contracts import OTLP_SPANS
from libslo.errors import InputError
from libslo.jsonl import JsonlWriter, Record, decode_lines
from libslo.recordings import Recording
from libslo.samples import FaultInterval, SampleStats, fault_intervals, fault_samples
from libslo.spans import Span, decode_spans
from libslo.verdicts import write_verdicts

__all__ = ["ReplaySettings", "collected_records", "replay"]

_BATCH = 1000
_LOOK_S = 0.5  # how often a replay that waits looks whether anybody still reads
_ATTRIBUTED = ("slo-event", "probe-event", OTLP_SPANS, "agent-report")
_COLLECTED = ("raw-sample", "probe-event", OTLP_SPANS, "stream-time", "slo-event")


@dataclass(frozen=True)
class ReplaySettings:
    """What faultreplay was asked to do. pace: None is at once, 1 its own pace, 10 ten times as fast."""

    directory: str | None = None
    scenario: str | None = None
    seed: int = 42
    count: int = 200
    rate: float | None = None
    pace: float | None = None
    kinds: frozenset[str] | None = None
    samples: bool = False
    window_s: float = 5.0
    verify: bool = False
    out: str = "-"


def replay(settings: ReplaySettings, note: Callable[[str], None], reader_has_gone: Callable[[], bool] = lambda: False) -> bool:
    """Do it; False only when a file of a verified recording is not what it was.

    reader_has_gone: whether nobody reads any more; asked while waiting for the time of the next line.
    """
    if settings.directory is None:
        _write_samples(settings, *_of_scenario(settings), note)
        return True
    recording = Recording(settings.directory)
    if settings.verify:
        return _verify(recording, settings, note)
    if settings.samples:
        _write_samples(settings, *_of_recording(recording), note, recording.paths)
    else:
        _write_lines(recording, settings, note, reader_has_gone)
    return True


def _verify(recording: Recording, settings: ReplaySettings, note: Callable[[str], None]) -> bool:
    _, wrong = write_verdicts(recording.verdicts(), settings.out, map(str, recording.paths))
    note(f"{len(recording.files)} files, {wrong} not as recorded")
    return not wrong


def _write_lines(recording: Recording, settings: ReplaySettings, note: Callable[[str], None], reader_has_gone: Callable[[], bool]) -> None:
    first_ns: int | None = None
    began_s = time.monotonic()
    with JsonlWriter(settings.out, map(str, recording.paths)) as writer:
        for arrival_ns, line in recording.input(settings.kinds):
            first_ns = arrival_ns if first_ns is None else first_ns
            if settings.pace is not None:
                due_s = began_s + (arrival_ns - first_ns) / 1e9 / settings.pace
                if time.monotonic() < due_s:
                    writer.flush()
                while (ahead_s := due_s - time.monotonic()) > 0:
                    if settings.out == "-" and reader_has_gone():
                        raise BrokenPipeError
                    time.sleep(min(ahead_s, _LOOK_S))
            writer.write_line(line)
    if first_ns is None:
        raise InputError("nothing was recorded", source=str(recording.directory), hint="faultreplay --verify says what is in it")
    note(f"{writer.lines} lines replayed")


Faults = tuple[Iterable[tuple[str, Any]], list[FaultInterval], dict[str, Any]]


def _write_samples(
    settings: ReplaySettings,
    records: Iterable[tuple[str, Any]],
    faults: list[FaultInterval],
    about: dict[str, Any],
    note: Callable[[str], None],
    inputs: Sequence[Path] = (),
) -> None:
    stats = SampleStats()
    with JsonlWriter(settings.out, map(str, inputs)) as writer:
        for sample in fault_samples(records, faults, window_ns=int(settings.window_s * 1e9), about=about, stats=stats):
            writer.write(sample)
    late = f", {stats.late} records too late for their window" if stats.late else ""
    note(f"{stats.samples} samples, {stats.across_edges} windows across the edge of a fault left out{late}")


def _of_scenario(settings: ReplaySettings) -> Faults:
    import numpy as np

    from libslo.scenarios import load_scenario
    from libslo.synthetic import SyntheticSettings, fault_windows, synthetic_records

    synthetic = SyntheticSettings(load_scenario(settings.scenario or ""), settings.count, settings.rate)
    records = synthetic_records(synthetic, np.random.default_rng(settings.seed))
    rows: Iterator[Record] = (("raw-sample" if "ttft_ms" in each else "probe-event", each, b"", 0) for each in records)
    about = {"synthetic": True, "scenario": synthetic.scenario.name}
    return _collected(rows), fault_intervals(fault_windows(synthetic)), about


def _of_recording(recording: Recording) -> Faults:
    manifest = recording.manifest
    recording.check_labelled()
    windows = [value for _, value, *_ in _decoded(recording, "fault-window")] if recording.has("fault-window") else []
    about: dict[str, Any] = {"synthetic": any(window["synthetic"] for window in windows)}
    about |= {key: manifest[key] for key in ("scenario", "severity") if key in manifest}
    return collected_records(recording), fault_intervals(windows), about


def collected_records(recording: Recording, forget: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(contract, object) of what the collector makes of a recording's input; of OTLP spans the list of Span. No fault-window is read.

    forget: meanings of span attributes (vocabulary/span-attributes.json) that are taken away before the collector sees them.
    """
    kinds = [kind for kind in (*recording.kinds("input"), "stream-time") if kind not in ("fault-window", "other")]
    return _collected(record for _, line in recording.input(kinds) for record in _records(line, str(recording.directory), forget))


def _decoded(recording: Recording, kind: str) -> Iterator[Record]:
    for line in recording.lines(kind):
        yield from decode_lines([line], (kind,), f"{recording.directory}/{kind}.jsonl.gz")


def _records(line: bytes, source: str, forget: Sequence[str]) -> list[Record]:
    found = decode_lines([line.rstrip(b"\n")], _COLLECTED, source)
    return [(kind, _spans(value, forget) if kind == OTLP_SPANS else value, raw, number) for kind, value, raw, number in found]


def _spans(value: dict[str, Any], forget: Sequence[str]) -> list[Span]:
    spans = list(decode_spans(value))
    for span in spans:
        for role in forget:
            span.forget(role)
    return spans


def _collected(rows: Iterable[Record]) -> Iterator[tuple[str, Any]]:
    """(contract, object) of what the collector makes of the records."""
    said: list[tuple[str, Any]] = []

    def sink(kind: str, value: dict[str, Any] | None, block: bytes, lines: int) -> None:
        if value is not None:
            said.append((kind, value))
            return
        for name, each, *_ in decode_lines(block.splitlines(), _ATTRIBUTED):
            spans: list[Span] | None = list(decode_spans(each)) if name == OTLP_SPANS else None
            said.append((name, each if spans is None else spans))

    collector = Collector(CollectSettings(), sink)
    batch: list[Record] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= _BATCH:
            collector.feed(batch)
            batch = []
            yield from said
            said.clear()
    collector.feed(batch)
    collector.finish()
    yield from said
