"""Episodes: how long a service burns its error budget too fast, and when that is over.

An episode is over when its requests say so, not when a moment was quiet: where three requests in ten fail there is a quiet
second every minute. Two kinds of evidence close it, both ratios of how likely the requests are at the rate that the objective
allows and at the rate of the episode: good requests in a row (the episode's rate known only as well as its requests tell, Beta
prior), or, where a healthy service has failures too, a cumulative sum over all requests (E. S. Page, Biometrika 41 (1954);
while the fault goes on it reaches log N once in N requests or less often, G. Lorden, Ann. Math. Statist. 42 (1971)). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from libslo.slo import BurnPolicy, BurnState, ClosingRule

__all__ = ["EpisodeFacts", "Recovery", "RequestTally", "episode_record"]

_MOST_BURN = 1e9  # JSON has no infinity
_LEAST_GOOD_SHARE = 0.05  # where everything failed so far the next good request is still no proof


class RequestTally:
    """Requests of one service by bucket of their end: how many, and how many of them missed any objective.

    The indicators of one request come one after another and count as one request.
    """

    def __init__(self, bucket_ns: int, keep_ns: int) -> None:
        self._bucket_ns = bucket_ns
        self._most = 2 * (keep_ns // bucket_ns + 1)
        self._counts: dict[int, list[int]] = {}
        self._last: tuple[str, int, bool] = ("", -1, True)  # id, bucket, good

    def add(self, ts_unix_ns: int, request_id: str, good: bool) -> None:
        """Count one indicator of a request."""
        bucket = ts_unix_ns // self._bucket_ns
        if bucket not in self._counts and len(self._counts) >= self._most:
            for old in sorted(self._counts)[: self._most // 2]:
                del self._counts[old]
        counts = self._counts.setdefault(bucket, [0, 0])
        if self._last[:2] == (request_id, bucket):
            if not good and self._last[2]:
                counts[1] += 1
                self._last = (request_id, bucket, False)
            return
        counts[0] += 1
        counts[1] += not good
        self._last = (request_id, bucket, good)

    def between(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int, int]]:
        """(end of the bucket in ns, requests, bad requests) of the buckets that hold `begin_ns` to the one that ends at `end_ns`."""
        first, last = begin_ns // self._bucket_ns, end_ns // self._bucket_ns
        for bucket in sorted(bucket for bucket in self._counts if first <= bucket < last):
            valid, bad = self._counts[bucket]
            yield (bucket + 1) * self._bucket_ns, valid, bad

    def at(self, end_ns: int) -> tuple[int, int]:
        """Requests and bad requests of the bucket that ends at `end_ns`."""
        valid, bad = self._counts.get(end_ns // self._bucket_ns - 1, (0, 0))
        return valid, bad


class Recovery:
    """Watches the requests of an open episode for its end.

    rule: when an episode closes, see vocabulary/burn-windows.json. budget: the share of bad requests that the objective allows.
    """

    def __init__(self, rule: ClosingRule, budget: float) -> None:
        self._rule = rule
        self._budget = budget
        self._hold_ns = int(rule.hold_s * 1e9)
        self._needed = -math.log(rule.doubt_with_failures)
        self._evidence = 0.0  # cumulative sum, failures included; at most what is needed, so that a relapse counts
        self._seen = [0, 0]
        self._known = (0, 0)  # requests and bad requests until the last bad one: what the episode's share is estimated from
        self._clean = 0  # good requests since then
        self._last_bad_ns = 0
        self._over = False
        self._heard_ns = 0
        self.bad_share = (0, 0)  # requests and bad requests until `since_ns`
        self.since_ns = 0  # end of the last bucket that speaks for the episode: its end, once it is closed

    @property
    def seen(self) -> tuple[int, int]:
        """All requests and bad requests since the episode began."""
        return self._seen[0], self._seen[1]

    @property
    def silent_at_ns(self) -> int:
        """When the episode closes should no further request come."""
        return self._heard_ns + int(self._rule.silent_s * 1e9)

    def lasts_until(self, now_ns: int, *, silence: bool) -> int:
        """Until when the episode has lasted by its requests; silence: until now, when none has come since the last that was of it."""
        return now_ns if silence and self._heard_ns <= self.since_ns else self.since_ns

    def feed(self, end_ns: int, requests: int, bad: int) -> None:
        """Take the requests of one bucket, which ends at `end_ns`."""
        if not requests:
            return
        self._seen[0] += requests
        self._seen[1] += bad
        self._heard_ns = end_ns
        share, healthy = self._shares()
        evidence = self._evidence + (requests - bad) * math.log((1 - healthy) / (1 - share)) - bad * math.log(share / healthy)
        self._evidence = min(evidence, self._needed)
        if bad:
            self._known, self._clean, self._last_bad_ns = self.seen, 0, end_ns
            if evidence <= 0:
                self._renew(end_ns)
        else:
            self._clean += requests

    def begin(self, now_ns: int) -> None:
        """What was fed so far is the episode; what comes from now on may be its end."""
        self._known, self._clean, self._heard_ns, self._last_bad_ns = self.seen, 0, now_ns, now_ns
        self._renew(now_ns)

    def burns(self, over: bool) -> None:
        """Say whether a pair burns at or above its rate now."""
        self._over = over

    def is_over(self, now_ns: int) -> bool:
        """Whether the requests say that the fault is over, and have said so for long enough."""
        if self._over:
            return False
        if now_ns - self._last_bad_ns >= self._hold_ns and self._clean_evidence() >= -math.log(self._rule.doubt):
            return True
        return now_ns - self.since_ns >= self._hold_ns and self._evidence >= self._needed

    def _shares(self) -> tuple[float, float]:
        """The share of bad requests of the episode (Laplace's rule: of few requests little is concluded), and one that is healthy."""
        requests, bad = self._known
        share = min((bad + 1) / (requests + 2), 1 - _LEAST_GOOD_SHARE)
        return share, min(max(self._budget, 1e-3), share / 2)

    def _clean_evidence(self) -> float:
        """How much likelier so many good requests in a row are when healthy than at the episode's share, as far as that is known."""
        requests, bad = self._known
        good, n = requests - bad + 1, self._clean
        goes_on = math.lgamma(good + n) - math.lgamma(good) - math.lgamma(requests + 2 + n) + math.lgamma(requests + 2)
        return n * math.log(1 - self._shares()[1]) - goes_on

    def _renew(self, now_ns: int) -> None:
        self._evidence = 0.0
        self.since_ns = now_ns
        self.bad_share = self.seen


@dataclass
class EpisodeFacts:
    """What is known of an episode: opened by `opening` of the SLI, which burnt hottest at `peak`. Times in ns since the epoch."""

    incident_id: str
    service: str
    cluster: str
    namespace: str
    sli: str
    onset_ns: int
    opening: BurnState
    peak: BurnState
    recovery: Recovery


def episode_record(facts: EpisodeFacts, policy: BurnPolicy, closed_ns: int | None = None, by: str = "") -> dict[str, Any]:
    """An incident-episode object. closed_ns: when it was found to be over; by: what closed it ("" with closed_ns None: it opens).

    "end_of_input" is no end of the episode: it is still open, and only what was read has ended.
    """
    opening, recovery = facts.opening, facts.recovery
    state = "open" if closed_ns is None else "open_at_end" if by == "end_of_input" else "closed"
    requests, bad = recovery.bad_share if state == "closed" else recovery.seen
    value: dict[str, Any] = {
        "incident_id": facts.incident_id,
        "state": state,
        "cluster": facts.cluster,
        "service": facts.service,
        "sli": facts.sli,
        "begin_unix_nano": facts.onset_ns,
        "detected_unix_nano": opening.ts_unix_ns,
        "detection_delay_ms": round((opening.ts_unix_ns - facts.onset_ns) / 1e6, 3),
        "policy": policy.name,
        "pair": {
            "severity": opening.pair.severity,
            "long_s": opening.pair.long_s,
            "short_s": opening.pair.short_s,
            "burn_rate": opening.pair.burn_rate,
        },
        "burn_at_opening": _burn(opening),
        "burn_at_peak": _burn(facts.peak),
        "requests": requests,
        "bad_requests": bad,
    }
    if facts.namespace:
        value["namespace"] = facts.namespace
    if state == "closed":
        value |= {"end_unix_nano": recovery.since_ns, "closed_unix_nano": closed_ns, "closed_by": by}
    return value


def _burn(state: BurnState) -> dict[str, Any]:
    long_burn, short_burn = (round(min(burn, _MOST_BURN), 3) for burn in (state.long_burn, state.short_burn))
    return {"ts_unix_nano": state.ts_unix_ns, "long": long_burn, "short": short_burn}
