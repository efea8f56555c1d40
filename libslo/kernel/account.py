"""The loss account: what became of every event a probe saw.

It closes exactly, per signal: attempts = emitted + filtered + rate_limited + dropped, and emitted = drained at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

__all__ = ["Account", "account_from_cpus"]


@dataclass(frozen=True, slots=True)
class Account:
    """Counters of struct slo_account, in its order."""

    attempts: int = 0
    emitted: int = 0
    filtered: int = 0
    rate_limited: int = 0
    dropped: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def closes(self) -> bool:
        """True when every attempt is explained."""
        return self.attempts == self.emitted + self.filtered + self.rate_limited + self.dropped

    def as_dict(self) -> dict[str, int]:
        """The ``account`` object of an agent report."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def account_from_cpus(values: bytes) -> Account:
    """Sum the per-CPU structs (five little uint64 each, one CPU after the other)."""
    columns = np.frombuffer(values, np.uint64).reshape(-1, len(fields(Account))).sum(axis=0)
    return Account(*(int(count) for count in columns))
