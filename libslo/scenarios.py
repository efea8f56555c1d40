"""Scenarios: what can go wrong and what is then expected, read from ``scenarios/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from libslo.errors import InputError
from libslo.resources import data_path

__all__ = ["Phase", "Scenario", "expected_domains", "load_profile", "load_scenario", "scenario_names"]

_NOT_SCENARIOS = {"profiles"}


@dataclass(frozen=True)
class Phase:
    """A stretch of a scenario: its share of the whole, and the faults that are on ("baseline" phases have none)."""

    name: str
    share: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """One scenario: its phases in order, the effects of each single fault by name, the domains each fault belongs to."""

    name: str
    description: str
    phases: tuple[Phase, ...]
    effects: dict[str, dict[str, Any]]
    domains: dict[str, tuple[str, ...]]
    profile: str


@cache
def scenario_names() -> tuple[str, ...]:
    """The names of all scenarios, baseline first."""
    names = {path.stem for path in data_path("scenarios").glob("*.yaml")} - _NOT_SCENARIOS
    return tuple(sorted(names, key=lambda name: (name != "baseline", name.startswith("mixed"), name)))


@cache
def _read(name: str) -> dict[str, Any]:
    import yaml

    value: dict[str, Any] = yaml.safe_load(data_path(f"scenarios/{name}.yaml").read_text(encoding="utf-8"))
    return value


@cache
def load_scenario(name: str) -> Scenario:
    """The scenario of that name. InputError lists the known ones."""
    if name not in scenario_names():
        raise InputError(f"no scenario {name!r}", hint=f"one of: {', '.join(scenario_names())}")
    value = _read(name)
    if "sequence" not in value:
        phases = tuple(Phase(phase, share, (name,) if phase == "fault" else ()) for phase, share in value["phases"])
        domains = {name: tuple(value["expected_domains"])}
        return Scenario(name, value["description"], phases, {name: value.get("effects", {})}, domains, value.get("profile", "rag"))
    shares = value["shares"]
    steps = [Phase("baseline", shares["start"], ())]
    for members in value["sequence"]:
        steps += [Phase("fault", shares["fault"], tuple(members)), Phase("recovery", shares["recovery"], ())]
    singles = {member: _read(member) for members in value["sequence"] for member in members}
    return Scenario(
        name,
        value["description"],
        tuple(steps),
        {member: single["effects"] for member, single in singles.items()},
        {member: tuple(single["expected_domains"]) for member, single in singles.items()},
        "rag",
    )


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
