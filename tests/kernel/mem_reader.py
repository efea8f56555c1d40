"""Read a file once, page by page, when told to; say how long it took, then stay until told to end.

Usage: mem_reader.py FILE
"""

from __future__ import annotations

import json
import os
import sys
import time

descriptor = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no page is read ahead, freed unused and read again
print("ready", flush=True)
sys.stdin.readline()
begun_ns = time.time_ns()
while os.read(descriptor, 1 << 16):
    pass
print(json.dumps({"begun_ns": begun_ns, "ended_ns": time.time_ns()}), flush=True)
sys.stdin.readline()
