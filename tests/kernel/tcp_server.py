"""A TCP server for tests, port from the command line on all addresses: reads everything, and answers "get N" with N bytes."""

from __future__ import annotations

import asyncio
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            if data.startswith(b"get "):
                writer.write(b"x" * int(data[4:]))
                await writer.drain()
                writer.close()
                return
    except OSError:
        pass
    writer.close()


async def main() -> None:
    for host in ("127.0.0.1", "::1"):
        await asyncio.start_server(serve, host, int(sys.argv[1]), backlog=4096)
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
