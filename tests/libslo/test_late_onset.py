"""An onset that is known a minute late: on synthetic data, whose faults last as long as one wants."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from libslo.attribution import UNKNOWN, Verdict, attribute_bayes, load_model
from libslo.collect import Collector, CollectSettings
from libslo.evidence import Evidence
from libslo.incidents import IncidentEngine, IncidentSettings
from libslo.jsonl import decode_lines
from libslo.scenarios import expected_domains, load_scenario
from libslo.slo import burn_policy
from libslo.synthetic import SyntheticSettings, fault_windows, synthetic_records

S = 1_000_000_000
SCENARIOS = [
    "dns_latency",
    "network_partition",
    "cpu_throttle",
    "memory_pressure",
    "provider_throttle",
    "provider_error",
    "retrieval_slowdown",
]
SEEDS = range(3)
LATE_S = 60


def evidence_late(scenario: str, seed: int) -> Iterator[tuple[bool, list[Evidence]]]:
    """(whether late, evidence) once 90 s of the fault have gone by: of all of them, and as if it had begun after 60."""
    settings = SyntheticSettings(load_scenario(scenario), 3000, profile="rag_traced")  # 600 s, of which 180 before the fault
    begin = next(fault_windows(settings))["begin_unix_nano"]
    engine = IncidentEngine(IncidentSettings(burn_policy("lab"), {}, lambda _: Verdict(UNKNOWN, 0.0, ())))
    lines: list[bytes] = []
    collector = Collector(CollectSettings(), lambda kind, value, block, count: lines.extend(block.splitlines()))
    for record in synthetic_records(settings, np.random.default_rng(seed)):
        collector.feed([("raw-sample" if "ttft_ms" in record else "probe-event", record, b"", 0)])
        for kind, value, *_ in decode_lines(lines, ("slo-event", "probe-event")):
            list(engine.feed(kind, value))
        lines.clear()
        if (engine.latest_ns or 0) >= begin + 90 * S:
            break
    now = engine.latest_ns or 0
    for late in (False, True):
        onset = begin + (LATE_S * S if late else 0)
        yield late, engine.evidence_now(settings.service, now - onset)


@pytest.mark.slow
def test_a_minute_late_costs_at_most_five_points() -> None:
    """Accuracy over seven domains falls by no more than 0.05 when the onset is put 60 s after the truth."""
    model = load_model()
    decide = partial(attribute_bayes, model=model)
    right = {False: 0, True: 0}
    for scenario in SCENARIOS:
        for seed in SEEDS:
            for late, evidence in evidence_late(scenario, seed):
                right[late] += decide(evidence).domain == expected_domains(scenario)[0]
    n = len(SCENARIOS) * len(SEEDS)
    print(f"right of {n}: onset known {right[False]}, known {LATE_S} s late {right[True]}")
    assert right[False] >= 0.95 * n
    assert right[False] - right[True] <= 0.05 * n
