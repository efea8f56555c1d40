"""What a gate answers: pass, fail, or inconclusive when what was measured cannot tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Answer", "Check", "worst"]

Answer = Literal["pass", "fail", "inconclusive"]
_BY_WEIGHT: tuple[Answer, ...] = ("pass", "inconclusive", "fail")


@dataclass(frozen=True, slots=True)
class Check:
    """One question of a gate, answered. scenario: "" when it is about more than one.

    figures: what was measured and what it was held against; None for what could not be measured.
    """

    gate: str
    scenario: str
    subject: str
    answer: Answer
    reason: str
    figures: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it stands in a summary: figures to six digits, which is more than any of them is known to."""
        figures = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in self.figures.items()}
        return {
            "gate": self.gate, "scenario": self.scenario, "subject": self.subject,
            "answer": self.answer, "reason": self.reason, "figures": figures,
        }  # fmt: skip


def worst(answers: Iterable[Answer]) -> Answer:
    """fail before inconclusive before pass; where nothing was asked nothing passed: inconclusive."""
    found = list(answers)
    return max(found, key=_BY_WEIGHT.index) if found else "inconclusive"
