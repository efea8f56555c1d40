"""ring.Ring on memory made by hand: no kernel needed."""

from __future__ import annotations

import numpy as np
import pytest

from libslo.kernel.ring import HEADER_BYTES, Ring

EVENT = np.dtype([("number", "<u8"), ("rest", "V12")])  # 20 bytes: the stride rounds up to 8
STRIDE = HEADER_BYTES + 24
SIZE = 4096
BUSY, DISCARD = 1 << 31, 1 << 30


def backlog_bytes(ring: Ring) -> int:
    return int(ring._producer[0]) - int(ring._consumer[0])


class FakeKernel:
    """The writing end of a ring whose two data mappings are one array written twice."""

    def __init__(self, start: int = 0) -> None:
        self.consumer = np.array([start], np.uint64)
        self.producer = np.array([start], np.uint64)
        self.data = np.zeros(2 * SIZE, np.uint8)
        self.ring = Ring(self.consumer, self.producer, self.data, EVENT)

    def put(self, number: int, flags: int = 0, length: int = EVENT.itemsize) -> int:
        at = int(self.producer[0])
        record = (length | flags).to_bytes(4, "little") + b"\0" * 4 + number.to_bytes(8, "little")
        self.write(at, record)
        self.producer[0] += STRIDE
        return at

    def write(self, at: int, text: bytes) -> None:
        for index, byte in enumerate(text):
            self.data[(at + index) % SIZE] = self.data[(at + index) % SIZE + SIZE] = byte


def numbers(kernel: FakeKernel) -> list[int]:
    return [int(number) for number in kernel.ring.drain()["number"]]


def test_an_empty_ring_gives_no_event() -> None:
    """Nothing written, nothing read."""
    assert numbers(FakeKernel()) == []


def test_a_backlog_comes_in_order_and_once() -> None:
    """Everything committed comes out in order, once, and the consumer position says so."""
    kernel = FakeKernel()
    for number in range(5):
        kernel.put(number)
    assert backlog_bytes(kernel.ring) == 5 * STRIDE
    assert numbers(kernel) == [0, 1, 2, 3, 4]
    assert numbers(kernel) == []
    assert kernel.consumer[0] == kernel.producer[0]


def test_a_busy_record_stops_the_drain() -> None:
    """What is reserved but not committed, and all behind it, waits for the next time."""
    kernel = FakeKernel()
    kernel.put(1)
    busy_at = kernel.put(2, BUSY)
    kernel.put(3)
    assert numbers(kernel) == [1]
    assert numbers(kernel) == []
    kernel.write(busy_at, EVENT.itemsize.to_bytes(4, "little"))
    assert numbers(kernel) == [2, 3]


def test_a_discarded_record_is_skipped_and_counted() -> None:
    """Discarded records are passed over, wherever they stand."""
    kernel = FakeKernel()
    for number, flags in ((1, DISCARD), (2, 0), (3, DISCARD), (4, 0), (5, DISCARD)):
        kernel.put(number, flags)
    assert numbers(kernel) == [2, 4]
    assert kernel.ring.discarded == 3
    assert backlog_bytes(kernel.ring) == 0


@pytest.mark.parametrize("start", [SIZE - STRIDE, SIZE - 8, SIZE * 1000 - 16, (1 << 40) - 24])
def test_a_backlog_that_wraps_is_whole(start: int) -> None:
    """A backlog that runs over the end of the data, even inside a record, reads as if it did not."""
    kernel = FakeKernel(start)
    for number in range(SIZE // STRIDE):
        kernel.put(number)
    assert numbers(kernel) == list(range(SIZE // STRIDE))


def test_what_was_read_is_a_copy() -> None:
    """Events stay what they were when the kernel writes over their memory."""
    kernel = FakeKernel()
    at = kernel.put(7)
    events = kernel.ring.drain()
    kernel.write(at, b"\xff" * STRIDE)
    assert int(events["number"][0]) == 7


def test_a_record_of_another_size_is_refused() -> None:
    """A size that is not the event's means kernel and user space disagree: no guess is made."""
    kernel = FakeKernel()
    kernel.put(1, length=8)
    with pytest.raises(ValueError, match="20 bytes"):
        kernel.ring.drain()
