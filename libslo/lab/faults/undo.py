"""Take faults off by what their records say: rules and qdiscs, limits of cgroups, processes, leases of services.

A step of a record is one of
``{"do": "run", "netns": [inode, path], "command": [...]}`` a program that takes something off inside a network namespace,
``{"do": "write", "path": ..., "inode": ..., "value": ...}`` a file of a cgroup directory (its inode) that gets its old value back,
``{"do": "kill", "tag": "SLO_INJECTION=..."}`` every process with these words in its environment,
``{"do": "lease", "url": ..., "id": ..., "netns": null | [inode, path], "ca": ...}`` a fault that a service was told to have.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libslo.errors import CannotError, InputError, SloError
from libslo.host import cgroup_mount
from libslo.lab.faults.control import LEASE_S, delete_lease
from libslo.lab.netns import call_in_netns, find_netns
from libslo.lab.state import Record

__all__ = ["CGROUP_FILES", "INJECTION_TAG", "is_on", "tagged_pids", "take_off", "write_limit"]

INJECTION_TAG = "SLO_INJECTION"
CGROUP_FILES = {
    "cpu.max": "cpu",
    "cpu.cfs_quota_us": "cpu",
    "cpu.cfs_period_us": "cpu",
    "memory.max": "memory",
    "memory.limit_in_bytes": "memory",
}
_PROGRAMS = {"tc", "iptables", "ip6tables", "nft"}
_KILL_S = 5.0


def take_off(record: Record) -> bool:
    """Undo what a record names and remove it; False when all it was put on is gone, and took the fault with it.

    Raises InputError for a record that says no such thing, CannotError when something stays on: the record is kept then.
    """
    try:
        steps = [_checked(step) for step in record.data["undo"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        hint = f"look at it, undo by hand what it names, then: rm {record.path}"
        raise InputError(f"not an undo record of this toolkit ({error!r})", source=str(record.path), hint=hint) from error
    found, left = False, ""
    for step in steps:
        there, command = _undo_step(step)
        found, left = found or there, left or command
    if left:
        raise CannotError(f"cannot take the fault off: {record.data.get('fault', record.ident)}", source=str(record.path), hint=left)
    record.remove()
    return found


def is_on(step: Mapping[str, Any]) -> bool:
    """Whether what a "run" step would take off is there now."""
    netns = find_netns(step["netns"][0], Path(step["netns"][1]))
    return netns is not None and call_in_netns(netns, lambda: _is_there(step["command"]))


def tagged_pids(tag: str) -> list[int]:
    """Pids of the living processes that have the tag in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if tag.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile, or not ours to look at
    return found


def write_limit(path: Path, value: str) -> None:
    """Write a file of a cgroup; CannotError with the kernel's complaint."""
    try:
        path.write_text(value)
    except OSError as error:
        raise CannotError(f"cannot write {value}: {error.strerror}", source=str(path), hint="run as root with a writable cgroup") from error


def _checked(step: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = step["do"]
    if kind == "run":
        if step["command"][0] not in _PROGRAMS or not isinstance(step["netns"][0], int):
            raise ValueError("a program that undoes no fault")
    elif kind == "write":
        path = Path(step["path"])
        mount = cgroup_mount(CGROUP_FILES[path.name])
        if ".." in path.parts or mount is None or not path.is_relative_to(mount[0]) or not isinstance(step["value"], str):
            raise ValueError("not a limit of a cgroup")
    elif kind == "kill":
        if not str(step["tag"]).startswith(f"{INJECTION_TAG}=") or len(step["tag"]) < len(INJECTION_TAG) + 9:
            raise ValueError("not a tag of this toolkit")
    elif kind == "lease":
        if not str(step["url"]).startswith(("http://", "https://")) or not step["id"]:
            raise ValueError("not a lease")
    else:
        raise ValueError(f"an unknown step: {kind}")
    return step


def _undo_step(step: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the place was there, and the command that a person may try when it stays on ("" when it is off)."""
    if step["do"] == "run":
        return _undo_command(step)
    if step["do"] == "write":
        return _undo_limit(step)
    if step["do"] == "kill":
        return _undo_processes(step["tag"])
    return _undo_lease(step)


def _undo_command(step: Mapping[str, Any]) -> tuple[bool, str]:
    command: list[str] = [str(word) for word in step["command"]]
    netns = find_netns(step["netns"][0], Path(step["netns"][1]))
    if netns is None:
        return False, ""
    return True, f"nsenter --net={netns} {shlex.join(command)}" if call_in_netns(netns, lambda: _stays(command)) else ""


def _stays(undo: Sequence[str]) -> bool:
    """Run an undo command and see whether its object is still there; one that was never made is no error (the record comes first)."""
    if shutil.which(undo[0]) is None:
        return undo[0] != "ip6tables"  # without it nothing was put on; without the others nobody can tell
    subprocess.run(undo, capture_output=True, check=False)
    return _is_there(undo)


def _is_there(undo: Sequence[str]) -> bool:
    if undo[0] == "tc":
        shown = _run(["tc", "qdisc", "show", "dev", undo[4]])
        unknown = shown.returncode != 0 and "Cannot find device" not in shown.stderr
        return unknown or f" {undo[-1]} root" in shown.stdout
    if undo[0] == "nft":
        shown = _run(["nft", "list", "table", *undo[3:]])
        return shown.returncode == 0 or "No such file or directory" not in shown.stderr
    # 1: no such rule; 3: no such table. Anything else (4: the lock was held) leaves it open, and the record stays.
    return _run(["-C" if word == "-D" else word for word in undo]).returncode not in (1, 3)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _undo_limit(step: Mapping[str, Any]) -> tuple[bool, str]:
    path = Path(step["path"])
    try:
        if path.parent.stat().st_ino != step["inode"]:
            return False, ""
        path.write_text(step["value"])
    except FileNotFoundError:
        return False, ""
    except OSError:
        stays = path.read_text().strip() != step["value"]  # where nothing can be written, nothing was put on either
        return True, f"echo {step['value']} > {path}" if stays else ""
    return True, ""


def _undo_processes(tag: str) -> tuple[bool, str]:
    deadline_s = time.monotonic() + _KILL_S
    found = False
    while pids := tagged_pids(tag):
        found = True
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline_s:
            return True, "kill -9 " + " ".join(map(str, pids))
        time.sleep(0.005)
    return found, ""


def _undo_lease(step: Mapping[str, Any]) -> tuple[bool, str]:
    netns = None
    if step["netns"] is not None:
        netns = find_netns(step["netns"][0], Path(step["netns"][1]))
        if netns is None:
            return False, ""
    try:
        return delete_lease(step["url"], step["id"], netns, step["ca"]), ""
    except SloError:
        time.sleep(LEASE_S)  # nobody renews it any more: it ends by itself
        return True, ""
