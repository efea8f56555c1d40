"""Drain a BPF ring buffer of fixed-size records with numpy: one structured view a backlog, no loop over records.

The kernel maps the data twice in a row, so a backlog that wraps is contiguous. Each record is an 8-byte header
(length with a busy and a discard bit, page offset) and the event, rounded up to 8: with one event size the stride is constant.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEADER_BYTES", "Ring", "open_ring"]

HEADER_BYTES = 8
_BUSY = np.uint32(1 << 31)  # BPF_RINGBUF_BUSY_BIT: reserved, not committed yet
_DISCARD = np.uint32(1 << 30)  # BPF_RINGBUF_DISCARD_BIT
_LENGTH = np.uint32((1 << 30) - 1)


class Ring:
    """The reading end of one ring.

    consumer, producer: uint64 arrays of shape (1,), positions in bytes that only grow; we write the first one only.
    data: uint8 array of shape (2 * size,), the second half showing the same memory as the first.
    event_dtype: structured dtype of one event.
    """

    def __init__(
        self,
        consumer: NDArray[np.uint64],
        producer: NDArray[np.uint64],
        data: NDArray[np.uint8],
        event_dtype: np.dtype[Any],
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._data = data
        self._size = data.size // 2
        self._event_dtype = event_dtype
        # The event as opaque bytes: numpy then copies it whole instead of field by field.
        padded = (event_dtype.itemsize + 7) & ~7
        self._slot = np.dtype(
            {"names": ["length", "event"], "formats": ["<u4", f"V{event_dtype.itemsize}"], "offsets": [0, HEADER_BYTES],
             "itemsize": HEADER_BYTES + padded}
        )  # fmt: skip
        self._fence = threading.Lock()
        self.discarded = 0

    def drain(self) -> NDArray[Any]:
        """Take all committed records up to the first busy one: a copy, shape (n,), dtype `event_dtype`.

        Raises ValueError when a record has another size, which means that kernel and user space disagree about the event.
        """
        position = int(self._consumer[0])
        slots = (int(self._producer[0]) - position) // self._slot.itemsize
        if not slots:
            return np.empty(0, self._event_dtype)
        view: NDArray[Any] = np.ndarray((slots,), self._slot, self._data.data, position & (self._size - 1))
        headers = view["length"].copy()
        with self._fence:
            pass  # a barrier: on weakly ordered CPUs no event byte may be read before its header
        busy = headers >= _BUSY
        if busy.any():
            slots = int(busy.argmax())
            headers, view = headers[:slots], view[:slots]
        if (headers & _LENGTH != self._event_dtype.itemsize).any():
            raise ValueError(f"a ring record is not {self._event_dtype.itemsize} bytes long")
        kept = headers & _DISCARD == 0
        events = view["event"].copy() if kept.all() else view["event"][kept]
        self.discarded += slots - events.size
        self._consumer[0] = position + slots * self._slot.itemsize
        return events.view(self._event_dtype)


def open_ring(map_fd: int, size_bytes: int, event_dtype: np.dtype[Any]) -> Ring:
    """Map the ring behind a map's file descriptor. size_bytes: the map's max_entries. Raises OSError."""
    page = mmap.PAGESIZE
    writable = mmap.mmap(map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    readable = mmap.mmap(map_fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
    consumer = np.frombuffer(writable, np.uint64, count=1)
    producer = np.frombuffer(readable, np.uint64, count=1)
    return Ring(consumer, producer, np.frombuffer(readable, np.uint8, offset=page), event_dtype)
