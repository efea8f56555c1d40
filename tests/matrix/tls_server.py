"""A TLS server for the matrix: makes an authority of its own, writes it to FILE, answers each connection with what it sent.

Usage: tls_server.py PORT FILE
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import trustme


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(await reader.read(1 << 16))
        await writer.drain()
    except OSError:
        pass
    writer.close()


async def main() -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(sys.argv[2])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # handshakes that the client breaks off are meant to be
    await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), ssl=context)
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
