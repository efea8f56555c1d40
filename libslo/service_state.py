"""A service as the incident engine watches it: its requests, what is open, and the time in which it was well.

Pure: no clock, no files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from libslo.answers import Incident
from libslo.clock import EventClock
from libslo.episodes import EpisodeFacts, RequestTally
from libslo.evidence import ServiceSeries
from libslo.slo import BurnTracker

__all__ = ["MOST_REQUESTS", "Episode", "Request", "Service", "burning_run"]

MOST_REQUESTS = 5000  # of one SLI, in which an onset is looked for
# An onset is an estimate, and rather late than early: what is slow at first harms nobody. So much before it is no baseline either:
_MARGIN_NS = (500_000_000, 5_000_000_000)  # at least, at most, and in between
_MARGIN_SHARE = 4  # one in so many of what there is


@dataclass
class Request:
    """One indicator of a request: its end and its beginning (ns since the epoch), and whether it met the objective."""

    ts: int
    began: int
    good: bool
    request_id: str
    trace_id: str


@dataclass
class Episode:
    """An episode that is open: what is known of it, the bad requests that made it known, and what was said of it last.

    judged_ns: when it was last asked what it is; said_until_ns: the end of the evidence that was said.
    """

    facts: EpisodeFacts
    bad: list[Request]
    said: Incident | None = None
    judged_ns: int = 0
    said_until_ns: int = 0

    @property
    def examples(self) -> list[tuple[str, str]]:
        """Request and trace ids of the bad requests."""
        return [(request.request_id, request.trace_id) for request in self.bad]


@dataclass
class Service:
    """All that is held of one service."""

    series: ServiceSeries
    tally: RequestTally
    clock: EventClock = field(default_factory=EventClock)
    cluster: str = ""
    namespace: str = ""
    trackers: dict[str, BurnTracker] = field(default_factory=dict)
    requests: dict[str, deque[Request]] = field(default_factory=dict)
    request: tuple[str, int] = ("", 0)  # id and start of the request whose latency came last
    episode: Episode | None = None
    past: list[tuple[int, int]] = field(default_factory=list)  # episodes that are over, onset to closing: no baseline
    ended_ns: int = 0  # the end of the last episode

    @property
    def is_empty(self) -> bool:
        """Whether nothing is open and no window holds anything."""
        return self.episode is None and all(tracker.is_idle for tracker in self.trackers.values())

    def healthy_before(self, onset_ns: int) -> list[tuple[int, int]]:
        """The time before the onset, without earlier episodes, and without the moment in which the onset may have been missed."""
        begin = (self.series.first_ns or onset_ns) - 1
        end = onset_ns - min(max((onset_ns - begin) // _MARGIN_SHARE, _MARGIN_NS[0]), _MARGIN_NS[1])
        intervals = []
        for past_begin, past_end in self.past:
            if past_end > begin and past_begin < end:
                if past_begin > begin:
                    intervals.append((begin, past_begin))
                begin = max(begin, past_end)
        if begin < end:
            intervals.append((begin, end))
        return intervals


def burning_run(window: Sequence[Request], budget: float, burn: float) -> Sequence[Request]:
    """The requests of the run that drove the burn; the trouble began when the first bad one of them began.

    The run is found as a cumulative sum of (bad - rate that would just alert): it begins where the sum is lowest.
    """
    expected = min(budget * burn, 0.5)
    total, lowest, first = 0.0, 0.0, 0
    for i, request in enumerate(window):
        total += (not request.good) - expected
        if total < lowest:
            lowest, first = total, i + 1
    return window[first:]
