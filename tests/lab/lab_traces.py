"""One list of everything a lab might leave on the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from libslo.lab.topology import ADDRESSES, hierarchies

__all__ = ["Traces"]


class Traces:
    """Everything of this test's labs that is on the machine now, found by its state directory and its names."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._own = os.getpid()

    def processes(self) -> dict[int, str]:
        """Processes started with this test's state directory, other than this one."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._own:
                try:
                    if os.fsencode(f"SLO_STATE_DIR={self._state}") in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
        return found

    def namespaces(self) -> set[int]:
        """Network namespaces these processes live in, other than this one's."""
        own = Path("/proc/self/ns/net").stat().st_ino
        found = set()
        for pid in self.processes():
            try:
                found.add(Path(f"/proc/{pid}/ns/net").stat().st_ino)
            except OSError:
                continue
        return found - {own}

    def cgroups(self) -> set[str]:
        """Lab cgroups on the machine, those of others included: look for your own lab's."""
        return {path.name for hierarchy in hierarchies() for path in hierarchy.glob("slo-lab-*")}

    def mounts(self) -> list[str]:
        """Mounts this process sees over the files that a lab replaces, and below its files."""
        own = ("/etc/resolv.conf", "/etc/nsswitch.conf", str(self._state))
        return [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1].startswith(own)]

    def links(self) -> list[str]:
        """Network devices of this process's namespace that are named like a lab's."""
        names = {"br0", *(f"p-{role}" for role in ADDRESSES)}
        said = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        return [name for name in (line.split()[0].partition("@")[0] for line in said.splitlines()) if name in names]

    def files(self) -> list[str]:
        """Files in the state directory."""
        return sorted(path.name for path in self._state.iterdir()) if self._state.exists() else []
