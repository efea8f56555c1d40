"""Which files running processes have mapped that may hold a function of user space: where a uprobe can attach.

A uprobe sits on a file, so one attachment serves all processes that map it, later ones too.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["executable_mappings", "files_with_function"]

_DELETED = " (deleted)"


def executable_mappings(maps: str) -> dict[str, str]:
    """Path to address range ("start-end"), for the executable mappings of files in the text of a ``/proc/<pid>/maps``."""
    found: dict[str, str] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            found.setdefault(fields[5], fields[0])
    return found


def files_with_function(function: str, library: str, *, proc: Path = Path("/proc")) -> list[Path]:
    """Distinct files, by device and inode, that name the function: libraries called `library`*, and programs themselves.

    Names only are compared, so a program that merely calls the function is among them. Paths lead through a process, and are good
    while it lives. What may not be read, or ends meanwhile, is left out.
    """
    seen: set[tuple[int, int]] = set()
    found = []
    for process in sorted((entry for entry in proc.iterdir() if entry.name.isdigit()), key=lambda entry: int(entry.name)):
        for path in _candidates(process, library):
            try:
                status = path.stat()
                key = (status.st_dev, status.st_ino)
                if key in seen:
                    continue
                seen.add(key)
                if _holds(path, function.encode() + b"\0"):
                    found.append(path)
            except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
                continue
    return found


def _candidates(process: Path, library: str) -> Iterator[Path]:
    yield process / "exe"
    try:
        mappings = executable_mappings((process / "maps").read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return
    for path, addresses in mappings.items():
        if not Path(path).name.startswith(library):
            continue
        # Another file may have the path by now; the mapping itself needs more privileges to follow.
        yield process / "map_files" / addresses if path.endswith(_DELETED) else process / "root" / path.lstrip("/")


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0
