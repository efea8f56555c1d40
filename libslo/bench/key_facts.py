"""The facts behind the key results: of one set of recordings everything that the table shows, as a benchmark summary and more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from libslo.bench.burns import BurnPrediction, burn_predictions, relative_errors
from libslo.bench.first_bad import first_bad
from libslo.bench.joins import JoinCounts, judge_joins
from libslo.bench.material import Material
from libslo.bench.recorded import material_of_runs
from libslo.bench.tables import bundle_summary
from libslo.cases import Run, read_runs
from libslo.contracts import OTLP_SPANS
from libslo.estimates import Share, mean_estimate, median_estimate
from libslo.evaluation import BASELINES, accuracy, covered
from libslo.jsonl import decode_lines
from libslo.predictions import Decide, predict
from libslo.recordings import Recording
from libslo.replay import collected_records
from libslo.robustness import robustness_report
from libslo.signals import Objective, slis
from libslo.slo import parse_objective

__all__ = ["KeyFacts", "key_facts", "recording_joins", "set_digest"]


@dataclass(frozen=True)
class KeyFacts:
    """Of one set of recordings: the summary of its benchmark, and figures that a benchmark does not have.

    fitted_on: how many of the recordings the model was fitted on. extra: single faults within runs of several (`mixed`), errors of the
    burn rates that were predicted, memory of the tools, joins, and what trivial answers would get (`trivial_...`); each a dictionary
    as libslo.estimates makes it. together: by domain of several faults at once, how often it was one of them, was found at 0.10 or more
    in the answer, and would have been with all the evidence of the wait, at whose first clear look the answer was given.
    """

    name: str
    recordings: int
    digest: str
    kernels: tuple[str, ...]
    fitted_on: int
    material: Material
    summary: Mapping[str, Any]
    joins: JoinCounts
    robustness: Mapping[str, Any]
    extra: Mapping[str, Mapping[str, Any]]
    together: Mapping[str, tuple[int, int, int]]


def key_facts(
    name: str,
    places: Sequence[str | Path],
    decide: Decide,
    fitted_on: Mapping[str, str],
    provenance: Mapping[str, Any],
    seed: int,
    note: Callable[[str], None],
) -> KeyFacts:
    """Replay a set of recordings and measure. fitted_on: name to manifest hash of the recordings that the model was fitted on."""
    runs = read_runs(places, note)
    material = material_of_runs(runs, decide, provenance, with_timelines=False)
    rng = np.random.default_rng(seed)
    recorded = [(run, Recording(path)) for path, run in runs]
    joins, blind_joins = zip(*(recording_joins(recording) for _, recording in recorded), strict=True)
    mixed = [each.prediction for each in material.answers if each.scenario == "mixed"]
    extra = {
        "mixed": accuracy(mixed).as_dict(),
        **{f"mixed_{name}": accuracy(answer(mixed)).as_dict() for name, answer in BASELINES.items()},
        **_burn_figures(recorded, rng),
        **_trivial_detector(recorded, rng),
        **_memory(material, rng),
        **_join_figures(joins, rng),
        **{f"blind_{name}": figure for name, figure in _join_figures(blind_joins, rng).items()},
    }
    note(f"{name}: joins and burn rates judged")
    return KeyFacts(
        name=name,
        recordings=len(runs),
        digest=set_digest((run.name, run.sha256) for _, run in runs),
        kernels=tuple(material.provenance["recordings"]["kernels"]),
        fitted_on=sum(run.sha256 in set(fitted_on.values()) for _, run in runs),
        material=material,
        summary=bundle_summary(material, seed),
        robustness=robustness_report([run for _, run in runs], decide, np.random.default_rng(seed)),
        joins=JoinCounts(*(sum(getattr(each, field.name) for each in joins) for field in fields(JoinCounts))),
        extra=extra,
        together=_together([run for _, run in runs], decide),
    )


def _together(runs: Iterable[Run], decide: Decide) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for case in (case for run in runs for case in run.found if len(case.expected) > 1):
        answer, later = predict(case, decide), predict(replace(case, evidence=case.evidence[-1:]), decide)
        for domain in case.expected:
            n, said, waited = found.get(domain, (0, 0, 0))
            found[domain] = (n + 1, said + covered(answer, domain), waited + covered(later, domain))
    return dict(sorted(found.items()))


def set_digest(recordings: Iterable[tuple[str, str]]) -> str:
    """One hash for a set of recordings: their names and the hashes of their manifests."""
    return hashlib.sha256("\n".join(sorted(f"{name} {sha256}" for name, sha256 in recordings)).encode()).hexdigest()


def _burn_figures(recorded: Sequence[tuple[Run, Recording]], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Mean of |predicted - felt| / felt."""
    burns = [burn for run, recording in recorded for burn in _burns(run, recording)]
    felt = [burn.felt for burn in burns]
    others = [median(felt[:i] + felt[i + 1 :]) if len(felt) > 1 else None for i in range(len(felt))]
    predicted: dict[str, Sequence[float | None]] = {
        "burn_error_since_onset": [burn.since_onset for burn in burns],
        "burn_error_said": [burn.said for burn in burns],
        "trivial_burn_error": others,
    }
    return {name: mean_estimate(relative_errors(values, felt), rng).as_dict() for name, values in predicted.items()}


def _trivial_detector(recorded: Sequence[tuple[Run, Recording]], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Of the faults that hurt, and of the baseline of each run."""
    found = []
    for run, recording in recorded:
        quiet = [
            (row["begin_unix_nano"], row["end_unix_nano"]) for row in recording.manifest.get("phases", []) if row["name"] == "baseline"
        ]
        faults = [(each.begin_ns, each.end_ns) for each in run.injections if each.moved_sli]
        found.append(first_bad(faults, quiet, _rows(recording, "load-result"), _objectives(recording)))
    delays = [delay for each in found for delay in each.delays_s]
    alarmed = [alarm for each in found for alarm in each.alarmed]
    return {
        "trivial_delay_s": median_estimate([delay for delay in delays if delay is not None], rng).as_dict(),
        "trivial_missed": Share(sum(delay is None for delay in delays), len(delays)).as_dict(),
        "trivial_alarmed": Share(sum(alarmed), len(alarmed)).as_dict(),
    }


def _memory(material: Material, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Of each tool the mean over runs of a run's peak, in MB."""
    peaks: dict[str, dict[str, float]] = {}
    for row in material.overhead:
        of_tool = peaks.setdefault(row.tool, {})
        of_tool[row.run] = max(of_tool.get(row.run, 0.0), row.rss_bytes / 1e6)
    return {f"{tool}_memory_mb": mean_estimate(list(of_tool.values()), rng).as_dict() for tool, of_tool in sorted(peaks.items())}


def _join_figures(joins: Sequence[JoinCounts], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Means over runs: the events of one run are no independent draws."""
    known = [each for each in joins if each.known]
    return {
        "join_precision": mean_estimate([each.right_trace / each.joined for each in known if each.joined], rng).as_dict(),
        "join_recall": mean_estimate([each.right_trace / each.known for each in known], rng).as_dict(),
        "trivial_join": mean_estimate([each.latest_right / each.known for each in known], rng).as_dict(),
    }


def _objectives(recording: Recording) -> dict[str, Objective]:
    objectives = {name: each.objective for name, each in slis().items() if each.objective}
    return objectives | dict(parse_objective(text) for text in recording.manifest.get("plan", {}).get("objectives", ()))


def _burns(run: Run, recording: Recording) -> Iterator[BurnPrediction]:
    episodes, incidents, requests = (_rows(recording, kind) for kind in ("incident-episode", "incident-attribution", "load-result"))
    faults = [(each.begin_ns, each.end_ns) for each in run.injections]
    return burn_predictions(faults, episodes, incidents, requests, _objectives(recording))


def recording_joins(recording: Recording) -> tuple[JoinCounts, JoinCounts]:
    """As it is, and as it is when the spans do not tell the join of their connections' local port."""
    told = list(collected_records(recording))
    spans = [span for kind, value in told if kind == OTLP_SPANS for span in value]
    untold = collected_records(recording, forget=("local_port",))
    as_it_is, blind = (judge_joins([value for kind, value in each if kind == "probe-event"], spans) for each in (told, untold))
    return as_it_is, blind


def _rows(recording: Recording, kind: str) -> list[dict[str, Any]]:
    if not recording.has(kind):
        return []
    return [value for _, value, *_ in decode_lines(recording.lines(kind), (kind,), f"{recording.directory}/{kind}.jsonl.gz")]
