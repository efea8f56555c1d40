"""The labels of a stream: which fault the injector says was on when a request ran. For evaluation only. Pure.

What an incident should have said is the label that most of the bad requests in its window carry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any

from libslo.slo import parse_timestamps

__all__ = ["LabelBook"]


class LabelBook:
    """The labels of a stream's slo-events by service and time."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, str, str]]] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """Note one slo-event; one without a fault_label is passed over."""
        label = (event.get("labels") or {}).get("fault_label")
        if label:
            ts = int(parse_timestamps([event["timestamp"]])[0])
            self._rows.setdefault(event["service"], []).append((ts, label, event["status"]))

    def note_sample(self, sample: Mapping[str, Any]) -> None:
        """Note one fault-sample, by the end of its window."""
        ts = int(parse_timestamps([sample["timestamp"]])[0]) - 1
        self._rows.setdefault(sample["service"], []).append((ts, sample["fault_label"], "breach"))

    @property
    def labelled(self) -> bool:
        """True when any event had a label."""
        return bool(self._rows)

    def label(self, service: str, begin_ns: int, end_ns: int) -> str:
        """The most frequent label between the two times, bad requests first; "" when there is none."""
        rows = self._rows.get(service, [])
        rows.sort()
        times = [row[0] for row in rows]
        window = rows[bisect_left(times, begin_ns) : bisect_right(times, end_ns)]
        counts = Counter(label for _, label, status in window if status != "ok" and label != "baseline") or Counter(
            label for _, label, _ in window
        )
        return max(sorted(counts), key=lambda label: counts[label], default="")
