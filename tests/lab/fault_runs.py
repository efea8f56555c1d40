"""What the tests of real faults share: faultinject as a process, an injector in a line, and what a namespace looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libslo.contracts import contract
from libslo.lab.faults.base import Injector
from libslo.lab.faults.targets import find_target
from libslo.lab.injectors import make_injector
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.topology import Topology, importable

__all__ = ["faultinject", "ground", "injector", "injector_files", "run_faultinject", "window_line"]

_MAIN = "import sys; from slotools.faultinject import main; sys.exit(main())"


def injector(
    fault: str, target: str | None = None, mechanisms: Sequence[str] | None = None, role: str | None = None, **parameters: float | str
) -> Injector:
    """The injector of a fault on the running lab, or on a target."""
    return make_injector(fault, parameters, find_target(fault, target, role=role, allow_outside=True), mechanisms)


def ground(lab: Topology, role: str = "dns") -> str:
    """Everything an injection may change in a role's network namespace."""
    commands = [
        *([program, "-t", table, "-S"] for program in ("iptables", "ip6tables") for table in ("filter", "mangle", "raw")),
        ["tc", "qdisc", "show"],
        ["nft", "list", "tables", "inet"],
    ]

    def look() -> str:
        return "".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands)

    return call_in_netns(netns_of(lab.pids[role]), look)


def injector_files(state: Path) -> list[str]:
    """Undo records that are there now."""
    return sorted(path.name for path in state.glob("injection*"))


def faultinject(*arguments: str) -> subprocess.Popen[bytes]:
    """The tool as a process whose stdout and stderr are read here."""
    command = [sys.executable, "-c", _MAIN, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **importable()})


def run_faultinject(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, fault-windows and stderr of a whole run."""
    process = faultinject(*arguments)
    out, err = process.communicate(timeout=120)
    windows = [json.loads(line) for line in out.splitlines()]
    assert all(contract("fault-window").is_valid(window) for window in windows)
    return process.returncode, windows, err.decode()


def window_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next fault-window that a process writes; what it said on stderr when there is none."""
    assert process.stdout is not None
    assert process.stderr is not None
    text = process.stdout.readline()
    assert text, process.stderr.read().decode()
    window: dict[str, Any] = json.loads(text)
    assert contract("fault-window").is_valid(window)
    return window
