"""Count probe events: by signal and status, and their waits by owner, in bounded memory.

Pure. Fed from the capture loop at up to 50,000 events a second, so that the work per event is done in C: key by
`itemgetter` and a dictionary, bucket by numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.export.agent_state import HistogramSeries, rebucket
from libslo.signals import signals, vocabulary

__all__ = ["DEFAULT_MAX_SERIES", "LABELS", "OTHER", "EventCounter", "EventCounts", "SeriesBook", "bucket_bounds_ms", "latency_signals"]

DEFAULT_MAX_SERIES = 200
LABELS: tuple[str, ...] = ("namespace", "pod", "container", "service")
OTHER = "other"
_FIELDS = itemgetter("signal", "status", "namespace", "pod", "container")
_VALUE = itemgetter("value")
_FIRST_ROWS = 64
_MOST_KEYS = 16_384

Owner = tuple[str, ...]  # the values of LABELS


@cache
def bucket_bounds_ms() -> tuple[float, ...]:
    """Upper bounds of all latency histograms, in ms, ascending (contracts/vocabulary/metrics.json)."""
    return tuple(vocabulary("metrics")["bucket_bounds_ms"])


@cache
def latency_signals() -> tuple[str, ...]:
    """Signals whose values are times, and so have a histogram."""
    return tuple(name for name, about in signals().items() if about.unit == "ms")


class SeriesBook:
    """Who may have a series of his own: the first `limit` owners of each signal; the rest share one called "other".

    An owner that has a series keeps it: a counter that moved into "other" would make both go wrong.
    """

    def __init__(self, limit: int = DEFAULT_MAX_SERIES) -> None:
        self._limit = limit
        self._owners: dict[str, set[Owner]] = {}

    def owner(self, signal: str, wanted: Owner) -> Owner:
        """The labels under which to count."""
        known = self._owners.setdefault(signal, set())
        if wanted in known:
            return wanted
        if len(known) >= self._limit:
            return (OTHER,) * len(LABELS)
        known.add(wanted)
        return wanted

    def merge(self, signal: str, series: Iterable[HistogramSeries]) -> list[HistogramSeries]:
        """Series of the kernel on the bounds of the vocabulary, those with the same labels added up, within the limit."""
        counts: dict[Owner, NDArray[np.uint64]] = {}
        sums: dict[Owner, float] = {}
        for each in series:
            owner = self.owner(signal, tuple(each.labels.get(name, "") for name in LABELS))
            coarse = rebucket(each.counts, each.bounds_ms, bucket_bounds_ms())
            counts[owner] = counts[owner] + coarse if owner in counts else coarse
            sums[owner] = sums.get(owner, 0.0) + each.sum_ms
        return [_series(owner, counts[owner], sums[owner]) for owner in counts]


def _series(owner: Owner, counts: NDArray[np.uint64], sum_ms: float) -> HistogramSeries:
    return HistogramSeries(dict(zip(LABELS, owner, strict=True)), bucket_bounds_ms(), counts, sum_ms)


class _Rows(dict[tuple[Any, ...], int]):
    """(fields..., service) -> row. A key that is not known gets its row here, outside the fast path."""

    def __init__(self, book: SeriesBook) -> None:
        super().__init__()
        self.keys_of: list[tuple[str, str, Owner]] = []
        self._known: dict[tuple[str, str, Owner], int] = {}
        self._book = book
        self._latencies = frozenset(latency_signals())

    def __missing__(self, key: tuple[Any, ...]) -> int:
        (signal, status, *owner), service = key
        wanted = (*owner, service) if signal in self._latencies else ()
        counted = self._book.owner(signal, wanted) if wanted else ()
        row = self._known.get((signal, status, counted))
        if row is None:
            row = self._known[signal, status, counted] = len(self.keys_of)
            self.keys_of.append((signal, status, counted))
        if len(self) >= _MOST_KEYS:
            self.clear()  # there is no end of owners; the rows stay
        self[key] = row
        return row


class EventCounter:
    """Counts of everything it was fed with. Not locked: one thread at a time.

    max_series: owners with a histogram of their own, per signal.
    """

    def __init__(self, max_series: int = DEFAULT_MAX_SERIES) -> None:
        self.book = SeriesBook(max_series)
        self._rows = _Rows(self.book)
        self._bounds = np.array(bucket_bounds_ms())
        self._counts = np.zeros((_FIRST_ROWS, self._bounds.size + 1), np.uint64)
        self._sums = np.zeros(_FIRST_ROWS)

    def feed(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Count probe events (contract v1alpha1)."""
        if not events:
            return
        keys = zip(map(_FIELDS, events), [event.get("service", "") for event in events], strict=True)
        rows = np.fromiter(map(self._rows.__getitem__, keys), np.intp, len(events))
        while len(self._rows.keys_of) > self._sums.size:
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        values = np.fromiter(map(_VALUE, events), np.float64, len(events))
        buckets = np.searchsorted(self._bounds, values)  # side left: a value on a border belongs below it, as Prometheus' le says
        np.add.at(self._counts, (rows, buckets), np.uint64(1))
        np.add.at(self._sums, rows, values)

    def counts(self) -> EventCounts:
        """What was counted so far, as a copy."""
        rows = len(self._rows.keys_of)
        return EventCounts(tuple(self._rows.keys_of), self._counts[:rows].copy(), self._sums[:rows].copy())


@dataclass(frozen=True, slots=True)
class EventCounts:
    """What an EventCounter had counted at one moment. keys: (signal, status, owner or () for signals that are no times).

    rows: uint64, shape (len(keys), buckets). sums: float64, shape (len(keys),), of values.
    """

    keys: Sequence[tuple[str, str, Owner]]
    rows: NDArray[np.uint64]
    sums: NDArray[np.float64]

    def events_by_status(self, signal: str) -> dict[str, int]:
        """Events of one signal by status."""
        found: dict[str, int] = {}
        for (name, status, _), count in zip(self.keys, self.rows.sum(axis=1).tolist(), strict=True):
            if name == signal:
                found[status] = found.get(status, 0) + count
        return found

    def histograms(self, signal: str) -> list[HistogramSeries]:
        """Waits of one signal by owner; empty for signals that are no times."""
        rows_of: dict[Owner, list[int]] = {}
        for row, (name, _, owner) in enumerate(self.keys):
            if name == signal and owner:
                rows_of.setdefault(owner, []).append(row)
        return [
            _series(owner, self.rows[rows].sum(axis=0, dtype=np.uint64), float(self.sums[rows].sum())) for owner, rows in rows_of.items()
        ]
