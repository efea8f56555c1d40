"""How often the rings are read: a turn of the loop costs more than the few events of a usual service do."""

from __future__ import annotations

__all__ = ["Pace"]

_PACE_S = 0.02
_BUSY_PACE_S = 0.005
_BUSY_EVENTS = 500


class Pace:
    """From one drain with news to the next 20 ms, so that there are at most 50 a second; 5 ms where many events fill a ring.

    After a quiet time there is nothing to wait for: a process may end right after its first event, and could not be named then.
    """

    def __init__(self) -> None:
        self._again_s = 0.0

    def drained(self, events: int, now_s: float) -> None:
        """Take note of a drain. now_s: CLOCK_MONOTONIC."""
        if events:
            self._again_s = now_s + (_BUSY_PACE_S if events >= _BUSY_EVENTS else _PACE_S)

    def rest_s(self, now_s: float) -> float:
        """How long not to look yet. now_s: CLOCK_MONOTONIC."""
        return max(0.0, self._again_s - now_s)
