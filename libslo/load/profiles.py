"""Loads by name: what is asked (request profiles) and when (arrivals), from ``scenarios/loads.yaml`` or a file like it.

Sizes in tokens, rates in requests a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from libslo.contracts import explain, schema_validator
from libslo.errors import InputError, os_reason
from libslo.resources import data_path

__all__ = ["ARRIVALS", "Arrival", "Load", "LoadTable", "Profile", "Tokens", "changed_arrival", "read_loads"]

ARRIVALS = ("constant", "poisson", "gamma", "ramp")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A distribution of a number of tokens. kind: constant, uniform or lognormal; median and sigma are of lognormal only."""

    kind: str
    least: int
    most: int
    median: float = 0.0
    sigma: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of request."""

    name: str
    prompt_tokens: Tokens
    output_tokens: Tokens


@dataclass(frozen=True, slots=True)
class Arrival:
    """When requests come. rate: a second; rate_to: at the end of a ramp; shape: of gamma. InputError for what is no rate."""

    kind: str
    rate: float
    rate_to: float | None = None
    shape: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("rate_to", self.rate_to), ("shape", self.shape)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} cannot be {value:g}", hint="a number above 0")
        if self.kind not in ARRIVALS:
            raise InputError(f"no arrival {self.kind!r}", hint=f"one of: {', '.join(ARRIVALS)}")
        if (self.kind == "ramp") != (self.rate_to is not None):
            raise InputError("a ramp, and only a ramp, has a rate_to", hint="--arrival ramp --rate 5 --rate-to 40")


@dataclass(frozen=True, slots=True)
class Load:
    """A load: its arrivals and the profiles it is mixed of, with their weights."""

    name: str
    arrival: Arrival
    mix: tuple[tuple[Profile, float], ...]


@dataclass(frozen=True, slots=True)
class LoadTable:
    """All loads of a file, and the columns of traces by what they hold."""

    loads: Mapping[str, Load]
    trace_columns: Mapping[str, tuple[str, ...]]

    def load(self, name: str) -> Load:
        """The load of that name; InputError lists the known ones."""
        if name not in self.loads:
            raise InputError(f"no load {name!r}", hint=f"one of: {', '.join(self.loads)}")
        return self.loads[name]


def changed_arrival(
    load: Load, *, kind: str | None = None, rate: float | None = None, rate_to: float | None = None, shape: float | None = None
) -> Load:
    """The load with the arrivals that were asked for instead of its own."""
    arrival = load.arrival
    kind = kind or ("ramp" if rate_to is not None else arrival.kind)
    ends_at = rate_to if rate_to is not None else arrival.rate_to
    return replace(
        load, arrival=Arrival(kind, rate or arrival.rate, ends_at if kind == "ramp" else rate_to, arrival.shape if shape is None else shape)
    )


def read_loads(path: str | None = None) -> LoadTable:
    """The loads of a file, or those that come with the toolkit. InputError with the place of what is wrong in it."""
    import orjson
    import yaml

    own = data_path("scenarios/loads.yaml")
    file = Path(path) if path else own
    try:
        value: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(os_reason(error), source=str(file), hint="check the path and its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", source=str(file)) from error
    hint = "contracts/config/v1alpha1/loads.schema.json says what a file of loads holds"
    schema = orjson.loads(data_path("contracts/config/v1alpha1/loads.schema.json").read_bytes())
    if not schema_validator(schema)(value):  # explaining takes longer to import than all the rest
        raise InputError(explain(value, schema) or "a number in it is NaN or infinite", source=str(file), hint=hint)
    profiles = {name: _profile(name, about, str(file)) for name, about in value["profiles"].items()}
    loads = {name: _load(name, about, profiles, str(file)) for name, about in value["loads"].items()}
    columns = value.get("trace_columns") or read_loads().trace_columns
    return LoadTable(loads, {what: tuple(names) for what, names in columns.items()})


def _load(name: str, about: Mapping[str, Any], profiles: Mapping[str, Profile], source: str) -> Load:
    if unknown := sorted(set(about["mix"]) - set(profiles)):
        raise InputError(f"loads.{name}.mix: no profile {unknown[0]!r}", source=source, hint=f"one of: {', '.join(profiles)}")
    try:
        arrival = Arrival(about["arrival"], about["rate"], about.get("rate_to"), about.get("shape", 1.0))
    except InputError as error:
        raise InputError(f"loads.{name}: {error.fact}", source=source, hint=error.hint) from error
    return Load(name, arrival, tuple((profiles[each], float(weight)) for each, weight in about["mix"].items()))


def _profile(name: str, about: Mapping[str, Any], source: str) -> Profile:
    return Profile(name, *(_tokens(about[key], f"profiles.{name}.{key}", source) for key in ("prompt_tokens", "output_tokens")))


def _tokens(about: Mapping[str, Any], place: str, source: str) -> Tokens:
    if "constant" in about:
        return Tokens("constant", about["constant"], about["constant"])
    least, most = about["uniform"] if "uniform" in about else about["within"]
    if least > most:
        raise InputError(f"{place}: from {least} to {most} there is nothing", source=source, hint="the lesser number first")
    if "uniform" in about:
        return Tokens("uniform", least, most)
    median, sigma = about["lognormal"]
    return Tokens("lognormal", least, most, median, sigma)
