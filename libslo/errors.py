"""One family of exceptions; library code raises them, only the command-line runner formats them.

Exit codes (the only place where they are spelled):
0 done, 1 the verdict is no, 2 usage or bad input, 3 this machine cannot, 70 our bug, 130 interrupted before an answer.
"""

from __future__ import annotations

import errno

__all__ = [
    "EXIT_BUG",
    "EXIT_CANNOT",
    "EXIT_INTERRUPTED",
    "EXIT_NO",
    "EXIT_OK",
    "EXIT_USAGE",
    "CannotError",
    "InputError",
    "SloError",
    "os_reason",
    "write_error",
]

EXIT_OK = 0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_CANNOT = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class SloError(Exception):
    """A failure with a place and a cure: printed as ``tool: SOURCE:LINE: fact`` and ``  try: hint``.

    fact: lower case, no full stop. source: file name or other place. line: 1-based line number. hint: the cure.
    """

    exit_code = EXIT_USAGE

    def __init__(self, fact: str, *, source: str | None = None, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(fact)
        self.fact = fact
        self.source = source
        self.line = line
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.source}:" if self.source else ""
        place += f"{self.line}:" if self.line is not None else ""
        return f"{place} {self.fact}".lstrip()


class InputError(SloError):
    """Usage or bad input (exit 2): a malformed line, an unreadable file, a configuration with a wrong key."""


class CannotError(SloError):
    """This machine cannot (exit 3): no BTF, no capability, a missing program, a port in use, an endpoint down."""

    exit_code = EXIT_CANNOT


# What a path is makes these, not the machine: another path is the cure.
_OF_THE_PATH = {
    errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY,
}  # fmt: skip


def os_reason(error: OSError) -> str:
    """Why the system refused, as a fact: lower case, without the number and the file's name."""
    return (error.strerror or str(error)).lower()


def write_error(error: OSError, path: object, hint: str | None = None) -> SloError:
    """What to raise for a place that could not be written: InputError when another place would do, CannotError when the machine fails.

    hint: the cure for the latter, where "free some space" is not all.
    """
    if error.errno in _OF_THE_PATH:
        return InputError(f"cannot write: {os_reason(error)}", source=str(path), hint="check the path and its permissions")
    return CannotError(f"cannot write: {os_reason(error)}", source=str(path), hint=hint or "free some space")
