"""How right the attributor was: figures over predictions, each with n, an interval and what a trivial answer would get. Pure.

Only what is called evaluation reads what was true. A prediction's `actual` is one of three: () for a window without a fault; one
domain, of which ``unknown`` is one (a fault that nothing explains); several, for faults at once. Unless said otherwise, `single`
figures are over predictions with one actual domain, `faulty` ones over all but the windows without a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from libslo.attribution import DOMAINS, UNKNOWN
from libslo.calibration import Bools, calibration_error, calibration_error_null, kept_at, reliability, risk_coverage
from libslo.errors import InputError
from libslo.estimates import RESAMPLES, Estimate, Floats, Share, mean_estimate, median_estimate, percentile_band, rounded

__all__ = [
    "BASELINES", "CLASSES", "COVERAGES", "Domain", "Prediction", "abstained", "accuracy", "always_majority", "brier", "brier_class_shares",
    "class_metrics", "confidences", "confusion", "coverage_accuracy", "covered",
    "delay", "exact_set", "false_accusations", "jaccard", "largest_z",
    "macro_f1", "named", "partial_accuracy", "summarize",
]  # fmt: skip

CLASSES = (*DOMAINS, UNKNOWN)
COVERAGES = (1.0, 0.9, 0.8)
_COVERED_AT = 0.10  # an expected domain counts as found from this posterior on
_NAMED_AT = 0.5  # an answer names every domain from this posterior on


@dataclass(frozen=True)
class Prediction:
    """What was true of one case, and what was said. InputError for a domain that is none, or a posterior that is no probability.

    actual: see the module. posteriors: by domain; one that is not listed is 0. ranking: domains, most probable first. largest_z: the
    domain that the signal with the largest score points at; "" where no score is known. delay_s: from the fault's begin to the
    answer, where known.
    """

    case: str
    actual: tuple[str, ...]
    predicted: str
    posteriors: Mapping[str, float]
    ranking: tuple[str, ...]
    largest_z: str
    delay_s: float | None
    synthetic: bool

    def __post_init__(self) -> None:
        for domain in (*self.actual, self.predicted, *self.posteriors, *self.ranking, *filter(None, [self.largest_z])):
            if domain not in CLASSES:
                raise InputError(f"no fault domain {domain!r}", source=self.case, hint=f"one of: {', '.join(CLASSES)}")
        for domain, posterior in self.posteriors.items():
            if not 0 <= posterior <= 1:  # NaN neither
                raise InputError(f"the posterior of {domain} is {posterior}", source=self.case, hint="a number from 0 to 1")
        if self.delay_s is not None and not np.isfinite(self.delay_s):
            raise InputError(f"a delay of {self.delay_s} s", source=self.case, hint="leave it out where it is not known")

    @property
    def confidence(self) -> float:
        """The posterior of what was said."""
        return self.posteriors.get(self.predicted, 0.0)


def single(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those with one actual domain."""
    return [each for each in predictions if len(each.actual) == 1]


def faulty(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those with a fault, or several."""
    return [each for each in predictions if each.actual]


def confusion(predictions: Sequence[Prediction]) -> list[tuple[str, str, int]]:
    """(actual, predicted, count) in a fixed order; several actual domains are joined with +, none is "none"."""
    counts = Counter(("+".join(sorted(each.actual)) or "none", each.predicted) for each in predictions)
    return [(*pair, count) for pair, count in sorted(counts.items())]


def accuracy(predictions: Sequence[Prediction]) -> Share:
    """Of the single ones: the domain that was said is the actual one."""
    mine = single(predictions)
    return Share(sum(each.predicted == each.actual[0] for each in mine), len(mine))


def partial_accuracy(predictions: Sequence[Prediction]) -> Share:
    """Of the faulty ones: the domain that was said is among the actual ones."""
    mine = faulty(predictions)
    return Share(sum(each.predicted in each.actual for each in mine), len(mine))


def coverage_accuracy(predictions: Sequence[Prediction]) -> Share:
    """Of all actual domains of the faulty ones: its posterior is 0.10 or more."""
    found = [covered(each, domain) for each in faulty(predictions) for domain in each.actual]
    return Share(sum(found), len(found))


def covered(prediction: Prediction, domain: str) -> bool:
    """Whether an answer gives a domain a posterior of 0.10 or more."""
    return prediction.posteriors.get(domain, 0.0) >= _COVERED_AT


def named(prediction: Prediction) -> frozenset[str]:
    """The domains that an answer names: all of a posterior of 0.5 or more; without any, what was said."""
    return frozenset(domain for domain, p in prediction.posteriors.items() if p >= _NAMED_AT) or frozenset({prediction.predicted})


def exact_set(predictions: Sequence[Prediction]) -> Share:
    """Of the faulty ones: the domains named are the actual ones, no more and no less."""
    mine = faulty(predictions)
    return Share(sum(named(each) == set(each.actual) for each in mine), len(mine))


def jaccard(predictions: Sequence[Prediction], rng: np.random.Generator) -> Estimate:
    """Of the faulty ones: domains named and actual over domains named or actual, on average."""
    return mean_estimate([len(named(each) & set(each.actual)) / len(named(each) | set(each.actual)) for each in faulty(predictions)], rng)


def abstained(predictions: Sequence[Prediction]) -> Share:
    """Of the faulty ones that have a domain to be named: ``unknown`` was said."""
    mine = [each for each in faulty(predictions) if each.actual != (UNKNOWN,)]
    return Share(sum(each.predicted == UNKNOWN for each in mine), len(mine))


def false_accusations(predictions: Sequence[Prediction]) -> Share:
    """Of the windows without a fault: a domain was said."""
    mine = [each for each in predictions if not each.actual]
    return Share(sum(each.predicted != UNKNOWN for each in mine), len(mine))


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain among the single ones. What divides by nothing is None: precision never said, recall never true, F1 neither."""

    domain: str
    support: int
    predicted: int
    right: int

    @property
    def precision(self) -> float | None:
        """right / predicted."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """right / support."""
        return self.right / self.support if self.support else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall, 2 right / (support + predicted)."""
        total = self.support + self.predicted
        return 2 * self.right / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """support, predicted, right, and the three ratios."""
        ratios = {"precision": rounded(self.precision), "recall": rounded(self.recall), "f1": rounded(self.f1)}
        return {"domain": self.domain, "support": self.support, "predicted": self.predicted, "right": self.right, **ratios}


def class_metrics(predictions: Sequence[Prediction]) -> list[Domain]:
    """All eight domains."""
    mine = single(predictions)
    actual, said = Counter(each.actual[0] for each in mine), Counter(each.predicted for each in mine)
    right = Counter(each.predicted for each in mine if each.predicted == each.actual[0])
    return [Domain(domain, actual[domain], said[domain], right[domain]) for domain in CLASSES]


def macro_f1(predictions: Sequence[Prediction], rng: np.random.Generator) -> Estimate:
    """The mean F1 of the domains that were actual at least once among the single ones; in a resample, of those in it."""
    mine = single(predictions)
    if not mine:
        return Estimate(0, None, None, None)
    table = np.zeros((len(CLASSES), len(CLASSES)))
    for each in mine:
        table[CLASSES.index(each.actual[0]), CLASSES.index(each.predicted)] += 1
    # Drawing predictions with replacement is drawing cells of the confusion matrix.
    drawn = rng.multinomial(len(mine), table.ravel() / len(mine), RESAMPLES).reshape(RESAMPLES, *table.shape)
    return Estimate(len(mine), float(_macro_f1(table[None])[0]), *percentile_band(_macro_f1(drawn)))


def _macro_f1(tables: np.ndarray[Any, Any]) -> Floats:
    """tables: (k, actual, predicted) counts."""
    support, said, right = tables.sum(axis=2), tables.sum(axis=1), np.einsum("kii->ki", tables)
    f1 = 2 * right / np.maximum(support + said, 1)
    return np.asarray(f1.sum(axis=1) / (support > 0).sum(axis=1), np.float64)  # never actual: never right, F1 0


def confidences(predictions: Sequence[Prediction]) -> tuple[Floats, Bools]:
    """Of the faulty ones: the confidence in what was said, and whether that is among the actual domains."""
    mine = faulty(predictions)
    return np.array([each.confidence for each in mine], np.float64), np.array([each.predicted in each.actual for each in mine], np.bool_)


def brier(predictions: Sequence[Prediction], rng: np.random.Generator) -> Estimate:
    """Of the single ones: squared error of the posteriors, summed over the eight domains (0 to 2 where they sum to 1).

    Source: G. W. Brier, Monthly Weather Review 78 (1950).
    """
    errors = [
        sum((each.posteriors.get(domain, 0.0) - (domain == each.actual[0])) ** 2 for domain in CLASSES) for each in single(predictions)
    ]
    return mean_estimate(errors, rng)


def brier_class_shares(predictions: Sequence[Prediction]) -> float | None:
    """The Brier score of always giving every domain its share among these predictions: the best that knows nothing of a case."""
    mine = Counter(each.actual[0] for each in single(predictions))
    n = mine.total()
    return 1 - sum((count / n) ** 2 for count in mine.values()) if n else None


def delay(predictions: Sequence[Prediction], rng: np.random.Generator) -> Estimate:
    """The median delay of those that have one."""
    return median_estimate([each.delay_s for each in predictions if each.delay_s is not None], rng)


def always_majority(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same cases, answered each time with the domain that is actual most often among the single ones (of equals, the first by name)."""
    counts = Counter(domain for each in single(predictions) or predictions for domain in each.actual)
    answer = min(counts, key=lambda domain: (-counts[domain], domain), default=UNKNOWN)
    return [_sure(each, answer) for each in predictions]


def largest_z(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The cases that have a largest score, answered with the domain it points at."""
    return [_sure(each, each.largest_z) for each in predictions if each.largest_z]


BASELINES: Mapping[str, Callable[[Sequence[Prediction]], list[Prediction]]] = {"always_majority": always_majority, "largest_z": largest_z}


def _sure(prediction: Prediction, domain: str) -> Prediction:
    return replace(prediction, predicted=domain, posteriors={domain: 1.0}, ranking=(domain,), delay_s=None)


def summarize(predictions: Sequence[Prediction], rng: np.random.Generator) -> dict[str, Any]:
    """All figures as one JSON object. Same predictions in any order and same generator, same object."""
    multi = [each for each in predictions if len(each.actual) > 1]
    answers = {
        "predictions": len(predictions),
        "synthetic": sum(each.synthetic for each in predictions),
        "class_balance": dict(sorted(Counter("+".join(sorted(each.actual)) or "none" for each in predictions).items())),
        **_answers(predictions, rng),
        "multi_fault": _answers(multi, rng) if multi else None,
        "domains": [each.as_dict() for each in class_metrics(predictions)],
        "calibration": _calibration(predictions, rng),
        "at_coverage": dict(_at_coverage(predictions)),
        "delay_s": delay(predictions, rng).as_dict(),
        "baselines": _baselines(predictions, rng),
    }
    if multi:
        answers["multi_fault"]["baselines"] = _baselines(multi, rng)
    return answers


def _baselines(predictions: Sequence[Prediction], rng: np.random.Generator) -> dict[str, Any]:
    return {name: _answers(answer(predictions), rng) for name, answer in BASELINES.items()}


def _answers(predictions: Sequence[Prediction], rng: np.random.Generator) -> dict[str, Any]:
    return {
        "accuracy": accuracy(predictions).as_dict(),
        "macro_f1": macro_f1(predictions, rng).as_dict(),
        "partial": partial_accuracy(predictions).as_dict(),
        "coverage": coverage_accuracy(predictions).as_dict(),
        "exact_set": exact_set(predictions).as_dict(),
        "jaccard": jaccard(predictions, rng).as_dict(),
        "abstained": abstained(predictions).as_dict(),
        "false_accusations": false_accusations(predictions).as_dict(),
        "brier": brier(predictions, rng).as_dict(),
    }


def _calibration(predictions: Sequence[Prediction], rng: np.random.Generator) -> dict[str, Any]:
    confidence, right = confidences(predictions)
    error, null = calibration_error(confidence, right, rng), calibration_error_null(confidence, rng)
    return {
        "ece": error.as_dict(),
        "ece_of_perfect95": None if null is None else [rounded(end) for end in null],
        "ece_inside": None if null is None or error.value is None else error.value <= null[1],
        "brier_class_shares": rounded(brier_class_shares(predictions)),
        "reliability": [each.as_dict() for each in reliability(confidence, right)],
    }


def _at_coverage(predictions: Sequence[Prediction]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    curve = risk_coverage(*confidences(predictions))
    for coverage in COVERAGES:
        kept = kept_at(curve, coverage)
        yield f"{coverage:.2f}", None if kept is None else kept.as_dict()
