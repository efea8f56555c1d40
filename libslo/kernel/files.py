"""What the descriptor of a read or write call stands for, where the probe could not see it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from libslo.kernel.events import KINDS

__all__ = ["name_files"]

_PROC = Path("/proc")
_NO_FD = 0xFFFFFFFF


def name_files(events: NDArray[Any], proc: Path = _PROC) -> None:
    """Fill in the file types (``tcp_state``: i_mode >> 12) of syscall records that have none, by what the descriptors are now.

    events: dtype EVENT_DTYPE, shape (n,), changed in place. One whose process or descriptor is gone stays 0, unknown.
    """
    mine = (events["kind"] == KINDS["syscall_latency_ms"]) & (events["tcp_state"] == 0) & (events["device"] != _NO_FD)
    known: dict[tuple[int, int], int] = {}
    for index in mine.nonzero()[0].tolist():
        key = int(events["pid"][index]), int(events["device"][index])
        if key not in known:
            known[key] = _file_type(proc / str(key[0]) / "fd" / str(key[1]))
        events["tcp_state"][index] = known[key]


def _file_type(link: Path) -> int:
    try:
        return os.stat(link).st_mode >> 12  # noqa: PTH116 - follows the link of procfs, which no path can
    except OSError:
        return 0
