"""TLS servers for tests: a list of listeners as JSON on the command line, a thread for each connection.

A listener is {port, certificates, delay_ms, version, group, ciphers, client_ca, action}. delay_ms passes between accept and handshake.
action: "" serves; "close", "reset" end the connection once a ClientHello is there; "silence" never answers;
"plain" answers with text; "connect" is a proxy that says 200 and then serves TLS itself; "half" sends a ServerHello and stops;
"warn" sends a warning alert before its ServerHello; "slow" waits for delay_ms before each of its flights instead of once.
After the handshake "get N" is answered with N bytes, and an HTTP request with an empty page.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def context_of(entry: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{entry['certificates']}/server.pem")
    if entry.get("version"):
        context.minimum_version = context.maximum_version = VERSIONS[entry["version"]]
    if entry.get("group"):
        context.set_ecdh_curve(entry["group"])
    if entry.get("ciphers"):
        context.set_ciphers(entry["ciphers"])
    if entry.get("client_ca"):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(f"{entry['certificates']}/ca.pem")
    return context


def answer(tls: ssl.SSLSocket) -> None:
    while data := tls.recv(1 << 16):
        if data.startswith(b"get "):
            left = int(data[4:])
            while left:
                left -= tls.send(b"x" * min(left, 1 << 20))
        elif b"HTTP/1.1" in data:
            tls.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        else:
            tls.send(data)


def shake_slowly(connection: socket.socket, delay_s: float, context: ssl.SSLContext) -> None:
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(inside, outside, server_side=True)
    while received := connection.recv(1 << 16):
        inside.write(received)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        if flight := outside.read():
            time.sleep(delay_s)
            connection.send(flight)


def serve(connection: socket.socket, entry: dict[str, Any], context: ssl.SSLContext) -> None:
    action = entry.get("action", "")
    with contextlib.suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if action == "connect":
            connection.recv(1 << 12)
            connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if action == "slow":
            shake_slowly(connection, entry["delay_ms"] / 1e3, context)
            return
        time.sleep(entry.get("delay_ms", 0) / 1e3)
        if action in ("close", "reset", "silence", "plain", "half"):
            hello = connection.recv(1 << 14)
            if action == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif action == "silence":
                connection.recv(1)
            elif action == "plain":
                connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                connection.recv(1 << 12)
            elif action == "half":
                inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
                inside.write(hello)
                with contextlib.suppress(ssl.SSLWantReadError):
                    context.wrap_bio(inside, outside, server_side=True).do_handshake()
                flight = outside.read()
                connection.send(flight[: entry.get("half_bytes", len(flight) // 2)])
            return
        if action == "warn":
            connection.send(b"\x15\x03\x03\x00\x02\x01\x70", socket.MSG_MORE)  # unrecognized_name
        with context.wrap_socket(connection, server_side=True) as tls:
            answer(tls)


def listen(entry: dict[str, Any]) -> None:
    context = context_of(entry)
    host = entry.get("host", "127.0.0.1")
    listener = socket.create_server((host, entry["port"]), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, entry, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


for listener_entry in json.loads(sys.argv[1]):
    listen(listener_entry)
print("listening", flush=True)
sys.stdin.read()
