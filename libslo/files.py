"""Whole files: summaries, tables and pages that a tool writes beside its stream."""

from __future__ import annotations

from pathlib import Path

from libslo.errors import write_error
from libslo.jsonl import JsonlWriter

__all__ = ["write_file"]


def write_file(path: str, data: bytes) -> None:
    """Write a file, and the directories above it; - is stdout. InputError or CannotError when that is not possible."""
    if path == "-":
        with JsonlWriter("-") as writer:
            writer.write_block(data, data.count(b"\n"))
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
    except OSError as error:
        raise write_error(error, path) from error
