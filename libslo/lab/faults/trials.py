"""Find out whether the kernel can do what a mechanism of a network fault needs: by doing it, in a namespace that ends with it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

from libslo.host import libc
from libslo.lab.faults.base import missing

__all__ = ["unusable"]

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_QUEUE = ["-j", "NFQUEUE", "--queue-num", "1"]
_SHARE = ["-m", "statistic", "--mode", "random", "--probability", "0.5", "-m", "comment", "--comment", "slo"]
_RULE = "chain output { type filter hook output priority -300; policy accept; numgen random mod 10 < 5 queue num 1; }"
_TRIALS = {
    "netem": ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
    "nfqueue": ["iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "udp", *_QUEUE, "--queue-bypass"],
    "iptables": ["iptables", "-t", "raw", "-A", "OUTPUT", *_SHARE, *_QUEUE],
    "nftables": ["nft", f"table inet slo_trial {{\n{_RULE}\n}}"],
}


def unusable(mechanism: str) -> tuple[str, str] | None:
    """Why a mechanism cannot be used here and what would help; None when nothing is known against it."""
    lacks = missing(mechanism)
    if lacks:
        return lacks[0]
    complaint = _try(_TRIALS[mechanism]) if mechanism in _TRIALS else ""
    return (f"this kernel: {complaint}", "modprobe, or another kernel") if complaint else None


def _try(command: list[str]) -> str:
    """What a program complains of in a new network namespace; "" when it does not."""
    said: list[str] = []

    def run() -> None:
        if libc().unshare(_CLONE_NEWNET) != 0:
            said.append(os.strerror(ctypes.get_errno()))
            return
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said.append((done.stderr.strip() or "it said nothing").splitlines()[0])

    thread = threading.Thread(target=run, name="trial")  # of its own: the namespace ends with it
    thread.start()
    thread.join()
    return said[0] if said else ""
