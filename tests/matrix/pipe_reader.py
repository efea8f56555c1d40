"""Read from a pipe that answers late, when told to, and say how long each read took on this process's own clock.

Usage: pipe_reader.py READS WAIT_MS
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

reads, wait_s = int(sys.argv[1]), float(sys.argv[2]) / 1e3
out_end, in_end = os.pipe()
asked = threading.Semaphore(0)


def answer() -> None:
    for _ in range(reads):
        asked.acquire()
        time.sleep(wait_s)
        os.write(in_end, b"x")


threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
waited_ms = []
for _ in range(reads):
    asked.release()
    begun_ns = time.monotonic_ns()
    os.read(out_end, 1)
    waited_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
print(json.dumps(waited_ms), flush=True)
sys.stdin.readline()
