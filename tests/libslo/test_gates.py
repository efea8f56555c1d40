"""The gates of m5gate: each can pass, fail and be inconclusive; what is no number, nothing or too little never passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.gates.answers import Answer, Check, worst
from libslo.gates.m5 import Limits, Run, in_turns, overhead_checks, pairs_check, regression_check, rerun_checks
from libslo.gates.provenance import baseline_check, report_only, same_source
from libslo.gates.report import markdown, summary, table_lines

COMMIT, OTHER = "a" * 40, "b" * 40


def node(*runs: Sequence[float]) -> list[Run]:
    return [Run(overhead_pct={"node-a": np.array(values, float)}) for values in runs]


def judged(runs: Sequence[Run], limits: Limits | None = None) -> Check:
    (check,) = overhead_checks("s", runs, limits or Limits())
    return check


def test_overhead_within_the_limit_passes() -> None:
    """Mean and p95 of all samples of all runs, by hand."""
    check = judged(node([1.0] * 19 + [2.0], [1.0] * 20))
    assert check.answer == "pass" and check.figures["samples"] == 40
    assert check.figures["mean_pct"] == pytest.approx(1.025) and check.figures["p95_pct"] == 1.0


@pytest.mark.parametrize(
    ("values", "which"), [([1.0] * 38 + [9.0] * 4, "p95"), ([3.1] * 40, "mean 3.10 % and p95 3.10 %"), ([0.0] * 18 + [3.01] * 2, "p95")]
)
def test_overhead_above_the_limit_fails(values: list[float], which: str) -> None:
    """Either the mean or the p95 is enough."""
    check = judged(node(values))
    assert check.answer == "fail" and which in check.reason


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([], "no overhead was measured"),
        ([Run()], "no overhead was measured"),
        (node([1.0] * 19), "19 samples, and a p95 needs 20"),
        (node([1.0] * 30 + [math.nan]), "1 samples are no numbers"),
        (node([math.inf] * 30), "30 samples are no numbers"),
        ([*node([1.0] * 30), Run()], "1 of 2 runs have no sample"),
    ],
)
def test_overhead_that_cannot_be_judged(runs: list[Run], why: str) -> None:
    """Nothing, too few, NaN, and a run without a sample are inconclusive, however small the rest is."""
    check = judged(runs)
    assert (check.answer, check.reason) == ("inconclusive", why)


def test_each_node_is_judged() -> None:
    """One node over the limit is not hidden by three others."""
    values = {"a": [1.0] * 20, "b": [5.0] * 20, "c": [1.0] * 20, "d": [1.0] * 20}
    found = overhead_checks("s", [Run(overhead_pct={name: np.array(each) for name, each in values.items()})], Limits())
    assert [(check.subject, check.answer) for check in found] == [
        ("overhead of a", "pass"), ("overhead of b", "fail"), ("overhead of c", "pass"), ("overhead of d", "pass"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ([1.00, 1.01, 0.99, 1.00, 1.01, 1.00], "pass"),
        ([1.10, 1.11, 1.09, 1.10, 1.12, 1.10], "fail"),
        ([0.90, 1.10, 1.00, 0.95, 1.12, 0.97], "inconclusive"),  # no difference was found, and none is excluded
        ([1.0, 1.0], "inconclusive"),
        ([], "inconclusive"),
        ([1.0, math.nan, 1.0, 1.0], "inconclusive"),
        ([1.0, 0.0, 1.0, 1.0], "inconclusive"),
    ],
)
def test_application_pairs(ratios: list[float], answer: Answer) -> None:
    """Non-inferiority: passes when the upper bound is within the limit, fails when the lower is above, else cannot tell."""
    check = pairs_check(ratios, Limits(), np.random.default_rng(1))
    assert check.answer == answer and check.figures["pairs"] == len(ratios)


def run(ttft: Any, errors: Any = None, pace: Any = (100.0,), **more: Any) -> Run:
    values = np.asarray(ttft, float)
    return Run(values, np.asarray(pace, float), np.zeros(values.size) if errors is None else np.asarray(errors, float), **more)


def reruns(runs: Sequence[Run], limits: Limits | None = None) -> dict[str, Check]:
    return {check.subject: check for check in rerun_checks("s", runs, limits or Limits())}


def test_reruns_that_agree_pass() -> None:
    """Coefficients of variation by hand: 300, 310, 320 vary by 3.2 %; equal ones by nothing, error rates of 0 too."""
    found = reruns([run([ttft]) for ttft in (300, 310, 320)])
    assert [check.answer for check in found.values()] == ["pass"] * 3
    assert found["TTFT p95"].figures["cov_pct"] == pytest.approx(100 * 10 / 310)
    assert found["tokens/s p50"].figures["cov_pct"] == 0.0 == found["error rate mean"].figures["cov_pct"]


def test_reruns_that_differ_fail() -> None:
    """One figure over the limit fails, the others do not."""
    found = reruns([run([300]), run([300]), run([400], pace=[80])])
    assert {name: check.answer for name, check in found.items()} == {
        "TTFT p95": "fail", "tokens/s p50": "fail", "error rate mean": "pass",
    }  # fmt: skip
    errors = [run([300] * 100, [1] * count + [0] * (100 - count)) for count in (10, 30, 60)]
    assert reruns(errors)["error rate mean"].answer == "fail"


def test_errors_that_chance_explains_are_inconclusive() -> None:
    """One error in three runs of 50 is a coefficient of variation of 173 %, and says nothing about reruns."""
    runs = [run([300] * 50, [1] + [0] * 49), run([300] * 50), run([300] * 50)]
    check = reruns(runs)["error rate mean"]
    assert check.answer == "inconclusive" and check.figures["cov_pct"] == pytest.approx(173.2, abs=0.1)
    assert check.figures["chance_p"] == pytest.approx(0.366, abs=0.01)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([], "0 runs, at least 3"),
        ([run([300])], "1 runs, at least 3"),
        ([run([300])] * 2, "2 runs, at least 3"),
        ([run([300]), run([300]), Run()], "1 runs have nothing of it"),
        ([run([300]), run([300]), run([math.nan])], "1 runs have nothing of it"),
    ],
)
def test_reruns_that_cannot_be_judged(runs: list[Run], why: str) -> None:
    """None, one, two and empty runs are inconclusive."""
    check = reruns(runs)["TTFT p95"]
    assert check.answer == "inconclusive" and why in check.reason


def test_one_run_cannot_agree_with_itself() -> None:
    """--min-runs 1 does not make one run enough."""
    assert reruns([run([300])], Limits(min_runs=1))["TTFT p95"].answer == "inconclusive"


def noisy(factor: float = 1.0, runs: int = 3, n: int = 40, seed: int = 1, begin: int = 0) -> list[Run]:
    rng = np.random.default_rng(seed)
    return [run(factor * rng.lognormal(math.log(300), 0.05, n), begin_unix_ns=begin + 2 * i + 1, sha256=f"{seed}-{i}") for i in range(runs)]


def compared(candidate: Sequence[Run], baseline: Sequence[Run], **limits: Any) -> Check:
    return regression_check("s", candidate, baseline, Limits(**limits), np.random.default_rng(42))


def test_a_slower_candidate_fails() -> None:
    """15 % more in every run meets all four conditions; the figures are there."""
    check = compared(noisy(1.15, begin=1), noisy(seed=2))
    assert check.answer == "fail" and "turns" not in check.reason
    assert 10 < float(check.figures["rise_pct"] or 0) < 20 and check.figures["in_turns"] is True
    assert float(check.figures["ci95_low_ms"] or 0) > 0 and check.figures["candidate_samples"] == 120


@pytest.mark.parametrize("factor", [1.0, 0.8, 1.03])
def test_a_candidate_that_is_no_slower_passes(factor: float) -> None:
    """The same, faster, and slower by less than the limit."""
    assert compared(noisy(factor, seed=3), noisy(seed=4)).answer == "pass"


@pytest.mark.parametrize("limits", [{"ttft_regression_pct": 30.0}, {"alpha": 0.0}, {"min_cliffs_delta": 1.0}], ids=["rise", "p", "delta"])
def test_each_condition_can_save_it(limits: dict[str, float]) -> None:
    """Of the four, each one that does not hold is enough to pass."""
    assert compared(noisy(1.15), noisy(seed=2)).answer == "fail"
    saved = compared(noisy(1.15), noisy(seed=2), **limits)
    assert saved.answer == "pass" and "interval" not in saved.reason


def test_the_interval_can_save_it() -> None:
    """Runs that differ among themselves as much as the sides do: the interval holds 0, though the other three conditions hold."""
    candidate = [run(noisy(factor, 1, seed=i)[0].ttft_ms) for i, factor in enumerate((0.9, 1.3, 1.5))]
    baseline = [run(noisy(factor, 1, seed=i + 9)[0].ttft_ms) for i, factor in enumerate((0.8, 1.1, 1.35))]
    check = compared(candidate, baseline)
    assert check.answer == "pass" and check.reason.endswith(": interval not above 0")


def test_one_bad_run_is_no_regression() -> None:
    """A run of three at twice the time moves pooled requests past every limit, and E3 not."""
    candidate = [*noisy(runs=2, seed=5), run(2 * noisy(runs=1, seed=6)[0].ttft_ms)]
    assert compared(candidate, noisy(seed=7)).answer == "pass"
    sides = [[run(np.concatenate([each.ttft_ms for each in side]))] for side in (candidate, noisy(seed=7))]
    assert regression_check("s", *sides, Limits(min_runs=1), np.random.default_rng(42)).answer == "fail"


def test_one_bad_run_hides_no_regression() -> None:
    """Five runs 15 % slower than five, one of which was bad: resamples that hold the bad one three times do not decide."""
    baseline = [*noisy(runs=4, seed=5), run(2 * noisy(runs=1, seed=6)[0].ttft_ms)]
    check = compared(noisy(1.15, runs=5, seed=7), baseline)
    assert check.answer == "fail" and float(check.figures["rise_pct"] or 0) > 10


@pytest.mark.parametrize(
    ("candidate", "baseline", "why"),
    [
        ([], noisy(), "0 runs of the candidate"),
        (noisy(1.5), [], "0 runs of the baseline"),
        (noisy(1.5, runs=1), noisy(), "1 runs of the candidate, at least 3"),
        (noisy(1.5, n=9), noisy(), "27 samples of the candidate, at least 30"),
        ([*noisy(1.5), Run()], noisy(), "1 of 4 runs of the candidate have no answered request"),
        ([*noisy(1.5), run([math.nan] * 9)], noisy(), "samples of the candidate are no numbers"),
        (noisy(), noisy(), "hold the same samples"),
    ],
)
def test_a_comparison_that_cannot_be_made(candidate: list[Run], baseline: list[Run], why: str) -> None:
    """Nothing, one run, too few, NaN, and a side compared with itself are inconclusive, however much slower it looks."""
    check = compared(candidate, baseline)
    assert check.answer == "inconclusive" and why in check.reason


def test_no_variance() -> None:
    """Constant times: the same pass, later ones fail; zeros do not divide."""
    flat = [run([300.0] * 20) for _ in range(3)]
    assert compared(flat, flat).answer == "pass"
    assert compared([run([330.0] * 20) for _ in range(3)], flat).answer == "fail"
    zeros = [run([0.0] * 20) for _ in range(3)]
    assert compared(zeros, zeros).answer == "pass" and compared(flat, zeros).answer == "fail"


def test_all_randomness_is_the_generator_s() -> None:
    """Same generator, same interval; another, another."""
    sides = noisy(1.04, seed=8), noisy(seed=9)
    first, again, other = (regression_check("s", *sides, Limits(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again and first.figures["ci95_low_ms"] != other.figures["ci95_low_ms"]


def test_one_side_after_the_other_is_said() -> None:
    """A regression of runs that were not taken in turns carries the doubt with it."""
    check = compared(noisy(1.15, begin=100), noisy(seed=2))
    assert check.answer == "fail" and "not taken in turns" in check.reason


@pytest.mark.parametrize(("order", "turns"), [("cbcbcb", True), ("cbbccb", True), ("cccbbb", False), ("ccbbbc", False), ("cb", False)])
def test_in_turns(order: str, turns: bool) -> None:
    """As many changes of side as a side has runs, by the times of the runs."""
    sides = {side: [Run(begin_unix_ns=at) for at, each in enumerate(order) if each == side] for side in "cb"}
    assert in_turns(sides["c"], sides["b"]) is turns


def manifest(commit: str = COMMIT, **more: Any) -> dict[str, Any]:
    return {"source_commit": commit, "kernel": "6.18", "machine": {"cpus": 2}, **more}


@pytest.mark.parametrize(
    ("baseline", "candidate", "changed", "required", "answer"),
    [
        (manifest(OTHER, source_ref="v1"), manifest(), [], True, "pass"),
        (manifest(OTHER), None, [], True, "pass"),
        (manifest(), manifest(), [], True, "pass"),
        (None, manifest(), [], True, "fail"),
        (manifest(OTHER), manifest(), ["s/run-1/raw_samples.jsonl"], False, "fail"),
        (manifest("unknown"), manifest(), [], True, "inconclusive"),
        (manifest(f"{OTHER}-dirty"), manifest(), [], True, "inconclusive"),
        (manifest(OTHER, kernel="6.1"), manifest(), [], True, "inconclusive"),
        (manifest(OTHER, machine={"cpus": 64}), manifest(), [], True, "inconclusive"),
    ],
)
def test_where_the_baseline_comes_from(baseline: Any, candidate: Any, changed: list[str], required: bool, answer: Answer) -> None:
    """Required and missing, or altered: fail; a source that cannot be had again, another machine: inconclusive."""
    check = baseline_check(baseline, candidate, changed, required=required)
    assert check is not None and check.answer == answer


def test_no_manifest_that_nobody_asked_for() -> None:
    """Without a manifest, and none required, nothing is asked."""
    assert baseline_check(None, manifest(), [], required=False) is None


def test_a_source_against_itself_does_not_fail() -> None:
    """The same clean commit on both sides: a failure is reported; what passed or could not be told stays."""
    assert same_source(manifest(), manifest()) and not same_source(manifest(), manifest(OTHER))
    assert not same_source(manifest("unknown"), manifest("unknown")) and not same_source(
        manifest(f"{COMMIT}-dirty"), manifest(f"{COMMIT}-dirty")
    )
    assert not same_source(None, manifest())
    reported = report_only(compared(noisy(1.15, begin=1), noisy(seed=2)))
    assert reported.answer == "pass" and reported.reason.startswith("same source on both sides, not failed: ") and reported.figures
    unclear = compared([], noisy())
    assert report_only(unclear) == unclear


@given(st.lists(st.sampled_from(["pass", "fail", "inconclusive"]), max_size=8))
def test_the_worst_answer_counts(answers: list[Answer]) -> None:
    """One failure fails, one doubt stays one, and nothing asked is nothing passed."""
    expected = "fail" if "fail" in answers else "inconclusive" if "inconclusive" in answers or not answers else "pass"
    assert worst(answers) == expected


def test_the_summary_says_it_three_times() -> None:
    """As an object, as lines with failures first, and as a page; a bar in a reason does not break the table."""
    checks = [
        Check("B5", "s", "overhead of n", "inconclusive", "too few"),
        Check("D3", "s", "TTFT p95", "pass", "varies by 1.0 %"),
        Check("E3", "t", "TTFT p95", "fail", "|delta| large"),
    ]
    found = summary(checks, {"seed": 42, "overhead_of": []}, {"candidate": {"root": "c", "manifest": None}})
    assert found["m5gate"] == "fail" and found["gates"] == {"B5": "inconclusive", "D3": "pass", "E3": "fail"}
    head, *rows = table_lines(found)
    assert head == "fail: B5 inconclusive, D3 pass, E3 fail; 1 of 3 checks passed"
    assert [row.split()[0] for row in rows] == ["fail", "inconclusive"]
    assert [row.split()[:2] for row in table_lines(found, passed=True)] == [["pass", "D3"]]
    page = markdown(found)
    assert page.startswith("# m5gate: fail\n") and "| t | TTFT p95 | fail | \\|delta\\| large |" in page and "- seed 42\n" in page
