"""Service level indicators and burn rates.

SLI = good / valid; burn rate = bad ratio / (1 - objective). Pure: no clock, no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from libslo.errors import InputError
from libslo.signals import Objective, sli, slis, vocabulary
from libslo.spans import KIND_SERVER, Span, finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BurnPair",
    "BurnPolicy",
    "BurnState",
    "BurnTracker",
    "ClosingRule",
    "burn_policy",
    "burn_rate",
    "format_timestamp",
    "parse_objective",
    "parse_timestamps",
    "slo_events",
    "slo_events_from_samples",
    "slo_events_from_span",
]

# The first and last second whose nanoseconds fit into 64 bits.
_FIRST_S, _LAST_S = -9_223_372_036, 9_223_372_035
_BEGINNING = -(1 << 63)

_CORE = ("ttft_ms", "request_latency_ms", "token_throughput_tps", "error_rate")
_OPTIONAL = ("retrieval_latency_ms", "provider_error_rate")


def burn_rate(bad: float, valid: float, objective: float) -> float:
    """How many times faster than allowed the error budget burns.

    No traffic burns nothing (0). At an objective of 1 there is no budget: any bad event burns infinitely fast.
    """
    if valid <= 0:
        return 0.0
    budget = 1.0 - objective
    if budget <= 0:
        return math.inf if bad > 0 else 0.0
    return (bad / valid) / budget


# --- timestamps ---------------------------------------------------------------------------------------------------


def parse_timestamps(texts: Sequence[str]) -> NDArray[np.int64]:
    """RFC 3339 texts as nanoseconds since the epoch, shape (n,). InputError for one that is none.

    A leap second counts as the second before it; a time that 64 bits cannot hold (before 1677, after 2262) as the nearest they can.
    """
    import numpy as np

    try:
        if all(
            19 < len(text) <= 30 and text[10] == "T" and text[-1] == "Z" and "1678" <= text[:4] <= "2261" and text[17:19] != "60"
            for text in texts
        ):
            return np.array([text[:-1] for text in texts], "datetime64[ns]").astype(np.int64)
        return np.array([_parse_one(text) for text in texts], np.int64)
    except (ValueError, IndexError) as error:
        raise InputError(f"not an RFC 3339 time: {error}") from error


def _parse_one(text: str) -> int:
    import numpy as np

    text = text.upper()
    shift_s = 0
    if text[-1:] == "Z":
        head = text[:-1]
    else:
        sign, head, (hours, minutes) = text[-6], text[:-6], text[-5:].split(":")
        if sign not in "+-":
            raise ValueError(f"{text!r} has no offset")
        shift_s = (int(hours) * 3600 + int(minutes) * 60) * (1 if sign == "+" else -1)
    if len(head) < 19:
        raise ValueError(f"{text!r} is too short")
    if head[17:19] == "60":
        head = head[:17] + "59" + head[19:]
    whole_s = int(np.datetime64(head[:19], "s").astype(np.int64)) - shift_s
    if not _FIRST_S <= whole_s <= _LAST_S:
        return min(max(whole_s, _FIRST_S), _LAST_S) * 1_000_000_000
    fraction = head[20:29].ljust(9, "0") if head[19:20] == "." else "0"
    return whole_s * 1_000_000_000 + int(fraction)


def format_timestamp(ts_unix_ns: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(ts_unix_ns // 1000 / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- SLIs ---------------------------------------------------------------------------------------------------------


def slo_events_from_span(span: Span, cluster: str) -> Iterator[dict[str, Any]]:
    """The slo-event objects that one finished span gives.

    A server span is a request (latency, errors; TTFT and throughput where it says them); the span around retrieval and
    the client span around the provider's generation give the other two. The time of an event is the span's end: the
    moment its outcome was known.
    """
    values: dict[str, float] = {}
    labels: dict[str, str] = {}
    if span.kind == KIND_SERVER:
        ttft, tokens = span.number("ttft_ms"), span.number("output_tokens")
        rate = span.number("token_throughput_tps")
        if rate is None and ttft is not None and tokens and span.duration_ms > ttft:
            rate = finite(tokens / (span.duration_ms - ttft) * 1e3)
        if ttft is not None:
            values["ttft_ms"] = ttft
        values["request_latency_ms"] = span.duration_ms
        if rate is not None:
            values["token_throughput_tps"] = rate
        values["error_rate"] = float(span.is_error)
    elif span.is_retrieval:
        values["retrieval_latency_ms"] = span.duration_ms
    elif span.is_generation:
        values["provider_error_rate"] = float(span.is_error)
    else:
        return
    for key, role in (("http.response.status_code", "status_code"), ("error.type", "error_type")):
        if (value := span.read(role)) is not None:
            labels[key] = str(value)
    service = span.service or "unknown"
    shared = {
        "timestamp": format_timestamp(span.end_unix_ns),
        "cluster": cluster,
        "namespace": span.namespace or "default",
        "workload": span.workload or service,
        "service": service,
        "request_id": str(span.read("request_id") or span.trace_id),
    }
    yield from slo_events(span.span_id, values, shared, {"trace_id": span.trace_id, "labels": labels})


def slo_events(key: str, values: Mapping[str, float], shared: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One slo-event object for each SLI of one request. key: what the event ids begin with; shared and more: what they have in common."""
    for name, value in values.items():
        indicator = sli(name)
        yield {
            "event_id": f"{key}/{name}",
            **shared,
            "sli_name": name,
            "sli_value": value,
            "unit": indicator.unit,
            "status": indicator.status(value),
            **more,
        }


class _Splice:
    """The bytes of an slo-event that depend on the SLI and its status only, and the values at which the status changes."""

    def __init__(self, name: str) -> None:
        indicator = sli(name)
        self.name = name
        self.head = b'/%b","sli_name":"%b","sli_value":' % (name.encode(), name.encode())
        self.ok, self.warning, self.breach = (
            b',"unit":"%b","status":"%b",' % (indicator.unit.encode(), s) for s in (b"ok", b"warning", b"breach")
        )
        self.warn_at, self.breach_at = indicator.warning, indicator.breach

    @property
    def constants(self) -> tuple[bytes, bytes, bytes, bytes, float, float]:
        """All of it, to be unpacked into local names."""
        return self.head, self.ok, self.warning, self.breach, self.warn_at, self.breach_at


def slo_events_from_samples(samples: Sequence[dict[str, Any]]) -> tuple[bytes, int]:
    """The slo-event lines of raw-samples, as (block of JSON lines, number of lines).

    What the events of one sample share is encoded once and spliced, because this is the hottest path of the collector;
    a test builds the same events as objects and compares. fault_label goes into labels, for evaluation only.
    """
    import orjson

    dumps = orjson.dumps
    (h1, o1, w1, b1, at1, end1), (h2, o2, w2, b2, at2, end2), (h3, o3, w3, b3, at3, end3), (h4, o4, w4, b4, at4, end4) = (
        _Splice(name).constants for name in _CORE
    )
    optional = [(*_Splice(name).constants, name) for name in _OPTIONAL]
    pieces: list[bytes] = []
    add = pieces.extend
    lines = 4 * len(samples)
    for s in samples:
        v1, v2, v3, v4 = s["ttft_ms"], s["request_latency_ms"], s["token_throughput_tps"], s["error_rate"]
        shared = {
            "timestamp": s["timestamp"],
            "cluster": s["cluster"],
            "namespace": s["namespace"],
            "workload": s["workload"],
            "service": s["service"],
        }
        if "trace_id" in s:
            shared["trace_id"] = s["trace_id"]
        if "fault_label" in s:
            shared["labels"] = {**s["labels"], "fault_label": s["fault_label"]} if "labels" in s else {"fault_label": s["fault_label"]}
        elif "labels" in s:
            shared["labels"] = s["labels"]
        shared["request_id"] = s["request_id"]  # last, so that its encoded form can be cut out for the event ids
        common, n1, n2, n3, n4 = dumps((shared, v1, v2, v3, v4)).rsplit(b",", 4)
        head = b'{"event_id":' + common[common.rindex(b'"request_id":') + 13 : -2]
        common = common[2:] + b"\n"
        add(
            (
                *(head, h1, n1, o1 if v1 < at1 else w1 if v1 < end1 else b1, common),
                *(head, h2, n2, o2 if v2 < at2 else w2 if v2 < end2 else b2, common),
                *(head, h3, n3, o3 if v3 > at3 else w3 if v3 > end3 else b3, common),  # throughput: lower is worse
                *(head, h4, n4[:-1], o4 if v4 < at4 else w4 if v4 < end4 else b4, common),
            )
        )
        for h, o, w, b, at, end, name in optional:
            if name in s:
                value = s[name]
                add((head, h, dumps(value), o if value < at else w if value < end else b, common))
                lines += 1
    return b"".join(pieces), lines


# --- burn rates over windows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BurnPair:
    """A long and a short window (seconds) that must both burn at or above `burn_rate`."""

    severity: str
    long_s: float
    short_s: float
    burn_rate: float


@dataclass(frozen=True, slots=True)
class ClosingRule:
    """When an episode is over: for hold_s nothing burned, and either no request was bad, and that would be a chance of `doubt` while
    the fault goes on, or some were, and it would be one of `doubt_with_failures`; or no request came for silent_s.
    """

    hold_s: float
    doubt: float
    doubt_with_failures: float
    silent_s: float


@dataclass(frozen=True, slots=True)
class BurnPolicy:
    """Pairs joined by OR, how many events the long window needs before there is a verdict, how late events may come.

    stream_lateness_ms: how far the rest of the stream runs on before a service is taken to have sent nothing.
    """

    name: str
    pairs: tuple[BurnPair, ...]
    min_events: int
    lateness_ms: float
    stream_lateness_ms: float
    closing: ClosingRule

    @property
    def bucket_ns(self) -> int:
        """A fifth of the shortest window."""
        return max(int(min(pair.short_s for pair in self.pairs) / 5 * 1e9), 1)

    @property
    def longest_ns(self) -> int:
        """The longest window."""
        return int(max(pair.long_s for pair in self.pairs) * 1e9)


def burn_policy(name: str) -> BurnPolicy:
    """A policy of vocabulary/burn-windows.json. InputError for an unknown name."""
    policies = vocabulary("burn-windows")["policies"]
    if name not in policies:
        raise InputError(f"no burn policy {name!r}", hint=f"one of: {', '.join(policies)}")
    row = policies[name]
    rule = row["closing"]
    return BurnPolicy(
        name,
        tuple(BurnPair(**pair) for pair in row["pairs"]),
        row["min_events"],
        row["lateness_ms"],
        row["stream_lateness_ms"],
        ClosingRule(rule["hold_s"], rule["doubt"], rule["doubt_with_failures"], rule["silent_s"]),
    )


def parse_objective(text: str) -> tuple[str, Objective]:
    """``ttft_ms=800@0.95``: 95 % of the requests at 800 ms or better. InputError with the right form when it is not that."""
    hint = "SLI=THRESHOLD@RATIO, for example ttft_ms=800@0.95"
    name, _, rest = text.partition("=")
    threshold, _, ratio = rest.partition("@")
    if name not in slis():
        raise InputError(f"no SLI {name!r}: one of {', '.join(slis())}", hint=hint)
    try:
        objective = Objective(float(threshold), float(ratio))
    except ValueError as error:
        raise InputError(f"not an objective: {text!r}", hint=hint) from error
    if not (0 < objective.ratio <= 1 and math.isfinite(objective.threshold)):
        raise InputError(f"not an objective: {text!r} (the ratio is above 0 and at most 1)", hint=hint)
    return name, objective


@dataclass(frozen=True, slots=True)
class BurnState:
    """What one evaluation saw: the time (bucket end, ns), whether any pair is over, the pair that burns hottest, its burn rates."""

    ts_unix_ns: int
    over: bool
    pair: BurnPair
    long_burn: float
    short_burn: float


class BurnTracker:
    """Good and bad requests of one service and SLI in buckets of time; evaluates every bucket once it is closed.

    Buckets last a fifth of the shortest window. Memory is bounded by the longest window; sums are carried on, so that
    closing a bucket costs the same whatever the windows are.
    """

    def __init__(self, policy: BurnPolicy, objective: Objective) -> None:
        self.policy = policy
        self.objective = objective
        self.bucket_ns = policy.bucket_ns
        self._windows = [
            (pair, [round(seconds * 1e9 / self.bucket_ns) for seconds in (pair.long_s, pair.short_s)]) for pair in policy.pairs
        ]
        self._span = max(long for _, (long, _) in self._windows)
        self._sums = [[[0, 0], [0, 0]] for _ in self._windows]  # per pair: (long, short), each (valid, bad)
        self._counts: dict[int, tuple[int, int]] = {}  # bucket -> (valid, bad)
        self._next: int | None = None  # first bucket that is not closed yet
        self._from = _BEGINNING  # first bucket that the long windows may hold
        self.late = 0

    def add(self, ts_unix_ns: int, good: bool) -> bool:
        """Count one request. One whose bucket is closed already is counted in `late` and not used: False."""
        bucket = ts_unix_ns // self.bucket_ns
        if self._next is None:
            self._next = bucket
        if bucket < self._next:
            self.late += 1
            return False
        valid, bad = self._counts.get(bucket, (0, 0))
        self._counts[bucket] = (valid + 1, bad + (not good))
        return True

    def evaluate(self, watermark_unix_ns: int) -> list[BurnState]:
        """One state for every bucket that the watermark has closed since the last call and that holds or loses events."""
        states: list[BurnState] = []
        while self.due_ns(watermark_unix_ns) is not None:
            states.append(self.close_next())
        return states

    def due_ns(self, watermark_unix_ns: int) -> int | None:
        """The end of the next bucket to close; None while the watermark closes none that holds or loses events."""
        stop = watermark_unix_ns // self.bucket_ns  # buckets before this one are closed
        if self._next is None or self._next >= stop:
            return None
        if not any(total[0] for sums in self._sums for total in sums):
            # Emptiness need not be walked through.
            self._next = min((bucket for bucket in self._counts if bucket >= (self._next or 0)), default=stop)
            if self._next >= stop:
                self._next = stop
                return None
        return (self._next + 1) * self.bucket_ns

    def close_next(self) -> BurnState:
        """Close the bucket that `due_ns` spoke of."""
        bucket = self._next or 0
        state = self._close(bucket)
        self._next = bucket + 1
        return state

    @property
    def is_idle(self) -> bool:
        """Whether no window holds anything, and no bucket that is still open does."""
        return not any(total[0] for sums in self._sums for total in sums) and not any(b >= (self._next or 0) for b in self._counts)

    def restart(self, ts_unix_ns: int) -> None:
        """Let the long windows begin at the bucket of this time: what came before belongs to an episode that is over.

        The short ones hold what they held. Without this, a single bad request would open the next episode for as long as a long
        window still burns.
        """
        self._from, stop = ts_unix_ns // self.bucket_ns, self._next or 0
        for (_, (long, _)), sums in zip(self._windows, self._sums, strict=True):
            held = [counts for bucket, counts in self._counts.items() if max(self._from, stop - long) <= bucket < stop]
            sums[0][:] = [sum(valid for valid, _ in held), sum(bad for _, bad in held)]

    def _close(self, bucket: int) -> BurnState:
        counts, nothing = self._counts, (0, 0)
        valid, bad = counts.get(bucket, nothing)
        rows = []
        for (pair, lengths), sums in zip(self._windows, self._sums, strict=True):
            burns = []
            for length, total, first in zip(lengths, sums, (self._from, _BEGINNING), strict=True):
                old_valid, old_bad = counts.get(bucket - length, nothing) if bucket - length >= first else nothing
                total[0] += valid - old_valid
                total[1] += bad - old_bad
                burns.append(burn_rate(total[1], total[0], self.objective.ratio))
            over = sums[0][0] >= self.policy.min_events and min(burns) >= pair.burn_rate
            rows.append(BurnState((bucket + 1) * self.bucket_ns, over, pair, burns[0], burns[1]))
        counts.pop(bucket - self._span, None)
        return max(rows, key=lambda row: (row.over, row.long_burn / row.pair.burn_rate))
