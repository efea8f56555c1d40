"""TLS handshakes when told to: some that trust the server and talk to it, some that do not; each on this process's own clock.

Usage: tls_client.py PORT CA_FILE GOOD BAD
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time

port, authority, good, bad = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
trusting, doubting = ssl.create_default_context(cafile=authority), ssl.create_default_context()
print("ready", flush=True)
sys.stdin.readline()
done_ms, failed = [], 0
for number in range(good + bad):
    context = trusting if number < good else doubting
    with socket.create_connection(("127.0.0.1", port)) as plain:
        begun_ns = time.monotonic_ns()
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                done_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
                secure.sendall(b"hello")
                assert secure.recv(16) == b"hello"
        except ssl.SSLCertVerificationError:
            failed += 1
assert len(done_ms) == good and failed == bad
print(json.dumps(done_ms), flush=True)
sys.stdin.readline()
