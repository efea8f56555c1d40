"""Mixed load for `make soak`: names, connects, refusals, switches, and short lives in short-lived cgroups.

Usage: soak_load.py CGROUP LIVES_PER_S (as root, in a fresh network namespace; until its stdin closes; then prints what it did)
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PAUSE_S = 0.02
# Two processes, so that twice as many come and go as cgroups.
SHORT_LIFE = """
echo $$ >$0/cgroup.procs
for i in 1 2 3; do : >/dev/tcp/127.0.0.1/9; done
(for i in 1 2; do : >/dev/tcp/127.0.0.1/8000; done)
true
"""
QUERY = b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04soak\x04test\x00\x00\x01\x00\x01"  # RFC 1035: soak.test, A, IN
done = dict.fromkeys(("queries", "connects", "refused", "switches", "lives"), 0)
stop = threading.Event()


def serve_names() -> None:
    """Answer every query; every tenth name does not exist."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        query, peer = server.recvfrom(512)
        number = int.from_bytes(query[:2], "big")
        server.sendto(query[:2] + (b"\x81\x83" if number % 10 == 0 else b"\x81\x80") + query[4:], peer)


def serve_connects() -> None:
    """Accept and close."""
    server = socket.create_server(("127.0.0.1", 8000), backlog=128)
    while True:
        server.accept()[0].close()


def ask() -> None:
    """Queries, connects and refused connects, at a steady pace."""
    number = 0
    while not stop.wait(PAUSE_S):
        number += 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.connect(("127.0.0.1", 53))
            asker.send(number.to_bytes(4, "big")[2:] + QUERY[2:])
            asker.recv(512)
        done["queries"] += 1
        socket.create_connection(("127.0.0.1", 8000)).close()
        done["connects"] += 1
        with socket.socket() as refused:
            done["refused"] += refused.connect_ex(("127.0.0.1", 9)) != 0


def switch() -> None:
    """Wake a thread that waits in a pipe, again and again."""
    receive, send = os.pipe()
    threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(receive, 1), b"")], daemon=True).start()
    while not stop.wait(PAUSE_S):
        for _ in range(20):
            os.write(send, b".")
            done["switches"] += 1


def live(parent: Path, per_second: float) -> None:
    """Processes that come and go in cgroups that come and go."""
    number = 0
    begun_s = time.monotonic()
    while not stop.wait(max(0.0, begun_s + number / per_second - time.monotonic())):
        number += 1
        cgroup = parent / str(number)
        cgroup.mkdir()
        try:
            subprocess.run(["bash", "-c", SHORT_LIFE, str(cgroup)], stderr=subprocess.DEVNULL, check=False)
            done["lives"] += 1
        finally:
            while True:
                try:
                    cgroup.rmdir()
                    break
                except OSError:  # who was waited for may still be leaving
                    time.sleep(0.001)


def main() -> None:
    """Until nobody is at the other end of stdin."""
    parent = Path(sys.argv[1])
    (parent / "cgroup.procs").write_text(str(os.getpid()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for serve in (serve_names, serve_connects):
        threading.Thread(target=serve, daemon=True).start()
    time.sleep(0.2)
    living = threading.Thread(target=live, args=(parent, float(sys.argv[2])))
    workers = [threading.Thread(target=ask), threading.Thread(target=switch), living]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    select.select([sys.stdin], [], [])
    stop.set()
    for worker in workers:
        worker.join()
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
