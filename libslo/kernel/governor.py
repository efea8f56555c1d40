"""The overhead guard's decisions: which signal to stop measuring, and when to measure it again. Pure: readings in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Decision", "Governor"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to do, and why. cost_pct: what the signals cost when they were last measured."""

    action: Literal["shed", "restore"]
    signals: tuple[str, ...]
    overhead_pct: float
    ceiling_pct: float
    cost_pct: float


@dataclass(slots=True)
class _Shed:
    signals: tuple[str, ...]
    cost_pct: float


@dataclass(slots=True)
class Governor:
    """Sheds the dearest signals while the whole is above its ceiling, and restores them when there is room again.

    ceiling_pct: of the machine's CPU time. shed_after: readings in a row above the ceiling before one group is shed.
    restore_after: readings in a row that leave room for a shed group before it comes back; doubled each time that the same
    one has to be shed again, up to restore_most. room: share of the ceiling that a restore may fill.
    """

    ceiling_pct: float
    shed_after: int = 2
    restore_after: int = 6
    restore_most: int = 720
    room: float = 0.8
    _over: int = 0
    _under: int = 0
    _shed: list[_Shed] = field(default_factory=list)
    _times: dict[tuple[str, ...], int] = field(default_factory=dict)

    def decide(self, overhead_pct: float, cost_pct: Mapping[tuple[str, ...], float]) -> Decision | None:
        """What to do after a reading, at most one thing.

        overhead_pct: of everything. cost_pct: of each group of signals that comes and goes together and is being measured.
        A group that costs less than a hundredth of what is too much stays: without it nothing would be gained.
        """
        if overhead_pct > self.ceiling_pct:
            self._over, self._under = self._over + 1, 0
            candidates = [group for group in cost_pct if cost_pct[group] >= 0.01 * (overhead_pct - self.ceiling_pct)]
            if self._over < self.shed_after or not candidates:
                return None
            group = max(candidates, key=lambda group: (cost_pct[group], group))
            self._over = 0
            self._shed.append(_Shed(group, cost_pct[group]))
            self._times[group] = self._times.get(group, 0) + 1
            return Decision("shed", group, overhead_pct, self.ceiling_pct, cost_pct[group])
        self._over = 0
        if not self._shed or overhead_pct + self._shed[-1].cost_pct > self.room * self.ceiling_pct:
            self._under = 0
            return None
        self._under += 1
        last = self._shed[-1]
        if self._under < min(self.restore_most, self.restore_after << (self._times[last.signals] - 1)):
            return None
        self._under = 0
        self._shed.pop()
        return Decision("restore", last.signals, overhead_pct, self.ceiling_pct, last.cost_pct)

    def not_restored(self, decision: Decision) -> None:
        """A restore could not be done: the group is still away, and stays so twice as long before it is tried again."""
        self._shed.append(_Shed(decision.signals, decision.cost_pct))
        self._times[decision.signals] += 1
