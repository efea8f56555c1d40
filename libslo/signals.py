"""The signal catalogue and the service level indicators, read from ``contracts/vocabulary``.

Pure look-ups: the files are read once, on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from libslo.resources import data_path

__all__ = ["Objective", "Signal", "Sli", "signal", "signals", "sli", "slis", "vocabulary", "waits_for_peer"]

ProbeStatus = Literal["ok", "warning", "error"]
SliStatus = Literal["ok", "warning", "breach"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One kernel signal: thresholds are in `unit` and grade one event."""

    name: str
    unit: str
    kind: Literal["wait", "count", "level"]
    warning: float
    error: float
    min_latency_ms: float
    attribute: str
    work: Literal["network", "cpu", "memory", "disk"]
    hooks: tuple[str, ...]
    meaning: str

    def status(self, value: float) -> ProbeStatus:
        """Grade one value (in `unit`)."""
        return "error" if value >= self.error else "warning" if value >= self.warning else "ok"


@dataclass(frozen=True, slots=True)
class Objective:
    """A request is good when its value meets `threshold`; `ratio` of all requests must be good."""

    threshold: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Sli:
    """One service level indicator; `worse` says which direction hurts."""

    name: str
    unit: str
    worse: Literal["higher", "lower"]
    warning: float
    breach: float
    objective: Objective | None

    def status(self, value: float) -> SliStatus:
        """Grade one request's value (in `unit`)."""
        if self.worse == "higher":
            return "breach" if value >= self.breach else "warning" if value >= self.warning else "ok"
        return "breach" if value <= self.breach else "warning" if value <= self.warning else "ok"

    def meets(self, value: float, threshold: float) -> bool:
        """True when a request with this value is good."""
        return value <= threshold if self.worse == "higher" else value >= threshold


@cache
def vocabulary(name: str) -> dict[str, Any]:
    """A vocabulary file (``signals``, ``slis``, ``burn-windows``, ``span-attributes``) as parsed JSON."""
    import orjson

    table: dict[str, Any] = orjson.loads(data_path(f"contracts/vocabulary/{name}.json").read_bytes())
    return table


@cache
def signals() -> dict[str, Signal]:
    """All signals by name, in catalogue order."""
    rows = vocabulary("signals")["signals"]
    return {row["name"]: Signal(**{**row, "hooks": tuple(row["hooks"])}) for row in rows}


def signal(name: str) -> Signal:
    """The signal of that name; KeyError when there is none."""
    return signals()[name]


@cache
def slis() -> dict[str, Sli]:
    """All SLIs by name, in catalogue order."""
    rows = vocabulary("slis")["slis"]
    return {row["name"]: Sli(**{**row, "objective": Objective(**row["objective"]) if row["objective"] else None}) for row in rows}


def sli(name: str) -> Sli:
    """The SLI of that name; KeyError when there is none."""
    return slis()[name]


def waits_for_peer(event: Mapping[str, Any]) -> bool:
    """True of a probe-event about a read or write that waited for somebody else, or for the next request: no sign of a fault."""
    return (event.get("attributes") or {}).get("syscall.waits_for") == "peer"
