"""TLS clients for tests: a plan as JSON on stdin, the client's own view of each handshake as JSON on stdout.

A plan is a list of {port, host, ca, version, resume, how, certificate, ciphers, give_up_s, get_bytes, proxy, cut_bytes},
done one after the other. how: "" a blocking socket, "asyncio", "httpr" (another library than OpenSSL). resume: of the entry before.
cut_bytes: send the client's records in pieces of this size.
Waits for a line on stdin before the first packet, so that its pid can be known.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from typing import Any

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def context_of(entry: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=entry["ca"])
    if entry.get("version"):
        context.minimum_version = context.maximum_version = VERSIONS[entry["version"]]
    if entry.get("ciphers"):
        context.set_ciphers(entry["ciphers"])
    if entry.get("certificate"):
        context.load_cert_chain(entry["certificate"])
    return context


def connected(entry: dict[str, Any]) -> socket.socket:
    sock = socket.create_connection((entry.get("host", "127.0.0.1"), entry["port"]))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if entry.get("proxy"):
        sock.sendall(b"CONNECT slo.test:443 HTTP/1.1\r\nHost: slo.test:443\r\nUser-Agent: a-client-of-the-tests/1.0\r\n\r\n")
        assert b" 200 " in sock.recv(1 << 12)
    return sock


def in_pieces(entry: dict[str, Any], context: ssl.SSLContext) -> dict[str, Any]:
    """A handshake whose records leave and are read in pieces that cut records and their headers."""
    sock, inside, outside = connected(entry), ssl.MemoryBIO(), ssl.MemoryBIO()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    tls = context.wrap_bio(inside, outside, server_hostname="slo.test")
    port, begun_ns, n_sent = sock.getsockname()[1], time.monotonic_ns(), 0
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        data = outside.read()
        while data:
            size = entry["cut_bytes"] if n_sent else 64  # the first 11 bytes of a ClientHello must be together
            n_sent += sock.send(data[:size])
            data = data[size:]
            time.sleep(0.0005)
        ended_ns = time.monotonic_ns()
        if done:
            break
        inside.write(sock.recv(1 << 14))
    sock.close()
    return {"local_port": port, "begun_ns": begun_ns, "ended_ns": ended_ns, "error": "", "version": tls.version(), "resumed": False}


def blocking(entry: dict[str, Any], context: ssl.SSLContext, session: Any) -> tuple[dict[str, Any], Any]:
    sock = connected(entry)
    sock.settimeout(entry.get("give_up_s"))
    port, error = sock.getsockname()[1], ""
    tls = context.wrap_socket(sock, server_hostname="slo.test", do_handshake_on_connect=False, session=session)
    begun_ns = time.monotonic_ns()
    try:
        tls.do_handshake()
    except OSError as found:
        error = type(found).__name__ + " " + str(getattr(found, "reason", ""))
    ended_ns = time.monotonic_ns()
    if not error:
        n_bytes = entry.get("get_bytes", 3)
        try:
            tls.send(b"get %d" % n_bytes)
            while n_bytes:
                got = len(tls.recv(1 << 20))
                n_bytes -= got
                if not got:
                    break
        except OSError as found:
            error = "later: " + str(getattr(found, "reason", ""))
    result = {"local_port": port, "begun_ns": begun_ns, "ended_ns": ended_ns, "error": error, "version": tls.version(),
              "resumed": bool(tls.session_reused)}  # fmt: skip
    session = None if error else tls.session
    tls.close()
    return result, session


async def asynchronous(entry: dict[str, Any], context: ssl.SSLContext) -> dict[str, Any]:
    sock = connected(entry)
    sock.setblocking(False)
    port, error, version, writer = sock.getsockname()[1], "", None, None
    begun_ns = time.monotonic_ns()
    try:
        opening = asyncio.open_connection(sock=sock, ssl=context, server_hostname="slo.test")
        _, writer = await asyncio.wait_for(opening, entry.get("give_up_s"))
    except OSError as found:  # of which TimeoutError is one
        error = type(found).__name__
    ended_ns = time.monotonic_ns()
    if writer:
        version = writer.get_extra_info("ssl_object").version()
        writer.close()
    sock.close()
    return {"local_port": port, "begun_ns": begun_ns, "ended_ns": ended_ns, "error": error, "version": version, "resumed": False}


def other_library(entry: dict[str, Any]) -> dict[str, Any]:
    import httpr  # rustls, statically linked

    client = httpr.Client(ca_cert_file=entry["ca"], verify=True, timeout=10)
    begun_ns, error = time.monotonic_ns(), ""
    try:
        client.get(f"https://localhost:{entry['port']}/")
    except Exception as found:
        error = type(found).__name__
    return {"local_port": 0, "begun_ns": begun_ns, "ended_ns": time.monotonic_ns(), "error": error, "version": None, "resumed": False}


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    contexts: dict[str, ssl.SSLContext] = {}
    session = None
    results = []
    print("ready", flush=True)
    sys.stdin.readline()
    for entry in plan:
        key = json.dumps([entry["ca"], entry.get("version"), entry.get("ciphers"), entry.get("certificate")])
        context = contexts.setdefault(key, contexts.get(key) or context_of(entry))
        how = entry.get("how", "")
        if how == "asyncio":
            results.append(asyncio.run(asynchronous(entry, context)))
        elif how == "httpr":
            results.append(other_library(entry))
        elif entry.get("cut_bytes"):
            results.append(in_pieces(entry, context))
        else:
            result, session = blocking(entry, context, session if entry.get("resume") else None)
            results.append(result)
    print(json.dumps(results))


main()
