"""One family of exceptions; library code raises them, only the command-line runner formats them.

Exit codes (the only place where they are spelled):
0 done, 1 the verdict is no, 2 usage or bad input, 3 this machine cannot, 70 our bug, 130 interrupted before an answer.
"""

from __future__ import annotations

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
