"""From evidence to fault domains: `bayes` (default) and `rule`. Pure, and blind to every label.

bayes is naive Bayes over evidence levels with three refinements. Each domain has a profile for every severity that it was recorded
with. Hypotheses are single profiles, pairs of two domains' (under a pair a signal shows the higher of what either alone would show)
and `unknown`; the posterior of a domain is the sum over the hypotheses that contain it, so that two faults at once show as two
domains. A signal that is missing, or that the model knows nothing of, says nothing, and makes the others less believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from libslo.errors import InputError, os_reason
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
_DOUBT = 0.02  # however many cases there are: nowhere else was anything recorded
_TOGETHER = 1.0  # cases: how much a profile is drawn towards its domain
_MAY_BE_ABSENT = 0.1  # a fault of the same kind elsewhere need not show all that the recorded ones showed
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
    """Priors and likelihoods. likelihood[signal][profile] are the probabilities of levels 0, 1, 2.

    profiles: the ways in which each domain, `unknown` among them, shows itself, by name; those of one domain are equally likely.
    """

    version: str
    provenance: Mapping[str, Any]
    prior: Mapping[str, float]
    pair_prior: float
    temperature: float
    profiles: Mapping[str, str]
    likelihood: Mapping[str, Mapping[str, Sequence[float]]]

    @cached_property
    def hypotheses(self) -> _Hypotheses:
        """All that could be: every profile, and every two of different domains but `unknown`."""
        return _Hypotheses(self)

    @cached_property
    def favours(self) -> dict[str, dict[tuple[str, int], float]]:
        """By domain the signals and levels that are named for it, each with the log of how much more it expects them than `unknown`."""
        found: dict[str, dict[tuple[str, int], float]] = {UNKNOWN: {}}
        usual_profiles = self.of(UNKNOWN)
        for domain in DOMAINS:
            rows = found[domain] = {}
            profiles = self.of(domain)
            for name, table in self.likelihood.items():
                for level in range(1, _LEVELS):
                    expects = max(table[profile][level] for profile in profiles)
                    gain = math.log(expects / max(table[profile][level] for profile in usual_profiles))
                    if gain >= _FAVOURS and expects >= _EXPECTS:
                        rows[name, level] = gain
        return found

    def of(self, domain: str) -> list[str]:
        """The profiles of a domain."""
        return [profile for profile, owner in self.profiles.items() if owner == domain]


class _Hypotheses:
    """The model as arrays over hypotheses: log prior, members, and by signal the log likelihood of each level."""

    def __init__(self, model: Model) -> None:
        log_one = {p: math.log(model.prior[domain] / len(model.of(domain))) for p, domain in model.profiles.items()}
        pairs = [
            (a, b)
            for a, b in combinations(model.profiles, 2)
            if model.profiles[a] != model.profiles[b] and UNKNOWN not in (model.profiles[a], model.profiles[b])
        ]
        if model.pair_prior <= 0:
            pairs = []
        self.log_prior = np.array([*log_one.values(), *(math.log(model.pair_prior) + log_one[a] + log_one[b] for a, b in pairs)])
        members = [(p,) for p in model.profiles] + pairs
        domains = (UNKNOWN, *DOMAINS)
        self.is_in = np.array([[any(model.profiles[p] == domain for p in each) for domain in domains] for each in members], np.float64)
        index = {p: i for i, p in enumerate(model.profiles)}
        first = np.array([index[each[0]] for each in members])
        second = np.array([index[each[-1]] for each in members])
        single = np.array([len(each) == 1 for each in members])
        self.log_levels: dict[str, Any] = {}
        for name, table in model.likelihood.items():
            shares = np.array([table[p] for p in model.profiles])
            upto = np.cumsum(shares, axis=1)
            of_pair = np.diff(upto[first] * upto[second], axis=1, prepend=0.0)  # of two faults a signal shows the higher level
            self.log_levels[name] = np.log(np.maximum(np.where(single[:, None], shares[first], of_pair), 1e-12)).T


def load_model(path: str | None = None) -> Model:
    """Read a model file (default: the one that travels with the toolkit). InputError names what is wrong with it."""
    import orjson

    file = Path(path) if path else data_path("contracts/models/bayes.json")
    try:
        return model_of(orjson.loads(file.read_bytes()), str(file))
    except OSError as error:
        raise InputError(f"cannot read the model: {os_reason(error)}", source=str(file), hint="check --model") from error
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
            value["profiles"],
            value["likelihood"],
        )
        domains = {*DOMAINS, UNKNOWN}
        rows = {f"likelihood.{name}": (set(table), set(model.profiles)) for name, table in model.likelihood.items()}
        rows |= {"prior": (set(model.prior), domains), "profiles": (set(model.profiles.values()), domains)}
        for place, (found, wanted) in rows.items():
            if missing := wanted - found:
                raise InputError(f"{place}: no {', '.join(sorted(missing))}", source=source, hint=_MODEL_HINT)
        if strange := set(model.profiles.values()) - domains:
            raise InputError(f"profiles: no fault domain {', '.join(sorted(strange))}", source=source, hint=_MODEL_HINT)
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
    all_of = model.hypotheses
    trust = max(len(seen) / max(len(model.likelihood), 1), _LEAST_TRUST) / model.temperature
    logs = all_of.log_prior.copy()
    for name, level in seen:
        logs += trust * all_of.log_levels[name][level]
    weights = np.exp(logs - logs.max())
    posterior = dict(zip((UNKNOWN, *DOMAINS), (weights @ all_of.is_in / weights.sum()).tolist(), strict=True))
    posterior = {domain: round(p, 12) for domain, p in posterior.items()}  # so that a tie is a tie, decided by name
    ranked = sorted(posterior.items(), key=lambda item: (-item[1], item[0]))
    listed = tuple(Hypothesis(domain, min(p, 1.0), _speaks_for(model, domain, seen)) for domain, p in ranked if p >= _LIST_FROM)
    domain, confidence = ranked[0]
    if confidence < abstain_below:
        return Verdict(UNKNOWN, posterior[UNKNOWN], listed)
    return Verdict(domain, min(confidence, 1.0), listed)


def _speaks_for(model: Model, domain: str, seen: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    favours = model.favours[domain]
    return tuple(name for _, name in sorted((-favours[each], each[0]) for each in seen if each in favours))


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


def fit_likelihoods(
    cases: Iterable[tuple[str, Sequence[Sequence[Evidence]]]], profiles: Mapping[str, str], smoothing: float = 0.5
) -> dict[str, dict[str, list[float]]]:
    """Level frequencies per signal and profile from labelled cases (profile, evidence).

    All the evidence of a case, each look at it, counts once together. A signal that is missing is not counted. Few cases are not
    believed as many: a profile is drawn towards its domain, and a domain towards what the signal is like without a fault.
    """
    counts: dict[str, dict[str, Any]] = {}
    for profile, snapshots in cases:
        for evidence in snapshots:
            for each in evidence:
                row = counts.setdefault(each.signal, {}).setdefault(profile, np.zeros(_LEVELS))
                row[each.level] += 1 / len(snapshots)
    fitted: dict[str, dict[str, list[float]]] = {}
    for name, rows in sorted(counts.items()):
        by_domain: dict[str, Any] = dict.fromkeys((*DOMAINS, UNKNOWN), np.zeros(_LEVELS))
        for profile, row in rows.items():
            by_domain[profiles[profile]] = by_domain[profiles[profile]] + row
        usual = (by_domain[UNKNOWN] + smoothing) / (by_domain[UNKNOWN].sum() + smoothing * _LEVELS)
        table = {}
        for profile, domain in profiles.items():
            # Where nothing says otherwise, a fault leaves a signal as it is without one.
            whole = (by_domain[domain] + smoothing * _LEVELS * usual) / (by_domain[domain].sum() + smoothing * _LEVELS)
            own = rows.get(profile, np.zeros(_LEVELS))
            drawn = (own + _TOGETHER * whole) / (own.sum() + _TOGETHER)
            table[profile] = _rounded(_may_be_absent(domain, (1 - _DOUBT) * drawn + _DOUBT / _LEVELS))
        fitted[name] = table
    return fitted


def _may_be_absent(domain: str, shares: Any) -> Any:
    if domain == UNKNOWN or shares[0] >= _MAY_BE_ABSENT:
        return shares
    return np.array([_MAY_BE_ABSENT, *(shares[1:] * (1 - _MAY_BE_ABSENT) / (1 - shares[0]))])


def _rounded(shares: Any) -> list[float]:
    rest = [round(float(share), 6) for share in shares[1:]]
    return [round(1 - sum(rest), 6), *rest]
