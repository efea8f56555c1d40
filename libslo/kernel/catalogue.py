"""The catalogue of probe variants: which ways there are to measure each signal, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libslo.errors import InputError
from libslo.signals import vocabulary

__all__ = ["MODES", "VARIANTS", "Variant", "known_signals", "ladder", "source", "variants"]

# How an agent may be told to choose; `auto` goes down the ladder by itself.
MODES = ("auto", "core_full", "no_btf", "bcc_degraded", "min_capability")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to measure, contracts/vocabulary/variants.json.

    source: "bpf" (an object that attaches), "polled" (counters that are read once a second: from a file, or by an object that
    is run for it) or "bcc". btf: needs the kernel's types. at_cgroup: attaches to the root cgroup2. capabilities: what it needs
    of an agent that is not root. formats: of classic tracepoints, where it can read each field.
    """

    name: str
    object_name: str
    signals: tuple[str, ...]
    source: str
    btf: bool
    at_cgroup: bool
    capabilities: tuple[str, ...]
    blind_spots: tuple[str, ...]
    formats: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def polled(self) -> bool:
        """True when nothing is attached in the kernel by us."""
        return self.source != "bpf"


def _load() -> tuple[Variant, ...]:
    rows = vocabulary("variants")["variants"]
    return tuple(
        Variant(row["name"], row["object"], tuple(row["signals"]), row["source"], row["btf"], row["cgroup"],
                tuple(row["capabilities"]), tuple(row["blind_spots"]),
                {tracepoint: {name: tuple(offsets) for name, offsets in fields.items()}
                 for tracepoint, fields in row.get("formats", {}).items()})
        for row in rows
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = _load()


def known_signals() -> list[str]:
    """Signals that have at least one variant, in catalogue order."""
    return list(dict.fromkeys(name for variant in VARIANTS for name in variant.signals))


def variants(signal: str) -> list[Variant]:
    """All ways to measure a signal, best first. Raises InputError for one without any."""
    found = [variant for variant in VARIANTS if signal in variant.signals]
    if not found:
        raise InputError(f"unknown signal {signal!r}", source="--signals", hint=f"one of {', '.join(known_signals())}")
    return found


def source(signal: str, variant: str) -> str:
    """Where a variant of a signal comes from: "bpf", "polled" or "bcc"; "" when there is none of that name."""
    return {each.name: each.source for each in variants(signal)}.get(variant, "")


def ladder(signal: str, *, mode: str = "auto", forced: str = "") -> list[Variant]:
    """The variants that may be tried for a signal, in order; [] when the mode has none.

    mode: of MODES. core_full takes the first variant only; no_btf those that need no types; bcc_degraded those of BCC;
    min_capability those that load nothing. forced: the name of the one variant to try, whatever the mode.
    """
    found = variants(signal)
    if forced:
        chosen = [variant for variant in found if variant.name == forced]
        if not chosen:
            raise InputError(f"{signal} has no variant {forced!r}", source="--variant",
                             hint=f"one of {', '.join(variant.name for variant in found)}")  # fmt: skip
        return chosen
    if mode == "core_full":
        return found[:1]
    if mode == "no_btf":
        return [variant for variant in found if not variant.btf and variant.source != "bcc"]
    if mode == "bcc_degraded":
        return [variant for variant in found if variant.source == "bcc"]
    if mode == "min_capability":
        return [variant for variant in found if variant.source == "polled" and not variant.object_name]
    return found
