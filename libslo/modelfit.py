"""Fit the attribution model on recorded runs: count what the evidence of each fault looked like, then see how far to trust it.

The likelihoods are frequencies of evidence levels, apart for each severity: what is faint is not what is strong with some signals
left out by chance. A service elsewhere may be slower throughout, so each case counts as it was and as that of such a service.
The temperature, which takes back what naive Bayes is too sure of because its signals are not independent, is the one at which runs
that had no part in a fit are least surprising: the runs are split by their seed, and each part is judged by a fit on the others.
Pure but for the reading of recordings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from libslo.attribution import DOMAINS, UNKNOWN, Model, attribute_bayes, fit_likelihoods, model_of
from libslo.cases import Case, Run, scaled
from libslo.errors import InputError
from libslo.evidence import Evidence
from libslo.predictions import answer

__all__ = ["fit_model", "labelled_cases"]

VERSION = "v1alpha2"
_TEMPERATURES = [round(2 ** (step / 4), 4) for step in range(17)]  # 1 to 16: naive Bayes is too sure, never too modest
_LEAST_SURE = 1e-6  # no single case may decide alone
_PAIR_PRIOR = 1.0
_ELSEWHERE = 3.0  # so much slower is a service that was never recorded: half of what a case counts is counted so


def labelled_cases(runs: Iterable[Run]) -> Iterator[tuple[str, str, Case]]:
    """(domain, profile, case) of every injected single fault that was noticed, and of every window without a fault.

    A domain shows itself in one profile for each severity; what is `unknown` in one.
    """
    for run in runs:
        for case in run.found:
            if len(case.expected) == 1:
                domain = case.expected[0]
                yield domain, domain if domain == UNKNOWN else f"{domain}/{run.severity}", case
        for case in run.quiet:
            yield UNKNOWN, UNKNOWN, case


def fit_model(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """The model as its file holds it. InputError when a domain has no case, or all runs have the same seed."""
    cases = list(labelled_cases(runs))
    counts = Counter(domain for domain, _, _ in cases)
    missing = [domain for domain in (*DOMAINS, UNKNOWN) if not counts[domain]]
    if missing:
        raise InputError(f"no recorded case of {', '.join(missing)}", hint="record these faults too: make chaos-matrix")
    folds = list(_folds(runs))
    if len(folds) < 2:
        raise InputError("all runs have the same seed: nothing to calibrate on", hint="record with further seeds: make lab RUNS=5")
    fits = [(_model(fitted), list(labelled_cases(apart))) for fitted, apart in folds]
    surprise = {t: _surprise(((_at(model, t), apart) for model, apart in fits), counts) for t in _TEMPERATURES}
    temperature = min(surprise, key=lambda t: (round(surprise[t], 9), t))
    return {
        "version": VERSION,
        "provenance": {
            "command": command,
            "data": "recorded runs of real faults in the laboratory, replayed through collector and incident engine",
            "runs": len(runs),
            "cases": {domain: counts[domain] for domain in (*DOMAINS, UNKNOWN)},
            "windows_without_a_fault": sum(len(run.quiet) for run in runs),
            "seeds": sorted({run.seed for run in runs if run.seed is not None}),
            "severities": sorted({run.severity for run in runs}),
            "calibration": {
                "how": "temperature of least surprise (mean -ln p(truth), domains weigh alike) of runs judged by a fit without their seed",
                "folds": len(folds),
                "surprise": round(surprise[temperature], 6),
                "surprise_at_1": round(surprise[1.0], 6),
            },
            "prior": "even over domains and unknown, pairs as if faults were independent; chosen, not measured",
            "recordings": {run.name: run.sha256 for run in runs},
        },
        **_body(cases),
        "temperature": temperature,
    }


def _body(cases: Sequence[tuple[str, str, Case]]) -> dict[str, Any]:
    share = round(1 / (len(DOMAINS) + 1), 6)
    profiles = dict(sorted((profile, domain) for domain, profile, _ in cases))
    return {
        "prior": dict.fromkeys((*DOMAINS, UNKNOWN), share),
        "pair_prior": _PAIR_PRIOR,
        "temperature": 1.0,
        "profiles": profiles,
        "likelihood": fit_likelihoods(((profile, _at_all_sizes(case)) for _, profile, case in cases), profiles),
    }


def _at_all_sizes(case: Case) -> Sequence[Sequence[Evidence]]:
    return (*case.evidence, *scaled(case, _ELSEWHERE).evidence)


def _model(runs: Sequence[Run]) -> Model:
    return model_of({"version": VERSION, "provenance": {}, **_body(list(labelled_cases(runs)))})


def _at(model: Model, temperature: float) -> Model:
    return replace(model, temperature=temperature)


def _folds(runs: Sequence[Run]) -> Iterator[tuple[list[Run], list[Run]]]:
    """(fit on, judge) for every seed."""
    for seed in dict.fromkeys(run.seed for run in runs):
        yield [run for run in runs if run.seed != seed], [run for run in runs if run.seed == seed]


def _surprise(folds: Iterable[tuple[Model, Sequence[tuple[str, str, Case]]]], counts: Mapping[str, int]) -> float:
    """Mean of -ln p(truth), every domain weighing the same."""
    total = 0.0
    for model, apart in folds:
        for domain, _, case in apart:
            verdict, _ = answer(case, partial(attribute_bayes, model=model))
            found = {each.domain: each.posterior for each in verdict.hypotheses}
            total -= math.log(max(found.get(domain, 0.0), _LEAST_SURE)) / counts[domain]
    return total / len(counts)
