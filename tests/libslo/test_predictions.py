"""Answers to cases: the first that is clear, at the latest the last; and how they hold when evidence is worse."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from libslo.attribution import UNKNOWN, Hypothesis, Verdict
from libslo.cases import Case, Run, scaled
from libslo.evidence import Evidence, evidence_kinds
from libslo.predictions import answer, predict, predict_runs
from libslo.robustness import halves, robustness_report, without


def ev(name: str, value: float = 400.0, baseline: float | None = 2.0, level: int = 2) -> Evidence:
    return Evidence(name, evidence_kinds()[name].source, value, baseline, 4.0, level)


def decide(evidence: object) -> Verdict:
    """Says DNS when its signal is there, as sure as its value in thousands, retrieval for the other's, else unknown."""
    for each in evidence:  # type: ignore[attr-defined]
        domain = {"dns_latency_ms": "network_dns", "retrieval_latency_ms": "retrieval_backend"}.get(each.signal)
        if domain:
            sure = min(each.value / 1000, 1.0)
            return Verdict(domain, sure, (Hypothesis(domain, sure, (each.signal,)),))
    return Verdict(UNKNOWN, 1.0, (Hypothesis(UNKNOWN, 1.0, ()),))


def run(*found: Case, quiet: tuple[Case, ...] = (), alarms: tuple[Case, ...] = ()) -> Run:
    return Run("r", "s", "low", 1, found, (), 0, quiet, alarms, (), "")


def test_the_first_clear_answer_counts() -> None:
    """As in the engine: a clear verdict is said at once, an unclear one waits for the last evidence."""
    looks = tuple((ev("dns_latency_ms", value),) for value in (300.0, 950.0, 400.0))
    assert answer(Case("c", (), looks), decide)[0].confidence == 0.95
    assert answer(Case("c", (), looks[:1] + looks[2:]), decide)[0].confidence == 0.4


def test_a_prediction_says_what_was_true_and_what_was_said() -> None:
    """Expected domains, posteriors in order, the trivial answer beside."""
    said = predict(Case("c", ("network_dns",), ((ev("dns_latency_ms", 950.0),),), 2.5), decide)
    assert (said.actual, said.predicted, said.ranking) == (("network_dns",), "network_dns", ("network_dns",))
    assert (said.largest_z, said.delay_s, said.synthetic) == ("network_dns", 2.5, False)


def test_windows_and_alarms_are_cases_without_a_fault() -> None:
    """Every case of a run is answered, changed first when asked."""
    cases = run(
        Case("a", ("network_dns",), ((ev("dns_latency_ms"),),)),
        quiet=(Case("q", (), ((),)),),
        alarms=(Case("x", (), ((ev("dns_latency_ms"),),)),),
    )
    assert [(each.case, each.actual, each.predicted) for each in predict_runs([cases], decide)] == [
        ("a", ("network_dns",), "network_dns"),
        ("q", (), UNKNOWN),
        ("x", (), "network_dns"),
    ]
    blind = predict_runs([cases], decide, lambda case: without(case, frozenset({"dns_latency_ms"})))
    assert [each.predicted for each in blind] == [UNKNOWN] * 3


def test_scaling_keeps_levels_of_large_changes_and_ratios() -> None:
    """Three times as slow throughout: a change of many times stays one, a share stays what it is, worse-when-lower goes down."""
    rows = (ev("dns_latency_ms"), ev("provider_failed_ratio", 0.4, 0.0), ev("token_throughput_tps", 30.0, 120.0))
    found = {each.signal: each for each in scaled(Case("c", (), (rows,)), 3.0).evidence[0]}
    assert (found["dns_latency_ms"].value, found["dns_latency_ms"].baseline, found["dns_latency_ms"].level) == (1200.0, 6.0, 2)
    assert found["provider_failed_ratio"] == rows[1]
    assert found["token_throughput_tps"].value == pytest.approx(10) and found["token_throughput_tps"].baseline == pytest.approx(40)


def test_the_report_sees_an_answer_that_depends_on_the_size() -> None:
    """A threshold that only the slower service passes is a changed answer."""

    def by_size(evidence: Iterable[Evidence]) -> Verdict:
        slow = any(each.value > 1000 for each in evidence)
        domain = "network_dns" if slow else UNKNOWN
        return Verdict(domain, 1.0, (Hypothesis(domain, 1.0, ()),))

    report = robustness_report([run(Case("a", ("network_dns",), ((ev("dns_latency_ms"),),)))], by_size, np.random.default_rng(1), draws=1)
    assert report["first_changed_when_scaled_by_3"] == report["named_changed_when_scaled_by_3"] == 1


def test_halves_are_halves_and_repeatable() -> None:
    """Half of the signals each time, the same for the same seed."""
    draws = list(halves(np.random.default_rng(1), 5))
    assert all(len(draw) == len(evidence_kinds()) // 2 for draw in draws) and len(set(draws)) > 1
    assert draws == list(halves(np.random.default_rng(1), 5))


def test_the_report_counts_what_is_lost() -> None:
    """Without the only signal that decides, its cases are lost, and only those."""
    cases = run(
        Case("a", ("network_dns",), ((ev("dns_latency_ms", 950.0), ev("retrieval_latency_ms", 950.0)),)),
        Case("b", ("retrieval_backend",), ((ev("retrieval_latency_ms", 950.0),),)),
    )
    report = robustness_report([cases], decide, np.random.default_rng(1), draws=4)
    assert (report["n"], report["right"]) == (2, 2)
    assert report["accuracy_lost_without"] == {"dns_latency_ms": 0.5, "retrieval_latency_ms": 0.5}
    assert report["first_changed_when_scaled_by_3"] == report["named_changed_when_scaled_by_3"] == 0
    half = report["half_missing"]
    assert half["n"] == 8 and half["right"] + half["unknown"] + half["wrong"] == 8 and half["wrong_and_sure"] <= half["wrong"]
