"""Pages of docs/ that a program writes."""

from __future__ import annotations

from pathlib import Path

from libslo.errors import write_error

__all__ = ["write_page"]


def write_page(path: str, text: str) -> None:
    """Write a page, and the directories above it. InputError or CannotError when that is not possible."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    except OSError as error:
        raise write_error(error, path) from error
