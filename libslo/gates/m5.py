"""The arithmetic of m5gate: overhead (B5), reruns (D3) and regression (E3) of measured runs. Pure.

What a run is, and why E3 is computed run by run: docs/m5gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from libslo.gates.answers import Check
from libslo.statistics import (
    cliffs_delta,
    coefficient_of_variation,
    hodges_lehmann_shift,
    mann_whitney_p,
    ratio_summary,
    resampled_quantiles,
)

__all__ = ["Limits", "Run", "in_turns", "overhead_checks", "pairs_check", "regression_check", "rerun_checks"]

Numbers = NDArray[np.float64]
_P95 = 0.95
_MIN_FOR_P95 = 20  # below it a p95 is the maximum
_REACH = 3.0  # median distances from the median of its side, within which a run is left where it is


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gates hold measurements against; per cent where the name says so."""

    max_overhead_pct: float = 3.0
    max_variance_pct: float = 10.0
    min_runs: int = 3
    ttft_regression_pct: float = 5.0
    alpha: float = 0.05
    bootstrap_iters: int = 1000
    min_samples: int = 30
    min_cliffs_delta: float = 0.147  # "small": J. Romano et al., FAIR 2006


def _no_numbers() -> Numbers:
    return np.empty(0)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: of its answered requests TTFT and pace, of all the error rate; the node's overhead by node, tools summed.

    begin_unix_ns: when its first request was sent; 0 when it has none. sha256: of the samples' file.
    """

    ttft_ms: Numbers = field(default_factory=_no_numbers)
    tokens_per_s: Numbers = field(default_factory=_no_numbers)
    error_rate: Numbers = field(default_factory=_no_numbers)
    begin_unix_ns: int = 0
    sha256: str = ""
    overhead_pct: Mapping[str, Numbers] = field(default_factory=dict)


def overhead_checks(scenario: str, runs: Sequence[Run], limits: Limits) -> list[Check]:
    """B5: by node, mean and p95 of the CPU that the tools took, per cent of the node, over all samples of all runs."""
    nodes = sorted({node for run in runs for node in run.overhead_pct})
    if not nodes:
        return [Check("B5", scenario, "overhead", "inconclusive", "no overhead was measured")]
    return [_overhead(scenario, node, [run.overhead_pct.get(node, np.empty(0)) for run in runs], limits) for node in nodes]


def _overhead(scenario: str, node: str, by_run: Sequence[Numbers], limits: Limits) -> Check:
    values = np.concatenate(by_run)
    subject, limit = f"overhead of {node}", limits.max_overhead_pct
    figures: dict[str, float | int | None] = {"samples": values.size, "mean_pct": None, "p95_pct": None, "limit_pct": limit}
    if not np.isfinite(values).all():
        return Check("B5", scenario, subject, "inconclusive", f"{int((~np.isfinite(values)).sum())} samples are no numbers", figures)
    if values.size < _MIN_FOR_P95:
        return Check("B5", scenario, subject, "inconclusive", f"{values.size} samples, and a p95 needs {_MIN_FOR_P95}", figures)
    empty = sum(not each.size for each in by_run)
    if empty:
        return Check("B5", scenario, subject, "inconclusive", f"{empty} of {len(by_run)} runs have no sample", figures)
    mean, p95 = float(values.mean()), float(np.quantile(values, _P95))
    figures |= {"mean_pct": mean, "p95_pct": p95}
    over = [f"{name} {value:.2f} %" for name, value in (("mean", mean), ("p95", p95)) if value > limit]
    if over:
        return Check("B5", scenario, subject, "fail", f"{' and '.join(over)} of the node, at most {limit:g} %", figures)
    return Check("B5", scenario, subject, "pass", f"mean {mean:.2f} %, p95 {p95:.2f} % of the node", figures)


def pairs_check(ratios: Sequence[float], limits: Limits, rng: np.random.Generator) -> Check:
    """B5: application runs with the tools over those without, taken in turns: non-inferior when the upper bound is within the limit.

    Fails when even the lower bound is above it. That no difference was found is no evidence.
    """
    subject, limit = "application with over without", 1 + limits.max_overhead_pct / 100
    least = max(limits.min_runs, 2)
    figures: dict[str, float | int | None] = {"pairs": len(ratios), "mean_ratio": None, "lower_95": None, "upper_95": None, "limit": limit}
    if len(ratios) < least:
        return Check("B5", "", subject, "inconclusive", f"{len(ratios)} pairs, at least {least} are needed", figures)
    if not all(math.isfinite(each) and each > 0 for each in ratios):
        return Check("B5", "", subject, "inconclusive", "a pair has no ratio", figures)
    found, inverse = ratio_summary(ratios, rng), ratio_summary([1 / each for each in ratios], rng)
    figures |= {"mean_ratio": found.mean, "lower_95": 1 / inverse.upper, "upper_95": found.upper}
    said = f"ratio {found.mean:.4f}, 95 % bounds {1 / inverse.upper:.4f} and {found.upper:.4f}, limit {limit:.4f}"
    if found.upper <= limit:
        return Check("B5", "", subject, "pass", said, figures)
    return Check("B5", "", subject, "fail" if 1 / inverse.upper > limit else "inconclusive", said, figures)


def rerun_checks(scenario: str, runs: Sequence[Run], limits: Limits) -> list[Check]:
    """D3: how far reruns agree, as the coefficient of variation of TTFT p95, tokens/s p50 and mean error rate over the runs."""
    from scipy.stats import chi2

    def quantile(values: Numbers, share: float) -> float:
        return float(np.quantile(values, share)) if values.size else math.nan

    rates = [float(run.error_rate.mean()) if run.error_rate.size else math.nan for run in runs]
    checks = [
        _rerun(scenario, "TTFT p95", [quantile(run.ttft_ms, _P95) for run in runs], limits),
        _rerun(scenario, "tokens/s p50", [quantile(run.tokens_per_s, 0.5) for run in runs], limits),
    ]
    errors = _rerun(scenario, "error rate mean", rates, limits)
    if errors.answer == "fail":
        n = np.array([run.error_rate.size for run in runs])
        mean = float((n * rates).sum() / n.sum())
        p = float(chi2.sf((n * (np.array(rates) - mean) ** 2).sum() / (mean * (1 - mean)), len(runs) - 1))
        errors = replace(errors, figures={**errors.figures, "chance_p": p})
        if p >= limits.alpha:  # with few errors the counts of identical runs differ by more than the limit
            errors = replace(errors, answer="inconclusive", reason=f"{errors.reason}, which so few errors show by chance (p {p:.2f})")
    return [*checks, errors]


def _rerun(scenario: str, subject: str, values: Sequence[float], limits: Limits) -> Check:
    limit, least = limits.max_variance_pct, max(limits.min_runs, 2)
    figures: dict[str, float | int | None] = {"runs": len(values), "cov_pct": None, "limit_pct": limit}
    if len(values) < least:
        return Check("D3", scenario, subject, "inconclusive", f"{len(values)} runs, at least {least} are needed", figures)
    if not all(map(math.isfinite, values)):
        return Check(
            "D3", scenario, subject, "inconclusive", f"{sum(not math.isfinite(v) for v in values)} runs have nothing of it", figures
        )
    cov_pct = 100 * coefficient_of_variation(values)
    shown = " ".join(f"{value:.4g}" for value in values)
    figures["cov_pct"] = cov_pct if math.isfinite(cov_pct) else None
    answer: bool = cov_pct <= limit
    return Check("D3", scenario, subject, "pass" if answer else "fail", f"varies by {cov_pct:.1f} % ({shown})", figures)


def regression_check(scenario: str, candidate: Sequence[Run], baseline: Sequence[Run], limits: Limits, rng: np.random.Generator) -> Check:
    """E3: fails when p95 TTFT rose by more than the limit, Mann-Whitney's p is below alpha, the bootstrap's 95 % interval of the rise
    lies above 0, and Cliff's delta is not negligible: all four.
    """
    sides = {"candidate": candidate, "baseline": baseline}
    pooled = {name: np.concatenate([_no_numbers(), *(run.ttft_ms for run in runs)]) for name, runs in sides.items()}
    figures: dict[str, float | int | str | bool | None] = {}
    for name, runs in sides.items():
        figures |= {f"{name}_runs": len(runs), f"{name}_samples": pooled[name].size}
    lacking = _lacking(sides, pooled, limits)
    if lacking:
        return Check("E3", scenario, "TTFT p95", "inconclusive", lacking, figures)
    p95 = {name: np.array([np.quantile(run.ttft_ms, _P95) for run in runs]) for name, runs in sides.items()}
    base_ms = float(np.median(p95["baseline"]))
    rise_ms = float(hodges_lehmann_shift(p95["candidate"], p95["baseline"]))
    drawn = [resampled_quantiles(_pulled_in(runs, p95[name]), _P95, limits.bootstrap_iters, rng) for name, runs in sides.items()]
    low_ms, high_ms = (float(each) for each in np.quantile(hodges_lehmann_shift(*drawn), [0.025, 0.975]))
    p = mann_whitney_p(pooled["candidate"], pooled["baseline"])
    delta = cliffs_delta(pooled["candidate"], pooled["baseline"])
    rise_pct = 100 * rise_ms / base_ms if base_ms else math.copysign(math.inf, rise_ms) if rise_ms else 0.0
    figures |= {
        "baseline_p95_ms": base_ms, "rise_ms": rise_ms, "rise_pct": rise_pct if math.isfinite(rise_pct) else None,
        "ci95_low_ms": low_ms, "ci95_high_ms": high_ms, "mann_whitney_p": p, "cliffs_delta": delta,
        "in_turns": in_turns(candidate, baseline),
    }  # fmt: skip
    unmet = {
        f"not above {limits.ttft_regression_pct:g} %": rise_pct <= limits.ttft_regression_pct,
        f"p not below {limits.alpha:g}": p >= limits.alpha,
        "interval not above 0": low_ms <= 0,
        f"|delta| below {limits.min_cliffs_delta:g}": abs(delta) < limits.min_cliffs_delta,
    }
    said = f"{base_ms:.1f} ms {rise_pct:+.1f} % [{low_ms:+.1f}, {high_ms:+.1f}] ms, p {p:.2g}, delta {delta:+.2f}"
    reasons = [name for name, holds in unmet.items() if holds]
    if reasons:
        return Check("E3", scenario, "TTFT p95", "pass", f"{said}: {', '.join(reasons)}", figures)
    order = "" if figures["in_turns"] else "; runs were not taken in turns, so it may be the machine's"
    return Check("E3", scenario, "TTFT p95", "fail", said + order, figures)


def _pulled_in(runs: Sequence[Run], p95: Numbers) -> list[Numbers]:
    """TTFT by run, runs whose p95 lies far from their side's median moved towards it: one bad run must not decide the interval.

    Resamples hold it several times, so that an interval breaks down long before the estimate does.
    Source: the winsorised bootstrap of K. Singh, Annals of Statistics 26 (1998).
    """
    centre = np.median(p95)
    distances = p95 - centre
    reach = _REACH * np.median(np.abs(distances))
    return [run.ttft_ms + shift for run, shift in zip(runs, np.clip(distances, -reach, reach) - distances, strict=True)]


def _lacking(sides: Mapping[str, Sequence[Run]], pooled: Mapping[str, Numbers], limits: Limits) -> str:
    """Why E3 cannot be judged; "" when it can."""
    for name, runs in sides.items():
        if len(runs) < max(limits.min_runs, 1):
            return f"{len(runs)} runs of the {name}, at least {max(limits.min_runs, 1)} are needed"
        if not all(run.ttft_ms.size for run in runs):
            return f"{sum(not run.ttft_ms.size for run in runs)} of {len(runs)} runs of the {name} have no answered request"
        if pooled[name].size < max(limits.min_samples, 1):
            return f"{pooled[name].size} samples of the {name}, at least {limits.min_samples} are needed"
        if not np.isfinite(pooled[name]).all():
            return f"samples of the {name} are no numbers"
    candidate, baseline = ({run.sha256 for run in runs if run.sha256} for runs in sides.values())
    return "candidate and baseline hold the same samples: nothing was compared" if candidate & baseline else ""


def in_turns(candidate: Sequence[Run], baseline: Sequence[Run]) -> bool:
    """Whether the runs of both sides were taken in turns, so that a drift of the machine met both."""
    order = sorted([(run.begin_unix_ns, True) for run in candidate] + [(run.begin_unix_ns, False) for run in baseline])
    changes = sum(first[1] != second[1] for first, second in pairwise(order))
    return changes >= min(len(candidate), len(baseline)) and changes > 1
