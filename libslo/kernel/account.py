"""The loss account: what became of every event a probe saw.

It closes exactly, per signal: attempts = emitted + filtered + rate_limited + dropped, and emitted = drained at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

__all__ = ["Account", "account_from_cpus", "settled_account"]

_TRIES = 200
_PAUSE_S = 50e-6


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


def settled_account(read: Callable[[], Account], tries: int = _TRIES) -> Account:
    """The first of several readings that closes, else the last one.

    A program that runs on another CPU meanwhile has counted its attempt and not yet what became of it; a hypervisor may even have
    taken that CPU away in between. It is over a moment later.
    """
    account = read()
    for _ in range(tries - 1):
        if account.closes:
            break
        time.sleep(_PAUSE_S)
        account = read()
    return account
