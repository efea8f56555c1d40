"""Facts of this host that several edges need: where cgroup2 is, when a process began."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT_CGROUP_ID", "cgroup2_mount", "cgroup_mount", "keep_heap_small", "libc", "parse_cpu_s", "parse_start_ticks",
    "process_cpu_s", "process_start_ticks",
]  # fmt: skip

ROOT_CGROUP_ID = 1  # kernfs gives inode 1 to the root of cgroup2; in a private cgroup namespace a mount shows another inode


def cgroup2_mount(mounts: str | None = None) -> Path | None:
    """Where the cgroup2 hierarchy is mounted (``/sys/fs/cgroup``, or ``/sys/fs/cgroup/unified`` beside v1); None without one.

    mounts: text of ``/proc/self/mounts``, read when not given.
    """
    text = Path("/proc/self/mounts").read_text(encoding="utf-8") if mounts is None else mounts
    places = [line.split() for line in text.splitlines()]
    found = [fields[1].encode().decode("unicode_escape") for fields in places if len(fields) > 2 and fields[2] == "cgroup2"]
    return Path(min(found, key=len)) if found else None


def cgroup_mount(controller: str, mounts: str | None = None) -> tuple[Path, int] | None:
    """Where the hierarchy of a controller is mounted, and its version: v1 where it has one of its own, else cgroup2.

    mounts: text of ``/proc/self/mounts``, read when not given.
    """
    text = Path("/proc/self/mounts").read_text(encoding="utf-8") if mounts is None else mounts
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[2] == "cgroup" and controller in fields[3].split(","):
            return Path(fields[1].encode().decode("unicode_escape")), 1
    root = cgroup2_mount(text)
    return (root, 2) if root else None


def parse_start_ticks(stat: str) -> int:
    """Field 22 (starttime, clock ticks since boot) of ``/proc/<pid>/stat``; the command may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[19])


def parse_cpu_s(stat: str) -> float:
    """CPU time in seconds out of ``/proc/<pid>/stat``: fields 14 to 17, its own and that of children it has waited for."""
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float | None:
    """CPU time in seconds that a process has used; None when there is none of that pid. A zombie's is its last."""
    try:
        return parse_cpu_s(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def process_start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return None if stat.rpartition(")")[2].split()[0] in "ZX" else parse_start_ticks(stat)


@cache
def libc() -> Any:
    """The C library, with errno kept. One for all: each CDLL is a class of its own, in a cycle that only the collector frees."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def keep_heap_small() -> None:
    """Have glibc give large blocks back to the kernel for good: for a process that runs for months.

    Its thresholds grow by themselves with every large block that is freed, and the heap then keeps holes of that size
    (mallopt(3), "dynamic mmap threshold"). Setting them to what they begin with ends that. Nothing happens with another C library.
    """
    mmap_threshold, trim_threshold, begin_bytes = -3, -1, 128 * 1024
    mallopt = getattr(libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, begin_bytes)
        mallopt(trim_threshold, begin_bytes)
