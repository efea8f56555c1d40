"""Make read and sync calls when told to, each timed on this process's own clock.

Usage: syscall_user.py pipe|socket COUNT SECONDS [NAME] | disk|sync COUNT FILE | write COUNT FILE | idle | fail DIRECTORY
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import socket
import sys
import threading
import time
from pathlib import Path

BLOCK = 4096
what = sys.argv[1]
done: list[tuple[int, int]] = []
tid = os.getpid()


def timed(action) -> None:
    begun_ns = time.time_ns()
    action()
    done.append((begun_ns, time.time_ns()))


def wait_for_peer(ends: tuple[int, int], count: int, seconds: float) -> None:
    """In a thread of its own: who waits is then not the process's first thread."""

    def reads() -> None:
        global tid
        tid = threading.get_native_id()
        for _ in range(count):
            about_to_read.release()
            timed(lambda: os.read(ends[0], 1))

    about_to_read = threading.Semaphore(0)
    thread = threading.Thread(target=reads)
    thread.start()
    for _ in range(count):
        about_to_read.acquire()
        time.sleep(seconds)
        os.write(ends[1], b".")
    thread.join()


if what == "pipe" and len(sys.argv) > 4:
    Path("/proc/self/comm").write_text(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
if what == "pipe":
    wait_for_peer(os.pipe(), int(sys.argv[2]), float(sys.argv[3]))
elif what == "socket":
    near, far = socket.socketpair()
    wait_for_peer((near.fileno(), far.fileno()), int(sys.argv[2]), float(sys.argv[3]))
elif what == "disk":
    file = io.FileIO(os.open(sys.argv[3], os.O_RDONLY | os.O_DIRECT))  # open to the end: it is looked at after each read
    buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants it
    for number in range(int(sys.argv[2])):
        file.seek(number * BLOCK)
        timed(lambda: file.readinto(buffer))
elif what == "sync":
    descriptor = os.open(sys.argv[3], os.O_WRONLY)
    for number in range(int(sys.argv[2])):
        os.pwrite(descriptor, os.urandom(BLOCK), number * BLOCK)
        timed(lambda: os.fsync(descriptor))
elif what == "write":
    descriptors = [os.open(sys.argv[3], os.O_WRONLY), os.pipe()[1], os.eventfd(0)]
    for _ in range(int(sys.argv[2])):
        for descriptor in descriptors:
            os.write(descriptor, (1).to_bytes(8, sys.byteorder))
    for descriptor in descriptors:
        os.close(descriptor)
elif what == "fail":
    quiet, _ = os.pipe2(os.O_NONBLOCK)
    directory = os.open(sys.argv[2], os.O_RDONLY)
    for _ in range(7):
        with contextlib.suppress(OSError):
            os.read(quiet, 1)  # EAGAIN
        with contextlib.suppress(OSError):
            os.read(directory, 1)  # EISDIR
print(json.dumps({"done": done, "tid": tid, "descriptors": descriptors if what == "write" else []}), flush=True)
sys.stdin.readline()
