"""What a run of the laboratory measured, phase by phase, and whether it is what its scenario says must hold. Pure.

A stretch is a phase of one step: baseline, then for each step its fault and its recovery. Times in Unix ns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.scenarios import Assertion
from libslo.signals import signal, signals, waits_for_peer
from libslo.statistics import cliffs_delta, mann_whitney_p, resampled_quantiles

__all__ = ["Checked", "Move", "Stretch", "check_assertions", "load_figures", "moves", "per_second"]

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip
_SECOND_NS = 1_000_000_000
_EDGE_NS = 1_000_000_000  # after a fault came on or went, requests and waits that began before it still end
_LARGE_DELTA = 0.474  # Cliff's delta from which a difference is called large: Romano et al., FAIR 2006
_ALPHA = 0.001  # twelve signals a run: at this level one of them moves by chance in about one run of a hundred
_LEAST_SECONDS = 4
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Stretch:
    """One phase of one step. scenarios: what was on (nothing in baseline); step counts from 0, the first baseline's is -1."""

    phase: str
    step: int
    scenarios: tuple[str, ...]
    begin_unix_ns: int
    end_unix_ns: int

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end_unix_ns - self.begin_unix_ns) / _SECOND_NS


@dataclass(frozen=True, slots=True)
class Move:
    """How a kernel signal of the application differed between a baseline and a fault, in its per-second values.

    before, during: medians. delta: Cliff's, from -1 to 1. p: Mann-Whitney, two-sided; None where there were too few seconds.
    """

    signal: str
    before: float
    during: float
    delta: float
    p: float | None
    moved: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """An assertion and what a stretch showed. kept None: there was nothing to judge by."""

    metric: str
    operator: str
    value: float
    phase: str
    step: int
    found: float | None
    kept: bool | None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a verdict."""
        return asdict(self)


def load_figures(stretch: Stretch, requests: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Figures of the requests sent within a stretch, from load-result records: ms and ratios, None without a request to judge by.

    In a baseline those still on their way at its end are left out: what they saw is the fault's. ttft_p95_error_ms: how far the p95 would
    spread if other requests of the same kind had been drawn (bootstrap, one standard deviation).
    """
    mine = [
        each
        for each in requests
        if stretch.begin_unix_ns <= each.get("sent_unix_ns", 0) < stretch.end_unix_ns
        and not (stretch.phase == "baseline" and each.get("end_unix_ns", stretch.end_unix_ns) >= stretch.end_unix_ns)
    ]
    good = [each for each in mine if not each.get("error") and "first_token_unix_ns" in each]
    ttft_ms = np.array([(each["first_token_unix_ns"] - each["sent_unix_ns"]) / 1e6 for each in good])
    paces = [
        (each["tokens"] - 1) * _SECOND_NS / (each["last_token_unix_ns"] - each["first_token_unix_ns"])
        for each in good
        if each["tokens"] > 1 and each["last_token_unix_ns"] > each["first_token_unix_ns"]
    ]
    return {
        "requests": float(len(mine)),
        "error_ratio": (len(mine) - len(good)) / len(mine) if mine else None,
        "ttft_p50_ms": float(np.quantile(ttft_ms, 0.5)) if good else None,
        "ttft_p95_ms": float(np.quantile(ttft_ms, 0.95)) if good else None,
        "ttft_p95_error_ms": _quantile_error(ttft_ms, 0.95) if good else None,
        "tokens_per_s_p50": float(np.median(paces)) if paces else None,
    }


def _quantile_error(values: NDArray[np.float64], quantile: float) -> float:
    drawn = resampled_quantiles([values], quantile, _RESAMPLES, np.random.default_rng(0))
    return float(np.std(drawn))


def per_second(stretch: Stretch, events: Sequence[Mapping[str, Any]], service: str) -> dict[str, NDArray[np.float64]]:
    """By signal, the sum of a service's values in each whole second of a stretch, shape (seconds,); levels: the mean.

    The first second is left out of all but baselines: it holds what began before.
    """
    begin = stretch.begin_unix_ns + (0 if stretch.phase == "baseline" else _EDGE_NS)
    seconds = max(0, (stretch.end_unix_ns - begin) // _SECOND_NS)
    sums = {name: np.zeros(seconds) for name in signals()}
    counts = {name: np.zeros(seconds) for name in signals()}
    for event in events:
        if event.get("service") != service or waits_for_peer(event):
            continue
        second = (event["ts_unix_nano"] - begin) // _SECOND_NS
        if 0 <= second < seconds:
            sums[event["signal"]][second] += event["value"]
            counts[event["signal"]][second] += 1
    return {
        name: np.divide(values, counts[name], out=np.zeros(seconds), where=counts[name] > 0) if signal(name).kind == "level" else values
        for name, values in sums.items()
    }


def moves(before: Mapping[str, NDArray[np.float64]], during: Mapping[str, NDArray[np.float64]]) -> dict[str, Move]:
    """Which signals moved: rose so that Mann-Whitney's p is below 0.001 and Cliff's delta is large, by at least a floor.

    The floor a second is a quarter of the signal's warning threshold, so that next to nothing against nothing is no move.
    """
    return {name: _move(name, before[name], during[name]) for name in during}


def _move(name: str, before: NDArray[np.float64], during: NDArray[np.float64]) -> Move:
    if min(before.size, during.size) < _LEAST_SECONDS:
        return Move(name, float("nan"), float("nan"), 0.0, None, False)
    p, delta = mann_whitney_p(during, before), cliffs_delta(during, before)
    medians = float(np.median(before)), float(np.median(during))
    rise = float(during.mean() - before.mean())
    moved = p < _ALPHA and delta >= _LARGE_DELTA and rise >= signal(name).warning / 4
    return Move(name, *medians, round(delta, 4), p, moved)


def check_assertions(
    assertions: Sequence[Assertion], stretches: Sequence[Stretch], figures: Sequence[Mapping[str, float | None]]
) -> list[Checked]:
    """Each assertion against each stretch of its phase. figures: those of each stretch, in the same order.

    A metric that ends in ``_ratio`` where there is no such figure is the figure without it over that of the first baseline
    (``ttft_p95_ratio`` is ttft_p95_ms over the baseline's ttft_p95_ms).
    """
    base = next((figures[i] for i, stretch in enumerate(stretches) if stretch.phase == "baseline"), {})
    found = []
    for each in assertions:
        for stretch, mine in zip(stretches, figures, strict=True):
            if stretch.phase != each.phase:
                continue
            value = _figure(each.metric, mine, base)
            kept = None if value is None else OPERATORS[each.operator](value, each.value)
            found.append(Checked(each.metric, each.operator, each.value, each.phase, stretch.step, value, kept))
    return found


def _figure(metric: str, mine: Mapping[str, float | None], base: Mapping[str, float | None]) -> float | None:
    if metric in mine:
        return mine[metric]
    plain = metric.removesuffix("_ratio") + "_ms"
    if metric.endswith("_ratio") and plain in mine:
        value, before = mine[plain], base.get(plain)
        return value / before if value is not None and before else None
    raise KeyError(metric)
