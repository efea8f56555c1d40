"""Use a CPU, or sleep, for some time when told to, and say how long the kernel made this thread wait for its CPU.

Usage: cpu_worker.py busy|quiet SECONDS [CPU [NAME]]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def run_delay_ns() -> int:
    """Second field of schedstat: time spent runnable and not running, Documentation/scheduler/sched-stats.rst."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


kind, seconds = sys.argv[1], float(sys.argv[2])
if len(sys.argv) > 3:
    os.sched_setaffinity(0, {int(sys.argv[3])})
if len(sys.argv) > 4:
    Path("/proc/self/comm").write_text(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
begun_ns, before_ns = time.time_ns(), run_delay_ns()
while time.time_ns() < begun_ns + seconds * 1e9:
    if kind == "quiet":
        time.sleep(0.02)
after_ns, ended_ns = run_delay_ns(), time.time_ns()
print(json.dumps({"begun_ns": begun_ns, "ended_ns": ended_ns, "run_delay_ms": (after_ns - before_ns) / 1e6}), flush=True)
sys.stdin.readline()
