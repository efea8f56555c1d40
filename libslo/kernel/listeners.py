"""Who listens on which port already: what the kernel cannot tell a program that comes later.

Retransmits of accepted sockets are charged to the process that listens; servers usually run before the agent does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from libslo.host import libc

__all__ = ["Listener", "listening_processes", "pack_listener", "pack_socket_owner", "parse_listening", "take_socket"]

_SYS_PIDFD_GETFD = 438  # the same on every architecture: include/uapi/asm-generic/unistd.h
_LISTEN = "0A"  # TCP_LISTEN as /proc/net/tcp prints it


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening port and a process that holds its socket (the one with the lowest pid: before it forked workers)."""

    netns: int
    port: int
    pid: int
    comm: str
    cgroup_path: str  # in the cgroup2 hierarchy
    fd: int = -1  # of the socket in that process


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
        for fd, inode in _socket_inodes(proc / str(pid) / "fd"):
            key = sockets.get(inode)
            if key and key not in found:
                lines = _read(proc / str(pid) / "cgroup").splitlines()
                path = next((line[3:] for line in lines if line.startswith("0::")), "/")
                found[key] = Listener(*key, pid, _read(proc / str(pid) / "comm").strip(), path, fd)
    return list(found.values())


def pack_listener(listener: Listener, *, cgroup_id: int, seen_ns: int, passes: bool) -> tuple[bytes, bytes]:
    """Key and value (struct listener_key, struct port_listener) of the probe's map; a cookie of 0 says: not seen listening."""
    key = struct.pack("<2I", listener.netns, listener.port)
    value = struct.pack("<2Q2I16s2IQ", seen_ns, cgroup_id, listener.pid, listener.pid, listener.comm.encode()[:15], passes, 0, 0)
    return key, value


def pack_socket_owner(listener: Listener, *, cgroup_id: int, seen_ns: int, passes: bool) -> bytes:
    """struct socket_owner of bpf/tcp_retransmits_total.sock_ops.bpf.c, for a socket that is bound."""
    return struct.pack("<2Q2I16s4I", seen_ns, cgroup_id, listener.pid, listener.pid, listener.comm.encode()[:15], passes, 0, True, 0)


def take_socket(listener: Listener) -> int:
    """A descriptor of our own for the listening socket, which the caller closes. Raises OSError (CAP_SYS_PTRACE, or it has gone)."""
    process = os.pidfd_open(listener.pid)
    try:
        found: int = libc().syscall(_SYS_PIDFD_GETFD, process, listener.fd, 0)
        if found < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return found
    finally:
        os.close(process)


def _inode_of(link: Path) -> int | None:
    try:
        return int(os.readlink(link).partition("[")[2].rstrip("]"))  # noqa: PTH115 - a name like net:[1], not a path
    except (OSError, ValueError):
        return None


def _socket_inodes(directory: Path) -> Iterator[tuple[int, int]]:
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
            yield int(name), int(target[8:-1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
