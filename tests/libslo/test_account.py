"""Reading an account while programs run."""

from __future__ import annotations

from libslo.kernel.account import Account, settled_account


def test_an_attempt_under_way_is_waited_for() -> None:
    """A reading between an attempt and its outcome is taken again."""
    readings = iter([Account(5, 4), Account(6, 5), Account(6, 6), Account(9, 1)])
    assert settled_account(lambda: next(readings)) == Account(6, 6)


def test_an_account_that_never_closes_is_shown_as_it_is() -> None:
    """A loss that does not go away is not hidden, and the reading comes to an end."""
    seen = []
    assert settled_account(lambda: seen.append(1) or Account(len(seen) + 1, 0), tries=3) == Account(4, 0)
    assert len(seen) == 3
