"""Who listens on which port already: what the kernel cannot tell a program that comes later.

Retransmits of accepted sockets are charged to the process that listens; servers usually run before the agent does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Listener", "listening_processes", "pack_listener", "parse_listening"]

_LISTEN = "0A"  # TCP_LISTEN as /proc/net/tcp prints it


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening port and a process that holds its socket (the one with the lowest pid: before it forked workers)."""

    netns: int
    port: int
    pid: int
    comm: str
    cgroup_path: str  # in the cgroup2 hierarchy


def parse_listening(text: str) -> dict[int, int]:
    """Socket inode to port, for the listening sockets of a ``/proc/<pid>/net/tcp`` or ``tcp6``."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            found[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    return found


def listening_processes(proc: Path = Path("/proc")) -> list[Listener]:
    """All listening TCP sockets of all network namespaces that processes live in.

    What may not be read, or ends meanwhile, is left out.
    """
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())
    sockets: dict[int, tuple[int, int]] = {}  # inode -> (netns, port)
    namespaces: set[int] = set()
    for pid in pids:
        netns = _inode_of(proc / str(pid) / "ns" / "net")
        if netns is None or netns in namespaces:
            continue
        namespaces.add(netns)
        for name in ("tcp", "tcp6"):
            for inode, port in parse_listening(_read(proc / str(pid) / "net" / name)).items():
                sockets[inode] = (netns, port)
    found: dict[tuple[int, int], Listener] = {}
    for pid in pids:
        for inode in _socket_inodes(proc / str(pid) / "fd"):
            key = sockets.get(inode)
            if key and key not in found:
                lines = _read(proc / str(pid) / "cgroup").splitlines()
                path = next((line[3:] for line in lines if line.startswith("0::")), "/")
                found[key] = Listener(*key, pid, _read(proc / str(pid) / "comm").strip(), path)
    return list(found.values())


def pack_listener(listener: Listener, *, cgroup_id: int, seen_ns: int, passes: bool) -> tuple[bytes, bytes]:
    """Key and value (struct listener_key, struct port_listener) of the probe's map; a cookie of 0 says: not seen listening."""
    key = struct.pack("<2I", listener.netns, listener.port)
    value = struct.pack("<2Q2I16s2IQ", seen_ns, cgroup_id, listener.pid, listener.pid, listener.comm.encode()[:15], passes, 0, 0)
    return key, value


def _inode_of(link: Path) -> int | None:
    try:
        return int(os.readlink(link).partition("[")[2].rstrip("]"))  # noqa: PTH115 - a name like net:[1], not a path
    except (OSError, ValueError):
        return None


def _socket_inodes(directory: Path) -> Iterator[int]:
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(directory / name)  # noqa: PTH115
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
