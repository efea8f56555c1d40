"""TCP traffic for tests: a plan as JSON on stdin, the client's own view of each connect as JSON on stdout.

A plan is a list of {host, port, give_up_s, send_bytes, get_bytes}; all connects run at once.
Waits for a line on stdin before the first packet, so that its pid can be known, and lives until stdin is closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any


async def connect(entry: dict[str, Any]) -> dict[str, Any]:
    sock = socket.socket(socket.AF_INET6 if ":" in entry["host"] else socket.AF_INET)
    sock.setblocking(False)
    begun_ns = time.monotonic_ns()
    result: dict[str, Any] = {"host": entry["host"], "port": entry["port"], "errno": 0, "local_port": 0}
    writer = None
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (entry["host"], entry["port"])), entry.get("give_up_s"))
        reader, writer = await asyncio.open_connection(sock=sock)
        result["local_port"] = writer.get_extra_info("sockname")[1]
    except OSError as error:  # our own giving up is a TimeoutError without errno
        result["errno"] = error.errno or -1
        sock.close()
    result["elapsed_ms"] = (time.monotonic_ns() - begun_ns) / 1e6
    if writer:
        if entry.get("send_bytes"):
            writer.write(b"y" * entry["send_bytes"])
            await writer.drain()
        if entry.get("get_bytes"):
            writer.write(b"get %d" % entry["get_bytes"])
            while await reader.read(1 << 18):
                pass
        writer.close()
    return result


async def main() -> None:
    plan = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    results = await asyncio.gather(*map(connect, plan))
    print(json.dumps(results), flush=True)
    sys.stdin.read()


asyncio.run(main())
