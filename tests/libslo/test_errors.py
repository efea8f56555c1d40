"""The exception family carries place, line and cure, and knows its exit code."""

from __future__ import annotations

import errno
import os

import pytest

from libslo.errors import (
    EXIT_BUG,
    EXIT_CANNOT,
    EXIT_INTERRUPTED,
    EXIT_NO,
    EXIT_OK,
    EXIT_USAGE,
    CannotError,
    InputError,
    SloError,
    write_error,
)


@pytest.mark.parametrize(
    ("source", "line", "text"), [("F", 3, "F:3: a fact"), ("F", None, "F: a fact"), (None, None, "a fact"), ("stdin", 1, "stdin:1: a fact")]
)
def test_the_sentence(source: str | None, line: int | None, text: str) -> None:
    """FILE:LINE: fact, with what is known of it."""
    assert str(InputError("a fact", source=source, line=line)) == text


def test_exit_codes() -> None:
    """0 done, 1 no, 2 usage, 3 cannot, 70 our bug, 130 interrupted."""
    assert (EXIT_OK, EXIT_NO, EXIT_USAGE, EXIT_CANNOT, EXIT_BUG, EXIT_INTERRUPTED) == (0, 1, 2, 3, 70, 130)
    assert (SloError("x").exit_code, InputError("x").exit_code, CannotError("x").exit_code) == (2, 2, 3)


@pytest.mark.parametrize(
    ("number", "kind", "cure"),
    [
        (errno.EISDIR, InputError, "check the path"), (errno.EACCES, InputError, "permissions"), (errno.ENOENT, InputError, "path"),
        (errno.ENOSPC, CannotError, "free some space"), (errno.EROFS, CannotError, ""), (errno.EIO, CannotError, ""),
    ],
)  # fmt: skip
def test_what_a_failed_write_is(number: int, kind: type[SloError], cure: str) -> None:
    """A wrong place is the caller's to change, a full or broken disk the machine's fault."""
    error = write_error(OSError(number, os.strerror(number)), "F")
    assert type(error) is kind and str(error) == f"F: cannot write: {os.strerror(number).lower()}"
    assert cure in str(error.hint)
    assert write_error(OSError(errno.ENOSPC, "x"), "F", "a cure").hint == "a cure"
