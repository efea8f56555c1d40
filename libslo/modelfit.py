"""Fit the attribution model: run scenarios through the pipeline, count what the evidence looked like.

`python -m libslo.modelfit` writes contracts/models/bayes.json. The cases are synthetic: the model says so, and its
likelihoods are worth what the scenarios' effects are worth until recordings replace them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libslo.attribution import DOMAINS, UNKNOWN, Verdict, fit_likelihoods
from libslo.collect import Collector, CollectSettings
from libslo.evidence import Evidence
from libslo.incidents import Incident, IncidentEngine, IncidentSettings
from libslo.jsonl import decode_lines
from libslo.scenarios import expected_domains, load_scenario, scenario_names
from libslo.signals import signals, slis
from libslo.slo import burn_policy
from libslo.synthetic import SyntheticSettings, fault_windows, synthetic_records

__all__ = ["fit", "synthetic_cases"]

_COUNT = 200
_PROFILE = "rag_traced"  # with all the evidence that a service can give
_PRIOR_UNKNOWN = 0.1


def _slo_lines(records: Iterator[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records as the attributor would get them from the collector."""
    out: list[tuple[str, dict[str, Any]]] = []

    def sink(kind: str, value: dict[str, Any] | None, lines: bytes, count: int) -> None:
        out.extend((k, v) for k, v, _, _ in decode_lines(lines.splitlines(), ("slo-event", "probe-event")))

    collector = Collector(CollectSettings(), sink)
    for record in records:
        collector.feed([("raw-sample" if "ttft_ms" in record else "probe-event", record, b"", 0)])
    collector.finish()
    yield from out


def synthetic_cases(seeds: range) -> Iterator[tuple[str, list[Evidence]]]:
    """(domain, evidence) of the first incident of every single-fault run, and (unknown, evidence) of its quiet start."""
    import numpy as np

    for name in scenario_names():
        scenario = load_scenario(name)
        domains = expected_domains(name)
        if len(domains) != 1 or domains[0] == UNKNOWN:  # what nothing explains has no likelihood of its own
            continue
        for seed in seeds:
            settings = SyntheticSettings(scenario, _COUNT, profile=_PROFILE)
            objectives = {key: value.objective for key, value in slis().items() if value.objective}
            engine = IncidentEngine(IncidentSettings(burn_policy("lab"), objectives, lambda _: Verdict(UNKNOWN, 0.0, ())))
            begin = next(fault_windows(settings))["begin_unix_nano"]
            incidents: list[Incident] = []
            quiet: list[Evidence] | None = None
            for kind, value in _slo_lines(synthetic_records(settings, np.random.default_rng(seed))):
                incidents += engine.feed(kind, value)
                if quiet is None and (engine.latest_ns or 0) >= begin - 1_000_000_000:
                    quiet = engine.evidence_now(settings.service, window_ns=3_000_000_000)
            if incidents:
                yield domains[0], list(incidents[0].evidence)
            if quiet is not None:
                yield UNKNOWN, quiet


def fit(seeds: range) -> dict[str, Any]:
    """The model as the file holds it."""
    cases = list(synthetic_cases(seeds))
    counts = {domain: sum(1 for each, _ in cases if each == domain) for domain in (*DOMAINS, UNKNOWN)}
    share = (1 - _PRIOR_UNKNOWN) / len(DOMAINS)
    return {
        "version": "v1alpha1",
        "provenance": {
            "command": "python -m libslo.modelfit",
            "data": "synthetic scenarios of this repository through collector and incident engine; no recording of a real fault",
            "seeds": [seeds.start, seeds.stop - 1],
            "requests_per_run": _COUNT,
            "cases": counts,
            "prior": "even over domains, pairs as if faults were independent; chosen, not measured",
        },
        "prior": {**dict.fromkeys(DOMAINS, round(share, 6)), UNKNOWN: _PRIOR_UNKNOWN},
        "pair_prior": 1.0,
        "temperature": 1.0,
        "likelihood": fit_likelihoods(cases, signals()),
    }


def main() -> None:
    """Fit and write the file."""
    import orjson

    path = Path(sys.argv[1] if len(sys.argv) > 1 else "contracts/models/bayes.json")
    model = fit(range(1000, 1040))
    path.write_bytes(orjson.dumps(model, option=orjson.OPT_INDENT_2) + b"\n")
    print(f"{path}: {model['provenance']['cases']}", file=sys.stderr)


if __name__ == "__main__":
    main()
