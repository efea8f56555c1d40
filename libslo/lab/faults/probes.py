"""Ask a name server, or knock at a closed port, from inside a network namespace: what a fault does, by this process's clock."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from libslo.lab.netns import call_in_netns

__all__ = ["DNS_PORT", "DnsAnswer", "ask_dns", "knock_ms", "measure_dns_ms"]

DNS_PORT = 53
_S = TypeVar("_S")
_T = TypeVar("_T")
_CLOSED_PORT = 1  # tcpmux: nobody listens there, so the answer is a reset


@dataclass(frozen=True)
class DnsAnswer:
    """One answer: after how long, and its rcode."""

    took_ms: float
    rcode: int


def ask_dns(netns: Path, server: str, name: str, count: int, timeout_s: float = 10) -> list[DnsAnswer]:
    """`count` simultaneous A queries sent from a namespace; lost ones are missing."""
    query_tail = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"

    def ask(connected: socket.socket) -> DnsAnswer | None:
        transaction = random.randbytes(2)
        with connected:
            connected.settimeout(timeout_s)
            sent_s = time.perf_counter()
            try:
                connected.send(transaction + b"\1\0\0\1\0\0\0\0\0\0" + query_tail)
                while (answer := connected.recv(4096))[:2] != transaction:
                    pass
            except OSError:
                return None
            return DnsAnswer((time.perf_counter() - sent_s) * 1e3, answer[3] & 15)

    def open_sockets() -> list[socket.socket]:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for one in sockets:
            one.connect((server, DNS_PORT))
        return sockets

    return _all_at_once(ask, call_in_netns(netns, open_sockets))


def measure_dns_ms(netns: Path, server: str, name: str, count: int, timeout_s: float = 10) -> list[float]:
    """Times of `count` simultaneous A queries sent from a namespace; lost ones are missing."""
    return [answer.took_ms for answer in ask_dns(netns, server, name, count, timeout_s)]


def knock_ms(netns: Path, address: str, count: int, timeout_s: float) -> list[float]:
    """Times from a connect to the refusal of a closed port, `count` at once from a namespace; those without any answer are missing.

    timeout_s: below a second, the kernel sends no second SYN.
    """

    def knock(one: socket.socket) -> float | None:
        with one:
            one.settimeout(timeout_s)
            sent_s = time.perf_counter()
            try:
                one.connect((address, _CLOSED_PORT))
            except ConnectionRefusedError:
                return (time.perf_counter() - sent_s) * 1e3
            except OSError:
                return None
            return None

    return _all_at_once(knock, call_in_netns(netns, lambda: [socket.socket() for _ in range(count)]))


def _all_at_once(function: Callable[[_S], _T | None], values: list[_S]) -> list[_T]:
    with ThreadPoolExecutor(len(values)) as pool:
        return [value for value in pool.map(function, values) if value is not None]
