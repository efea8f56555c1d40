"""Go through memory again and again: a program that the memory_limit fault runs inside the cgroup it presses.

``python -m libslo.lab.faults.pressure files|memory MEGABYTES READERS WRITERS``, each reader and writer a process of its own.
files: readers read holes of a file without a name: their pages come into the page cache and are charged to the reader's cgroup, but no
disk is asked. Writers write such a file anew and anew: pages that have to reach the disk before they can be taken, so that whoever
needs memory waits for it. memory, where temporary files are in memory themselves: all touch pages and at once give the kernel leave
to take them (MADV_FREE). Either can always be given back, so the cgroup is kept at its limit without the OOM killer; should it come
all the same, it takes these processes first. Nothing is left behind.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from libslo.host import libc

__all__ = ["free_bytes", "pressing_way"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CHUNK_BYTES = 1 << 20
_PAUSE_S = 0.002  # a chunk: at most 500 MB/s, so that the pressed cgroup keeps some CPU
_DIRECTORY = "/var/tmp"  # noqa: S108 (a file without a name)
_DISK_FILES = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}  # file systems whose holes get pages of their own when they are read


def pressing_way(mounts: str | None = None) -> str:
    """ "files" where temporary files are on a disk, else "memory". mounts: text of ``/proc/self/mounts``, read when not given."""
    text = Path("/proc/self/mounts").read_text(encoding="utf-8") if mounts is None else mounts
    found = {place: kind for _, place, kind, *_ in (line.split() for line in text.splitlines()) if Path(_DIRECTORY).is_relative_to(place)}
    return "files" if found.get(max(found, key=len, default="")) in _DISK_FILES else "memory"


def free_bytes() -> int:
    """Room for the files."""
    return shutil.disk_usage(_DIRECTORY).free


def main() -> None:
    """Press until killed; says "ready" when every process has the memory that it needs itself, and waits for the end of its stdin."""
    way, size_bytes = sys.argv[1], max(_CHUNK_BYTES, int(float(sys.argv[2]) * 1e6))
    readers, writers = int(sys.argv[3]), int(sys.argv[4])
    Path("/proc/self/oom_score_adj").write_text("1000")
    begin, begins = os.pipe()
    told, tell = os.pipe()
    for number in range(1, readers + writers):
        if os.fork() == 0:
            libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.close(begins)
            touch = _toucher(way, size_bytes, number >= readers)
            os.write(tell, b".")
            os.read(begin, 1)  # until the limit is set
            _press(touch, size_bytes)
    touch = _toucher(way, size_bytes, readers == 0)
    for _ in range(1, readers + writers):
        os.read(told, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    os.close(begins)
    _press(touch, size_bytes)


def _press(touch: Callable[[int], object], size_bytes: int) -> NoReturn:
    while True:
        for offset in range(0, size_bytes - _CHUNK_BYTES + 1, _CHUNK_BYTES):
            touch(offset)
            time.sleep(_PAUSE_S)


def _toucher(way: str, size_bytes: int, writes: bool) -> Callable[[int], object]:
    return _file(size_bytes, writes) if way == "files" else _memory(size_bytes)


def _file(size_bytes: int, writes: bool) -> Callable[[int], object]:
    file = tempfile.TemporaryFile(dir=_DIRECTORY, buffering=0)  # noqa: SIM115 (it is open until this process is killed)
    file.truncate(size_bytes)
    buffer = bytearray(b"x" * _CHUNK_BYTES)  # written to, so that its pages are there
    if writes:
        return lambda offset: os.pwrite(file.fileno(), buffer, offset)
    return lambda offset: os.preadv(file.fileno(), [buffer], offset)


def _memory(size_bytes: int) -> Callable[[int], object]:
    pages = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = b"x" * _CHUNK_BYTES

    def touch(offset: int) -> None:
        pages[offset : offset + _CHUNK_BYTES] = content
        pages.madvise(mmap.MADV_FREE, offset, _CHUNK_BYTES)

    return touch


if __name__ == "__main__":
    main()
