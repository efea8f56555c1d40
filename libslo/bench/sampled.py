"""Material from fault-samples: the attributor's answers to windows that are summed up already, beside their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libslo.answers import Incident
from libslo.attribution import largest_change
from libslo.bench.material import Answer, Material, Timeline
from libslo.bench.timelines import first_of_each_domain, telling_signals
from libslo.errors import InputError
from libslo.evaluation import Prediction
from libslo.evidence import evidence_kinds
from libslo.incidents import IncidentSettings
from libslo.jsonl import encode, read_jsonl
from libslo.sample_judge import SampleJudge
from libslo.samples import sample_fault
from libslo.signals import sli
from libslo.slo import parse_timestamps

__all__ = ["material_of_samples"]

_LABELS = ("expected_domains", "fault_label")
_AROUND = 6  # windows of a timeline before and after a fault
_NO_OVERHEAD = "fault-samples do not say what the tools used"


@dataclass(frozen=True)
class _Window:
    """A sample, when it ended, and what was said in it."""

    sample: Mapping[str, Any]
    end_ns: int
    incident: Incident | None

    @property
    def begin_ns(self) -> int:
        return self.end_ns - int(self.sample["window_ms"] * 1e6)

    @property
    def label(self) -> str:
        return "" if self.sample["fault_label"] == "baseline" else str(self.sample["fault_label"])


def material_of_samples(source: str, settings: IncidentSettings, provenance: Mapping[str, Any]) -> Material:
    """Judge the samples of a file (- is stdin) in order of time. InputError when one is not labelled, or there are none.

    A window without a fault and without an incident is a case in which nobody was accused. Of a fault that lasts for windows the first
    incident counts; a fault without any is left out, and counted: it moved no indicator, or an episode was open already.
    """
    name = "stdin" if source == "-" else source
    samples, digest = _read(source, name)
    judge = SampleJudge(settings)
    services: dict[str, list[_Window]] = {}
    for end_ns, sample in samples:
        incident = judge.feed(sample)
        services.setdefault(sample["service"], []).append(_Window(sample, end_ns, incident))
    answers: list[Answer] = []
    places: dict[str, tuple[str, int, int]] = {}  # of a case: service, first window, the one after the last
    silent = 0
    for service, windows in services.items():
        first = 0
        for number, stretch in enumerate(_stretches(windows)):
            case = f"{service}/{number}"
            found = list(_answers(case, name, stretch))
            answers += found
            silent += bool(stretch[0].label) and not found
            places[case] = (service, first, first + len(stretch))
            first += len(stretch)
    return Material(
        answers=tuple(answers),
        truth=(),
        overhead=(),
        no_overhead=_NO_OVERHEAD,
        timelines=tuple(_timeline(each, services, places[each.prediction.case]) for each in first_of_each_domain(answers)),
        datasets={name: digest},
        provenance={**provenance, "samples": _taken([window for windows in services.values() for window in windows])},
        left_out={"faults_without_incident": silent},
    )


def _taken(windows: Sequence[_Window]) -> dict[str, int]:
    return {"first_unix_nano": min(window.begin_ns for window in windows), "last_unix_nano": max(window.end_ns for window in windows)}


def _read(source: str, name: str) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """(end in ns, sample) in order of time, and the sha256 of the samples in that order."""
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        for records in read_jsonl(source, ("fault-sample",)):
            for kind, sample, raw, line in records:
                if kind == "":
                    raise InputError(
                        f"not a fault-sample: {raw[:60].decode(errors='replace')}",
                        source=name,
                        line=line,
                        hint="faultreplay DIR --samples",
                    )
                if wrong := sample_fault(sample):
                    raise InputError(wrong, source=name, line=line, hint="make the samples again: faultreplay DIR --samples")
                if (sample["fault_label"] == "baseline") != (not sample["expected_domains"]):
                    raise InputError(
                        f"the label {sample['fault_label']!r} and the expected domains {sample['expected_domains']} do not agree",
                        source=name,
                        line=line,
                        hint='"baseline" and [] without a fault; otherwise both name it',
                    )
                found.append((int(parse_timestamps([sample["timestamp"]])[0]), sample))
    except InputError as error:
        if any(label in error.fact for label in _LABELS) and "do not agree" not in error.fact:
            hint = "label it: faultreplay DIR --samples does, from the recording's fault-windows"
            raise InputError(f"a sample without its label: {error.fact}", source=error.source, line=error.line, hint=hint) from error
        raise
    if not found:
        raise InputError("no fault-sample in it", source=name, hint="faultreplay DIR --samples writes them")
    found.sort(key=lambda each: (each[0], each[1]["service"]))
    return found, hashlib.sha256(b"".join(encode(sample) for _, sample in found)).hexdigest()


def _stretches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """The windows of one fault together; each without one alone."""
    stretch: list[_Window] = []
    for window in windows:
        if stretch and (not window.label or window.label != stretch[-1].label):
            yield stretch
            stretch = []
        stretch.append(window)
    if stretch:
        yield stretch


def _answers(case: str, run: str, stretch: Sequence[_Window]) -> Iterator[Answer]:
    said = next((window for window in stretch if window.incident is not None), None)
    if said is None and stretch[0].label:
        return
    sample = stretch[0].sample
    incident = said.incident if said is not None else None
    posteriors = {"unknown": 1.0} if incident is None else {each.domain: each.posterior for each in incident.verdict.hypotheses}
    prediction = Prediction(
        case=case,
        actual=tuple(sample["expected_domains"]),
        predicted="unknown" if incident is None else incident.verdict.domain,
        posteriors=posteriors,
        ranking=tuple(posteriors),
        largest_z="unknown" if incident is None else largest_change(incident.evidence),
        delay_s=(said.end_ns - stretch[0].begin_ns) / 1e9 if said is not None and stretch[0].label else None,
        synthetic=sample["synthetic"],
    )
    yield Answer(prediction, run, sample.get("scenario", ""), sample.get("severity", ""))


def _timeline(answer: Answer, services: Mapping[str, Sequence[_Window]], place: tuple[str, int, int]) -> Timeline:
    service, first, after = place
    stretch = services[service][first:after]
    windows = services[service][max(first - _AROUND, 0) : after + _AROUND]
    incident = next(window.incident for window in stretch if window.incident is not None)
    names, indicator = telling_signals(incident.evidence), incident.value["slo_impact"]["sli"]
    begin_ns, kinds = stretch[0].begin_ns, evidence_kinds()
    rows = [{row["signal"]: float(row["value"]) for row in window.sample["signals"]} for window in windows]
    p95 = [next((float(row["p95"]) for row in window.sample["slis"] if row["sli"] == indicator), None) for window in windows]
    return Timeline(
        domain=answer.prediction.actual[0],
        case=answer.prediction.case,
        t_s=tuple(((window.begin_ns + window.end_ns) / 2 - begin_ns) / 1e9 for window in windows),
        series=(
            (indicator, sli(indicator).unit, tuple(p95)),
            *((name, kinds[name].unit, tuple(row.get(name) for row in rows)) for name in names),
        ),
        ends_s=(stretch[-1].end_ns - begin_ns) / 1e9,
        detected_s=answer.prediction.delay_s,
    )
