"""The kernel's own delay accounting of one process: taskstats over generic netlink."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_SWITCH = Path("/proc/sys/kernel/task_delayacct")
_NETLINK_GENERIC = 16
# Offsets in struct taskstats, include/uapi/linux/taskstats.h: fields are only ever appended.
_FREEPAGES_COUNT, _FREEPAGES_DELAY_TOTAL = 312, 320


@contextlib.contextmanager
def delay_accounting() -> Iterator[None]:
    """Have the kernel account the delays of tasks that start inside the `with`."""
    before = _SWITCH.read_text()
    _SWITCH.write_text("1")
    try:
        yield
    finally:
        _SWITCH.write_text(before)


def reclaim_delay(pid: int) -> tuple[int, int]:
    """How often the threads of a process had to free memory, and the nanoseconds that it took."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as netlink:
        netlink.bind((0, 0))
        # CTRL_CMD_GETFAMILY by CTRL_ATTR_FAMILY_NAME; then TASKSTATS_CMD_GET by TASKSTATS_CMD_ATTR_TGID.
        family = _attributes(_ask(netlink, 0x10, 3, 2, b"TASKSTATS\0"))[1]
        answer = _attributes(_ask(netlink, struct.unpack("<H", family)[0], 1, 2, struct.pack("<I", pid)))
    stats = _attributes(answer[5])[3]  # TASKSTATS_TYPE_AGGR_TGID, TASKSTATS_TYPE_STATS
    count, delay_ns = struct.unpack_from("<Q", stats, _FREEPAGES_COUNT)[0], struct.unpack_from("<Q", stats, _FREEPAGES_DELAY_TOTAL)[0]
    return count, delay_ns


def _ask(netlink: socket.socket, kind: int, command: int, attribute: int, value: bytes) -> bytes:
    padded = value + b"\0" * (-len(value) % 4)
    body = struct.pack("<BBH", command, 1, 0) + struct.pack("<HH", 4 + len(value), attribute) + padded
    netlink.send(struct.pack("<IHHII", 16 + len(body), kind, 1, 1, 0) + body)
    answer = netlink.recv(1 << 16)
    assert struct.unpack_from("<H", answer, 4)[0] != 2, "netlink error"  # NLMSG_ERROR
    return answer[20:]


def _attributes(block: bytes) -> dict[int, bytes]:
    found = {}
    while len(block) >= 4:
        length, kind = struct.unpack_from("<HH", block)
        found[kind & 0x3FFF] = block[4:length]
        block = block[(length + 3) & ~3 :]
    return found
