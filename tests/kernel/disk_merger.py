"""Read three blocks of a file at once, the middle one last, when told to and as often as told.

Usage: disk_merger.py FILE ROUNDS
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys

BLOCK = 4096
# Linux native AIO, include/uapi/linux/aio_abi.h: the requests of one io_submit of more than two reach the disk's queue together.
IO_SETUP, IO_SUBMIT, IO_GETEVENTS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 3 * BLOCK)
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
context = ctypes.c_ulong(0)
assert libc.syscall(IO_SETUP, 8, ctypes.byref(context)) == 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    blocks = [
        ctypes.create_string_buffer(
            struct.pack("<QIIHhIQQqQII", 0, 0, 0, 0, 0, descriptor, address + place * BLOCK, BLOCK, (8 * number + place) * BLOCK, 0, 0, 0)
        )
        for place in (0, 2, 1)
    ]
    pointers = (ctypes.c_void_p * 3)(*map(ctypes.addressof, blocks))
    assert libc.syscall(IO_SUBMIT, context, 3, pointers) == 3
    done = ctypes.create_string_buffer(3 * 32)
    assert libc.syscall(IO_GETEVENTS, context, 3, 3, done, None) == 3
print("done", flush=True)
sys.stdin.readline()
