"""Linux capabilities of this process: what it holds, what is missing, and letting all of it go.

Links and maps that are open keep working without any capability, so an agent needs its own only until it has attached.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from libslo.errors import CannotError
from libslo.host import libc

__all__ = ["CAPABILITIES", "check_dropped", "drop_capabilities", "effective_capabilities", "missing_capabilities"]

# include/uapi/linux/capability.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_PERFMON": 38, "CAP_BPF": 39}
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_SET_NO_NEW_PRIVS = 38


def effective_capabilities() -> int:
    """The effective set of this process as a bit mask."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


def missing_capabilities(names: Sequence[str], *, held: int | None = None) -> list[str]:
    """Those of `names` that are not held; CAP_SYS_ADMIN stands for the ones that were split off it (capabilities(7))."""
    mask = effective_capabilities() if held is None else held
    if mask >> CAPABILITIES["CAP_SYS_ADMIN"] & 1:
        return []
    return [name for name in names if not mask >> CAPABILITIES[name] & 1]


def drop_capabilities() -> None:
    """Give up every capability of this thread, for good: effective, permitted and inheritable, and those of a later exec.

    Each thread has its own sets, and nobody can change another's: threads that begin afterwards have none, those that
    began before have to drop their own; check_dropped() sees whether they did. Raises OSError.
    """
    # no_new_privs: a root process would get everything back by executing anything.
    if libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
    header = struct.pack("<Ii", _VERSION_3, 0)
    if libc().capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


def check_dropped(patience_s: float = 1.0) -> None:
    """Make sure that no thread of this process holds a capability. Raises CannotError with the threads that do."""
    end_s = time.monotonic() + patience_s
    while holding := [task.name for task in Path("/proc/self/task").iterdir() if _holds(task)]:
        if time.monotonic() > end_s:
            raise CannotError(f"threads {', '.join(sorted(holding))} keep their capabilities", source="--drop-capabilities",
                              hint="--keep-capabilities, if that is what you want")  # fmt: skip
        time.sleep(0.01)


def _holds(task: Path) -> bool:
    try:
        lines = (task / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False  # it has ended
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("CapEff:", "CapPrm:")))
