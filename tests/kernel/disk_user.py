"""Read, then write, blocks of a file past the page cache when told to, and time each on this process's own clock.

Usage: disk_user.py FILE READS WRITES
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time

BLOCK = 4096
path, reads, writes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
offsets = [number * BLOCK for number in range(os.lseek(descriptor, 0, os.SEEK_END) // BLOCK)]
random.shuffle(offsets)
buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants it
done = []
print("ready", flush=True)
sys.stdin.readline()
for number in range(reads + writes):
    operation = os.preadv if number < reads else os.pwritev
    begun_ns = time.time_ns()
    assert operation(descriptor, [buffer], offsets[number]) == BLOCK
    done.append((operation is os.pwritev, begun_ns, time.time_ns()))
print(json.dumps(done), flush=True)
sys.stdin.readline()
