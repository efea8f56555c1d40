"""What the pages of measured figures have in common: their head, their tables, the machine they were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path


def machine() -> str:
    """The machine and the day, as a sentence."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"Machine: {platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}; {day}."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, ("---",) * len(head), *rows)]


def write_page(path: Path, lines: Iterable[str]) -> None:
    """A Markdown page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
