"""What an onset that is known late costs, from recordings of faults that lasted: `make late-onset`. Every figure is measured here.

`python -m libslo.bench.late_onset --recordings DIR --table FILE`. At the same moments of the same fault a model is asked twice: with
the time since the fault began as the window, and with the same window cut at its begin, which makes the missing part look like the
healthy past. Needs no root.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from libslo.attribute import AttributeSettings, incident_settings
from libslo.attribution import UNKNOWN, Verdict
from libslo.bench.recorded import model_provenance
from libslo.bench.report import share_text
from libslo.cases import Case, find_recordings, recorded, recording_settings, recording_stream
from libslo.cli import common_options, make_main, note
from libslo.errors import InputError
from libslo.estimates import Share
from libslo.files import write_file
from libslo.incidents import IncidentEngine
from libslo.predictions import Decide, predict
from libslo.recordings import Recording
from libslo.samples import FaultInterval, fault_intervals

__all__ = ["Look", "late_looks", "main", "page"]

_LATE_S = (0, 15, 30, 45, 60)
_MOMENTS_S = (62, 64, 66, 68, 70)  # after the begin of the fault
_BASELINE_S = 180  # less is no past in which a minute does not count for much
_SERVICE = "rag-service"
_S = 1_000_000_000


@dataclass(frozen=True)
class Look:
    """One question to the model: in which run, how long after the fault began, how much too late the onset was put, what was known."""

    run: str
    moment_s: int
    late_s: int
    case: Case


def late_looks(path: Path) -> list[Look]:
    """Replay a recording of one fault, and look at each moment with each onset.

    Raises InputError when the recording has no fault, or one that is too short or began too soon.
    """
    recording = Recording(path)
    begin, domains = _fault(recording)
    engine = IncidentEngine(recording_settings(recording, lambda _: Verdict(UNKNOWN, 0.0, ())), lambda _: None)
    due = [begin + moment * _S for moment in _MOMENTS_S]
    looks = []
    for kind, value in recording_stream(recording):
        for _ in engine.feed(kind, value):
            pass
        while due and (engine.latest_ns or 0) >= due[0]:
            for late_s in _LATE_S:
                evidence = tuple(engine.evidence_now(_SERVICE, due[0] - begin - late_s * _S))
                moment_s = (due[0] - begin) // _S
                looks.append(Look(path.name, moment_s, late_s, Case(f"{path.name}/{late_s}-{len(due)}", domains, (evidence,))))
            del due[0]
        if not due:
            break
    return looks


def _fault(recording: Recording) -> tuple[int, tuple[str, ...]]:
    """Begin (ns since the epoch) and domains of the only fault."""
    faults = fault_intervals(window for _, window in recorded(recording, "fault-window"))
    place = str(recording.directory)
    hint = f"runs of one fault with a baseline of at least {_BASELINE_S} s and over {_MOMENTS_S[-1]} s of fault: make late-onset"
    if not faults:
        raise InputError("no fault was recorded", source=place, hint=hint)
    begin = min(fault.begin_ns for fault in faults)
    phases: Sequence[Mapping[str, Any]] = recording.manifest.get("phases", [])
    if not phases or begin - phases[0]["begin_unix_nano"] < _BASELINE_S * _S:
        raise InputError(f"less than {_BASELINE_S} s before the fault", source=place, hint=hint)
    if not all(fault.covers(begin + _S, begin + _MOMENTS_S[-1] * _S) for fault in faults):
        raise InputError(f"a fault that was not on for {_MOMENTS_S[-1]} s", source=place, hint=hint)
    return begin, _domains(faults)


def _domains(faults: Iterable[FaultInterval]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(domain for fault in faults for domain in fault.domains))


def page(looks: Sequence[Look], decide: Decide, model: Mapping[str, Any], command: str) -> str:
    """The page, as Markdown. command: what wrote it."""
    answers = [(look, predict(look.case, decide).predicted) for look in looks]
    moments = " / ".join(map(str, _MOMENTS_S))
    runs = sorted({look.run for look in looks})
    return "\n".join([
        "# An onset that is known late",
        "",
        f"`{command}` wrote this page: no figure on it is typed by hand.",
        "",
        f"Model: {model['version']}, sha256 `{model['sha256'][:16]}`.",
        "",
        f"{len(runs)} runs, each with one real fault, looked at {moments} s after its begin.",
        "The looks of one run are not independent; the runs are.",
        "",
        "| onset put too late by, s | looks right | n | runs right in every look | n |",
        "| ---: | --- | ---: | ---: | ---: |",
        *(_row(late_s, [each for each in answers if each[0].late_s == late_s]) for late_s in _LATE_S),
        "",
        "## By run",
        "",
        "| run | true domain | " + " | ".join(f"{late_s} s late" for late_s in _LATE_S) + " |",
        "| --- | --- |" + " --- |" * len(_LATE_S),
        *_runs(answers, runs),
        "",
        "An entry is what was said, with how often it was where a run was answered in more than one way.",
        "",
    ])  # fmt: skip


def _row(late_s: int, answers: Sequence[tuple[Look, str]]) -> str:
    right = [said == look.case.expected[0] for look, said in answers]
    runs: dict[str, bool] = {}
    for (look, _), each in zip(answers, right, strict=True):
        runs[look.run] = runs.get(look.run, True) and each
    return f"| {late_s} | {share_text(Share(sum(right), len(right)).as_dict())} | {len(right)} | {sum(runs.values())} | {len(runs)} |"


def _runs(answers: Sequence[tuple[Look, str]], runs: Sequence[str]) -> Iterator[str]:
    for run in runs:
        cells = []
        for late_s in _LATE_S:
            said = [domain for look, domain in answers if look.run == run and look.late_s == late_s]
            kinds = sorted(set(said), key=lambda domain: (-said.count(domain), domain))
            cells.append(", ".join(kinds if len(kinds) == 1 else [f"{domain} {said.count(domain)}" for domain in kinds]))
        truth = next(look.case.expected for look, _ in answers if look.run == run)
        yield f"| {run} | {', '.join(truth)} | {' | '.join(cells)} |"


@click.command()
@click.option("--recordings", "places", required=True, multiple=True, metavar="DIR", help="Recordings (repeatable).")
@click.option("--model", "model_file", metavar="FILE", help="Model file (default: the one that travels with the toolkit).")
@click.option("--table", required=True, metavar="FILE", help="The page to write.")
@common_options
def command(places: tuple[str, ...], model_file: str | None, table: str) -> None:
    """Measure what an onset that is known late costs, and write it as one page.

    \b
    Example:
      python -m libslo.bench.late_onset --recordings artifacts/late --table docs/late-onset.md
    """
    words = [word for place in places for word in ("--recordings", place)] + (["--model", model_file] if model_file else [])
    shown = shlex.join(["python", "-m", "libslo.bench.late_onset", *words, "--table", table])
    decide = incident_settings(AttributeSettings(model=model_file)).attribute
    looks = []
    for path in find_recordings(places):
        looks += late_looks(path)
        note(f"{path.name}: replayed")
    write_file(table, page(looks, decide, model_provenance("bayes", model_file, AttributeSettings().abstain_below), shown).encode())


main = make_main(command, "late_onset")

if __name__ == "__main__":
    main(None)
