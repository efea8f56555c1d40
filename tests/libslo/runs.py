"""Runs of the synthetic scenarios through collector and incident engine, kept for all tests that look at them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from builders import lines, objects

from libslo.attribute import AttributeSettings, incident_settings
from libslo.collect import Collector, CollectSettings
from libslo.contracts import OTLP_SPANS
from libslo.incidents import Incident, IncidentEngine
from libslo.jsonl import decode_lines
from libslo.scenarios import load_scenario
from libslo.synthetic import SyntheticSettings, synthetic_records

CONSUMES = ("slo-event", "probe-event", OTLP_SPANS, "agent-report")


@cache
def synthetic(name: str, seed: int, count: int = 200) -> tuple[dict[str, Any], ...]:
    return tuple(synthetic_records(SyntheticSettings(load_scenario(name), count), np.random.default_rng(seed)))


@cache
def joined(name: str, seed: int, count: int = 200) -> bytes:
    """What the collector makes of the scenario."""
    out: list[bytes] = []
    collector = Collector(CollectSettings(), lambda _kind, _value, block, _count: out.append(block))
    for record in decode_lines(lines(synthetic(name, seed, count)).splitlines(), ("raw-sample", "probe-event")):
        collector.feed([record])
    collector.finish()
    return b"".join(out)


def attributed(data: bytes, mode: Any = "bayes", **options: Any) -> list[Incident]:
    """What the engine raises on these lines."""
    engine = IncidentEngine(incident_settings(AttributeSettings(mode=mode, **options)))
    found: list[Incident] = []
    for kind, value, *_ in decode_lines(data.splitlines(), CONSUMES):
        found += engine.feed(kind, value)
    return found + list(engine.finish())


@cache
def incidents(name: str, seed: int, mode: str = "bayes") -> tuple[Incident, ...]:
    return tuple(attributed(joined(name, seed), mode))


def without_labels(data: bytes, change: Any) -> bytes:
    """The same lines with every fault_label put through `change(label)`; None takes it away."""
    values = objects(data)
    for value in values:
        labels = value.get("labels")
        if labels and "fault_label" in labels:
            new = change(labels.pop("fault_label"))
            if new is not None:
                labels["fault_label"] = new
    return lines(values)
