"""Cgroups as a source of identity: what a path tells, and which path belongs to the cgroup id that an event carries."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from libslo.host import ROOT_CGROUP_ID, cgroup2_mount, libc

__all__ = ["CgroupPaths", "CgroupPlace", "group_key", "parse_cgroup"]

_HEX64 = r"[0-9a-f]{64}"
# Path forms: https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/cm/cgroup_manager_linux.go (systemd and cgroupfs drivers)
# and those of containerd, cri-o, docker and podman below the pod. Examples with their sources: testdata/cgroups/paths.jsonl
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?=[/:]|$)")
_CONTAINER = re.compile(rf"(?:^|[-:/])({_HEX64})(?:\.scope)?(?=/|$)")
_UNIT = re.compile(r"([^/]+)\.(?:service|scope)(?=/|$)")
_NO_SERVICE = re.compile(r"session-\w+|init")  # scopes that hold a login or a manager: their processes have nothing else in common
_DELETED = " (deleted)"  # behind the path of a cgroup2 that was removed before its last process was waited for


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """What a cgroup path tells; "" for what it does not."""

    pod_uid: str = ""
    container_id: str = ""
    unit: str = ""

    @property
    def contained(self) -> bool:
        """It is in a container or a pod."""
        return bool(self.container_id or self.pod_uid)


def parse_cgroup(text: str) -> CgroupPlace:
    """Read the text of ``/proc/<pid>/cgroup``: v2 (one line), v1 (one a controller) and hybrid.

    The line that tells most wins, so in the hybrid form an empty v2 path does not hide the v1 ones.
    Of nested pods the innermost counts, of its containers the outermost: that is the one Kubernetes knows.
    """
    best = CgroupPlace()
    for line in text.splitlines():
        place = _parse_path(line.split(":", 2)[-1].removesuffix(_DELETED))
        if _told(place) > _told(best):
            best = place
    return best


def _parse_path(path: str) -> CgroupPlace:
    pods = list(_POD.finditer(path))
    containers = [match for match in _CONTAINER.finditer(path) if "conmon" not in path[: match.start(1)].rpartition("/")[2]]
    if pods:
        inside = [match.group(1) for match in containers if match.start(1) > pods[-1].end()]
        container_id = inside[0] if inside else ""
    else:
        container_id = containers[-1].group(1) if containers else ""
    units = [unit for unit in _UNIT.findall(path) if not _NO_SERVICE.fullmatch(unit)]
    return CgroupPlace(
        pod_uid=pods[-1].group(1).replace("_", "-") if pods else "",
        container_id=container_id,
        unit="" if not units or any(match.group(1) in units[-1] for match in containers) else units[-1],
    )


def _told(place: CgroupPlace) -> tuple[bool, bool, bool]:
    return bool(place.container_id), bool(place.pod_uid), bool(place.unit)


def group_key(text: str) -> str:
    """What two processes of one cgroup have in common, from the text of ``/proc/<pid>/cgroup``; "" for those in the root.

    The cgroup2 path where it is not the root, else the v1 paths.
    """
    lines = [line.removesuffix(_DELETED).split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    unified = next((path for number, _, path in lines if number == "0"), "/")
    if unified != "/":
        return unified
    paths = {path for number, _, path in lines if number != "0"} - {"/"}
    return "\n".join(sorted(paths))


class CgroupPaths:
    """From the id of a cgroup2 directory (its inode number) to its path, remembered after the directory is gone.

    An id is opened as a file handle (7 us measured), which needs CAP_DAC_READ_SEARCH; without it the hierarchy is listed,
    at most max_dirs directories and never for more than a twentieth of the time. clock_ns: a monotonic clock.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        handles: bool = True,
        limit: int = 8192,
        max_dirs: int = 16384,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._given = root
        self._handles = handles
        self._limit = limit
        self._max_dirs = max_dirs
        self._clock_ns = clock_ns
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._next_scan_ns = 0

    @cached_property
    def _root(self) -> Path | None:
        return self._given or cgroup2_mount()

    def path(self, cgroup_id: int) -> str:
        """The path below the mount, such as ``/kubepods/pod.../...``; "" for the root and for what is not there or not known yet."""
        if cgroup_id <= ROOT_CGROUP_ID or self._root is None:
            return ""
        known = self._paths.get(cgroup_id)
        if known is not None:
            self._paths.move_to_end(cgroup_id)
            return known
        if self._handles:
            try:
                return self._remember(cgroup_id, self._open(cgroup_id))
            except OSError as error:
                if error.errno == errno.ESTALE:  # ids are never given away again
                    return self._remember(cgroup_id, "")
                self._handles = False
        if self._clock_ns() < self._next_scan_ns:
            return ""
        self.scan()
        return self._remember(cgroup_id, self._paths.get(cgroup_id, ""))

    def scan(self) -> None:
        """Remember every cgroup there is now, nearest to the root first."""
        if self._root is None:
            return
        begun_ns = self._clock_ns()
        waiting, seen = [(str(self._root), "")], 0
        for place, path in waiting:
            try:
                with os.scandir(place) as entries:
                    # stat, not the number in the listing: an overlay may show another one there.
                    below = [(entry.name, entry.stat().st_ino) for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue  # it went while the list was read
            seen += 1
            if seen > self._max_dirs:
                break
            for name, inode in below:
                self._remember(inode, f"{path}/{name}")
                waiting.append((f"{place}/{name}", f"{path}/{name}"))
        ended_ns = self._clock_ns()
        self._next_scan_ns = ended_ns + 20 * (ended_ns - begun_ns)

    def _open(self, cgroup_id: int) -> str:
        root_fd = os.open(str(self._root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # struct file_handle with the 64-bit id of a kernfs node: FILEID_KERNFS, include/linux/exportfs.h
            handle = struct.pack("<IiQ", 8, 0xFE, cgroup_id)
            fd = libc().open_by_handle_at(root_fd, handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "open_by_handle_at")
            try:
                found = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - what the kernel says, not a path to follow
            finally:
                os.close(fd)
        finally:
            os.close(root_fd)
        return found.removeprefix(str(self._root)).removesuffix(_DELETED)

    def _remember(self, cgroup_id: int, path: str) -> str:
        self._paths[cgroup_id] = path
        self._paths.move_to_end(cgroup_id)
        while len(self._paths) > self._limit:
            self._paths.popitem(last=False)
        return path
