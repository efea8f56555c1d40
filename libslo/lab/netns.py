"""Enter network namespaces without moving the process: setns works on one thread."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from libslo.errors import CannotError, InputError
from libslo.host import libc

__all__ = ["call_in_netns", "enter_netns", "find_netns", "netns_inode", "netns_of"]

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_T = TypeVar("_T")


def netns_of(pid: int) -> Path:
    """Path of the network namespace a process lives in."""
    return Path(f"/proc/{pid}/ns/net")


def netns_inode(netns: Path) -> int:
    """Inode number of a namespace; InputError when there is none at that path."""
    try:
        return netns.stat().st_ino
    except OSError as error:
        raise InputError(
            f"no network namespace: {error.strerror}",
            source=str(netns),
            hint="give the pid of a live process, or a path such as /proc/PID/ns/net",
        ) from error


def find_netns(inode: int, hint: Path | None = None) -> Path | None:
    """A path to the living namespace with this inode number: the hint, where it is mounted, or that of any process; None: it is gone."""
    candidates = [] if hint is None else [hint]
    candidates += _mounted(inode)
    candidates += [entry / "ns/net" for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for path in candidates:
        try:
            if path.stat().st_ino == inode:
                return path
        except OSError:
            continue  # ended meanwhile, or not ours to look at
    return None


def _mounted(inode: int) -> list[Path]:
    """Where a namespace is kept without a process (`ip netns add`)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[3] == f"net:[{inode}]":
            found.append(Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])))
    return found


def enter_netns(netns: Path) -> None:
    """Move the calling THREAD into a network namespace; CannotError without CAP_SYS_ADMIN, InputError when not one."""
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"no network namespace: {error.strerror}", source=str(netns)) from error
    try:
        if libc().setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            if code == errno.EPERM:
                raise CannotError("not permitted to enter the network namespace", source=str(netns), hint="run as root (CAP_SYS_ADMIN)")
            raise InputError(f"not a network namespace: {os.strerror(code)}", source=str(netns))
    finally:
        os.close(descriptor)


def call_in_netns(netns: Path, function: Callable[[], _T]) -> _T:
    """Call a function in a thread of its own inside a namespace; sockets it makes and programs it runs live there.

    Returns what the function returned and raises what it raised.
    """
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            enter_netns(netns)
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
