"""From evidence to fault domains: `bayes` (default) and `rule`. Pure, and blind to every label.

bayes is naive Bayes over evidence levels with two refinements. Hypotheses are single domains, pairs of domains (under a
pair a signal shows the higher of what either alone would show) and `unknown`, which expects every signal as usual; the
posterior of a domain is the sum over the hypotheses that contain it, so that two faults at once show as two domains.
A signal that is missing, or that the model knows nothing of, says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from libslo.errors import InputError
from libslo.evidence import Evidence
from libslo.resources import data_path

__all__ = [
    "DOMAINS",
    "UNKNOWN",
    "Hypothesis",
    "Model",
    "Verdict",
    "attribute_bayes",
    "attribute_rule",
    "fit_likelihoods",
    "largest_change",
    "load_model",
    "model_of",
]

UNKNOWN = "unknown"
DOMAINS = ("network_dns", "network_egress", "cpu_throttle", "memory_pressure", "provider_throttle", "provider_error", "retrieval_backend")
_LEVELS = 3
_LIST_FROM = 0.01  # hypotheses below this posterior are not listed
# A signal is named for a domain that expects such a level, and at least twice as much as `unknown` does.
_EXPECTS = 0.1
_FAVOURS = math.log(2)
_LEAST_TRUST = 0.5
_MODEL_HINT = "a model file as contracts/models/bayes.json is, or one that sloctl model fit wrote"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One domain, its posterior and the signals that speak for it."""

    domain: str
    posterior: float
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: the domain, how probable it is, and all hypotheses worth naming, most probable first."""

    domain: str
    confidence: float
    hypotheses: tuple[Hypothesis, ...]


@dataclass(frozen=True)
class Model:
    """Priors and likelihoods. likelihood[signal][domain] are the probabilities of levels 0, 1, 2; domains include `unknown`."""

    version: str
    provenance: Mapping[str, Any]
    prior: Mapping[str, float]
    pair_prior: float
    temperature: float
    likelihood: Mapping[str, Mapping[str, Sequence[float]]]


def load_model(path: str | None = None) -> Model:
    """Read a model file (default: the one that travels with the toolkit). InputError names what is wrong with it."""
    import orjson

    file = Path(path) if path else data_path("contracts/models/bayes.json")
    try:
        return model_of(orjson.loads(file.read_bytes()), str(file))
    except OSError as error:
        raise InputError(
            f"cannot read the model: {(error.strerror or str(error)).lower()}", source=str(file), hint="check --model"
        ) from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}", source=str(file), hint=_MODEL_HINT) from error


def model_of(value: Any, source: str | None = None) -> Model:
    """The model in the object that a model file holds. InputError names what is wrong with it."""
    try:
        model = Model(
            value["version"],
            value["provenance"],
            value["prior"],
            float(value["pair_prior"]),
            float(value["temperature"]),
            value["likelihood"],
        )
        rows = {"prior": model.prior, **{f"likelihood.{name}": table for name, table in model.likelihood.items()}}
        for place, row in rows.items():
            missing = {*DOMAINS, UNKNOWN} - row.keys()
            if missing:
                raise InputError(f"{place}: no {', '.join(sorted(missing))}", source=source, hint=_MODEL_HINT)
        for name, table in model.likelihood.items():
            for domain, levels in table.items():
                if len(levels) != _LEVELS or any(not 0 < p < 1 for p in levels) or abs(sum(levels) - 1) > 1e-6:
                    raise InputError(
                        f"likelihood.{name}.{domain}: {levels} are not {_LEVELS} probabilities that sum to 1",
                        source=source,
                        hint=_MODEL_HINT,
                    )
        if any(not 0 < p < 1 for p in model.prior.values()) or not 0 <= model.pair_prior <= 1 or not model.temperature > 0:
            raise InputError("a prior is not a probability, or the temperature is not positive", source=source, hint=_MODEL_HINT)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a model: {type(error).__name__} {error}", source=source, hint=_MODEL_HINT) from error
    return model


def attribute_bayes(evidence: Sequence[Evidence], model: Model, abstain_below: float = 0.5) -> Verdict:
    """The posterior of every domain given the evidence. Below `abstain_below` the answer is `unknown`.

    The fewer of the model's signals there are, the less the others are believed, down to half as much: what is missing could have
    said otherwise.
    """
    seen = sorted((each.signal, each.level) for each in evidence if each.signal in model.likelihood)  # sums must not depend on order
    hypotheses: list[tuple[tuple[str, ...], float]] = [((UNKNOWN,), math.log(model.prior[UNKNOWN]))]
    hypotheses += [((domain,), math.log(model.prior[domain])) for domain in DOMAINS]
    if model.pair_prior > 0:
        log_pair = math.log(model.pair_prior)
        hypotheses += [
            (pair, log_pair + math.log(model.prior[pair[0]]) + math.log(model.prior[pair[1]])) for pair in combinations(DOMAINS, 2)
        ]
    trust = max(len(seen) / max(len(model.likelihood), 1), _LEAST_TRUST) / model.temperature
    logs = [log + trust * sum(_log_likelihood(model, members, name, level) for name, level in seen) for members, log in hypotheses]
    highest = max(logs)
    weights = [math.exp(log - highest) for log in logs]
    total = sum(weights)
    posterior = dict.fromkeys((UNKNOWN, *DOMAINS), 0.0)
    for (members, _), weight in zip(hypotheses, weights, strict=True):
        for domain in members:
            posterior[domain] += weight / total
    posterior = {domain: round(p, 12) for domain, p in posterior.items()}  # so that a tie is a tie, decided by name
    ranked = sorted(posterior.items(), key=lambda item: (-item[1], item[0]))
    listed = tuple(Hypothesis(domain, min(p, 1.0), _speaks_for(model, domain, seen)) for domain, p in ranked if p >= _LIST_FROM)
    domain, confidence = ranked[0]
    if confidence < abstain_below:
        return Verdict(UNKNOWN, posterior[UNKNOWN], listed)
    return Verdict(domain, min(confidence, 1.0), listed)


def _log_likelihood(model: Model, members: tuple[str, ...], name: str, level: int) -> float:
    table = model.likelihood[name]
    if len(members) == 1:
        return math.log(table[members[0]][level])
    first, second = (table[member] for member in members)
    upto = sum(first[: level + 1]) * sum(second[: level + 1])
    below = sum(first[:level]) * sum(second[:level])
    return math.log(max(upto - below, 1e-12))


def _speaks_for(model: Model, domain: str, seen: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    if domain == UNKNOWN:
        return ()
    gains = []
    for name, level in seen:
        table = model.likelihood[name]
        gain = math.log(table[domain][level] / table[UNKNOWN][level])
        if level > 0 and gain >= _FAVOURS and table[domain][level] >= _EXPECTS:
            gains.append((-gain, name))
    return tuple(name for _, name in sorted(gains))


def largest_change(evidence: Sequence[Evidence]) -> str:
    """The trivial answer, to compare with: the domain whose rule has the signal that changed most; `unknown` when none is raised."""
    owners = {name: rule["domain"] for rule in reversed(_rules()) for name, _ in rule["any"]}
    raised = [(each.score or 0.0, each.level, each.signal) for each in evidence if each.level > 0 and each.signal in owners]
    return owners[max(raised)[2]] if raised else UNKNOWN


def attribute_rule(evidence: Sequence[Evidence]) -> Verdict:
    """The first rule that matches. Confidence is one over the number of domains whose rules match: 1.0 means no other did."""
    levels = {each.signal: each.level for each in evidence}
    matches = []
    for rule in _rules():
        hit = tuple(name for name, least in rule["any"] if levels.get(name, 0) >= least)
        if hit:
            matches.append((rule["domain"], hit))
    if not matches:
        return Verdict(UNKNOWN, 1.0, (Hypothesis(UNKNOWN, 1.0, ()),))
    share = 1 / len(matches)
    return Verdict(matches[0][0], share, tuple(Hypothesis(domain, share, hit) for domain, hit in matches))


@cache
def _rules() -> list[dict[str, Any]]:
    import orjson

    rules: list[dict[str, Any]] = orjson.loads(data_path("contracts/models/rules.json").read_bytes())["rules"]
    return rules


def fit_likelihoods(cases: Iterable[tuple[str, Sequence[Sequence[Evidence]]]], smoothing: float = 0.5) -> dict[str, dict[str, list[float]]]:
    """Level frequencies per signal and domain from labelled cases, with additive smoothing.

    A case is a domain and all the evidence that a model would have been asked about, which together counts once. A signal that is
    missing is not counted; one that no case of a domain ever had is taken to be as it is without a fault.
    """
    counts: dict[str, dict[str, list[float]]] = {}
    for domain, snapshots in cases:
        for evidence in snapshots:
            for each in evidence:
                row = counts.setdefault(each.signal, {}).setdefault(domain, [0.0] * _LEVELS)
                row[each.level] += 1 / len(snapshots)
    fitted: dict[str, dict[str, list[float]]] = {}
    for name, rows in sorted(counts.items()):
        usual = rows.get(UNKNOWN, [0.0] * _LEVELS)
        by_domain = {domain: rows.get(domain, usual) for domain in (*DOMAINS, UNKNOWN)}
        # The same share of doubt everywhere: a domain with fewer cases must not look readier for the unheard-of.
        fewest = min(sum(row) for row in by_domain.values())
        doubt = smoothing * _LEVELS / (fewest + smoothing * _LEVELS)
        table = {}
        for domain, row in by_domain.items():
            shares = [(1 - doubt) * count / (sum(row) or 1.0) + doubt / _LEVELS for count in row]
            table[domain] = [round(1 - sum(round(share, 6) for share in shares[1:]), 6), *(round(share, 6) for share in shares[1:])]
        fitted[name] = table
    return fitted
