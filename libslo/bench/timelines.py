"""What one incident of each domain looked like, second by second: the latency it hurt, and the signals that changed most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from libslo.bench.material import Answer, Timeline
from libslo.cases import Run
from libslo.evaluation import CLASSES
from libslo.evidence import Evidence, ServiceSeries, evidence_kinds
from libslo.predictions import Decide, answer
from libslo.recordings import Recording
from libslo.replay import collected_records
from libslo.signals import sli
from libslo.slo import parse_timestamps

__all__ = ["first_of_each_domain", "recorded_timelines", "telling_signals"]

_SECOND_NS = 1_000_000_000
_SIGNALS = 3  # beside the indicator
_INDICATOR = "ttft_ms"
_SERVICE = "rag-service"


def first_of_each_domain(answers: Sequence[Answer]) -> Iterator[Answer]:
    """Of each domain the first single fault by the order of runs, one that was named right before one that was not."""
    for domain in CLASSES:
        mine = [each for each in answers if each.prediction.actual == (domain,)]
        right = [each for each in mine if each.prediction.predicted == domain]
        yield from islice(right or mine, 1)


def telling_signals(evidence: Sequence[Evidence]) -> list[str]:
    """The signals that changed most, those that were raised first."""
    order = sorted(evidence, key=lambda each: (-each.level, -(each.score or 0.0), each.signal))
    return [each.signal for each in order if each.level > 0][:_SIGNALS] or [each.signal for each in order][:1]


def recorded_timelines(answers: Sequence[Answer], runs: Mapping[str, tuple[Path, Run]], decide: Decide) -> Iterator[Timeline]:
    """One timeline for each domain, from its run replayed once more."""
    for each in first_of_each_domain(answers):
        path, run = runs[each.run]
        case = next(case for case in run.found if case.name == each.prediction.case)
        injection = run.injections[int(case.name.rsplit("/", 1)[1])]
        names = telling_signals(answer(case, decide)[1])
        times, series = _per_second(Recording(path), names, run)
        yield Timeline(
            domain=each.prediction.actual[0],
            case=case.name,
            t_s=tuple((at - injection.begin_ns) / _SECOND_NS + 0.5 for at in times),
            series=series,
            ends_s=(injection.end_ns - injection.begin_ns) / _SECOND_NS,
            detected_s=injection.delay_event_s,
        )


def _per_second(
    recording: Recording, names: Sequence[str], run: Run
) -> tuple[list[int], tuple[tuple[str, str, tuple[float | None, ...]], ...]]:
    """(begins of the seconds, series): what evidence would be of each second alone; of the indicator its 90th percentile."""
    phases = recording.manifest["phases"]
    begin, end = phases[0]["begin_unix_nano"], phases[-1]["end_unix_nano"]
    series, latency = ServiceSeries(end - begin + 60 * _SECOND_NS), dict[int, list[float]]()
    for kind, value in collected_records(recording):
        if kind == "slo-event" and value["service"] == _SERVICE:
            ts = int(parse_timestamps([value["timestamp"]])[0])
            series.add_slo_event(value, ts)
            if value["sli_name"] == _INDICATOR:
                latency.setdefault((ts - begin) // _SECOND_NS, []).append(value["sli_value"])
        elif kind == "probe-event" and value.get("service") == _SERVICE:
            series.add_probe(value)
        elif kind == "otlp-spans":
            for span in value:
                if span.service == _SERVICE:
                    series.add_span(span)
    times = list(range(begin, end - _SECOND_NS, _SECOND_NS))
    found: dict[str, list[float | None]] = {name: [] for name in names}
    for at in times:
        now = {each.signal: each.value for each in series.evidence(at, at + _SECOND_NS, [], frozenset(names))}
        for name in names:
            found[name].append(now.get(name))
    shown: list[float | None] = [_p90(latency.get(i, [])) for i in range(len(times))]
    kinds = evidence_kinds()
    rest = tuple((name, kinds[name].unit, tuple(values)) for name, values in found.items())
    return times, ((_INDICATOR, sli(_INDICATOR).unit, tuple(shown)), *rest)


def _p90(values: Sequence[float]) -> float | None:
    import numpy as np

    return float(np.percentile(values, 90)) if values else None
