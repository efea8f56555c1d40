"""How far event time has come, by what the records say: nothing here reads a clock. Pure."""

from __future__ import annotations

__all__ = ["EventClock", "StreamClock"]


class EventClock:
    """The latest event time of a stream, robust against a clock that went wrong.

    A jump ahead by over two seconds is believed once three times in a row agree on it, so that one record from the
    future moves nothing. `see` returns True when time has stepped back: three times in a row are older than the latest
    by over ten minutes. The caller then starts anew. The same time again is not another one: a request has several indicators.
    """

    _AHEAD_NS = 2_000_000_000
    _BACK_NS = 600_000_000_000
    _AGREE = 3

    def __init__(self) -> None:
        self.latest_ns: int | None = None
        self._ahead: list[int] = []
        self._older: set[int] = set()

    def see(self, ts_unix_ns: int) -> bool:
        """Note one event time."""
        if self.latest_ns is None:
            self.latest_ns = ts_unix_ns
        elif ts_unix_ns > self.latest_ns + self._AHEAD_NS:
            self._older.clear()
            if ts_unix_ns not in self._ahead:
                self._ahead.append(ts_unix_ns)
            if len(self._ahead) >= self._AGREE:
                self._ahead.sort()
                self.latest_ns = self._ahead.pop(0)
        elif ts_unix_ns >= self.latest_ns - self._BACK_NS:
            self.latest_ns = max(self.latest_ns, ts_unix_ns)
            self._ahead.clear()
            self._older.clear()
        else:
            self._older.add(ts_unix_ns)
            if len(self._older) >= self._AGREE:
                self.latest_ns = ts_unix_ns
                self._older.clear()
                self._ahead.clear()
                return True
        return False

    @property
    def furthest_ns(self) -> int:
        """The latest time that any record claimed, believed or not; 0 before the first."""
        return max([self.latest_ns or 0, *self._ahead])


class StreamClock:
    """How far the event time of a whole stream has come, whatever the clocks of its sources say.

    Only progress counts, and of a jump ahead that three records agree on no more than `longest_step_ns`: a node whose clock is
    wrong, or a gap in a recording, makes no service look silent.
    """

    longest_step_ns = 2_000_000_000

    def __init__(self) -> None:
        self._clock = EventClock()
        self.progress_ns = 0

    @property
    def latest_ns(self) -> int | None:
        """The latest event time, as an EventClock sees it."""
        return self._clock.latest_ns

    def see(self, ts_unix_ns: int) -> None:
        """Note the event time of any record."""
        before = self._clock.latest_ns
        self._clock.see(ts_unix_ns)
        latest = self._clock.latest_ns
        if before is not None and latest is not None and latest > before:
            self.progress_ns += min(latest - before, self.longest_step_ns)
