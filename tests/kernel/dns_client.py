"""DNS traffic for tests: a plan of queries in as JSON, what the client's own clock saw of each out as JSON.

A plan is a list of sockets {family, connected, server, queries: [{txid, name, qtype}], together}: "together" sends all its queries
in one sendmmsg(2). Waits for a line on stdin before the first packet, so that its pid can be known.
"""

from __future__ import annotations

import ctypes
import json
import selectors
import socket
import sys
import time
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("name_length", ctypes.c_uint32), ("iov", ctypes.POINTER(IoVec)), ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int),
    )  # fmt: skip


class MMsgHdr(ctypes.Structure):
    _fields_ = (("header", MsgHdr), ("length", ctypes.c_uint))


def message(query: dict[str, Any]) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in query["name"].split("."))
    return query["txid"].to_bytes(2, "big") + b"\x01\x00\x00\x01\0\0\0\0\0\0" + labels + b"\0" + query["qtype"].to_bytes(2, "big") + b"\0\1"


def packed_address(family: int, server: str) -> bytes:
    if family == socket.AF_INET:
        return family.to_bytes(2, sys.byteorder) + (53).to_bytes(2, "big") + socket.inet_aton(server) + b"\0" * 8
    return family.to_bytes(2, sys.byteorder) + (53).to_bytes(2, "big") + b"\0" * 4 + socket.inet_pton(family, server) + b"\0" * 4


def send_together(sock: socket.socket, messages: list[bytes], address: bytes | None) -> None:
    vectors = (MMsgHdr * len(messages))()
    parts = [IoVec(text, len(text)) for text in messages]
    for vector, part in zip(vectors, parts, strict=True):
        vector.header.iov, vector.header.iov_length = ctypes.pointer(part), 1
        if address:
            vector.header.name, vector.header.name_length = address, len(address)
    assert libc.sendmmsg(sock.fileno(), vectors, len(messages), 0) == len(messages)


def main() -> None:
    plan, wait_s, repeat_after_s = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    selector = selectors.DefaultSelector()
    log: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in plan:
        family = socket.AF_INET6 if entry["family"] == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM if entry.get("tcp") else socket.SOCK_DGRAM)
        if entry["connected"] or entry.get("tcp"):
            sock.connect((entry["server"], 53))
        else:
            sock.bind(("", 0))
        port = sock.getsockname()[1]
        selector.register(sock, selectors.EVENT_READ, port)
        messages = [message(query) for query in entry["queries"]]
        address = None if entry["connected"] else packed_address(family, entry["server"])
        for query in entry["queries"]:
            log[port, query["txid"]] = {**query, "port": port, "sent_ns": time.monotonic_ns(), "got_ns": 0}
        for _ in range(2 if repeat_after_s else 1):
            if entry.get("tcp"):
                for text in messages:
                    sock.sendall(len(text).to_bytes(2, "big") + text)
            elif entry["together"]:
                send_together(sock, messages, address)
            else:
                for text in messages:
                    sock.send(text) if entry["connected"] else sock.sendto(text, (entry["server"], 53))
            time.sleep(repeat_after_s)
    left, end = len(log), time.monotonic() + wait_s
    while left and time.monotonic() < end:
        for key, _ in selector.select(max(0.0, end - time.monotonic())):
            data = key.fileobj.recv(2048)  # type: ignore[union-attr]
            now_ns = time.monotonic_ns()
            at = 2 if key.fileobj.type == socket.SOCK_STREAM else 0  # type: ignore[union-attr]
            entry = log.get((key.data, int.from_bytes(data[at : at + 2], "big")))
            if entry and not entry["got_ns"]:
                entry["got_ns"] = now_ns
                left -= 1
    print(json.dumps(list(log.values())))


main()
