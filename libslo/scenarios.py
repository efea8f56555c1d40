"""Scenarios: what can go wrong and what is then expected, read from ``scenarios/*.yaml`` and checked against their schema.

Sizes and times of faults are in the units of ``contracts/vocabulary/faults.json``; durations in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from libslo.contracts import explain
from libslo.errors import InputError
from libslo.resources import data_path
from libslo.signals import signals, vocabulary

__all__ = [
    "SEVERITIES",
    "Assertion",
    "FaultSpec",
    "Harness",
    "Phase",
    "Scenario",
    "check_parameters",
    "check_scenario",
    "expected_domains",
    "load_profile",
    "load_scenario",
    "scenario_names",
]

SEVERITIES = ("low", "medium", "high")
_NOT_SCENARIOS = {"profiles", "harness", "loads"}


@dataclass(frozen=True)
class Phase:
    """A stretch of a synthetic scenario: its share of the whole, and the faults that are on ("baseline" phases have none)."""

    name: str
    share: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class FaultSpec:
    """One real fault of a scenario: its name in the vocabulary, where it goes, and its parameters by severity."""

    fault: str
    role: str
    severities: dict[str, dict[str, float | str]]


@dataclass(frozen=True)
class Assertion:
    """What must hold of a run: a metric of a phase against a number."""

    metric: str
    operator: str
    value: float
    phase: str


@dataclass(frozen=True)
class Harness:
    """How a scenario is run. durations: of `profiles`, seconds of baseline, fault and recovery. objectives: as `attributor --slo`."""

    seed: int
    load: str
    severity: str
    repetitions: int
    objectives: list[str]
    durations: str
    profiles: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    phases, effects, profile: of its synthetic form; no phases where it has none. domains: of each single fault scenario in it.
    steps: scenarios that are on together, step after step; of a single scenario one step with its own name, of baseline none.
    expected_signals: kernel signals of the application that must move; side_signals: those that may.
    """

    name: str
    description: str
    phases: tuple[Phase, ...]
    effects: dict[str, dict[str, Any]]
    domains: dict[str, tuple[str, ...]]
    profile: str
    steps: tuple[tuple[str, ...], ...] = ()
    faults: tuple[FaultSpec, ...] = ()
    expected_signals: tuple[str, ...] = ()
    side_signals: tuple[str, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    harness: Harness | None = field(default=None, compare=False)


@cache
def scenario_names() -> tuple[str, ...]:
    """The names of all scenarios, baseline first."""
    names = {path.stem for path in data_path("scenarios").glob("*.yaml")} - _NOT_SCENARIOS
    return tuple(sorted(names, key=lambda name: (name != "baseline", name.startswith("mixed"), name)))


@cache
def _schema() -> dict[str, Any]:
    import orjson

    schema: dict[str, Any] = orjson.loads(data_path("contracts/config/v1alpha1/scenario.schema.json").read_bytes())
    return schema


@cache
def _read(name: str) -> dict[str, Any]:
    import yaml

    path = data_path(f"scenarios/{name}.yaml")
    try:
        value: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", source=str(path)) from error
    if name not in _NOT_SCENARIOS:
        check_scenario(value, str(path))
    return value


def check_scenario(value: Any, source: str) -> None:
    """InputError with the place of what is wrong in a scenario: its form, an unknown fault or signal, a parameter out of its range."""
    wrong = explain(value, _schema()) or _contradiction(value)
    if wrong:
        raise InputError(wrong, source=source, hint="contracts/config/v1alpha1/scenario.schema.json says what a scenario holds")
    for key in ("expected_signals", "side_signals"):
        if unknown := sorted(set(value.get(key, [])) - set(signals())):
            raise InputError(f"{key}: no signal {unknown[0]!r}", source=source, hint=f"one of: {', '.join(signals())}")
    for spec in value.get("faults", []):
        for severity, parameters in spec["severities"].items():
            check_parameters(spec["fault"], parameters, f"{source}: faults.{spec['fault']}.severities.{severity}")


def _contradiction(value: Mapping[str, Any]) -> str:
    """What a schema cannot say of a scenario: its faults are its own or those of a sequence; "" when all is well."""
    if "sequence" not in value:
        return "" if "expected_domains" in value else "expected_domains: is missing"
    if "shares" not in value.get("synthetic", {"shares": None}):
        return "synthetic.shares: is missing, which a sequence has instead of phases"
    return next((f"{key}: a sequence has those of its members" for key in ("faults", "expected_domains") if key in value), "")


def check_parameters(fault: str, given: Mapping[str, float | str], source: str | None = None) -> dict[str, float | str]:
    """The parameters of a fault with its defaults filled in. InputError names what is unknown, missing or out of range."""
    table = vocabulary("faults")["faults"]
    if fault not in table:
        raise InputError(f"no fault {fault!r}", source=source, hint=f"one of: {', '.join(table)}")
    known = table[fault]["parameters"]
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"{fault} has no parameter {unknown[0]}", source=source, hint=f"one of: {', '.join(known)}")
    values = {name: about["default"] for name, about in known.items() if "default" in about} | dict(given)
    for name, about in known.items():
        if name not in values:
            raise InputError(f"{fault} needs {name} ({about['unit']})", source=source, hint=f"{name}={about.get('minimum', '...')} or more")
        value = values[name]
        if "minimum" not in about:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not about["minimum"] <= value <= about["maximum"]:
            bounds = f"{about['minimum']:g} to {about['maximum']:g} {about['unit']}"
            raise InputError(f"{fault}: {name} cannot be {value!r}", source=source, hint=f"a number from {bounds}")
    return values


@cache
def load_scenario(name: str) -> Scenario:
    """The scenario of that name. InputError lists the known ones, or says what is wrong in its file."""
    if name not in scenario_names():
        raise InputError(f"no scenario {name!r}", hint=f"one of: {', '.join(scenario_names())}")
    value = _read(name)
    synthetic = value.get("synthetic", {})
    sequence = value.get("sequence")
    phases: tuple[Phase, ...]
    members: tuple[str, ...] = ()
    steps: tuple[tuple[str, ...], ...] = ()
    if sequence is None:
        if name != "baseline":
            members, steps = (name,), ((name,),)
        phases = tuple(Phase(phase, share, (name,) if phase == "fault" else ()) for phase, share in synthetic.get("phases", []))
    else:
        steps = tuple(tuple(step) for step in sequence)
        members = tuple(dict.fromkeys(member for step in steps for member in step))
        _check_members(name, members)
        phases = _phases(steps, synthetic["shares"]) if synthetic else ()
    singles = {member: _read(member) for member in (members or (name,))}
    return Scenario(
        name,
        value["description"],
        phases,
        {member: single.get("synthetic", {}).get("effects", {}) for member, single in singles.items()},
        {member: tuple(single["expected_domains"]) for member, single in singles.items()},
        synthetic.get("profile", "rag"),
        steps,
        tuple(_fault_spec(spec) for spec in value.get("faults", [])),
        _signals_of(singles, "expected_signals"),
        _signals_of(singles, "side_signals"),
        tuple(Assertion(**row) for row in value["assertions"]),
        Harness(**{**_read("harness"), **value.get("harness", {})}),
    )


def _phases(steps: tuple[tuple[str, ...], ...], shares: Mapping[str, float]) -> tuple[Phase, ...]:
    phases = [Phase("baseline", shares["start"], ())]
    for step in steps:
        phases += [Phase("fault", shares["fault"], step), Phase("recovery", shares["recovery"], ())]
    return tuple(phases)


def _check_members(name: str, members: tuple[str, ...]) -> None:
    """InputError for a member of a sequence that is no scenario with faults of its own."""
    others = [each for each in scenario_names() if each != name]
    if strange := [member for member in members if member not in others or "faults" not in _read(member)]:
        source = str(data_path(f"scenarios/{name}.yaml"))
        raise InputError(f"sequence: {strange[0]!r} is no scenario with a fault", source=source, hint=f"one of: {', '.join(others)}")


def _signals_of(singles: Mapping[str, Mapping[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(signal for single in singles.values() for signal in single.get(key, [])))


def _fault_spec(spec: Mapping[str, Any]) -> FaultSpec:
    about = vocabulary("faults")["faults"][spec["fault"]]
    severities = {severity: check_parameters(spec["fault"], spec["severities"][severity]) for severity in SEVERITIES}
    return FaultSpec(spec["fault"], spec.get("role", about["role"]), severities)


def load_profile(name: str) -> dict[str, Any]:
    """A profile of a healthy service from scenarios/profiles.yaml."""
    profile: dict[str, Any] = _read("profiles")[name]
    return profile


def expected_domains(fault_label: str) -> tuple[str, ...]:
    """The domains that a fault label stands for ("a+b" is both faults at once); for evaluation only.

    An unknown label, "baseline" or "" stands for none.
    """
    domains: list[str] = []
    for name in fault_label.split("+"):
        if name in scenario_names() and name != "baseline":
            domains += [domain for domain in _read(name).get("expected_domains", []) if domain not in domains]
    return tuple(domains)
