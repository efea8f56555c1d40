"""Hold the packets of a netfilter queue for a fixed time, many at once, or change them, through libnetfilter_queue."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_uint16, c_uint32, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libslo.errors import CannotError
from libslo.lab.netns import enter_netns

__all__ = ["HeldPackets", "PacketDelayer"]

_COPY_META = 1  # NFQNL_COPY_META, linux/netfilter/nfnetlink_queue.h: the verdict needs no payload
_COPY_PACKET = 2  # NFQNL_COPY_PACKET
_WHOLE_BYTES = 0xFFFF
_FAIL_OPEN = 1  # NFQA_CFG_F_FAIL_OPEN: a full queue passes packets on instead of dropping them
_ACCEPT = 1  # NF_ACCEPT, linux/netfilter.h
_QUEUE_PACKETS = 65536
_RECEIVE_BYTES = 4 << 20
_READ_BYTES = 65536


_Callback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p)


@dataclass
class HeldPackets:
    """Account of a queue: packets seen and changed, times the kernel's buffer overflowed, how long the last ones were held."""

    packets: int = 0
    changed: int = 0
    overruns: int = 0
    held_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def median_held_ms(self) -> float | None:
        """Median time between arrival and verdict of up to the last 1000 packets; None before the first."""
        values = list(self.held_ms)
        return statistics.median(values) if values else None


class PacketDelayer:
    """Receives queue `queue_number` of a network namespace and lets each packet go `delay_ms` after it came.

    change: gets a packet from its IP header on, and gives the one to send instead, or None to leave it as it is.

    Works in a thread of its own, which alone enters the namespace.
    Raises CannotError when the library, the kernel's support or the capability is missing.
    """

    def __init__(self, netns: Path, queue_number: int, delay_ms: float = 0, change: Callable[[bytes], bytes | None] | None = None) -> None:
        self.account = HeldPackets()
        self._netns = netns
        self._queue_number = queue_number
        self._delay_ns = int(delay_ms * 1e6)
        self._change = change
        self._waiting: deque[tuple[int, int, int, bytes | None]] = deque()  # (due, came, packet id, changed): one delay, so in order
        self._stop_read, self._stop_write = os.pipe()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="nfqueue", daemon=True)

    def start(self) -> None:
        """Begin to receive; returns when the queue is bound."""
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Let everything that waits go at once and unbind the queue."""
        if self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
        for descriptor in (self._stop_read, self._stop_write):
            try:
                os.close(descriptor)
            except OSError:
                pass  # stopped twice

    def _run(self) -> None:
        try:
            enter_netns(self._netns)
            library = _library()
            handle = library.nfq_open()
            if not handle:
                raise _cannot("open the netfilter queue")
            try:
                self._serve(library, handle)
            finally:
                library.nfq_close(handle)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    def _serve(self, library: Any, handle: int) -> None:
        def receive(_queue: int, _message: int, packet: int, _data: int) -> int:
            head = library.nfq_get_msg_packet_hdr(packet)  # struct nfqnl_msg_packet_hdr: __be32 packet_id first
            packet_id = int.from_bytes(ctypes.string_at(head, 4), "big")
            came = time.monotonic_ns()
            self._waiting.append((came + self._delay_ns, came, packet_id, self._changed(library, packet)))
            self.account.packets += 1
            return 0

        callback = _Callback(receive)  # referenced until the queue is destroyed
        queue = library.nfq_create_queue(handle, self._queue_number, callback, None)
        if not queue:
            raise _cannot(f"bind netfilter queue {self._queue_number}")
        try:
            if library.nfq_set_mode(queue, _COPY_PACKET if self._change else _COPY_META, _WHOLE_BYTES if self._change else 0) < 0:
                raise _cannot("set the mode of the netfilter queue")
            library.nfq_set_queue_maxlen(queue, _QUEUE_PACKETS)
            library.nfq_set_queue_flags(queue, _FAIL_OPEN, _FAIL_OPEN)
            library.nfnl_rcvbufsiz(library.nfq_nfnlh(handle), _RECEIVE_BYTES)
            descriptor = library.nfq_fd(handle)
            os.set_blocking(descriptor, False)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._stop_read, select.POLLIN)
            self._ready.set()
            while not any(ready == self._stop_read for ready, _ in poll.poll(self._timeout_ms())):
                self._receive(library, handle, descriptor)
                self._let_go(library, queue, time.monotonic_ns())
        finally:
            self._let_go(library, queue, None)
            library.nfq_destroy_queue(queue)

    def _changed(self, library: Any, packet: int) -> bytes | None:
        if self._change is None:
            return None
        start = c_void_p()
        length = library.nfq_get_payload(packet, ctypes.byref(start))
        changed = self._change(ctypes.string_at(start, length)) if length > 0 and start.value else None
        self.account.changed += changed is not None
        return changed

    def _timeout_ms(self) -> int | None:
        if not self._waiting:
            return None
        return max(0, -((time.monotonic_ns() - self._waiting[0][0]) // 1_000_000))  # rounded up: never early

    def _receive(self, library: Any, handle: int, descriptor: int) -> None:
        while True:
            try:
                message = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.account.overruns += 1  # those packets were passed on by fail-open; what follows is whole
                continue
            library.nfq_handle_packet(handle, message, len(message))

    def _let_go(self, library: Any, queue: int, now_ns: int | None) -> None:
        while self._waiting and (now_ns is None or self._waiting[0][0] <= now_ns):
            _, came, packet_id, changed = self._waiting.popleft()
            library.nfq_set_verdict(queue, packet_id, _ACCEPT, len(changed or b""), changed)
            self.account.held_ms.append((time.monotonic_ns() - came) / 1e6)


def _cannot(what: str) -> CannotError:
    code = ctypes.get_errno()
    hint = "run as root (CAP_NET_ADMIN)" if code == errno.EPERM else "modprobe nfnetlink_queue"
    return CannotError(f"cannot {what}: {os.strerror(code)}", source="libnetfilter_queue", hint=hint)


def _library() -> Any:
    try:
        library = ctypes.CDLL("libnetfilter_queue.so.1", use_errno=True)
    except OSError as error:
        raise CannotError("libnetfilter_queue.so.1 is not installed", hint="apt-get install libnetfilter-queue1") from error
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nfq_open": (c_void_p, []),
        "nfq_close": (c_int, [c_void_p]),
        "nfq_create_queue": (c_void_p, [c_void_p, c_uint16, _Callback, c_void_p]),
        "nfq_destroy_queue": (c_int, [c_void_p]),
        "nfq_set_mode": (c_int, [c_void_p, ctypes.c_uint8, c_uint32]),
        "nfq_set_queue_maxlen": (c_int, [c_void_p, c_uint32]),
        "nfq_set_queue_flags": (c_int, [c_void_p, c_uint32, c_uint32]),
        "nfq_fd": (c_int, [c_void_p]),
        "nfq_nfnlh": (c_void_p, [c_void_p]),
        "nfq_handle_packet": (c_int, [c_void_p, c_char_p, c_int]),
        "nfq_get_msg_packet_hdr": (c_void_p, [c_void_p]),
        "nfq_get_payload": (c_int, [c_void_p, c_void_p]),
        "nfq_set_verdict": (c_int, [c_void_p, c_uint32, c_uint32, c_uint32, c_char_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    # exported by libnfnetlink, which libnetfilter_queue pulls in
    library.nfnl_rcvbufsiz.restype, library.nfnl_rcvbufsiz.argtypes = ctypes.c_uint, [c_void_p, ctypes.c_uint]
    return library
