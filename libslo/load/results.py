"""Results of a load as columns: 8 bytes a number, so that millions of requests fit."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Flags", "Numbers", "ResultColumns"]

_TIMES = ("scheduled_unix_ns", "sent_unix_ns", "first_token_unix_ns", "last_token_unix_ns", "end_unix_ns")
_SPANS = ("held_ms", "dns_ms", "connect_ms", "tls_ms")
Numbers = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class ResultColumns:
    """Collects load-results, those of the warm-up only as a count.

    errors: by kind; profile_errors: by profile, too. gaps_ms: between tokens, of requests that were answered to the end.
    """

    def __init__(self) -> None:
        self._times = {name: array("q") for name in _TIMES}
        self._spans = {name: array("d") for name in _SPANS}
        self._tokens = array("q")
        self._answered = array("b")
        self._gaps = array("d")
        self._profiles = array("l")
        self._numbers: dict[str, int] = {}  # of profiles
        self.warmup = 0
        self.profile_errors: dict[str, Counter[str]] = {}

    def add(self, result: Mapping[str, Any]) -> None:
        """One object of the contract load-result."""
        if result["warmup"]:
            self.warmup += 1
            return
        for name, times in self._times.items():
            times.append(result.get(name, 0))
        for name, spans in self._spans.items():
            spans.append(result.get(name, float("nan")))
        answered = "error" not in result
        self._profiles.append(self._numbers.setdefault(result["profile"], len(self._numbers)))
        errors = self.profile_errors.setdefault(result["profile"], Counter())
        self._tokens.append(result["tokens"])
        self._answered.append(answered)
        if answered:
            self._gaps.extend(result.get("gaps_ms", ()))
        else:
            errors[result["error"]] += 1

    def __len__(self) -> int:
        return len(self._answered)

    @property
    def errors(self) -> Counter[str]:
        """Of all profiles."""
        return sum(self.profile_errors.values(), Counter())

    def of_profiles(self) -> dict[str, Flags]:
        """By profile, which requests are of it, shape (requests,)."""
        numbers = np.array(self._profiles, np.int64)
        return {name: numbers == number for name, number in sorted(self._numbers.items())}

    def seconds(self, name: str) -> Numbers:
        """A time of every request in seconds from the first that was due; NaN where it did not happen."""
        times = np.frombuffer(self._times[name], np.int64) if len(self) else np.empty(0, np.int64)
        first = min(self._times["scheduled_unix_ns"], default=0)
        return np.where(times > 0, (times - first) / 1e9, np.nan)

    def span_ms(self, name: str) -> Numbers:
        """held_ms, dns_ms, connect_ms or tls_ms of every request; NaN where there is none."""
        return np.array(self._spans[name], np.float64)

    @property
    def tokens(self) -> Numbers:
        """Of every request's answer."""
        return np.array(self._tokens, np.float64)

    @property
    def answered(self) -> Flags:
        """Whether each request was answered to the end."""
        return np.array(self._answered, np.bool_)

    @property
    def gaps_ms(self) -> Numbers:
        """All gaps between tokens."""
        return np.array(self._gaps, np.float64)
